"""Processes are no more than the processors this process may use, wherever the user gives no number."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from chitransfer.config import Config
from chitransfer.errors import DataError
from chitransfer.processors import count_processors
from chitransfer.search.clusters import LocalWorkers
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
