"""Is the random forest better, or is it luck of the polymers? Intervals, and what is said of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mean_absolute_error, roc_auc_score

from chitransfer.training.against_forest import (
    INSTEAD,
    compare_chi,
    compare_solubility,
    describe_difference,
    judge_forest,
)
from chitransfer.training.model_report import chi_report, describe_chi
from chitransfer.training.resampling import Estimate

LESS = "χ: the random forest has the lower MAE"


def made_up_chi(rng: np.random.Generator, n_polymers: int, bias: float) -> tuple[np.ndarray, ...]:
    """Polymers of one to five rows, measured χ, two repeats of the model, which errs `bias` more, and the forest."""
    polymer = np.repeat(np.arange(n_polymers), rng.integers(1, 6, n_polymers))
    chi = rng.normal(size=len(polymer))
    hard = rng.exponential(0.2, n_polymers)[polymer]
    model = [chi + (hard + bias + 0.05 * rng.random(len(chi))) * rng.choice([-1, 1], len(chi)) for _ in range(2)]
    return polymer, chi, *model, chi + hard * rng.choice([-1, 1], len(chi))


def test_the_difference_is_that_of_the_maes_shown(rng: np.random.Generator) -> None:
    polymer, chi, first, second, forest = made_up_chi(rng, 30, 0.1)
    found = compare_chi(chi, [first, second], forest, polymer)
    mean = (mean_absolute_error(chi, first) + mean_absolute_error(chi, second)) / 2
    assert found is not None
    assert found.value == pytest.approx(mean - mean_absolute_error(chi, forest))
    assert found.low < found.value < found.high
    assert found == compare_chi(chi, [first, second], forest, polymer), "the same draws every time"


def test_the_interval_is_that_of_a_bootstrap_over_polymers(rng: np.random.Generator) -> None:
    polymer, chi, first, second, forest = made_up_chi(rng, 25, 0.1)
    found = compare_chi(chi, [first, second], forest, polymer)
    drawn = []
    for _ in range(3000):
        rows = np.concatenate([np.flatnonzero(polymer == one) for one in rng.integers(25, size=25)])
        model = np.mean([np.abs(predicted - chi)[rows].mean() for predicted in (first, second)])
        drawn.append(model - np.abs(forest - chi)[rows].mean())
    assert found is not None
    width = np.quantile(drawn, 0.975) - np.quantile(drawn, 0.025)
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.1 * width)


@pytest.mark.parametrize("n_polymers", [6, 10, 40])
def test_two_that_err_alike_are_seldom_told_apart(rng: np.random.Generator, n_polymers: int) -> None:
    told, polymer = 0, np.repeat(np.arange(n_polymers), 3)
    for _ in range(300):
        first, second = (rng.normal(size=n_polymers)[polymer] for _ in range(2))
        found = compare_chi(np.zeros(len(polymer)), [first], second, polymer)
        assert found is not None
        told += found.low * found.high > 0
    assert told <= 0.08 * 300


def test_auc_is_compared_with_ties_and_by_polymers(rng: np.random.Generator) -> None:
    polymer = np.repeat(np.arange(40), 2)
    positive = np.repeat(rng.random(40) < 0.5, 2)
    good = positive + rng.normal(0, 0.3, 80)
    coarse = np.round(positive + rng.normal(0, 1.0, 80))
    found = compare_solubility(positive, coarse, good, polymer)
    assert found is not None
    assert found.value == pytest.approx(roc_auc_score(positive, coarse) - roc_auc_score(positive, good))
    assert found.high < 0
    drawn = []
    while len(drawn) < 1000:
        rows = np.concatenate([np.flatnonzero(polymer == one) for one in rng.integers(40, size=40)])
        if 0 < positive[rows].sum() < len(rows):
            drawn.append(roc_auc_score(positive[rows], coarse[rows]) - roc_auc_score(positive[rows], good[rows]))
    width = np.quantile(drawn, 0.975) - np.quantile(drawn, 0.025)
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.15 * width)


@pytest.mark.parametrize("is_insoluble_rare", [True, False])
def test_auc_is_not_compared_by_a_handful_of_polymers_of_a_class(
    rng: np.random.Generator, is_insoluble_rare: bool
) -> None:
    polymer = np.repeat(np.arange(40), 3)
    for n_rare, is_told in ((1, False), (5, False), (6, True)):
        positive = (polymer >= n_rare) == is_insoluble_rare
        found = compare_solubility(positive, positive + rng.normal(size=120), positive + rng.normal(size=120), polymer)
        assert (found is not None) == is_told


def test_nothing_is_compared_on_a_handful_of_polymers_or_one_class() -> None:
    polymer, values = np.arange(5), np.linspace(0, 1, 5)
    assert compare_chi(values, [values], values, polymer) is None
    assert compare_solubility(values > 0.5, values, values, polymer) is None
    many = np.arange(20)
    assert compare_solubility(np.ones(20, dtype=bool), many.astype(float), many.astype(float), many) is None
    assert describe_difference(None, "MAE") == []


def test_what_is_said_of_the_forest() -> None:
    sure, unsure = Estimate(0.1, 0.02, 0.2), Estimate(0.1, -0.02, 0.2)
    assert describe_difference(sure, "MAE") == [
        "    MAE, model minus forest: +0.100 (95 % interval +0.020 to +0.200 over polymers)"
    ]
    assert judge_forest(LESS, 0.1, sure, "30 polymers") == [
        f"warning: {LESS} on polymers left out, significantly so; {INSTEAD}"
    ]
    for difference in (unsure, None):
        assert judge_forest(LESS, 0.1, difference, "30 polymers") == [
            f"note: {LESS} on polymers left out, but not significantly: 30 polymers are too few to tell; measure more"
        ]
    for ahead in (0.0, -0.1, float("nan")):
        assert judge_forest(LESS, ahead, sure, "30 polymers") == []


def test_the_report_compares_left_out_rows_alone(rng: np.random.Generator) -> None:
    polymer, chi, first, second, forest = made_up_chi(rng, 30, 0.5)
    columns = {"chi": chi, "chi_cv_1": first, "chi_cv_2": second, "chi_cv": first, "chi_forest": forest}
    columns |= dict.fromkeys(("chi_train", "chi_model", "chi_trivial"), chi)
    columns |= {"fold_1": polymer % 3, "fold_2": polymer % 2, "half_width_cv": np.full(len(chi), np.nan)}
    is_test = polymer >= 20
    frame = pd.DataFrame(columns).assign(split=np.where(is_test, "test", "cross-validation"))
    report = chi_report(frame, polymer)
    own = ~is_test
    found = compare_chi(chi[own], [first[own], second[own]], forest[own], polymer[own])
    assert Estimate(**report["mae_less_forest"]) == found
    said = describe_chi(report)
    assert f"warning: {LESS} on polymers left out, significantly so; {INSTEAD}" in said
    absurd = frame.assign(chi_forest=np.where(is_test, 1e6, forest))
    assert chi_report(absurd, polymer)["mae_less_forest"] == report["mae_less_forest"]
