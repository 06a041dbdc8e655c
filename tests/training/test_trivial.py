"""The predictor that learned nothing, worked out again with plain loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, mean_absolute_error

from chitransfer.data.assemble import Dataset
from chitransfer.training.crossval import make_folds
from chitransfer.training.trivial import score_trivial_predictor, training_means


@pytest.mark.parametrize("positive_label", [0, 1])
def test_scores_are_those_of_the_training_means(tiny_dataset: Dataset, positive_label: int) -> None:
    assert tiny_dataset.chi is not None
    assert tiny_dataset.solubility is not None
    folds = make_folds(tiny_dataset, 3, 2, 5)
    maes = []
    for repeat in folds:
        fold_of_rows = repeat[tiny_dataset.chi.polymer]
        predicted = [tiny_dataset.chi.value[fold_of_rows != fold].mean() for fold in fold_of_rows]
        maes.append(mean_absolute_error(tiny_dataset.chi.value, predicted))
    scores = score_trivial_predictor(tiny_dataset, folds, positive_label)
    assert scores.per_repeat["exp_mae"] == pytest.approx(maes)
    positive = tiny_dataset.solubility.value == positive_label
    assert scores.mean["sol_f1"] == pytest.approx(f1_score(positive, np.ones(len(positive))))
    assert scores.mean["sol_recall"] == 1.0
    assert scores.mean["sol_precision"] == pytest.approx(positive.mean())
    assert scores.mean["sol_balanced_accuracy"] == 0.5
    assert scores.mean["sol_mcc"] == 0.0


def test_it_ranks_nothing(tiny_dataset: Dataset) -> None:
    """Its constants differ between folds only, and run against the fold's own values."""
    assert tiny_dataset.solubility is not None
    scores = score_trivial_predictor(tiny_dataset, make_folds(tiny_dataset, 3, 2, 5), 1)
    for name, value in (("sol_auc", 0.5), ("sol_pr_auc", (tiny_dataset.solubility.value == 1).mean())):
        assert scores.mean[name] == pytest.approx(value)
        assert scores.std[name] == 0.0
        assert scores.per_repeat[name] == pytest.approx([value] * 2)
    assert "exp_spearman" not in scores.mean.keys() | scores.std.keys() | scores.per_repeat.keys()


def test_the_scored_fold_does_not_reach_its_own_mean(tiny_dataset: Dataset) -> None:
    """Leave-one-out means run against the row they leave out, so R² of such a predictor is below zero."""
    folds = make_folds(tiny_dataset, 10, 1, 0)
    assert score_trivial_predictor(tiny_dataset, folds, 1).mean["exp_r2"] < 0.0


def test_test_rows_reach_no_mean_and_get_that_of_all_that_learn() -> None:
    value, folds = np.array([1.0, 2.0, 4.0, 100.0]), np.array([[0, 0, 1, -1], [0, 1, 0, -1]])
    by_hand = [[4.0, 4.0, 1.5, 7 / 3], [2.0, 2.5, 2.0, 7 / 3]]
    np.testing.assert_allclose(training_means(value, folds), by_hand)
    alone = np.array([[0, 0, 0, -1]])
    np.testing.assert_allclose(training_means(value, alone), [[np.nan, np.nan, np.nan, 7 / 3]])


def test_rows_that_are_all_in_one_fold_have_no_mean_to_be_scored_by(tiny_dataset: Dataset) -> None:
    """Theirs would be the mean of the very values it is scored on."""
    assert tiny_dataset.chi is not None
    folds = make_folds(tiny_dataset, 3, 2, 5)
    folds[1, np.unique(tiny_dataset.chi.polymer)] = 0
    scores = score_trivial_predictor(tiny_dataset, folds, 1)
    for found in (scores.mean, scores.std, scores.per_repeat):
        assert not any(name.startswith("exp_") for name in found)
        assert {"sol_f1", "sol_recall", "sol_auc", "sol_brier"} <= found.keys()
    assert tiny_dataset.solubility is not None
    folds[1, np.unique(tiny_dataset.solubility.polymer)] = 0
    kept = score_trivial_predictor(tiny_dataset, folds, 1).mean
    assert {"sol_f1", "sol_recall", "sol_auc"} <= kept.keys()
    assert "sol_brier" not in kept
