"""Who learned from what: small arrays worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_training import STAGE2

from chitransfer.model.network import TransferNetwork
from chitransfer.training.out_of_fold import TaskPredictions, predict_chi
from chitransfer.training.stage2 import fit_members
from chitransfer.training.tasks import Stage2Data

# 2 networks, 2 repeats of 2 folds, 3 rows; the last row is a test row. Value = 100 network + 10 member + row.
VALUES = np.array([[[100 * n + 10 * m + row for row in range(3)] for m in range(4)] for n in range(2)], dtype=float)
FOLD = np.array([[0, 1, -1], [1, 1, -1]])


@pytest.fixture
def predictions() -> TaskPredictions:
    """The arrays above."""
    return TaskPredictions(VALUES, FOLD, np.arange(3))


def test_left_out_takes_the_members_that_never_saw_the_row(predictions: TaskPredictions) -> None:
    # Row 0: fold 0 of repeat 0 (member 0), fold 1 of repeat 1 (member 3); row 1: members 1 and 3.
    assert predictions.left_out().tolist() == [np.mean([0, 30, 100, 130]), np.mean([11, 31, 111, 131]), 67.0]
    # Row 2: both members of a repeat, since none learned from it.
    assert predictions.left_out_by_repeat().tolist() == [[50.0, 61.0, 57.0], [80.0, 81.0, 77.0]]
    assert predictions.left_out_members(0).tolist() == [0, 30, 100, 130]
    assert predictions.left_out_spread()[0] == pytest.approx(np.std([0, 30, 100, 130], ddof=1))
    assert predictions.left_out_spread()[2] == pytest.approx(np.std(VALUES[:, :, 2], ddof=1))


def test_trained_takes_the_others(predictions: TaskPredictions) -> None:
    trained = predictions.trained()
    assert trained[0] == np.mean([10, 20, 110, 120])
    assert np.isnan(trained[2])
    assert predictions.learned.tolist() == [True, True, False]


def test_one_member_has_no_spread() -> None:
    single = TaskPredictions(VALUES[:1, :2], FOLD[:1], np.arange(3))
    assert single.left_out_spread()[:2].tolist() == [0.0, 0.0]


def test_chi_and_its_slope_are_those_of_each_member(
    pretrained: tuple[TransferNetwork, Stage2Data], masks: tuple[np.ndarray, np.ndarray]
) -> None:
    network, data = pretrained
    members = fit_members(network, data, *masks, replace(STAGE2, n_epochs=2), 1)
    chi, A = predict_chi([members, members], data)
    assert chi.shape == A.shape == (2, 4, len(data.chi))
    h = members.predict(data.features, data.chi.structure, data.chi.solvent)[0].numpy().astype(float)
    tau, scaler = data.chi.tau.numpy().astype(float), data.chi_scaler
    for network_values in zip(chi, A, strict=True):
        by_hand = scaler.mean + scaler.scale * (h[..., 0] + h[..., 1] * tau)
        np.testing.assert_allclose(network_values[0], by_hand, rtol=1e-6)
        # chi = A/T + B, so A is what chi gains a unit of 1/T: tau is 5 (T_ref/T - 1).
        np.testing.assert_allclose(network_values[1], scaler.scale * h[..., 1] * 5.0 * 298.15, rtol=1e-6)
