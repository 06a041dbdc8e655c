"""Trials trained as one program: what comes back is what each gives alone, and one member's trouble is its own."""

from __future__ import annotations

import gc
import logging
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch

from chitransfer.config import load_config
from chitransfer.errors import CheckpointError, ConfigError
from chitransfer.search import pack_workers, runner, workers
from chitransfer.search.driver import give_up_overdue
from chitransfer.search.objective import RungTask
from chitransfer.search.pack_workers import PackWorkers
from chitransfer.search.runner import Cancelled, TrialRunner
from chitransfer.training.stage1 import Stage1Run
from tests.shortages import cpu_shortage

# Without dropout a packed run is the run alone, up to rounding.
PLAIN: dict[str, object] = {"training.precision": "fp32", "model.encoder_dropout": 0.0, "model.chi_head_dropout": 0.0}


@pytest.fixture
def packed(tiny: dict[str, object], tiny_dataset: Any) -> Any:
    packing = PackWorkers(load_config(None, {**tiny, **PLAIN}), tiny_dataset, 3)
    yield packing
    packing.close()


@pytest.fixture
def alone(tiny: dict[str, object], tiny_dataset: Any) -> TrialRunner:
    return TrialRunner(load_config(None, {**tiny, **PLAIN}), tiny_dataset, n_threads=1)


def finish(workers: PackWorkers, futures: Sequence[Any]) -> None:
    waiting = set(futures)
    while waiting:
        waiting -= workers.wait(list(waiting), 1.0)


def tasks(epoch: int, states: Sequence[bytes | None] = (None, None, None)) -> list[RungTask]:
    rates, widths = (0.002, 0.004, 0.006), ([16], [16, 8], [16])
    return [
        RungTask(number, {"training.lr_pretrain": rate, "model.encoder_hidden_dims": width}, epoch, state)
        for number, (rate, width, state) in enumerate(zip(rates, widths, states, strict=True))
    ]


def test_results_are_those_of_training_alone_over_two_rungs(packed: PackWorkers, alone: TrialRunner) -> None:
    first = [packed.submit(task) for task in tasks(2)]
    assert not any(future.done() for future in first)
    finish(packed, first)
    second = [packed.submit(task) for task in tasks(4, [future.result().state for future in first])]
    finish(packed, second)
    for future, task in zip(second, tasks(4), strict=True):
        here, result = alone.run(task), future.result()
        assert (result.number, result.epoch, result.finished) == (here.number, here.epoch, here.finished)
        assert result.value == pytest.approx(here.value, rel=1e-3)
        assert result.components == pytest.approx(here.components, rel=2e-3, nan_ok=True)


def test_a_rung_goes_on_alike_from_what_is_kept_and_from_its_bytes(alone: TrialRunner) -> None:
    (first,) = (alone.run(task) for task in tasks(2)[:1])
    kept = alone.start(replace(tasks(4)[0], state=first.state))
    read_back = alone.start(replace(tasks(4)[0], state=first.state))
    assert kept[0] is not read_back[0]
    for runs in (kept, read_back):
        runs[0].train_to(4)
    assert kept[0].history == read_back[0].history
    assert torch.equal(kept[0].flat.values, read_back[0].flat.values)


