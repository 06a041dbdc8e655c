"""Standard output that is closed, or whose reader goes, ends no command that has more to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chitransfer.config import dump_config, load_config
from chitransfer.search.study import read_study
from chitransfer.search.study_folder import locate_study

COMMAND = [sys.executable, "-m", "chitransfer"]


@pytest.fixture(autouse=True)
def buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written is kept until Python ends, as it is for users."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.fixture
def study_words(tiny: dict[str, object], tmp_path: Path) -> tuple[Path, list[str]]:
    """The folder of a study of one trial, and the command that makes it."""
    shorter = {
        "search.n_trials": 1,
        "search.reevaluate_top": 0,
        "cv.random_forest": False,
        "search.study_name": "short",
    }
    path = tmp_path / "short.yaml"
    path.write_text(dump_config(load_config(None, tiny | shorter)), encoding="utf-8")
    return tmp_path / "results" / "hparam_search" / "short", [*COMMAND, "search", "--config", str(path)]


@pytest.mark.slow
def test_a_search_whose_reader_goes_comes_to_its_end(study_words: tuple[Path, list[str]]) -> None:
    folder, words = study_words
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [trial.state.name for trial in read_study(locate_study(folder)).trials] == ["COMPLETE"]
    assert (folder / "report.html").is_file()
    (log,) = (folder.parent / "logs").glob("search_short_*.log")
    text = log.read_text(encoding="utf-8")
    assert "WARNING the reader of the output is gone; continuing without it" in text
    assert "search finished: 1 complete" in text


def test_a_reader_that_takes_the_errors_along_changes_no_exit_code() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run([*COMMAND, "status", "none"], stdout=writing, stderr=writing, check=False)
    os.close(writing)
    assert ended.returncode == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="terminals come and go this way on Unix")
def test_a_search_whose_terminal_goes_comes_to_its_end(study_words: tuple[Path, list[str]]) -> None:
    """As one that was disowned does when its shell ends: no signal comes, but what it prints has no place to go."""
    folder, words = study_words
    terminal, inside = os.openpty()
    process = subprocess.Popen(words, stdin=inside, stdout=inside, stderr=inside, start_new_session=True)
    os.close(inside)
    os.read(terminal, 1)
    os.close(terminal)
    assert process.wait(timeout=120) == 0
    assert [trial.state.name for trial in read_study(locate_study(folder)).trials] == ["COMPLETE"]
    (log,) = (folder.parent / "logs").glob("search_short_*.log")
    assert "search finished: 1 complete" in log.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="streams are closed this way on Unix")
def test_a_search_without_any_stream_comes_to_its_end(study_words: tuple[Path, list[str]]) -> None:
    folder, words = study_words
    ended = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words], check=False)
    assert ended.returncode == 0
    assert [trial.state.name for trial in read_study(locate_study(folder)).trials] == ["COMPLETE"]


@pytest.mark.skipif(sys.platform == "win32", reason="streams are closed this way on Unix")
@pytest.mark.parametrize(("words", "code"), [(["data", "fetch"], 0), (["status", "none"], 2), (["serach"], 2)])
def test_a_closed_output_changes_no_exit_code(words: list[str], code: int) -> None:
    ended = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, *words], stderr=subprocess.PIPE, text=True, check=False
    )
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr
