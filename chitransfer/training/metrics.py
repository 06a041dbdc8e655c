"""Metrics of χ and solubility predictions, from scikit-learn, and the choice of a decision threshold.

Called wherever predictions are scored: by `training.crossval`, full training and `evidence`.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr
from scipy.stats import t as student
from sklearn import metrics as sk


def chi_metrics(measured: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """MAE, RMSE, R² and Spearman's ρ of χ, both (n_rows,) in χ's own units; NaN where distinct values are needed."""
    varies = len(measured) > 1 and float(np.ptp(measured)) > 0
    ranks = varies and float(np.ptp(predicted)) > 0
    return {
        "exp_mae": float(sk.mean_absolute_error(measured, predicted)),
        "exp_rmse": float(sk.root_mean_squared_error(measured, predicted)),
        "exp_r2": float(sk.r2_score(measured, predicted)) if varies else float("nan"),
        "exp_spearman": float(spearmanr(measured, predicted).statistic) if ranks else float("nan"),
    }


def call_metrics(positive: np.ndarray, called: np.ndarray, absent: float = 0.0) -> dict[str, float]:
    """F1, recall and precision of the positive calls, both (n_rows,) bool; 0 where they are not defined.

    Without a positive row F1 and recall are `absent`.
    """
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        positive, called, labels=[True], average="macro", zero_division=0.0
    )
    if not positive.any():
        f1 = recall = absent
    return {"sol_f1": float(f1), "sol_recall": float(recall), "sol_precision": float(precision)}


def solubility_metrics(
    positive: np.ndarray,
    probability: np.ndarray,
    called: np.ndarray,
    ranking: np.ndarray | None = None,
    absent: float = 0.0,
) -> dict[str, float]:
    """Scores of a classifier for the positive class.

    Parameters
    ----------
    positive
        True where the row is of the positive class, (n_rows,) bool.
    probability
        Predicted probability of the positive class, (n_rows,) in 0 … 1.
    called
        True where the row was called positive, (n_rows,) bool.
    ranking
        Values by which the AUCs rank rows, (n_rows,), where probabilities are not on one scale; default: probability.
    absent
        F1 and recall without a positive row: 0 for a search, which needs an objective; NaN where nothing was measured.

    Returns
    -------
    dict
        By metric name; AUCs are NaN when only one class is present.
    """
    both = bool(positive.any() and not positive.all())
    ranking = probability if ranking is None else ranking
    return {
        **call_metrics(positive, called, absent),
        "sol_balanced_accuracy": float(sk.balanced_accuracy_score(positive, called)) if both else float("nan"),
        "sol_mcc": float(sk.matthews_corrcoef(positive, called)) if both else float("nan"),
        "sol_auc": float(sk.roc_auc_score(positive, ranking)) if both else float("nan"),
        "sol_pr_auc": float(sk.average_precision_score(positive, ranking)) if both else float("nan"),
        "sol_brier": float(np.mean((probability - positive) ** 2)),
    }


def best_f1_threshold(positive: np.ndarray, probability: np.ndarray) -> float:
    """The threshold with the best F1 on (n_rows,) rows; `probability >= threshold` calls a row positive.

    Thresholds lie halfway between neighbouring probabilities; among equally good ones the nearest to 0.5 is taken.
    Without a positive row the threshold is 0.5.
    """
    n_positive = int(positive.sum())
    if n_positive == 0:
        return 0.5
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order].astype(np.float64)
    true_positives = np.cumsum(positive[order])
    called = np.arange(1, len(ranked) + 1)
    f1 = 2.0 * true_positives / (called + n_positive)
    is_cut = np.append(ranked[1:] < ranked[:-1], True)
    halfway = (ranked[1:] + ranked[:-1]) / 2.0
    # Between adjacent floats "halfway" may round down to the lower one, which must stay below the threshold.
    cuts = np.append(np.where(halfway > ranked[1:], halfway, ranked[:-1]), ranked[-1] / 2.0)
    best = f1[is_cut].max()
    candidates = cuts[is_cut & (f1 >= best - 1e-12)]
    return float(candidates[np.argmin(np.abs(candidates - 0.5))])


def mean_half_width(values: np.ndarray) -> float:
    """Half the width of the 95 % interval (Student's t) of the mean of independent values (n,); infinite for n < 2."""
    if len(values) < 2:
        return float("inf")
    return float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
