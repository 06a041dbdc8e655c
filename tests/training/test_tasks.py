"""Rows of Stage 2 on a device: scaled targets, reduced temperatures, and the class called positive."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from chitransfer.data.assemble import Dataset
from chitransfer.model.network import TransferNetwork
from chitransfer.training.stage1 import Stage1Data
from chitransfer.training.tasks import Stage2Data, resolve_positive_label


def test_targets_and_temperatures(pretrained: tuple[TransferNetwork, Stage2Data], tiny_dataset: Dataset) -> None:
    _, data = pretrained
    assert tiny_dataset.chi is not None
    scaler = data.chi_scaler
    expected = (tiny_dataset.chi.value - scaler.mean) / scaler.scale
    np.testing.assert_allclose(data.chi.target.numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        data.chi.tau.numpy(), 5.0 * (298.15 / tiny_dataset.chi.temperature - 1.0), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("positive_label", [0, 1])
def test_the_positive_class(tiny_dataset: Dataset, positive_label: int) -> None:
    stage1 = Stage1Data.build(
        tiny_dataset, validation_fraction=0.1, random_state=0, T_ref=298.15, device=torch.device("cpu")
    )
    data = Stage2Data.build(
        tiny_dataset, stage1.features, stage1.chi_scaler, positive_label=positive_label, T_ref=298.15
    )
    assert tiny_dataset.solubility is not None
    np.testing.assert_array_equal(
        data.solubility.target.numpy(), (tiny_dataset.solubility.value == positive_label).astype(float)
    )


def test_which_label_is_positive(tiny_dataset: Dataset) -> None:
    rows = tiny_dataset.solubility
    assert rows is not None
    assert resolve_positive_label(rows, "soluble") == 1
    assert resolve_positive_label(rows, "insoluble") == 0
    for share, minority in ((0.3, 1), (0.5, 1), (0.7, 0)):
        value = (np.arange(100) < 100 * share).astype(float)
        assert resolve_positive_label(replace(rows, value=value), "minority") == minority
