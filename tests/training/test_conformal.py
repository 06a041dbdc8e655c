"""Calibration: coverage where polymers are exchangeable, Platt's sigmoid, and cross-fitting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from chitransfer.model.calibration import ProbabilityCalibration
from chitransfer.training import conformal
from chitransfer.training.conformal import (
    coverage_metrics,
    cross_fit_calibration,
    cross_fit_coverage,
    cross_fit_half_widths,
    fit_chi_interval,
    fit_probability,
    polymer_weights,
    weighted_quantile,
)
from chitransfer.training.metrics import best_f1_threshold


def draw_polymers(n_polymers: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Residuals, spreads and polymers: a bias a polymer, noise a row, both larger where the spread is."""
    generator = np.random.default_rng(seed)
    polymer = np.repeat(np.arange(n_polymers), generator.integers(1, 20, n_polymers))
    spread = generator.uniform(0.05, 0.5, n_polymers)[polymer]
    residual = spread * (generator.normal(size=n_polymers)[polymer] + 0.5 * generator.normal(size=len(polymer)))
    return residual, spread, polymer


def test_new_polymers_are_covered_about_as_often_as_promised() -> None:
    inside = []
    for seed in range(60):
        residual, spread, polymer = draw_polymers(60, seed)
        calibration = polymer < 40
        interval = fit_chi_interval(residual[calibration], spread[calibration], polymer[calibration])
        new = ~calibration
        inside.append(np.mean(np.abs(residual[new]) <= interval.half_width(spread[new])))
    assert 0.87 <= np.mean(inside) <= 0.94


@pytest.mark.parametrize("n_polymers", [4, 8])
def test_few_polymers_promise_no_more_than_they_can(n_polymers: int) -> None:
    generator = np.random.default_rng(n_polymers)
    inside, stated = [], set()
    for _ in range(3000):
        residual = generator.normal(size=n_polymers + 1)
        interval = fit_chi_interval(residual[1:], np.zeros(n_polymers), np.arange(n_polymers))
        stated.add(interval.coverage)
        inside.append(abs(residual[0]) <= interval.half_width(np.zeros(1))[0])
    assert stated == {n_polymers / (n_polymers + 1)}
    assert np.mean(inside) == pytest.approx(n_polymers / (n_polymers + 1), abs=0.025)


@pytest.mark.parametrize("n_polymers", [9, 10, 19, 20, 29, 30, 39])
def test_the_half_width_is_the_residual_of_rank_nine_tenths_of_one_more_polymer(n_polymers: int) -> None:
    generator = np.random.default_rng(n_polymers)
    residual = generator.normal(size=n_polymers)
    interval = fit_chi_interval(residual, np.zeros(n_polymers), np.arange(n_polymers))
    # The smallest k of k / (n + 1) >= 0.9; so many of n + 1 exchangeable polymers lie inside.
    rank = -(-9 * (n_polymers + 1) // 10)
    assert interval.half_width(np.zeros(1))[0] == np.sort(np.abs(residual))[rank - 1]


def test_wider_where_members_disagree() -> None:
    residual, spread, polymer = draw_polymers(50, 0)
    interval = fit_chi_interval(residual, spread, polymer)
    narrow, wide = interval.half_width(np.array([0.05, 0.5]))
    assert wide > 2 * narrow
    assert interval.half_width(np.median(spread)) == pytest.approx(2 * interval.factor * np.median(spread))
    plain = fit_chi_interval(residual, np.zeros(len(residual)), polymer)
    assert plain.half_width(np.array([0.0, 5.0])).tolist() == [plain.factor, plain.factor]


@pytest.mark.parametrize("spread", [1e-16, 1e-10, 5e-4])
def test_members_that_hardly_differ_make_every_interval_equally_wide(spread: float) -> None:
    residual, _, polymer = draw_polymers(9, 2)
    generator = np.random.default_rng(3)
    interval = fit_chi_interval(residual, spread * generator.uniform(0.5, 2.0, len(residual)), polymer)
    assert interval == fit_chi_interval(residual, np.zeros(len(residual)), polymer)
    # A new polymer's members, the model's own, learned from different polymers and do differ.
    assert interval.half_width(np.array([0.05]))[0] <= np.abs(residual).max()


def test_cross_fitted_widths_do_not_see_their_own_fold() -> None:
    residual, spread, polymer = draw_polymers(30, 1)
    fold = polymer % 3
    before = cross_fit_half_widths(residual, spread, polymer, fold)
    spoiled = np.where(fold == 1, residual * 100, residual)
    after = cross_fit_half_widths(spoiled, spread, polymer, fold)
    assert np.array_equal(before[fold == 1], after[fold == 1])
    assert (after[fold != 1] > before[fold != 1]).all()


@pytest.mark.parametrize(("n_polymers", "n_folds"), [(30, 3), (10, 5), (10, 3), (9, 3), (1, 3)])
def test_cross_fitted_intervals_state_what_the_other_folds_can_promise(n_polymers: int, n_folds: int) -> None:
    residual, spread, polymer = draw_polymers(n_polymers, 2)
    fold = polymer % n_folds
    others = [fold != one for one in np.unique(fold) if (fold != one).any()]
    each = [fit_chi_interval(residual[rows], spread[rows], polymer[rows]).coverage for rows in others]
    assert cross_fit_coverage(polymer, fold) == min(each, default=0.0)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.floats(0.05, 1.0))
