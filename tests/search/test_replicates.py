"""Noise-aware search: variance components and posterior against simulation, the race, the budget of a search."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest

from chitransfer.search.records import SavedRung
from chitransfer.search.replicates import (
    NoiseComponents,
    deserves_another_run,
    estimate_components,
    pool_runs,
    posterior_of,
    run_values,
)
from chitransfer.search.results import choose_trials, read_standing
from chitransfer.search.study import read_study


def test_components_are_recovered(rng: np.random.Generator) -> None:
    groups = [list(rng.normal(rng.normal(1.0, 0.3), 0.1, rng.integers(1, 5))) for _ in range(600)]
    found = estimate_components(groups)
    assert found.between == pytest.approx(0.3, rel=0.1)
    assert found.within == pytest.approx(0.1, rel=0.1)


def test_components_of_unequal_groups_by_hand() -> None:
    found = estimate_components([[1.0, 3.0], [5.0], [2.0, 2.0, 5.0]])
    # Sums of squares: within 2 + 0 + 6 over 6 - 3, between 2·1 + 1·4 + 3·0 over 3 - 1; n₀ = (6 - 14/6) / 2.
    assert found.within == pytest.approx(np.sqrt(8 / 3))
    assert found.between == pytest.approx(np.sqrt((3 - 8 / 3) / (11 / 6)))
    assert (found.n_configurations, found.n_runs) == (3, 6)


def test_noise_alone_is_no_difference_between_configurations(rng: np.random.Generator) -> None:
    groups = [list(rng.normal(1.0, 0.1, rng.integers(1, 5))) for _ in range(600)]
    assert estimate_components(groups).between < 0.03


def test_posterior_by_hand() -> None:
    found = posterior_of([[1.0, 1.2], [2.0]], NoiseComponents(0.3, 0.2, 2, 3))
    noise, spread = np.array([0.04 / 2, 0.04]), 0.09
    centre = np.average([1.1, 2.0], weights=1 / (spread + noise))
    share = spread / (spread + noise)
    np.testing.assert_allclose(found.mean, centre + share * (np.array([1.1, 2.0]) - centre))
    np.testing.assert_allclose(found.std, np.sqrt(share * noise))


def test_noise_is_unknown_until_something_ran_twice() -> None:
    found = estimate_components([[1.0], [2.0]])
    assert found.within is None
    assert posterior_of([[1.0], [2.0]], found).mean.tolist() == [1.0, 2.0]


def test_posterior_shrinks_less_the_more_runs(rng: np.random.Generator) -> None:
    groups = [list(rng.normal(m, 0.2, 3)) for m in rng.normal(0, 0.2, 50)] + [[-1.0], [-1.0] * 8]
    posterior = posterior_of(groups, estimate_components(groups))
    assert -1.0 < posterior.mean[-1] < posterior.mean[-2] < 0
    assert posterior.std[-1] < posterior.std[-2]


def test_first_configuration_runs_again_and_a_hopeless_one_does_not() -> None:
    others = [[1.0, 1.02], [0.9, 0.91], [1.1]]
    assert deserves_another_run([1.0], [])
    assert deserves_another_run([1.2], [[1.0], [1.1]]), "nothing ran twice: the noise is not known"
    assert deserves_another_run([0.85], others)
    assert not deserves_another_run([2.0], others)
    # What counts is the best of the others, whichever place it has.
    assert not deserves_another_run([0.97], [[1.0, 1.02], [0.5, 0.51], [1.1, 1.12]])


def test_race_chooses_better_than_the_raw_best_of_as_many_runs(rng: np.random.Generator) -> None:
    """The measured noise: configurations differ by 0.027, runs by 0.03; 50 runs either way."""
    raced, plain = [], []
    for _ in range(150):
        truth: list[float] = []
        values: list[list[float]] = []
        n_runs = 0
        while n_runs < 50:
            level = float(rng.normal(0, 0.027))
            own = [level + float(rng.normal(0, 0.03))]
            n_runs += 1
            while len(own) < 3 and n_runs < 50 and deserves_another_run(own, values):
                own.append(level + float(rng.normal(0, 0.03)))
                n_runs += 1
            truth.append(level)
            values.append(own)
        raced.append(truth[int(np.argmin(posterior_of(values, estimate_components(values)).mean))])
        levels = rng.normal(0, 0.027, 50)
        plain.append(levels[int(np.argmin(levels + rng.normal(0, 0.03, 50)))])
    assert np.mean(raced) < np.mean(plain) - 0.002


def test_runs_are_pooled_into_one_trial() -> None:
    fixed = {"exp_mae_std": 0.1, "seconds_stage1": 2.0, "other": [1]}
    runs = [
        SavedRung(
            4, True, value, {"exp_mae": value, "halved_batch_size_dft": size, "stage1_epochs": size, **fixed}, b""
        )
        for value, size in ((1.0, 8), (2.0, 4))
    ]
    value, attributes = pool_runs(runs)
    assert value == 1.5
    assert attributes["exp_mae"] == 1.5
    assert attributes["exp_mae_std"] == pytest.approx(np.sqrt(0.01 + 0.25))
    assert attributes["seconds_stage1"] == 4.0
    assert attributes["stage1_epochs"] == 8
    assert attributes["halved_batch_size_dft"] == 8, "of the run whose encoders are kept"
    assert attributes["replicate_values"] == [1.0, 2.0]


def test_the_spread_of_runs_that_have_none_of_their_own() -> None:
    runs = [SavedRung(4, True, value, {"stage1_mae": value, "stage1_mae_std": None}, b"") for value in (1.0, 2.0)]
    assert pool_runs(runs)[1]["stage1_mae_std"] == pytest.approx(0.5)
    assert pool_runs(runs[:1])[1]["stage1_mae_std"] is None
    r2 = [SavedRung(4, True, value, {"exp_r2": None, "exp_r2_std": None}, b"") for value in (1.0, 2.0)]
    assert pool_runs(r2)[1]["exp_r2_std"] is None


def test_search_spends_its_budget_on_runs_and_resumes_the_same(
    tiny: dict[str, object], make_search: Callable[..., tuple[int, Any]]
) -> None:
    overrides = {**tiny, "search.n_trials": 6, "search.replicates": 3, "search.reevaluate_top": 0}
    code, folder = make_search(overrides)
    runs = run_values(read_study(folder))
    assert code == 0
    assert sum(map(len, runs.values())) == 6
    assert len(runs[0]) == 3, "the default runs again until the noise is known"
    for trial in read_study(folder).get_trials():
        assert trial.values[0] == pytest.approx(np.mean(trial.user_attrs["replicate_values"]))
    first = [folder.trial(0), folder.trial(0) / "replicate_0001"]
    seeds = [json.loads((path / "scores.json").read_text())["replicates"][0]["seed"] for path in first]
    assert seeds[0] != seeds[1]
    folds = [pd.read_csv(path / "out_of_fold_chi.csv")["fold"].tolist() for path in first]
    assert folds[0] == folds[1], "on other folds a run could not be told from runs of trials that ran once"
    _, again = make_search({**overrides, "search.n_trials": 7}, resume=folder)
    assert sum(map(len, run_values(read_study(again)).values())) == 7
    assert run_values(read_study(again))[0] == runs[0]


def test_a_further_run_that_failed_is_spent_too(made_up_search: Callable[..., Any]) -> None:
    search = made_up_search(search__n_trials=7, search__replicates=3)
    search.workers.failure = lambda task: "made up" if (task.number, task.replicate) == (0, 1) else ""
    counted: list[int] = []
    search.watcher.trial_ended = lambda trial, n_runs: counted.append(n_runs)
    assert search.drive() == "finished"
    n_trials = len(search.study.trials)
    assert counted[0] == 2
    assert sum(counted) == read_standing(search.study).n_runs == 7
    assert search.drive() == "finished"
    assert len(search.study.trials) == n_trials, "nothing is left of the budget"


def test_a_further_run_that_failed_is_spent_once_wherever_the_search_was_killed(
    made_up_search: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, killed: type[BaseException]
) -> None:
    search = made_up_search(search__n_trials=7, search__replicates=3)
    search.workers.failure = lambda task: "made up" if (task.number, task.replicate) == (0, 1) else ""

    def die(*arguments: Any, **keywords: Any) -> None:
        raise killed

    with monkeypatch.context() as dying:
        dying.setattr(optuna.Study, "tell", die)
        with pytest.raises(killed):
            search.drive()
    assert search.drive() == "finished"
    assert [(task.number, task.replicate) for task in search.workers.tasks].count((0, 1)) == 1
    assert read_standing(search.study).n_runs == 7


def test_the_best_by_posterior_mean_are_run_again_on_fresh_seeds() -> None:
    study = optuna.create_study()
    runs = [[0.45, 0.59], [0.40], [0.41, 0.41, 0.41], [0.60], [0.70, 0.56]]
    for own in runs:
        trial = optuna.trial.create_trial(value=float(np.mean(own)), user_attrs={"replicate_values": own})
        study.add_trial(trial)
    noisy = posterior_of(runs, estimate_components(runs))
    assert noisy.mean[2] < noisy.mean[1], "one lucky run counts for less than three"
    assert choose_trials(read_standing(study), 1) == [2]
    assert choose_trials(read_standing(study), 5) == [2, 1]
