"""Ensemble predictions for measured rows, by who learned from them: left-out, training and test predictions.

Called by `training.finetune`; this module separates members that saw a polymer from those that did not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from chitransfer.model.members import FittedMembers
from chitransfer.model.network import chi_at, inverse_temperature_line
from chitransfer.training.tasks import Stage2Data


@dataclass(frozen=True)
class TaskPredictions:
    """Every member's prediction for every row of one table.

    Attributes
    ----------
    values
        (n_networks, n_repeats · n_folds, n_rows) float64; member r · n_folds + k did not learn from fold k of repeat r.
    fold
        Fold of every row, (n_repeats, n_rows); −1 for rows no member learned from.
    polymer
        The polymer of each row, (n_rows,).
    """

    values: np.ndarray
    fold: np.ndarray
    polymer: np.ndarray

    @property
    def learned(self) -> np.ndarray:
        """True for rows that take part in cross-validation, (n_rows,)."""
        result: np.ndarray = self.fold[0] >= 0
        return result

    @cached_property
    def _apart(self) -> np.ndarray:
        """True where a member left the row out, (n_repeats · n_folds, n_rows); all true for rows not learned from."""
        n_repeats, n_rows = self.fold.shape
        n_folds = self.values.shape[1] // n_repeats
        apart = self.fold[:, None, :] == np.arange(n_folds)[None, :, None]
        return (apart | ~self.learned).reshape(-1, n_rows)

    def left_out(self) -> np.ndarray:
        """Mean over the members that never saw the row's polymer, (n_rows,)."""
        return self._mean(self._apart)

    def left_out_by_repeat(self) -> np.ndarray:
        """The same for each repeat separately, (n_repeats, n_rows)."""
        n_repeats = self.fold.shape[0]
        n_folds = self.values.shape[1] // n_repeats
        by_repeat = self.values.mean(axis=0).reshape(n_repeats, n_folds, -1)
        apart = self._apart.reshape(n_repeats, n_folds, -1)
        return np.where(apart, by_repeat, 0.0).sum(axis=1) / apart.sum(axis=1)

    def left_out_spread(self) -> np.ndarray:
        """Standard deviation over the members that never saw the row's polymer, (n_rows,); 0 if there is only one."""
        n = self._apart.sum(axis=0) * self.values.shape[0]
        deviation = np.where(self._apart, self.values - self.left_out(), 0.0)
        return np.sqrt((deviation**2).sum(axis=(0, 1)) / np.maximum(n - 1, 1))

    def left_out_members(self, row: int) -> np.ndarray:
        """One row's values from each member that never saw its polymer, (n_networks · n_apart,)."""
        return self.values[:, self._apart[:, row], row].ravel()

    def trained(self) -> np.ndarray:
        """Mean over the members that learned from the row, (n_rows,); NaN for rows no member learned from."""
        return self._mean(~self._apart)

    def _mean(self, chosen: np.ndarray) -> np.ndarray:
        total = np.where(chosen, self.values.mean(axis=0), 0.0).sum(axis=0)
        n = chosen.sum(axis=0)
        return np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)


@torch.no_grad()
def predict_chi(groups: list[FittedMembers], data: Stage2Data) -> tuple[np.ndarray, np.ndarray]:
    """χ of every χ row at its temperature, and its A (K), by every member; (n_networks, n_members, n_rows) float64."""
    chi, A = [], []
    for group in groups:
        coefficients = group.predict(data.features, data.chi.structure, data.chi.solvent)[0].double().cpu()
        chi.append(data.chi_scaler.inverse(chi_at(coefficients, data.chi.tau.cpu().double()).numpy()))
        line, _ = inverse_temperature_line(coefficients, data.chi_scaler.mean, data.chi_scaler.scale, data.T_ref)
        A.append(line.numpy())
    return np.stack(chi), np.stack(A)


@torch.no_grad()
def predict_logits(groups: list[FittedMembers], data: Stage2Data) -> np.ndarray:
    """Logits of the positive class of every solubility row, (n_networks, n_members, n_rows) float64."""
    rows = data.solubility
    return np.stack(
        [group.predict(data.features, rows.structure, rows.solvent)[1].double().cpu().numpy() for group in groups]
    )