@settings(max_examples=60)
def test_equal_weights_give_the_ordinary_quantile(values: list[float], level: float) -> None:
    array = np.array(values)
    weights = np.full(len(array), 1.0 / len(array))
    expected = np.quantile(array, level, method="inverted_cdf")
    assert (
        weighted_quantile(array, weights, level) == pytest.approx(expected)
        or np.isclose((level * len(array)) % 1, [0, 1], atol=1e-6).any()
    )


@pytest.mark.parametrize("level", [1.0, 1.05])
def test_the_largest_value_stands_for_what_weights_do_not_reach(level: float) -> None:
    assert weighted_quantile(np.array([2.0, 5.0, 3.0]), np.full(3, 0.3333333), level) == 5.0


def test_polymers_weigh_alike() -> None:
    weights = polymer_weights(np.array([7, 7, 7, 7, 3]))
    assert weights == pytest.approx([0.125, 0.125, 0.125, 0.125, 0.5])


def test_a_row_of_a_new_polymer_is_covered_as_promised_however_unequally_polymers_are_measured() -> None:
    generator = np.random.default_rng(5)
    n_polymers, inside = 19, []
    for _ in range(3000):
        # One polymer in five is measured a hundred times and is easy; the last is new.
        often = generator.random(n_polymers + 1) < 0.2
        polymer = np.repeat(np.arange(n_polymers + 1), np.where(often, 100, 1))
        centre = generator.normal(size=n_polymers + 1)
        residual = np.where(often, 0.3, 1.0)[polymer] * (centre[polymer] + 0.3 * generator.normal(size=len(polymer)))
        known = polymer < n_polymers
        interval = fit_chi_interval(residual[known], np.zeros(known.sum()), polymer[known])
        inside.append(np.mean(np.abs(residual[~known]) <= interval.half_width(np.zeros(1))))
    # Never less than promised; with n polymers at most about 1/(n + 1) more.
    assert 0.89 <= np.mean(inside) <= 0.96


