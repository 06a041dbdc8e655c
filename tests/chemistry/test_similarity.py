"""Tanimoto similarity against RDKit, empty fingerprints included."""

from __future__ import annotations

import numpy as np
from rdkit import DataStructs
from scipy import sparse

from chitransfer.chemistry.similarity import tanimoto


def to_vector(bits: np.ndarray) -> DataStructs.ExplicitBitVect:
    """RDKit's bit vector of a row."""
    vector = DataStructs.ExplicitBitVect(len(bits))
    vector.SetBitsFromList(np.flatnonzero(bits).tolist())
    return vector


def test_every_pair_agrees_with_rdkit_dense_or_sparse() -> None:
    generator = np.random.default_rng(3)
    left, right = generator.random((5, 64)) < 0.3, generator.random((7, 64)) < 0.3
    left[0] = right[0] = False
    vectors = [to_vector(row) for row in right]
    expected = np.array([DataStructs.BulkTanimotoSimilarity(to_vector(row), vectors) for row in left])
    expected[0, 0] = 0.0  # Of two empty vectors; 1 in RDKit 2025.9.
    for kind in (np.asarray, sparse.csr_array):
        np.testing.assert_allclose(tanimoto(kind(left), kind(right)), expected, rtol=1e-6)
