"""Per-member state of a pack along the first axis of every tensor: AdamW's factors, batch norms, dropout masks.

Called by `training.packed`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from chitransfer.training.fast import MASK_POOL

# Spacing of the rows of a dropout mask in their pool, whatever the widths in the pack. A prime above the widest layer
# of the guide; rows of a wider layer overlap, which only makes units share numbers with distant units.
MASK_STRIDE = 1031
GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0


def adamw_columns(groups: Sequence[dict[str, Any]], steps: Tensor) -> Tensor:
    """The factors of AdamW steps, from the parameter group of every member's optimiser.

    Parameters
    ----------
    steps
        t for every step and member, (n_steps, member) float64.

    Returns
    -------
    Tensor
        (n_steps, 3, member, 1) float32 on the CPU: the weights' factor 1 − learning rate · weight decay; then, with
        both bias corrections of step t, −learning rate · √(1 − β₂ᵗ)/(1 − β₁ᵗ) and ε · √(1 − β₂ᵗ).
    """
    lr, decay, epsilon = (
        torch.tensor([group[name] for group in groups], dtype=torch.float64) for name in ("lr", "weight_decay", "eps")
    )
    first, second = groups[0]["betas"]
    root = (1.0 - second**steps).sqrt()
    columns = (1.0 - lr * decay).expand_as(steps), -lr * root / (1.0 - first**steps), epsilon * root
    return torch.stack(columns, dim=1).float().unsqueeze(-1)


class StackedNorm:
    """Batch normalisation of every member at one place of the network; statistics lie side by side, padded."""

    def __init__(self, norms: Sequence[nn.BatchNorm1d]) -> None:
        self._norms = list(norms)
        widest = max(norm.num_features for norm in norms)
        device = norms[0].weight.device
        self._mean, self._variance = (torch.zeros(len(norms), widest, device=device) for _ in range(2))
        for member in range(len(norms)):
            for stacked, own in self._pairs(member):
                stacked.copy_(own)

    def normalise(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Training mode: normalise hidden (member, batch, width) by the statistics of the batch."""
        n_members, n_pairs, width = hidden.shape
        momentum = self._norms[0].momentum
        normed = functional.batch_norm(
            hidden.transpose(0, 1).reshape(n_pairs, -1),
            self._mean.view(-1),
            self._variance.view(-1),
            weight.reshape(-1),
            bias.reshape(-1),
            training=True,
            momentum=0.1 if momentum is None else momentum,
            eps=self._norms[0].eps,
        )
        return normed.view(n_pairs, n_members, width).transpose(0, 1)

    def write_back(self, member: int, n_steps: int) -> None:
        """Update the running statistics of a member's own layer after `n_steps` more batches."""
        for stacked, own in self._pairs(member):
            own.copy_(stacked)
        tracked = self._norms[member].num_batches_tracked
        if tracked is not None:
            tracked.add_(n_steps)

    def _pairs(self, member: int) -> Iterator[tuple[Tensor, Tensor]]:
        norm = self._norms[member]
        if norm.running_mean is not None and norm.running_var is not None:
            yield self._mean[member, : norm.num_features], norm.running_mean
            yield self._variance[member, : norm.num_features], norm.running_var


class MaskPool:
    """Dropout masks of the layers that share a rate, cut from a pool of random numbers drawn anew every epoch.

    A member draws its part of the pool from its own generator, and the position of a mask depends only on how many were
    cut before it. The masks are thus the same whatever the other members are and however wide.

    Parameters
    ----------
    widths
        Width of every member's widest layer with dropout.
    """

    def __init__(self, rates: Sequence[float], widths: Sequence[int], batch_size: int, device: torch.device) -> None:
        self.rates = list(rates)
        rows = batch_size * MASK_STRIDE
        self._n_starts = (MASK_POOL - 1) * rows
        self._lengths = [MASK_POOL * rows + width for width in widths]
        self._pool = torch.ones(len(self.rates), max(self._lengths) if any(rates) else 0, device=device)
        row_starts = torch.arange(batch_size, device=device).unsqueeze(1) * MASK_STRIDE
        self._offsets = row_starts + torch.arange(max(widths, default=0), device=device)  # (row, column)

    def refresh(self, member: int, generator: torch.Generator) -> None:
        """Draw a member's part anew: 1 / (1 − rate) with probability 1 − rate, else 0."""
        rate = self.rates[member]
        if rate > 0:
            part = self._pool[member, : self._lengths[member]]
            part.bernoulli_(1.0 - rate, generator=generator).div_(1.0 - rate)

    def starts(self, n_masks: int) -> Tensor:
        """Start positions of an epoch's masks, in order, (n_masks,) int64 on the CPU."""
        number = torch.arange(1, n_masks + 1, dtype=torch.float64)
        return (number * GOLDEN_RATIO % 1.0 * self._n_starts).long()

    def apply(self, hidden: Tensor, start: Tensor) -> Tensor:
        """Hidden values (member, batch, width) after dropout with the mask that starts at the scalar `start`."""
        if not any(self.rates):
            return hidden
        _, n_pairs, width = hidden.shape
        places = self._offsets[:n_pairs, :width] + start
        return hidden * self._pool[:, places].to(hidden.dtype)
