"""Shared by every way of fine-tuning: how a Stage 2 member starts, and its epochs with decaying learning rates.

Called by `training.stage2` (members side by side) and `training.unfrozen` (one by one).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from chitransfer.model.network import Heads, TransferNetwork
from chitransfer.training.loop import train_epochs
from chitransfer.training.tasks import Stage2Settings

Batch = TypeVar("Batch")


class MemberTraining(Protocol[Batch]):
    """One member or several in training, as `train_members` uses them."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Over all trained weights, with one parameter group per learning rate."""

    def batches(self, epoch: int, /) -> Iterable[Batch]:
        """The steps of an epoch, counted from 1."""

    def take_step(self, batch: Batch, /) -> Tensor:
        """Update the weights with a batch; returns its loss."""


def with_new_solubility_head(network: TransferNetwork) -> TransferNetwork:
    """A copy with new weights in the solubility head, for which Stage 1 had no labels."""
    member = copy.deepcopy(network)
    member.heads.solubility = Heads(network.shape).solubility.to(next(network.parameters()).device)
    return member


def let_dropout_work(network: nn.Module) -> None:
    """Put the dropout layers in training mode; batch norm keeps the statistics of Stage 1."""
    for part in network.modules():
        part.train(isinstance(part, nn.Dropout))


def train_members(
    training: MemberTraining[Batch], settings: Stage2Settings, after_epoch: Callable[[int], None]
) -> None:
    """Train for all epochs; learning rates decay along half a cosine if the settings say so.

    `after_epoch` and errors as in `training.stage2.fit_members`.
    """
    first_rates = [float(group["lr"]) for group in training.optimizer.param_groups]

    def end_epoch(epoch: int, mean_loss: float) -> bool:
        if settings.lr_decay:
            left = 0.5 * (1.0 + math.cos(math.pi * epoch / settings.n_epochs))
            for group, rate in zip(training.optimizer.param_groups, first_rates, strict=True):
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate * left)
                else:
                    group["lr"] = rate * left
        after_epoch(epoch)
        return False

    train_epochs(
        first_epoch=1,
        last_epoch=settings.n_epochs,
        batches=training.batches,
        take_step=training.take_step,
        end_epoch=end_epoch,
        what="Stage 2",
    )
