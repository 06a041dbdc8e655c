"""What befalls a study's folder and its SQLite file while a search runs: others have it open, it is moved, a signal."""

from __future__ import annotations

import io
import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from chitransfer.config import load_config
from chitransfer.errors import StudyError
from chitransfer.search import run, storage
from chitransfer.search.objective import RungTask
from chitransfer.search.study import read_study
from chitransfer.search.study_folder import StudyFolder, locate_study


@dataclass
class MadeUpRun:
    """A whole search on made-up trials, in a study on disk."""

    config: Any
    workers: Any
    out: io.StringIO

    @property
    def folder(self) -> StudyFolder:
        return StudyFolder((Path(self.config.paths.results_dir) / "hparam_search" / "kept").resolve())

    def search(self, resume: StudyFolder | None = None, draw: Callable[..., Any] = lambda *_: None) -> int:
        self.workers.close()
        return run.run_search(self.config, Console(file=self.out, width=400), resume=resume, draw=draw)

    def before(self, number: int, happen: Callable[[], None]) -> None:
        """Let something happen once, before the first rung of a trial."""

        def look(task: RungTask) -> None:
            if task.number == number:
                self.workers.before = lambda task: None
                happen()

        self.workers.before = look

    def log(self) -> str:
        return "".join(path.read_text(encoding="utf-8") for path in self.folder.path.parent.glob("logs/*.log"))


@pytest.fixture
def made_up_run(
    tiny: dict[str, object], made_up_search: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> MadeUpRun:
    search = made_up_search()
    monkeypatch.setattr(run, "make_workers", lambda *_: search.workers)
    changes = {"search.study_name": "kept", "search.n_trials": 4, "search.reevaluate_top": 0}
    return MadeUpRun(load_config(None, {**tiny, **changes}), search.workers, io.StringIO())


def states(folder: StudyFolder) -> list[str]:
    return [trial.state.name for trial in read_study(folder).trials]


class Reader:
    """Another program that reads one row, and does not let go of the next."""

    def __init__(self, database: Path) -> None:
        self.database = database

    def read_a_row(self) -> None:
        self.connection = sqlite3.connect(self.database)
        self.cursor = self.connection.execute("SELECT * FROM trial_user_attributes")
        self.cursor.fetchone()

    def close(self) -> None:
        self.cursor.close()
        self.connection.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite and the search that waits for it ask again at once."""
    monkeypatch.setattr(storage, "SQLITE_SECONDS", 0.01)
    monkeypatch.setattr(run, "STORAGE_POLL_SECONDS", 0.01)


def test_a_reader_that_keeps_the_file_open_is_waited_for(
    made_up_run: MadeUpRun, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    reader = Reader(made_up_run.folder.database)

    def close_at_the_third_question(database: Path) -> bool:
        if len(asked) == 2:
            reader.close()
        asked.append(storage.is_free(database))
        return asked[-1]

    monkeypatch.setattr(run, "is_free", close_at_the_third_question)
    made_up_run.before(2, reader.read_a_row)
    assert made_up_run.search() == 0
    assert asked == [False, False, True]
    assert states(made_up_run.folder) == ["COMPLETE"] * 4
    said = "(database is locked); another program has it open, reading or writing; wait for that one or close it. "
    assert said in made_up_run.out.getvalue()
    assert f"{said}Nothing that finished is lost; waiting for it" in made_up_run.log()


@pytest.mark.parametrize("stopped", [True, False])
def test_waiting_for_a_reader_has_an_end(
    made_up_run: MadeUpRun, impatient: None, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    def is_never_free(database: Path) -> bool:
        assert not storage.is_free(database)
        if stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    monkeypatch.setattr(run, "is_free", is_never_free)
    monkeypatch.setattr(run, "STORAGE_WAIT_SECONDS", 600.0 if stopped else 0.05)
    resume = f"chitransfer search --resume {made_up_run.folder.database}"
    with closing(Reader(made_up_run.folder.database)) as reader:
        made_up_run.before(2, reader.read_a_row)
        if stopped:
            assert made_up_run.search() == 143
            assert resume in made_up_run.out.getvalue()
        else:
            with pytest.raises(StudyError, match=r"another program has it open.*Resume with: ") as error:
                made_up_run.search()
            assert resume in str(error.value)
    assert made_up_run.search(resume=locate_study(made_up_run.folder.path)) == 0
    assert states(made_up_run.folder) == ["COMPLETE"] * 4


def test_a_file_nobody_has_open_is_free(made_up_run: MadeUpRun) -> None:
    made_up_run.search()
    database = made_up_run.folder.database
    assert storage.is_free(database)
    with closing(sqlite3.connect(database)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert not storage.is_free(database)
    assert not storage.is_free(database.with_name("none.db"))
    assert not database.with_name("none.db").exists()


@pytest.mark.parametrize("moment", ["a rung is sent", "a rung is done", "the trials are over"])
def test_a_folder_that_was_moved_is_not_made_again(made_up_run: MadeUpRun, tmp_path: Path, moment: str) -> None:
    moved = tmp_path / "moved"

    def move() -> None:
        made_up_run.folder.path.rename(moved)

    draw: Callable[..., Any] = lambda *_: move() if moment == "the trials are over" else None  # noqa: E731
    if moment == "a rung is done":
        answer = made_up_run.workers.answer

        def move_and_answer(task: RungTask) -> Any:
            if task.number == 2:
                made_up_run.workers.answer = answer
                move()
            return answer(task)

        made_up_run.workers.answer = move_and_answer
    elif moment == "a rung is sent":
        made_up_run.before(2, move)
    with pytest.raises(StudyError, match=r"the study's folder is gone; was it moved\?.*--resume FOLDER") as error:
        made_up_run.search(draw=draw)
    assert not made_up_run.folder.path.exists()
    assert str(error.value) in made_up_run.log()
    assert made_up_run.search(resume=locate_study(moved)) == 0
    assert states(locate_study(moved)) == ["COMPLETE"] * 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_how_to_go_on_is_said_before_the_figures_are_drawn(made_up_run: MadeUpRun, number: int, code: int) -> None:
    resume = f"Resume with: chitransfer search --resume {made_up_run.folder.database}"
    said: list[bool] = []

    def draw(*parts: object) -> None:
        said.extend([resume in made_up_run.out.getvalue(), resume in made_up_run.log()])

    made_up_run.before(1, lambda: os.kill(os.getpid(), number))
    assert made_up_run.search(draw=draw) == code
    assert said == [True, True]
