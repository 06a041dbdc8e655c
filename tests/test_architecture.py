"""What stands above what, and which parts know the configuration, Optuna and Dask, as CONTRIBUTING.md says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

# From the lowest to the highest: packages, and modules that stand beside them.
ORDER = (
    ("chemistry",),
    ("data",),
    ("model",),
    ("training", "provenance", "shortage"),
    ("search",),
    ("evidence",),
    ("report", "predict", "predict_table", "screen"),
    ("commands",),
    ("cli",),
)
PLACES = {name: place for place, names in enumerate(ORDER) for name in names}
# Parts of `training` that see the configuration: whole runs, and what makes plain parameters of it.
CONFIGURED = {"settings", "pretrain", "finetune", "run_folder", "handover", "unread"}
SEARCHERS = {"optuna", "dask", "distributed", "dask_jobqueue"}
READERS = {"evidence", "report"}


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def modules(project_root: Path) -> Iterator[tuple[str, str, Path]]:
    """Every module: the package or top-level module it belongs to, its own name, its file."""
    package = project_root / "chitransfer"
    for path in sorted(package.rglob("*.py")):
        yield path.relative_to(package).with_suffix("").parts[0], path.stem, path


def test_nothing_imports_what_stands_above_it(project_root: Path) -> None:
    seen, wrong = set(), []
    for home, _, path in modules(project_root):
        for module in imported_modules(path):
            parts = module.split(".")
            if parts[0] != "chitransfer" or len(parts) < 2 or parts[1] not in PLACES:
                continue
            seen.add((home, parts[1]))
            # What has no place, such as errors and files, stands below all.
            if PLACES[parts[1]] > PLACES.get(home, -1) and home != "__main__":
                wrong.append(f"{path.relative_to(project_root)} imports {module}")
    assert not wrong
    assert {("data", "chemistry"), ("search", "training"), ("report", "evidence"), ("cli", "commands")} <= seen


def test_parts_of_a_training_take_plain_parameters(project_root: Path) -> None:
    lower = {"chemistry", "data", "model", "training"}
    found = {
        f"{home}/{name}"
        for home, name, path in modules(project_root)
        if home in lower and "chitransfer.config" in imported_modules(path)
    }
    assert found == {f"training/{name}" for name in CONFIGURED}


def test_only_the_search_knows_optuna_and_dask(project_root: Path) -> None:
    users: dict[str, set[str]] = {}
    for home, _, path in modules(project_root):
        for module in imported_modules(path):
            users.setdefault(module.split(".")[0], set()).add(home)
    assert users["optuna"] == {"search", *READERS}
    assert all(users[name] == {"search"} for name in SEARCHERS & users.keys() - {"optuna"})
    assert {"dask", "distributed"} <= users.keys()
