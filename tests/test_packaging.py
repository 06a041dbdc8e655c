"""What the package imports is what pyproject.toml declares, and all of that is pinned."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

# Imported by a dependency on our behalf: CMA-ES by Optuna.
IMPORTED_BY_OTHERS = {"cmaes"}


def normalise(name: str) -> str:
    """A distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared_names(requirements: list[str]) -> set[str]:
    """Names of requirements such as ``dask[distributed]>=2025.1``, extras of chitransfer itself left out."""
    names = {normalise(re.split(r"[\[<>=!~; ]", text, maxsplit=1)[0]) for text in requirements}
    names |= {extra for text in requirements for extra in re.findall(r"^dask\[(\w+)\]", text)}
    return names - {"chitransfer"}


def imported_distributions(root: Path) -> set[str]:
    """Distributions that the top-level imports of a folder's modules come from."""
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
                found.add(node.module.split(".")[0])
    known = packages_distributions()
    outside = found - set(sys.stdlib_module_names) - {"chitransfer"}
    return {normalise(known[name][0] if name in known else name) for name in outside}


def test_imports_are_declared_and_what_is_declared_is_imported(project_root: Path) -> None:
    project = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = declared_names(project["dependencies"])
    optional = declared_names([one for name, extra in project["optional-dependencies"].items() for one in extra])
    imported = imported_distributions(project_root / "chitransfer")
    assert imported - needed - optional == set()
    assert needed - imported == IMPORTED_BY_OTHERS


def test_everything_that_gets_installed_is_pinned(project_root: Path) -> None:
    """Follows the requirements of what is installed here, without extras and conditions, from pyproject.toml on."""
    lines = (project_root / "constraints.txt").read_text(encoding="utf-8").split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {normalise(line.split("==")[0]) for line in lines}
    project = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = declared_names(
        [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    )
    assert wanted <= pinned
    for name in sorted(declared_names(project["dependencies"])):
        wanted |= declared_names([text for text in requires(name) or [] if ";" not in text])
    assert wanted <= pinned


def test_types_are_shipped(project_root: Path) -> None:
    settings = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))
    assert "py.typed" in settings["tool"]["setuptools"]["package-data"]["chitransfer"]
    assert (project_root / "chitransfer" / "py.typed").is_file()
