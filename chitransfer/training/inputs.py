"""A dataset as tensors on one device: scaled features once, rows grouped by polymer–solvent pair.

Built by `training.stage1`; read by `training.stage2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from chitransfer.data.assemble import Dataset, Rows
from chitransfer.model.network import inverse_temperature
from chitransfer.model.scalers import ChiScaler, FeatureScaler


class Pairs(Protocol):
    """Polymer–solvent pairs by index, (n,) int64 each."""

    @property
    def structure(self) -> Tensor:
        """Rows of `FeatureTensors.polymer`."""

    @property
    def solvent(self) -> Tensor:
        """Rows of `FeatureTensors.solvent`."""


@dataclass(frozen=True)
class FeatureTensors:
    """Scaled features of every distinct structure and solvent, resident on the device.

    Attributes
    ----------
    polymer, solvent
        (n_structures, n_polymer_features) and (n_solvents, n_solvent_features) float32.
    polymer_scaler, solvent_scaler
        What scaled them; kept in the checkpoint.
    """

    polymer: Tensor
    solvent: Tensor
    polymer_scaler: FeatureScaler
    solvent_scaler: FeatureScaler

    @property
    def n_features(self) -> int:
        """Width of the network's input."""
        return int(self.polymer.shape[1] + self.solvent.shape[1])

    def gather(self, structure: Tensor, solvent: Tensor) -> Tensor:
        """Network inputs of pairs given by index, (…, n_features)."""
        polymer = self.polymer[structure]
        return torch.cat([polymer, self.solvent[solvent]], dim=-1) if self.solvent.shape[1] else polymer

    def keep(self, columns: Tensor) -> FeatureTensors:
        """The same with some of the features only, given by index into the network's input, rising."""
        width = self.polymer.shape[1]
        polymer = self.polymer[:, columns[columns < width]]
        return replace(self, polymer=polymer, solvent=self.solvent[:, columns[columns >= width] - width])


def used_columns(features: FeatureTensors, tables: Sequence[Pairs]) -> Tensor:
    """Features that are not zero in some pair of the tables, by index into the network's input, (n_columns,) int64."""
    structure = torch.cat([table.structure for table in tables]).unique()
    solvent = torch.cat([table.solvent for table in tables]).unique()
    is_used = torch.cat([_any_non_zero(features.polymer, structure), _any_non_zero(features.solvent, solvent)])
    return torch.nonzero(is_used)[:, 0]


def _any_non_zero(features: Tensor, rows: Tensor) -> Tensor:
    """Whether a column has a value in some of the rows, (n_columns,) bool, without a copy of all of them."""
    found = torch.zeros(features.shape[1], dtype=torch.bool, device=features.device)
    for some in rows.split(4096):
        found |= (features[some] != 0).any(0)
    return found


def scale_features(dataset: Dataset, training_rows: np.ndarray, rows: Rows, device: torch.device) -> FeatureTensors:
    """Fit the scalers on the training rows of one table, apply them to every structure.

    Parameters
    ----------
    training_rows
        True for rows of `rows` the scalers may see, (n_rows,) bool.
    """
    n_fingerprint = dataset.recipe.fingerprint_bits
    structures = np.unique(rows.structure[training_rows])
    solvents = np.unique(rows.solvent[training_rows])
    polymer_scaler = FeatureScaler.fit(dataset.polymer_features, n_fingerprint, structures)
    solvent_width = n_fingerprint if dataset.recipe.with_solvent else 0
    solvent_scaler = FeatureScaler.fit(dataset.solvent_features, solvent_width, solvents)
    return FeatureTensors(
        polymer=torch.from_numpy(polymer_scaler.transform(dataset.polymer_features)).to(device),
        solvent=torch.from_numpy(solvent_scaler.transform(dataset.solvent_features)).to(device),
        polymer_scaler=polymer_scaler,
        solvent_scaler=solvent_scaler,
    )


@dataclass(frozen=True)
class PairTable:
    """χ rows grouped by polymer–solvent pair; a pair's temperatures lie side by side, padded.

    The encoder sees no temperature, so it runs once per pair however many temperatures the pair has.

    Attributes
    ----------
    structure, solvent
        (n_pairs,) int64.
    tau, target
        τ = 5 (T_ref/T − 1) and standardised χ, (n_pairs, n_temperatures) float32.
    mask
        1 where there is a row, (n_pairs, n_temperatures) float32.
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
    tau = np.zeros((len(pairs), int(counts.max())), dtype=np.float32)
    target, mask = np.zeros_like(tau), np.zeros_like(tau)
    place = (pair[order], within)
    temperature = torch.tensor(rows.temperature[chosen][order])
    tau[place] = inverse_temperature(temperature, T_ref).numpy()
    target[place] = scaler.transform(rows.value[chosen][order])
    mask[place] = 1.0
    first = order[np.cumsum(counts) - counts]
    return PairTable(
        structure=torch.tensor(rows.structure[chosen][first], device=device),
        solvent=torch.tensor(rows.solvent[chosen][first], device=device),
        tau=torch.from_numpy(tau).to(device),
        target=torch.from_numpy(target).to(device),
        mask=torch.from_numpy(mask).to(device),
    )
