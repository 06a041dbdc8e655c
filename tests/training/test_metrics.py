"""Metrics against scikit-learn and by hand; the threshold against trying every one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp
from sklearn.metrics import f1_score, roc_auc_score

from chitransfer.search.objective import COMPONENTS
from chitransfer.training.metrics import (
    best_f1_threshold,
    call_metrics,
    chi_metrics,
    mean_half_width,
    solubility_metrics,
)


def test_chi_by_hand() -> None:
    measured, predicted = np.array([0.0, 1.0, 2.0, 5.0]), np.array([0.5, 1.0, 1.0, 4.5])
    found = chi_metrics(measured, predicted)
    assert tuple(found) == COMPONENTS[1:5]
    assert found["exp_mae"] == pytest.approx(0.5)
    assert found["exp_rmse"] == pytest.approx(np.sqrt((0.25 + 0 + 1 + 0.25) / 4))
    assert found["exp_r2"] == pytest.approx(1 - 1.5 / ((measured - 2.0) ** 2).sum())
    # Ranks 1 2 3 4 against 1 2.5 2.5 4.
    assert found["exp_spearman"] == pytest.approx(np.corrcoef([1, 2, 3, 4], [1, 2.5, 2.5, 4])[0, 1])


def test_chi_that_does_not_vary_has_no_r2() -> None:
    found = chi_metrics(np.array([0.5, 0.5]), np.array([0.4, 0.6]))
    assert found["exp_mae"] == pytest.approx(0.1)
    assert np.isnan([found["exp_r2"], found["exp_spearman"]]).all()
    assert np.isnan(chi_metrics(np.array([0.5]), np.array([0.4]))["exp_r2"])
    assert np.isnan(chi_metrics(np.array([0.1, 0.5]), np.array([0.4, 0.4]))["exp_spearman"])


def test_solubility_by_hand() -> None:
    positive = np.array([1, 1, 1, 0, 0], dtype=bool)
    called = np.array([1, 1, 0, 1, 0], dtype=bool)  # 2 true positives, 1 miss, 1 false alarm, 1 true negative
    probability = np.array([0.9, 0.6, 0.3, 0.7, 0.1])
    found = solubility_metrics(positive, probability, called)
    assert tuple(found) == COMPONENTS[5:]
    assert found["sol_recall"] == pytest.approx(2 / 3)
    assert found["sol_precision"] == pytest.approx(2 / 3)
    assert found["sol_f1"] == pytest.approx(2 / 3)
    assert found["sol_balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["sol_mcc"] == pytest.approx((2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2))
    assert found["sol_auc"] == pytest.approx(4 / 6)  # of 6 pairs, 4 ranked right
    assert found["sol_pr_auc"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 4) / 3)  # precision at each positive row
    assert found["sol_brier"] == pytest.approx((0.01 + 0.16 + 0.49 + 0.49 + 0.01) / 5)


def test_areas_are_those_of_the_ranking_given() -> None:
    """Probabilities of several sigmoids are not on one scale; all but the areas under curves go by them."""
    positive, probability = np.array([True, False, True, False]), np.array([0.2, 0.4, 0.9, 0.8])
    called, ranking = probability >= 0.5, np.array([5.0, -1.0, 3.0, 1.0])
    found, plain = (
        solubility_metrics(positive, probability, called, ranking),
        solubility_metrics(positive, probability, called),
    )
    assert (found["sol_auc"], found["sol_pr_auc"]) == (1.0, 1.0)
    assert (plain["sol_auc"], plain["sol_pr_auc"]) == (pytest.approx(0.5), pytest.approx(0.75))
    assert all(found[name] == plain[name] for name in found if not name.endswith("auc"))


@pytest.mark.parametrize("label", [True, False])
def test_one_class_alone_gives_nan_and_no_warning(label: bool) -> None:
    found = solubility_metrics(np.full(3, label), np.array([0.2, 0.5, 0.7]), np.array([False, True, True]))
    assert np.isnan([found[name] for name in ("sol_auc", "sol_mcc", "sol_balanced_accuracy", "sol_pr_auc")]).all()
    assert found["sol_recall"] == (pytest.approx(2 / 3) if label else 0.0)


@pytest.mark.parametrize("label", [True, False])
def test_f1_and_recall_of_no_positive_row_are_what_the_caller_says(label: bool) -> None:
    found = call_metrics(np.full(3, label), np.array([False, True, True]), absent=np.nan)
    assert np.isnan([found["sol_f1"], found["sol_recall"]]).tolist() == [not label] * 2
    assert found["sol_precision"] == label


@pytest.mark.parametrize("n", [2, 3, 12])
def test_half_width_is_that_of_students_interval(n: int, rng: np.random.Generator) -> None:
    values = rng.normal(3.0, 2.0, n)
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert mean_half_width(values) == pytest.approx((expected.high - expected.low) / 2)


def test_one_value_alone_bounds_nothing() -> None:
    assert mean_half_width(np.array([3.0])) == float("inf")


def test_inputs_are_not_changed() -> None:
    positive, probability = np.array([True, False, True]), np.array([0.3, 0.9, 0.5])
    copies = positive.copy(), probability.copy()
    solubility_metrics(positive, probability, probability >= best_f1_threshold(positive, probability))
    chi_metrics(probability, probability[::-1])
    np.testing.assert_array_equal(positive, copies[0])
    np.testing.assert_array_equal(probability, copies[1])


class TestThreshold:
    @given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=30))
    def test_no_threshold_is_better(self, rows: list[tuple[bool, float]]) -> None:
        positive = np.array([label for label, _ in rows])
        probability = np.array([p for _, p in rows])
        threshold = best_f1_threshold(positive, probability)
        if not positive.any():
            assert threshold == 0.5
            return
        found = f1_score(positive, probability >= threshold)
        # Every distinct call of the rows, by trying each probability as a threshold.
        tried = [f1_score(positive, probability >= cut) for cut in np.unique(probability)]
        assert found == pytest.approx(max(tried))

    @pytest.mark.parametrize("upper", [1.0, np.nextafter(1.0, 0.0), 0.5, np.nextafter(0.5, 0.0)])
    def test_neighbouring_floats_are_told_apart(self, upper: float) -> None:
        lower = np.nextafter(upper, 0.0)
        threshold = best_f1_threshold(np.array([True, False]), np.array([upper, lower]))
        assert lower < threshold <= upper

    def test_it_lies_halfway(self) -> None:
        assert best_f1_threshold(np.array([True, False]), np.array([0.8, 0.4])) == pytest.approx(0.6)

    def test_ties_go_to_the_one_nearest_to_a_half(self) -> None:
        # Calling the first row or all three gives F1 = 2/3 either way... of those the cut nearest 0.5 wins.
        positive, probability = np.array([True, False, False, True]), np.array([0.9, 0.3, 0.2, 0.1])
        cuts = {0.6: f1_score(positive, probability >= 0.6), 0.05: f1_score(positive, probability >= 0.05)}
        assert cuts[0.6] == pytest.approx(cuts[0.05])
        assert best_f1_threshold(positive, probability) == pytest.approx(0.6)
        # Here the highest cut, 0.9, and that below all rows, 0.2, are equally good.
        assert best_f1_threshold(positive, np.array([0.95, 0.85, 0.8, 0.4])) == pytest.approx(0.2)

    @given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=2, max_size=30), st.randoms())
    def test_the_order_of_rows_does_not_matter(self, rows: list[tuple[bool, float]], random: object) -> None:
        shuffled = list(rows)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        thresholds = {
            best_f1_threshold(np.array([label for label, _ in order]), np.array([p for _, p in order]))
            for order in (rows, shuffled)
        }
        assert len(thresholds) == 1

    def test_a_perfect_ranking_is_separated(self, rng: np.random.Generator) -> None:
        positive = rng.random(100) < 0.3
        probability = np.where(positive, rng.uniform(0.02, 0.03, 100), rng.uniform(0.0, 0.01, 100))
        assert roc_auc_score(positive, probability) == 1.0
        np.testing.assert_array_equal(probability >= best_f1_threshold(positive, probability), positive)
