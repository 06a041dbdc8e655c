"""The network: an encoder of polymer and solvent features, a χ head and a solubility head.

Built by `training.stage1`, fine-tuned by `training.stage2`, read back by `model.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

# T_ref/T − 1 spans about ±0.3 over measured temperatures; five times that is of order one, like the head's inputs.
INVERSE_TEMPERATURE_SCALE = 5.0


@dataclass(frozen=True)
class NetworkShape:
    """Sizes and dropout rates of the network, in plain numbers."""

    n_features: int
    hidden_dims: tuple[int, ...]
    latent_dim: int
    encoder_dropout: float
    use_batchnorm: bool
    chi_head_hidden_dim: int
    chi_head_dropout: float
    solubility_head_hidden_dim: int
    solubility_head_dropout: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {**asdict(self), "hidden_dims": list(self.hidden_dims)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkShape:
        """The inverse of `to_dict`."""
        return cls(**{**values, "hidden_dims": tuple(values["hidden_dims"])})


class Encoder(nn.Sequential):
    """Maps features (…, n_features) to latent vectors (…, latent_dim)."""

    def __init__(
        self, n_features: int, hidden_dims: Sequence[int], latent_dim: int, dropout: float, use_batchnorm: bool
    ) -> None:
        layers: list[nn.Module] = []
        width = n_features
        for hidden in hidden_dims:
            layers.append(nn.Linear(width, hidden))
            if use_batchnorm:
                layers.append(nn.BatchNorm1d(hidden))
            layers += [nn.SiLU(), nn.Dropout(dropout)]
            width = hidden
        super().__init__(*layers, nn.Linear(width, latent_dim))

    @property
    def first(self) -> nn.Linear:
        """The layer that receives the features."""
        first = self[0]
        if not isinstance(first, nn.Linear):
            raise TypeError(f"an encoder begins with a linear layer, not {type(first).__name__}")
        return first

    @property
    def idle_biases(self) -> list[nn.Parameter]:
        """Biases before batch norm, which subtracts them again: in training their gradient is only rounding error.

        AdamW would turn it into full-size steps, and the running means used for scoring would lag behind.
        """
        return [
            layer.bias
            for layer, following in pairwise(self)
            if isinstance(layer, nn.Linear) and isinstance(following, nn.BatchNorm1d)
        ]


class ChiHead(nn.Sequential):
    """Maps latent vectors (…, latent_dim) to the two coefficients of standardised χ(T), (…, 2)."""

    def __init__(self, latent_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__(nn.Linear(latent_dim, hidden_dim), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden_dim, 2))


class SolubilityHead(nn.Sequential):
    """Maps [latent vector, standardised χ(T_ref)] (…, latent_dim + 1) to the logit of the positive class, (…, 1)."""

    def __init__(self, latent_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(latent_dim + 1, hidden_dim), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden_dim, 1)
        )


class Heads(nn.Module):
    """Both heads on given latent vectors; quick Stage 2 stacks them over folds."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.chi = ChiHead(shape.latent_dim, shape.chi_head_hidden_dim, shape.chi_head_dropout)
        self.solubility = SolubilityHead(
            shape.latent_dim, shape.solubility_head_hidden_dim, shape.solubility_head_dropout
        )

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """χ coefficients (…, 2) and solubility logits (…) from latents (…, latent_dim)."""
        coefficients = self.chi(latent)
        reference_chi = coefficients[..., :1]
        return coefficients, self.solubility(torch.cat([latent, reference_chi], dim=-1)).squeeze(-1)


class TransferNetwork(nn.Module):
    """Encoder and heads together."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(
            shape.n_features, shape.hidden_dims, shape.latent_dim, shape.encoder_dropout, shape.use_batchnorm
        )
        self.heads = Heads(shape)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """χ coefficients (…, 2) and solubility logits (…) from scaled features (…, n_features)."""
        result: tuple[Tensor, Tensor] = self.heads(self.encoder(features))
        return result


def inverse_temperature(temperature: Tensor, T_ref: float) -> Tensor:
    """τ = 5 (T_ref/T − 1) of kelvin temperatures, so that standardised χ(T) = h₀ + h₁ τ with h₀ = χ at T_ref."""
    return INVERSE_TEMPERATURE_SCALE * (T_ref / temperature - 1.0)


def chi_at(coefficients: Tensor, tau: Tensor) -> Tensor:
    """Standardised χ from coefficients (…, 2) and τ (…)."""
    return coefficients[..., 0] + coefficients[..., 1] * tau


def inverse_temperature_line(
    coefficients: Tensor, chi_mean: float, chi_scale: float, T_ref: float
) -> tuple[Tensor, Tensor]:
    """A (K) and B of χ(T) = A/T + B from coefficients (…, 2) of standardised χ."""
    slope = chi_scale * coefficients[..., 1] * INVERSE_TEMPERATURE_SCALE
    return slope * T_ref, chi_mean + chi_scale * coefficients[..., 0] - slope
