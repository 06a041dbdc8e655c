"""Heads by hand: loss and gradients against autograd on the same dropout masks, member by member."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_training import STAGE2, small_shape
from torch import Tensor
from torch.func import stack_module_state
from torch.nn import functional

from chitransfer.model.network import Heads, NetworkShape
from chitransfer.training.fast import KeepMasks
from chitransfer.training.heads import HeadRows, HeadStep

N_MEMBERS, LATENT_DIM = 3, 5
SETTINGS = replace(STAGE2, lambda_sol=0.7, class_weight_pos=2.5)


def make_shape(chi_dropout: float, solubility_dropout: float) -> NetworkShape:
    changes = {"chi_head_dropout": chi_dropout, "solubility_head_dropout": solubility_dropout}
    return small_shape(10, latent_dim=LATENT_DIM, chi_head_hidden_dim=6, **changes)


def make_rows(rng: np.random.Generator, n_rows: int) -> HeadRows:
    """Every member has another number of rows; the first all of them."""
    real = torch.arange(n_rows) < torch.tensor([[n_rows], [n_rows - 1], [1]])
    target = torch.from_numpy(rng.integers(0, 2, (N_MEMBERS, n_rows)).astype(np.float32))
    tau = torch.from_numpy(rng.normal(size=(N_MEMBERS, n_rows)).astype(np.float32))
    return HeadRows(real, target, tau)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Dropout masks in the order in which they were drawn."""
    masks: list[Tensor] = []
    draw = KeepMasks.draw

    def keep(self: KeepMasks, shape: torch.Size, rate: float) -> Tensor:
        masks.append(draw(self, shape, rate).clone())
        return masks[-1]

    monkeypatch.setattr(KeepMasks, "draw", keep)
    return masks


def loss_of_member(
    heads: Heads, latents: Tensor, chi: HeadRows | None, solubility: HeadRows | None, masks: list[Tensor], member: int
) -> Tensor:
    """One member's loss in plain PyTorch on its real rows; `masks` are those of the χ head, then the other's."""

    def apply(head: torch.nn.Sequential, inputs: Tensor, mask: Tensor) -> Tensor:
        result: Tensor = head[3](functional.silu(head[0](inputs)) * mask)
        return result

    n_chi = 0 if chi is None else chi.real.shape[1]
    coefficients = apply(heads.chi, latents, masks[0][member])
    loss = latents.new_zeros(())
    if chi is not None:
        own = chi.real[member]
        predicted = coefficients[:n_chi, 0] + coefficients[:n_chi, 1] * chi.tau[member]
        loss = loss + SETTINGS.lambda_exp * functional.mse_loss(predicted[own], chi.target[member][own])
    if solubility is not None:
        own = solubility.real[member]
        inputs = torch.cat([latents[n_chi:], coefficients[n_chi:, :1]], dim=1)
        logits = apply(heads.solubility, inputs, masks[1][member]).squeeze(1)
        weight = torch.tensor(SETTINGS.class_weight_pos)
        loss = loss + SETTINGS.lambda_sol * functional.binary_cross_entropy_with_logits(
            logits[own], solubility.target[member][own], pos_weight=weight
        )
    return loss


@pytest.mark.parametrize(("n_chi", "n_solubility"), [(4, 7), (7, 4), (5, 0), (0, 5)])
@pytest.mark.parametrize("dropouts", [(0.3, 0.3), (0.2, 0.6)])
def test_loss_and_gradients_are_those_of_autograd(
    rng: np.random.Generator, drawn: list[Tensor], n_chi: int, n_solubility: int, dropouts: tuple[float, float]
) -> None:
    torch.manual_seed(0)
    members = [Heads(make_shape(*dropouts)) for _ in range(N_MEMBERS)]
    stacked, _ = stack_module_state(members)  # type: ignore[arg-type]
    step = HeadStep(stacked, make_shape(*dropouts), SETTINGS, n_chi, n_solubility)
    latents = torch.from_numpy(rng.normal(size=(N_MEMBERS, n_chi + n_solubility, LATENT_DIM)).astype(np.float32))
    chi = make_rows(rng, n_chi) if n_chi else None
    solubility = make_rows(rng, n_solubility) if n_solubility else None
    # Twice: gradients are written, not added.
    for _ in range(2):
        drawn.clear()
        step.begin_epoch()
        loss = step.loss_and_gradients(latents, chi, solubility)
    assert all(0 < int((mask == 0).sum()) < mask.numel() for mask in drawn)
    losses = [loss_of_member(heads, latents[m], chi, solubility, drawn, m) for m, heads in enumerate(members)]
    torch.testing.assert_close(loss, torch.stack(losses).sum().detach())
    torch.stack(losses).sum().backward()
    assert list(step.parameters) == [name for name in stacked if n_solubility or name.startswith("chi.")]
    for name, parameter in step.parameters.items():
        expected = [dict(heads.named_parameters())[name].grad for heads in members]
        torch.testing.assert_close(parameter.grad, torch.stack([grad for grad in expected if grad is not None]))


def test_an_optimiser_of_the_vector_moves_the_parameters() -> None:
    torch.manual_seed(0)
    stacked, _ = stack_module_state([Heads(make_shape(0.0, 0.0)) for _ in range(N_MEMBERS)])  # type: ignore[arg-type]
    step = HeadStep(stacked, make_shape(0.0, 0.0), SETTINGS, 2, 2)
    for name, parameter in step.parameters.items():
        torch.testing.assert_close(parameter, stacked[name].detach())
    gradient = step.values.grad
    assert gradient is not None
    gradient.fill_(1.0)
    torch.optim.SGD([step.values], lr=1.0).step()
    for name, parameter in step.parameters.items():
        torch.testing.assert_close(parameter, stacked[name].detach() - 1.0)
