"""Baseline predictors: random forest, ridge, Tanimoto Gaussian process, logistic regression, mean, corrected physics.

Called by `evidence.nested`; each is fitted on the training polymers' rows alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from chitransfer.training.forest import Prediction, TaskData, classify, forest_chi, forest_solubility, predict_mean

NOISE_SHARES = (0.03, 0.1, 0.3, 1.0)
# At one end ridge regression fits every row, at the other it gives the training mean; beyond them nothing changes.
PENALTIES = np.geomspace(1e-2, 1e8, 21)


def ridge_chi(data: TaskData, seed: int) -> Prediction:
    """Ridge regression on standardised features; penalty chosen by cross-validation over whole training polymers."""
    train, folds = data.training, data.polymer_folds()
    # Features that are constant over the training rows, most of a fingerprint, get no weight.
    varies = np.ptp(data.features[train], axis=0) > 0
    if folds is None or not varies.any():
        return predict_mean(data)
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
    return classify(lambda known: _logistic(known.features, known, C=0.01), data)


def descriptor_logistic(data: TaskData, seed: int) -> Prediction:
    """Logistic regression on the four polymer descriptors most closely related to the labels on training rows."""

    def probability(known: TaskData) -> np.ndarray:
        train, target = known.descriptors[known.training], known.target[known.training]
        spread = train.std(axis=0)
        centred = (train - train.mean(axis=0)) / np.where(spread > 1e-9, spread, np.inf)
        strength = np.abs(centred.T @ (target - target.mean()))
        return _logistic(known.descriptors[:, np.argsort(-strength, kind="stable")[:4]], known, C=1.0)

    return classify(probability, data)


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


def gaussian_process_chi(data: TaskData, seed: int) -> Prediction:
    """Gaussian process, kernel Tanimoto(polymer) · Tanimoto(solvent) · RBF(298.15/T); noise by marginal likelihood."""
    return Prediction(_regress(_pair_kernel(data), data))


def gaussian_process_solubility(data: TaskData, seed: int) -> Prediction:
    """The same process as regression on labels of 0 and 1, clipped."""
    kernel = _pair_kernel(data)
    return classify(lambda known: _regress(kernel, known).clip(0, 1), data)


def _regress(kernel: np.ndarray, data: TaskData) -> np.ndarray:
    """The process's mean for every row, (n_rows,), from its covariances (n_rows, n_rows)."""
    train, target = data.training, data.target[data.training]
    mean, scale = float(target.mean()), max(float(target.std()), 1e-9)
    y = (target - mean) / scale
    own = kernel[np.ix_(train, train)]
    noise = max(NOISE_SHARES, key=lambda share: _log_likelihood(own, y, share))
    value: np.ndarray = mean + scale * (kernel[:, train] @ np.linalg.solve(own + noise * np.eye(len(y)), y))
    return value


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
    """a·χ + b of Stage 1's prediction (n_rows,), by least squares on training rows; the mean if it is constant."""
    chi, target = stage1_chi[data.training], data.target[data.training]
    above_mean = chi - chi.mean()
    is_flat = np.ptp(chi) <= len(chi) * np.finfo(float).eps * np.abs(chi).max()
    slope = 0.0 if is_flat else float(above_mean @ target / (above_mean @ above_mean))
    return Prediction(target.mean() + slope * (stage1_chi - chi.mean()))


def classify_by_chi(stage1_chi: np.ndarray, data: TaskData) -> Prediction:
    """Logistic regression on Stage 1's χ at the reference temperature alone, (n_rows,)."""
    return classify(lambda known: _logistic(stage1_chi[:, None], known, C=1.0), data)


Baseline = Callable[[TaskData, int], Prediction]
# Row name: predictor of χ, predictor of solubility.
BASELINES: dict[str, tuple[Baseline | None, Baseline | None]] = {
    "random_forest": (forest_chi, forest_solubility),
    "ridge": (ridge_chi, ridge_solubility),
    "gaussian_process": (gaussian_process_chi, gaussian_process_solubility),
    "descriptor_logistic": (None, descriptor_logistic),
    "mean": (predict_mean, predict_mean),
}
