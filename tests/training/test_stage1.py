"""Stage 1: it learns, stops, resumes to the bit, and its scalers never see what it is validated on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from small_training import STAGE1, small_shape, stage1_mae

from chitransfer.data.assemble import Dataset, Rows
from chitransfer.errors import DataError, TrainingError
from chitransfer.model.network import NetworkShape
from chitransfer.model.scalers import ChiScaler
from chitransfer.search.encoders import pack_state, unpack_state
from chitransfer.training import stage1 as stage1_module
from chitransfer.training.stage1 import Stage1Data, Stage1Run, Stage1Settings, predict_coefficients

CPU = torch.device("cpu")


def shape_for(data: Stage1Data, **changes: Any) -> NetworkShape:
    dropout = {"encoder_dropout": 0.3, "chi_head_dropout": 0.2, "solubility_head_dropout": 0.2}
    return small_shape(data.features.n_features, **{**dropout, **changes})


def build(dataset: Dataset, **changes: Any) -> Stage1Data:
    options: dict[str, Any] = {"validation_fraction": 0.1, "random_state": 3, "T_ref": 298.15, "device": CPU} | changes
    return Stage1Data.build(dataset, **options)


@pytest.fixture(scope="module")
def data(tiny_dataset: Dataset) -> Stage1Data:
    return build(tiny_dataset)


def weights_of(run: Stage1Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.best_network().state_dict().items()}


def assert_same_run(first: Stage1Run, second: Stage1Run) -> None:
    assert first.history == second.history
    assert (first.epoch, first.best_epoch, first.best_mae) == (second.epoch, second.best_epoch, second.best_mae)
    for get in (weights_of, lambda run: run.latest_network().state_dict()):
        mine, theirs = get(first), get(second)
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert torch.equal(mine[name], theirs[name]), name


class TestLearning:
    def test_a_thirty_row_table_is_overfitted(self, tiny_dataset: Dataset) -> None:
        rows = tiny_dataset.stage1
        chosen = np.flatnonzero(rows.temperature == 298.15)[:30]
        small = Rows(
            structure=rows.structure[chosen],
            solvent=rows.solvent[chosen],
            polymer=rows.polymer[chosen],
            temperature=rows.temperature[chosen],
            value=rows.value[chosen],
            table=rows.table,
        )
        data = build(replace(tiny_dataset, stage1=small), validation_fraction=0.01)
        settings = replace(STAGE1, n_epochs=800, early_stopping_patience=800, lr_schedule_patience=800, lr=5e-3)
        run = Stage1Run(data, shape_for(data, encoder_dropout=0.0, chi_head_dropout=0.0), settings, seed=1)
        before = stage1_mae(run.latest_network(), data, data.train)
        run.train_to(800)
        after = stage1_mae(run.latest_network(), data, data.train)
        assert before > 0.1
        assert after < 0.02

    def test_all_temperatures_of_a_pair_are_learned(self, tiny_dataset: Dataset) -> None:
        """The slope over temperature, not only the mean, comes close to the formula's A/T."""
        data = build(tiny_dataset)
        settings = replace(STAGE1, n_epochs=800, early_stopping_patience=800, lr_schedule_patience=800, lr=5e-3)
        run = Stage1Run(data, shape_for(data, encoder_dropout=0.0, chi_head_dropout=0.0), settings, seed=1)
        run.train_to(800)
        with torch.no_grad():
            slopes = predict_coefficients(
                run.latest_network(), data.features, data.train.structure, data.train.solvent
            )[:, 1]
        tau, target = data.train.tau, data.train.target
        true_slopes = (target[:, 2] - target[:, 0]) / (tau[:, 2] - tau[:, 0])
        assert float(np.corrcoef(slopes, true_slopes)[0, 1]) > 0.95

    def test_mae_is_the_plain_formula_over_rows(self, tiny_dataset: Dataset, data: Stage1Data) -> None:
        run = Stage1Run(data, shape_for(data), STAGE1, seed=2)
        run.train_to(2)
        rows, out = tiny_dataset.stage1, data.validation_rows
        with torch.no_grad():
            h = predict_coefficients(
                run.latest_network(), data.features, torch.tensor(rows.structure[out]), torch.tensor(rows.solvent[out])
            ).numpy()
        predicted = data.chi_scaler.mean + data.chi_scaler.scale * (
            h[:, 0] + h[:, 1] * 5.0 * (298.15 / rows.temperature[out] - 1.0)
        )
        expected = np.abs(predicted - rows.value[out]).mean()
        assert stage1_mae(run.latest_network(), data, data.validation) == pytest.approx(expected, rel=1e-4)
        assert run.history[-1]["validation_mae"] == pytest.approx(expected, rel=1e-4)

    def test_seed_decides(self, data: Stage1Data) -> None:
        runs = [Stage1Run(data, shape_for(data), STAGE1, seed) for seed in (5, 5, 6)]
        for run in runs:
            run.train_to(3)
        assert_same_run(runs[0], runs[1])
        assert runs[0].history != runs[2].history

    def test_what_ran_before_does_not_matter(self, data: Stage1Data) -> None:
        first = Stage1Run(data, shape_for(data), STAGE1, 5)
        first.train_to(2)
        torch.manual_seed(12345)
        torch.rand(77)
        state = torch.get_rng_state()
        second = Stage1Run(data, shape_for(data), STAGE1, 5)
        second.train_to(2)
        assert torch.equal(torch.get_rng_state(), state)
        assert_same_run(first, second)

    @pytest.mark.parametrize("batch_size", [31, 32, 4096, 2])
    def test_batch_normalisation_takes_any_batch_size(self, data: Stage1Data, batch_size: int) -> None:
        """32 training pairs in batches of 31 leave one alone, which has no variance to normalise by."""
        assert len(data.train) == 32
        run = Stage1Run(data, shape_for(data, use_batchnorm=True), replace(STAGE1, batch_size=batch_size), 1)
        run.train_to(2)
        assert run.epoch == 2
        assert np.isfinite(run.best_mae)

    def test_batch_normalisation_of_single_pairs_is_refused(self, data: Stage1Data) -> None:
        with pytest.raises(TrainingError, match=r"at least 2 pairs a batch, .* raise training\.batch_size_dft \(1\)"):
            Stage1Run(data, shape_for(data, use_batchnorm=True), replace(STAGE1, batch_size=1), 1)

    def test_the_solubility_head_is_left_as_it_was(self, data: Stage1Data) -> None:
        run = Stage1Run(data, shape_for(data), replace(STAGE1, weight_decay=0.5), 1)
        before = {name: t.clone() for name, t in run.latest_network().heads.solubility.state_dict().items()}
        run.train_to(3)
        for name, tensor in run.latest_network().heads.solubility.state_dict().items():
            assert torch.equal(tensor, before[name])


