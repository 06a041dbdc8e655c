"""The tables of a fine-tuned model: what is said of a fold does not know the fold's labels."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest

from chitransfer.data.assemble import Dataset
from chitransfer.model.checkpoint import TrainedModel
from chitransfer.training.model_report import (
    _describe_solubility,
    chi_report,
    describe_chi,
    solubility_frame,
    solubility_report,
)
from chitransfer.training.out_of_fold import TaskPredictions


def test_a_folds_labels_change_neither_its_probabilities_nor_its_calls_nor_what_ranks(
    tiny_dataset: Dataset, rng: np.random.Generator
) -> None:
    rows = tiny_dataset.solubility
    assert rows is not None
    fold = np.stack([tiny_dataset.fold_of_polymers(3, seed)[rows.polymer] for seed in (0, 1)])
    logits = TaskPredictions(rng.normal(size=(2, 6, len(rows))) + rows.value, fold, rows.polymer)
    model = cast(TrainedModel, SimpleNamespace(positive_label=1, probability=None, threshold=0.5))
    frame = solubility_frame(rows, model, logits)
    for one in range(3):
        own = fold[0] == one
        other = solubility_frame(replace(rows, value=np.where(own, 1 - rows.value, rows.value)), model, logits)
        assert (other["positive"] == frame["positive"])[~own].all()
        for column in ("p_cv", "called_positive", "logit_cv"):
            assert np.array_equal(other[column][own], frame[column][own]), column


def test_aucs_do_not_know_the_sigmoids_of_the_folds(tiny_dataset: Dataset, rng: np.random.Generator) -> None:
    rows = tiny_dataset.solubility
    assert rows is not None
    fold = tiny_dataset.fold_of_polymers(3, 0)[None, rows.polymer]
    logits = TaskPredictions(np.repeat(rows.value[None, None, :], 3, axis=1), fold, rows.polymer)
    model = cast(TrainedModel, SimpleNamespace(positive_label=1, probability=None, threshold=0.5))
    report = solubility_report(solubility_frame(rows, model, logits), rows.polymer)
    assert report["validation"]["auc"] == report["validation"]["pr_auc"] == 1.0
    # Logits that know nothing: of a fold with many positives the others' sigmoid has the lower probability.
    flat = replace(logits, values=np.zeros((1, 3, len(rows))))
    report = solubility_report(solubility_frame(rows, model, flat), rows.polymer)
    assert report["validation"]["auc"] == 0.5


def test_an_r2_that_cannot_be_computed_is_not_spoken_of() -> None:
    names = ("chi_train", "chi_cv", "chi_cv_1", "chi_model", "chi_trivial")
    predicted = {name: [0.4, 0.5, 0.6, 0.7] for name in names}
    frame = pd.DataFrame(
        {"chi": 0.4, "split": "cross-validation", "fold_1": [0, 0, 1, 1], "half_width_cv": np.nan, **predicted}
    )
    said = "\n".join(describe_chi(chi_report(frame, np.arange(4))))
    assert "χ on polymers left out: MAE 0.150 (mean over repeats); MAE 0.150 (all members" in said
    assert "nan" not in said


def test_a_random_forest_that_errs_less_is_told() -> None:
    names = ("chi_train", "chi_cv", "chi_cv_1", "chi_model", "chi_trivial")
    columns = {
        "chi": [0.4, 0.5, 0.6, 0.7],
        "split": "cross-validation",
        "fold_1": [0, 0, 1, 1],
        "half_width_cv": np.nan,
    }
    frame = pd.DataFrame({**columns, "half_width_cv": np.nan, **dict.fromkeys(names, 0.5)})
    assert "forest" not in "\n".join(describe_chi(chi_report(frame, np.arange(4))))
    for off, is_told in ((0.05, True), (0.2, False)):
        said = "\n".join(describe_chi(chi_report(frame.assign(chi_forest=frame["chi"] + off), np.arange(4))))
        assert f"random forest (same features, folds of the first repeat): MAE {off:.3f}" in said
        assert (
            "χ: the random forest has the lower MAE on polymers left out, but not significantly: 4" in said
        ) == is_told


@pytest.mark.parametrize(("off", "is_told"), [(0.05, True), (0.1, True), (0.2, False)])
def test_chi_that_errs_no_less_than_a_mean_is_told(off: float, is_told: bool) -> None:
    chi = np.array([0.25, 0.5, 0.75, 1.0])
    columns = dict.fromkeys(("chi_train", "chi_cv", "chi_cv_1", "chi_model"), chi + 0.1)
    columns |= {"chi": chi, "chi_trivial": chi + off, "fold_1": np.array([0, 0, 1, 1])}
    frame = pd.DataFrame({**columns, "split": "cross-validation", "half_width_cv": np.nan})
    said = "\n".join(describe_chi(chi_report(frame, np.arange(4))))
    warning = (
        f"the mean of the training folds does not have a larger MAE on polymers left out, {off:.3f} against 0.100;"
    )
    assert (warning in said) == is_told
    # R² is 0.87 and every rank is right.
    assert (f"{warning} for new polymers it predicts χ as well as this model" in said) == is_told


def test_a_trivial_predictor_that_learned_from_no_row_is_not_spoken_of() -> None:
    names = ("chi_train", "chi_cv", "chi_cv_1", "chi_model")
    columns = {
        "chi": [0.4, 0.5, 0.6],
        "fold_1": [0, 0, -1],
        "half_width_cv": np.nan,
        "chi_trivial": [np.nan] * 2 + [0.45],
    }
    split = ["cross-validation", "cross-validation", "test"]
    report = chi_report(pd.DataFrame({**columns, "split": split, **dict.fromkeys(names, 0.5)}), np.array([0, 0, 1]))
    assert report["trivial_predictor"].keys() == {"test"}
    validation, test = "\n".join(describe_chi(report)).split("χ on test polymers")
    assert "trivial predictor" not in validation
    assert "trivial predictor: MAE 0.150" in test


def test_neither_f1_nor_recall_is_told_of_test_polymers_without_a_positive_row() -> None:
    columns = {"logit_cv": [-1.0, 1.0, np.nan], "p_cv": [0.3, 0.7, np.nan], "p_train": 0.5, "p_model": 0.2}
    frame = pd.DataFrame({**columns, "p_forest": 0.2, "forest_called_positive": 0, "called_positive": [0, 1, 0]})
    frame = frame.assign(positive=[0, 1, 0], split=["cross-validation"] * 2 + ["test"])
    report = solubility_report(frame, np.arange(3))
    for scores in (report["test"], report["trivial_predictor"]["test"], report["random_forest"]["test"]):
        assert np.isnan([scores["f1"], scores["recall"]]).all()
    validation, test = "\n".join(_describe_solubility(report, True)).split("solubility on test polymers (1 row)")
    assert "recall 1.000" in validation
    assert "recall" not in test
    assert "Brier 0.040" in test
