"""Processes and threads are no more than the processors this process may use, unless the user gives a number.

Training that waits for processors says so.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from chitransfer.config import Config
from chitransfer.errors import DataError
from chitransfer.processors import (
    THREADS_OF_THIS_PROCESS,
    ProcessorWatch,
    count_processors,
    seconds_waited,
    use_threads,
)
from chitransfer.search.clusters import LocalWorkers
from chitransfer.training.loop import train_epochs
from chitransfer.training.settings import check_configured_tables, read_dataset

RunCommand = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bound() -> Iterator[None]:
    """This process may use one processor, as in a batch job."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("processes are not bound to processors here")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Numbers of processes that were asked for; nothing is worked out."""
    seen: list[object] = []

    def remember(*_: object, n_jobs: int, **__: object) -> None:
        seen.append(n_jobs)
        raise DataError("far enough")

    for name in (
        "data.compute.compute_table",
        "data.build.build_table",
        "predict_table.predict_table",
        "training.settings.load_dataset",
        "training.settings.read_stage1_table",
    ):
        monkeypatch.setattr(f"chitransfer.{name}", remember)
    monkeypatch.setattr("chitransfer.predict.Predictor.load", lambda path: None)
    return seen


def test_a_process_bound_to_one_processor_has_one(bound: None) -> None:
    assert count_processors() == 1


def test_a_limit_of_the_user_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert count_processors() == 1


@pytest.mark.parametrize(
    "words",
    [
        ["data", "compute", "--input", "{in}", "--output", "{out}"],
        ["data", "build", "--n", 5, "--output", "{out}"],
        ["predict", "--model", "m.pt", "--input", "{in}", "--output", "{out}"],
        ["screen", "--model", "m.pt", "--input", "{in}", "--output", "{out}"],
    ],
)
def test_commands_ask_for_no_more_processes_than_that(
    bound: None, asked: list[object], run_command: RunCommand, tmp_path: Path, words: list[object]
) -> None:
    (tmp_path / "in.csv").write_text("SMILES\n*CCO*\n")
    paths = {"{in}": tmp_path / "in.csv", "{out}": tmp_path / "out.csv"}
    run_command(*(paths.get(str(word), word) for word in words))
    assert asked == [1]


def test_training_and_data_check_ask_for_no_more_processes_than_that(bound: None, asked: list[object]) -> None:
    for read in (read_dataset, lambda config: check_configured_tables(config, lambda *_: None)):
        with pytest.raises(DataError, match="far enough"):
            read(Config())
    assert asked == [1, 1]


def test_workers_of_this_machine_share_what_there_is(bound: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = SimpleNamespace(scheduler_address="tcp://", close=lambda timeout: None)
    monkeypatch.setattr("chitransfer.search.clusters._start_local", lambda n_workers: cluster)
    workers = LocalWorkers(1, (), 0)
    assert workers.n_threads == 1
    workers.close()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """PyTorch takes two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("limit", "asked_for", "used"), [(1, 0, 1), (2, 0, 2), (5, 0, 2), (1, 3, 3)])
def test_threads_are_no_more_than_processors_unless_asked_for(
    two_threads: None, monkeypatch: pytest.MonkeyPatch, limit: int, asked_for: int, used: int
) -> None:
    monkeypatch.setattr("chitransfer.processors.count_processors", lambda: limit)
    use_threads(asked_for)
    assert torch.get_num_threads() == used


@pytest.mark.skipif(not any(THREADS_OF_THIS_PROCESS.glob("*/schedstat")), reason="this system does not count waiting")
def test_waiting_for_a_processor_is_counted(bound: None) -> None:
    before = seconds_waited()
    # A child process inherits the one processor.
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        end = time.monotonic() + 60
        while seconds_waited() - before < 0.05:
            assert time.monotonic() < end, "nothing was counted beside a busy process on the same processor"
    finally:
        other.kill()
        other.wait()


def test_where_waiting_is_not_counted_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("chitransfer.processors.THREADS_OF_THIS_PROCESS", tmp_path)
    assert seconds_waited() == 0
    (tmp_path / "12").mkdir()
    (tmp_path / "12" / "schedstat").write_text("\n")
    assert seconds_waited() == 0
    (tmp_path / "12" / "schedstat").write_text("5 2000000000 7\n")
    assert seconds_waited() == 2


@pytest.mark.parametrize(
    ("n_threads", "waiting", "advice"),
    [(2, 0.7, 1), (2, 1.0, 1), (16, 0.7, 15), (16, 8.0, 8), (2, 0.1, 0), (1, 0.9, 0)],
)
def test_training_that_waits_for_processors_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, n_threads: int, waiting: float, advice: int
) -> None:
    seconds = 0.0
    watch = ProcessorWatch()
    monkeypatch.setattr("chitransfer.training.loop.processor_watch", watch)
    monkeypatch.setattr("torch.get_num_threads", lambda: n_threads)
    monkeypatch.setattr("chitransfer.processors.time", SimpleNamespace(monotonic=lambda: 100 + seconds))
    # Nothing is known of the time before the first epoch.
    monkeypatch.setattr("chitransfer.processors.seconds_waited", lambda: 1000 + waiting * seconds)

    def end_epoch(epoch: int, mean_loss: float) -> bool:
        nonlocal seconds
        seconds += 1.0
        return False

    with caplog.at_level(logging.WARNING, logger="chitransfer"):
        train_epochs(
            first_epoch=1,
            last_epoch=150,
            batches=lambda epoch: [epoch],
            take_step=lambda batch: torch.zeros(()),
            end_epoch=end_epoch,
            what="Stage 1",
        )
    said = [f"training.num_threads={advice}, also" in record.message for record in caplog.records]
    assert said == ([True] if advice else [])
