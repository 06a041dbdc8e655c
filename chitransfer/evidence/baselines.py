"""Predictors to beat: random forest, ridge, Tanimoto Gaussian process, logistic regression, mean, corrected physics.

Called by `evidence.nested`; each is fitted on the training polymers' rows alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from chitransfer.data.assemble import Dataset, Rows
from chitransfer.training.metrics import best_f1_threshold

N_TREES = 200
NOISE_SHARES = (0.03, 0.1, 0.3, 1.0)
# At the ends ridge regression fits every row or is the training mean: beyond them nothing changes.
PENALTIES = np.geomspace(1e-2, 1e8, 21)
N_POLYMER_FOLDS = 5


@dataclass(frozen=True)
class TaskData:
    """One measured table as scikit-learn wants it.

    Attributes
    ----------
    features
        Polymer and solvent features and 298.15/T, (n_rows, n_features).
    polymer_counts, solvent_counts
        Fingerprint counts for the Tanimoto kernel, (n_rows, n_bits); solvents have none when all rows are in water.
    descriptors
        Of the polymer, (n_rows, n_descriptors).
    polymer
        Which polymer a row is of, (n_rows,): what a choice within the training rows is made by.
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
        """Whether all rows to learn from are of one class, as where the only polymer of the other is tested."""
        return len(np.unique(self.target[self.training])) < 2

    def polymer_folds(self) -> GroupKFold | None:
        """Folds of whole training polymers to choose by; none where there is one polymer to learn from."""
        n_folds = min(N_POLYMER_FOLDS, len(np.unique(self.polymer[self.training])))
        return GroupKFold(n_folds) if n_folds > 1 else None

    @classmethod
    def build(cls, dataset: Dataset, rows: Rows, target: np.ndarray, training: np.ndarray) -> TaskData:
        """Lay out the rows of one table."""
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


def predict_mean(data: TaskData, seed: int) -> Prediction:
    """The training rows' mean; as a classifier it calls all positive, and without a positive row to learn from none."""
    mean = float(data.target[data.training].mean())
    return Prediction(np.full(len(data.target), mean), min(mean, 0.5) or 0.5)


def forest_chi(data: TaskData, seed: int) -> Prediction:
    """Random forest on all features, a third of them a split."""
    model = RandomForestRegressor(N_TREES, max_features=0.3, random_state=seed, n_jobs=1)
    model.fit(data.features[data.training], data.target[data.training])
    return Prediction(model.predict(data.features))


def _classify(probability: Callable[[TaskData], np.ndarray], data: TaskData) -> Prediction:
    """A classifier's probabilities and the threshold with the best F1 on training polymers left out in turn.

    `probability` learns from the training rows of what it is given, all of them or all but a fold's, and returns
    P(positive) of every row, (n_rows,). Rows of one polymer are alike: a threshold chosen on rows whose polymer was
    learned from is one for known polymers.
    """
    if data.has_one_class:
        return predict_mean(data, 0)
    rows = np.flatnonzero(data.training)
    folds = data.polymer_folds()
    if folds is None:
        return Prediction(probability(data))
    left_out = np.zeros(len(rows))
    for _, held in folds.split(rows, groups=data.polymer[rows]):
        learned = data.training.copy()
        learned[rows[held]] = False
        part = replace(data, training=learned)
        values = predict_mean(part, 0).value if part.has_one_class else probability(part)
        left_out[held] = values[rows[held]]
    return Prediction(probability(data), best_f1_threshold(data.target[rows] > 0.5, left_out))


def forest_solubility(data: TaskData, seed: int) -> Prediction:
    """Random forest on all features."""

    def probability(known: TaskData) -> np.ndarray:
        model = RandomForestClassifier(N_TREES, random_state=seed, n_jobs=1)
        model.fit(known.features[known.training], known.target[known.training])
        return model.predict_proba(known.features)[:, 1]

    return _classify(probability, data)


def ridge_chi(data: TaskData, seed: int) -> Prediction:
    """Ridge regression on standardised features, its penalty by cross-validation over whole training polymers."""
    train, folds = data.training, data.polymer_folds()
    # What all rows learned from share gets no weight; that is most of a fingerprint.
    varies = np.ptp(data.features[train], axis=0) > 0
    if folds is None or not varies.any():
        return predict_mean(data, seed)
    features = data.features[:, varies].astype(np.float64)
    model = GridSearchCV(
        make_pipeline(StandardScaler(), Ridge()),
        {"ridge__alpha": PENALTIES},
        scoring="neg_mean_squared_error",
        cv=folds,
    )
    model.fit(features[train], data.target[train], groups=data.polymer[train])
    return Prediction(model.predict(features))


def ridge_solubility(data: TaskData, seed: int) -> Prediction:
    """Logistic regression with a ridge penalty on all standardised features."""
    return _classify(lambda known: _logistic(known.features, known, C=0.01), data)


