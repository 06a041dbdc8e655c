"""The permuted-label control: what it says, that it shows a leak, and how labels are dealt out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.model_selection import GroupKFold, KFold, cross_val_predict
from sklearn.neighbors import KNeighborsRegressor

from chitransfer.data.assemble import Dataset
from chitransfer.data.subsets import permute_labels
from chitransfer.evidence.outcomes import sum_by_polymer
from chitransfer.evidence.overtuning import describe_control
from chitransfer.training.resampling import Estimate, draw_polymers


@pytest.mark.parametrize(
    ("auc", "r2", "expected"),
    [
        (
            Estimate(0.52, 0.44, 0.60),
            Estimate(-0.1, -0.3, 0.02),
            "no sign of a leak; one of less than 0.20 of χ R² and 0.08 of ROC-AUC",
        ),
        (Estimate(0.75, 0.66, 0.84), Estimate(-0.1, -0.3, 0.02), "ABOVE CHANCE"),
        (Estimate(0.5, 0.4, 0.6), Estimate(0.5, 0.2, 0.7), "ABOVE CHANCE"),
        (
            Estimate(0.42, 0.33, 0.53),
            Estimate(-1.0, -3.5, -0.5),
            "one of less than 0.09 of ROC-AUC would go unnoticed; too few polymers to see any leak by χ R²",
        ),
        (Estimate(0.6, 0.05, 0.9), Estimate(0.4, -7.0, 0.9), "too few polymers to see any leak"),
    ],
)
def test_control_names_a_leak_or_how_large_one_would_have_to_be(auc: Estimate, r2: Estimate, expected: str) -> None:
    assert expected in describe_control({"sol_auc": auc, "exp_r2": r2})


def several_rows_a_polymer(dataset: Dataset, n_rows: int = 6) -> Dataset:
    """The χ table with every row `n_rows` times, at other χ, as other temperatures would have it."""
    chi = dataset.chi
    assert chi is not None
    again = np.repeat(np.arange(len(chi)), n_rows)
    value = chi.value[again] + 0.02 * np.tile(np.arange(n_rows), len(chi))
    arrays = {name: getattr(chi, name)[again] for name in ("structure", "solvent", "polymer", "temperature")}
    table = replace(chi.table, rows=chi.table.rows.iloc[again].assign(chi=value).reset_index(drop=True))
    return replace(dataset, chi=replace(chi, **arrays, value=value, table=table))


def test_a_split_that_parts_rows_of_one_polymer_shows_on_permuted_labels(tiny_dataset: Dataset) -> None:
    """Rows of one polymer on both sides of a split: a neighbour that copies its label scores far above chance."""
    dataset = permute_labels(several_rows_a_polymer(tiny_dataset), 3)
    rows = dataset.chi
    assert rows is not None
    features = dataset.polymer_features[rows.structure].toarray()
    polymers = sorted(rows.table.rows["polymer"].unique())
    verdicts, scores = {}, {}
    for name, split in (("leaky", KFold(5, shuffle=True, random_state=0)), ("honest", GroupKFold(5))):
        parts = list(split.split(features, groups=None if name == "leaky" else rows.polymer))
        predicted = cross_val_predict(KNeighborsRegressor(3, weights="distance"), features, rows.value, cv=parts)
        scores[name] = sk.r2_score(rows.value, predicted)
        frame = rows.table.rows.assign(predicted_chi=predicted)
        sums = sum_by_polymer(polymers, [frame], [], 1)
        draws = sums.components(draw_polymers(len(polymers), 300, 0))["exp_r2"]
        verdicts[name] = describe_control({"exp_r2": Estimate.of(draws)})
    assert scores["leaky"] > 0.9
    assert "ABOVE CHANCE" in verdicts["leaky"]
    assert scores["honest"] < 0.2
    assert "ABOVE CHANCE" not in verdicts["honest"]


def test_polymers_take_one_value_of_another_polymer_and_keep_chi_and_label_together(tiny_dataset: Dataset) -> None:
    chi, solubility = tiny_dataset.chi, tiny_dataset.solubility
    assert chi is not None
    assert solubility is not None
    # Every polymer measured, its χ and its label telling which polymer they are of.
    both = replace(
        tiny_dataset,
        chi=replace(chi, value=chi.polymer.astype(float)),
        solubility=replace(solubility, value=solubility.polymer.astype(float)),
    )
    permuted = permute_labels(both, 1)
    assert permuted.stage1 is tiny_dataset.stage1
    taken: dict[str, dict[int, float]] = {}
    for before, after, column in ((both.chi, permuted.chi, "chi"), (both.solubility, permuted.solubility, "soluble")):
        assert before is not None
        assert after is not None
        assert np.array_equal(before.polymer, after.polymer)
        assert np.array_equal(after.table.rows[column].to_numpy(dtype=float), after.value)
        pairs = set(zip(after.polymer.tolist(), after.value.tolist(), strict=True))
        taken[column] = dict(pairs)
        assert len(taken[column]) == len(pairs)
        assert set(taken[column].values()) == set(map(float, before.polymer))
        assert all(polymer != donor for polymer, donor in pairs)
    shared = taken["chi"].keys() & taken["soluble"].keys()
    assert all(taken["chi"][polymer] == taken["soluble"][polymer] for polymer in shared)
