"""What all fine-tuning shares: shuffled batches, falling learning rates, a new solubility head, dropout at work."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_training import FINE_TUNING, small_shape
from torch import Tensor, nn

from chitransfer.model.network import TransferNetwork
from chitransfer.training.member import let_dropout_work, train_members, with_new_solubility_head
from chitransfer.training.stage2 import fit_members
from chitransfer.training.tasks import Stage2Data


class Noting:
    """Trains nothing, and notes the learning rates of every step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.seen: list[tuple[int, list[float]]] = []

    def batches(self, epoch: int) -> Iterator[int]:
        """Two steps an epoch."""
        yield from (epoch, epoch)

    def take_step(self, batch: int) -> Tensor:
        """The loss of nothing."""
        self.seen.append((batch, [float(group["lr"]) for group in self.optimizer.param_groups]))
        return torch.tensor(0.5)


@pytest.mark.parametrize("as_tensors", [False, True])
@pytest.mark.parametrize("lr_decay", [False, True])
def test_learning_rates_fall_along_half_a_cosine_from_those_given(lr_decay: bool, as_tensors: bool) -> None:
    rates = (1e-2, 1e-4)
    groups = [
        {"params": [nn.Parameter(torch.zeros(1))], "lr": torch.tensor(rate) if as_tensors else rate} for rate in rates
    ]
    training = Noting(torch.optim.AdamW(groups, capturable=False, foreach=False))
    told: list[int] = []
    train_members(training, replace(FINE_TUNING, lr_decay=lr_decay, n_epochs=5), told.append)
    assert told == [1, 2, 3, 4, 5]
    assert [epoch for epoch, _ in training.seen] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    for epoch, found in training.seen:
        left = (1.0 + math.cos(math.pi * (epoch - 1) / 5)) / 2.0 if lr_decay else 1.0
        assert found == pytest.approx([rate * left for rate in rates], rel=1e-6)


def test_the_solubility_head_is_new_and_nothing_else() -> None:
    network = TransferNetwork(small_shape(5))
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(1)
    members = [with_new_solubility_head(network) for _ in range(2)]
    for name, weights in before.items():
        assert torch.equal(network.state_dict()[name], weights)
        own, other = (member.state_dict()[name] for member in members)
        is_new = name.startswith("heads.solubility")
        assert torch.equal(own, weights) != is_new
        assert torch.equal(own, other) != is_new
        assert own.data_ptr() != network.state_dict()[name].data_ptr()


def test_batch_statistics_stay_while_dropout_works() -> None:
    network = TransferNetwork(small_shape(5, use_batchnorm=True, encoder_dropout=0.5)).eval()
    let_dropout_work(network)
    in_training = {type(part) for part in network.modules() if part.training}
    assert in_training == {nn.Dropout}
    assert all(part.training for part in network.modules() if isinstance(part, nn.Dropout))


def test_batches_are_shuffled_by_the_seed(
    pretrained: tuple[TransferNetwork, Stage2Data],
    masks: tuple[np.ndarray, np.ndarray],
    way: str,
) -> None:
    """Without labels and dropout χ hears of a seed by the order of rows alone, and in one batch there is none."""
    network, data = pretrained
    for batch_size, is_same in ((4, False), (5000, True)):
        settings = replace(
            FINE_TUNING, batch_size=batch_size, n_epochs=1, lambda_sol=0.0, freeze_encoder=way == "frozen"
        )
        first, second = (fit_members(network, data, *masks, settings, seed).parameters for seed in (3, 4))
        chi = [name for name in first if "solubility" not in name]
        assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in chi) == is_same
        # The new solubility heads, not trained here, are the seed's, too.
        assert not any(torch.equal(first[name], second[name]) for name in first.keys() - chi)


def test_members_of_the_same_rows_differ_by_their_order(
    pretrained: tuple[TransferNetwork, Stage2Data], masks: tuple[np.ndarray, np.ndarray], way: str
) -> None:
    """Else members would agree more than their training allows, and what they disagree by goes into intervals."""
    network, data = pretrained
    settings = replace(FINE_TUNING, batch_size=4, n_epochs=1, lambda_sol=0.0, freeze_encoder=way == "frozen")
    chi, solubility = (rows[[0, 0]] for rows in masks)
    weights = fit_members(network, data, chi, solubility, settings, 3).parameters
    assert not torch.allclose(*weights[next(name for name in weights if "chi" in name)], atol=1e-5)
