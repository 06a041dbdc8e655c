"""Draws of polymers with replacement: what they score, and the intervals they give.

Called by `training.against_forest` for a model, by `evidence` for searches. Rows of one polymer resemble each other, so
polymers are what is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Draws times rows that are ranked at once, 64 MB.
MOST_RANKED = 8_000_000


def draw_polymers(n_polymers: int, n_draws: int, random_state: int) -> np.ndarray:
    """Bootstrap counts: how often each polymer is drawn, (n_draws, n_polymers) float64; rows sum to n_polymers."""
    rng = np.random.default_rng(random_state)
    return rng.multinomial(n_polymers, np.full(n_polymers, 1.0 / n_polymers), size=n_draws).astype(float)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, from draws of polymers."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: np.ndarray, value: float | None = None, factor: float = 1.0) -> Estimate:
        """From the 2.5 % and 97.5 % points of draws, (n_draws,); draws that are not defined are left out.

        Parameters
        ----------
        value
            The number itself, by default the mean of the draws.
        factor
            What the interval's ends move away from `value` by: less than 1 where a draw is a smaller sample than the
            data are, more for few polymers.
        """
        defined = draws[np.isfinite(draws)]
        if not len(defined):
            return cls(float("nan"), float("nan"), float("nan"))
        centre = float(defined.mean()) if value is None else value
        low, high = centre + factor * (np.quantile(defined, [0.025, 0.975]) - centre)
        return cls(centre, float(low), float(high))

    def widened(self, half_width: float) -> Estimate:
        """With the half width of an independent source of error added to both sides, in quadrature."""
        low, high = (float(np.hypot(self.value - end, half_width)) for end in (self.low, self.high))
        return Estimate(self.value, self.value - low, self.value + high)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class RankedRows:
    """Solubility rows of one repeat in increasing order of probability: what an AUC needs.

    Attributes
    ----------
    polymer
        Place of the row's polymer, (n_rows,) int64.
    positive
        Whether the row is of the positive class, (n_rows,) bool.
    starts
        Where each run of equal probabilities begins, (n_runs,) int64.
    """

    polymer: np.ndarray
    positive: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, polymer: np.ndarray, positive: np.ndarray, probability: np.ndarray) -> RankedRows:
        """Rows in any order, (n_rows,) each; `probability` is whatever ranks them."""
        order = np.argsort(probability, kind="stable")
        p = probability[order]
        return cls(polymer[order], positive[order], starts=np.flatnonzero(np.append(True, p[1:] > p[:-1])))

    def count_wins(self, weights: np.ndarray) -> np.ndarray:
        """Weighted (positive row, negative row) pairs that are ranked rightly, ties half, (n_draws,).

        Every row counts as often as its polymer is drawn, `weights` (n_draws, n_polymers); Mann and Whitney's U.
        """
        step = max(1, MOST_RANKED // max(1, len(self.polymer)))
        parts = [self._count_some(weights[start : start + step]) for start in range(0, len(weights), step)]
        return np.concatenate(parts)

    def _count_some(self, weights: np.ndarray) -> np.ndarray:
        rows = weights[:, self.polymer]  # (draw, row)
        positive = np.add.reduceat(rows * self.positive, self.starts, axis=1)  # (draw, run)
        negative = np.add.reduceat(rows * ~self.positive, self.starts, axis=1)
        below = np.cumsum(negative, axis=1) - 0.5 * negative
        return (positive * below).sum(axis=1)
