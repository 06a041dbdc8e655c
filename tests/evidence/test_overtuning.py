"""The over-tuning guard: sums per polymer against scikit-learn, the correction against simulated truth."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from chitransfer.errors import StudyError
from chitransfer.evidence.outcomes import PolymerSums, draw_polymers, objective_of_draws, sum_by_polymer
from chitransfer.evidence.overtuning import (
    Estimate,
    FreshScore,
    _describe_fresh,
    correct_for_selection,
    describe_control,
    paired_standard_errors,
)
from chitransfer.sections import ObjectiveSettings

CHI_ONLY = ObjectiveSettings(exp_mae=1.0, sol_f1=0.0, sol_recall=0.0, stage1_mae=0.0)


def make_frames(rng: np.random.Generator, n_polymers: int = 12) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A χ and a solubility table of predictions, several rows a polymer."""
    polymer = rng.integers(0, n_polymers, 80).astype(str)
    chi = pd.DataFrame({"polymer": polymer, "chi": rng.normal(size=80), "predicted_chi": rng.normal(size=80)})
    p = rng.random(80).round(1)
    soluble = (rng.random(80) < 0.3 + 0.5 * p).astype(int)
    called = (p > 0.5).astype(int)
    frame = {"polymer": polymer, "soluble": soluble, "probability_positive": p, "called_positive": called}
    return chi, pd.DataFrame(frame)


@pytest.mark.parametrize("label", [0, 1])
def test_components_equal_scikit_learn_on_the_drawn_rows(rng: np.random.Generator, label: int) -> None:
    chi, solubility = make_frames(rng)
    polymers = [str(i) for i in range(12)]
    sums = sum_by_polymer(polymers, [chi], [solubility], label, with_auc=True)
    weights = draw_polymers(12, 5, 1)
    found = sums.components(weights)
    for draw, counts in enumerate(weights):
        times = {name: int(count) for name, count in zip(polymers, counts, strict=True)}
        c = chi.loc[chi.index.repeat(chi["polymer"].map(times))]
        s = solubility.loc[solubility.index.repeat(solubility["polymer"].map(times))]
        positive, called = s["soluble"] == label, s["called_positive"] == 1
        expected = {
            "exp_mae": sk.mean_absolute_error(c["chi"], c["predicted_chi"]),
            "exp_rmse": sk.root_mean_squared_error(c["chi"], c["predicted_chi"]),
            "exp_r2": sk.r2_score(c["chi"], c["predicted_chi"]),
            "sol_f1": sk.f1_score(positive, called),
            "sol_recall": sk.recall_score(positive, called),
            "sol_precision": sk.precision_score(positive, called),
            "sol_balanced_accuracy": sk.balanced_accuracy_score(positive, called),
            "sol_mcc": sk.matthews_corrcoef(positive, called),
            "sol_auc": sk.roc_auc_score(positive, s["probability_positive"]),
        }
        for name, value in expected.items():
            assert found[name][draw] == pytest.approx(value, abs=1e-9), name


def test_repeats_are_pooled_first_and_averaged_then(rng: np.random.Generator) -> None:
    first, second = make_frames(rng)[0], make_frames(rng)[0]
    polymers = sorted({*first["polymer"], *second["polymer"]})
    both = sum_by_polymer(polymers, [first, second], [], 1, False).components(np.ones((1, len(polymers))))
    each = [np.abs(frame["chi"] - frame["predicted_chi"]).mean() for frame in (first, second)]
    assert both["exp_mae"][0] == pytest.approx(np.mean(each))


def test_objective_of_draws_is_the_guides_formula() -> None:
    parts = {"exp_mae": np.array([0.4]), "sol_f1": np.array([0.7]), "sol_recall": np.array([0.9])}
    value = objective_of_draws(parts, 0.2, ObjectiveSettings())
    assert value[0] == pytest.approx(1.5 * 0.4 + 2.0 * 0.3 + 1.5 * 0.1 + 0.1 * 0.2)


def noise_trials(rng: np.random.Generator, n_trials: int, n_polymers: int, level: np.ndarray) -> list[PolymerSums]:
    """Trials whose per-polymer absolute errors are `level` plus noise."""
    trials = []
    for mean in level:
        absolute = np.abs(rng.normal(mean, 0.2, n_polymers))
        ones = np.ones(n_polymers)
        chi = np.stack([ones, absolute, absolute**2, ones, ones])[None]
        trials.append(PolymerSums(tuple(map(str, range(n_polymers))), chi, None))
    assert len(trials) == n_trials
    return trials


def test_correction_takes_off_the_luck_of_choosing_among_equals(rng: np.random.Generator) -> None:
    raw_gaps, gaps = [], []
    for repeat in range(30):
        trials = noise_trials(rng, 40, 40, np.full(40, 1.0))
        raw = min(float(t.components(np.ones((1, 40)))["exp_mae"][0]) for t in trials)
        corrected = correct_for_selection(trials, [0.0] * 40, CHI_ONLY, n_draws=200, random_state=repeat)
        raw_gaps.append(raw - 1.0)
        gaps.append(corrected.objective.value - 1.0)
    # The best of forty equals reads about two standard errors (0.2/√40) too low; the corrected one must not.
    assert np.mean(raw_gaps) < -0.05
    assert abs(np.mean(gaps)) < 0.02
    assert np.mean(np.abs(gaps)) < 0.5 * np.mean(np.abs(raw_gaps))


