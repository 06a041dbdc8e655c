"""Whole networks are trained one by one on a CPU and side by side elsewhere: two programs, one result."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_training import FINE_TUNING

from chitransfer.data.assemble import Dataset
from chitransfer.model.network import TransferNetwork
from chitransfer.training.inputs import group_by_pair
from chitransfer.training.rehearsal import Rehearsal
from chitransfer.training.stage2 import fit_members
from chitransfer.training.tasks import Stage2Data


@pytest.mark.parametrize("use_batchnorm", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lambda_dft": 0.5},
        {"lr_decay": True},
        # Without a gradient a head's weights decay one by one, not side by side.
        {"lambda_sol": 0.0, "weight_decay": 0.0},
        {"lambda_exp": 0.0, "weight_decay": 0.0},
    ],
    ids=str,
)
def test_one_by_one_is_as_side_by_side(
    tiny_dataset: Dataset,
    pretrained: tuple[TransferNetwork, Stage2Data],
    masks: tuple[np.ndarray, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    use_batchnorm: bool,
) -> None:
    network, data = pretrained
    if use_batchnorm:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            network = TransferNetwork(replace(network.shape, use_batchnorm=True))
            for part in network.modules():
                if isinstance(part, torch.nn.BatchNorm1d):
                    torch.nn.init.uniform_(part.running_mean, -0.5, 0.5)
                    torch.nn.init.uniform_(part.running_var, 0.5, 2.0)
    rows = tiny_dataset.stage1
    computed = group_by_pair(rows, np.ones(len(rows), bool), data.chi_scaler, 298.15, torch.device("cpu"))
    data = replace(data, computed=computed)
    settings = replace(FINE_TUNING, freeze_encoder=False, **changes)
    own = masks[0][:1], masks[1][:1]
    where = (data.features, data.chi.structure, data.chi.solvent)
    results = {}
    for one_by_one in (True, False):
        monkeypatch.setattr("chitransfer.training.stage2.trains_one_by_one", lambda *_, way=one_by_one: way)
        results[one_by_one] = fit_members(network, data, *own, settings, 3).predict(*where)
    start = fit_members(network, data, *own, replace(settings, n_epochs=0), 3).predict(*where)
    torch.testing.assert_close(results[True][0], results[False][0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(results[True][1], results[False][1], rtol=1e-3, atol=1e-4)
    assert max(float((found - before).abs().max()) for found, before in zip(results[True], start, strict=True)) > 0.01


@pytest.mark.parametrize("changes", [{"encoder_dropout": 0.2}, {"use_batchnorm": True}], ids=str)
def test_a_member_with_nothing_to_learn_stays_as_stage_1_left_it(
    pretrained: tuple[TransferNetwork, Stage2Data], masks: tuple[np.ndarray, np.ndarray], changes: dict[str, Any]
) -> None:
    """As the fold that tests the only polymer with a measured χ, where solubility has no weight."""
    pretrained_network, data = pretrained
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = TransferNetwork(replace(pretrained_network.shape, **changes))
    settings = replace(FINE_TUNING, freeze_encoder=False, lambda_sol=0.0, weight_decay=0.0)
    chi, solubility = (mask[[2, 0]] for mask in masks)
    assert chi.any(axis=1).tolist() == [False, True]
    where = (data.features, data.chi.structure, data.chi.solvent)
    found, _ = fit_members(network, data, chi, solubility, settings, 3).predict(*where)
    start, _ = fit_members(network, data, chi, solubility, replace(settings, n_epochs=0), 3).predict(*where)
    assert torch.equal(found[0], start[0])
    assert float((found[1] - start[1]).abs().max()) > 0.01


def test_progress_is_told_as_if_side_by_side(
    pretrained: tuple[TransferNetwork, Stage2Data], masks: tuple[np.ndarray, np.ndarray]
) -> None:
    network, data = pretrained
    told: list[int] = []
    fit_members(network, data, *masks, replace(FINE_TUNING, freeze_encoder=False, n_epochs=5), 3, told.append)
    assert told == sorted(told)
    assert told[-1] == 5


class TestRehearsal:
    @pytest.fixture
    def rehearsal(self, tiny_dataset: Dataset, pretrained: tuple[TransferNetwork, Stage2Data]) -> Rehearsal:
        """Of a network with dropout in its χ head, on pairs of one, two or three temperatures."""
        network, data = pretrained
        other = TransferNetwork(replace(network.shape, chi_head_dropout=0.5))
        other.load_state_dict(network.state_dict())
        rows = tiny_dataset.stage1
        chosen = (
            (rows.temperature < 300.0) | (rows.polymer % 3 > 0) & (rows.temperature < 340.0) | (rows.polymer % 3 > 1)
        )
        computed = group_by_pair(rows, chosen, data.chi_scaler, 298.15, torch.device("cpu"))
        assert computed.mask.sum(1).unique().tolist() == [1.0, 2.0, 3.0]
        return Rehearsal(other.eval(), computed, 5, 7)

    def test_its_loss_is_the_mean_over_real_rows(self, rehearsal: Rehearsal) -> None:
        pairs, computed = rehearsal.draw(1)[0], rehearsal.computed
        h = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
        errors = [
            float((h[place, 0] + h[place, 1] * tau - target) ** 2)
            for place, pair in enumerate(pairs)
            for tau, target, real in zip(computed.tau[pair], computed.target[pair], computed.mask[pair], strict=True)
            if real
        ]
        assert len(errors) < 15
        assert float(rehearsal.loss(h, pairs)) == pytest.approx(np.mean(errors), rel=1e-5)

    def test_its_head_is_a_copy_with_dropout_at_work(
        self, rehearsal: Rehearsal, pretrained: tuple[TransferNetwork, Stage2Data]
    ) -> None:
        network, _ = pretrained
        latents = torch.ones(4, network.shape.latent_dim)
        assert not torch.equal(rehearsal.head(latents), rehearsal.head(latents))
        again = Rehearsal(network, rehearsal.computed, 5, 7)
        mine, theirs = again.head.state_dict(), network.heads.chi.state_dict()
        for name, weights in mine.items():
            assert torch.equal(weights, theirs[name])
            assert weights.data_ptr() != theirs[name].data_ptr()

    def test_the_seed_draws_the_pairs(
        self, rehearsal: Rehearsal, pretrained: tuple[TransferNetwork, Stage2Data]
    ) -> None:
        network, _ = pretrained
        same, other = (Rehearsal(network, rehearsal.computed, 5, seed).draw(8) for seed in (7, 8))
        drawn = rehearsal.draw(8)
        assert torch.equal(drawn, same)
        assert not torch.equal(drawn, other)
