"""The best trials run again: announced, counted, bounded by the time limit, completed by a resumed search."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console

from chitransfer.config import load_config
from chitransfer.search import driver
from chitransfer.search.driver import stop_in_time
from chitransfer.search.lock import drive_alone
from chitransfer.search.reevaluate import reevaluate_top
from chitransfer.search.results import choose_trials, expect_runs, read_standing
from chitransfer.search.run import drive_until_stopped, run_search
from chitransfer.search.study_folder import StudyFolder, locate_study
from chitransfer.search.summary import describe_status


def fresh_runs(study: Path) -> list[str]:
    """The runs on fresh seeds and folds on disk."""
    return sorted(str(path.parent.relative_to(study)) for path in study.glob("trials/*/replicate_1*/scores.json"))


def status_of_runs(search: Any) -> list[str]:
    """What `chitransfer status` says of them."""
    said = describe_status(search.study, search.folder, search.config.search)
    return [line for line in said if "fresh seeds" in line]


class Listener:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def runs_announced(self, trials: str, n_runs: int, seconds: float) -> None:
        self.said.append((trials, n_runs, seconds))

    def run_ended(self, number: int, outcome: str) -> None:
        self.said.append((number, outcome.split()[0]))

    def runs_stopped(self, n_left: int) -> None:
        self.said.append(("left", n_left))


def test_it_stops_and_goes_on(made_up_search: Callable[..., Any]) -> None:
    search = made_up_search(search__n_trials=12, search__reevaluate_top=3, search__reevaluate_seeds=2)
    assert search.drive() == "finished"
    search.workers.close()
    numbers = choose_trials(read_standing(search.study), 3)
    n_runs = 2 * len(numbers)
    assert n_runs == expect_runs(search.config.search) == 8, "three trials and the default, twice"
    everything = (search.config, search.dataset, search.study, search.folder, search.workers)
    listener = Listener()
    assert reevaluate_top(*everything, lambda: "timeout" if len(listener.said) > 5 else None, listener) == "timeout"
    trials = "the best trials and the default configuration (4 trials)"
    again = [(number, "objective") for number in numbers]
    assert listener.said == [(trials, 8, 0.0), *again, again[0], ("left", 3)]
    search.workers.close()
    resume = f"to run the others, resume with: {search.folder.resume_command}"
    assert status_of_runs(search) == [f"5 of 8 runs on fresh seeds and folds done; {resume}"]
    with drive_alone(search.folder):
        assert status_of_runs(search) == ["5 of 8 runs on fresh seeds and folds done"]
    listener = Listener()
    assert reevaluate_top(*everything, lambda: None, listener) == "finished"
    assert status_of_runs(search) == []
    assert listener.said == [(trials.replace("4", "3"), 3, 0.0), *again[1:]]
    assert len(fresh_runs(search.folder.path)) == 8


def test_without_a_default_the_best_run_again_and_their_time_is_told(
    made_up_search: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"search__reevaluate_top": 3, "search__reevaluate_seeds": 2, "search__enqueue_default": False}
    search = made_up_search(search__n_trials=12, **limits)
    search.drive()
    search.workers.close()
    best = sorted(search.study.get_trials(), key=lambda trial: trial.values[0])[:3]
    assert choose_trials(read_standing(search.study), 3) == [trial.number for trial in best]
    # Trials of two runs each.
    monkeypatch.setattr("chitransfer.search.reevaluate.computed_seconds", lambda trial: 2.0 * (100 + trial.number))
    monkeypatch.setattr("chitransfer.search.reevaluate.values_of_runs", lambda trial: [1.0, 1.0])
    listener = Listener()
    everything = (search.config, search.dataset, search.study, search.folder, search.workers)
    assert reevaluate_top(*everything, lambda: None, listener) == "finished"
    assert listener.said[0] == ("the best trials (3 trials)", 6, 6 * 105.5 / search.workers.capacity)
    assert len(listener.said) == 7
    assert reevaluate_top(*everything, lambda: None, listener) == "finished"
    assert len(listener.said) == 7, "nothing is left to announce"


def test_a_run_that_hangs_is_given_up_as_a_trial_is(made_up_search: Callable[..., Any]) -> None:
    limits = {"search__trial_timeout_minutes": 30.0, "search__reevaluate_top": 3, "search__reevaluate_seeds": 1}
    search = made_up_search(search__n_trials=12, **limits)
    search.drive()
    workers, listener = search.workers, Listener()
    hanging, *others = choose_trials(read_standing(search.study), 3)
    answer, asked, abandoned = workers.wait, iter(range(100)), []

    def wait(futures: Any, timeout: float) -> Any:
        return set() if workers.waiting[0][1].number == hanging else answer(futures, timeout)

    workers.wait, workers.running_seconds = wait, lambda future: 1801.0
    workers.abandon = lambda future: abandoned.append(workers.waiting.pop(0)[1].number)
    everything = (search.config, search.dataset, search.study, search.folder, workers)
    reason = reevaluate_top(*everything, lambda: None if next(asked) < 50 else "timeout", listener)
    assert (reason, abandoned) == ("finished", [hanging])
    assert listener.said[1:] == [(hanging, "FAILED:"), *((number, "objective") for number in others)]
    assert len(fresh_runs(search.folder.path)) == len(others) == 3


def test_the_time_limit_ends_it_and_a_resumed_search_completes_it(
    tiny: dict[str, object], make_search: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {**tiny, "search.n_trials": 4, "search.study_name": "limited", "search.timeout_hours": 7.0}
    folder = tmp_path / "results" / "hparam_search" / "limited"
    hours: list[float] = []

    def out_of_time_after_a_run(stop_requested: Any, limit: float) -> Any:
        hours.append(limit)
        return lambda: "timeout" if fresh_runs(folder) else None

    out = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr("chitransfer.search.run.stop_in_time", out_of_time_after_a_run)
        code = run_search(load_config(None, overrides), Console(file=out, width=300), draw=lambda *_: None)
    assert code == 0
    assert hours == [7.0]
    assert len(fresh_runs(folder)) == 1
    announced, run, left = (
        n for n, line in enumerate(out.getvalue().splitlines()) if "fresh" in line or "again" in line
    )
    lines = out.getvalue().splitlines()
    assert "again on fresh seeds and folds: 4 runs, about" in lines[announced]
    assert lines[run].startswith("[1/4] trial ")
    assert "3 of 4 runs on fresh seeds and folds are left; resuming the search runs them" in lines[left]
    assert "search stopped after 7 h: 4 complete" in lines[left + 1]
    assert any(line.startswith("resume with: ") for line in lines)
    first = (folder / fresh_runs(folder)[0] / "scores.json").read_bytes()
    before = fresh_runs(folder)[0]
    code, _ = make_search(overrides, resume=locate_study(folder))
    assert code == 0
    assert len(fresh_runs(folder)) == 4
    assert (folder / before / "scores.json").read_bytes() == first


def test_the_lock_of_a_server_is_looked_after_in_both_parts(
    monkeypatch: pytest.MonkeyPatch, tiny_config: Any, tmp_path: Path
) -> None:
    looked: list[str] = []
    parts = {"the trials": lambda driven: driven._stop_requested(), "again": lambda *words: words[5]()}

    def part(name: str) -> Callable[..., str]:
        def run(*words: Any) -> str:
            looked.append(name)
            assert parts[name](*words) is None
            return "finished"

        return run

    monkeypatch.setattr("chitransfer.search.run.hold_again", lambda address, *_: looked.append(address))
    monkeypatch.setattr("chitransfer.search.run.SearchDriver.run", part("the trials"))
    monkeypatch.setattr("chitransfer.search.run.reevaluate_top", part("again"))
    folder = StudyFolder(tmp_path, storage="postgresql://host/studies")
    display: Any = contextlib.nullcontext()
    study = optuna.create_study()
    assert drive_until_stopped(tiny_config, None, study, folder, None, display) == "finished"  # type: ignore[arg-type]
    assert looked == ["the trials", folder.storage, "again", folder.storage]


def test_one_limit_for_the_whole_search(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(driver.time, "monotonic", lambda: now)
    asked: list[Any] = [None]
    stop = stop_in_time(lambda: asked[0], 2.0)
    now += 7199.0
    assert stop() is None
    asked[0] = "interrupt"
    now += 2.0
    assert stop() == "interrupt"
    asked[0] = None
    assert stop() == "timeout"


@pytest.mark.parametrize(
    ("changes", "n_runs"),
    [
        ({}, 12),
        ({"n_trials": 1}, 0),
        ({"n_trials": 5}, 6),
        ({"reevaluate_top": 0}, 0),
        ({"enqueue_default": False, "reevaluate_seeds": 3}, 15),
    ],
)
def test_how_many_runs_to_expect(changes: dict[str, object], n_runs: int) -> None:
    config = load_config(None, {f"search.{key}": value for key, value in changes.items()})
    assert expect_runs(config.search) == n_runs
