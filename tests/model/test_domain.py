"""Applicability: similarities against RDKit, the threshold, and packing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rdkit import DataStructs
from rdkit.DataStructs import ExplicitBitVect

from chitransfer.model.domain import ApplicabilityDomain, Neighbours


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
    measured = Neighbours.fit(names, counts, folds)
    chi = Neighbours.fit(names[:7], counts[:7], folds[:, :7])
    domain = ApplicabilityDomain.fit(measured, chi, ["O"], np.array([300.0, 350.0]))
    domain = ApplicabilityDomain.from_dict(_as_read(domain.to_dict()))
    assert domain.chi is not None
    assert domain.chi.polymers == tuple(names[:7])
    index, similarity = domain.measured.nearest(queries)
    known = [to_bits(row) for row in counts]
    for position, row in enumerate(queries):
        expected = DataStructs.BulkTanimotoSimilarity(to_bits(row), known)
        assert similarity[position] == pytest.approx(max(expected), abs=1e-6)
        assert expected[index[position]] == pytest.approx(max(expected))
    assert (domain.coldest, domain.hottest) == (300.0, 350.0)
    assert domain.solvents == {"O"}


def test_threshold_is_what_left_out_polymers_reach() -> None:
    generator = np.random.default_rng(1)
    counts = generator.poisson(0.4, (40, 64))
    folds = np.stack([np.arange(40) % 4, np.arange(40) // 10])
    measured = Neighbours.fit([str(k) for k in range(40)], counts, folds)
    reached = []
    for repeat in folds:
        for one in range(40):
            others = [to_bits(counts[k]) for k in range(40) if repeat[k] != repeat[one]]
            reached.append(max(DataStructs.BulkTanimotoSimilarity(to_bits(counts[one]), others)))
    assert np.mean(np.array(reached) >= measured.smallest_similarity - 1e-6) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("folds", [np.zeros((3, 1), int), np.full((2, 1), 4)])
def test_one_polymer_vouches_for_itself_alone(folds: np.ndarray) -> None:
    bits = np.array([[1, 1, 0, 0]])
    chi = Neighbours.fit(["a"], bits, folds)
    assert chi.smallest_similarity == 1.0
    _, similarity = chi.nearest(np.array([[3, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]]))
    assert (similarity >= chi.smallest_similarity).tolist() == [True, False, False]


def test_repeats_with_all_polymers_in_one_fold_say_nothing() -> None:
    bits = np.array([[1, 1, 1, 0], [1, 1, 0, 1], [1, 1, 1, 1]])
    together, apart = np.array([[2, 2, 2]]), np.array([[0, 1, 1]])
    assert Neighbours.fit(list("abc"), bits, together).smallest_similarity == 1.0
    alone = Neighbours.fit(list("abc"), bits, apart).smallest_similarity
    assert alone > 0.0
    assert Neighbours.fit(list("abc"), bits, np.vstack([together, apart])).smallest_similarity == alone


def test_a_model_of_a_release_without_chi_neighbours_can_be_read() -> None:
    measured = Neighbours.fit(["a", "b"], np.eye(2), np.array([[0, 1]]))
    kept = _as_read(ApplicabilityDomain.fit(measured, None, ["O"], np.zeros(0)).to_dict())
    del kept["chi"]
    domain = ApplicabilityDomain.from_dict(kept)
    assert domain.chi is None
    assert domain.measured.polymers == ("a", "b")
    assert np.isnan(domain.coldest)


def _as_read(values: dict[str, Any]) -> dict[str, Any]:
    """The values as a checkpoint gives them back."""
    inner = values["chi"] and _as_read({"chi": None, **values["chi"]})
    return {**values, "packed": _AsTensor(values["packed"]), "chi": inner}


class _AsTensor:
    """Stands for a tensor read from a checkpoint."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def numpy(self) -> np.ndarray:
        """The values."""
        return self._values
