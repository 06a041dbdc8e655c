"""Stage 2's settings, and its rows on a device: the inputs of every way of fine-tuning.

Built by `search.runner`, `training.finetune` and `evidence`; `training.stage2` trains on them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from chitransfer.data.assemble import Dataset, Rows
from chitransfer.model.network import inverse_temperature
from chitransfer.model.scalers import ChiScaler
from chitransfer.training.inputs import FeatureTable, Pairs, PairTable


@dataclass(frozen=True)
class Stage2Settings:
    """How Stage 2 is optimised, in plain numbers (see `configs/config.yaml` for their meaning)."""

    lr: float
    lr_encoder: float
    weight_decay: float
    batch_size: int
    n_epochs: int
    lambda_exp: float
    lambda_sol: float
    class_weight_pos: float
    freeze_encoder: bool
    grad_clip_norm: float
    lr_decay: bool = False
    lambda_dft: float = 0.0


@dataclass(frozen=True)
class TaskRows:
    """Rows of one Stage 2 task on the device.

    Attributes
    ----------
    structure, solvent
        A row's polymer–solvent pair by index, (n_rows,) int64 each.
    tau, target
        τ = 5 (T_ref/T − 1), and standardised χ or 1 for the positive class; (n_rows,) float32 each.
    """

    structure: Tensor
    solvent: Tensor
    tau: Tensor
    target: Tensor

    def __len__(self) -> int:
        return int(self.target.shape[0])

    def without_rows(self) -> TaskRows:
        """The same without rows, as for an absent table."""
        return TaskRows(self.structure[:0], self.solvent[:0], self.tau[:0], self.target[:0])


@dataclass(frozen=True)
class Stage2Data:
    """Both Stage 2 tables on a device, on the scales of a Stage 1 run; an absent table has no rows.

    χ targets are standardised with Stage 1's scaler, so that its χ head can continue where it stopped. The solubility
    target is 1 for the positive class. `computed` holds Stage 1's rows where a full run rehearses them.
    """

    features: FeatureTable
    chi_scaler: ChiScaler
    chi: TaskRows
    solubility: TaskRows
    positive_label: int
    T_ref: float
    computed: PairTable | None = None

    @classmethod
    def build(
        cls, dataset: Dataset, features: FeatureTable, chi_scaler: ChiScaler, *, positive_label: int, T_ref: float
    ) -> Stage2Data:
        """Put the Stage 2 rows on the device of `features`."""
        chi, solubility = dataset.chi, dataset.solubility
        return cls(
            features=features,
            chi_scaler=chi_scaler,
            chi=_task_rows(chi, np.zeros(0) if chi is None else chi_scaler.transform(chi.value), T_ref, features),
            solubility=_task_rows(
                solubility, np.zeros(0) if solubility is None else solubility.value == positive_label, T_ref, features
            ),
            positive_label=positive_label,
            T_ref=T_ref,
        )

    def of_weight(self, settings: Stage2Settings) -> Stage2Data:
        """The same without the rows of tables whose loss has weight 0: they take no part in an epoch."""
        return replace(
            self,
            chi=self.chi if settings.lambda_exp > 0 else self.chi.without_rows(),
            solubility=self.solubility if settings.lambda_sol > 0 else self.solubility.without_rows(),
        )

    def rehearsed(self, settings: Stage2Settings) -> PairTable | None:
        """Stage 1's rows if the settings include rehearsal."""
        return self.computed if settings.lambda_dft > 0 and not settings.freeze_encoder else None

    def learned_from(self, settings: Stage2Settings) -> list[Pairs]:
        """The tables that a network learns from under these settings, measured ones first."""
        computed = self.rehearsed(settings)
        return [self.chi, self.solubility, *([] if computed is None else [computed])]


def _task_rows(rows: Rows | None, target: np.ndarray, T_ref: float, features: FeatureTable) -> TaskRows:
    device = features.device
    temperature = torch.tensor([] if rows is None else rows.temperature, dtype=torch.float64)
    return TaskRows(
        structure=torch.tensor([] if rows is None else rows.structure, dtype=torch.int64, device=device),
        solvent=torch.tensor([] if rows is None else rows.solvent, dtype=torch.int64, device=device),
        tau=inverse_temperature(temperature, T_ref).float().to(device),
        target=torch.from_numpy(target.astype(np.float32)).to(device),
    )


def resolve_positive_label(rows: Rows | None, positive: str) -> int:
    """The label (1 soluble, 0 insoluble) to which F1 and recall refer, for a table's rows."""
    return choose_positive_label(None if rows is None else rows.value, positive)


def choose_positive_label(labels: np.ndarray | None, positive: str) -> int:
    """The same from labels 0 and 1, (n_rows,), or ``None`` without a table; ``minority`` counts them."""
    if positive == "minority" and labels is not None:
        return 1 if float(np.mean(labels)) <= 0.5 else 0
    return 0 if positive == "insoluble" else 1
