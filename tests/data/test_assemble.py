"""From tables to a dataset: indices that say what the tables say, and folds no polymer straddles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chitransfer.chemistry.features import FeatureRecipe, featurise_polymers, featurise_solvents
from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.data import assemble
from chitransfer.data.assemble import Dataset, load_dataset
from chitransfer.errors import DataError
from chitransfer.training.crossval import make_folds

CUTS = [["*CCO*", "*OCC*", "*COC*", "*CCOCCO*"], ["*CC(*)C", "*C(C)C*"], ["*CC*"], ["*CC(*)O", "*C(O)C*"], ["*CCS*"]]


def load(folder: Path, **options: Any) -> Dataset:
    return load_dataset(
        str(folder / "stage1.csv"),
        str(folder / "chi.csv"),
        str(folder / "solubility.csv"),
        fingerprint_bits=64,
        cache_folder=folder / "cache",
        **options,
    )


def write(folder: Path, stage1: list[dict], chi: list[dict], solubility: list[dict]) -> None:
    for name, rows in (("stage1", stage1), ("chi", chi), ("solubility", solubility)):
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)


class TestRows:
    def test_rows_are_those_of_the_tables_in_order(self, tiny_dataset: Dataset) -> None:
        for rows, column in (
            (tiny_dataset.stage1, "chi"),
            (tiny_dataset.chi, "chi"),
            (tiny_dataset.solubility, "soluble"),
        ):
            assert rows is not None
            written = pd.read_csv(rows.table.source)
            assert rows.value.tolist() == written[column].tolist()
            assert [tiny_dataset.polymers[i] for i in rows.polymer] == [
                polymer_identity(smiles) for smiles in written["SMILES"]
            ]
            expected = written["temp"].tolist() if "temp" in written else [298.15] * len(written)
            assert rows.temperature.tolist() == expected

    def test_features_are_those_of_each_row(self, tiny_dataset: Dataset) -> None:
        assert tiny_dataset.chi is not None
        smiles = tiny_dataset.chi.table.rows["SMILES"].tolist()
        expected = featurise_polymers(smiles, tiny_dataset.recipe)
        np.testing.assert_array_equal(tiny_dataset.polymer_features[tiny_dataset.chi.structure].toarray(), expected)

    def test_water_alone_brings_no_solvent_columns(self, tiny_dataset: Dataset) -> None:
        assert tiny_dataset.solvents == ("O",)
        assert tiny_dataset.solvent_features.shape == (1, 0)
        assert not tiny_dataset.recipe.with_solvent

    def test_one_other_solvent_brings_them_to_all(self, tmp_path: Path) -> None:
        write(
            tmp_path,
            [{"SMILES": "*CC*", "chi": 0.1, "solvent": ""}, {"SMILES": "*CCO*", "chi": 0.1, "solvent": "OC"}],
            [{"SMILES": "*CC*", "chi": 0.1, "temp": 300}],
            [{"SMILES": "*CC*", "soluble": 1}, {"SMILES": "*CCO*", "soluble": 0}],
        )
        dataset = load(tmp_path)
        assert dataset.recipe == FeatureRecipe(fingerprint_bits=64, with_solvent=True)
        assert dataset.solvents == ("CO", "O")
        np.testing.assert_array_equal(
            dataset.solvent_features.toarray(), featurise_solvents(["CO", "O"], dataset.recipe)
        )
        assert [dataset.solvents[i] for i in dataset.stage1.solvent] == ["O", "CO"]

    @pytest.mark.parametrize("left_out", ["chi", "solubility"])
    def test_one_stage_2_table_may_be_left_out(self, tables: Any, tmp_path: Path, left_out: str) -> None:
        sources: dict[str, str | None] = {"chi": str(tables.chi), "solubility": str(tables.solubility), left_out: None}
        dataset = load_dataset(
            str(tables.stage1), sources["chi"], sources["solubility"], fingerprint_bits=64, cache_folder=tmp_path
        )
        assert getattr(dataset, left_out) is None
        folds = make_folds(dataset, 3, 2, 0)
        measured = dataset.measured_polymers()
        assert (folds[:, measured] >= 0).all()
        assert (np.delete(folds, measured, axis=1) == -1).all()

    def test_one_of_them_is_needed(self, tables: Any) -> None:
        with pytest.raises(DataError, match=r"set paths\.exp_chi_csv or paths\.solubility_csv"):
            load_dataset(str(tables.stage1), None, None)

    def test_digest_tells_changed_data_and_recipes(self, tables: Any, tmp_path: Path, tiny_dataset: Dataset) -> None:
        def digest(bits: int = 64) -> str:
            return load_dataset(
                str(tables.stage1),
                str(tables.chi),
                str(tables.solubility),
                fingerprint_bits=bits,
                cache_folder=tmp_path / "cache",
            ).digest()

        before = digest()
        assert before == tiny_dataset.digest()
        assert digest(128) != before
        tables.chi.write_text(tables.chi.read_text().replace("310.0", "311.0"))
        assert digest() != before

    def test_digest_tells_other_names_and_other_rows_of_the_same_files(
        self, tmp_path: Path, tiny_dataset: Dataset
    ) -> None:
        renamed = replace(tiny_dataset, polymers=(*tiny_dataset.polymers[:-1], "named otherwise"))
        assert renamed.digest() != tiny_dataset.digest()
        labels = [{"SMILES": "*CC*", "soluble": label} for label in (1, 1, 0)]
        write(
            tmp_path,
            [{"SMILES": "*CC*", "chi": 0.1}],
            [{"SMILES": "*CC*", "chi": 0.1, "temp": 300}],
            [*labels, {"SMILES": "*CCO*", "soluble": 0}, {"SMILES": "*CCS*", "soluble": 1}],
        )
        by_rule = {rule: load(tmp_path, on_contradictory_labels=rule) for rule in ("drop", "majority")}
        assert [len(dataset.solubility or ()) for dataset in by_rule.values()] == [2, 4]
        assert by_rule["drop"].digest() != by_rule["majority"].digest()
        with pytest.raises(DataError, match="both soluble and insoluble"):
            load(tmp_path)

    def test_the_fingerprints_radius_is_the_chosen_one(self, tables: Any, tmp_path: Path) -> None:
        chosen = load_dataset(
            str(tables.stage1), str(tables.chi), None, fingerprint_bits=64, fingerprint_radius=1, cache_folder=tmp_path
        )
        assert chosen.recipe == FeatureRecipe(fingerprint_bits=64, fingerprint_radius=1)


@st.composite
def measured_tables(draw: st.DrawFn) -> tuple[list[dict], list[dict]]:
    chi = [
        {"SMILES": draw(st.sampled_from(draw(st.sampled_from(CUTS)))), "chi": draw(st.floats(-2, 5)), "temp": 300.0}
        for _ in range(draw(st.integers(1, 12)))
    ]
    labels = [
        {"SMILES": draw(st.sampled_from(cuts)), "soluble": number % 2}
        for number, cuts in enumerate(CUTS)
        for _ in range(draw(st.integers(1, 3)))
    ]
    return draw(st.permutations(chi)), draw(st.permutations(labels))


def straddling_polymers(identities: list[str], fold_of_rows: np.ndarray) -> set[str]:
    """Polymers with rows inside some fold and outside it as well."""
    leaked: set[str] = set()
    for fold in set(fold_of_rows.tolist()):
        inside = {name for name, own in zip(identities, fold_of_rows, strict=True) if own == fold}
        outside = {name for name, own in zip(identities, fold_of_rows, strict=True) if own != fold}
        leaked |= inside & outside
    return leaked


class TestFolds:
    @given(measured_tables(), st.integers(2, 4), st.integers(0, 2**31 - 1))
    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_no_polymer_is_on_both_sides_across_both_tables(
        self, tmp_path: Path, tables_of: tuple[list[dict], list[dict]], n_folds: int, seed: int
    ) -> None:
        chi, labels = tables_of
        write(tmp_path, [{"SMILES": cuts[0], "chi": 0.1} for cuts in CUTS], chi, labels)
        dataset = load(tmp_path)
        assert dataset.chi is not None
        assert dataset.solubility is not None
        # Identities straight from the text, not from the dataset under test.
        identities = [polymer_identity(row["SMILES"]) for row in [*chi, *labels]]
        for folds in make_folds(dataset, n_folds, 2, seed):
            fold_of_rows = np.concatenate([folds[dataset.chi.polymer], folds[dataset.solubility.polymer]])
            assert straddling_polymers(identities, fold_of_rows) == set()

    def test_measured_rows_alone_decide_who_is_split_and_how(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rows of χ, insoluble and soluble ones count apart; polymers that were only computed are in no fold."""
        computed, *measured = ("*CCS*", "*CC(*)O", "*CCO*", "*CC*")
        rows = {"*CC(*)O": (3, 2, 0), "*CCO*": (0, 0, 4), "*CC*": (1, 1, 1)}
        write(
            tmp_path,
            [{"SMILES": computed, "chi": 0.1}, {"SMILES": "*CC*", "chi": 0.1}],
            [{"SMILES": unit, "chi": 0.1 * i, "temp": 300} for unit in measured for i in range(rows[unit][0])],
            [
                {"SMILES": unit, "soluble": label}
                for unit in measured
                for label in (0, 1)
                for _ in range(rows[unit][1 + label])
                if unit != "*CC*"
            ]
            + [{"SMILES": "*CC*", "soluble": label, "solvent": solvent} for label, solvent in ((0, "O"), (1, "CO"))],
        )
        dataset, seen = load(tmp_path), {}

        def look(polymers: list[str], loads: np.ndarray, *rest: int) -> np.ndarray:
            seen.update(zip(polymers, map(tuple, loads.tolist()), strict=True))
            return np.arange(len(polymers))

        monkeypatch.setattr(assemble, "assign_folds", look)
        folds = dataset.fold_of_polymers(2, 0)
        assert seen == {polymer_identity(unit): counts for unit, counts in rows.items()}
        assert [dataset.polymers[i] for i in np.flatnonzero(folds < 0)] == [polymer_identity(computed)]

    def test_a_planted_leak_is_seen(self, tiny_dataset: Dataset) -> None:
        assert tiny_dataset.chi is not None
        identities = [tiny_dataset.polymers[i] for i in tiny_dataset.chi.polymer]
        folds_over_rows = np.arange(len(identities)) * 3 // len(identities)
        assert straddling_polymers(identities, folds_over_rows)

    def test_folds_do_not_depend_on_the_order_of_rows(self, tables: Any, tmp_path: Path, rng: Any) -> None:
        def folds_by_polymer() -> list[dict[str, int]]:
            dataset = load_dataset(
                str(tables.stage1),
                str(tables.chi),
                str(tables.solubility),
                fingerprint_bits=64,
                cache_folder=tmp_path / "cache",
            )
            return [dict(zip(dataset.polymers, folds, strict=True)) for folds in make_folds(dataset, 4, 3, 9)]

        before = folds_by_polymer()
        for path in (tables.stage1, tables.chi, tables.solubility):
            frame = pd.read_csv(path)
            frame.iloc[rng.permutation(len(frame))].to_csv(path, index=False)
        assert folds_by_polymer() == before

    def test_repeats_are_different_shuffles(self, tiny_dataset: Dataset) -> None:
        folds = make_folds(tiny_dataset, 3, 3, 0)
        assert folds.shape == (3, len(tiny_dataset.polymers))
        assert (folds[0] != folds[1]).any()
        assert (folds[1] != folds[2]).any()
        np.testing.assert_array_equal(folds, make_folds(tiny_dataset, 3, 3, 0))

    def test_folds_of_the_shared_tables_are_balanced(self, shared_data: Path, tmp_path: Path) -> None:
        dataset = load_dataset(
            str(shared_data / "cosmo_rs_chi.csv"),
            str(shared_data / "experiment_chi.csv"),
            str(shared_data / "solubility.csv"),
            fingerprint_bits=64,
            cache_folder=tmp_path,
        )
        assert dataset.chi is not None
        assert dataset.solubility is not None
        for folds in make_folds(dataset, 5, 3, 42):
            soluble = dataset.solubility.value == 1
            for rows in (
                dataset.chi.polymer,
                dataset.solubility.polymer[soluble],
                dataset.solubility.polymer[~soluble],
            ):
                share = np.bincount(folds[rows], minlength=5) / len(rows)
                assert share.min() > 0.08, share
                assert share.max() < 0.35, share
