"""Fine-tuning of whole networks on the CPU, one member after another: sparse first layer, hand-written gradients.

Called by `training.stage2` when the encoder is not frozen. One member's weights and moments then stay in the
processor's cache, those of all members together would not; on a GPU training them together is faster.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chitransfer.model.members import FittedMembers, keep_columns
from chitransfer.model.network import TransferNetwork, chi_at
from chitransfer.training.fast import SparseLayers, without_subnormals
from chitransfer.training.flat import FlatAdamW, FlatParameters
from chitransfer.training.inputs import used_columns
from chitransfer.training.loop import step_of
from chitransfer.training.losses import chi_loss, solubility_loss
from chitransfer.training.member import let_dropout_work, train_members, with_new_solubility_head
from chitransfer.training.rehearsal import Rehearsal
from chitransfer.training.sparse import SparseBatch, SparseInputs
from chitransfer.training.tasks import Stage2Data, Stage2Settings


@dataclass(frozen=True)
class _AllPairs:
    """The pairs of χ rows, solubility rows and computed pairs, one below the other."""

    structure: Tensor
    solvent: Tensor


@dataclass(frozen=True)
class _Step:
    """Rows of one step by position in their tables, and their inputs in the same order, computed pairs last."""

    chi: Tensor
    solubility: Tensor
    computed: Tensor
    inputs: SparseBatch


@dataclass(frozen=True)
class _Inputs:
    """What all members share: the network without unused features, and the inputs of every row."""

    network: TransferNetwork
    columns: Tensor
    rows: SparseInputs

    @classmethod
    def of(cls, network: TransferNetwork, data: Stage2Data, settings: Stage2Settings) -> _Inputs:
        tables = data.learned_from(settings)
        # A feature that no row has gives its first-layer weights no gradient: these weights are left out, not copied.
        columns = used_columns(data.features, tables)
        pairs = _AllPairs(
            torch.cat([table.structure for table in tables]), torch.cat([table.solvent for table in tables])
        )
        return cls(keep_columns(network, columns), columns, SparseInputs(data.features, pairs, columns))


class _MemberRun:
    """One member in training, which the epoch loop calls back into."""

    def __init__(
        self, shared: _Inputs, data: Stage2Data, chi: Tensor, solubility: Tensor, settings: Stage2Settings, seed: int
    ) -> None:
        self._data, self._settings, self._rows = data, settings, shared.rows
        self._chi, self._solubility = chi, solubility
        self._shuffle = torch.Generator().manual_seed(seed)
        self.network = with_new_solubility_head(shared.network)
        let_dropout_work(self.network)
        heads = [*self.network.heads.parameters()]
        self._rehearsal = None
        if (computed := data.rehearsed(settings)) is not None:
            self._rehearsal = Rehearsal(shared.network, computed, settings.batch_size, seed)
            heads += self._rehearsal.head.parameters()
        encoder = [*self.network.encoder.parameters()]
        self._flat = FlatParameters([*encoder, *heads])
        self._n_encoder_weights = sum(parameter.numel() for parameter in encoder)
        self.optimizer = FlatAdamW(
            self._flat,
            [
                {"params": [self._flat.part(slice(self._n_encoder_weights))], "lr": settings.lr_encoder},
                {"params": [self._flat.part(slice(self._n_encoder_weights, None))], "lr": settings.lr},
            ],
            weight_decay=settings.weight_decay,
        )
        self.take_step = step_of(self._loss, self.optimizer, self._clip)
        self._n_steps = max(1, math.ceil(max(len(self._chi), len(self._solubility)) / settings.batch_size))
        n_computed = 0 if self._rehearsal is None else self._rehearsal.batch_size
        largest = sum(math.ceil(len(rows) / self._n_steps) for rows in (self._chi, self._solubility)) + n_computed
        self._layers = SparseLayers([self.network.encoder], shared.rows.dense_columns, largest)

    def batches(self, epoch: int) -> Iterator[_Step]:
        """An epoch's steps: every row once, each table spread evenly over them."""
        self._layers.begin_epoch()
        n_steps, n_chi = self._n_steps, len(self._data.chi)
        n_measured = n_chi + len(self._data.solubility)
        chi, solubility = (
            rows[torch.randperm(len(rows), generator=self._shuffle)] for rows in (self._chi, self._solubility)
        )
        computed = torch.zeros(n_steps, 0, dtype=torch.int64)
        if self._rehearsal is not None:
            computed = self._rehearsal.draw(n_steps)
        steps = [(chi[step::n_steps], solubility[step::n_steps], computed[step]) for step in range(n_steps)]
        order = torch.cat([torch.cat([a, b + n_chi, c + n_measured]) for a, b, c in steps])
        bounds = np.cumsum([0] + [len(a) + len(b) + len(c) for a, b, c in steps])
        for (a, b, c), inputs in zip(steps, self._rows.runs(order, bounds), strict=True):
            yield _Step(a, b, c, inputs)

    def _loss(self, step: _Step) -> Tensor:
        """The loss of a step; leaves the gradients where the optimiser expects them."""
        data, settings, heads = self._data, self._settings, self.network.heads
        latents = self._layers.forward(step.inputs).requires_grad_(True)
        of_chi, of_solubility, of_computed = latents.split([len(step.chi), len(step.solubility), len(step.computed)])
        loss = latents.new_zeros(())
        if len(step.chi):
            predicted = chi_at(heads.chi(of_chi), data.chi.tau[step.chi])
            error = chi_loss(predicted, data.chi.target[step.chi], torch.ones(len(step.chi)))
            loss = loss + settings.lambda_exp * error
        if len(step.solubility):
            _, logits = heads(of_solubility)
            label = data.solubility.target[step.solubility]
            loss = loss + settings.lambda_sol * solubility_loss(
                logits, label, torch.ones(len(label)), settings.class_weight_pos
            )
        if self._rehearsal is not None:
            coefficients = self._rehearsal.head(of_computed)
            loss = loss + settings.lambda_dft * self._rehearsal.loss(coefficients, step.computed)
        # The encoder's gradients are overwritten, those of the heads accumulated.
        self._flat.gradients[self._n_encoder_weights :].zero_()
        if loss.requires_grad:  # Else no row counts, in this step or any other of this member.
            loss.backward()
        if latents.grad is not None:
            self._layers.backward(latents.grad, step.inputs)
        return loss.detach()

    def _clip(self) -> None:
        self._flat.clip(self._settings.grad_clip_norm)


