"""The random forest that networks are compared with: it sees training rows only, and is scored as a trial is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from chitransfer.data.assemble import Dataset
from chitransfer.training.forest import ForestPredictions, leave_out, score_random_forest
from chitransfer.training.metrics import chi_metrics, solubility_metrics
from tests.forests import few_trees


@pytest.fixture(autouse=True)
def small_forests() -> Iterator[None]:
    """Every forest here has few trees."""
    with few_trees():
        yield


def grow(dataset: Dataset, fold: np.ndarray) -> ForestPredictions:
    """Forests of one seed."""
    return leave_out(dataset, fold, 1, 7)


def test_a_folds_values_reach_neither_its_forest_nor_its_threshold(tiny_dataset: Dataset) -> None:
    fold = tiny_dataset.fold_of_polymers(3, 0)
    chi, solubility = tiny_dataset.chi, tiny_dataset.solubility
    assert chi is not None
    assert solubility is not None
    before = grow(tiny_dataset, fold)
    for one in range(3):
        of_chi, of_label = fold[chi.polymer] == one, fold[solubility.polymer] == one
        changed = replace(
            tiny_dataset,
            chi=replace(chi, value=np.where(of_chi, chi.value + 100.0, chi.value)),
            solubility=replace(solubility, value=np.where(of_label, 1 - solubility.value, solubility.value)),
        )
        after = grow(changed, fold)
        for old, new, own in ((before.chi, after.chi, of_chi), (before.solubility, after.solubility, of_label)):
            assert old is not None
            assert new is not None
            assert np.array_equal(old.value[own], new.value[own])
            assert np.array_equal(old.threshold[own], new.threshold[own])
            assert not np.array_equal(old.value[~own], new.value[~own])


def test_polymers_kept_for_the_test_teach_nothing(tiny_dataset: Dataset) -> None:
    chi = tiny_dataset.chi
    assert chi is not None
    fold = tiny_dataset.fold_of_polymers(3, 0)
    fold[np.unique(chi.polymer)[:2]] = -1
    kept = fold[chi.polymer] == -1
    before, after = (
        grow(replace(tiny_dataset, chi=replace(chi, value=value)), fold).chi
        for value in (chi.value, np.where(kept, 99.0, chi.value))
    )
    assert before is not None
    assert after is not None
    assert np.array_equal(before.value, after.value)
    assert np.isfinite(before.value).all()


def test_scores_are_those_of_what_was_left_out(tiny_dataset: Dataset) -> None:
    fold = tiny_dataset.fold_of_polymers(3, 0)
    found, scores = grow(tiny_dataset, fold), score_random_forest(tiny_dataset, fold, 1, 7)
    chi, solubility = tiny_dataset.chi, tiny_dataset.solubility
    assert chi is not None
    assert solubility is not None
    assert found.chi is not None
    assert found.solubility is not None
    expected = chi_metrics(chi.value, found.chi.value) | solubility_metrics(
        solubility.value == 1, found.solubility.value, found.solubility.called_positive()
    )
    assert scores == pytest.approx(expected)


def test_a_table_in_one_fold_is_not_scored(tiny_dataset: Dataset) -> None:
    chi = tiny_dataset.chi
    assert chi is not None
    fold = tiny_dataset.fold_of_polymers(3, 0)
    fold[np.unique(chi.polymer)] = 0
    assert grow(tiny_dataset, fold).chi is None
    scores = score_random_forest(tiny_dataset, fold, 1, 7)
    assert "sol_f1" in scores
    assert not any(name.startswith("exp_") for name in scores)
    alone = score_random_forest(replace(tiny_dataset, solubility=None), tiny_dataset.fold_of_polymers(3, 0), 1, 7)
    assert set(alone) == {"exp_mae", "exp_rmse", "exp_r2", "exp_spearman"}


def test_features_that_do_not_vary_leave_the_mean(tiny_dataset: Dataset) -> None:
    chi = tiny_dataset.chi
    assert chi is not None
    fold = tiny_dataset.fold_of_polymers(3, 0)
    flat = replace(
        tiny_dataset, chi=replace(chi, structure=np.zeros_like(chi.structure), temperature=np.full(len(chi), 300.0))
    )
    found = grow(flat, fold).chi
    assert found is not None
    own = fold[chi.polymer] == 0
    # A forest's bootstrap samples have means of their own.
    assert np.ptp(found.value[own]) == 0
    assert found.value[own][0] == pytest.approx(chi.value[~own].mean(), abs=0.3)
