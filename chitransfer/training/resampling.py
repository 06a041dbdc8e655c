"""Polymers drawn with replacement: scores of the draws, and the intervals they give.

Called by `training.against_forest` for a model and by `evidence` for searches. Rows of one polymer resemble each other,
so polymers are the unit that is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Largest product of draws and rows ranked at once, 64 MB.
MOST_RANKED = 8_000_000


def draw_polymers(n_polymers: int, n_draws: int, random_state: int) -> np.ndarray:
    """Bootstrap counts: how often each polymer is drawn, (n_draws, n_polymers) float64; rows sum to n_polymers."""
    rng = np.random.default_rng(random_state)
    return rng.multinomial(n_polymers, np.full(n_polymers, 1.0 / n_polymers), size=n_draws).astype(float)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval from draws of polymers."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: np.ndarray, value: float | None = None, factor: float = 1.0) -> Estimate:
        """From the 2.5 % and 97.5 % points of draws, (n_draws,); undefined draws are ignored.

        Parameters
        ----------
        value
            The number itself; default: the mean of the draws.
        factor
            Scales the distance of the interval's ends from `value`: below 1 where a draw is a smaller sample than the
            data, above 1 for few polymers.
        """
        defined = draws[np.isfinite(draws)]
        if not len(defined):
            return cls(float("nan"), float("nan"), float("nan"))
        centre = float(defined.mean()) if value is None else value
        low, high = centre + factor * (np.quantile(defined, [0.025, 0.975]) - centre)
        return cls(centre, float(low), float(high))

    def widened(self, half_width: float) -> Estimate:
        """The same with an independent error's half-width added to both sides in quadrature."""
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
        Index of the row's polymer, (n_rows,) int64.
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
        """From rows in any order, (n_rows,) each, ranked by `probability`, which may be any score."""
        order = np.argsort(probability, kind="stable")
        p = probability[order]
        return cls(polymer[order], positive[order], starts=np.flatnonzero(np.append(True, p[1:] > p[:-1])))

    def count_wins(self, weights: np.ndarray) -> np.ndarray:
        """Weighted number of (positive row, negative row) pairs ranked correctly, ties counting half, (n_draws,).

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
