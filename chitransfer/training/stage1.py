"""Stage 1: encoder and χ head learn computed χ, with early stopping on held-out polymers; resumable at any epoch.

`search.runner` drives `Stage1Run` rung by rung, `training.pretrain` in one go.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chitransfer.data.assemble import Dataset
from chitransfer.data.splits import hold_out_polymers
from chitransfer.errors import TrainingError
from chitransfer.model.members import keep_columns, spread_columns
from chitransfer.model.network import NetworkShape, TransferNetwork, chi_at
from chitransfer.model.scalers import ChiScaler
from chitransfer.training.fast import SparseStep, multiplies_in_bf16, predict_sparse, without_subnormals
from chitransfer.training.flat import FlatAdamW, FlatParameters
from chitransfer.training.inputs import FeatureTable, PairTable, group_by_pair, scale_features, used_columns
from chitransfer.training.loop import step_of, train_epochs
from chitransfer.training.losses import chi_loss
from chitransfer.training.sparse import SparseBatch, SparseInputs


@dataclass(frozen=True)
class Stage1Settings:
    """How Stage 1 is optimised, in plain numbers (see `configs/config.yaml` for their meaning)."""

    lr: float
    weight_decay: float
    batch_size: int
    n_epochs: int
    early_stopping_patience: int
    lr_schedule_patience: int
    lr_schedule_factor: float
    grad_clip_norm: float
    precision: str = "fp32"
    min_epochs: int = 0
    min_batches_per_epoch: int = 1
    min_validation_polymers: int = 1

    def batch_size_for(self, n_pairs: int) -> int:
        """Pairs per batch: `batch_size`, or fewer where a small table would give too few batches per epoch."""
        return min(self.batch_size, max(1, math.ceil(n_pairs / self.min_batches_per_epoch)))

    def refuse_lone_pairs(self, n_pairs: int) -> None:
        """Refuse batches of one pair each, which batch normalisation cannot work with.

        Raises
        ------
        TrainingError
            The settings give such batches; the message says which of them is the cause.
        """
        if self.batch_size_for(n_pairs) > 1:
            return
        larger = f"raise training.batch_size_dft ({self.batch_size})"
        fewer = f"lower training.min_batches_per_epoch ({self.min_batches_per_epoch})"
        remedy = "add computed χ (paths.dft_chi_csv)" if n_pairs < 2 else larger if self.batch_size < 2 else fewer
        raise TrainingError(
            f"batch normalisation needs at least 2 pairs a batch, but Stage 1's training pairs ({n_pairs}) come one "
            f"at a time; {remedy}, or set model.use_batchnorm to false"
        )


@dataclass(frozen=True)
class Stage1Data:
    """Stage 1 rows on a device, split into training and validation polymers; scalers are fitted on training rows."""

    features: FeatureTable
    chi_scaler: ChiScaler
    train: PairTable
    validation: PairTable
    validation_rows: np.ndarray
    n_validation_polymers: int
    T_ref: float

    @classmethod
    def build(
        cls,
        dataset: Dataset,
        *,
        validation_fraction: float,
        random_state: int,
        T_ref: float,
        device: torch.device,
        excluded_polymers: np.ndarray | None = None,
    ) -> Stage1Data:
        """Hold out a random share of polymers for validation and put everything on the device.

        Parameters
        ----------
        excluded_polymers
            Indices of polymers Stage 1 must not see at all (the *new chemistry* protocol); default: none.
        """
        rows = dataset.stage1
        usable = np.ones(len(rows), dtype=bool)
        if excluded_polymers is not None:
            usable &= ~np.isin(rows.polymer, excluded_polymers)
        held_out = np.zeros(len(rows), dtype=bool)
        names = np.asarray(dataset.polymers, dtype=object)[rows.polymer[usable]]
        held_out[usable] = hold_out_polymers(names, validation_fraction, random_state)
        training = usable & ~held_out
        chi_scaler = ChiScaler.fit(rows.value[training])
        return cls(
            features=scale_features(dataset, training, rows, device),
            chi_scaler=chi_scaler,
            train=group_by_pair(rows, training, chi_scaler, T_ref, device),
            validation=group_by_pair(rows, held_out, chi_scaler, T_ref, device),
            validation_rows=held_out,
            n_validation_polymers=len(np.unique(rows.polymer[held_out])),
            T_ref=T_ref,
        )

    @cached_property
    def columns(self) -> Tensor:
        """Features that a training pair has, (n_columns,) int64: all that Stage 1 can learn about."""
        return used_columns(self.features, [self.train])

    @cached_property
    def seen(self) -> FeatureTable:
        """`features` restricted to `columns`; a copy, which the CPU does not need."""
        return self.features.keep(self.columns)

    @cached_property
    def sparse_train(self) -> SparseInputs:
        """Inputs of the training pairs without their zeros; CPU only, made on first use."""
        return SparseInputs(self.features, self.train, self.columns)

    @cached_property
    def sparse_validation(self) -> SparseInputs:
        """Inputs of the validation pairs, with the training pairs' dense columns; CPU only, made on first use."""
        return SparseInputs(self.features, self.validation, self.columns, self.sparse_train.dense_columns.numpy())


