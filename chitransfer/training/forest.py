"""A random forest on the networks' features, scored as they are: the baseline they must beat.

Called by `search.reference` and `training.finetune`; `evidence.baselines` has further predictors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.model_selection import GroupKFold

from chitransfer.data.assemble import Dataset, Rows
from chitransfer.processors import count_processors
from chitransfer.training.crossval import OutOfFold, fold_of_rows, score_predictions
from chitransfer.training.metrics import best_f1_threshold

N_TREES = 200
GROWING = "training a random forest on the same features and folds, for comparison (cv.random_forest)"
N_POLYMER_FOLDS = 5


@dataclass(frozen=True)
class TaskData:
    """One measured table in the form scikit-learn takes.

    Attributes
    ----------
    features
        Polymer and solvent features and 298.15/T, (n_rows, n_features).
    polymer_counts, solvent_counts
        Fingerprint counts for the Tanimoto kernel, (n_rows, n_bits); solvents have none when all rows are in water.
    descriptors
        Of the polymer, (n_rows, n_descriptors).
    polymer
        The polymer of each row, (n_rows,); choices within the training rows are made over whole polymers.
    target
        χ, or 1 for the positive class, (n_rows,).
    training
        True for rows a model may learn from, (n_rows,) bool.
    """

    features: np.ndarray
    polymer_counts: np.ndarray
    solvent_counts: np.ndarray
    descriptors: np.ndarray
    polymer: np.ndarray
    target: np.ndarray
    training: np.ndarray

    @property
    def has_one_class(self) -> bool:
        """Whether all training rows are of one class, as when the only polymer of the other class is tested."""
        return len(np.unique(self.target[self.training])) < 2

    def varying_features(self) -> np.ndarray:
        """The features that differ between training rows, (n_rows, n_varying); a tree cannot split on any other."""
        varying: np.ndarray = self.features[:, np.ptp(self.features[self.training], axis=0) > 0]
        # A tree needs at least one feature.
        return varying if varying.shape[1] else self.features[:, :1]

    def polymer_folds(self) -> GroupKFold | None:
        """Folds of whole training polymers for choices within the training rows; ``None`` for a single polymer."""
        n_folds = min(N_POLYMER_FOLDS, len(np.unique(self.polymer[self.training])))
        return GroupKFold(n_folds) if n_folds > 1 else None

    @classmethod
    def build(cls, dataset: Dataset, rows: Rows, target: np.ndarray, training: np.ndarray) -> TaskData:
        """Collect the rows of one table."""
        n_bits = dataset.recipe.fingerprint_bits
        polymer = dataset.polymer_features[rows.structure].toarray()
        solvent = dataset.solvent_features[rows.solvent].toarray()
        inverse = (298.15 / rows.temperature)[:, None]
        return cls(
            features=np.hstack([polymer, solvent, inverse]).astype(np.float32),
            polymer_counts=polymer[:, :n_bits],
            solvent_counts=solvent[:, :n_bits],
            descriptors=polymer[:, n_bits:],
            polymer=rows.polymer,
            target=target,
            training=training,
        )


@dataclass(frozen=True)
class Prediction:
    """Values for every row, (n_rows,), and a classifier's threshold, chosen on training polymers left out in turn."""

    value: np.ndarray
    threshold: float = 0.5


def predict_mean(data: TaskData, seed: int = 0) -> Prediction:
    """The training rows' mean; as a classifier it calls every row positive, or none if no training row is."""
    mean = float(data.target[data.training].mean())
    return Prediction(np.full(len(data.target), mean), min(mean, 0.5) or 0.5)


def classify(probability: Callable[[TaskData], np.ndarray], data: TaskData) -> Prediction:
    """A classifier's probabilities and the best-F1 threshold on training polymers left out in turn.

    `probability` learns from the training rows of its argument, either all or all but a fold's, and returns P(positive)
    of every row, (n_rows,). Rows of one polymer are alike: a threshold chosen on polymers that were learned from would
    suit only known polymers.
    """
    if data.has_one_class:
        return predict_mean(data)
    rows = np.flatnonzero(data.training)
    folds = data.polymer_folds()
    if folds is None:
        return Prediction(probability(data))
    left_out = np.zeros(len(rows))
    for _, held in folds.split(rows, groups=data.polymer[rows]):
        learned = data.training.copy()
        learned[rows[held]] = False
        part = replace(data, training=learned)
        values = predict_mean(part).value if part.has_one_class else probability(part)
        left_out[held] = values[rows[held]]
    return Prediction(probability(data), best_f1_threshold(data.target[rows] > 0.5, left_out))


