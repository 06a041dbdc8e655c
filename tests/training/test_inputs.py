"""Features that are kept without their zeros and read as if they were dense; χ rows side by side, pair by pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch import Tensor

from chitransfer.chemistry.features import FeatureRecipe
from chitransfer.data.assemble import Dataset, Rows
from chitransfer.data.tables import Table
from chitransfer.model.network import inverse_temperature
from chitransfer.model.scalers import ChiScaler, FeatureScaler
from chitransfer.training.inputs import FeatureRows, FeatureTable, PairTable, group_by_pair, scale_features


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


def test_scalers_see_each_structure_and_solvent_of_the_training_rows_once(
    rng: np.random.Generator, tiny_dataset: Dataset
) -> None:
    """Whatever the number of their temperatures; those that stand in held-out rows alone stay unseen."""
    recipe = FeatureRecipe(fingerprint_bits=6, with_solvent=True)
    polymer, solvent = (rng.normal(2.0, 3.0, (n, recipe.n_structure_features)).astype(np.float32) for n in (5, 4))
    dataset = replace(
        tiny_dataset,
        recipe=recipe,
        polymer_features=sparse.csr_array(polymer),
        solvent_features=sparse.csr_array(solvent),
    )
    training = np.array([True] * 6 + [False] * 2)
    rows = replace(
        tiny_dataset.stage1, structure=np.array([0, 0, 0, 1, 2, 0, 3, 4]), solvent=np.array([1, 1, 1, 1, 0, 1, 2, 0])
    )
    table = scale_features(dataset, training, rows, torch.device("cpu"))
    for scaler, scaled, features, seen in (
        (table.polymer_scaler, table.polymer.stored, polymer, [0, 1, 2]),
        (table.solvent_scaler, table.solvent.stored, solvent, [0, 1]),
    ):
        np.testing.assert_allclose(scaler.mean, features[seen, 6:].mean(0), rtol=1e-5)
        np.testing.assert_allclose(scaler.scale, features[seen, 6:].std(0), rtol=1e-5)
        np.testing.assert_array_equal(scaled[:, :6].toarray(), features[:, :6])


def chi_rows(rng: np.random.Generator, temperatures_a_pair: list[int]) -> Rows:
    """Pairs with so many temperatures each, shuffled; the solvent alternates."""
    pair = rng.permutation(np.repeat(np.arange(len(temperatures_a_pair)), temperatures_a_pair))
    table = Table("chi", "made here", pd.DataFrame(), pd.DataFrame(), "", 0)
    n = len(pair)
    return Rows(pair // 2, pair % 2, pair // 2, rng.uniform(250.0, 400.0, n), rng.normal(size=n), table)


def group(rows: Rows) -> PairTable:
    chosen = np.ones(len(rows), dtype=bool)
    return group_by_pair(rows, chosen, ChiScaler(0.0, 1.0), 298.15, torch.device("cpu"))


@pytest.mark.parametrize(
    ("temperatures_a_pair", "shape"),
    [
        ([3, 1, 16, 2], (4, 16)),  # few
        ([20, 30, 25], (3, 30)),  # many, as all others have
        ([1] * 600 + [301], (619, 16)),  # one pair with far more
        ([10] * 50 + [100, 44], (53, 52)),
    ],
)
def test_every_row_has_one_place_and_no_pair_pads_all_others(
    rng: np.random.Generator, temperatures_a_pair: list[int], shape: tuple[int, int]
) -> None:
    rows = chi_rows(rng, temperatures_a_pair)
    table = group(rows)
    assert tuple(table.tau.shape) == shape
    place, column = np.nonzero(table.mask.numpy())
    tau = inverse_temperature(torch.tensor(rows.temperature), 298.15).float().numpy()
    found = np.stack(
        [table.structure[place], table.solvent[place], table.tau[place, column], table.target[place, column]]
    )
    wanted = np.stack([rows.structure, rows.solvent, tau, rows.value.astype(np.float32)])
    np.testing.assert_array_equal(found[:, np.lexsort(found)], wanted[:, np.lexsort(wanted)])
    if len(table) == len(temperatures_a_pair):  # In the order of the pairs, and of the rows within them.
        order = np.argsort(rows.structure * 2 + rows.solvent, kind="stable")
        np.testing.assert_array_equal(table.target.numpy()[place, column], rows.value[order].astype(np.float32))
