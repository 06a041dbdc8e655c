"""Quick Stage 2: stacked members against members trained alone in plain PyTorch, and masks that hold."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_training import FINE_TUNING
from torch.nn import functional

from chitransfer.data.assemble import Dataset
from chitransfer.errors import TrainingError
from chitransfer.model.network import TransferNetwork
from chitransfer.training import stage2
from chitransfer.training.crossval import cross_validate, make_folds
from chitransfer.training.inputs import FeatureTable
from chitransfer.training.stage2 import fit_members
from chitransfer.training.tasks import Stage2Data, Stage2Settings, TaskRows


def with_dropout(network: TransferNetwork, **rates: float) -> TransferNetwork:
    """The same weights with other dropout rates."""
    other = TransferNetwork(replace(network.shape, **rates))  # type: ignore[arg-type]
    other.load_state_dict(network.state_dict())
    return other.eval()


def train_alone(
    network: TransferNetwork, data: Stage2Data, chi: np.ndarray, solubility: np.ndarray, settings: Stage2Settings
) -> None:
    """One member in plain PyTorch: whole-batch AdamW on λ_exp·MSE + λ_sol·BCE, clipped by its own norm."""
    heads = list(network.heads.parameters())
    groups: list[dict[str, Any]] = [{"params": heads, "lr": settings.lr}]
    trained = heads
    if not settings.freeze_encoder:
        encoder = list(network.encoder.parameters())
        groups.append({"params": encoder, "lr": settings.lr_encoder})
        trained = heads + encoder
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    pos_weight = torch.tensor(settings.class_weight_pos)
    for _ in range(settings.n_epochs):
        loss = 0.0 * sum(parameter.sum() for parameter in trained)
        if chi.any():
            rows = torch.from_numpy(chi)
            inputs = data.features.gather(data.chi.structure[rows], data.chi.solvent[rows])
            h, _ = network(inputs)
            predicted = h[:, 0] + h[:, 1] * data.chi.tau[rows]
            loss = loss + settings.lambda_exp * functional.mse_loss(predicted, data.chi.target[rows])
        if solubility.any():
            rows = torch.from_numpy(solubility)
            inputs = data.features.gather(data.solubility.structure[rows], data.solubility.solvent[rows])
            _, logit = network(inputs)
            loss = loss + settings.lambda_sol * functional.binary_cross_entropy_with_logits(
                logit, data.solubility.target[rows], pos_weight=pos_weight
            )
        optimizer.zero_grad(set_to_none=False)
        for parameter in trained:
            # The stacked members' optimiser decays a parameter whose gradient is zero as well.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.grad_clip_norm)
        optimizer.step()


def outputs(network: TransferNetwork, data: Stage2Data) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return network.eval()(data.features.gather(data.solubility.structure, data.solubility.solvent))


class TestMembers:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"grad_clip_norm": 1e9},
            {"grad_clip_norm": 0.01},
            {"freeze_encoder": False, "weight_decay": 0.0},
            {"lambda_exp": 0.0},
            {"lambda_sol": 0.0},
        ],
        ids=str,
    )
    def test_together_is_as_alone(
        self,
        pretrained: tuple[TransferNetwork, Stage2Data],
        masks: tuple[np.ndarray, np.ndarray],
        changes: dict[str, Any],
    ) -> None:
        network, data = pretrained
        settings = replace(FINE_TUNING, **changes)
        start = fit_members(network, data, *masks, replace(settings, n_epochs=0), seed=3)
        together = fit_members(network, data, *masks, settings, seed=3)
        coefficients, logits = together.predict(data.features, data.solubility.structure, data.solubility.solvent)
        for position in range(4):
            alone = start.member(position).train()
            chi = masks[0][position] & (settings.lambda_exp > 0)
            solubility = masks[1][position] & (settings.lambda_sol > 0)
            train_alone(alone, data, chi, solubility, settings)
            expected_coefficients, expected_logits = outputs(alone, data)
            own_coefficients, own_logits = outputs(together.member(position), data)
            torch.testing.assert_close(own_coefficients, expected_coefficients, rtol=1e-3, atol=1e-4)
            if settings.lambda_sol > 0:
                torch.testing.assert_close(logits[position], expected_logits, rtol=1e-3, atol=1e-4)
            whose = own_coefficients if chi.any() else outputs(network, data)[0]
            torch.testing.assert_close(coefficients[position], whose, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(logits[position], own_logits, rtol=1e-4, atol=1e-5)

    def test_rows_of_a_large_table_are_not_dense_all_at_once(
        self,
        pretrained: tuple[TransferNetwork, Stage2Data],
        masks: tuple[np.ndarray, np.ndarray],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        network, data = pretrained
        whole = fit_members(network, data, *masks, FINE_TUNING, seed=3).parameters
        monkeypatch.setattr(stage2, "ROWS_AT_A_TIME", 5)
        sizes: list[int] = []
        gather = FeatureTable.gather

        def noted(self: FeatureTable, structure: torch.Tensor, solvent: torch.Tensor) -> torch.Tensor:
            sizes.append(len(structure))
            return gather(self, structure, solvent)

        monkeypatch.setattr(FeatureTable, "gather", noted)
        parts = fit_members(network, data, *masks, FINE_TUNING, seed=3).parameters
        assert max(sizes) == 5
        assert sum(sizes) == len(data.chi) + len(data.solubility)
        for name, parameter in whole.items():
            torch.testing.assert_close(parts[name], parameter, rtol=1e-4, atol=1e-5)

    def test_members_differ_from_their_start(
        self, pretrained: tuple[TransferNetwork, Stage2Data], masks: tuple[np.ndarray, np.ndarray]
    ) -> None:
        """So that the comparison above compares something."""
        network, data = pretrained
        before = outputs(fit_members(network, data, *masks, replace(FINE_TUNING, n_epochs=0), 3).member(0), data)
        after = outputs(fit_members(network, data, *masks, FINE_TUNING, 3).member(0), data)
        assert float((before[0] - after[0]).abs().max()) > 0.05
        assert float((before[1] - after[1]).abs().max()) > 0.05

    def test_one_members_explosion_leaves_the_others_alone(
        self, pretrained: tuple[TransferNetwork, Stage2Data], masks: tuple[np.ndarray, np.ndarray]
    ) -> None:
        """Clipping is per member: another member's huge gradient must not shrink this one's steps."""
        network, data = pretrained
        quiet = fit_members(network, data, *masks, FINE_TUNING, 3)
        target = data.chi.target.clone()
        only_second = torch.from_numpy(masks[0][1] & ~masks[0][0])
        assert only_second.any()
        target[only_second] = 1e6
        loud_data = replace(data, chi=replace(data.chi, target=target))
        loud = fit_members(network, loud_data, *masks, FINE_TUNING, 3)
        where = (data.features, data.chi.structure, data.chi.solvent)
        torch.testing.assert_close(loud.predict(*where)[0][0], quiet.predict(*where)[0][0])
        assert float((loud.predict(*where)[0][1] - quiet.predict(*where)[0][1]).abs().max()) > 1e-3

    def test_the_chi_head_goes_on_and_the_solubility_head_is_new(
        self, pretrained: tuple[TransferNetwork, Stage2Data], masks: tuple[np.ndarray, np.ndarray]
    ) -> None:
        network, data = pretrained
        start = fit_members(network, data, *masks, replace(FINE_TUNING, n_epochs=0), 3)
        for name, tensor in network.heads.chi.state_dict().items():
            for position in range(4):
                assert torch.equal(start.member(position).heads.chi.state_dict()[name], tensor)
        first = [start.member(position).heads.solubility[0].weight for position in range(4)]
        assert not torch.equal(first[0], network.heads.solubility[0].weight)
        assert not torch.equal(first[0], first[1])

    @pytest.mark.parametrize("freeze", [True, False])
    def test_small_batches_visit_every_row(
        self, pretrained: tuple[TransferNetwork, Stage2Data], masks: tuple[np.ndarray, np.ndarray], freeze: bool
    ) -> None:
        """A member learns from its own rows alone: with small batches too, labels it may not see change nothing."""
        network, data = pretrained
        settings = replace(FINE_TUNING, batch_size=4, n_epochs=3, freeze_encoder=freeze)
        before = fit_members(network, data, *masks, settings, 3)
        where = (data.features, data.chi.structure, data.chi.solvent)
        for row in range(len(data.chi)):
            target = data.chi.target.clone()
            target[row] += 50.0
            changed = fit_members(network, replace(data, chi=replace(data.chi, target=target)), *masks, settings, 3)
            after = changed.predict(*where)
            for position in (0, 1):
                same = torch.equal(after[0][position], before.predict(*where)[0][position])
                assert same != bool(masks[0][position, row]), (position, row)


@pytest.mark.parametrize("weight", ["lambda_exp", "lambda_sol"])
def test_a_table_of_weight_zero_is_as_none(
    pretrained: tuple[TransferNetwork, Stage2Data],
    masks: tuple[np.ndarray, np.ndarray],
    weight: str,
    way: str,
) -> None:
    network, data = pretrained
    settings = replace(FINE_TUNING, batch_size=5, n_epochs=4, freeze_encoder=way == "frozen")
    kind, place = ("chi", 0) if weight == "lambda_exp" else ("solubility", 1)
    rows, mask = getattr(data, kind), masks[place]
    # Ten times the rows, which would make ten times the steps.
    many = TaskRows(*(part.repeat(10) for part in (rows.structure, rows.solvent, rows.tau, rows.target)))
    weightless = list(masks)
    weightless[place] = np.tile(mask, 10)
    found = fit_members(network, replace(data, **{kind: many}), *weightless, replace(settings, **{weight: 0.0}), 3)
    absent = list(masks)
    absent[place] = mask[:, :0]
    expected = fit_members(network, replace(data, **{kind: rows.without_rows()}), *absent, settings, 3)
    assert found.parameters.keys() == expected.parameters.keys()
    for name, tensor in expected.parameters.items():
        assert torch.equal(found.parameters[name], tensor), name


def test_where_no_chi_was_learned_chi_is_that_of_stage_1(
    pretrained: tuple[TransferNetwork, Stage2Data],
    masks: tuple[np.ndarray, np.ndarray],
    way: str,
) -> None:
    """Labels move the χ head, too, by way of the solubility head that reads χ(T_ref)."""
    network, data = pretrained
    settings = replace(FINE_TUNING, freeze_encoder=way == "frozen", lr=0.05)
    where = (data.features, data.solubility.structure, data.solubility.solvent)
    of_stage1, _ = outputs(network, data)
    # As the fold that tests the only polymer with a measured χ.
    assert masks[0].any(axis=1).tolist() == [True, True, False, True]
    members = fit_members(network, data, *masks, settings, 3)
    assert float((outputs(members.member(2), data)[0] - of_stage1).abs().max()) > 0.01
    same = [torch.allclose(one, of_stage1, atol=1e-5) for one in members.predict(*where)[0]]
    assert same == [False, False, True, False]
    weightless, _ = fit_members(network, data, *masks, replace(settings, lambda_exp=0.0), 3).predict(*where)
    torch.testing.assert_close(weightless, of_stage1.expand_as(weightless))


def test_features_that_no_row_has_keep_the_weights_of_stage_1(
    pretrained: tuple[TransferNetwork, Stage2Data], masks: tuple[np.ndarray, np.ndarray]
) -> None:
    plain, data = pretrained
    network = deepcopy(plain)
    torch.nn.init.normal_(network.encoder.first.weight, generator=torch.Generator().manual_seed(0))
    settings = replace(FINE_TUNING, freeze_encoder=False, n_epochs=2)
    members = fit_members(network, data, *masks, settings, seed=3)
    assert members.columns is not None
    inputs = torch.rand(5, network.shape.n_features, generator=torch.Generator().manual_seed(1))
    inputs[:, members.columns[0]] = 0.0
    assert len(members.columns) < inputs.shape[1]
    coefficients, logits = members.forward(inputs)
    for position in range(len(members)):
        with torch.no_grad():
            own_coefficients, own_logits = members.member(position)(inputs)
            whose = own_coefficients if masks[0][position].any() else network(inputs)[0]
        torch.testing.assert_close(coefficients[position], whose, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits[position], own_logits, rtol=1e-4, atol=1e-5)


class TestFrozen:
    @pytest.mark.parametrize("freeze", [True, False])
    def test_the_network_given_is_not_changed(
        self, pretrained: tuple[TransferNetwork, Stage2Data], masks: tuple[np.ndarray, np.ndarray], freeze: bool
    ) -> None:
        network, data = pretrained
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        inputs = [mask.copy() for mask in masks]
        fit_members(network, data, *masks, replace(FINE_TUNING, freeze_encoder=freeze), 3)
        assert not network.training
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        for mask, copy in zip(masks, inputs, strict=True):
            np.testing.assert_array_equal(mask, copy)

    def test_a_frozen_encoder_stays_and_an_unfrozen_one_moves(
        self, pretrained: tuple[TransferNetwork, Stage2Data], masks: tuple[np.ndarray, np.ndarray]
    ) -> None:
        network, data = pretrained
        for freeze in (True, False):
            members = fit_members(network, data, *masks, replace(FINE_TUNING, freeze_encoder=freeze), 3)
            for position in range(4):
                same = all(
                    torch.equal(mine, theirs)
                    for mine, theirs in zip(
                        members.member(position).encoder.state_dict().values(),
                        network.encoder.state_dict().values(),
                        strict=True,
                    )
                )
                assert same == freeze

    def test_frozen_latents_have_no_dropout(
        self, pretrained: tuple[TransferNetwork, Stage2Data], masks: tuple[np.ndarray, np.ndarray]
    ) -> None:
        """With dropout in the encoder only, a frozen encoder gives what it gives without; also as Stage 1 left it."""
        network, data = pretrained
        noisy = with_dropout(network, encoder_dropout=0.9).train()
        where = (data.features, data.chi.structure, data.chi.solvent)
        plain = fit_members(network, data, *masks, FINE_TUNING, 3).predict(*where)
        same = fit_members(noisy, data, *masks, FINE_TUNING, 3).predict(*where)
        torch.testing.assert_close(same[0], plain[0])
        torch.testing.assert_close(same[1], plain[1])

    @pytest.mark.parametrize(
        ("freeze", "rates"),
        [(True, {"chi_head_dropout": 0.4, "solubility_head_dropout": 0.4}), (False, {"encoder_dropout": 0.4})],
        ids=["heads", "encoder"],
    )
    def test_dropout_acts_and_follows_the_seed(
        self,
        pretrained: tuple[TransferNetwork, Stage2Data],
        masks: tuple[np.ndarray, np.ndarray],
        freeze: bool,
        rates: dict[str, float],
    ) -> None:
        network, data = pretrained
        noisy = with_dropout(network, **rates)
        settings = replace(FINE_TUNING, freeze_encoder=freeze)
        where = (data.features, data.chi.structure, data.chi.solvent)
        plain = fit_members(network, data, *masks, settings, 3).predict(*where)[0]
        first = fit_members(noisy, data, *masks, settings, 3).predict(*where)[0]
        torch.rand(5)
        again = fit_members(noisy, data, *masks, settings, 3).predict(*where)[0]
        other = fit_members(noisy, data, *masks, settings, 4).predict(*where)[0]
        assert torch.equal(first, again)
        assert not torch.allclose(first, plain, atol=1e-3)
        assert not torch.allclose(first, other, atol=1e-3)


class TestLearning:
    def test_a_few_rows_are_overfitted(self, pretrained: tuple[TransferNetwork, Stage2Data]) -> None:
        network, data = pretrained
        every = np.ones((1, len(data.chi)), dtype=bool), np.ones((1, len(data.solubility)), dtype=bool)
        settings = replace(FINE_TUNING, n_epochs=600, freeze_encoder=False, lr_encoder=1e-2, grad_clip_norm=5.0)
        members = fit_members(network, data, *every, settings, 1)
        h, _ = members.predict(data.features, data.chi.structure, data.chi.solvent)
        predicted = h[0, :, 0] + h[0, :, 1] * data.chi.tau
        assert float((predicted - data.chi.target).abs().mean()) < 0.1
        _, logit = members.predict(data.features, data.solubility.structure, data.solubility.solvent)
        assert ((logit[0] > 0) == (data.solubility.target > 0.5)).all()

    def test_a_loss_that_is_no_number(
        self, pretrained: tuple[TransferNetwork, Stage2Data], masks: tuple[np.ndarray, np.ndarray]
    ) -> None:
        network, data = pretrained
        with pytest.raises(TrainingError, match="Stage 2: the loss became"):
            fit_members(network, data, *masks, replace(FINE_TUNING, lr=1e38), 3)

    @pytest.mark.parametrize("freeze_encoder", [True, False])
    def test_predictions_that_are_no_numbers(
        self, pretrained: tuple[TransferNetwork, Stage2Data], tiny_dataset: Dataset, freeze_encoder: bool
    ) -> None:
        """The loss of the only step is that before it: nothing is wrong with it."""
        network, data = pretrained
        astray = replace(
            FINE_TUNING, lr=1e30, lr_encoder=1e30, n_epochs=1, batch_size=5000, freeze_encoder=freeze_encoder
        )
        folds = make_folds(tiny_dataset, 3, 1, 0)
        with pytest.raises(TrainingError, match="predictions became NaN or infinite; a lower learning rate"):
            cross_validate(network, data, tiny_dataset, folds, astray, 3)

    def test_nothing_to_learn_from(self, pretrained: tuple[TransferNetwork, Stage2Data]) -> None:
        """χ weighted zero with no solubility table: said in words, not a failure inside PyTorch."""
        network, data = pretrained
        no_rows = replace(
            data,
            solubility=replace(
                data.solubility,
                structure=data.solubility.structure[:0],
                solvent=data.solubility.solvent[:0],
                tau=data.solubility.tau[:0],
                target=data.solubility.target[:0],
            ),
        )
        masks = np.ones((2, len(data.chi)), dtype=bool), np.ones((2, 0), dtype=bool)
        with pytest.raises(TrainingError, match="nothing to learn"):
            fit_members(network, no_rows, *masks, replace(FINE_TUNING, lambda_exp=0.0), 3)
