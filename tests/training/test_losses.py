"""Losses over padded batches against the plain formula on the real rows alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chitransfer.training.losses import chi_loss, masked_mean, solubility_loss


def test_padding_counts_nothing() -> None:
    values = torch.tensor([[1.0, 2.0, 1e9], [4.0, 1e9, 1e9]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    torch.testing.assert_close(masked_mean(values, mask, -1), torch.tensor([1.5, 4.0]))
    torch.testing.assert_close(masked_mean(values, mask, (0, 1)), torch.tensor(7.0 / 3.0))


def test_an_absent_task_is_zero_and_has_no_gradient() -> None:
    predicted = torch.ones(2, 3, requires_grad=True)
    loss = chi_loss(predicted, torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    assert loss.tolist() == [0.0, 0.0]
    loss.sum().backward()
    assert predicted.grad is not None
    assert predicted.grad.abs().max() == 0.0


def test_each_task_is_averaged_over_its_own_labels() -> None:
    """Adding rows without a label must not dilute those that have one."""
    few = chi_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([True]))
    diluted = chi_loss(torch.tensor([1.0, 5.0]), torch.tensor([0.0, 0.0]), torch.tensor([True, False]))
    assert few == diluted == 1.0


@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_solubility_by_hand(weight: float, rng: np.random.Generator) -> None:
    logit, label = rng.normal(size=12), (rng.random(12) < 0.5).astype(float)
    mask = rng.random(12) < 0.7
    p = 1.0 / (1.0 + np.exp(-logit))
    by_hand = -(weight * label * np.log(p) + (1 - label) * np.log(1 - p))[mask].mean()
    found = solubility_loss(torch.tensor(logit), torch.tensor(label), torch.tensor(mask), weight)
    assert float(found) == pytest.approx(by_hand, rel=1e-9)


def test_extreme_logits_stay_finite() -> None:
    loss = solubility_loss(torch.tensor([1e4, -1e4]), torch.tensor([0.0, 1.0]), torch.tensor([True, True]), 5.0)
    assert torch.isfinite(loss)
