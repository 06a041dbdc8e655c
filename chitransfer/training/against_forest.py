"""A fine-tuned model against a random forest on the polymers both left out: the difference and its 95 % interval.

Called by `training.model_report`. Both predict the same rows under the same folds, so polymers are resampled jointly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from chitransfer.training.resampling import Estimate, RankedRows, draw_polymers

N_DRAWS = 1000
# Seed of the resampling: fixed, so that metrics.json can be recomputed from the tables beside it.
SEED = 0
# With fewer polymers even a unanimous result is not significant: a sign test's p is 2^(1 - n), at most 0.05 from 6 on.
# An AUC needs as many of each class: with a single polymer in a class, every draw that has an AUC contains it.
FEWEST_POLYMERS = 6
FOREST = "  random forest (same features, folds of the first repeat): "
INSTEAD = (
    "use the forest instead, or try more computed χ and, if the encoder is frozen, training.freeze_encoder_stage2: "
    "false"
)


def compare_chi(
    chi: np.ndarray, by_repeat: Sequence[np.ndarray], forest: np.ndarray, polymer: np.ndarray
) -> Estimate | None:
    """The model's MAE of χ minus the forest's, with its 95 % interval; ``None`` for fewer than 6 polymers.

    Parameters
    ----------
    chi, forest, polymer
        Measured χ, the forest's χ, and the polymer of each left-out row, (n_rows,) each.
    by_repeat
        The model's χ in each repeat, (n_rows,) each; their MAEs are averaged.
    """
    place, drawn = _draw(polymer)
    if drawn is None:
        return None
    more = np.mean([np.abs(predicted - chi) for predicted in by_repeat], axis=0) - np.abs(forest - chi)
    sums, counts = np.bincount(place, weights=more), np.bincount(place)
    return Estimate.of(drawn @ sums / (drawn @ counts), value=float(more.mean()), factor=_widening(len(counts)))


def compare_solubility(
    positive: np.ndarray, ranking: np.ndarray, forest: np.ndarray, polymer: np.ndarray
) -> Estimate | None:
    """The model's ROC-AUC minus the forest's, with its 95 % interval; ``None`` for fewer than 6 polymers of a class.

    Parameters
    ----------
    positive
        Whether each left-out row is of the positive class, (n_rows,) bool.
    ranking, forest, polymer
        The values by which the model and the forest rank the rows, and the rows' polymers, (n_rows,) each.
    """
    place, drawn = _draw(polymer)
    if drawn is None or min(len(np.unique(place[own])) for own in (positive, ~positive)) < FEWEST_POLYMERS:
        return None
    weights = np.vstack([np.ones(drawn.shape[1]), drawn])
    n_positive = weights @ np.bincount(place, weights=positive.astype(float))
    n_negative = weights @ np.bincount(place, weights=(~positive).astype(float))
    of_model, of_forest = (RankedRows.of(place, positive, by).count_wins(weights) for by in (ranking, forest))
    with np.errstate(invalid="ignore"):  # Draws with a single class have no AUC.
        value, *draws = (of_model - of_forest) / (n_positive * n_negative)
    return Estimate.of(np.array(draws), value=float(value), factor=_widening(drawn.shape[1]))


def describe_difference(difference: Estimate | None, title: str) -> list[str]:
    """A line with the difference and its interval, if there is one."""
    if difference is None:
        return []
    value, low, high = difference.value, difference.low, difference.high
    return [f"    {title}, model minus forest: {value:+.3f} (95 % interval {low:+.3f} to {high:+.3f} over polymers)"]


def judge_forest(what: str, ahead: float, difference: Estimate | None, few: str) -> list[str]:
    """A warning where the forest is significantly better, a note where the difference may be chance.

    Parameters
    ----------
    what
        What the forest does better, as ``χ: the random forest has the lower MAE``.
    ahead
        By how much the forest is better; if not above 0, there are no lines.
    difference
        Result of the comparison, with its interval; ``None`` where there are too few polymers.
    few
        What there may be too few of for a verdict, as ``30 polymers``.
    """
    if not ahead > 0:
        return []
    if difference is not None and difference.low * difference.high > 0:
        return [f"warning: {what} on polymers left out, significantly so; {INSTEAD}"]
    return [f"note: {what} on polymers left out, but not significantly: {few} are too few to tell; measure more"]


def _widening(n_polymers: int) -> float:
    """Factor to widen an interval of few polymers: draws scatter less, by √((n − 1)/n), and do not follow t."""
    return float(student.ppf(0.975, n_polymers - 1) / norm.ppf(0.975) * np.sqrt(n_polymers / (n_polymers - 1)))


def _draw(polymer: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    distinct, place = np.unique(polymer, return_inverse=True)
    if len(distinct) < FEWEST_POLYMERS:
        return place, None
    return place, draw_polymers(len(distinct), N_DRAWS, SEED)
