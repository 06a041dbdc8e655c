"""Rehearsal of Stage 1: while the encoder is fine-tuned on measured χ, a second χ head keeps learning computed χ.

Called by `training.stage2` and `training.unfrozen` when the encoder is not frozen and ``lambda_dft`` is above zero.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from chitransfer.model.network import TransferNetwork, chi_at
from chitransfer.training.inputs import PairTable
from chitransfer.training.losses import chi_loss


class Rehearsal:
    """Random batches of computed χ, and the head that learns from them.

    A member fine-tuned on forty polymers forgets what Stage 1 knew of the others; the computed χ of a polymer without
    measurements keeps its latent vector in place.

    Parameters
    ----------
    network
        The second head starts as a copy of its χ head.
    computed
        Stage 1's rows.
    batch_size
        Pairs per step.

    Attributes
    ----------
    head
        A copy of the χ head, with dropout active.
    """

    def __init__(self, network: TransferNetwork, computed: PairTable, batch_size: int, seed: int) -> None:
        self.computed, self.batch_size = computed, min(batch_size, len(computed))
        self._generator = torch.Generator().manual_seed(seed)
        self.head: nn.Module = copy.deepcopy(network.heads.chi).train()

    def draw(self, n_batches: int) -> Tensor:
        """Positions of pairs, drawn with replacement, (n_batches, batch_size) int64."""
        pairs = torch.randint(len(self.computed), (n_batches, self.batch_size), generator=self._generator)
        return pairs.to(self.computed.tau.device)

    def loss(self, coefficients: Tensor, pairs: Tensor) -> Tensor:
        """Mean squared error of standardised computed χ, from the second head's coefficients (…, batch_size, 2)."""
        predicted = chi_at(coefficients.unsqueeze(-2), self.computed.tau[pairs])  # (…, pair, temperature)
        return chi_loss(predicted, self.computed.target[pairs], self.computed.mask[pairs], dim=(-2, -1))
