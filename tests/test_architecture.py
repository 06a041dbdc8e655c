"""Imports between the packages go one way, as CONTRIBUTING.md says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ORDER = ("chemistry", "data", "model", "training", "search", "evidence", "report", "commands")


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_package_imports_one_that_stands_above_it(project_root: Path) -> None:
    seen, wrong = set(), []
    for place, package in enumerate(ORDER):
        for path in sorted((project_root / "chitransfer" / package).rglob("*.py")):
            for module in imported_modules(path):
                parts = module.split(".")
                if parts[0] != "chitransfer" or len(parts) < 2 or parts[1] not in ORDER:
                    continue
                seen.add((package, parts[1]))
                if ORDER.index(parts[1]) > place:
                    wrong.append(f"{path.relative_to(project_root)} imports {module}")
    assert not wrong
    assert {("data", "chemistry"), ("search", "training"), ("report", "evidence")} <= seen
