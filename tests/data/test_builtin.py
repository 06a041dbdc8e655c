"""The built-in measured tables: readable, one label per polymer, every row with a source that can be found again."""

from __future__ import annotations

import csv
import re
from importlib import resources

import pytest

from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.data.tables import WATER, read_chi_table, read_solubility_table


def records(name: str) -> list[dict[str, str]]:
    text = resources.files("chitransfer.data").joinpath("builtin", name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def test_experimental_chi_reads_without_a_complaint():
    table = read_chi_table("builtin:experimental_chi")
    assert len(table) >= 25
    assert table.rejected.empty
    assert table.n_repeated == 0
    assert set(table.rows["solvent"]) == {WATER}
    assert table.rows["polymer"].nunique() >= 12
    assert table.rows["temp"].between(273.15, 503.15).all()
    assert table.rows["chi"].between(-1, 10).all()


def test_experimental_chi_rises_with_temperature_for_n_alkyl_acrylamides():
    rows = read_chi_table("builtin:experimental_chi").rows
    for unit in ("*CC(*)C(=O)NC(C)C", "*CC(*)C(=O)N(CC)CC", "*CC(*)C(=O)NCC", "*CC(*)C(=O)N1CCCC1"):
        values = rows[rows["polymer"] == polymer_identity(unit)].sort_values("temp")["chi"].tolist()
        assert len(values) >= 3
        assert values == sorted(values)


def test_water_solubility_reads_without_a_complaint():
    table = read_solubility_table("builtin:water_solubility")
    assert table.rejected.empty
    assert table.n_repeated == 0
    assert set(table.rows["solvent"]) == {WATER}
    assert 0.3 <= table.rows["soluble"].mean() <= 0.7


@pytest.mark.parametrize(
    ("unit", "label"),
    [
        ("*CCO*", 1),
        ("*CC(*)O", 1),
        ("*CC(*)C(N)=O", 1),
        ("*CC(*)C(=O)O", 1),
        ("*CCCCO*", 0),
        ("*CC(*)OC(C)=O", 0),
        ("*CC=C(C)C*", 0),
    ],
)
def test_well_known_labels(unit, label):
    rows = read_solubility_table("builtin:water_solubility").rows
    assert rows.loc[rows["polymer"] == polymer_identity(unit), "soluble"].tolist() == [label]


@pytest.mark.parametrize("name", ["experimental_chi.csv", "water_solubility.csv"])
def test_every_row_has_a_name_and_a_source_that_can_be_found_again(name):
    for record in records(name):
        assert record["name"].strip()
        # A title and where it is: an address or a DOI.
        assert re.search(r"https?://\S+|doi 10\.\d{4,}/\S+", record["source"]), record
        assert len(record["source"]) > 30


def test_shared_water_rows_are_the_same_facts(shared_data):
    with (shared_data / "experiment_chi.csv").open(encoding="utf-8") as stream:
        given = {
            (polymer_identity(row["SMILES"]), float(row["temp"]), float(row["chi"]))
            for row in csv.DictReader(stream)
            if row["solvent"] == WATER
        }
    rows = read_chi_table("builtin:experimental_chi").rows
    ours = set(rows[["polymer", "temp", "chi"]].itertuples(index=False, name=None))
    assert given <= ours


def test_shared_water_labels_agree_but_for_the_named_ones(shared_data):
    # Amorphous poly(methyl vinyl ether) dissolves in cold water; the vinyl subset keeps only the crystalline form.
    # The imine is a misreading of poly(2-ethyl-2-oxazoline), the aldehyde of poly(vinyl butyral), and which anthryl is
    # meant is not clear.
    changed = {
        polymer_identity(unit)
        for unit in (
            "*CC(*)OC", "*CC(*)=NC(=O)CC", "*CC(*)C(C=O)CC", "*CC(*)c1ccc(-c2cccc3cc4ccccc4cc23)cc1",
        )
    }  # fmt: skip
    rows = read_solubility_table("builtin:water_solubility").rows
    ours = dict(zip(rows["polymer"], rows["soluble"], strict=True))
    with (shared_data / "solubility.csv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            polymer = polymer_identity(row["SMILES"])
            if row["solvent"] == WATER and polymer not in changed:
                assert ours[polymer] == int(row["soluble"]), row