class TestStopping:
    def test_the_best_epoch_is_kept(self, data: Stage1Data) -> None:
        run = Stage1Run(data, shape_for(data), replace(STAGE1, n_epochs=15, lr=2e-2), 4)
        run.train_to(15)
        maes = [entry["validation_mae"] for entry in run.history]
        assert run.best_mae == min(maes)
        assert run.best_epoch == 1 + int(np.argmin(maes))
        assert stage1_mae(run.best_network(), data, data.validation) == pytest.approx(min(maes), rel=1e-5)
        assert not run.best_network().training

    def test_it_stops_when_validation_does(self, data: Stage1Data) -> None:
        settings = replace(STAGE1, n_epochs=500, early_stopping_patience=3, lr=5e-2)
        run = Stage1Run(data, shape_for(data), settings, 4)
        run.train_to(500)
        assert run.finished
        assert run.epoch == run.best_epoch + 3
        assert run.epoch < 500
        run.train_to(500)
        assert len(run.history) == run.epoch

    def test_the_learning_rate_falls_on_a_plateau(self, data: Stage1Data) -> None:
        settings = replace(STAGE1, n_epochs=40, early_stopping_patience=40, lr_schedule_patience=1, lr=5e-2)
        run = Stage1Run(data, shape_for(data), settings, 4)
        run.train_to(40)
        rates = [entry["lr"] for entry in run.history]
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] < 5e-2
        halvings = np.log2(np.array(rates) / 5e-2)
        np.testing.assert_allclose(halvings, halvings.round(), atol=1e-9)

    @staticmethod
    def end_epochs(
        data: Stage1Data, settings: Stage1Settings, maes: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> tuple[list[int], list[float]]:
        """The best epoch and the learning rate after each of some epochs with given validation errors."""
        own, best, rates = iter(maes), [], []
        monkeypatch.setattr(stage1_module, "_mae", lambda *_: next(own))
        run = Stage1Run(data, shape_for(data), replace(settings, lr_schedule_patience=0, lr=1.0), 4)
        for epoch in range(1, len(maes) + 1):
            assert not run.end_epoch(epoch, 0.0)
            best.append(run.best_epoch)
            rates.append(run.history[-1]["lr"])
        return best, rates

    def test_the_first_epochs_choose_nothing(self, data: Stage1Data, monkeypatch: pytest.MonkeyPatch) -> None:
        maes = [0.1, 0.2, 0.5, 0.4, 0.6, 0.3]
        found = self.end_epochs(data, replace(STAGE1, min_epochs=3), maes, monkeypatch)
        assert found == ([1, 2, 3, 4, 4, 6], [1.0, 1.0, 1.0, 1.0, 0.5, 0.5])
        found = self.end_epochs(data, STAGE1, maes, monkeypatch)
        assert found == ([1, 1, 1, 1, 1, 1], [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125])

    def test_few_held_out_polymers_choose_nothing(
        self, tiny_dataset: Dataset, data: Stage1Data, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        n = len(np.unique(tiny_dataset.stage1.polymer[data.validation_rows]))
        assert 1 < n < data.validation_rows.sum()
        enough, few = replace(STAGE1, min_validation_polymers=n), replace(STAGE1, min_validation_polymers=n + 1)
        maes = [0.1, 0.3, 0.2]
        assert self.end_epochs(data, enough, maes, monkeypatch) == ([1, 1, 1], [1.0, 0.5, 0.25])
        assert self.end_epochs(data, few, maes, monkeypatch) == ([1, 2, 3], [1.0, 1.0, 1.0])

    @pytest.mark.parametrize(("n_pairs", "size"), [(5000, 256), (4096, 256), (4095, 256), (100, 7), (16, 1), (3, 1)])
    def test_small_tables_have_enough_batches_an_epoch(self, n_pairs: int, size: int) -> None:
        settings = replace(STAGE1, batch_size=256, min_batches_per_epoch=16)
        assert settings.batch_size_for(n_pairs) == size

    @pytest.mark.parametrize(
        ("n_pairs", "size", "remedy"),
        [
            (11, 256, "lower training.min_batches_per_epoch (16)"),
            (100, 1, "raise training.batch_size_dft (1)"),
            (1, 256, "add computed χ (paths.dft_chi_csv)"),
        ],
    )
    def test_batches_that_cannot_be_normalised_say_what_makes_them_small(
        self, n_pairs: int, size: int, remedy: str
    ) -> None:
        settings = replace(STAGE1, batch_size=size, min_batches_per_epoch=16)
        said = f"Stage 1's training pairs ({n_pairs}) come one at a time; {remedy}, or set model.use_batchnorm to false"
        with pytest.raises(TrainingError, match=re.escape(said)):
            settings.refuse_lone_pairs(n_pairs)
        replace(settings, batch_size=2, min_batches_per_epoch=1).refuse_lone_pairs(2)

    def test_batch_normalisation_refuses_pairs_that_come_one_by_one(self, data: Stage1Data) -> None:
        settings = replace(STAGE1, min_batches_per_epoch=len(data.train))
        Stage1Run(data, shape_for(data), settings, 1)
        with pytest.raises(TrainingError, match="come one at a time"):
            Stage1Run(data, shape_for(data, use_batchnorm=True), settings, 1)

    def test_a_loss_that_is_no_number_names_stage_and_epoch(self, data: Stage1Data) -> None:
        run = Stage1Run(data, shape_for(data), replace(STAGE1, lr=1e38), 1)
        with pytest.raises(TrainingError, match=r"Stage 1: the loss became (nan|inf) in epoch [1-6]; a lower learning"):
            run.train_to(6)


class TestResuming:
    @pytest.mark.parametrize("stop", range(1, 6))
    @pytest.mark.parametrize("through_bytes", [True, False])
    def test_at_any_epoch_to_the_bit(self, data: Stage1Data, stop: int, through_bytes: bool) -> None:
        whole = Stage1Run(data, shape_for(data), STAGE1, 9)
        whole.train_to(6)
        part = Stage1Run(data, shape_for(data), STAGE1, 9)
        part.train_to(stop)
        state = part.state_dict()
        if through_bytes:
            (state,) = unpack_state(pack_state([state]))
        else:
            part.train_to(6)  # what goes on must not reach into a state taken earlier
        resumed = Stage1Run(data, shape_for(data), STAGE1, 9)
        resumed.load_state_dict(state)
        assert resumed.epoch == stop
        resumed.train_to(6)
        assert_same_run(whole, resumed)

    def test_with_batch_normalisation_and_plateaus(self, data: Stage1Data) -> None:
        settings = replace(STAGE1, n_epochs=12, lr=5e-2, early_stopping_patience=12)
        shape = shape_for(data, use_batchnorm=True)
        whole = Stage1Run(data, shape, settings, 9)
        whole.train_to(12)
        run = Stage1Run(data, shape, settings, 9)
        for epoch in range(1, 13):
            run.train_to(epoch)
            again = Stage1Run(data, shape, settings, 9)
            again.load_state_dict(unpack_state(pack_state([run.state_dict()]))[0])
            run = again
        assert_same_run(whole, run)


# ---------------------------------------------------------------------------------------------------------------------
# Leaks
# ---------------------------------------------------------------------------------------------------------------------


def shout(dataset: Dataset, rows_to_change: np.ndarray) -> Dataset:
    """A copy whose chosen Stage 1 rows have absurd χ and whose polymers have absurd descriptors."""
    value = dataset.stage1.value.copy()
    value[rows_to_change] += 1000.0
    features = dataset.polymer_features.toarray()
    features[np.unique(dataset.stage1.structure[rows_to_change]), dataset.recipe.fingerprint_bits :] += 1e4
    return replace(dataset, polymer_features=sparse.csr_array(features), stage1=replace(dataset.stage1, value=value))


def scalers_hear(dataset: Dataset, rows_to_change: np.ndarray) -> bool:
    """Whether any scaler depends on the chosen rows."""
    quiet, loud = build(dataset), build(shout(dataset, rows_to_change))
    same = (
        quiet.chi_scaler == loud.chi_scaler
        and np.array_equal(quiet.features.polymer_scaler.mean, loud.features.polymer_scaler.mean)
        and np.array_equal(quiet.features.polymer_scaler.scale, loud.features.polymer_scaler.scale)
    )
    return not same


class TestLeaks:
    def test_scalers_see_training_rows_only(self, tiny_dataset: Dataset, data: Stage1Data) -> None:
        assert 0 < data.validation_rows.sum() < len(tiny_dataset.stage1)
        assert not scalers_hear(tiny_dataset, data.validation_rows)
        assert scalers_hear(tiny_dataset, ~data.validation_rows)

    @pytest.mark.parametrize("what", ["features", "chi"])
    def test_a_planted_leak_is_seen(
        self, tiny_dataset: Dataset, data: Stage1Data, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        if what == "features":
            honest: Callable[..., Any] = stage1_module.scale_features
            monkeypatch.setattr(
                stage1_module,
                "scale_features",
                lambda dataset, training, *rest: honest(dataset, np.ones_like(training), *rest),
            )
        else:
            fit, honest_build = ChiScaler.fit, Stage1Data.build

            def build_leaky(dataset: Dataset, **options: Any) -> Stage1Data:
                # The scaler sees the whole table, as one fitted before the split would.
                monkeypatch.setattr(ChiScaler, "fit", lambda chi: fit(dataset.stage1.value))
                return honest_build(dataset, **options)

            monkeypatch.setattr(Stage1Data, "build", build_leaky)
        assert scalers_hear(tiny_dataset, data.validation_rows)

    def test_validation_polymers_are_whole(self, tiny_dataset: Dataset, data: Stage1Data) -> None:
        polymer = tiny_dataset.stage1.polymer
        assert not set(polymer[data.validation_rows]) & set(polymer[~data.validation_rows])
        assert not set(data.train.structure.tolist()) & set(data.validation.structure.tolist())
        assert int(data.train.mask.sum() + data.validation.mask.sum()) == len(polymer)

    def test_excluded_polymers_are_seen_by_nobody(self, tiny_dataset: Dataset) -> None:
        excluded = tiny_dataset.measured_polymers()[:10]
        data = build(tiny_dataset, excluded_polymers=excluded)
        structures = set(tiny_dataset.stage1.structure[np.isin(tiny_dataset.stage1.polymer, excluded)])
        assert not structures & set(data.train.structure.tolist())
        assert not structures & set(data.validation.structure.tolist())
        changed = shout(tiny_dataset, np.isin(tiny_dataset.stage1.polymer, excluded))
        assert build(changed, excluded_polymers=excluded).chi_scaler == data.chi_scaler

    def test_nothing_left_to_learn_from(self, tiny_dataset: Dataset) -> None:
        with pytest.raises(DataError, match="at least 2 polymers, got 0"):
            build(tiny_dataset, excluded_polymers=np.arange(len(tiny_dataset.polymers)))
