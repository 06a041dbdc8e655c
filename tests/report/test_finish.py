"""A study's report is made whatever became of the files it is made from, and says what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chitransfer.errors import StudyError
from chitransfer.evidence.outcomes import read_repeats
from chitransfer.search.study_folder import StudyFolder


@pytest.fixture
def copied(finished_search: Any, tmp_path: Path) -> StudyFolder:
    """The finished study, free to be changed."""
    shutil.copytree(finished_search.folder.path, tmp_path / "done")
    return StudyFolder((tmp_path / "done").resolve())


def with_prediction(line: bytes, prediction: bytes) -> bytes:
    """A line of an out-of-fold table with another value before its seed and its repeat."""
    cells = line.split(b",")
    return b",".join([*cells[:-3], prediction, *cells[-2:]])


def damage_predictions(folder: Path, kind: str, damage: str) -> None:
    """Spoil the out-of-fold table of one kind in a trial's folder."""
    path = folder / f"out_of_fold_{kind}.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = {
        "missing": None,
        "empty": b"",
        "binary": bytes(range(256)),
        "cut": b"".join(lines[: 3 * len(lines) // 4]),
        "cut in a line": b"".join(lines)[:-9],
        "no column": b"".join(lines).replace(b"polymer", b"molecule", 1),
        "no number": b"".join([*lines[:-1], with_prediction(lines[-1], b"0.x7")]),
        "infinite": b"".join([*lines[:-1], with_prediction(lines[-1], b"inf")]),
    }[damage]
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)


@pytest.mark.parametrize("kind", ["chi", "solubility"])
@pytest.mark.parametrize("damage", ["empty", "binary", "cut", "cut in a line", "no column", "no number", "infinite"])
def test_damaged_predictions_are_noticed(finished_search: Any, tmp_path: Path, kind: str, damage: str) -> None:
    shutil.copy(finished_search.folder.trial(0) / f"out_of_fold_{kind}.csv", tmp_path)
    assert read_repeats(tmp_path, kind)
    damage_predictions(tmp_path, kind, damage)
    with pytest.raises(StudyError, match="damaged out-of-fold predictions"):
        read_repeats(tmp_path, kind)


@pytest.mark.parametrize(
    ("chi", "solubility"), [("missing", "cut"), ("binary", "missing"), ("missing", "missing"), ("missing", None)]
)
def test_damaged_predictions_are_a_warning(
    copied: StudyFolder, run_command: Callable[..., tuple[int, str, str]], chi: str, solubility: str | None
) -> None:
    for folder in sorted((copied.path / "trials").iterdir()):
        damage_predictions(folder, "chi", chi)
        if solubility is not None:
            damage_predictions(folder, "solubility", solubility)
    (copied.path / "report.html").unlink()
    code, out, err = run_command("report", copied.path)
    assert code == 0, err
    assert (copied.path / "report.html").is_file()
    assert "WARNING: " in out
    assert ("damaged out-of-fold predictions" in out) == ({chi, solubility} - {"missing", None} != set())
