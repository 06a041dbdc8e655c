"""A dataset in the form a device reads: features scaled once, rows grouped by polymer–solvent pair.

Built by `training.stage1`; read by `training.stage2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from chitransfer.data.assemble import Dataset, Rows
from chitransfer.model.network import inverse_temperature
from chitransfer.model.scalers import ChiScaler, FeatureScaler

# A pair with more temperatures than this, and than this multiple of the mean, fills several entries of a `PairTable`.
MANY_TEMPERATURES = 16
TIMES_THE_MEAN = 4


class Pairs(Protocol):
    """Polymer–solvent pairs by index, (n,) int64 each."""

    @property
    def structure(self) -> Tensor:
        """Rows of `FeatureTable.polymer`."""

    @property
    def solvent(self) -> Tensor:
        """Rows of `FeatureTable.solvent`."""


@dataclass(frozen=True)
class FeatureRows:
    """Scaled features of structures or of solvents, as a device reads them.

    A CPU makes rows dense on request, since all of them would take thirty times the memory. A GPU holds them all.

    Attributes
    ----------
    stored
        (n, n_features) float32, on the host.
    device
        The device on which `gather` returns its rows.
    """

    stored: sparse.csr_array
    device: torch.device

    @property
    def width(self) -> int:
        """Features per row."""
        return int(self.stored.shape[1])

    def __len__(self) -> int:
        return int(self.stored.shape[0])

    @cached_property
    def _dense(self) -> Tensor:
        return torch.from_numpy(self.stored.toarray()).to(self.device)

    def gather(self, index: Tensor) -> Tensor:
        """Rows by index, (…, n_features)."""
        if self.device.type != "cpu":
            return self._dense[index]
        rows = self.stored[index.reshape(-1).numpy()].toarray()
        return torch.from_numpy(rows).reshape(*index.shape, self.width)

    def keep(self, columns: Tensor) -> FeatureRows:
        """The same rows with some of the features only, given by increasing index."""
        return replace(self, stored=self.stored[:, columns.cpu().numpy()])

    def present(self, index: Tensor) -> Tensor:
        """Features that are non-zero in at least one of the rows given by index, (n_features,) bool."""
        found = torch.zeros(self.width, dtype=torch.bool)
        rows = self.stored[index.cpu().numpy()]
        found[torch.from_numpy(rows.indices[rows.data != 0].astype(np.int64))] = True
        return found.to(self.device)


@dataclass(frozen=True)
class FeatureTable:
    """Scaled features of every distinct structure and solvent.

    Attributes
    ----------
    polymer, solvent
        One row per structure and one per solvent.
    polymer_scaler, solvent_scaler
        The scalers used; they are stored in the checkpoint.
    """

    polymer: FeatureRows
    solvent: FeatureRows
    polymer_scaler: FeatureScaler
    solvent_scaler: FeatureScaler

    @classmethod
    def build(
        cls, dataset: Dataset, polymer_scaler: FeatureScaler, solvent_scaler: FeatureScaler, device: torch.device
    ) -> FeatureTable:
        """Scale every structure and solvent of a dataset."""
        return cls(
            polymer=FeatureRows(polymer_scaler.transform_sparse(dataset.polymer_features), device),
            solvent=FeatureRows(solvent_scaler.transform_sparse(dataset.solvent_features), device),
            polymer_scaler=polymer_scaler,
            solvent_scaler=solvent_scaler,
        )

    @property
    def device(self) -> torch.device:
        """The device on which `gather` returns its rows."""
        return self.polymer.device

    @property
    def n_features(self) -> int:
        """Width of the network's input."""
        return self.polymer.width + self.solvent.width

    def gather(self, structure: Tensor, solvent: Tensor) -> Tensor:
        """Network inputs of pairs given by index, (…, n_features)."""
        polymer = self.polymer.gather(structure)
        return torch.cat([polymer, self.solvent.gather(solvent)], dim=-1) if self.solvent.width else polymer

    def keep(self, columns: Tensor) -> FeatureTable:
        """The same table with some of the features only, given by increasing index into the network's input."""
        width = self.polymer.width
        return replace(
            self,
            polymer=self.polymer.keep(columns[columns < width]),
            solvent=self.solvent.keep(columns[columns >= width] - width),
        )


