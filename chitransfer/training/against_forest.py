"""A fine-tuned model against a random forest on the polymers both left out: by how much, and is that more than luck?

Called by `training.model_report`. The rows and folds are the same for both, so polymers are drawn for both at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from chitransfer.training.resampling import Estimate, RankedRows, draw_polymers

N_DRAWS = 1000
# Of the draws, so that metrics.json can be worked out again from the tables beside it.
SEED = 0
# Of fewer, not even all on one side is beyond luck: a sign test's p is 2^(1 - n), at most 0.05 from 6 on. An AUC needs
# so many of each class: where one polymer is the only one of its class, every draw that has an AUC holds it.
FEWEST_POLYMERS = 6
FOREST = "  random forest (same features, folds of the first repeat): "
INSTEAD = (
    "take the forest for it, or try more computed χ and, where the encoder is frozen, "
    "training.freeze_encoder_stage2: false"
)


def compare_chi(
    chi: np.ndarray, by_repeat: Sequence[np.ndarray], forest: np.ndarray, polymer: np.ndarray
) -> Estimate | None:
    """The model's MAE of χ less the forest's, with its 95 % interval; ``None`` for fewer than 6 polymers.

    Parameters
    ----------
    chi, forest, polymer
        Measured χ, the forest's and the polymer of each row left out, (n_rows,) each.
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
    """The model's ROC-AUC less the forest's, with its 95 % interval; ``None`` for fewer than 6 polymers of a class.

    Parameters
    ----------
    positive
        Whether each row left out is of the positive class, (n_rows,) bool.
    ranking, forest, polymer
        What the model and the forest rank the rows by, and their polymers, (n_rows,) each.
    """
    place, drawn = _draw(polymer)
    if drawn is None or min(len(np.unique(place[own])) for own in (positive, ~positive)) < FEWEST_POLYMERS:
        return None
    weights = np.vstack([np.ones(drawn.shape[1]), drawn])
    n_positive = weights @ np.bincount(place, weights=positive.astype(float))
    n_negative = weights @ np.bincount(place, weights=(~positive).astype(float))
    of_model, of_forest = (RankedRows.of(place, positive, by).count_wins(weights) for by in (ranking, forest))
    with np.errstate(invalid="ignore"):  # Draws of one class alone have no AUC.
        value, *draws = (of_model - of_forest) / (n_positive * n_negative)
    return Estimate.of(np.array(draws), value=float(value), factor=_widening(drawn.shape[1]))


def describe_difference(difference: Estimate | None, title: str) -> list[str]:
    """A line with the difference and its interval, if there is one."""
    if difference is None:
        return []
    value, low, high = difference.value, difference.low, difference.high
    return [f"    {title}, model minus forest: {value:+.3f} (95 % interval {low:+.3f} to {high:+.3f} over polymers)"]


def judge_forest(what: str, ahead: float, difference: Estimate | None, few: str) -> list[str]:
    """A warning where the forest does significantly better, a note where it may be luck.

    Parameters
    ----------
    what
        What it does better, as ``χ: the random forest has the lower MAE``.
    ahead
        By how much the forest does better; nothing is said where that is not above 0.
    difference
        As compared, with its interval; ``None`` where there are too few polymers for one.
    few
        What there may be too few of to tell, as ``30 polymers``.
    """
    if not ahead > 0:
        return []
    if difference is not None and difference.low * difference.high > 0:
        return [f"warning: {what} on polymers left out, significantly so; {INSTEAD}"]
    return [f"note: {what} on polymers left out, but not significantly: {few} are too few; measure more"]


def _widening(n_polymers: int) -> float:
    """What an interval from draws of few polymers is too narrow by: they scatter by √((n − 1)/n), and not as t does."""
    return float(student.ppf(0.975, n_polymers - 1) / norm.ppf(0.975) * np.sqrt(n_polymers / (n_polymers - 1)))


def _draw(polymer: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    distinct, place = np.unique(polymer, return_inverse=True)
    if len(distinct) < FEWEST_POLYMERS:
        return place, None
    return place, draw_polymers(len(distinct), N_DRAWS, SEED)
