"""Selection-bias corrected values of the best of several trials, with intervals, from sums per polymer.

Called by `evidence.overtuning`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chitransfer.errors import StudyError
from chitransfer.evidence.outcomes import PolymerSums, objective_of_draws
from chitransfer.sections import ObjectiveSettings
from chitransfer.training.resampling import Estimate, draw_polymers

N_DRAWS = 1000


@dataclass(frozen=True)
class Correction:
    """BBC-CV: the value of *choosing the best of these trials*, on polymers not used for the choice.

    Attributes
    ----------
    objective
        The corrected objective.
    gain
        Default configuration's objective minus the chosen trial's, on the same left-out polymers (positive: the search
        helped); ``None`` when the default was not tried.
    components
        Corrected metrics.
    chosen
        How often each trial was chosen, by position.
    """

    objective: Estimate
    gain: Estimate | None
    components: dict[str, Estimate]
    chosen: np.ndarray


def correct_for_selection(
    sums: Sequence[PolymerSums],
    stage1_mae: Sequence[float],
    weights: ObjectiveSettings,
    *,
    default: int | None = None,
    n_draws: int = N_DRAWS,
    random_state: int = 0,
) -> Correction:
    """Bootstrap bias corrected cross-validation over polymers (Tsamardinos et al. 2018, doi 10.1007/s10994-018-5714-4).

    Polymers are drawn with replacement; the trial with the lowest objective on the drawn ones is scored on those not
    drawn. The corrected value is the mean over draws, but the median for R² and for objectives that weight it. For its
    interval see `out_of_bag_factor`.

    Parameters
    ----------
    sums, stage1_mae
        Of each trial, over the same polymers.
    default
        Position of the default configuration among the trials.

    Raises
    ------
    StudyError
        No draw defines every term of the objective for all trials, both on the drawn and on the left-out polymers.
    """
    inside = draw_polymers(len(sums[0].polymers), n_draws, random_state)
    outside = (inside == 0).astype(float)
    objective_inside = _score_draws(sums, stage1_mae, weights, inside)  # (trial, draw)
    objective_outside = _score_draws(sums, stage1_mae, weights, outside)
    usable = np.isfinite(objective_inside).all(axis=0) & np.isfinite(objective_outside).all(axis=0)
    if not usable.any():
        raise StudyError(
            f"{len(sums[0].polymers)} polymers are too few to correct the best trial for selection bias: no bootstrap "
            "draw of them defines every part of the objective"
        )
    choice = objective_inside[:, usable].argmin(axis=0)
    draws = np.arange(int(usable.sum()))
    corrected = objective_outside[:, usable][choice, draws]
    factor = out_of_bag_factor(outside[usable])
    gain = None
    if default is not None:
        gain = _typical(objective_outside[default, usable] - corrected, factor, has_r2=weights.exp_r2 > 0)
        if (choice == default).mean() > 0.025:
            # This often the gain is exactly 0, so the interval, although shrunk towards the mean, must contain 0.
            gain = Estimate(gain.value, min(gain.low, 0.0), max(gain.high, 0.0))
    chosen, place = np.unique(choice, return_inverse=True)
    components = [sums[number].components(outside) for number in chosen]
    return Correction(
        objective=_typical(corrected, factor, has_r2=weights.exp_r2 > 0),
        gain=gain,
        components={
            name: _typical(
                np.stack([parts[name] for parts in components])[:, usable][place, draws],
                factor,
                has_r2=name == "exp_r2",
            )
            for name in components[0]
        },
        chosen=np.bincount(choice, minlength=len(sums)) / len(draws),
    )


def out_of_bag_factor(outside: np.ndarray) -> float:
    """Factor that converts the spread of out-of-bag scores into that of a score on all polymers.

    A draw scores only the m of n polymers that it leaves out, about 37 %, so its score varies more than one on all n
    does. Draws of m without replacement are the delete-d jackknife with d = n − m, whose variance is m/(n − m) times
    that of the draws (Shao & Wu 1989, doi 10.1214/aos/1176347263): the factor is √(m/(n − m)), about 0.76. If many
    trials are alike, the interval is still too wide, by up to a half: draws choose different trials, whose mean varies
    less than a single trial's score.

    Parameters
    ----------
    outside
        1 where a draw leaves a polymer out, (n_draws, n_polymers).
    """
    share = float(outside.mean())
    return float(np.sqrt(share / (1.0 - share)))


def _typical(draws: np.ndarray, factor: float, *, has_r2: bool) -> Estimate:
    """The mean of draws, but the median with R²: polymers that hardly differ in χ can make R² arbitrarily low."""
    defined = draws[np.isfinite(draws)]
    return Estimate.of(draws, float(np.median(defined)) if has_r2 and len(defined) else None, factor)


def paired_standard_errors(
    sums: Sequence[PolymerSums],
    stage1_mae: Sequence[float],
    weights: ObjectiveSettings,
    reference: int,
    random_state: int,
    n_draws: int = N_DRAWS,
) -> np.ndarray:
    """Bootstrap standard error, over polymers, of each trial's objective minus the reference trial's, (n_trials,)."""
    drawn = draw_polymers(len(sums[0].polymers), n_draws, random_state)
    values = _score_draws(sums, stage1_mae, weights, drawn)
    return np.nanstd(values - values[reference], axis=1)


def _score_draws(
    sums: Sequence[PolymerSums], stage1_mae: Sequence[float], weights: ObjectiveSettings, draws: np.ndarray
) -> np.ndarray:
    """The objective of every trial on every draw (n_draws, n_polymers): (n_trials, n_draws)."""
    with_auc = weights.sol_auc > 0
    return np.stack(
        [
            objective_of_draws(own.components(draws, with_auc=with_auc), mae, weights)
            for own, mae in zip(sums, stage1_mae, strict=True)
        ]
    )
