"""What a search says while it runs, in a terminal and elsewhere."""

from __future__ import annotations

import io

import optuna
import pytest
from rich.console import Console

from chitransfer.config import load_config
from chitransfer.search import watch
from chitransfer.search.results import read_standing


def test_the_display_counts_what_follows_the_last_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(watch.time, "monotonic", lambda: now)
    out = io.StringIO()
    search = load_config(None, {"search.n_trials": 2}).search
    standing = read_standing(optuna.create_study())
    display = watch.SearchDisplay(Console(file=out, width=200), search, standing, n_runs_after=3)
    with display:
        for number in range(2):
            now += 10.0
            trial = optuna.trial.create_trial(value=1.0)
            trial.number = number
            display.trial_ended(trial, 1)
        display.runs_announced("the best trials (2 trials)", 3, 30.0)
        now += 12.0
        display.run_ended(1, "objective 0.5000")
    lines = out.getvalue().splitlines()
    assert [line.rpartition("; ")[2] for line in lines[:2]] == ["40 s left", "30 s left"]
    assert lines[2:] == [
        "running the best trials (2 trials) again on fresh seeds and folds: 3 runs, about 30 s",
        "[1/3] trial   1 again: objective 0.5000; 24 s left",
    ]


def test_the_bar_in_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True)
    display = watch.SearchDisplay(console, load_config(None).search, read_standing(optuna.create_study()))
    with display:
        trial = optuna.trial.create_trial(value=0.5, user_attrs={"exp_mae": 0.3, "sol_f1": 0.8, "stage1_mae": 0.1})
        trial.number = 7
        display.trial_ended(trial, 1)
        display.runs_announced("the best trials (2 trials)", 3, 30.0)
        display.run_ended(1, "objective 0.5000")
    assert "best so far, trial 7: 0.5000; exp MAE 0.300, F1 0.800, Stage 1 MAE 0.100" in out.getvalue()
    assert "runs again" in out.getvalue()
    assert "1/3" in out.getvalue()


def test_a_search_inside_other_work_says_how_long_a_trial_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(watch.time, "monotonic", lambda: now)
    said: list[str] = []
    counter = watch.TrialCounter(said.append, "outer fold 1", 22)
    # Eight trials of an earlier part of it; those of this part take 24 s each.
    for number in range(8, 22):
        now += 24.0
        trial = optuna.trial.create_trial(value=1.0)
        trial.number = number
        counter.trial_ended(trial, 1)
    assert said == [f"outer fold 1: {n} of 22 trials, 24 s each" for n in (10, 20, 22)]
