"""Losses over padded batches: each task is averaged over its own labels, and an absent task contributes zero.

Called by all code that takes steps: `training.stage1`, `stage2`, `heads`, `packed`, `unfrozen` and `rehearsal`.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def masked_mean(values: Tensor, mask: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Mean of `values` where `mask` (same shape) is true, over `dim`; zero where nothing is true."""
    return (values * mask).sum(dim) / mask.sum(dim).clamp(min=1)


def chi_loss(predicted: Tensor, target: Tensor, mask: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """Mean squared error of standardised χ over the rows in `mask`; all of equal shape, reduced over `dim`."""
    return masked_mean((predicted - target) ** 2, mask, dim)


def solubility_loss(logit: Tensor, label: Tensor, mask: Tensor, class_weight_pos: float, dim: int = -1) -> Tensor:
    """Binary cross-entropy over the rows in `mask`, shapes as in `chi_loss`; positive rows weigh `class_weight_pos`."""
    weight = logit.new_full((), class_weight_pos)
    values = functional.binary_cross_entropy_with_logits(logit, label, pos_weight=weight, reduction="none")
    return masked_mean(values, mask, dim)
