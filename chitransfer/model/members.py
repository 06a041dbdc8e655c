"""Stage 2 networks derived from one Stage 1 network but trained on different rows, stacked along one axis.

Trained by `training.stage2`, stored by `model.checkpoint`, used by `predict`.
"""

from __future__ import annotations

import copy
from typing import Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.func import functional_call, vmap

from chitransfer.errors import TrainingError
from chitransfer.model.network import TransferNetwork

FIRST_WEIGHT = "encoder.0.weight"
# Number of rows whose inputs are dense at the same time.
ROWS_AT_A_TIME = 2048


class PairInputs(Protocol):
    """Gives network inputs (…, n_features) for pairs of structure and solvent by index."""

    def gather(self, structure: Tensor, solvent: Tensor) -> Tensor:
        """Inputs of the pairs."""


class FittedMembers:
    """Members fine-tuned from one network.

    Parameters
    ----------
    network
        The Stage 1 network. If frozen, its encoder serves every member. If not, it provides the first-layer weights of
        features that no Stage 2 row has, which no gradient ever reached.
    parameters
        Stacked parameters of the heads (frozen) or of the whole network, each (n_members, …). The first layer's weight
        then covers only `columns`.
    columns
        Features whose first-layer weights the members own, (n_columns,) int64; ``None`` if frozen.
    learned_chi
        Which members learned measured χ, (n_members,) bool; ``None``: all. The others use the χ of `network`, because
        theirs was changed only by labels, through the solubility head that reads it.
    """

    def __init__(
        self,
        network: TransferNetwork,
        parameters: dict[str, Tensor],
        frozen: bool,
        columns: Tensor | None = None,
        learned_chi: Tensor | None = None,
    ) -> None:
        self.frozen = frozen
        self.network = network.eval()
        self.parameters = parameters
        self.columns = columns
        self.learned_chi = learned_chi
        self._compact = None if columns is None else _Shifted(keep_columns(network, columns)).eval()

    def __len__(self) -> int:
        return int(next(iter(self.parameters.values())).shape[0])

    @torch.no_grad()
    def predict(self, features: PairInputs, structure: Tensor, solvent: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of standardised χ(T) (n_members, n_pairs, 2) and positive-class logits (n_members, n_pairs).

        Raises
        ------
        TrainingError
            Some are NaN or infinite: Stage 2 diverged in its last step, which no later loss could show.
        """
        coefficients, logits = [], []
        for s, v in zip(structure.split(ROWS_AT_A_TIME), solvent.split(ROWS_AT_A_TIME), strict=True):
            part = self.forward(features.gather(s, v))
            coefficients.append(part[0])
            logits.append(part[1])
        if not coefficients:
            return torch.zeros(len(self), 0, 2), torch.zeros(len(self), 0)
        found = torch.cat(coefficients, dim=1), torch.cat(logits, dim=1)
        if not all(bool(values.isfinite().all()) for values in found):
            raise TrainingError(
                "Stage 2: predictions became NaN or infinite; a lower learning rate usually helps "
                "(training.lr_finetune, or training.lr_encoder of an encoder that is not frozen)"
            )
        return found

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """All members on the same inputs (n_pairs, n_features), without dropout and without gradients; as `predict`."""
        coefficients, logits = self._own(inputs)
        if self.learned_chi is not None and not self.learned_chi.all():
            of_stage1 = self.network.heads.chi(self._encode(inputs))
            coefficients = torch.where(self.learned_chi[:, None, None], coefficients, of_stage1)
        return coefficients, logits

    def _encode(self, inputs: Tensor) -> Tensor:
        """Latent vectors from Stage 1's encoder, (n_pairs, latent_dim)."""
        first = self.network.encoder.first
        latents = apply_to_sparse(first.weight, inputs) + first.bias
        for layer in list(self.network.encoder.children())[1:]:
            latents = layer(latents)
        return latents

    def _own(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self.columns is None or self._compact is None:
            return self._each(self.network.heads, self.parameters, self._encode(inputs))
        first = self.network.encoder.first
        others = torch.ones(inputs.shape[-1], dtype=torch.bool, device=inputs.device)
        others[self.columns] = False
        # What the members have in common is computed once; features that no pair has are skipped.
        shift = apply_to_sparse(first.weight[:, others], inputs[:, others])
        own = inputs[:, self.columns]
        present = (own != 0).any(0)
        parameters = self.parameters | {FIRST_WEIGHT: self.parameters[FIRST_WEIGHT][..., present]}
        inner = {f"network.{name}": stacked for name, stacked in parameters.items()}
        return self._each(self._compact, inner, own[:, present], shift)

    @staticmethod
    def _each(module: nn.Module, parameters: dict[str, Tensor], *arguments: Tensor) -> tuple[Tensor, Tensor]:
        """A module's outputs under each member's parameters, stacked."""

        def one(own: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            result: tuple[Tensor, Tensor] = functional_call(module, own, arguments)
            return result

        result: tuple[Tensor, Tensor] = vmap(one)(parameters)
        return result

    def member(self, position: int) -> TransferNetwork:
        """One member as a separate network, in eval mode, with its own χ whether or not it `learned_chi`."""
        network = copy.deepcopy(self.network)
        target = network.heads if self.frozen else network
        own = {name: stacked[position].detach() for name, stacked in self.parameters.items()}
        if self.columns is not None:
            whole = network.encoder.first.weight.detach().clone()
            whole[:, self.columns] = own[FIRST_WEIGHT]
            own[FIRST_WEIGHT] = whole
        target.load_state_dict(own, strict=False)
        return network.eval()

    def to(self, dtype: torch.dtype) -> FittedMembers:
        """A copy in another floating-point precision."""
        parameters = {name: stacked.to(dtype) for name, stacked in self.parameters.items()}
        network = copy.deepcopy(self.network).to(dtype)
        return FittedMembers(network, parameters, self.frozen, self.columns, self.learned_chi)


def apply_to_sparse(weight: Tensor, inputs: Tensor) -> Tensor:
    """``inputs @ weight.T``, (n_pairs, width), for inputs that are mostly zero; without gradients.

    Fingerprints have about forty of two thousand bits set; on a CPU the zeros are skipped, elsewhere they cost nothing.

    Parameters
    ----------
    weight, inputs
        (width, n_features) and (n_pairs, n_features), with the same dtype and device.
    """
    if inputs.device.type != "cpu":
        return inputs @ weight.T
    product: np.ndarray = sparse.csr_matrix(inputs.numpy()) @ weight.detach().T.numpy()
    return torch.from_numpy(product)


class _Shifted(nn.Module):
    """A network over some of the features; `shift` (n_pairs, n_hidden) is the others' share of the first layer."""

    def __init__(self, network: TransferNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        first, *others = self.network.encoder.children()
        hidden = first(inputs) + shift
        for layer in others:
            hidden = layer(hidden)
        result: tuple[Tensor, Tensor] = self.network.heads(hidden)
        return result


def keep_columns(network: TransferNetwork, columns: Tensor) -> TransferNetwork:
    """A copy of a network that reads only some of its features, given by index (n_columns,) int64."""
    compact = copy.deepcopy(network)
    first = compact.encoder.first
    first.weight = nn.Parameter(first.weight.detach()[:, columns].clone())
    first.in_features = len(columns)
    return compact


def spread_columns(compact: TransferNetwork, columns: Tensor) -> TransferNetwork:
    """The inverse of `keep_columns`: a copy that reads every feature, with zero weights for those left out."""
    network = copy.deepcopy(compact)
    first, n_features = network.encoder.first, network.shape.n_features
    weight = first.weight.detach().new_zeros(first.out_features, n_features)
    weight[:, columns] = first.weight.detach()
    first.weight = nn.Parameter(weight)
    first.in_features = n_features
    return network