def forest_chi(data: TaskData, seed: int, n_jobs: int = 1) -> Prediction:
    """Random forest on all features that vary, a third of them tried per split."""
    features = data.varying_features()
    model = RandomForestRegressor(N_TREES, max_features=0.3, random_state=seed, n_jobs=n_jobs)
    model.fit(features[data.training], data.target[data.training])
    # Threads add up the trees in varying order, which changes the last digit.
    return Prediction(model.set_params(n_jobs=1).predict(features))


def forest_solubility(data: TaskData, seed: int, n_jobs: int = 1) -> Prediction:
    """Random forest on all features that vary."""

    def probability(known: TaskData) -> np.ndarray:
        features = known.varying_features()
        model = RandomForestClassifier(N_TREES, random_state=seed, n_jobs=n_jobs)
        model.fit(features[known.training], known.target[known.training])
        return model.set_params(n_jobs=1).predict_proba(features)[:, 1]

    return classify(probability, data)


@dataclass(frozen=True)
class LeftOut:
    """Predictions for a table's rows by forests trained on the other folds only.

    Attributes
    ----------
    value
        χ, or the probability of the positive class, (n_rows,). Rows in no fold (−1) are predicted by a forest trained
        on all other rows.
    threshold
        Rows at or above this probability are called positive, (n_rows,); chosen on training rows, as in `classify`.
    """

    value: np.ndarray
    threshold: np.ndarray

    def called_positive(self) -> np.ndarray:
        """Which rows are called positive, (n_rows,) bool."""
        called: np.ndarray = self.value >= self.threshold
        return called


@dataclass(frozen=True)
class ForestPredictions:
    """Predictions for both tables; ``None`` without a table, or where a fold has no others to learn from."""

    chi: LeftOut | None
    solubility: LeftOut | None


def leave_out(dataset: Dataset, fold: np.ndarray, positive_label: int, seed: int) -> ForestPredictions:
    """Predict every row with a forest that left its fold out.

    Parameters
    ----------
    fold
        Fold of every polymer, (n_polymers,); −1 for test polymers.
    positive_label
        The class whose probability is predicted.
    """
    chi = solubility = None
    if dataset.chi is not None:
        chi = _leave_out(forest_chi, dataset, dataset.chi, dataset.chi.value, fold, seed)
    if dataset.solubility is not None:
        positive = (dataset.solubility.value == positive_label).astype(float)
        solubility = _leave_out(forest_solubility, dataset, dataset.solubility, positive, fold, seed)
    return ForestPredictions(chi, solubility)


def _leave_out(
    fit: Callable[[TaskData, int, int], Prediction],
    dataset: Dataset,
    rows: Rows,
    target: np.ndarray,
    fold: np.ndarray,
    seed: int,
) -> LeftOut | None:
    own_fold = fold[rows.polymer]
    data = TaskData.build(dataset, rows, target, own_fold >= 0)
    value, threshold = np.full(len(rows), np.nan), np.full(len(rows), 0.5)
    for one in np.unique(own_fold):
        held = own_fold == one
        training = ~held & (own_fold >= 0)
        if not training.any():
            return None
        found = fit(replace(data, training=training), seed, count_processors())
        value[held], threshold[held] = found.value[held], found.threshold
    return LeftOut(value, threshold)


def score_random_forest(dataset: Dataset, fold: np.ndarray, positive_label: int, seed: int) -> dict[str, float]:
    """Scores of forests on one fold shuffle (n_polymers,), named as a trial's are; undefined scores are omitted.

    Neither a fold's forest nor that forest's threshold depends on the fold's rows.
    """
    found = leave_out(dataset, fold, positive_label, seed)
    chi, solubility = found.chi, found.solubility
    fold_of_chi, fold_of_solubility = (fold_of_rows(fold[None], rows) for rows in (dataset.chi, dataset.solubility))
    threshold = np.full((1, int(fold.max()) + 1), 0.5)
    if solubility is not None:
        threshold[0, fold_of_solubility[0]] = solubility.threshold
    out_of_fold = OutOfFold(
        fold_of_chi,
        fold_of_solubility,
        np.zeros(fold_of_chi.shape) if chi is None else chi.value[None],
        np.zeros(fold_of_solubility.shape) if solubility is None else solubility.value[None],
        threshold,
    )
    unknown = tuple(prefix for prefix, left_out in (("exp_", chi), ("sol_", solubility)) if left_out is None)
    scores = score_predictions(dataset, positive_label, out_of_fold).mean
    return {name: value for name, value in scores.items() if not name.startswith(unknown)}
