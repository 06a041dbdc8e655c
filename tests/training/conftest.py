"""A pretrained network and Stage 2 rows for the tests of fine-tuning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_training import STAGE1, small_shape

from chitransfer.data.assemble import Dataset
from chitransfer.model.network import TransferNetwork
from chitransfer.training.stage1 import Stage1Data, Stage1Run
from chitransfer.training.tasks import Stage2Data


@pytest.fixture(scope="module")
def pretrained(tiny_dataset: Dataset) -> tuple[TransferNetwork, Stage2Data]:
    """A network pretrained for a few epochs, without dropout, and the Stage 2 rows on its scales."""
    stage1 = Stage1Data.build(
        tiny_dataset, validation_fraction=0.1, random_state=0, T_ref=298.15, device=torch.device("cpu")
    )
    shape = small_shape(stage1.features.n_features, hidden_dims=(16,))
    settings = replace(STAGE1, lr=5e-3, weight_decay=0.0, batch_size=16, n_epochs=10, lr_schedule_patience=10)
    run = Stage1Run(stage1, shape, settings, seed=0)
    run.train_to(10)
    data = Stage2Data.build(tiny_dataset, stage1.features, stage1.chi_scaler, positive_label=1, T_ref=298.15)
    return run.best_network(), data


@pytest.fixture
def masks(pretrained: tuple[TransferNetwork, Stage2Data], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Four members: two ordinary ones of unequal size, one without χ rows, one without solubility rows."""
    _, data = pretrained
    chi = rng.random((4, len(data.chi))) < np.array([[0.8], [0.4], [0.0], [0.7]])
    solubility = rng.random((4, len(data.solubility))) < np.array([[0.7], [0.5], [0.6], [0.0]])
    return chi, solubility


@pytest.fixture(params=["frozen", "side by side", "one by one"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ways members are trained: on a frozen encoder, or as whole networks, as on a GPU and as on a CPU."""
    monkeypatch.setattr("chitransfer.training.stage2.trains_one_by_one", lambda *_: request.param == "one by one")
    return str(request.param)
