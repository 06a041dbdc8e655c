"""The trivial predictor: the training folds' mean χ, and every row called positive.

Called by `search.reference` on the folds of all trials, so that a search can say what its networks add, and by
`training.model_report`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np

from chitransfer.data.assemble import Dataset
from chitransfer.training.crossval import OutOfFold, Scores, fold_of_rows, score_predictions

Score = TypeVar("Score")


def score_trivial_predictor(dataset: Dataset, folds: np.ndarray, positive_label: int) -> Scores:
    """Score mean χ and "all positive" on folds (n_repeats, n_polymers).

    The mean and the share of positives come from each fold's training rows; every row is called positive, since calling
    none gives an F1 of 0. The predictor ranks nothing: pooled over folds the means would rank, since they are lower the
    higher the fold's own values are. So ROC-AUC is 0.5, PR-AUC the share of positives, and there is no Spearman's ρ. If
    a shuffle puts all rows of a table in one fold, their mean is unknown and the table is not scored.
    """
    n_folds = int(folds.max()) + 1
    fold_of_chi, fold_of_solubility = (fold_of_rows(folds, rows) for rows in (dataset.chi, dataset.solubility))
    chi = np.zeros(fold_of_chi.shape) if dataset.chi is None else training_means(dataset.chi.value, fold_of_chi)
    share = np.zeros(fold_of_solubility.shape)
    if dataset.solubility is not None:
        share = training_means((dataset.solubility.value == positive_label).astype(float), fold_of_solubility)
    everything = np.zeros((folds.shape[0], n_folds))  # As thresholds: every row is called positive.
    # Scores that depend on unknown values are removed below.
    out_of_fold = OutOfFold(
        fold_of_chi, fold_of_solubility, np.nan_to_num(chi), np.nan_to_num(share), threshold=everything
    )
    scores = score_predictions(dataset, positive_label, out_of_fold)
    unknown: tuple[str, ...] = ("exp_spearman",)
    if np.isnan(chi).any():
        unknown = ("exp_",)
    if np.isnan(share).any():
        unknown += ("sol_brier",)
    chance = {}
    if dataset.solubility is not None and np.isfinite(scores.mean["sol_auc"]):
        chance = {"sol_auc": 0.5, "sol_pr_auc": float((dataset.solubility.value == positive_label).mean())}
    return replace(
        scores,
        mean=_without(unknown, scores.mean, chance),
        std=_without(unknown, scores.std, dict.fromkeys(chance, 0.0)),
        per_repeat=_without(unknown, scores.per_repeat, {name: [one] * len(folds) for name, one in chance.items()}),
    )


def _without(unknown: tuple[str, ...], scores: dict[str, Score], chance: dict[str, Score]) -> dict[str, Score]:
    return {name: value for name, value in scores.items() if not name.startswith(unknown)} | chance


def training_means(value: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """The mean over the rows in each row's other folds, (n_repeats, n_rows); NaN where no other fold has a row.

    Rows in no fold get the mean of all rows in folds.

    Parameters
    ----------
    value
        (n_rows,).
    fold
        Fold of every row, (n_repeats, n_rows); −1 for rows in no fold; at least one row is in a fold.
    """
    means = np.full(fold.shape, value[fold[0] >= 0].mean())
    for repeat, own in enumerate(fold):
        for one in np.unique(own[own >= 0]):
            training = (own != one) & (own >= 0)
            means[repeat, own == one] = value[training].mean() if training.any() else np.nan
    return means
