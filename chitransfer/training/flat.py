"""All trained weights as one vector, their gradients as another, and AdamW on them.

Made by `training.stage1` and `training.unfrozen`; `training.fast` and autograd leave gradients in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chitransfer.model.network import TransferNetwork


class FlatParameters:
    """Trained parameters and their gradients, each as one vector; the network's parameters are views of it.

    The first layer's gradient may lie elsewhere, in whatever its parameter's ``grad`` was set to.

    Parameters
    ----------
    parameters
        The parameters in the order of the vector. The first is the first layer's weight, which is stored transposed:
        one row per feature.

    Attributes
    ----------
    values
        Every trained weight, (n_weights,) float32; a leaf whose ``grad`` is `gradients`.
    gradients
        (n_weights,) float32.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._first = parameters[0]
        values = torch.cat([(p.t() if p is self._first else p).detach().reshape(-1) for p in parameters])
        self.gradients = torch.zeros_like(values)
        start = 0
        for parameter in parameters:
            stop, shape = start + parameter.numel(), parameter.shape
            for vector, name in ((values, "data"), (self.gradients, "grad")):
                part = vector[start:stop]
                is_first = parameter is self._first
                setattr(parameter, name, part.view(shape[1], shape[0]).t() if is_first else part.view(shape))
            start = stop
        self.values = values.requires_grad_(True)
        self.values.grad = self.gradients

    @classmethod
    def of(cls, network: TransferNetwork) -> FlatParameters:
        """Move encoder and χ head into one vector."""
        return cls(trained_parameters(network))

    def part(self, weights: slice) -> Tensor:
        """A slice of the values as a leaf with its own gradients, so that it can have its own learning rate."""
        part = self.values.detach()[weights]
        part.grad = self.gradients[weights]
        return part

    def pieces(self) -> list[Tensor]:
        """The gradients where they lie, in the order of `values`: one vector, or the first layer's and the rest.

        Returns
        -------
        list of Tensor
            One-dimensional views, together (n_weights,).

        Raises
        ------
        ValueError
            The ``grad`` of the first layer's weight was dropped.
        """
        if self._first.grad is None:
            raise ValueError("the first layer has lost its gradient")
        of_first = self._first.grad.t().reshape(-1)
        if of_first.data_ptr() == self.gradients.data_ptr():
            return [self.gradients]
        return [of_first, self.gradients[len(of_first) :]]

    def clip(self, largest_norm: float) -> None:
        """Scale the gradients down to a norm of at most `largest_norm`, without waiting for the device."""
        if self.gradients.device.type == "cpu":
            # Reading the norm is free on a CPU, and most steps need no scaling. A dot product takes half a norm's time.
            pieces = self.pieces()
            norm = sum(float(torch.dot(piece, piece)) for piece in pieces) ** 0.5
            if norm > largest_norm:
                for piece in pieces:
                    piece.mul_(largest_norm / (norm + 1e-6))
        else:
            on_device = torch.linalg.vector_norm(self.gradients)
            self.gradients.mul_((largest_norm / (on_device + 1e-6)).clamp(max=1.0))


class FlatAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` on the vector of `FlatParameters`; on a CPU without its per-step bookkeeping.

    For a vector of a million weights that bookkeeping takes a third as long as the kernel itself.

    Parameters
    ----------
    flat
        The weights to train.
    groups
        As `torch.optim.AdamW` takes them: ``flat.values``, or groups of one `FlatParameters.part` each that together
        make up the whole vector in order.
    """

    def __init__(self, flat: FlatParameters, groups: Any, *, weight_decay: float, lr: float = 1e-3) -> None:
        super().__init__(groups, lr=lr, weight_decay=weight_decay, fused=True)
        self._flat = flat

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of AdamW with the current gradients."""
        if closure is not None or self._flat.gradients.device.type != "cpu":
            return super().step(closure)
        pieces, start = self._flat.pieces(), 0
        for group in self.param_groups:
            (values,) = group["params"]
            state = self.state[values]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(values), torch.zeros_like(values)
            state["step"] += 1
            parts = list(_cut(pieces, start, start + len(values)))
            torch._fused_adamw_(
                [values.detach()[part] for part, _ in parts],
                [gradient for _, gradient in parts],
                [state["exp_avg"][part] for part, _ in parts],
                [state["exp_avg_sq"][part] for part, _ in parts],
                [],
                [state["step"]] * len(parts),
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
            start += len(values)
        return None


def _cut(pieces: Sequence[Tensor], start: int, stop: int) -> Iterator[tuple[slice, Tensor]]:
    """A stretch of a vector that is given in pieces: (position within the stretch, values) of every part."""
    position = 0
    for piece in pieces:
        low, high = max(start, position), min(stop, position + len(piece))
        if low < high:
            yield slice(low - start, high - start), piece[low - position : high - position]
        position += len(piece)


def trained_parameters(network: TransferNetwork) -> list[nn.Parameter]:
    """The parameters Stage 1 trains, in the order of `FlatParameters`: the encoder, then the χ head.

    The solubility head has no labels in Stage 1; it is excluded so that weight decay does not shrink it.
    """
    return [*network.encoder.parameters(), *network.heads.chi.parameters()]
