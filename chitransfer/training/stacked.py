"""What the members of a pack need side by side, the first axis of every tensor: AdamW's numbers, norms, dropout masks.

Called by `training.packed`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from chitransfer.training.fast import MASK_POOL

# Rows of a dropout mask begin this far apart in their pool, whatever the widths of the pack. A prime above the widest
# layer of the guide; the rows of a wider layer overlap, which only makes units share numbers with units far away.
MASK_STRIDE = 1031
GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True)
class AdamWColumns:
    """What one step of AdamW multiplies by, a number for every member, (member, 1) float32 on the device.

    Attributes
    ----------
    keep
        1 − learning rate · weight decay.
    minus_rate, epsilon
        −learning rate · √(1 − β₂ᵗ)/(1 − β₁ᵗ) and ε · √(1 − β₂ᵗ): both bias corrections of step t.
    """

    betas: tuple[float, float]
    keep: Tensor
    minus_rate: Tensor
    epsilon: Tensor


def adamw_columns(groups: Sequence[dict[str, Any]], steps: Tensor, device: torch.device) -> AdamWColumns:
    """The columns of several steps at once, (n_steps, member, 1), from the parameter group of every member's optimiser.

    Parameters
    ----------
    steps
        t of every step and member, (n_steps, member) float64.
    """
    lr, decay, epsilon = (
        torch.tensor([group[name] for group in groups], dtype=torch.float64) for name in ("lr", "weight_decay", "eps")
    )
    first, second = groups[0]["betas"]
    root = (1.0 - second**steps).sqrt()

    def column(values: Tensor) -> Tensor:
        return values.expand_as(steps).float().unsqueeze(-1).to(device)

    return AdamWColumns(
        (first, second), column(1.0 - lr * decay), column(-lr * root / (1.0 - first**steps)), column(epsilon * root)
    )


class StackedNorm:
    """Batch normalisation of every member at one place of the network; its statistics lie side by side, padded."""

    def __init__(self, norms: Sequence[nn.BatchNorm1d]) -> None:
        self._norms = list(norms)
        widest = max(norm.num_features for norm in norms)
        device = norms[0].weight.device
        self._mean, self._variance = (torch.zeros(len(norms), widest, device=device) for _ in range(2))
        for stacked, own in self._pairs():
            stacked.copy_(own)

    def normalise(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Training mode: by the statistics of the batch, for hidden (member, batch, width)."""
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

    def write_back(self, n_steps: int) -> None:
        """Give every member's own layer its running statistics after `n_steps` more batches."""
        for stacked, own in self._pairs():
            own.copy_(stacked)
        for norm in self._norms:
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(n_steps)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        for member, norm in enumerate(self._norms):
            if norm.running_mean is not None and norm.running_var is not None:
                yield self._mean[member, : norm.num_features], norm.running_mean
                yield self._variance[member, : norm.num_features], norm.running_var


class MaskPool:
    """Dropout masks of the layers that share a rate, cut from a pool of random numbers drawn anew every epoch.

    A member draws its part of the pool from its own generator, and where a mask is cut depends on nothing but how many
    were cut before. So the masks are the same whatever other members there are and however wide.
    """

    def __init__(self, rates: Sequence[float], widths: Sequence[int], batch_size: int, device: torch.device) -> None:
        self.rates = list(rates)
        rows = batch_size * MASK_STRIDE
        self._n_starts = (MASK_POOL - 1) * rows
        self._lengths = [MASK_POOL * rows + width for width in widths]
        self._pool = torch.ones(len(self.rates), max(self._lengths) if any(rates) else 0, device=device)
        self._n_cut = 0

    def refresh(self, member: int, generator: torch.Generator) -> None:
        """Draw a member's part anew: 1 / (1 − rate) with probability 1 − rate, else 0."""
        rate = self.rates[member]
        if rate > 0:
            part = self._pool[member, : self._lengths[member]]
            part.bernoulli_(1.0 - rate, generator=generator).div_(1.0 - rate)

    def begin_epoch(self) -> None:
        """Cut from the beginning again; after `refresh` of all members."""
        self._n_cut = 0

    def apply(self, hidden: Tensor) -> Tensor:
        """Hidden values (member, batch, width) after dropout."""
        if not any(self.rates):
            return hidden
        self._n_cut += 1
        start = int(self._n_cut * GOLDEN_RATIO % 1.0 * self._n_starts)
        mask = self._pool.as_strided(hidden.shape, (self._pool.stride(0), MASK_STRIDE, 1), start)
        return hidden * mask.to(hidden.dtype)
