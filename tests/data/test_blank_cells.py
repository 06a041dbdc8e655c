"""Blank cells of a column that other rows fill, as sheets with merged cells leave them: the default is said."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from chitransfer.config import Config
from chitransfer.data.assemble import load_dataset
from chitransfer.data.check import check_tables
from chitransfer.data.table_remarks import describe_blank_cells
from chitransfer.data.tables import read_chi_table, read_solubility_table, read_stage1_table
from chitransfer.search.summary import describe_data
from tests.conftest import Tables

UNITS = ("*CC*", "*CC(*)C", "*CCO*", "*CC(*)O", "*CC(*)N", "*CC(*)Cl", "*CC(*)F", "*CC(*)Br")


def write_table(path: Path, column: str, cells: str, rest: str = "chi,temp", values: str = "0.4,300") -> str:
    rows = (f"{unit},{values},{cell}\n" for unit, cell in zip(UNITS, cells.split(","), strict=False))
    path.write_text(f"SMILES,{rest},{column}\n" + "".join(rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ("CCO,,,CO", "2 of 4 usable rows of PATH have no solvent (lines 3, 4) and are"),
        ("CCO,CO,", "1 of 3 usable rows of PATH has no solvent (line 4) and is"),
        ("CCO, ,,,,,,", "7 of 8 usable rows of PATH have no solvent (lines 3, 4, 5, 6, 7, …) and are"),
    ],
)
def test_blank_solvents_are_counted_with_their_lines(tmp_path: Path, cells: str, said: str) -> None:
    source = write_table(tmp_path / "merged.csv", "solvent", cells)
    remedy = " taken to be in water; merged cells? fill solvent in every row, with O where it is water"
    assert describe_blank_cells([read_chi_table(source)]) == [said.replace("PATH", source) + remedy]


@pytest.mark.parametrize("cells", ["CCO,O,CO", ",,"])
def test_a_column_that_is_full_or_empty_is_as_documented(tmp_path: Path, cells: str) -> None:
    assert describe_blank_cells([read_chi_table(write_table(tmp_path / "m.csv", "solvent", cells))]) == []
    (tmp_path / "without.csv").write_text("SMILES,chi,temp\n*CC*,0.4,300\n", encoding="utf-8")
    assert describe_blank_cells([read_chi_table(str(tmp_path / "without.csv"))]) == []


def test_blank_temperatures_of_stage_1_are_told_and_only_rows_that_are_used(tmp_path: Path) -> None:
    source = write_table(tmp_path / "computed.csv", "temp", "350,,,310", "chi", "0.4")
    with Path(source).open("a", encoding="utf-8") as stream:
        stream.write("*CC,0.4,\n")
    assert describe_blank_cells([read_stage1_table(source, on_bad_rows="skip")]) == [
        f"2 of 4 usable rows of {source} have no temp (lines 3, 4) and are taken to be at 298.15 K; merged cells? "
        "fill temp in every row, with 298.15 where it is that"
    ]


def test_labels_that_are_left_out_are_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("SMILES,soluble,solvent\n*CC*,1,\n*CC*,0,\n*CCO*,1,CO\n*CCN*,1,\n", encoding="utf-8")
    (line,) = describe_blank_cells([read_solubility_table(str(path), on_contradictory_labels="drop")])
    assert line.startswith(f"1 of 2 usable rows of {path} has no solvent (line 5) and is taken")


def test_search_and_data_check_say_it(tables: Tables, tmp_path: Path) -> None:
    frame = pd.read_csv(tables.chi)
    frame.assign(solvent=["CCO", *[""] * (len(frame) - 1)]).to_csv(tables.chi, index=False)
    dataset = load_dataset(
        *map(str, (tables.stage1, tables.chi, tables.solubility)), fingerprint_bits=64, cache_folder=tmp_path
    )
    (said,) = describe_blank_cells(dataset.tables)
    assert said.startswith(f"{len(frame) - 1} of {len(frame)} usable rows of {tables.chi} have no solvent")
    assert f"  {said}" in describe_data(dataset, Config())
    assert f"{said}." in check_tables(*dataset.tables, cache_folder=tmp_path).warnings
