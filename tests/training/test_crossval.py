"""Cross-validation: the scored fold reaches neither predictions nor threshold, and scores are scikit-learn's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from small_training import STAGE2, small_shape

from chitransfer.data.assemble import Dataset, load_dataset
from chitransfer.model.network import TransferNetwork
from chitransfer.training import crossval
from chitransfer.training.crossval import (
    OutOfFold,
    choose_thresholds,
    cross_validate,
    fold_of_rows,
    make_folds,
    score_predictions,
)
from chitransfer.training.stage1 import Stage1Data
from chitransfer.training.stage2 import fit_members
from chitransfer.training.tasks import Stage2Data
from chitransfer.training.trivial import score_trivial_predictor


def prepare(dataset: Dataset) -> tuple[TransferNetwork, Stage2Data]:
    """An untrained network with dropout; its scalers come from Stage 1 rows, which no test here changes."""
    stage1 = Stage1Data.build(
        dataset, validation_fraction=0.1, random_state=0, T_ref=298.15, device=torch.device("cpu")
    )
    torch.manual_seed(0)
    dropout = {"encoder_dropout": 0.2, "chi_head_dropout": 0.1, "solubility_head_dropout": 0.1}
    network = TransferNetwork(small_shape(stage1.features.n_features, hidden_dims=(16,), **dropout)).eval()
    return network, Stage2Data.build(dataset, stage1.features, stage1.chi_scaler, positive_label=1, T_ref=298.15)


def run(dataset: Dataset, folds: np.ndarray, **changes: Any) -> tuple[OutOfFold, Any]:
    network, data = prepare(dataset)
    return cross_validate(network, data, dataset, folds, replace(STAGE2, **changes), seed=7)


def change_labels(dataset: Dataset, polymers: np.ndarray) -> Dataset:
    """A copy in which every measured value of some polymers is another one."""
    assert dataset.chi is not None
    assert dataset.solubility is not None
    chi, labels = dataset.chi.value.copy(), dataset.solubility.value.copy()
    chi[np.isin(dataset.chi.polymer, polymers)] += 7.0
    of_these = np.isin(dataset.solubility.polymer, polymers)
    labels[of_these] = 1.0 - labels[of_these]
    return replace(dataset, chi=replace(dataset.chi, value=chi), solubility=replace(dataset.solubility, value=labels))


def fold_hears_its_own_labels(dataset: Dataset, folds: np.ndarray, fold: int, **changes: Any) -> bool:
    """Whether changing what is measured in a fold changes the fold's predictions or threshold."""
    before, _ = run(dataset, folds, **changes)
    after, _ = run(change_labels(dataset, np.flatnonzero(folds[0] == fold)), folds, **changes)
    own_chi, own_labels = before.fold_of_chi[0] == fold, before.fold_of_solubility[0] == fold
    same = (
        np.array_equal(before.chi[0][own_chi], after.chi[0][own_chi])
        and np.array_equal(before.probability[0][own_labels], after.probability[0][own_labels])
        and before.threshold[0, fold] == after.threshold[0, fold]
    )
    # The other folds train on what was changed: the change is a real one.
    assert not np.array_equal(before.chi[0][~own_chi], after.chi[0][~own_chi])
    assert not np.array_equal(before.probability[0][~own_labels], after.probability[0][~own_labels])
    return not same