def test_correction_leaves_a_clear_winner_alone(rng: np.random.Generator) -> None:
    level = np.full(10, 2.0)
    level[3] = 1.0
    trials = noise_trials(rng, 10, 60, level)
    found = correct_for_selection(trials, [0.0] * 10, CHI_ONLY, default=0)
    raw = float(trials[3].components(np.ones((1, 60)))["exp_mae"][0])
    assert found.chosen[3] == 1.0
    assert found.objective.value == pytest.approx(raw, abs=0.02)
    assert found.gain is not None
    assert found.gain.low > 0.8


def test_a_draw_of_equal_chi_does_not_decide_the_corrected_r2(rng: np.random.Generator) -> None:
    """One polymer differs from eleven that are nearly alike: left out of a draw, R² there is hugely negative."""
    chi = pd.DataFrame({"polymer": [f"p{i}" for i in range(12)], "chi": 0.5 + 1e-3 * rng.standard_normal(12)})
    chi.loc[:3, "chi"] = [2.0, 3.0, 4.0, 5.0]
    trials = [
        sum_by_polymer(
            list(chi["polymer"]), [chi.assign(predicted_chi=chi["chi"] + 0.1 * rng.standard_normal(12))], [], 1, False
        )
        for _ in range(4)
    ]
    corrected = correct_for_selection(trials, [0.0] * 4, CHI_ONLY, random_state=1)
    assert corrected.components["exp_r2"].low < -10.0
    assert 0.9 < corrected.components["exp_r2"].value < 1.0


def test_paired_error_of_the_reference_is_zero_and_shrinks_with_polymers(rng: np.random.Generator) -> None:
    errors = [
        paired_standard_errors(noise_trials(rng, 2, n, np.ones(2)), [0.0, 0.0], CHI_ONLY, 0, 1) for n in (20, 320)
    ]
    assert errors[0][0] == 0.0
    # Standard error of a difference of means: 0.2·√2/√n.
    assert errors[0][1] == pytest.approx(0.2 * np.sqrt(2 / 20), rel=0.5)
    assert errors[1][1] < 0.5 * errors[0][1]


def test_too_few_polymers_are_said_to_be_too_few(rng: np.random.Generator) -> None:
    trials = noise_trials(rng, 2, 1, np.ones(2))
    with pytest.raises(StudyError, match="1 polymers are too few"):
        correct_for_selection(trials, [0.0, 0.0], CHI_ONLY)


@pytest.mark.parametrize(
    ("auc", "r2", "expected"),
    [
        (Estimate(0.52, 0.44, 0.60), Estimate(-0.1, -0.3, 0.02), "at chance"),
        (Estimate(0.75, 0.66, 0.84), Estimate(-0.1, -0.3, 0.02), "ABOVE CHANCE"),
        (Estimate(0.5, 0.4, 0.6), Estimate(0.5, 0.2, 0.7), "ABOVE CHANCE"),
    ],
)
def test_control_names_a_leak(auc: Estimate, r2: Estimate, expected: str) -> None:
    assert expected in describe_control({"sol_auc": auc, "exp_r2": r2})


def test_planted_leak_shows_as_a_gap(tiny_dataset: Any, rng: np.random.Generator) -> None:
    """Predictions that copy the labels of polymers meant to be unseen stand out on permuted labels."""
    from chitransfer.data.subsets import permute_labels

    permuted = permute_labels(tiny_dataset, 3)
    rows = permuted.chi.table.rows
    polymers = sorted(rows["polymer"].unique())
    weights = np.ones((1, len(polymers)))
    honest = rows.assign(predicted_chi=rows["chi"].mean())
    leaky = rows.assign(predicted_chi=rows["chi"] + rng.normal(0, 0.05, len(rows)))
    r2 = {
        name: sum_by_polymer(polymers, [frame], [], 1, False).components(weights)["exp_r2"][0]
        for name, frame in (("honest", honest), ("leaky", leaky))
    }
    assert r2["honest"] <= 1e-9
    assert r2["leaky"] > 0.9
    draws = sum_by_polymer(polymers, [leaky], [], 1, False).components(draw_polymers(len(polymers), 200, 0))["exp_r2"]
    assert "ABOVE CHANCE" in describe_control({"exp_r2": Estimate.of(draws)})


@pytest.mark.parametrize(
    ("counts", "said"), [((2, 2), "(2 runs each)"), ((1, 2), "(1 to 2 runs each)"), ((1,), "(1 run each)")]
)
def test_runs_on_fresh_seeds_are_counted_for_every_trial(counts: tuple[int, ...], said: str) -> None:
    fresh = [
        FreshScore(number=n, value=0.5, runs=[0.5] * count, components={}, is_default=False)
        for n, count in enumerate(counts)
    ]
    assert said in _describe_fresh(SimpleNamespace(fresh=fresh, best_trial=0))  # type: ignore[arg-type]
