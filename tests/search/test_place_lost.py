"""What befalls a study's folder and its SQLite file while a search runs: others have it open, it is moved, a signal."""

from __future__ import annotations

import errno
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
from chitransfer.errors import StudyError, describe_os_error
from chitransfer.search import driver, run, storage
from chitransfer.search.lock import drive_alone
from chitransfer.search.objective import RungTask
from chitransfer.search.study import read_study
from chitransfer.search.study_folder import StudyFolder, locate_study, refuse_odd_bytes


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
    said = "(database is locked); another program is reading or writing it; wait until that ends, or close it. "
    assert said in made_up_run.out.getvalue()
    assert f"{said}All finished trials are kept; waiting for it" in made_up_run.log()


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
            with pytest.raises(StudyError, match=r"another program is reading or writing it.*Resume with: ") as error:
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
    with pytest.raises(StudyError, match=r"the study's folder is missing; was it moved\?.*--resume FOLDER") as error:
        made_up_run.search(draw=draw)
    assert not made_up_run.folder.path.exists()
    assert str(error.value) in made_up_run.log()
    assert made_up_run.search(resume=locate_study(moved)) == 0
    assert states(locate_study(moved)) == ["COMPLETE"] * 4


def test_tables_that_cannot_be_written_do_not_hide_why_the_search_ended(made_up_search: Callable[..., Any]) -> None:
    search = made_up_search()
    search.folder.path.rmdir()
    with pytest.raises(StudyError, match="the study's folder is missing"):
        run.write_what_there_is(search.folder, search.study)

    def end_by_an_error() -> None:
        try:
            raise KeyError("the reason")
        finally:
            run.write_what_there_is(search.folder, search.study)

    with pytest.raises(KeyError, match="the reason"):
        end_by_an_error()
    assert not search.folder.path.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_how_to_go_on_is_said_before_the_figures_are_drawn(made_up_run: MadeUpRun, number: int, code: int) -> None:
    resume = f"Resume with: chitransfer search --resume {made_up_run.folder.database}"
    said: list[bool] = []

    def draw(*parts: object) -> None:
        said.extend([resume in made_up_run.out.getvalue(), resume in made_up_run.log()])

    made_up_run.before(1, lambda: os.kill(os.getpid(), number))
    assert made_up_run.search(draw=draw) == code
    assert said == [True, True]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*words: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    folder = StudyFolder(tmp_path / "results" / "new")
    with (
        pytest.raises(StudyError, match=r"new: its file system has no file locks .*--results-dir"),
        drive_alone(folder),
    ):
        pytest.fail("nothing keeps a second search out")
    assert not folder.path.exists()


@pytest.mark.parametrize(
    ("number", "filename", "said"),
    [
        (errno.ENOSPC, None, "the output, a temporary folder (TMPDIR), /dev/shm or {study}: cannot be written"),
        (errno.EROFS, "/else/where", "/else/where: cannot be written"),
        (errno.ENOSPC, "/else/where", "/else/where: cannot be written"),
    ],
)
def test_the_folder_alone_is_blamed_for_nothing_that_names_no_file(
    tmp_path: Path, number: int, filename: str | None, said: str
) -> None:
    error = OSError(number, os.strerror(number), filename)
    with pytest.raises(StudyError) as caught, drive_alone(StudyFolder(tmp_path)):
        raise error
    assert str(caught.value).startswith(said.format(study=tmp_path))


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.EAGAIN, "ulimit -u"), (errno.ENOMEM, "ulimit -v"), (errno.EIO, "TMPDIR")]
)
def test_what_the_system_refuses_without_a_file_has_its_remedy(number: int, remedy: str) -> None:
    said = describe_os_error(OSError(number, os.strerror(number)))
    assert remedy in said
    assert ("file" in said or "folder" in said) == (number == errno.EIO)


@pytest.mark.skipif(os.name == "nt", reason="names are text on Windows")
def test_a_folder_whose_name_is_no_utf_8_is_refused_before_anything_is_made(
    made_up_run: MadeUpRun, tmp_path: Path
) -> None:
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/r\xff"))
    made_up_run.config = made_up_run.config.model_copy(
        update={"paths": made_up_run.config.paths.model_copy(update={"results_dir": str(odd)})}
    )
    with pytest.raises(StudyError, match=r"r\\xff/hparam_search': the name of a results folder must be valid UTF-8"):
        made_up_run.search()
    assert not odd.exists()
    with pytest.raises(StudyError, match="the name of a results folder must be valid UTF-8"):
        locate_study(odd)
    refuse_odd_bytes(tmp_path / "χ and ☃")


def test_what_a_killed_search_was_writing_is_taken_away(
    made_up_search: Callable[..., Any], killed: type[BaseException]
) -> None:
    search = made_up_search(search__n_trials=2, search__rungs=[1, 2])
    left_over = [".rung_00002-k2_x9abc.pt", ".scores-abcdefgh.json", ".stage1_history-q_w_e_r_.csv"]

    def die(task: RungTask) -> None:
        if (task.number, task.epoch) == (1, 4):
            for name in left_over:
                (search.folder.trial(1) / name).write_bytes(b"half")
            raise killed

    search.workers.before = die
    with pytest.raises(killed):
        search.drive()
    assert {path.name for path in search.folder.trial(1).iterdir()} > set(left_over)
    search.workers.before = lambda task: None
    search.drive()
    kept = {path.name for path in search.folder.trial(1).iterdir()}
    assert kept == {path.name for path in search.folder.trial(0).iterdir()}
    assert "scores.json" in kept


def test_the_state_of_a_trial_is_taken_away_after_a_kill_at_its_very_end(
    made_up_search: Callable[..., Any], killed: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = made_up_search(search__n_trials=2, search__rungs=[1, 2])
    state = search.folder.trial(0) / "rung_00002.pt"

    def die(folder: Path) -> None:
        state.write_bytes(b"what it would have gone on from")
        raise killed

    with monkeypatch.context() as patch:
        patch.setattr(driver, "discard_states", die)
        with pytest.raises(killed):
            search.drive()
    assert state.exists()
    assert search.study.trials[0].state.name == "COMPLETE"
    search.drive()
    assert not state.exists()