class TestLeaks:
    @pytest.mark.parametrize("fold", [0, 1, 2])
    @pytest.mark.parametrize("freeze", [True, False])
    def test_a_fold_never_hears_its_own_labels(self, tiny_dataset: Dataset, fold: int, freeze: bool) -> None:
        folds = make_folds(tiny_dataset, 3, 1, 0)
        assert not fold_hears_its_own_labels(tiny_dataset, folds, fold, freeze_encoder=freeze)

    def test_training_on_the_scored_fold_is_seen(self, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            crossval,
            "training_masks",
            lambda fold_of_rows, n_folds: np.ones((n_folds * len(fold_of_rows), fold_of_rows.shape[1]), dtype=bool),
        )
        assert fold_hears_its_own_labels(tiny_dataset, make_folds(tiny_dataset, 3, 1, 0), 0)

    def test_a_threshold_chosen_on_the_scored_fold_is_seen(
        self, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        honest = crossval.choose_thresholds
        monkeypatch.setattr(crossval, "choose_thresholds", lambda positive, p, training: honest(positive, p, ~training))
        folds = make_folds(tiny_dataset, 3, 1, 0)
        assert any(fold_hears_its_own_labels(tiny_dataset, folds, fold) for fold in range(3))

    def test_every_row_is_predicted_by_a_member_that_never_saw_its_polymer(self, tiny_dataset: Dataset) -> None:
        """Predictions put together by hand from the members of `fit_members`."""
        network, data = prepare(tiny_dataset)
        folds = make_folds(tiny_dataset, 3, 2, 0)
        assert tiny_dataset.chi is not None
        assert tiny_dataset.solubility is not None
        train_chi = np.array([r[tiny_dataset.chi.polymer] != f for r in folds for f in range(3)])
        train_labels = np.array([r[tiny_dataset.solubility.polymer] != f for r in folds for f in range(3)])
        members = fit_members(network, data, train_chi, train_labels, STAGE2, 7)
        h, _ = members.predict(data.features, data.chi.structure, data.chi.solvent)
        found, _ = cross_validate(network, data, tiny_dataset, folds, STAGE2, seed=7)
        for repeat in range(2):
            for row, polymer in enumerate(tiny_dataset.chi.polymer):
                member = 3 * repeat + folds[repeat][polymer]
                standardised = float(h[member, row, 0] + h[member, row, 1] * data.chi.tau[row])
                chi = data.chi_scaler.mean + data.chi_scaler.scale * standardised
                assert found.chi[repeat, row] == pytest.approx(chi, rel=1e-5)


class TestThresholds:
    def test_best_f1_of_each_members_training_rows(self, rng: np.random.Generator) -> None:
        positive = rng.random(60) < 0.4
        probability, training = rng.random((5, 60)), rng.random((5, 60)) < 0.7
        found = choose_thresholds(positive, probability, training)
        for threshold, p, own in zip(found, probability, training, strict=True):
            best = max(sk.f1_score(positive[own], p[own] >= cut) for cut in p[own])
            assert sk.f1_score(positive[own], p[own] >= threshold) == pytest.approx(best)

    def test_calls_are_by_the_threshold_of_the_rows_own_fold(self, tiny_dataset: Dataset) -> None:
        found, _ = run(tiny_dataset, make_folds(tiny_dataset, 3, 2, 0))
        called = found.called_positive()
        for repeat, row in np.ndindex(*called.shape):
            threshold = found.threshold[repeat, found.fold_of_solubility[repeat, row]]
            assert called[repeat, row] == (found.probability[repeat, row] >= threshold)


class TestScores:
    def test_pooled_within_a_repeat_then_averaged(self, tiny_dataset: Dataset) -> None:
        found, scores = run(tiny_dataset, make_folds(tiny_dataset, 3, 3, 0))
        assert tiny_dataset.chi is not None
        assert tiny_dataset.solubility is not None
        measured, positive, called = tiny_dataset.chi.value, tiny_dataset.solubility.value == 1, found.called_positive()
        by_hand = {
            "exp_mae": [sk.mean_absolute_error(measured, chi) for chi in found.chi],
            "exp_r2": [sk.r2_score(measured, chi) for chi in found.chi],
            "exp_rmse": [np.sqrt(sk.mean_squared_error(measured, chi)) for chi in found.chi],
            "sol_f1": [sk.f1_score(positive, call) for call in called],
            "sol_recall": [sk.recall_score(positive, call) for call in called],
            "sol_precision": [sk.precision_score(positive, call) for call in called],
            "sol_auc": [sk.roc_auc_score(positive, p) for p in found.probability],
            "sol_mcc": [sk.matthews_corrcoef(positive, call) for call in called],
        }
        for name, values in by_hand.items():
            assert scores.per_repeat[name] == pytest.approx(values), name
            assert scores.mean[name] == pytest.approx(np.mean(values))
            assert scores.std[name] == pytest.approx(np.std(values))
        for repeat in range(3):
            for fold in range(3):
                own = found.fold_of_chi[repeat] == fold
                expected = sk.mean_absolute_error(measured[own], found.chi[repeat][own])
                assert scores.per_fold["exp_mae"][repeat][fold] == pytest.approx(expected)
                own = found.fold_of_solubility[repeat] == fold
                expected = sk.f1_score(positive[own], called[repeat][own], zero_division=0.0)
                assert scores.per_fold["sol_f1"][repeat][fold] == pytest.approx(expected)

    def test_a_fold_without_a_positive_row_has_neither_f1_nor_recall(self, tiny_dataset: Dataset) -> None:
        folds = make_folds(tiny_dataset, 3, 1, 0)
        rows = tiny_dataset.solubility
        assert rows is not None
        fold = fold_of_rows(folds, rows)
        dataset = replace(tiny_dataset, solubility=replace(rows, value=np.where(fold[0] == 1, 0.0, rows.value)))
        per_fold = score_trivial_predictor(dataset, folds, 1).per_fold
        for name in ("sol_f1", "sol_recall"):
            assert [value is None for value in per_fold[name][0]] == [False, True, False]

    def test_rows_outside_every_fold_do_not_count(self, tiny_dataset: Dataset) -> None:
        folds = make_folds(tiny_dataset, 3, 1, 0)
        out = tiny_dataset.measured_polymers()[::4]
        folds[:, out] = -1
        found, scores = run(tiny_dataset, folds)
        assert tiny_dataset.chi is not None
        used = ~np.isin(tiny_dataset.chi.polymer, out)
        assert 0 < used.sum() < len(used)
        assert scores.mean["exp_mae"] == pytest.approx(
            sk.mean_absolute_error(tiny_dataset.chi.value[used], found.chi[0][used])
        )
        again, _ = run(change_labels(tiny_dataset, out), folds)
        np.testing.assert_array_equal(found.chi[0][used], again.chi[0][used])
        assert tiny_dataset.solubility is not None
        used = ~np.isin(tiny_dataset.solubility.polymer, out)
        positive, called, p = (
            tiny_dataset.solubility.value[used] == 1,
            found.called_positive()[0][used],
            found.probability[0],
        )
        assert 0 < used.sum() < len(used)
        assert scores.mean["sol_f1"] == pytest.approx(sk.f1_score(positive, called))
        assert scores.mean["sol_brier"] == pytest.approx(sk.brier_score_loss(positive, p[used]))

    @pytest.mark.parametrize("left_out", ["chi", "solubility"])
    def test_one_table_alone(self, tables: Any, tmp_path: Any, left_out: str) -> None:
        sources = {"chi": str(tables.chi), "solubility": str(tables.solubility)} | {left_out: None}
        dataset = load_dataset(
            str(tables.stage1), sources["chi"], sources["solubility"], fingerprint_bits=64, cache_folder=tmp_path
        )
        _, scores = run(dataset, make_folds(dataset, 3, 2, 0))
        prefix = "exp_" if left_out == "chi" else "sol_"
        assert scores.mean
        assert not any(name.startswith(prefix) for name in scores.mean)

    def test_whoever_made_the_predictions(self, tiny_dataset: Dataset) -> None:
        """A perfect predictor scores perfectly."""
        folds = make_folds(tiny_dataset, 3, 2, 0)
        assert tiny_dataset.chi is not None
        assert tiny_dataset.solubility is not None
        perfect = OutOfFold(
            fold_of_chi=folds[:, tiny_dataset.chi.polymer],
            fold_of_solubility=folds[:, tiny_dataset.solubility.polymer],
            chi=np.tile(tiny_dataset.chi.value, (2, 1)),
            probability=np.tile(tiny_dataset.solubility.value, (2, 1)),
            threshold=np.full((2, 3), 0.5),
        )
        scores = score_predictions(tiny_dataset, 1, perfect)
        assert scores.mean["exp_mae"] == 0.0
        assert [scores.mean[name] for name in ("sol_f1", "sol_recall", "sol_auc", "exp_r2")] == [1.0] * 4

    def test_the_same_seed_gives_the_same_and_inputs_stay(self, tiny_dataset: Dataset) -> None:
        folds = make_folds(tiny_dataset, 3, 2, 0)
        copy = folds.copy()
        first, second = run(tiny_dataset, folds)[0], run(tiny_dataset, folds)[0]
        np.testing.assert_array_equal(first.chi, second.chi)
        np.testing.assert_array_equal(first.probability, second.probability)
        np.testing.assert_array_equal(folds, copy)
