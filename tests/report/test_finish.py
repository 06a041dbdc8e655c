"""A study's report is made whatever became of the files it is made from, and says what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chitransfer.report.finish import read_reference
from chitransfer.search.study import StudyFolder


@pytest.fixture
def copied(finished_search: Any, tmp_path: Path) -> StudyFolder:
    """The finished study, free to be changed."""
    shutil.copytree(finished_search.folder.path, tmp_path / "done")
    return StudyFolder((tmp_path / "done").resolve())


@pytest.mark.parametrize("text", ["[1]", "1", "{", '{"trivial_predictor": {"mean": [1]}}', '{"trivial_predictor": []}'])
def test_a_damaged_reference_is_done_without(copied: StudyFolder, text: str) -> None:
    copied.reference.write_text(text, encoding="utf-8")
    assert read_reference(copied) == {}


@pytest.mark.parametrize("kind", ["chi", "solubility"])
@pytest.mark.parametrize("damage", ["missing", "empty", "binary", "cut", "cut in a line", "no column"])
def test_damaged_predictions_are_a_warning(
    copied: StudyFolder, run_command: Callable[..., tuple[int, str, str]], kind: str, damage: str
) -> None:
    for folder in sorted((copied.path / "trials").iterdir()):
        path = folder / f"out_of_fold_{kind}.csv"
        lines = path.read_bytes().splitlines(keepends=True)
        damaged = {
            "empty": b"",
            "binary": bytes(range(256)),
            "cut": b"".join(lines[: 3 * len(lines) // 4]),
            "cut in a line": b"".join(lines)[:-9],
            "no column": b"".join(lines).replace(b"polymer", b"molecule", 1),
        }
        path.unlink()
        if damage != "missing":
            path.write_bytes(damaged[damage])
    (copied.path / "report.html").unlink()
    code, out, err = run_command("report", copied.path)
    assert code == 0, err
    assert (copied.path / "report.html").is_file()
    if damage != "missing":
        assert "WARNING: " in out
        assert "damaged out-of-fold predictions" in out
