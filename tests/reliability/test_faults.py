"""Faults inside a trial and around it: each is injected, and the study loses nothing and says what to do."""

from __future__ import annotations

import errno
import gc
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from searching import SHORTEST, check_complete, read_trials

import chitransfer.files
from chitransfer.config import load_config
from chitransfer.errors import CheckpointError, StudyError
from chitransfer.search.driver import SearchDriver
from chitransfer.search.encoders import unpack_state
from chitransfer.search.objective import RungTask
from chitransfer.search.runner import TrialRunner
from chitransfer.search.study_folder import locate_study
from chitransfer.search.workers import InProcessWorkers
from chitransfer.training.stage1 import Stage1Run
from tests.shortages import cpu_shortage

Search = Callable[..., tuple[int, Any]]


@pytest.fixture
def small(tiny: dict[str, object]) -> dict[str, object]:
    return {**tiny, **SHORTEST, "training.num_epochs_pretrain": 2}


def states(folder: Any) -> list[str]:
    return [trial.state.name for trial in read_trials(folder.database)]


def reasons(folder: Any) -> list[str]:
    return [t.user_attrs["failure_reason"] for t in read_trials(folder.database) if t.state.name == "FAIL"]


# ---------------------------------------------------------------------------------------------------------------------
# Inside a trial
# ---------------------------------------------------------------------------------------------------------------------


def fail_once(monkeypatch: pytest.MonkeyPatch, fault: Callable[[Stage1Run], None], nth: int = 1) -> None:
    """Let the nth Stage 1 of the process meet a fault."""
    started: list[int] = []
    initialise, train = Stage1Run.__init__, Stage1Run.train_to

    def count(run: Stage1Run, *arguments: Any, **more: Any) -> None:
        initialise(run, *arguments, **more)
        started.append(id(run))
        run.number = len(started) - 1  # type: ignore[attr-defined]

    def maybe_fail(run: Stage1Run, epoch: int) -> None:
        if run.number == nth:  # type: ignore[attr-defined]
            fault(run)
        train(run, epoch)

    monkeypatch.setattr(Stage1Run, "__init__", count)
    monkeypatch.setattr(Stage1Run, "train_to", maybe_fail)


