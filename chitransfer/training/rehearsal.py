"""Keeping Stage 1 in mind: while the encoder is fine-tuned on measured χ, a second χ head goes on with computed χ.

Called by `training.stage2` when the encoder is not frozen and ``lambda_dft`` is above zero.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from chitransfer.model.network import TransferNetwork, chi_at
from chitransfer.training.inputs import FeatureTensors, PairTable
from chitransfer.training.losses import chi_loss

ENCODER = "encoder."


class Rehearsal:
    """The loss on computed χ of a random batch a step, for all members at once.

    A member that learned from forty polymers forgets what Stage 1 knew of the others; the computed χ of a polymer
    without measurements keeps its latent vector where it was.

    Parameters
    ----------
    network
        Whose χ head every member's second head starts from.
    computed
        Stage 1's rows.
    features
        The features the members read.
    batch_size
        Pairs a step; all members take the same.
    """

    def __init__(
        self,
        network: TransferNetwork,
        computed: PairTable,
        features: FeatureTensors,
        n_members: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self._computed, self._features, self._batch_size = computed, features, min(batch_size, len(computed))
        self._generator = torch.Generator().manual_seed(seed)
        self._head = copy.deepcopy(network.heads.chi).train()
        self.parameters = {
            name: parameter.detach().expand(n_members, *parameter.shape).clone().requires_grad_(True)
            for name, parameter in self._head.named_parameters()
        }

    def loss(self, encoder: nn.Module, members: dict[str, Tensor]) -> Tensor:
        """Mean squared error of standardised computed χ for each member, (n_members,).

        Parameters
        ----------
        encoder
            Holds the structure; `members` (named as in the network) the stacked weights.
        """
        table = self._computed
        pairs = torch.randint(len(table), (self._batch_size,), generator=self._generator).to(table.tau.device)
        inputs = self._features.gather(table.structure[pairs], table.solvent[pairs])
        weights = {name.removeprefix(ENCODER): stacked for name, stacked in members.items() if name.startswith(ENCODER)}

        def one(own: dict[str, Tensor], head: dict[str, Tensor]) -> Tensor:
            latent = functional_call(encoder, own, (inputs,))
            coefficients: Tensor = functional_call(self._head, head, (latent,))
            return coefficients

        coefficients = vmap(one, randomness="different")(weights, self.parameters)  # (member, pair, 2)
        predicted = chi_at(coefficients.unsqueeze(-2), table.tau[pairs])  # (member, pair, temperature)
        return chi_loss(predicted, table.target[pairs], table.mask[pairs], dim=(-2, -1))