@dataclass(frozen=True)
class _Batch:
    """Training pairs of one step: their positions, or on the CPU their inputs; with τ, target and mask."""

    pairs: Tensor
    inputs: SparseBatch | None
    tau: Tensor
    target: Tensor
    mask: Tensor


class Stage1Run:
    """One pretraining run, stoppable and resumable at the end of any epoch.

    Features that no training pair has are left out; in the networks it returns, their weights are zero, because nothing
    was learned about them.

    Parameters
    ----------
    seed
        Fixes initial weights, batch order and dropout; the same seed on the same machine gives the same weights.

    Attributes
    ----------
    trained
        The network under training, without the features left out; the parameters of its encoder and χ head are views
        of `flat`.
    flat, optimizer, batch_size, is_bf16
        With `trained`, what `training.packed` needs to train several runs as one program.
    """

    def __init__(self, data: Stage1Data, shape: NetworkShape, settings: Stage1Settings, seed: int) -> None:
        self.data = data
        self.settings = settings
        self.device = data.train.tau.device
        self.batch_size = settings.batch_size_for(len(data.train))
        if shape.use_batchnorm:
            settings.refuse_lone_pairs(len(data.train))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trained = keep_columns(TransferNetwork(shape).to(self.device), data.columns)
            self._random_state = torch.get_rng_state()
        self._shuffle = torch.Generator().manual_seed(seed)
        self.flat = FlatParameters.of(self.trained)
        self.is_bf16 = multiplies_in_bf16(settings.precision, self.device)
        self._sparse_step = (
            SparseStep(self.trained, data.sparse_train.dense_columns, self.batch_size, is_bf16=self.is_bf16)
            if self.device.type == "cpu"
            else None
        )
        self.optimizer = FlatAdamW(self.flat, [self.flat.values], lr=settings.lr, weight_decay=settings.weight_decay)
        self._schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=settings.lr_schedule_factor, patience=settings.lr_schedule_patience
        )
        self.epoch = 0
        self.best_epoch = 0
        self.best_mae = float("inf")
        self.history: list[dict[str, float]] = []
        self._best_weights = self._copy_weights()

    @property
    def finished(self) -> bool:
        """True when all epochs are done or validation has stopped improving."""
        return self.epoch >= self.settings.n_epochs or self._is_stale()

    def is_by_chance(self, epoch: int) -> bool:
        """Whether validation may look best by chance: in the first epochs, or with only a few held-out polymers.

        Then the learning rate is kept, training continues, and the latest weights are kept.
        """
        few = self.data.n_validation_polymers < self.settings.min_validation_polymers
        return few or epoch <= self.settings.min_epochs

    def train_to(self, epoch: int) -> None:
        """Train until a total of `epoch` epochs is reached, or early stopping.

        On a GPU this launches every step, with autograd on dense inputs; only tests and benchmarks, which compare
        `training.packed` with it, use that. All other GPU training is packed.

        Raises
        ------
        TrainingError
            The loss became NaN or infinite; the message names the epoch.
        """
        if self.finished or epoch <= self.epoch:
            return
        with torch.random.fork_rng(devices=[]), without_subnormals():
            torch.set_rng_state(self._random_state)
            train_epochs(
                first_epoch=self.epoch + 1,
                last_epoch=min(epoch, self.settings.n_epochs),
                batches=self._batches,
                take_step=step_of(self._loss, self.optimizer, self._clip),
                end_epoch=self.end_epoch,
                what="Stage 1",
            )
            self._random_state = torch.get_rng_state()

    def latest_network(self) -> TransferNetwork:
        """A copy of the network with its latest weights, in eval mode."""
        return spread_columns(self.trained, self.data.columns).eval()

    def best_network(self) -> TransferNetwork:
        """A copy of the network with the weights of the best validation epoch, in eval mode."""
        network = copy.deepcopy(self.trained)
        network.load_state_dict(self._best_weights)
        return spread_columns(network, self.data.columns).eval()

    def state_dict(self) -> dict[str, Any]:
        """Everything `load_state_dict` needs to resume as if never stopped: tensors and plain values only."""
        return {
            "weights": self._copy_weights(),
            "best_weights": self._best_weights,
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "schedule": {
                key: value
                for key, value in self._schedule.state_dict().items()
                if isinstance(value, int | float | str | bool | list)
            },
            "random_state": self._random_state,
            "shuffle_state": self._shuffle.get_state(),
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_mae": self.best_mae,
            "history": list(self.history),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the `state_dict` of a run with the same data, shape, settings and seed.

        Raises
        ------
        KeyError, RuntimeError, TypeError, ValueError
            The state is not from such a run.
        """
        self.trained.load_state_dict(state["weights"])
        self._best_weights = dict(state["best_weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._random_state = state["random_state"].cpu()
        self._shuffle.set_state(state["shuffle_state"].cpu())
        self.epoch = state["epoch"]
        self.best_epoch = state["best_epoch"]
        self.best_mae = state["best_mae"]
        self.history = list(state["history"])

    def gather(self, pairs: Tensor) -> Tensor:
        """Inputs of training pairs given by position, (…, n_columns)."""
        train = self.data.train
        return self.data.seen.gather(train.structure[pairs], train.solvent[pairs])

    def draw_order(self) -> Tensor:
        """Positions of the training pairs in the order of another epoch, (n_pairs,) int64 on the CPU."""
        order = torch.randperm(len(self.data.train), generator=self._shuffle)
        if self.trained.shape.use_batchnorm and len(order) % self.batch_size == 1:
            # A single pair in the last batch has no variance to normalise by; every epoch omits a different one.
            order = order[:-1]
        return order

    def draw_seed(self) -> int:
        """Seed of another epoch's dropout, from the run's own random numbers, where the masks are not drawn here."""
        generator = torch.Generator()
        generator.set_state(self._random_state)
        seed = int(torch.randint(2**62, (), generator=generator))
        self._random_state = generator.get_state()
        return seed

    def _batches(self, epoch: int) -> Iterator[_Batch]:
        train, size = self.data.train, self.batch_size
        order = self.draw_order().to(self.device)
        parts = [values[order].split(size) for values in (train.tau, train.target, train.mask)]
        inputs: Iterator[SparseBatch | None] = repeat(None, len(parts[0]))
        if self._sparse_step is not None:
            self._sparse_step.begin_epoch()
            inputs = self.data.sparse_train.batches(order, size)
        self.trained.train()
        for pairs, batch, tau, target, mask in zip(order.split(size), inputs, *parts, strict=True):
            yield _Batch(pairs, batch, tau, target, mask)

    def _loss(self, batch: _Batch) -> Tensor:
        if self._sparse_step is not None and batch.inputs is not None:
            return self._sparse_step.loss_and_gradients(batch.inputs, batch.tau, batch.target, batch.mask)
        inputs = self.gather(batch.pairs)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_bf16):
            latents = self.trained.encoder(inputs)
        coefficients = self.trained.heads.chi(latents.float())
        predicted = chi_at(coefficients.unsqueeze(-2), batch.tau)  # (pair, temperature)
        loss = chi_loss(predicted, batch.target, batch.mask, dim=(-2, -1))
        # The gradients must stay views of one vector, so they are zeroed here instead of dropped by the loop.
        self.flat.gradients.zero_()
        loss.backward()
        for bias in self.trained.encoder.idle_biases:
            if bias.grad is not None:
                bias.grad.zero_()
        return loss.detach()

    def _clip(self) -> None:
        self.flat.clip(self.settings.grad_clip_norm)

    def end_epoch(self, epoch: int, mean_loss: float) -> bool:
        """Validate, keep the weights if they are the best, step the schedule; True if Stage 1 should stop.

        Raises
        ------
        TrainingError
            The validation MAE became NaN or infinite.
        """
        validation = self.data.validation
        if self._sparse_step is None:
            coefficients = predict_coefficients(self.trained, self.data.seen, validation.structure, validation.solvent)
        else:
            coefficients = predict_sparse(self.trained, self.data.sparse_validation, is_bf16=self.is_bf16)
        mae = _mae(coefficients, self.data, validation)
        if not math.isfinite(mae):
            raise TrainingError(
                f"Stage 1: the validation MAE became {mae} in epoch {epoch}; a lower learning rate usually helps"
            )
        self.epoch = epoch
        if not self.is_by_chance(epoch):
            self._schedule.step(mae)
        self.history.append(
            {
                "epoch": epoch,
                "train_loss": mean_loss,
                "validation_mae": mae,
                "lr": float(self.optimizer.param_groups[0]["lr"]),
            }
        )
        if self.is_by_chance(epoch) or mae < self.best_mae:
            self.best_mae, self.best_epoch = mae, epoch
            self._best_weights = self._copy_weights()
        return self._is_stale()

    def _is_stale(self) -> bool:
        return self.epoch - self.best_epoch >= self.settings.early_stopping_patience

    def _copy_weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.trained.state_dict().items()}


@torch.no_grad()
def predict_coefficients(
    network: TransferNetwork, features: FeatureTable, structure: Tensor, solvent: Tensor, batch_size: int = 4096
) -> Tensor:
    """Coefficients of standardised χ(T) for pairs given by index, (n_pairs, 2), in eval mode."""
    network.eval()
    parts = [
        network.heads.chi(network.encoder(features.gather(s, v)))
        for s, v in zip(structure.split(batch_size), solvent.split(batch_size), strict=True)
    ]
    return torch.cat(parts)


def _mae(coefficients: Tensor, data: Stage1Data, pairs: PairTable) -> float:
    """Mean absolute error of χ over the rows of `pairs`, in χ's own units."""
    error = (chi_at(coefficients.unsqueeze(-2), pairs.tau) - pairs.target).abs() * pairs.mask
    return float(error.sum() / pairs.mask.sum()) * data.chi_scaler.scale