def test_a_loss_that_is_not_a_number_fails_its_trial_alone(
    small: dict[str, object], make_search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(run: Stage1Run) -> None:
        with torch.no_grad():
            next(run.trained.parameters()).fill_(float("nan"))

    fail_once(monkeypatch, poison)
    code, folder = make_search(small)
    assert code == 0
    assert states(folder) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert "epoch 1" in reasons(folder)[0]


@pytest.mark.parametrize("error", [MemoryError("5 GB"), torch.OutOfMemoryError("CUDA out of memory"), cpu_shortage()])
def test_memory_that_runs_out_fails_its_trial_with_the_remedy(
    error: BaseException, small: dict[str, object], make_search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(run: Stage1Run) -> None:
        raise error

    fail_once(monkeypatch, run_out)
    _, folder = make_search(small)
    assert states(folder) == ["COMPLETE", "FAIL", "COMPLETE"]
    (reason,) = reasons(folder)
    assert "out of memory" in reason
    assert "training.batch_size_dft" in reason
    assert ("halve_batch" in reason) == isinstance(error, torch.OutOfMemoryError)


@pytest.mark.parametrize(("allowed", "limit", "succeeds"), [(True, 8, True), (True, 4, False), (False, 8, False)])
def test_on_cuda_half_the_batch_is_tried_once_if_allowed(
    allowed: bool,
    limit: int,
    succeeds: bool,
    small: dict[str, object],
    tiny_dataset: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []
    train = Stage1Run.train_to

    def run_out_above_the_limit(run: Stage1Run, epoch: int) -> None:
        sizes.append(run.settings.batch_size)
        if run.settings.batch_size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        train(run, epoch)

    monkeypatch.setattr(Stage1Run, "train_to", run_out_above_the_limit)
    config = load_config(None, {**small, "search.halve_batch_when_out_of_memory": allowed})
    result = TrialRunner(config, tiny_dataset, n_threads=1).run(RungTask(0, {}, 2, None))
    assert (result.failure == "") is succeeds
    assert sorted(set(sizes), reverse=True) == ([16, 8] if allowed else [16])
    assert result.halved_batch_size == (8 if succeeds else None)


def test_a_trial_that_hangs_is_given_up_and_the_search_goes_on(
    small: dict[str, object], make_search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hang(run: Stage1Run) -> None:
        released.wait(120)

    fail_once(monkeypatch, hang)
    monkeypatch.setattr("chitransfer.search.workers.PATIENCE_SECONDS", 0.5)
    started = time.monotonic()
    try:
        code, folder = make_search({**small, "search.trial_timeout_minutes": 0.1})
    finally:
        released.set()
    assert code == 0
    assert states(folder) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert "search.trial_timeout_minutes" in reasons(folder)[0]
    assert time.monotonic() - started < 100


def test_the_same_failure_again_and_again_stops_the_search_with_it(
    small: dict[str, object], make_search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(run: Stage1Run, epoch: int) -> None:
        raise MemoryError("always")

    monkeypatch.setattr(Stage1Run, "train_to", run_out)
    said = r"2 trials in a row failed(.|\n)*out of memory(.|\n)*If memory, time, a(.|\n)*--resume"
    with pytest.raises(StudyError, match=said):
        make_search({**small, "search.max_consecutive_failures": 2})


# ---------------------------------------------------------------------------------------------------------------------
# States of rungs
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [b"", b"nonsense", b"PK\x03\x04 torn", b"\x80\x04\x95"])
def test_a_damaged_state_is_a_checkpoint_error(state: bytes) -> None:
    with pytest.raises(CheckpointError, match="the state of its last rung: "):
        unpack_state(state)


def test_a_damaged_rung_starts_its_trial_again(
    small: dict[str, object], make_search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {**small, "search.rungs": [1], "search.n_trials": 2}
    _, whole = make_search(overrides)
    expected = [(t.values, t.params) for t in read_trials(whole.database)]

    # Stop after the first rung of trial 1, damage what it left, and go on.
    receive = SearchDriver._receive

    def stop_after_the_first_rung_of_trial_1(driver: SearchDriver, active: Any, future: Any) -> None:
        receive(driver, active, future)
        if active.trial.number == 1:
            driver._stop_requested = lambda: "terminate"

    with monkeypatch.context() as patch:
        patch.setattr(SearchDriver, "_receive", stop_after_the_first_rung_of_trial_1)
        root = Path(str(small["paths.results_dir"])).parent / "other"
        code, folder = make_search({**overrides, "paths.results_dir": str(root)})
    assert code == 143
    (state,) = folder.trial(1).glob("rung_*.pt")
    state.write_bytes(state.read_bytes()[:1000])
    code, _ = make_search({**overrides, "paths.results_dir": str(root)}, resume=folder)
    assert code == 0
    assert [(t.values, t.params) for t in read_trials(folder.database)] == expected
    check_complete(folder.path, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Around the search
# ---------------------------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_ends_nothing(
    small: dict[str, object], make_search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = iter(range(10**6))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 86_400 * 3)
    code, folder = make_search({**small, "search.timeout_hours": 1.0, "search.trial_timeout_minutes": 50.0})
    assert code == 0
    check_complete(folder.path, 3)


def test_results_that_cannot_be_written_are_named(small: dict[str, object], make_search: Search) -> None:
    with pytest.raises(StudyError, match="cannot be written"):
        make_search({**small, "paths.results_dir": "/proc/chitransfer"})


def test_an_error_of_the_program_is_in_the_log_with_its_traceback(
    small: dict[str, object], make_search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(run: Stage1Run, epoch: int) -> None:
        raise IndexError("a bug")

    monkeypatch.setattr(Stage1Run, "train_to", bug)
    with pytest.raises(IndexError):
        make_search(small)
    (log,) = Path(str(small["paths.results_dir"])).rglob("search_*.log")
    assert re.search(r" ERROR a bug in the program\nTraceback(.|\n)*IndexError: a bug", log.read_text("utf-8"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_in_the_middle_stops_the_search_and_loses_nothing(
    code: int, small: dict[str, object], make_search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = chitransfer.files.replace_atomically

    def fail_for_trial_1(path: Path, write: Callable[[Path], object]) -> None:
        if "0001" in path.parts:
            raise OSError(code, "injected", str(path))
        replace(path, write)

    with monkeypatch.context() as patch:
        patch.setattr(chitransfer.files, "replace_atomically", fail_for_trial_1)
        with pytest.raises(StudyError, match=r"0001.*(free some disk space|writable) and resume"):
            make_search(small)
    (log,) = Path(str(small["paths.results_dir"])).rglob("search_*.log")
    assert re.search(r" ERROR .*0001.*injected", log.read_text(encoding="utf-8"))
    (database,) = Path(str(small["paths.results_dir"])).rglob("study.db")
    folder = locate_study(database)
    assert states(folder) == ["COMPLETE", "RUNNING"]
    exit_code, _ = make_search(small, resume=folder)
    assert exit_code == 0
    check_complete(folder.path, 3)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte and a half."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(ballast: Path) -> None:
    """Write until nothing fits any more."""
    with ballast.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(b"\0" * 4096)


def test_a_disk_that_is_really_full(small: dict[str, object], make_search: Search, small_disk: Path) -> None:
    overrides = {**small, "paths.results_dir": str(small_disk), "search.n_trials": 4}
    code, folder = make_search({**overrides, "search.n_trials": 1})
    assert code == 0
    ballast = small_disk / "ballast"
    fill(ballast)
    with pytest.raises(StudyError, match=r"free some"):
        make_search(overrides, resume=folder)
    ballast.unlink()
    code, _ = make_search(overrides, resume=locate_study(folder.path))
    assert code == 0
    check_complete(folder.path, 4)


def test_a_folder_that_became_read_only(small: dict[str, object], make_search: Search, small_disk: Path) -> None:
    code, folder = make_search({**small, "paths.results_dir": str(small_disk), "search.n_trials": 1})
    assert code == 0
    gc.collect()  # closes the database, which would keep the file system busy
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StudyError, match=r"(cannot be written|Read-only)"):
        make_search({**small, "paths.results_dir": str(small_disk)}, resume=folder)
    assert states(folder) == ["COMPLETE"]
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert make_search({**small, "paths.results_dir": str(small_disk)}, resume=folder)[0] == 0
    check_complete(folder.path, 3)


def test_readers_do_not_disturb_a_search(
    small: dict[str, object], make_search: Search, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    done = threading.Event()
    counts: list[int] = []
    errors: list[BaseException] = []
    root = Path(str(small["paths.results_dir"]))

    def read_all_the_time() -> None:
        while not done.is_set():
            for database in root.rglob("study.db"):
                try:
                    counts.append(len(read_trials(database)))
                except BaseException as error:  # noqa: BLE001 - the test shows it
                    errors.append(error)
            time.sleep(0.02)

    reader = threading.Thread(target=read_all_the_time)
    reader.start()
    try:
        code, folder = make_search({**small, "search.n_trials": 5})
    finally:
        done.set()
        reader.join()
    assert (code, errors) == (0, [])
    assert counts
    check_complete(folder.path, 5)
    assert "5 of 5 trials ended" in run_command("status", folder.path)[1]


def test_a_rung_in_this_process_ends_at_its_next_epoch_when_the_workers_close(
    shared_tiny_config: Any, tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = threading.Event()
    train = Stage1Run.train_to

    def slowly(run: Stage1Run, epoch: int) -> None:
        running.set()
        time.sleep(0.05)
        run.epoch = 0
        train(run, 1)

    monkeypatch.setattr(Stage1Run, "train_to", slowly)
    workers = InProcessWorkers(shared_tiny_config, tiny_dataset)
    future = workers.submit(RungTask(0, {}, 4, None))
    assert running.wait(30)
    workers.close()
    assert future.done()
    assert type(future.exception()).__name__ == "Cancelled"
