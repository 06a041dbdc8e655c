"""The driver on made-up trials: budget, failures, pruning, and the same study wherever it was killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from chitransfer.errors import StudyError
from chitransfer.search.objective import RungTask
from chitransfer.search.results import trials_frame

# Everything through which a driver changes a study.
WRITES = (
    "create_new_trial",
    "set_trial_param",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "set_study_system_attr",
    "set_trial_intermediate_value",
    "set_trial_state_values",
)


class TestBudget:
    def test_it_is_exact_and_resume_does_the_rest(self, made_up_search: Callable[..., Any]) -> None:
        search = made_up_search(search__n_trials=4)
        assert search.drive() == "finished"
        assert len(search.study.trials) == 4
        assert search.drive() == "finished"
        assert len(search.study.trials) == 4
        search.drive(search__n_trials=6)
        assert [t.number for t in search.study.trials] == list(range(6))
        assert search.watcher.ended == list(range(6))
        search.drive(search__n_trials=2)
        assert len(search.study.trials) == 6

    @pytest.mark.parametrize("capacity", [1, 3, 8])
    def test_with_several_workers(self, made_up_search: Callable[..., Any], capacity: int) -> None:
        search = made_up_search(search__n_trials=5)
        search.workers.capacity = capacity
        search.drive()
        assert len(search.study.trials) == 5
        assert search.workers.most_at_once == min(capacity, 5)
        assert sorted(task.number for task in search.workers.tasks) == list(range(5))

    def test_failures_count_and_a_default_is_trial_0(self, made_up_search: Callable[..., Any]) -> None:
        search = made_up_search(search__n_trials=5)
        search.workers.failure = lambda task: "the loss became nan" if task.number in {1, 3} else ""
        search.drive()
        states = [trial.state.name for trial in search.study.trials]
        assert states == ["COMPLETE", "FAIL", "COMPLETE", "FAIL", "COMPLETE"]
        assert search.study.trials[1].user_attrs["failure_reason"] == "the loss became nan"
        assert search.study.trials[1].values is None
        default = search.study.trials[0]
        assert default.user_attrs["is_default"] is True
        assert default.params == {
            "latent_dim": 8,
            "encoder_hidden": "16",
            "encoder_dropout": 0.2,
            "lr_pretrain": 1e-3,
        }
        assert not any(trial.user_attrs.get("is_default") for trial in search.study.trials[1:])

    def test_the_default_may_be_left_out(self, made_up_search: Callable[..., Any]) -> None:
        search = made_up_search(search__n_trials=2, search__enqueue_default=False)
        search.drive()
        assert not any(trial.user_attrs.get("is_default") for trial in search.study.trials)

    def test_a_default_outside_the_space_is_not_called_the_default(self, made_up_search: Callable[..., Any]) -> None:
        search = made_up_search(search__n_trials=1, model__encoder_latent_dim=5)
        search.drive()
        assert search.study.trials[0].user_attrs["is_default"] is False


class TestFailures:
    def test_all_failing_stops_with_the_common_reason(
        self, made_up_search: Callable[..., Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        search = made_up_search(search__n_trials=50, search__max_consecutive_failures=4)
        search.workers.failure = lambda task: "out of memory" if task.number != 2 else "something else"
        with pytest.raises(StudyError) as error:
            search.drive()
        assert "4 trials in a row failed" in str(error.value)
        assert "3 of them: out of memory" in str(error.value)
        said = str(error.value)
        assert said.index("search.halve_batch_when_out_of_memory") < said.index("--resume") < said.index("a new study")
        assert len(search.study.trials) == 4
        assert [r.levelname for r in caplog.records if "trial 0" in r.getMessage()] == ["ERROR"]

    def test_a_search_that_ends_with_failures_alone_is_no_success(self, made_up_search: Callable[..., Any]) -> None:
        search = made_up_search(search__n_trials=3, search__max_consecutive_failures=5)
        search.workers.failure = lambda task: "a loss became NaN"
        with pytest.raises(StudyError, match=r"no trial is complete, 3 failed. 3 of them: a loss became NaN"):
            search.drive()

    def test_a_success_in_between_resets_the_count(self, made_up_search: Callable[..., Any]) -> None:
        search = made_up_search(search__n_trials=9, search__max_consecutive_failures=3)
        search.workers.failure = lambda task: "bad luck" if task.number % 3 else ""
        assert search.drive() == "finished"
        assert len(search.study.trials) == 9

    def test_an_error_of_ours_is_not_a_failed_trial(self, made_up_search: Callable[..., Any]) -> None:
        search = made_up_search(search__n_trials=3)

        def bug(task: RungTask) -> str:
            raise TypeError("a bug")

        search.workers.failure = bug
        with pytest.raises(TypeError, match="a bug"):
            search.drive()


class TestPruning:
    def test_every_rung_goes_on_from_the_state_of_the_last(self, made_up_search: Callable[..., Any]) -> None:
        search = made_up_search(search__n_trials=2, search__rungs=[1, 2, 3])
        search.drive()
        for number in (0, 1):
            sent = [(t.epoch, t.state) for t in search.workers.tasks if t.number == number]
            assert sent == [
                (1, None),
                *((epoch + 1, f"state of trial {number} at epoch {epoch}".encode()) for epoch in (1, 2, 3)),
            ]
            trial = search.study.trials[number]
            assert list(trial.intermediate_values) == [1, 2, 3, 4]
            assert trial.values[0] == trial.intermediate_values[4]

    def test_hopeless_trials_are_pruned_and_cost_less(self, made_up_search: Callable[..., Any]) -> None:
        search = made_up_search(
            search__n_trials=12,
            search__pruner="median",
            training__num_epochs_pretrain=90,
        )
        search.workers.value = lambda task: float(task.number) + 1.0 / task.epoch
        search.drive()
        states = [trial.state.name for trial in search.study.trials]
        assert states == ["COMPLETE"] * 5 + ["PRUNED"] * 7
        assert [t.epoch for t in search.workers.tasks if t.number == 11] == [10]
        assert search.study.best_trial.number == 0
        assert not list(search.folder.path.rglob("rung_*.pt"))

    @pytest.mark.parametrize("pruner", ["asha", "hyperband"])
    def test_other_pruners_prune_too(self, made_up_search: Callable[..., Any], pruner: str) -> None:
        search = made_up_search(search__n_trials=20, search__pruner=pruner, training__num_epochs_pretrain=90)
        search.workers.value = lambda task: float(task.number) + 1.0 / task.epoch
        search.drive()
        states = [trial.state.name for trial in search.study.trials]
        assert len(states) == 20
        assert states.count("PRUNED") >= 5
        assert "RUNNING" not in states

    def test_a_value_that_is_not_finite_is_never_complete(self, made_up_search: Callable[..., Any]) -> None:
        """The objective raises before; should one come through nevertheless, Optuna must not take it as a result."""
        search = made_up_search(search__n_trials=3)
        search.workers.value = lambda task: float("nan") if task.number == 1 else 1.0
        search.drive()
        assert search.study.trials[1].state.name == "FAIL"
        assert search.study.trials[1].user_attrs["failure_reason"]


class TestStopping:
    @pytest.mark.parametrize("reason", ["interrupt", "terminate"])
    def test_what_was_done_is_kept_and_the_rest_resumed(self, made_up_search: Callable[..., Any], reason: str) -> None:
        whole = made_up_search(search__n_trials=5)
        whole.drive()
        search = made_up_search(search__n_trials=5)
        search.stop = lambda: reason if len(search.watcher.ended) >= 2 else None
        assert search.drive() == reason
        assert [t.state.name for t in search.study.trials][:2] == ["COMPLETE", "COMPLETE"]
        search.stop = lambda: None
        assert search.drive() == "finished"
        assert search.trials() == whole.trials()

    def test_out_of_time(self, made_up_search: Callable[..., Any]) -> None:
        search = made_up_search(search__n_trials=50, search__timeout_hours=1e-9)
        assert search.drive() == "timeout"
        assert len(search.study.trials) < 3


# ---------------------------------------------------------------------------------------------------------------------
# Killed at any write
# ---------------------------------------------------------------------------------------------------------------------


class Writes:
    """Counts what a driver writes to a study, and dies before or after one of them."""

    def __init__(self, storage: Any, monkeypatch: pytest.MonkeyPatch, killed: type[BaseException]) -> None:
        self.count = 0
        self.die_at: int | None = None
        self.after = False
        for name in WRITES:
            monkeypatch.setattr(storage, name, self._wrap(getattr(storage, name), killed))

    def _wrap(self, write: Callable[..., Any], killed: type[BaseException]) -> Callable[..., Any]:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            self.count += 1
            dies = self.count == self.die_at
            if dies and not self.after:
                raise killed
            result = write(*arguments, **keywords)
            if dies:
                raise killed
            return result

        return counted


def killing_places(n_writes: int, n: int) -> Iterator[tuple[int, bool]]:
    rng = np.random.default_rng(7)
    places = sorted({1, 2, 3, n_writes, *rng.integers(1, n_writes + 1, n).tolist()})
    for place in places:
        yield place, bool(place % 2)


@pytest.mark.parametrize(
    ("settings", "n"),
    [
        ({"search__sampler": "tpe"}, 25),
        ({"search__sampler": "tpe", "search__pruner": "median", "training__num_epochs_pretrain": 27}, 15),
        ({"search__sampler": "random", "search__rungs": [1, 2]}, 15),
        ({"search__sampler": "cmaes"}, 10),
        ({"search__sampler": "qmc"}, 25),
        ({"search__sampler": "nsga2"}, 5),
        pytest.param({"search__sampler": "gp"}, 8, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_killed_at_a_write_and_resumed(
    made_up_search: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    killed: type[BaseException],
    settings: dict[str, object],
    n: int,
) -> None:
    options = {"search__n_trials": 7, "search__n_startup_trials": 3, **settings}

    def fails(task: RungTask) -> str:
        return "bad luck" if task.number == 4 else ""

    whole = made_up_search(**options)
    whole.workers.failure = fails
    writes = Writes(whole.storage, monkeypatch, killed)
    whole.drive()
    expected = whole.trials()
    assert len(expected) == 7
    for place, after in killing_places(writes.count, n):
        search = made_up_search(**options)
        search.workers.failure = fails
        dying = Writes(search.storage, monkeypatch, killed)
        dying.die_at, dying.after = place, after
        with pytest.raises(killed):
            search.drive()
        dying.die_at = None
        assert search.drive() == "finished"
        assert search.trials() == expected, (place, after)


def test_killed_again_and_again(
    made_up_search: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, killed: type[BaseException]
) -> None:
    whole = made_up_search(search__n_trials=5, search__rungs=[1, 2])
    whole.drive()
    search = made_up_search(search__n_trials=5, search__rungs=[1, 2])
    writes = Writes(search.storage, monkeypatch, killed)
    for step in (1, 5, 9, 30, 2, 14, 40, 7):
        writes.die_at = writes.count + step
        try:
            search.drive()
        except killed:
            continue
        break
    writes.die_at = None
    search.drive()
    assert search.trials() == whole.trials()


class TestRungFiles:
    def test_a_resumed_trial_goes_on_from_its_last_rung(
        self, made_up_search: Callable[..., Any], killed: type[BaseException]
    ) -> None:
        search = made_up_search(search__n_trials=2, search__rungs=[1, 2, 3])

        def die(task: RungTask) -> None:
            if task.number == 1 and task.epoch == 3:
                raise killed

        search.workers.before = die
        with pytest.raises(killed):
            search.drive()
        search.workers.before = lambda task: None
        n_before = len(search.workers.tasks)
        search.drive()
        rest = [(t.number, t.epoch, t.state) for t in search.workers.tasks[n_before:]]
        assert rest == [
            (1, 3, b"state of trial 1 at epoch 2"),
            (1, 4, b"state of trial 1 at epoch 3"),
        ]

    @pytest.mark.parametrize(
        ("name", "left"), [("scores.json", None), ("scores.json", 0), ("scores.json", 40), ("rung_00002.pt", None)]
    )
    def test_a_damaged_one_is_run_again(
        self, made_up_search: Callable[..., Any], killed: type[BaseException], name: str, left: int | None
    ) -> None:
        """So many of its bytes are left; whether a state is whole is checked where it is loaded."""
        whole = made_up_search(search__n_trials=2, search__rungs=[1, 2])
        whole.drive()
        search = made_up_search(search__n_trials=2, search__rungs=[1, 2])

        def die(task: RungTask) -> None:
            if task.number == 1 and task.epoch == 4:
                raise killed

        search.workers.before = die
        with pytest.raises(killed):
            search.drive()
        search.workers.before = lambda task: None
        path: Path = search.folder.trial(1) / name
        if left is None:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:left])
        search.drive()
        assert search.trials() == whole.trials()

    def test_a_finished_trial_leaves_no_state_and_whole_scores(self, made_up_search: Callable[..., Any]) -> None:
        search = made_up_search(search__n_trials=2, search__rungs=[1, 2])
        search.workers.failure = lambda task: "bad luck" if task.number == 1 and task.epoch == 2 else ""
        search.drive()
        assert [trial.state.name for trial in search.study.trials] == ["COMPLETE", "FAIL"]
        assert not list(search.folder.path.rglob("rung_*.pt"))
        folder: Path = search.folder.trial(0)
        scores = json.loads((folder / "scores.json").read_text())
        assert scores["value"] == search.study.trials[0].values[0]
        assert scores["params"] == search.study.trials[0].params
        assert {"out_of_fold_chi.csv", "out_of_fold_solubility.csv", "stage1_history.csv"} <= {
            path.name for path in folder.iterdir()
        }

    def test_nothing_is_written_twice(
        self, made_up_search: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written: list[tuple[int, str, str]] = []
        write = optuna.Trial.set_user_attr

        def note(trial: optuna.Trial, name: str, value: Any) -> None:
            written.append((trial.number, name, repr(value)))
            write(trial, name, value)

        monkeypatch.setattr(optuna.Trial, "set_user_attr", note)
        made_up_search(search__n_trials=3, search__rungs=[1, 2]).drive()
        assert {number for number, _, _ in written} == {0, 1, 2}
        assert len(written) == len(set(written))


class TestSeconds:
    """What trials computed, not what went by."""

    def test_of_all_rungs_across_an_interruption(self, made_up_search: Callable[..., Any]) -> None:
        search = made_up_search(search__rungs=[1, 2], search__n_trials=3)
        answer = search.workers.answer
        search.workers.answer = lambda task: replace(answer(task), seconds={"stage1": 2.0, "stage2": 1.0})
        search.workers.failure = lambda task: "bad luck" if task.number == 2 and task.epoch == 4 else ""
        search.stop = lambda: "interrupt" if len(search.workers.tasks) == 5 else None
        assert search.drive() == "interrupt"
        search.stop = lambda: None
        assert search.drive() == "finished"
        frame = trials_frame(search.study).set_index("number")
        assert frame["state"].tolist() == ["COMPLETE", "COMPLETE", "FAIL"]
        assert frame["seconds_total"].tolist() == [9.0, 9.0, 9.0]
        assert frame["seconds_stage1"].tolist() == [6.0, 6.0, 4.0]

    def test_of_an_earlier_release(self) -> None:
        study = optuna.create_study()
        study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={"seconds_stage1": 2.0, "exp_mae_std": 0.0}))
        (row,) = trials_frame(study).to_dict("records")
        duration = study.trials[0].duration
        assert duration is not None
        assert row["seconds_total"] == duration.total_seconds()
        assert row["exp_mae_std"] == 0.0
