"""χ added to a user's table: every row keeps its place, and says why when it has no value."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chitransfer.chemistry.unifac import DEFAULT_TEMPERATURES, chi_of_smiles
from chitransfer.data import compute
from chitransfer.data.compute import ADDED_COLUMNS, compute_table
from chitransfer.data.tables import read_solubility_table
from chitransfer.errors import DataError

PAIRS = """name,Temp,smiles,Solvent
PVA,298.15,*CC(*)O,O
PVA hot,350,*CC(*)O,
PEO,,*OCC*,c1ccccc1
phosphine,300,*CC(*)P(C)C,O
no polymer,300,CCO,O
Celsius,25,*CCO*,O
"a, quoted",abc,*CCO*,O
odd solvent,300,*CCO*,*C
phosphine solvent,300,*CCO*,CP(C)C
PVA,298.15,*C(O)C*,[OH2]
"""


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.csv"
    path.write_text(PAIRS, encoding="utf-8")
    return path


def test_rows_keep_their_place_and_their_cells(pairs: Path, tmp_path: Path) -> None:
    summary = compute_table(pairs, tmp_path / "out.csv")
    before, after = pd.read_csv(pairs, dtype=str), pd.read_csv(tmp_path / "out.csv", dtype=str)
    assert list(after.columns) == [*before.columns, *ADDED_COLUMNS]
    pd.testing.assert_frame_equal(after[before.columns], before)
    assert summary.n_rows == 10
    assert summary.n_values == 4
    assert sum(summary.reasons.values()) == 6
    # Rows without a value count, too; the two spellings of water are one solvent.
    assert (summary.n_polymers, summary.n_solvents) == (6, 4)


def test_blank_cells_beside_filled_ones_are_told(pairs: Path, tmp_path: Path) -> None:
    remedy = "merged cells? fill {} in every row, with {} where it is {}"
    assert compute_table(pairs, tmp_path / "out.csv").remarks == [
        f"1 of 4 usable rows of {pairs} has no solvent and is taken to be in water; "
        + remedy.format("solvent", "O", "water"),
        f"1 of 4 usable rows of {pairs} has no temp and is taken to be at 298.15 K; "
        + remedy.format("temp", "298.15", "that"),
    ]
    pairs.write_text("SMILES,solvent\n*CCO*,\n*CC(*)O,\n", encoding="utf-8")
    assert compute_table(pairs, tmp_path / "out.csv").remarks == [], "a column left blank is as one left out"


def test_values_are_the_models(pairs: Path, tmp_path: Path) -> None:
    compute_table(pairs, tmp_path / "out.csv")
    after = pd.read_csv(tmp_path / "out.csv")
    expected = [
        chi_of_smiles("*CC(*)O", "O", [298.15])[0],
        chi_of_smiles("*CC(*)O", "O", [350.0])[0],
        chi_of_smiles("*CCO*", "c1ccccc1", [298.15])[0],
    ]
    assert after.chi_unifac[:3].tolist() == pytest.approx(expected, abs=5.1e-5)
    assert after.chi_unifac[9] == after.chi_unifac[0]
    assert after.method[:3].tolist() == ["unifac", "unifac", "unifac-2.0"]
    kelvin = np.array(DEFAULT_TEMPERATURES)
    A, B = np.polyfit(1 / kelvin, chi_of_smiles("*CC(*)O", "O", kelvin), 1)
    assert after.A_unifac_K[0] == pytest.approx(A, abs=6e-3)
    assert after.B_unifac[0] == pytest.approx(B, abs=6e-5)


def test_reasons_are_given_in_words(pairs: Path, tmp_path: Path) -> None:
    compute_table(pairs, tmp_path / "out.csv")
    reasons = pd.read_csv(tmp_path / "out.csv").set_index("name").reason
    assert "element P" in reasons["phosphine"]
    assert "two *" in reasons["no polymer"]
    assert "273.15" in reasons["Celsius"]
    assert reasons["a, quoted"] == "temp is not a number"
    assert "whole molecule" in reasons["odd solvent"]
    assert reasons["phosphine solvent"].startswith("solvent: ")


@pytest.mark.parametrize("number", ["3_00", "٣٠٠", "nan"])
def test_temperatures_are_read_as_in_the_other_tables(tmp_path: Path, number: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(f"SMILES,temp\n*CCO*,{number}\n", encoding="utf-8")
    summary = compute_table(path, tmp_path / "out.csv")
    assert (summary.n_values, summary.n_polymers) == (0, 1)
    assert next(iter(summary.reasons)).startswith("temp ")


@pytest.mark.parametrize("name", ["out.csv.gz", "OUT.CSV.GZ"])
def test_its_own_output_can_be_computed_again(pairs: Path, tmp_path: Path, name: str) -> None:
    compute_table(pairs, tmp_path / name)
    compute_table(tmp_path / name, tmp_path / "again.csv")
    packed = (tmp_path / name).read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "again.csv").read_bytes()
    assert packed[4:8] == bytes(4), "a time in the gzip header would give the same table other bytes"


def test_blank_rows_keep_their_place(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_text("SMILES,solvent\n*CC(*)O,O\n,\n*CC(*)O,O\n,\n\n", encoding="utf-8")
    summary = compute_table(path, tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    assert table.chi_unifac.notna().tolist() == [True, False, True, False]
    assert table.reason[1] == table.reason[3] == "the row is empty"
    assert (summary.n_rows, summary.n_polymers) == (4, 1)
    compute_table(tmp_path / "out.csv", tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()


def test_crooked_rows_keep_their_place(tmp_path: Path) -> None:
    path, output = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_text("SMILES,temp,note\n*CC(*)O,310,a\n*CC(*)O,310,b,c\n*CC(*)O\n*CC(*)O,310,d\n", encoding="utf-8")
    summary = compute_table(path, output)
    assert (summary.n_rows, summary.n_values, summary.n_polymers, summary.n_solvents) == (4, 2, 1, 1)
    table = pd.read_csv(output)
    assert table.chi_unifac.notna().tolist() == [True, False, False, True]
    assert table.reason[1:3].tolist() == [
        f"{cells} where the header names 3 columns" for cells in ("4 cells", "1 cell")
    ]
    assert table.note.fillna("").tolist() == ["a", "b", "", "d"]


def test_an_empty_line_of_the_only_column_keeps_its_place(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("SMILES\n*CC(*)O\n\n*CC(*)O\n\n", encoding="utf-8")
    compute_table(path, tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert table.reason.tolist() == ["", "the row is empty", ""]


def test_a_built_in_table_can_be_computed(tmp_path: Path) -> None:
    summary = compute_table(Path("builtin:water_solubility"), tmp_path / "out.csv")
    assert summary.n_rows == len(read_solubility_table("builtin:water_solubility"))


def test_cells_that_are_passed_on_are_no_formulas(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("SMILES,solvent,=A1,note\n*CC(*)O,O,-1.5,@SUM(A1)\n", encoding="utf-8")
    compute_table(path, tmp_path / "out.csv")
    lines = (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("SMILES,solvent,'=A1,note,")
    assert lines[1].startswith("*CC(*)O,O,-1.5,'@SUM(A1),")


def test_the_temperature_of_predictions_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "best.csv"
    path.write_text("rank,SMILES,solvent,temperature_K\n1,*CC(*)O,O,350\n", encoding="utf-8")
    compute_table(path, tmp_path / "out.csv")
    expected = chi_of_smiles("*CC(*)O", "O", [350.0])[0]
    assert pd.read_csv(tmp_path / "out.csv").chi_unifac[0] == pytest.approx(expected, abs=5.1e-5)


def test_a_table_is_not_overwritten_by_its_own_values(
    pairs: Path, tmp_path: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    link = tmp_path / "link.csv"
    link.symlink_to(pairs)
    for output in (pairs, link):
        code, _, err = run_command("data", "compute", "--input", pairs, "--output", output)
        assert code == 2
        assert f"ERROR: --output {output}: is the file of --input {pairs}, which would be overwritten" in err
    assert pairs.read_text(encoding="utf-8") == PAIRS


def test_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "CHUNK", 5)
    path = tmp_path / "many.csv"
    units = [f"*CC(*)C(=O)O{'C' * n}" for n in range(1, 10)] + [f"*{'C' * n}O*" for n in range(1, 9)]
    path.write_text("SMILES\n" + "\n".join(units) + "\n", encoding="utf-8")
    seen: list[tuple[int, int]] = []
    compute_table(path, tmp_path / "one.csv", n_jobs=1)
    compute_table(path, tmp_path / "two.csv", n_jobs=2, progress=lambda done, total: seen.append((done, total)))
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert [done for done, _ in seen] == [5, 10, 15, 17]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("polymer,solvent\n*CC*,O\n", r"missing column\(s\) SMILES"),
        ("SMILES,temp,Temp\n*CC*,300,300\n", "2 times"),
        ("SMILES,temp\n", r"has a header \(SMILES, temp\) but no rows"),
        ('SMILES,temp\n*CC*,300\n"*CC*,300\n', "line 3: a quote"),
    ],
)
def test_unreadable_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        compute_table(path, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_missing_file_and_another_ending_are_refused(tmp_path: Path, pairs: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        compute_table(tmp_path / "none.csv", tmp_path / "out.csv")
    with pytest.raises(DataError, match="csv"):
        compute_table(pairs, tmp_path / "out.xlsx")


def test_the_measured_table_gets_values(shared_data: Path, tmp_path: Path) -> None:
    summary = compute_table(shared_data / "experiment_chi.csv", tmp_path / "out.csv")
    assert summary.n_rows == 1190
    assert summary.n_values >= 1140


def test_columns_of_the_users_own_that_are_replaced_are_named(tmp_path: Path) -> None:
    measured, computed = tmp_path / "measured.csv", tmp_path / "computed.csv"
    measured.write_text("SMILES,chi,method,reason\n*CCO*,0.4,osmometry,checked\n")
    assert compute_table(measured, computed).remarks == [
        f"method, reason of {measured} are replaced; rename what is to be kept"
    ]
    assert compute_table(computed, tmp_path / "again.csv").remarks == [], "an earlier computation's may go"
