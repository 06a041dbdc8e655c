"""Packed Stage 1 against the same runs trained alone: state for state without dropout, alike with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pretended_card import pretended_card
from small_training import STAGE1, small_shape

from chitransfer.data.assemble import Dataset
from chitransfer.errors import TrainingError
from chitransfer.search.encoders import pack_state, unpack_state
from chitransfer.training import packed as packing
from chitransfer.training import stacked
from chitransfer.training.packed import PackedStage1, train_together
from chitransfer.training.stage1 import Stage1Data, Stage1Run

SETTINGS = replace(STAGE1, weight_decay=1e-2, n_epochs=12, grad_clip_norm=0.3)


# A GPU, where steps are recorded and replayed, is pretended, and one more where there is one: `-m gpu` runs that alone.
PRETENDED = pytest.param("pretended", marks=pytest.mark.slow)
DEVICES = ["cpu", PRETENDED, *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module", params=DEVICES)
def data(tiny_dataset: Dataset, request: pytest.FixtureRequest) -> Iterator[Stage1Data]:
    is_pretended = request.param == "pretended"
    with pretended_card() if is_pretended else nullcontext():
        device = torch.device("cuda" if is_pretended else request.param)
        yield Stage1Data.build(tiny_dataset, validation_fraction=0.1, random_state=3, T_ref=298.15, device=device)


def make_runs(data: Stage1Data, **changes: Any) -> list[Stage1Run]:
    """Six members of two depths and many widths, rates and batch sizes; `changes` are laid over every shape."""
    members: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"hidden_dims": (24, 5), "latent_dim": 4}, {"lr": 1e-2, "weight_decay": 0.0}),
        ({"hidden_dims": (7, 19), "chi_head_hidden_dim": 3}, {"grad_clip_norm": 5.0, "lr_schedule_factor": 0.1}),
        ({"hidden_dims": (12,)}, {"lr": 1e-3}),
        ({"hidden_dims": (6,), "latent_dim": 9}, {"early_stopping_patience": 1, "lr": 3e-2}),
        ({"hidden_dims": (11, 6)}, {"batch_size": 7, "weight_decay": 0.3}),
    ]
    return [
        Stage1Run(
            data,
            small_shape(data.features.n_features, **{**shape, **changes}),
            replace(SETTINGS, **settings),
            seed=10 + seed,
        )
        for seed, (shape, settings) in enumerate(members)
    ]


def assert_alike(packed: Stage1Run, alone: Stage1Run, tolerance: float = 2e-4) -> None:
    """Both runs are in the same state up to rounding."""
    mine, theirs = packed.state_dict(), alone.state_dict()
    assert (packed.epoch, packed.best_epoch) == (alone.epoch, alone.best_epoch)
    assert torch.equal(mine["random_state"], theirs["random_state"])
    assert torch.equal(mine["shuffle_state"], theirs["shuffle_state"])
    for name in ("weights", "best_weights"):
        assert mine[name].keys() == theirs[name].keys()
        for key, tensor in mine[name].items():
            own, other = tensor.cpu(), theirs[name][key].cpu()
            torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance, msg=f"{name} {key}")
    (moments,), (expected,) = (state["optimizer"]["state"].values() for state in (mine, theirs))
    assert moments.keys() == expected.keys()
    for key, tensor in moments.items():
        torch.testing.assert_close(tensor, expected[key], rtol=tolerance, atol=tolerance, msg=key)
    for key in ("best", "num_bad_epochs", "last_epoch"):
        assert mine["schedule"][key] == pytest.approx(theirs["schedule"][key], rel=1e-3), key
    for left, right in zip(packed.history, alone.history, strict=True):
        assert left == pytest.approx(right, rel=1e-3)


class TestWithoutDropout:
    def test_every_member_is_as_if_trained_alone(self, data: Stage1Data) -> None:
        alone, packed = make_runs(data), make_runs(data)
        for run in alone:
            run.train_to(12)
        assert train_together(packed, [12] * 6) == {}
        for mine, theirs in zip(packed, alone, strict=True):
            assert_alike(mine, theirs)
        # What the comparison is to cover did happen.
        assert len({run.epoch for run in alone}) > 1
        assert any(run.history[-1]["lr"] < run.settings.lr for run in alone)
        assert any(run.best_epoch < run.epoch for run in alone)

    def test_batch_normalisation(self, data: Stage1Data) -> None:
        alone, packed = make_runs(data, use_batchnorm=True), make_runs(data, use_batchnorm=True)
        for run in alone:
            run.train_to(3)
        train_together(packed, [3] * 6)
        for mine, theirs in zip(packed, alone, strict=True):
            # The weight of an input that is the same all over a batch has no gradient but rounding; AdamW makes it
            # whole steps, which training does not feel, but the running means that validation uses lag behind.
            losses, expected = ([entry["train_loss"] for entry in run.history] for run in (mine, theirs))
            assert losses == pytest.approx(expected, rel=1e-3)
            weights = mine.latest_network().state_dict()
            for name, tensor in theirs.latest_network().state_dict().items():
                if name.endswith(("running_var", "num_batches_tracked")):
                    torch.testing.assert_close(weights[name], tensor, rtol=2e-3, atol=2e-3)
            for bias, expected_bias in zip(
                mine.trained.encoder.idle_biases, theirs.trained.encoder.idle_biases, strict=True
            ):
                torch.testing.assert_close(bias, expected_bias)

    def test_a_trial_goes_on_alone_or_packed(self, data: Stage1Data) -> None:
        """Alone to epoch 3, packed to 6, alone to 9: as if always alone. Members stand at different epochs."""
        alone, mixed = make_runs(data), make_runs(data)
        for run in alone:
            run.train_to(9)
        for number, run in enumerate(mixed):
            run.train_to(3 if number % 2 else 1)
        train_together(mixed, [6] * 6)
        for number, run in enumerate(make_runs(data)):
            run.load_state_dict(unpack_state(pack_state([mixed[number].state_dict()]))[0])
            run.train_to(9)
            assert_alike(run, alone[number])

    def test_members_of_other_kinds_change_nothing(self, data: Stage1Data) -> None:
        """Beside a member in bfloat16 and one with batch normalisation, of the same depth and batch size."""

        def make(use_batchnorm: bool = False, precision: str = "fp32") -> Stage1Run:
            shape = small_shape(data.features.n_features, use_batchnorm=use_batchnorm)
            return Stage1Run(data, shape, replace(SETTINGS, precision=precision), 1)

        alone, packed = make(), [make(precision="bf16"), make(), make(use_batchnorm=True)]
        pack = PackedStage1(packed, [3] * 3)
        for epoch in (1, 2, 3):
            alone.train_to(epoch)
            pack.train_epoch()
            assert [run.epoch for run in packed] == [epoch] * 3
        assert_alike(packed[1], alone)

    def test_members_have_targets_of_their_own(self, data: Stage1Data) -> None:
        runs = make_runs(data)[:3]
        pack = PackedStage1(runs, [2, 4, 0])
        assert pack.going_on == {0, 1}
        while pack.going_on:
            pack.train_epoch()
        assert [run.epoch for run in runs] == [2, 4, 0]

    @pytest.mark.parametrize("together", [True, False])
    def test_runs_of_a_trial_are_carried_on_alike(
        self, data: Stage1Data, monkeypatch: pytest.MonkeyPatch, together: bool
    ) -> None:
        monkeypatch.setattr(packing, "trains_together", lambda device: together)
        alone, carried = make_runs(data)[:3], make_runs(data)[:3]
        for run in alone:
            run.train_to(5)
        epochs = []
        packing.carry(carried, 3, lambda: epochs.append([run.epoch for run in carried]))
        packing.carry(carried, 5)
        assert epochs[0] == ([1, 1, 1] if together else [1, 0, 0])
        for mine, theirs in zip(carried, alone, strict=True):
            assert_alike(mine, theirs)

    @pytest.mark.parametrize("together", [True, False])
    def test_a_trial_that_diverges_says_so(
        self, data: Stage1Data, monkeypatch: pytest.MonkeyPatch, together: bool
    ) -> None:
        monkeypatch.setattr(packing, "trains_together", lambda device: together)
        run = make_runs(data)[0]
        with torch.no_grad():
            run.flat.values.fill_(float("nan"))
        with pytest.raises(TrainingError, match="the loss became nan in epoch 1"):
            packing.carry([run], 3)

    def test_bfloat16_stays_close(self, data: Stage1Data) -> None:
        runs = [
            Stage1Run(data, small_shape(data.features.n_features), replace(SETTINGS, precision=precision), 1)
            for precision in ("fp32", "bf16")
        ]
        train_together(runs, [12, 12])
        assert runs[1].best_mae == pytest.approx(runs[0].best_mae, rel=0.1)
        assert runs[1].best_mae != runs[0].best_mae


class TestDropout:
    DROPOUT = {"encoder_dropout": 0.3, "chi_head_dropout": 0.2}  # noqa: RUF012 - not changed

    def test_it_does_not_depend_on_companions(self, data: Stage1Data) -> None:
        together, pairs = make_runs(data, **self.DROPOUT), make_runs(data, **self.DROPOUT)
        train_together(together, [5] * 6)
        for start in range(0, 6, 2):
            train_together(pairs[start : start + 2][::-1], [5, 5])
        for mine, theirs in zip(pairs, together, strict=True):
            assert_alike(mine, theirs)

    @pytest.mark.parametrize("rates", [{"encoder_dropout": 0.3}, {"chi_head_dropout": 0.3}], ids=str)
    def test_every_member_has_rates_of_its_own(self, data: Stage1Data, rates: dict[str, float]) -> None:
        shape = small_shape(data.features.n_features)
        alone, *packed = (Stage1Run(data, one, SETTINGS, 1) for one in (shape, replace(shape, **rates), shape))
        alone.train_to(3)
        train_together(packed, [3, 3])
        assert_alike(packed[1], alone)
        assert packed[0].best_mae != pytest.approx(alone.best_mae, rel=1e-3)

    def test_it_does_not_depend_on_where_training_was_interrupted(self, data: Stage1Data) -> None:
        whole, first, second = (make_runs(data, **self.DROPOUT) for _ in range(3))
        train_together(whole, [4] * 6)
        train_together(first, [2] * 6)
        for run, before in zip(second, first, strict=True):
            run.load_state_dict(unpack_state(pack_state([before.state_dict()]))[0])
        train_together(second, [4] * 6)
        for mine, theirs in zip(second, whole, strict=True):
            assert mine.history == theirs.history

    def test_it_learns_as_well_as_alone(self, data: Stage1Data) -> None:
        def errors(packed: bool) -> np.ndarray:
            runs = [
                Stage1Run(data, small_shape(data.features.n_features, **self.DROPOUT), SETTINGS, seed)
                for seed in range(16)
            ]
            if packed:
                train_together(runs, [12] * 16)
            for run in runs:
                run.train_to(12)
            return np.array([(run.best_mae, run.history[-1]["train_loss"]) for run in runs])

        packed, alone = errors(True), errors(False)
        # Seeds fix weights and batch order, so only dropout differs between the pairs.
        difference = packed - alone
        standard_error = difference.std(0, ddof=1) / np.sqrt(len(difference))
        assert np.all(difference.std(0) > 0)
        assert np.all(np.abs(difference.mean(0)) < 3 * standard_error)

    def test_masks_drop_the_given_share_and_keep_the_mean(self) -> None:
        pool = stacked.MaskPool([0.25, 0.0, 0.5], [40, 60, 20], 64, torch.device("cpu"))
        for member in range(3):
            pool.refresh(member, torch.Generator().manual_seed(member))
        masks = [pool.apply(torch.ones(3, 64, 60), start) for start in pool.starts(20)]
        assert all(bool((mask[1] == 1).all()) for mask in masks)
        for member, (rate, width) in {0: (0.25, 40), 2: (0.5, 20)}.items():
            own = torch.stack([mask[member, :, :width] for mask in masks])
            assert own.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])
            assert float((own == 0).float().mean()) == pytest.approx(rate, abs=0.01)
            # Neither two masks nor two rows or columns of one repeat each other.
            dropped = (own == 0).float() - rate
            for other in (dropped.roll(1, 0), dropped.roll(1, 1), dropped.roll(1, 2)):
                assert abs(float((dropped * other).mean())) < 0.02


class TestFailures:
    def test_a_member_that_is_not_finite_fails_alone(self, data: Stage1Data) -> None:
        alone, packed = make_runs(data), make_runs(data)
        with torch.no_grad():
            packed[1].flat.values.fill_(float("nan"))
        failures = train_together(packed, [3] * 6)
        assert list(failures) == [1]
        assert str(failures[1]) == "Stage 1: the loss became nan in epoch 1; a lower learning rate usually helps"
        for number in (0, 2, 3, 4, 5):
            alone[number].train_to(3)
            assert_alike(packed[number], alone[number])

    def test_a_diverging_learning_rate_fails_as_it_does_alone(self, data: Stage1Data) -> None:
        settings = replace(SETTINGS, lr=1e30, grad_clip_norm=1e30)
        runs = [Stage1Run(data, small_shape(data.features.n_features), one, 1) for one in (SETTINGS, settings)]
        failures = train_together(runs, [3, 3])
        assert list(failures) == [1]
        assert "in epoch" in str(failures[1])
        assert runs[0].epoch == 3

    def test_whoever_gives_up_is_left_out_after_its_epoch(self, data: Stage1Data) -> None:
        alone, packed = make_runs(data), make_runs(data)
        train_together(packed, [4] * 6, gave_up=lambda number: number == 2 and packed[2].epoch == 2)
        assert [run.epoch for run in packed] == [4, 4, 2, 4, packed[4].epoch, 4]
        for number, run in enumerate(alone):
            run.train_to(2 if number == 2 else 4)
            assert_alike(packed[number], run)
