"""A network and settings that train in a moment; tests of training vary them with `dataclasses.replace`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from chitransfer.model.network import NetworkShape, TransferNetwork
from chitransfer.training.inputs import PairTable
from chitransfer.training.stage1 import Stage1Data, Stage1Settings, predict_coefficients
from chitransfer.training.tasks import Stage2Settings

STAGE1 = Stage1Settings(
    lr=3e-3,
    weight_decay=1e-4,
    batch_size=10,
    n_epochs=6,
    early_stopping_patience=50,
    lr_schedule_patience=1,
    lr_schedule_factor=0.5,
    grad_clip_norm=1.0,
)
STAGE2 = Stage2Settings(
    lr=1e-2,
    lr_encoder=1e-3,
    weight_decay=1e-4,
    batch_size=8,
    n_epochs=6,
    lambda_exp=3.0,
    lambda_sol=1.0,
    class_weight_pos=5.0,
    freeze_encoder=True,
    grad_clip_norm=1.0,
)

# Whole batches, so that the order of rows does not matter.
FINE_TUNING = replace(STAGE2, weight_decay=1e-3, batch_size=10_000, n_epochs=12, grad_clip_norm=0.5)


def small_shape(n_features: int, **changes: Any) -> NetworkShape:
    """A network of the guide's kind with hidden layers of 16 and 8, without dropout and batch normalisation."""
    plain = NetworkShape(
        n_features=n_features,
        hidden_dims=(16, 8),
        latent_dim=8,
        encoder_dropout=0.0,
        use_batchnorm=False,
        chi_head_hidden_dim=8,
        chi_head_dropout=0.0,
        solubility_head_hidden_dim=8,
        solubility_head_dropout=0.0,
    )
    return replace(plain, **changes)


def stage1_mae(network: TransferNetwork, data: Stage1Data, pairs: PairTable) -> float:
    """Mean absolute error of χ = a + b τ over the rows of `pairs`, in χ's own units."""
    a, b = predict_coefficients(network, data.features, pairs.structure, pairs.solvent)[..., None].unbind(1)
    error = (a + b * pairs.tau - pairs.target)[pairs.mask == 1]
    return float(error.abs().mean()) * data.chi_scaler.scale