def used_columns(features: FeatureTable, tables: Sequence[Pairs]) -> Tensor:
    """Features that are non-zero in some pair of the tables, by index into the network's input, (n_columns,) int64."""
    structure = torch.cat([table.structure for table in tables]).unique()
    solvent = torch.cat([table.solvent for table in tables]).unique()
    return torch.nonzero(torch.cat([features.polymer.present(structure), features.solvent.present(solvent)]))[:, 0]


def scale_features(dataset: Dataset, training_rows: np.ndarray, rows: Rows, device: torch.device) -> FeatureTable:
    """Fit the scalers on the training rows of one table and apply them to every structure and solvent.

    Parameters
    ----------
    training_rows
        True for the rows of `rows` that the scalers are fitted on, (n_rows,) bool.
    """
    n_fingerprint = dataset.recipe.fingerprint_bits
    structures = np.unique(rows.structure[training_rows])
    solvents = np.unique(rows.solvent[training_rows])
    solvent_width = n_fingerprint if dataset.recipe.with_solvent else 0
    return FeatureTable.build(
        dataset,
        FeatureScaler.fit(dataset.polymer_features, n_fingerprint, structures),
        FeatureScaler.fit(dataset.solvent_features, solvent_width, solvents),
        device,
    )


@dataclass(frozen=True)
class PairTable:
    """χ rows grouped by polymer–solvent pair; a pair's temperatures lie side by side, padded.

    The encoder does not depend on temperature, so it runs once per pair, however many temperatures the pair has. A pair
    with hundreds of them would pad all others, so it is entered several times, with part of its rows each.

    Attributes
    ----------
    structure, solvent
        (n_pairs,) int64.
    tau, target
        τ = 5 (T_ref/T − 1) and standardised χ, (n_pairs, n_temperatures) float32.
    mask
        1 where there is a row, 0 for padding, (n_pairs, n_temperatures) float32.
    """

    structure: Tensor
    solvent: Tensor
    tau: Tensor
    target: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return int(self.structure.shape[0])


def group_by_pair(rows: Rows, chosen: np.ndarray, scaler: ChiScaler, T_ref: float, device: torch.device) -> PairTable:
    """Group the chosen rows (n_rows,) bool of a χ table by polymer–solvent pair."""
    pair_of_row = rows.structure[chosen] * (int(rows.solvent.max()) + 1) + rows.solvent[chosen]
    pairs, pair = np.unique(pair_of_row, return_inverse=True)
    order = np.argsort(pair, kind="stable")
    counts = np.bincount(pair, minlength=len(pairs))
    within = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = min(int(counts.max()), max(MANY_TEMPERATURES, TIMES_THE_MEAN * -(-len(order) // len(pairs))))
    n_places = -(-counts // width)
    tau = np.zeros((int(n_places.sum()), width), dtype=np.float32)
    target, mask = np.zeros_like(tau), np.zeros_like(tau)
    place = ((np.cumsum(n_places) - n_places)[pair[order]] + within // width, within % width)
    temperature = torch.tensor(rows.temperature[chosen][order])
    tau[place] = inverse_temperature(temperature, T_ref).numpy()
    target[place] = scaler.transform(rows.value[chosen][order])
    mask[place] = 1.0
    first = order[within % width == 0]
    return PairTable(
        structure=torch.tensor(rows.structure[chosen][first], device=device),
        solvent=torch.tensor(rows.solvent[chosen][first], device=device),
        tau=torch.from_numpy(tau).to(device),
        target=torch.from_numpy(target).to(device),
        mask=torch.from_numpy(mask).to(device),
    )