def test_auto_packs_on_a_gpu_only(tiny: dict[str, object], tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    for name in ("cpu", "cuda"):
        monkeypatch.setattr(workers, "resolve_device", lambda wanted, name=name: torch.device(name))
        monkeypatch.setattr(workers, "InProcessWorkers", lambda *a, **k: sizes.__setitem__(k["device"], 1))
        monkeypatch.setattr(pack_workers, "PackWorkers", lambda c, d, n, **k: sizes.__setitem__(k["device"], n))
        workers.make_workers(load_config(None, tiny), tiny_dataset, "key")
    assert sizes == {"cpu": 1, "cuda": workers.PACK_ON_A_GPU}


def test_a_pack_comes_back_as_a_whole(packed: PackWorkers) -> None:
    futures = [packed.submit(task) for task in tasks(2)]
    done: set[Any] = set()
    while not done:
        done = packed.wait(futures, 1.0)
    assert done == set(futures)
    assert packed.capacity == 3


def test_one_members_blow_up_is_its_own(
    packed: PackWorkers, alone: TrialRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_epoch = Stage1Run.end_epoch

    def spoil(self: Stage1Run, epoch: int, mean_loss: float) -> None:
        if self.settings.lr == 0.004 and epoch == 2:
            self.flat.values.detach().fill_(float("nan"))
        end_epoch(self, epoch, mean_loss)

    monkeypatch.setattr(Stage1Run, "end_epoch", spoil)
    futures = [packed.submit(task) for task in tasks(4)]
    finish(packed, futures)
    results = [future.result() for future in futures]
    assert "validation MAE became nan in epoch 2" in results[1].failure
    for number in (0, 2):
        assert results[number].value == pytest.approx(alone.run(tasks(4)[number]).value, rel=1e-3)


def test_a_damaged_state_is_its_own_trials_error(packed: PackWorkers) -> None:
    futures = [packed.submit(task) for task in tasks(4, [None, b"damaged", None])]
    finish(packed, futures)
    assert futures[1].exception() is not None
    assert futures[0].result().failure == futures[2].result().failure == ""


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("the card is full"), cpu_shortage()])
def test_a_pack_too_large_for_the_memory_is_halved(
    packed: PackWorkers,
    alone: TrialRunner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: RuntimeError,
) -> None:
    together: list[int] = []
    train_together: Callable[..., Any] = pack_workers.train_together

    def only_one_fits(runs: Sequence[Stage1Run], *words: Any, **named: Any) -> Any:
        together.append(len(runs))
        if len(runs) > 1:
            raise error
        return train_together(runs, *words, **named)

    monkeypatch.setattr(pack_workers, "train_together", only_one_fits)
    futures = [packed.submit(task) for task in tasks(2)]
    finish(packed, futures)
    assert together == [3, 1, 2, 1, 1]
    assert "search.pack" in caplog.text
    for future, task in zip(futures, tasks(2), strict=True):
        assert future.result().value == pytest.approx(alone.run(task).value, rel=1e-3)


