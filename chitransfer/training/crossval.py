"""Quick Stage 2: repeated k-fold cross-validation over whole polymers, all members trained together; scores a trial.

Called by `search.runner`; the rest of `search`, full training and `evidence.nested` also use its folds and scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from chitransfer.data.assemble import Dataset, Rows
from chitransfer.model.members import FittedMembers
from chitransfer.model.network import TransferNetwork, chi_at
from chitransfer.training.metrics import best_f1_threshold, call_metrics, chi_metrics, solubility_metrics
from chitransfer.training.stage2 import fit_members
from chitransfer.training.tasks import Stage2Data, Stage2Settings, TaskRows


@dataclass(frozen=True)
class OutOfFold:
    """Predictions for rows by members that never saw the row's polymer.

    Attributes
    ----------
    fold_of_chi, fold_of_solubility
        Fold of every row, (n_repeats, n_rows) int64.
    chi
        Predicted χ at each row's temperature, (n_repeats, n_chi_rows) float64.
    probability
        Of the positive class, (n_repeats, n_solubility_rows) float64.
    threshold
        Chosen on each fold's training rows, (n_repeats, n_folds) float64; `probability >= threshold` is positive.
    """

    fold_of_chi: np.ndarray
    fold_of_solubility: np.ndarray
    chi: np.ndarray
    probability: np.ndarray
    threshold: np.ndarray

    def called_positive(self) -> np.ndarray:
        """Which solubility rows are called positive, (n_repeats, n_solubility_rows) bool."""
        if self.probability.shape[1] == 0:
            return np.zeros(self.probability.shape, dtype=bool)
        return self.probability >= np.take_along_axis(self.threshold, self.fold_of_solubility, axis=1)


@dataclass(frozen=True)
class Scores:
    """Metrics of out-of-fold predictions: pooled within a repeat, then averaged over repeats.

    Attributes
    ----------
    mean, std
        By metric, over the repeats (std divides by n, so it is 0 for one repeat).
    per_repeat
        By metric, one value per repeat.
    per_fold
        ``exp_mae`` and ``sol_f1``, ``sol_recall`` of every fold of every repeat; ``None`` where the fold has no rows
        for the metric (for ``sol_f1`` and ``sol_recall``: no positive row).
    """

    mean: dict[str, float]
    std: dict[str, float]
    per_repeat: dict[str, list[float]]
    per_fold: dict[str, list[list[float | None]]]


def make_folds(
    dataset: Dataset, n_folds: int, n_repeats: int, random_state: int, among: np.ndarray | None = None
) -> np.ndarray:
    """Fold of every polymer for each repeat's shuffle, (n_repeats, n_polymers) int64; −1 for polymers not split.

    `among` (indices) limits the folds to some polymers; by default all polymers with a Stage 2 row are split.
    """
    seeds = np.random.SeedSequence(random_state).generate_state(n_repeats)
    return np.stack([dataset.fold_of_polymers(n_folds, int(seed), among) for seed in seeds])


def cross_validate(
    network: TransferNetwork,
    data: Stage2Data,
    dataset: Dataset,
    folds: np.ndarray,
    settings: Stage2Settings,
    seed: int,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> tuple[OutOfFold, Scores]:
    """Fine-tune and score `network` under every fold of every repeat.

    Parameters
    ----------
    folds
        From `make_folds`, (n_repeats, n_polymers); no member uses rows of polymers at −1.
    after_epoch
        As in `fit_members`; an exception it raises ends the training.
    """
    n_repeats, n_folds = folds.shape[0], int(folds.max()) + 1
    fold_of_chi, fold_of_solubility = (fold_of_rows(folds, rows) for rows in (dataset.chi, dataset.solubility))
    masks = [training_masks(fold, n_folds) for fold in (fold_of_chi, fold_of_solubility)]
    members = fit_members(network, data, masks[0], masks[1], settings, seed, after_epoch)
    chi, _ = predict_members(members, data, data.chi)
    _, probability = predict_members(members, data, data.solubility)
    out_of_fold = OutOfFold(
        fold_of_chi=fold_of_chi,
        fold_of_solubility=fold_of_solubility,
        chi=own_fold(chi, fold_of_chi, n_folds),
        probability=own_fold(probability, fold_of_solubility, n_folds),
        threshold=choose_thresholds(data.solubility.target.cpu().numpy() > 0.5, probability, masks[1]).reshape(
            n_repeats, n_folds
        ),
    )
    return out_of_fold, score_predictions(dataset, data.positive_label, out_of_fold)


def choose_thresholds(positive: np.ndarray, probability: np.ndarray, training: np.ndarray) -> np.ndarray:
    """The best-F1 threshold of each member on its own training rows.

    Parameters
    ----------
    positive
        (n_rows,) bool.
    probability, training
        Each member's prediction for every row and whether it trained on it, (n_members, n_rows).
    """
    return np.array([best_f1_threshold(positive[own], p[own]) for p, own in zip(probability, training, strict=True)])


def score_predictions(dataset: Dataset, positive_label: int, out_of_fold: OutOfFold) -> Scores:
    """Score out-of-fold predictions from any predictor."""
    per_repeat: dict[str, list[float]] = {}
    per_fold: dict[str, list[list[float | None]]] = {}
    called = out_of_fold.called_positive()
    for repeat in range(out_of_fold.threshold.shape[0]):
        fold_ids = range(out_of_fold.threshold.shape[1])
        values: dict[str, float] = {}
        if dataset.chi is not None:
            used = out_of_fold.fold_of_chi[repeat] >= 0
            measured, predicted = dataset.chi.value, out_of_fold.chi[repeat]
            values |= chi_metrics(measured[used], predicted[used])
            own = [out_of_fold.fold_of_chi[repeat] == fold for fold in fold_ids]
            per_fold.setdefault("exp_mae", []).append(
                [float(np.abs(measured[rows] - predicted[rows]).mean()) if rows.any() else None for rows in own]
            )
        if dataset.solubility is not None:
            used = out_of_fold.fold_of_solubility[repeat] >= 0
            positive, probability = dataset.solubility.value == positive_label, out_of_fold.probability[repeat]
            values |= solubility_metrics(positive[used], probability[used], called[repeat][used])
            own = [out_of_fold.fold_of_solubility[repeat] == fold for fold in fold_ids]
            calls = [(positive[rows], called[repeat][rows]) for rows in own]
            scored = [call_metrics(right, given) if right.any() else {} for right, given in calls]
            for name in ("sol_f1", "sol_recall"):
                per_fold.setdefault(name, []).append([fold.get(name) for fold in scored])
        for name, value in values.items():
            per_repeat.setdefault(name, []).append(value)
    return Scores(
        mean={name: float(np.mean(values)) for name, values in per_repeat.items()},
        std={name: float(np.std(values)) for name, values in per_repeat.items()},
        per_repeat=per_repeat,
        per_fold=per_fold,
    )


def fold_of_rows(folds: np.ndarray, rows: Rows | None) -> np.ndarray:
    """Fold of every row of a table, from its polymer's fold, (n_repeats, n_rows); an absent table has no rows.

    Parameters
    ----------
    folds
        As from `make_folds`, (n_repeats, n_polymers).
    """
    own: np.ndarray = folds[:, [] if rows is None else rows.polymer]
    return own


def training_masks(fold: np.ndarray, n_folds: int) -> np.ndarray:
    """(n_repeats · n_folds, n_rows): a member trains on the rows of all other folds of its repeat."""
    scored_fold = np.arange(n_folds)[None, :, None]
    training = (fold[:, None, :] != scored_fold) & (fold[:, None, :] >= 0)
    return training.reshape(len(fold) * n_folds, fold.shape[1])


@torch.no_grad()
def predict_members(members: FittedMembers, data: Stage2Data, task: TaskRows) -> tuple[np.ndarray, np.ndarray]:
    """χ at each row's temperature and probability of the positive class, (n_members, n_rows) float64."""
    coefficients, logits = members.predict(data.features, task.structure, task.solvent)
    chi = data.chi_scaler.inverse(chi_at(coefficients, task.tau.to(coefficients.device)).cpu().numpy())
    return chi, torch.sigmoid(logits.double()).cpu().numpy()


def own_fold(by_member: np.ndarray, fold: np.ndarray, n_folds: int) -> np.ndarray:
    """Of values (n_repeats · n_folds, n_rows) those by the member that left the row out, (n_repeats, n_rows)."""
    n_repeats, n_rows = fold.shape
    grouped = by_member.reshape(n_repeats, n_folds, n_rows)
    return np.take_along_axis(grouped, np.maximum(fold, 0)[:, None, :], axis=1)[:, 0]
