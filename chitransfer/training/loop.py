"""The epoch loop: Stage 1, quick Stage 2 and full fine-tuning are settings of it, not copies.

Called by `training.stage1` and `training.member`. Only `training.packed`, which trains several Stage 1 runs at once,
has its own loop; tests check that both give the same results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from chitransfer.errors import TrainingError
from chitransfer.processors import processor_watch

Batch = TypeVar("Batch")


def train_epochs(
    *,
    first_epoch: int,
    last_epoch: int,
    batches: Callable[[int], Iterable[Batch]],
    take_step: Callable[[Batch], Tensor],
    end_epoch: Callable[[int, float], bool],
    what: str,
) -> int:
    """Train from `first_epoch` to `last_epoch`, both counted from 1 and included.

    Parameters
    ----------
    batches
        The batches of an epoch.
    take_step
        Updates the weights with a batch and returns its loss; see `step_of`.
    end_epoch
        Called with (epoch, mean loss); returns True to stop.
    what
        Names the stage in errors.

    Returns
    -------
    int
        The last epoch trained.

    Raises
    ------
    TrainingError
        The mean loss of an epoch is NaN or infinite.
    """
    for epoch in range(first_epoch, last_epoch + 1):
        # Summed on the device: reading the value at every step would make each step wait for the device.
        total: Tensor | None = None
        n_batches = 0
        for batch in batches(epoch):
            loss = take_step(batch)
            total = loss.clone() if total is None else total + loss
            n_batches += 1
        mean_loss = 0.0 if total is None else float(total) / n_batches
        check_mean_loss(what, epoch, mean_loss)
        processor_watch.look()
        if end_epoch(epoch, mean_loss):
            return epoch
    return last_epoch


def step_of(
    compute_loss: Callable[[Batch], Tensor], optimizer: torch.optim.Optimizer, clip_gradients: Callable[[], None]
) -> Callable[[Batch], Tensor]:
    """A step for `train_epochs`.

    Parameters
    ----------
    compute_loss
        Scalar loss of a batch. A loss without a graph means that its gradients are already in place.
    clip_gradients
        Called between backward and the optimiser's step.
    """

    def take_step(batch: Batch) -> Tensor:
        loss = compute_loss(batch)
        if loss.requires_grad:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        clip_gradients()
        optimizer.step()
        return loss.detach()

    return take_step


def check_mean_loss(what: str, epoch: int, mean_loss: float) -> None:
    """Raise TrainingError when the mean loss of an epoch is NaN or infinite."""
    if not math.isfinite(mean_loss):
        raise TrainingError(
            f"{what}: the loss became {mean_loss} in epoch {epoch}; a lower learning rate usually helps"
        )
