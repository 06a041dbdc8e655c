"""Features that are kept without their zeros and read as if they were dense."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from chitransfer.model.scalers import FeatureScaler
from chitransfer.training.inputs import FeatureRows, FeatureTable


def random_features(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    return (rng.standard_normal((n, width)) * (rng.random((n, width)) < 0.2)).astype(np.float32)


def rows_of(dense: np.ndarray) -> FeatureRows:
    return FeatureRows(sparse.csr_array(dense), torch.device("cpu"))


def table_of(polymer: np.ndarray, solvent: np.ndarray) -> FeatureTable:
    scaler = FeatureScaler(0, np.zeros(0, np.float32), np.ones(0, np.float32))
    return FeatureTable(rows_of(polymer), rows_of(solvent), scaler, scaler)


@pytest.mark.parametrize("solvent_width", [0, 7])
@pytest.mark.parametrize("shape", [(0,), (6,), (3, 4), (2, 0)])
def test_pairs_are_gathered_as_from_a_dense_table(
    rng: np.random.Generator, shape: tuple[int, ...], solvent_width: int
) -> None:
    polymer, solvent = random_features(rng, 9, 30), random_features(rng, 4, solvent_width)
    structure = torch.from_numpy(rng.integers(0, 9, shape))
    of_solvent = torch.from_numpy(rng.integers(0, 4, shape))
    table = table_of(polymer, solvent)
    wanted = np.concatenate([polymer[structure.numpy()], solvent[of_solvent.numpy()]], axis=-1)
    assert table.n_features == wanted.shape[-1]
    gathered = table.gather(structure, of_solvent)
    assert gathered.dtype == torch.float32
    np.testing.assert_array_equal(gathered.numpy(), wanted)
    columns = torch.arange(0, table.n_features, 3)
    np.testing.assert_array_equal(table.keep(columns).gather(structure, of_solvent).numpy(), wanted[..., columns])


def test_present_are_the_features_that_some_row_has(rng: np.random.Generator) -> None:
    dense = random_features(rng, 12, 40)
    stored = sparse.csr_array(dense)
    stored.data[:3] = 0.0  # zeros that are stored
    dense = stored.toarray()
    index: Tensor = torch.tensor([0, 3, 3, 7])
    present = FeatureRows(stored, torch.device("cpu")).present(index)
    np.testing.assert_array_equal(present.numpy(), (dense[index.numpy()] != 0).any(axis=0))