def test_coverage_metrics_by_hand() -> None:
    metrics = coverage_metrics(
        np.array([0.0, 1.0, 2.0, 3.0]), np.zeros(4), np.array([0.5, 0.5, 2.5, 2.5]), np.array([0, 0, 2, 1])
    )
    assert metrics["coverage_rows"] == 0.5
    assert metrics["coverage_polymers"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert metrics["median_width"] == metrics["mean_width"] == 3.0
    widths = coverage_metrics(np.zeros(3), np.zeros(3), np.array([0.5, 0.5, 2.0]), np.arange(3))
    assert (widths["median_width"], widths["mean_width"]) == (1.0, 2.0)


def draw_labels(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Overconfident logits: the truth follows half of them, shifted."""
    generator = np.random.default_rng(seed)
    logit = generator.normal(0, 3, n)
    positive = generator.random(n) < 1 / (1 + np.exp(-(0.5 * logit - 1.0)))
    return logit, positive, np.arange(n) // 3


def test_platt_finds_slope_and_shift() -> None:
    logit, positive, polymer = draw_labels(6000, 0)
    calibration = fit_probability(logit, positive, polymer, seed=1)
    assert calibration.slope == pytest.approx(0.5, abs=0.05)
    assert calibration.intercept == pytest.approx(-1.0, abs=0.12)
    assert np.std(calibration.slopes) < 0.05


def draw_bound(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels whose best slope is not allowed: below the flattest, or above the steepest."""
    generator = np.random.default_rng(11)
    if case == "against the labels":
        positive = generator.random(300) < 0.3
        return 5.0 + np.where(positive, -2.0, 2.0) + generator.normal(size=300), positive
    if case == "narrow and separated":
        positive = np.arange(150) % 16 < 5
        return 2.0 + np.where(positive, 0.2, -0.2) + 0.02 * generator.normal(size=150), positive
    return np.full(40, 7.0), np.arange(40) < 10


@pytest.mark.parametrize("case", ["against the labels", "narrow and separated", "all alike"])
def test_a_sigmoid_at_its_bound_is_right_on_average(case: str) -> None:
    logit, positive = draw_bound(case)
    signs, middle = np.where(positive, 1.0, -1.0), logit.mean()

    def loss(line: np.ndarray) -> float:
        return 0.05 * line[0] ** 2 + float(np.logaddexp(0.0, -signs * (line[0] * (logit - middle) + line[1])).sum())

    slope, at_middle = minimize(loss, [1.0, 0.0], bounds=[(1e-3, 10.0), (None, None)]).x
    calibration = fit_probability(logit, positive, np.arange(len(logit)), seed=0)
    assert calibration.slope in (1e-3, 10.0)
    assert calibration.slope == pytest.approx(slope)
    assert calibration.intercept + calibration.slope * middle == pytest.approx(at_middle, abs=1e-3)
    assert calibration.probability(logit).mean() == pytest.approx(positive.mean(), abs=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_logits_that_say_nothing_give_the_share_of_positives(share: float) -> None:
    generator = np.random.default_rng(2)
    n_at_bound = 0
    for _ in range(30):
        logit, positive = generator.normal(-4.0, 2.0, 150), generator.random(150) < share
        slope, intercept = conformal._fit_platt(logit, positive)
        n_at_bound += slope == 1e-3
        assert expit(slope * logit + intercept).mean() == pytest.approx(positive.mean(), abs=1e-3)
    assert n_at_bound > 5


def test_calibration_never_turns_the_ranking_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformal, "N_RESAMPLES", 50)
    logit, positive, polymer = draw_labels(200, 3)
    assert fit_probability(-logit, positive, polymer, seed=1).slope > 0
    fold = polymer % 2
    probability, _ = cross_fit_calibration(-logit, positive, fold)
    for own in (fold == 0, fold == 1):
        assert (np.diff(probability[own][np.argsort(-logit[own])]) >= 0).all()


def test_doubt_is_that_of_polymers_however_many_rows_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformal, "N_RESAMPLES", 50)
    logit, positive, _ = draw_labels(40, 6)
    rows = np.repeat(np.arange(40), 16)
    by_polymer, by_row = (
        fit_probability(logit[rows], positive[rows], unit, seed=1) for unit in (rows, np.arange(len(rows)))
    )
    assert by_polymer.slope == by_row.slope
    assert np.std(by_polymer.slopes) > 2 * np.std(by_row.slopes)


def test_resamples_of_one_class_count_as_the_fit_on_everything() -> None:
    logit, positive = np.array([-2.0, 1.0, 0.5]), np.array([False, True, True])
    calibration = fit_probability(logit, positive, np.arange(3), seed=0)
    # Of 27 resamples eight leave the only negative out, one holds nothing else, and six are the table itself.
    as_everything = np.isclose(calibration.slopes, calibration.slope)
    assert as_everything.mean() == pytest.approx(15 / 27, abs=0.1)
    assert np.allclose(calibration.intercepts[as_everything], calibration.intercept)


def test_probability_interval_holds_members_and_tables() -> None:
    logit, positive, polymer = draw_labels(150, 2)
    calibration = fit_probability(logit, positive, polymer, seed=1)
    agreeing = np.full((10, 1), 1.0)
    disagreeing = np.linspace(-2.0, 4.0, 10)[:, None]
    low, high = calibration.interval(agreeing)
    lower, higher = calibration.interval(disagreeing)
    centre = calibration.probability(np.array([1.0]))
    assert low < centre < high
    assert lower < low
    assert higher > high
    # More data, less doubt.
    more = fit_probability(*draw_labels(6000, 2), seed=1)
    assert np.subtract(*more.interval(agreeing)[::-1]) < high - low


def test_the_interval_of_a_probability_by_hand() -> None:
    slopes = np.linspace(0.5, 1.5, 201)
    low, high = ProbabilityCalibration(0.9, 1.0, 0.0, slopes, np.zeros(201)).interval(np.ones((1, 1)))
    assert (float(low[0]), float(high[0])) == (pytest.approx(expit(0.55)), pytest.approx(expit(1.45)))
    # Where the fit on everything lies outside of all resamples, the interval reaches to it.
    above = ProbabilityCalibration(0.9, 3.0, 0.0, slopes, np.zeros(201))
    assert above.interval(np.ones((1, 1)))[1] == above.probability(np.ones(1))
    below = ProbabilityCalibration(0.9, 0.1, 0.0, slopes, np.zeros(201))
    assert below.interval(np.ones((1, 1)))[0] == below.probability(np.ones(1))


@pytest.mark.parametrize("n_members", [150, 300])
def test_every_member_has_the_same_say_in_the_interval(n_members: int) -> None:
    """The last of more members than resamples would have none, of 150 a third twice as much as the others."""
    calibration = ProbabilityCalibration(0.9, 1.0, 0.0, np.ones(200), np.zeros(200))
    member = np.arange(n_members) / n_members
    ends = np.ravel(calibration.interval(member[:, None]))
    backwards = np.ravel(calibration.interval(member[::-1, None]))
    alone = expit(np.quantile(member, [0.05, 0.95]))
    assert ends == pytest.approx(alone, abs=0.002)
    assert backwards == pytest.approx(alone, abs=0.002)


def test_probabilities_stay_finite_when_classes_separate() -> None:
    logit = np.linspace(-5, 5, 20)
    calibration = fit_probability(logit, logit > 0, np.arange(20), seed=0)
    probability = calibration.probability(np.array([-50.0, 50.0]))
    assert np.isfinite(probability).all()
    assert probability[0] < 0.01 < 0.99 < probability[1]


def test_cross_fitting_of_probability_and_threshold() -> None:
    logit, positive, polymer = draw_labels(300, 4)
    fold = polymer % 4
    probability, threshold = cross_fit_calibration(logit, positive, fold)
    for one in range(4):
        others, own = fold != one, fold == one
        spoiled = np.where(own, ~positive, positive)
        again = cross_fit_calibration(logit, spoiled, fold)
        assert np.array_equal(again[0][own], probability[own])
        assert np.array_equal(again[1][own], threshold[own])
        sigmoid = LogisticRegression(C=10.0).fit(logit[others, None], positive[others])
        by_oracle = sigmoid.predict_proba(logit[:, None])[:, 1]
        assert np.allclose(probability[own], by_oracle[own])
        assert threshold[own] == pytest.approx(best_f1_threshold(positive[others], by_oracle[others]))


def test_without_other_folds_the_networks_own_probability_stands() -> None:
    logit, positive, _ = draw_labels(30, 4)
    fold = np.zeros(30, dtype=np.int64)
    probability, threshold = cross_fit_calibration(logit, positive, fold)
    assert np.allclose(probability, 1 / (1 + np.exp(-logit)))
    assert (threshold == 0.5).all()


@pytest.mark.parametrize("label", [False, True])
def test_other_folds_of_one_class_leave_the_networks_own_probability(label: bool) -> None:
    logit, own = np.array([-1.0, 2.0, 0.5, -0.5]), np.array([False, False, True, True])
    positive = np.where(own, [True, True, True, False], label)
    probability, threshold = cross_fit_calibration(logit, positive, own.astype(int))
    assert np.allclose(probability[own], 1 / (1 + np.exp(-logit[own])))
    assert np.allclose(threshold[own], best_f1_threshold(positive[~own], 1 / (1 + np.exp(-logit[~own]))))
