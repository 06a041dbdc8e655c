"""Rungs in this process: one at a time, those given up included."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chitransfer.config import load_config
from chitransfer.errors import TrainingError
from chitransfer.search import workers
from chitransfer.search.objective import RungTask
from chitransfer.search.workers import InProcessWorkers, make_workers


class LongEpoch:
    """Runs rungs whose epoch does not end before another rung begins, trial 0's, or `seconds` have passed."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.order: list[str] = []
        self.begun, self.followed = threading.Event(), threading.Event()

    def run(self, task: RungTask) -> Any:
        self.order.append(f"{task.number} begins")
        if task.number == 0:
            self.begun.set()
            self.followed.wait(self.seconds)
        else:
            self.followed.set()
        self.order.append(f"{task.number} ends")
        return "a result"


@pytest.fixture
def make(
    tiny: dict[str, object], tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., InProcessWorkers]:
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 0.0)

    def make(runner: LongEpoch, **overrides: object) -> InProcessWorkers:
        config = load_config(None, {**tiny, **{k.replace("__", "."): v for k, v in overrides.items()}})
        return InProcessWorkers(config, tiny_dataset, make_runner=lambda *words, **named: runner)  # type: ignore[arg-type,return-value]

    return make


@pytest.mark.parametrize("is_closed", [False, True])
def test_the_rung_after_one_given_up_waits_for_the_end_of_its_epoch(
    make: Callable[..., InProcessWorkers], is_closed: bool
) -> None:
    runner = LongEpoch(1.0)
    working = make(runner)
    given_up = working.submit(RungTask(0, {}, 1, None))
    assert runner.begun.wait(60)
    if is_closed:
        working.close()
        working = make(runner)
    else:
        working.abandon(given_up)
    follower = working.submit(RungTask(1, {}, 1, None))
    assert follower.result(60) == "a result"
    working.close()
    assert runner.order == ["0 begins", "0 ends", "1 begins", "1 ends"]


def test_one_that_hangs_is_not_waited_for_longer_than_a_trial_may_take(
    make: Callable[..., InProcessWorkers], caplog: pytest.LogCaptureFixture
) -> None:
    runner = LongEpoch(60.0)
    working = make(runner, search__trial_timeout_minutes=1e-4)
    given_up = working.submit(RungTask(0, {}, 1, None))
    assert runner.begun.wait(60)
    working.abandon(given_up)
    follower = working.submit(RungTask(1, {}, 1, None))
    assert follower.result(60) == "a result"
    working.close()
    assert runner.order[:2] == ["0 begins", "1 begins"]
    assert "its thread remains and keeps its memory" in caplog.text
    assert not workers._left_behind - {working._thread}


def test_batches_that_no_trial_could_normalise_are_refused_before_the_search(
    tiny: dict[str, object], tiny_dataset: Any
) -> None:
    alone = {**tiny, "model.use_batchnorm": True, "training.min_batches_per_epoch": 5000}
    with pytest.raises(TrainingError, match=r"come one at a time; lower training\.min_batches_per_epoch \(5000\)"):
        make_workers(load_config(None, alone), tiny_dataset, "key")
    searched = {"key": "model.use_batchnorm", "type": "categorical", "choices": [True, False]}
    make_workers(load_config(None, {**alone, "search.space.norm": searched}), tiny_dataset, "key").close()


@pytest.mark.parametrize("how", [[], ["--workers", "2"]])
def test_what_workers_refuse_leaves_no_study(
    run_command: Callable[..., tuple[int, str, str]], tiny_yaml: Path, how: list[str]
) -> None:
    """Its name stays free: under other settings the study could not be resumed."""
    lone = ("--set", "model.use_batchnorm=true", "--set", "training.batch_size_dft=1")
    code, _, err = run_command("search", "--config", tiny_yaml, "--study-name", "first", *how, *lone)
    assert code == 2
    assert "come one at a time; raise training.batch_size_dft (1)" in err
    assert not (tiny_yaml.parent / "results" / "hparam_search" / "first").exists()
