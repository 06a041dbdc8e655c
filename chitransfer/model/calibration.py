"""Calibration of raw predictions: half-widths of χ intervals, calibrated probabilities and their intervals.

Fitted by `training.conformal` on left-out polymers; stored in the checkpoint; applied by `predict`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

# Coverage that intervals guarantee if there are enough polymers.
COVERAGE = 0.9


@dataclass(frozen=True)
class ChiInterval:
    """Prediction intervals of χ by conformal prediction.

    The half-width is `factor` · (`spread_weight` · spread + `offset`): the members' disagreement shows where errors are
    likely, residuals on left-out polymers show how large they are.

    Attributes
    ----------
    coverage
        Share of a polymer's measured values expected inside, on average over polymers like those in the tables.
    spread_weight
        0 makes every interval equally wide.
    """

    coverage: float
    factor: float
    offset: float
    spread_weight: float

    def half_width(self, spread: np.ndarray) -> np.ndarray:
        """Half-widths of χ intervals for the members' standard deviations of χ, same shape."""
        return self.factor * (self.spread_weight * spread + self.offset)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ChiInterval:
        """The inverse of `to_dict`."""
        return cls(**{key: float(value) for key, value in values.items()})


@dataclass(frozen=True)
class ProbabilityCalibration:
    """Platt's sigmoid of the mean logit, refitted on resampled polymers for intervals.

    Attributes
    ----------
    coverage
        Of the interval of P over members and resampled tables.
    slope, intercept
        P = 1 / (1 + exp(−(slope · logit + intercept))).
    slopes, intercepts
        The same for every resampled table, (n_resamples,).
    """

    coverage: float
    slope: float
    intercept: float
    slopes: np.ndarray
    intercepts: np.ndarray

    def probability(self, logit: np.ndarray) -> np.ndarray:
        """Calibrated probability of mean logits, same shape."""
        result: np.ndarray = expit(self.slope * logit + self.intercept)
        return result

    def interval(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends (n,) for members' logits (n_members, n).

        Members and resampled calibrations are paired cyclically until each calibration has been used and all members
        equally often, so that both sources of uncertainty are included. The interval always contains the calibrated
        probability itself.
        """
        n_members, n_resamples = len(logits), len(self.slopes)
        pair = np.arange(n_members * math.ceil(n_resamples / n_members))
        resample = pair % n_resamples
        drawn = self.slopes[resample, None] * logits[pair % n_members] + self.intercepts[resample, None]  # (pair, n)
        tail = (1.0 - self.coverage) / 2.0
        low, high = np.quantile(drawn, [tail, 1.0 - tail], axis=0)
        centre = self.slope * logits.mean(axis=0) + self.intercept
        return expit(np.minimum(low, centre)), expit(np.maximum(high, centre))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ProbabilityCalibration:
        """The inverse of `to_dict`."""
        return cls(
            coverage=float(values["coverage"]),
            slope=float(values["slope"]),
            intercept=float(values["intercept"]),
            slopes=values["slopes"].numpy(),
            intercepts=values["intercepts"].numpy(),
        )
