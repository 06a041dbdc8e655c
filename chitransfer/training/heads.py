"""Heads on frozen encoders on the CPU: one step for all members at once, hand-written gradients, cheap dropout.

Called by `training.stage2`. Autograd under `vmap`, which the GPU uses for the same purpose, takes twice as long here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from chitransfer.model.network import NetworkShape, chi_at
from chitransfer.training.fast import KeepMasks, gradient_of, silu
from chitransfer.training.losses import chi_loss, solubility_loss
from chitransfer.training.tasks import Stage2Settings


@dataclass(frozen=True)
class HeadRows:
    """Rows of one table in a step; members with fewer rows than the longest one are padded.

    Attributes
    ----------
    real
        False for padding, (n_members, n_rows) bool.
    target, tau
        As in `TaskRows`, (n_members, n_rows) float32 each.
    """

    real: Tensor
    target: Tensor
    tau: Tensor

    @property
    def weight(self) -> Tensor:
        """Weight of each row in its member's mean, (n_members, n_rows); zero for padding."""
        return self.real / self.real.sum(1, keepdim=True).clamp(min=1)


class _Head:
    """One head of every member: linear, SiLU, dropout, linear. Gradients overwrite ``grad``."""

    def __init__(self, parameters: Mapping[str, Tensor], dropout: float, masks: KeepMasks) -> None:
        self._first, self._first_bias, self._last, self._last_bias = parameters.values()
        self._gradients = [gradient_of(parameter) for parameter in parameters.values()]
        self._dropout, self._masks = dropout, masks

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (n_members, n_rows, n_outputs) for inputs (n_members, n_rows, width); keeps what `backward` needs."""
        hidden, slope = silu(torch.baddbmm(self._first_bias.unsqueeze(1), inputs, self._first.mT))
        if self._dropout > 0:
            kept = self._masks.draw(hidden.shape, self._dropout)
            hidden.mul_(kept)
            slope.mul_(kept)
        self._inputs, self._hidden, self._slope = inputs, hidden, slope
        return torch.baddbmm(self._last_bias.unsqueeze(1), hidden, self._last.mT)

    def backward(self, gradient: Tensor) -> Tensor:
        """Gradients of the parameters from those of the outputs of the last `forward`.

        Returns
        -------
        Tensor
            The gradient of the last column of the inputs, (n_members, n_rows, 1).
        """
        of_first, of_first_bias, of_last, of_last_bias = self._gradients
        torch.bmm(gradient.mT, self._hidden, out=of_last)
        torch.sum(gradient, dim=1, out=of_last_bias)
        of_sums = torch.bmm(gradient, self._last).mul_(self._slope)
        torch.bmm(of_sums.mT, self._inputs, out=of_first)
        torch.sum(of_sums, dim=1, out=of_first_bias)
        return torch.bmm(of_sums, self._first[:, :, -1:])


class HeadStep:
    """Loss and gradients of the heads of all members.

    Parameters
    ----------
    stacked
        Parameters of `Heads`, each (n_members, …), in its order.
    n_chi, n_solubility
        The largest number of rows of each table in a step. A solubility head without rows is not trained.

    Attributes
    ----------
    parameters
        Views of `values` by name, each with a view of its gradients as ``grad``; trained parameters only.
    values
        All of them as one vector, the leaf whose ``grad`` the optimiser uses.
    """

    def __init__(
        self,
        stacked: Mapping[str, Tensor],
        shape: NetworkShape,
        settings: Stage2Settings,
        n_chi: int,
        n_solubility: int,
    ) -> None:
        self._settings = settings
        names = [name for name in stacked if n_solubility or not name.startswith("solubility.")]
        values = torch.cat([stacked[name].detach().reshape(-1) for name in names])
        self.parameters: dict[str, Tensor] = {}
        gradients, start = torch.zeros_like(values), 0
        for name in names:
            own = slice(start, start + stacked[name].numel())
            self.parameters[name] = values[own].view(stacked[name].shape)
            self.parameters[name].grad = gradients[own].view(stacked[name].shape)
            start = own.stop
        self.values = values.requires_grad_(True)
        self.values.grad = gradients
        n_members = len(next(iter(stacked.values())))
        dropouts = {"chi": shape.chi_head_dropout, "solubility": shape.solubility_head_dropout}
        widths = {
            "chi": (n_chi + n_solubility) * shape.chi_head_hidden_dim,
            "solubility": n_solubility * shape.solubility_head_hidden_dim,
        }
        sizes: dict[float, int] = {}
        for name, rate in dropouts.items():
            if rate > 0:
                sizes[rate] = max(sizes.get(rate, 0), n_members * widths[name])
        self._masks = KeepMasks(sizes)
        self._heads = {
            name: _Head({n: p for n, p in self.parameters.items() if n.startswith(f"{name}.")}, rate, self._masks)
            for name, rate in dropouts.items()
            if name == "chi" or n_solubility
        }

    def begin_epoch(self) -> None:
        """Draw new random numbers for dropout; must be called before the first step of every epoch."""
        self._masks.refresh()

    @torch.no_grad()
    def loss_and_gradients(self, latents: Tensor, chi: HeadRows | None, solubility: HeadRows | None) -> Tensor:
        """Sum of the members' losses; leaves the gradients in the ``grad`` of `parameters`.

        Parameters
        ----------
        latents
            Of the χ rows, then of the solubility rows, (n_members, n_rows, latent_dim).
        chi, solubility
            The rows in the same order; ``None`` for a table without any.
        """
        settings = self._settings
        coefficients = self._heads["chi"].forward(latents)
        gradient = torch.zeros_like(coefficients)
        loss = coefficients.new_zeros(())
        n_chi = 0
        if chi is not None:
            n_chi = chi.real.shape[1]
            predicted = chi_at(coefficients[:, :n_chi], chi.tau)
            loss += settings.lambda_exp * chi_loss(predicted, chi.target, chi.real).sum()
            of_chi = (predicted - chi.target).mul_(chi.weight).mul_(2.0 * settings.lambda_exp)
            gradient[:, :n_chi] = torch.stack([of_chi, of_chi * chi.tau], dim=2)
        if solubility is not None:
            head, label = self._heads["solubility"], solubility.target
            logits = head.forward(torch.cat([latents[:, n_chi:], coefficients[:, n_chi:, :1]], dim=2)).squeeze(2)
            values = solubility_loss(logits, label, solubility.real, settings.class_weight_pos)
            loss += settings.lambda_sol * values.sum()
            # Derivative of −p y log σ(z) − (1 − y) log(1 − σ(z)) with respect to z; positive labels y have weight p.
            positive = settings.class_weight_pos * label
            of_logits = torch.sigmoid(logits).mul_(positive + 1.0 - label).sub_(positive)
            of_logits.mul_(solubility.weight).mul_(settings.lambda_sol)
            gradient[:, n_chi:, :1] = head.backward(of_logits.unsqueeze(2))
        self._heads["chi"].backward(gradient)
        return loss