def fit_one_by_one(
    network: TransferNetwork,
    data: Stage2Data,
    train_chi: Tensor,
    train_solubility: Tensor,
    settings: Stage2Settings,
    seed: int,
    after_epoch: Callable[[int], None],
) -> FittedMembers:
    """As `stage2.fit_members` for an encoder that is not frozen, on the CPU.

    Parameters
    ----------
    train_chi, train_solubility
        True for the rows a member may learn from, (n_members, n_chi_rows) and (n_members, n_solubility_rows) bool; like
        `data`, without rows whose loss has weight 0.
    seed
        Fixes batch order; new weights and dropout come from PyTorch's global generator.
    after_epoch
        Called with the number of epochs done, as if the members were trained side by side.

    Raises
    ------
    TrainingError
        The loss became NaN or infinite.
    """
    network = copy.deepcopy(network).eval()
    shared = _Inputs.of(network, data, settings)
    n_members = len(train_chi)
    trained: list[TransferNetwork] = []
    for number in range(n_members):
        run = _MemberRun(
            shared,
            data,
            torch.nonzero(train_chi[number])[:, 0],
            torch.nonzero(train_solubility[number])[:, 0],
            settings,
            seed + number,
        )

        def count(epoch: int, number: int = number) -> None:
            after_epoch((number * settings.n_epochs + epoch) // n_members)

        with without_subnormals():
            train_members(run, settings, count)
        trained.append(run.network)
    names = [name for name, _ in network.named_parameters()]
    states = [dict(one.named_parameters()) for one in trained]
    parameters = {name: torch.stack([state[name].detach() for state in states]) for name in names}
    return FittedMembers(network, parameters, False, shared.columns, train_chi.any(1))
