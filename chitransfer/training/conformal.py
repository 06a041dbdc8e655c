"""Calibration on left-out polymers: conformal χ intervals, Platt-scaled probabilities, and how well both do.

Called by `training.finetune`. Rows of one polymer resemble each other, so the unit weighted and resampled is a polymer.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.special import logit as log_odds
from sklearn.linear_model import LogisticRegression

from chitransfer.model.calibration import COVERAGE, ChiInterval, ProbabilityCalibration
from chitransfer.training.metrics import best_f1_threshold

N_RESAMPLES = 200
# Relative to the typical residual: members that differ by less learned from the same rows, or learned nothing.
LEAST_SPREAD = 0.01
# Too weak to affect hundreds of rows, strong enough to keep the fit finite where the classes separate perfectly.
PLATT_STRENGTH = 10.0
# A negative slope would reverse the networks' ranking, which a calibration must not do.
FLATTEST, STEEPEST = 1e-3, 10.0


def polymer_weights(polymer: np.ndarray) -> np.ndarray:
    """Weights (n_rows,) that count all polymers equally: 1 / (n_polymers · number of rows of the polymer)."""
    _, inverse, counts = np.unique(polymer, return_inverse=True, return_counts=True)
    weights: np.ndarray = 1.0 / (len(counts) * counts[inverse])
    return weights


def weighted_quantile(values: np.ndarray, weights: np.ndarray, level: float) -> float:
    """The smallest of (n,) values up to which the weights (n,), of sum 1, reach `level`; the largest if none does."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    position = int(np.searchsorted(reached, level - 1e-12))
    return float(values[order[min(position, len(order) - 1)]])


def fit_chi_interval(
    residual: np.ndarray, spread: np.ndarray, polymer: np.ndarray, coverage: float = COVERAGE
) -> ChiInterval:
    """Conformal half-widths from out-of-fold residuals.

    The score is |residual| / (spread + offset) with offset the median spread, so that in a typical case half of the
    width follows the members' disagreement. Every polymer has a mass of 1/(n + 1), split evenly over its rows, and the
    new polymer's mass lies at infinity; so the quantile under `polymer_weights` is taken at coverage · (1 + 1/n). For n
    exchangeable polymers this guarantees `coverage` for a random row of a new polymer (Lee, Barber & Willett,
    arXiv:2306.06342, 2023; Dunn, Wasserman & Ramdas, J. Am. Stat. Assoc. 118, 2023, 2491), that is, averaged over
    polymers, not over all rows; and only insofar as members that left a polymer out err as the model does on a new one.
    Where there are so few polymers that the guarantee is lower (`promised_coverage`), that is recorded.

    Parameters
    ----------
    residual
        Measured minus predicted χ, (n_rows,).
    spread
        Standard deviation over the members behind each prediction, (n_rows,). Where its median is zero (one member
        each) or below `LEAST_SPREAD` of the median |residual|, all intervals have equal width. For example, if every
        fold is one polymer, its left-out members are the same in all repeats but the model's are not, so a multiple of
        that spread would be no valid width for a new polymer.
    polymer
        Which polymer a row is of, (n_rows,).
    """
    typical, error = float(np.median(spread)), np.abs(residual)
    has_say = typical > LEAST_SPREAD * float(np.median(error))
    spread_weight, offset = (1.0, typical) if has_say else (0.0, 1.0)
    score = error / (spread_weight * spread + offset)
    n_polymers = len(np.unique(polymer))
    coverage = promised_coverage(n_polymers, coverage)
    level = min(1.0, coverage * (1.0 + 1.0 / n_polymers))
    return ChiInterval(coverage, weighted_quantile(score, polymer_weights(polymer), level), offset, spread_weight)


def promised_coverage(n_polymers: int, coverage: float = COVERAGE) -> float:
    """The coverage that intervals from n polymers can guarantee: at most n / (n + 1), less than 0.9 for n < 9."""
    return min(coverage, n_polymers / (n_polymers + 1.0))


def cross_fit_half_widths(
    residual: np.ndarray, spread: np.ndarray, polymer: np.ndarray, fold: np.ndarray, coverage: float = COVERAGE
) -> np.ndarray:
    """Half-widths (n_rows,) of each fold's rows from an interval fitted on the other folds' residuals.

    No interval is thus tested on a residual it was fitted on. One dependence remains: the members behind the other
    folds' residuals were trained on this fold's rows.
    """
    half_width = np.full(len(residual), np.nan)
    for scored in _folds_with_others(fold):
        others = ~scored
        interval = fit_chi_interval(residual[others], spread[others], polymer[others], coverage)
        half_width[scored] = interval.half_width(spread[scored])
    return half_width