def test_a_member_with_no_memory_for_its_scoring_is_scored_alone(
    packed: PackWorkers, alone: TrialRunner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside the runs of the pack, and of the one before, which the next rung may go on with; alone it fits."""
    # Kept records of caught errors would keep the runs.
    caplog.set_level(logging.WARNING, "chitransfer")
    alive: weakref.WeakSet[Stage1Run] = weakref.WeakSet()
    initialise, cross_validate = Stage1Run.__init__, runner.cross_validate

    def count(run: Stage1Run, *words: Any) -> None:
        initialise(run, *words)
        alive.add(run)

    def only_one_fits(*words: Any) -> Any:
        gc.collect()
        if len(alive) > 1 and len(alive) != 3:
            raise torch.OutOfMemoryError("the card is full")
        return cross_validate(*words)

    with monkeypatch.context() as patch:
        patch.setattr(Stage1Run, "__init__", count)
        patch.setattr(runner, "cross_validate", only_one_fits)
        first = [packed.submit(task) for task in tasks(2)]
        finish(packed, first)
        second = [packed.submit(replace(task, number=task.number + 3)) for task in tasks(2)]
        finish(packed, second)
    assert [future.result().failure for future in (*first, *second)] == [""] * 6
    assert second[1].result().value == alone.run(replace(tasks(2)[1], number=4)).value, "it ran alone"


@pytest.mark.parametrize("fault", ["given up", "damaged"])
def test_one_members_trouble_alone_is_its_own(packed: PackWorkers, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    score: Callable[..., Any] = TrialRunner.score

    def run_out_in_a_pack(self: TrialRunner, task: RungTask, runs: Any, seconds: float) -> Any:
        if task.number == 1:
            raise runner.Stage2MemoryError("the card is full")
        return score(self, task, runs, seconds)

    def fail(self: TrialRunner, task: RungTask) -> Any:
        assert task.number == 1
        if fault == "damaged":
            raise CheckpointError(fault)
        packed._jobs[futures[1]].give_up.set()
        raise Cancelled

    monkeypatch.setattr(TrialRunner, "score", run_out_in_a_pack)
    monkeypatch.setattr(TrialRunner, "run", fail)
    futures = [packed.submit(task) for task in tasks(2)]
    finish(packed, futures)
    assert isinstance(futures[1].exception(), CheckpointError if fault == "damaged" else Cancelled)
    assert futures[0].result().failure == futures[2].result().failure == ""


def test_a_member_given_up_leaves_the_others_alone(packed: PackWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    end_epoch = Stage1Run.end_epoch
    futures = [packed.submit(task) for task in tasks(4)]

    def give_up_in_the_second(self: Stage1Run, epoch: int, mean_loss: float) -> None:
        if epoch == 2:
            packed._jobs[futures[0]].give_up.set()
        end_epoch(self, epoch, mean_loss)

    monkeypatch.setattr(Stage1Run, "end_epoch", give_up_in_the_second)
    finish(packed, futures)
    assert isinstance(futures[0].exception(), Cancelled)
    assert [future.result().epoch for future in futures[1:]] == [4, 4]


@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_member_given_up_in_stage_2_leaves_the_others_alone(
    tiny: dict[str, object], tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch, is_frozen: bool
) -> None:
    packed = PackWorkers(load_config(None, {**tiny, "training.freeze_encoder_stage2": is_frozen}), tiny_dataset, 3)
    cross_validate: Callable[..., Any] = runner.cross_validate
    futures = [packed.submit(task) for task in tasks(2)]
    first = packed._jobs[futures[0]]

    def give_up_the_first(*words: Any, **named: Any) -> Any:
        first.give_up.set()
        return cross_validate(*words, **named)

    monkeypatch.setattr(runner, "cross_validate", give_up_the_first)
    try:
        finish(packed, futures)
    finally:
        packed.close()
    assert isinstance(futures[0].exception(), Cancelled)
    assert [future.result().failure for future in futures[1:]] == ["", ""]


def test_a_pack_has_the_time_limit_of_all_its_members(packed: PackWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, released = threading.Event(), threading.Event()
    train_together: Callable[..., Any] = pack_workers.train_together

    def wait_and_train(*words: Any, **named: Any) -> Any:
        begun.set()
        released.wait(60)
        return train_together(*words, **named)

    monkeypatch.setattr(pack_workers, "train_together", wait_and_train)
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 0.0)
    futures = [packed.submit(task) for task in tasks(2)]
    assert packed.running_seconds(futures[0]) is None
    packed.wait(futures, 0.0)
    assert begun.wait(60)
    for future in futures:
        packed._jobs[future].started = 1000.0
    monkeypatch.setattr(workers, "time", types.SimpleNamespace(monotonic=lambda: 1360.0))
    running = {future: (number, 0.0) for number, future in enumerate(futures)}
    assert not list(give_up_overdue(packed, running, 2.0)), "six minutes of three members are two of each"
    overdue = dict(give_up_overdue(packed, running, 1.9))
    released.set()
    assert [overdue[future].seconds for future in futures] == [{"failed": 120.0}] * 3


def test_a_rung_not_yet_under_way_can_be_given_up(packed: PackWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chitransfer.search.workers.PATIENCE_SECONDS", 0.0)
    futures = [packed.submit(task) for task in tasks(2)]
    packed.abandon(futures[1])
    finish(packed, [futures[0], futures[2]])
    assert not futures[1].done()


@pytest.mark.parametrize("pack", [2, 4])
def test_every_budget_is_met_exactly(
    pack: int, tiny: dict[str, object], make_search: Callable[..., tuple[int, Any]]
) -> None:
    code, folder = make_search({**tiny, "search.n_trials": 5, "search.pack": pack})
    assert code == 0
    code, _ = make_search({**tiny, "search.n_trials": 7, "search.pack": pack}, resume=folder)
    assert code == 0
    trials = pd.read_csv(folder.path / "all_trials.csv")
    assert trials["number"].tolist() == list(range(7))
    assert set(trials["state"]) == {"COMPLETE"}


class Ordered(set[Any]):
    """A set of futures with an order of its own, as another process may have it."""

    is_reversed = False

    def __iter__(self) -> Iterator[Any]:
        return iter(sorted(super().__iter__(), key=lambda future: future.result().number, reverse=self.is_reversed))


@pytest.mark.parametrize("settings", [{"search__pruner": "asha"}, {"search__replicates": 3}])
def test_the_order_in_which_a_packs_results_are_met_changes_nothing(
    made_up_search: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    def search(is_reversed: bool) -> tuple[list[Any], list[Any]]:
        monkeypatch.setattr(Ordered, "is_reversed", is_reversed)
        search = made_up_search(search__n_trials=12, training__num_epochs_pretrain=90, **settings)
        made_up = search.workers
        made_up.capacity, made_up.value = 4, lambda task: task.number + (1.0 + task.replicate) / task.epoch

        def wait(futures: Sequence[Any], timeout: float) -> set[Any]:
            for future, task in made_up.waiting:
                future.set_result(made_up.answer(task))
            made_up.waiting.clear()
            return Ordered(futures)

        made_up.wait = wait
        search.drive()
        ended = [(trial.number, trial.state.name, trial.values) for trial in search.study.trials]
        return ended, [(task.number, task.epoch, task.replicate) for task in made_up.tasks]

    assert search(is_reversed=False) == search(is_reversed=True)


def test_packs_and_several_workers_contradict_each_other(tiny: dict[str, object], tiny_dataset: Any) -> None:
    config = load_config(None, {**tiny, "search.pack": 2, "search.workers": 2})
    with pytest.raises(ConfigError, match=r"search\.pack 2 .*set search\.pack to 1"):
        workers.make_workers(config, tiny_dataset, "key")
