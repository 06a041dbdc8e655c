"""The predictor that learned nothing: the training folds' mean χ, and one call for every polymer.

Scored on the same folds as every trial, so that a search can say what its networks add.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np

from chitransfer.data.assemble import Dataset
from chitransfer.training.crossval import OutOfFold, Scores, score_predictions

Score = TypeVar("Score")


def score_trivial_predictor(dataset: Dataset, folds: np.ndarray, positive_label: int) -> Scores:
    """Score mean χ and the better of "all positive" and "none positive" on folds (n_repeats, n_polymers).

    The mean and the share of positives come from each fold's training rows; "better" means the higher F1. It ranks
    nothing: pooled over folds the means would, by being the lower the higher the fold's own values are, so ROC-AUC is
    0.5, PR-AUC the share of positives, and there is no Spearman's ρ.
    """
    n_folds = int(folds.max()) + 1
    fold_of_chi = folds[:, [] if dataset.chi is None else dataset.chi.polymer]
    fold_of_solubility = folds[:, [] if dataset.solubility is None else dataset.solubility.polymer]
    chi = np.zeros(fold_of_chi.shape) if dataset.chi is None else training_means(dataset.chi.value, fold_of_chi)
    share = np.zeros(fold_of_solubility.shape)
    if dataset.solubility is not None:
        share = training_means((dataset.solubility.value == positive_label).astype(float), fold_of_solubility)
    # A threshold of 0 calls every row positive, one above 1 none.
    candidates = [
        score_predictions(
            dataset,
            positive_label,
            OutOfFold(fold_of_chi, fold_of_solubility, chi, share, np.full((folds.shape[0], n_folds), threshold)),
        )
        for threshold in (0.0, 2.0)
    ]
    best = max(candidates, key=lambda scores: scores.mean.get("sol_f1", 0.0))
    chance = {}
    if dataset.solubility is not None and np.isfinite(best.mean["sol_auc"]):
        chance = {"sol_auc": 0.5, "sol_pr_auc": float((dataset.solubility.value == positive_label).mean())}
    return replace(
        best,
        mean=_without_ranks(best.mean, chance),
        std=_without_ranks(best.std, dict.fromkeys(chance, 0.0)),
        per_repeat=_without_ranks(best.per_repeat, {name: [value] * len(folds) for name, value in chance.items()}),
    )


def _without_ranks(scores: dict[str, Score], chance: dict[str, Score]) -> dict[str, Score]:
    return {name: value for name, value in scores.items() if name != "exp_spearman"} | chance


def training_means(value: np.ndarray, fold_of_rows: np.ndarray) -> np.ndarray:
    """The mean over the rows of each row's other folds, (n_repeats, n_rows); over all that learn where there is none.

    Parameters
    ----------
    value
        (n_rows,).
    fold_of_rows
        (n_repeats, n_rows); −1 for rows that no fold learns from, of which one at least must have another.
    """
    means = np.full(fold_of_rows.shape, value[fold_of_rows[0] >= 0].mean())
    for repeat, folds in enumerate(fold_of_rows):
        for fold in np.unique(folds[folds >= 0]):
            training = (folds != fold) & (folds >= 0)
            if training.any():
                means[repeat, folds == fold] = value[training].mean()
    return means