def descriptor_logistic(data: TaskData, seed: int) -> Prediction:
    """Logistic regression on the four polymer descriptors that follow the labels most closely on training rows."""

    def probability(known: TaskData) -> np.ndarray:
        train, target = known.descriptors[known.training], known.target[known.training]
        spread = train.std(axis=0)
        centred = (train - train.mean(axis=0)) / np.where(spread > 1e-9, spread, np.inf)
        strength = np.abs(centred.T @ (target - target.mean()))
        return _logistic(known.descriptors[:, np.argsort(-strength, kind="stable")[:4]], known, C=1.0)

    return _classify(probability, data)


def _logistic(features: np.ndarray, data: TaskData, C: float) -> np.ndarray:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000))
    model.fit(features[data.training], data.target[data.training])
    return model.predict_proba(features)[:, 1]


def tanimoto_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Tanimoto similarity of count vectors, Σ min / Σ max, (n_a, n_b); 1 for two empty vectors.

    Ralaivola et al., Neural Networks 18 (2005) 1093.
    """
    used = (a > 0).any(axis=0) | (b > 0).any(axis=0)
    a, b = a[:, used].astype(np.float64), b[:, used].astype(np.float64)
    smaller = np.stack([np.minimum(row, b).sum(axis=1) for row in a]) if len(a) else np.zeros((0, len(b)))
    larger = a.sum(axis=1)[:, None] + b.sum(axis=1)[None, :] - smaller
    return np.where(larger > 0, smaller / np.where(larger > 0, larger, 1.0), 1.0)


def gaussian_process(data: TaskData, seed: int) -> Prediction:
    """Gaussian process, kernel Tanimoto(polymer) · Tanimoto(solvent) · RBF(298.15/T); noise by marginal likelihood.

    For labels it regresses 0 and 1, clipped.
    """
    kernel = _pair_kernel(data)

    def value(known: TaskData) -> np.ndarray:
        train, target = known.training, known.target[known.training]
        mean, scale = float(target.mean()), max(float(target.std()), 1e-9)
        y = (target - mean) / scale
        own = kernel[np.ix_(train, train)]
        noise = max(NOISE_SHARES, key=lambda share: _log_likelihood(own, y, share))
        return mean + scale * (kernel[:, train] @ np.linalg.solve(own + noise * np.eye(len(y)), y))

    if not np.isin(data.target, (0.0, 1.0)).all():
        return Prediction(value(data))
    return _classify(lambda known: value(known).clip(0, 1), data)


def _pair_kernel(data: TaskData) -> np.ndarray:
    kernel = _distinct_kernel(data.polymer_counts)
    if data.solvent_counts.shape[1]:
        kernel = kernel * _distinct_kernel(data.solvent_counts)
    inverse = data.features[:, -1].astype(float)
    return kernel * np.exp(-0.5 * ((inverse[:, None] - inverse[None, :]) / 0.2) ** 2)


def _distinct_kernel(counts: np.ndarray) -> np.ndarray:
    distinct, place = np.unique(counts, axis=0, return_inverse=True)
    kernel = tanimoto_kernel(distinct, distinct)
    place = place.ravel()
    return kernel[np.ix_(place, place)]


def _log_likelihood(kernel: np.ndarray, y: np.ndarray, noise: float) -> float:
    factor = np.linalg.cholesky(kernel + noise * np.eye(len(y)))
    half = np.linalg.solve(factor, y)
    return float(-0.5 * half @ half - np.log(np.diag(factor)).sum())


def correct_affinely(stage1_chi: np.ndarray, data: TaskData) -> Prediction:
    """a·χ + b of Stage 1's own prediction, a and b fitted on training rows; a flat one gives the mean."""
    chi, target = stage1_chi[data.training], data.target[data.training]
    above_mean = chi - chi.mean()
    is_flat = np.ptp(chi) <= len(chi) * np.finfo(float).eps * np.abs(chi).max()
    slope = 0.0 if is_flat else float(above_mean @ target / (above_mean @ above_mean))
    return Prediction(target.mean() + slope * (stage1_chi - chi.mean()))


def classify_by_chi(stage1_chi: np.ndarray, data: TaskData) -> Prediction:
    """Logistic regression on Stage 1's χ at the reference temperature alone."""
    return _classify(lambda known: _logistic(stage1_chi[:, None], known, C=1.0), data)


Baseline = Callable[[TaskData, int], Prediction]
# Name of the row, predictor of χ, predictor of solubility.
BASELINES: dict[str, tuple[Baseline | None, Baseline | None]] = {
    "random_forest": (forest_chi, forest_solubility),
    "ridge": (ridge_chi, ridge_solubility),
    "gaussian_process": (gaussian_process, gaussian_process),
    "descriptor_logistic": (None, descriptor_logistic),
    "mean": (predict_mean, predict_mean),
}
