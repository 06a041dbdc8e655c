"""Applicability: similarities against RDKit, the threshold, and packing."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import DataStructs
from rdkit.DataStructs import ExplicitBitVect

from chitransfer.model.domain import ApplicabilityDomain


def to_bits(row: np.ndarray) -> ExplicitBitVect:
    """RDKit's bit vector of a row of counts."""
    vector = ExplicitBitVect(len(row))
    vector.SetBitsFromList(np.flatnonzero(row).tolist())
    return vector


@pytest.mark.parametrize("n_bits", [64, 100])
def test_nearest_agrees_with_rdkit(n_bits: int) -> None:
    generator = np.random.default_rng(0)
    counts = generator.poisson(0.2, (30, n_bits)) / 3.0
    queries = generator.poisson(0.2, (9, n_bits)).astype(float)
    names = [f"polymer {k}" for k in range(30)]
    folds = np.array([np.arange(30) % 3])
    domain = ApplicabilityDomain.fit(names, counts, folds, ["O"], np.array([300.0, 350.0]))
    domain = ApplicabilityDomain.from_dict({**domain.to_dict(), "packed": _AsTensor(domain.packed)})
    index, similarity = domain.nearest(queries)
    known = [to_bits(row) for row in counts]
    for position, row in enumerate(queries):
        expected = DataStructs.BulkTanimotoSimilarity(to_bits(row), known)
        assert similarity[position] == pytest.approx(max(expected), abs=1e-6)
        assert expected[index[position]] == pytest.approx(max(expected))
    assert (domain.coldest, domain.hottest) == (300.0, 350.0)


def test_threshold_is_what_left_out_polymers_reach() -> None:
    generator = np.random.default_rng(1)
    counts = generator.poisson(0.4, (40, 64))
    folds = np.stack([np.arange(40) % 4, np.arange(40) // 10])
    domain = ApplicabilityDomain.fit([str(k) for k in range(40)], counts, folds, [], np.zeros(0))
    reached = []
    for repeat in folds:
        for one in range(40):
            others = [to_bits(counts[k]) for k in range(40) if repeat[k] != repeat[one]]
            reached.append(max(DataStructs.BulkTanimotoSimilarity(to_bits(counts[one]), others)))
    assert np.mean(np.array(reached) >= domain.smallest_similarity - 1e-6) == pytest.approx(0.95, abs=0.02)
    assert np.isnan(domain.coldest)


class _AsTensor:
    """Stands for a tensor read from a checkpoint."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def numpy(self) -> np.ndarray:
        """The values."""
        return self._values
