"""Where a model can be trusted: polymers like those it was cross-validated on, solvents and temperatures it has seen.

Fitted by `training.finetune`, stored in the checkpoint, used by `predict`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chitransfer.chemistry.similarity import tanimoto


@dataclass(frozen=True)
class Neighbours:
    """Fingerprints of measured training polymers, and how similar a polymer must be to one of them.

    Attributes
    ----------
    polymers
        Identities, (n_training,).
    packed
        Fingerprint bits, (n_training, n_bits / 8) uint8.
    smallest_similarity
        Tanimoto similarity in 0 … 1 to the nearest training polymer, reached by 95 % of the polymers left out in
        cross-validation: above it, the model's stated errors were measured on polymers at least as dissimilar. Where
        nothing was measured, for a single polymer or polymers always in one fold, it is 1: only a training polymer's
        fingerprint reaches that.
    """

    polymers: tuple[str, ...]
    packed: np.ndarray
    smallest_similarity: float

    @classmethod
    def fit(cls, polymers: Sequence[str], fingerprints: np.ndarray, folds: np.ndarray) -> Neighbours:
        """From training polymers' counts or bits (n, n_bits) and their cross-validation folds (n_repeats, n)."""
        bits = fingerprints > 0
        similarity = tanimoto(bits, bits)
        reached = []
        for repeat in folds:
            apart = repeat[:, None] != repeat[None, :]
            # If all are in one fold, no left-out polymer had a training polymer to be near to.
            if apart.any():
                reached.append(np.where(apart, similarity, 0.0).max(axis=1))
        return cls(
            polymers=tuple(polymers),
            packed=np.packbits(bits, axis=1),
            smallest_similarity=float(np.quantile(np.concatenate(reached), 0.05)) if reached else 1.0,
        )

    def nearest(self, fingerprints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest training polymer's index (n,) and its Tanimoto similarity (n,) for counts or bits (n, n_bits)."""
        known = np.unpackbits(self.packed, axis=1, count=fingerprints.shape[1]).astype(bool)
        similarity = tanimoto(fingerprints > 0, known)
        index = similarity.argmax(axis=1)
        return index, similarity[np.arange(len(index)), index]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {**vars(self), "polymers": list(self.polymers)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Neighbours:
        """The inverse of `to_dict`."""
        return cls(
            polymers=tuple(values["polymers"]),
            packed=values["packed"].numpy(),
            smallest_similarity=float(values["smallest_similarity"]),
        )


@dataclass(frozen=True)
class ApplicabilityDomain:
    """What the model was cross-validated on.

    Attributes
    ----------
    measured
        All measured polymers.
    chi
        Those with measured χ, often far fewer; ``None`` if there are none, or in models of releases that did not store
        them.
    solvents
        Canonical SMILES seen in training.
    coldest, hottest
        Kelvin, of the measured χ; NaN without any.
    """

    measured: Neighbours
    chi: Neighbours | None
    solvents: frozenset[str]
    coldest: float
    hottest: float

    @classmethod
    def fit(
        cls, measured: Neighbours, chi: Neighbours | None, solvents: Sequence[str], temperatures: np.ndarray
    ) -> ApplicabilityDomain:
        """From the polymers, the solvents of all rows and the temperatures of the measured χ in kelvin."""
        return cls(
            measured=measured,
            chi=chi,
            solvents=frozenset(solvents),
            coldest=float(temperatures.min()) if len(temperatures) else float("nan"),
            hottest=float(temperatures.max()) if len(temperatures) else float("nan"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            **self.measured.to_dict(),
            "chi": None if self.chi is None else self.chi.to_dict(),
            "solvents": sorted(self.solvents),
            "coldest": self.coldest,
            "hottest": self.hottest,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ApplicabilityDomain:
        """The inverse of `to_dict`."""
        chi = values.get("chi")
        return cls(
            measured=Neighbours.from_dict(values),
            chi=None if chi is None else Neighbours.from_dict(chi),
            solvents=frozenset(values["solvents"]),
            coldest=float(values["coldest"]),
            hottest=float(values["hottest"]),
        )