def cross_fit_coverage(polymer: np.ndarray, fold: np.ndarray, coverage: float = COVERAGE) -> float:
    """The lowest coverage guaranteed by the intervals of `cross_fit_half_widths`; 0 if no fold has others."""
    others = [len(np.unique(polymer[~scored])) for scored in _folds_with_others(fold)]
    return promised_coverage(min(others, default=0), coverage)


def fit_probability(
    logit: np.ndarray, positive: np.ndarray, polymer: np.ndarray, seed: int, coverage: float = COVERAGE
) -> ProbabilityCalibration:
    """Platt scaling of out-of-fold logits (Platt, Adv. Large Margin Classif., 1999), refitted on resampled polymers.

    Parameters
    ----------
    logit
        Mean over the members that did not learn from the row's polymer, (n_rows,).
    positive
        (n_rows,) bool, both classes present.
    seed
        Of the resampling.
    """
    slope, intercept = _fit_platt(logit, positive)
    rows_of = [np.flatnonzero(polymer == one) for one in np.unique(polymer)]
    generator = np.random.default_rng(seed)
    slopes, intercepts = [], []
    for _ in range(N_RESAMPLES):
        drawn = generator.integers(len(rows_of), size=len(rows_of))
        rows = np.concatenate([rows_of[one] for one in drawn])
        # A resample with a single class cannot determine a sigmoid; the fit on all rows replaces it.
        both = bool(positive[rows].any() and not positive[rows].all())
        a, b = _fit_platt(logit[rows], positive[rows]) if both else (slope, intercept)
        slopes.append(a)
        intercepts.append(b)
    return ProbabilityCalibration(coverage, slope, intercept, np.array(slopes), np.array(intercepts))


def cross_fit_calibration(logit: np.ndarray, positive: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probability and threshold of each row, (n_rows,) each, by sigmoid and best F1 of the other folds.

    Neither is fitted to the fold's own labels, but the members behind the other folds' logits were trained on them;
    that dependence remains. Each fold has its own sigmoid, so probabilities rank rows only within a fold, logits across
    all. Where the other folds hold a single class, the networks' own probability is used; where they hold no rows, the
    threshold is also 0.5.
    """
    probability: np.ndarray = expit(logit)
    threshold = np.full(len(logit), 0.5)
    for scored in _folds_with_others(fold):
        others = positive[~scored]
        a, b = _fit_platt(logit[~scored], others) if others.any() and not others.all() else (1.0, 0.0)
        probability[scored] = expit(a * logit[scored] + b)
        threshold[scored] = best_f1_threshold(others, expit(a * logit[~scored] + b))
    return probability, threshold


def coverage_metrics(
    chi: np.ndarray, predicted: np.ndarray, half_width: np.ndarray, polymer: np.ndarray
) -> dict[str, float]:
    """Share of (n_rows,) rows inside their interval, the mean of that share over polymers, and the widths in χ."""
    inside = np.abs(chi - predicted) <= half_width
    by_polymer = [float(inside[polymer == one].mean()) for one in np.unique(polymer)]
    return {
        "coverage_rows": float(inside.mean()),
        "coverage_polymers": float(np.mean(by_polymer)),
        "median_width": float(np.median(2.0 * half_width)),
        "mean_width": float(np.mean(2.0 * half_width)),
    }


def _folds_with_others(fold: np.ndarray) -> Iterator[np.ndarray]:
    for one in np.unique(fold):
        scored = fold == one
        if not scored.all():
            yield scored


def _fit_platt(logit: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Slope (within its bounds) and intercept of the best sigmoid; its mean is the share of positives."""
    fitted = LogisticRegression(C=PLATT_STRENGTH).fit(logit[:, None], positive)
    slope = float(fitted.coef_[0, 0])
    if FLATTEST <= slope <= STEEPEST:
        return slope, float(fitted.intercept_[0])
    # The likelihood is concave, so the best allowed slope is the bound, with the intercept optimal for it.
    slope = FLATTEST if slope < FLATTEST else STEEPEST
    share, scaled = float(positive.mean()), slope * logit
    # At the first end no probability exceeds the share, at the second none is below it: they bracket the root.
    ends = log_odds(share) - scaled.max() - 1e-9, log_odds(share) - scaled.min() + 1e-9
    return slope, float(brentq(lambda intercept: expit(scaled + intercept).mean() - share, *ends))
