"""Rows that cannot be used for one reason are told once, and the advice is one that helps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from chitransfer.data.csv_text import read_number
from chitransfer.data.rejected_rows import describe_rejected
from chitransfer.data.tables import read_solubility_table, read_stage1_table
from chitransfer.errors import DataError


def test_a_reason_that_many_rows_share_is_told_once() -> None:
    many = [(line, f"chi = '{line % 7}x'", "chi is not a number") for line in range(2, 22)]
    told = describe_rejected("m.csv", [*many[:4], (50, "*C", "one star"), *many[4:]], 30).splitlines()
    assert told == [
        "m.csv: 21 of 30 rows cannot be used",
        "  20 rows (lines 2, 3, 4, 5, 6, …): chi = '2x', chi = '3x', chi = '4x', chi = '5x', chi = '6x', …: chi is not "
        "a number",
        "  line 50: *C: one star",
    ]


def test_a_long_value_does_not_hide_its_reason() -> None:
    value = f"*{'C' * 5000}*"
    shown = f"*{'C' * 199}…"
    assert describe_rejected("m.csv", [(2, value, "too long")], 9).endswith(f"\n  line 2: {shown}: too long")
    told = describe_rejected("m.csv", [(line, value, "too long") for line in range(2, 9)], 9)
    assert told.endswith(f"\n  7 rows (lines 2, 3, 4, 5, 6, …): {shown}: too long")


def test_where_nothing_would_be_left_nothing_is_to_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("SMILES,soluble\n" + "*CC*,yes\n*CCO*,No\n" * 20, encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_solubility_table(str(path))
    assert str(error.value).splitlines() == [
        f"{path}: 40 of 40 rows cannot be used",
        "  40 rows (lines 2, 3, 4, 5, 6, …): soluble = 'yes', soluble = 'No': soluble must be 1 (soluble) or 0 "
        "(insoluble); write 1 for yes, 0 for no",
        "Correct them.",
    ]


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        ("0,4", "use a point, not a comma"),
        ("1,234.5", "write no thousands separator"),
        ("1.234,5", "use a point, not a comma"),
        ("\N{MINUS SIGN}0.4", "write the minus as -, the sign on the keyboard"),
    ],
)
def test_what_is_wrong_with_a_number(number: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"chi is not a number \({hint}\)"):
        read_number(number, "chi")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "sep=;\nSMILES;chi\n*CC*;1\n",
            "line 1: sep=; is Excel's note on the separator, not the header; delete line 1, and ",
        ),
        (
            "SEP=,\nSMILES,chi\n*CC*,1\n",
            "line 1: SEP=, is Excel's note on the separator, not the header; delete line 1",
        ),
        (
            "My table\n\nSMILES,chi\n*CC*,1\n",
            "line 1: the header must be the first line; it seems to be line 3 (SMILES, chi)",
        ),
        ("My table,,\nof,2024,\nName,smiles,chi\nx,*CC*,1\n", "it seems to be line 3 (Name, smiles, chi): delete"),
        ("My table\nSMILES;chi\n*CC*;1\n", "it seems to be line 2 (SMILES;chi)"),
    ],
)
def test_lines_above_the_header_are_named(
    tmp_path: Path, text: str, words: str, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_stage1_table(str(path))
    assert words in str(error.value)
    code, _, err = run_command("data", "compute", "--input", path, "--output", tmp_path / "out.csv")
    assert code == 2
    assert words in " ".join(err.split())


def test_a_row_of_units_is_no_header(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("Monomer,chi_exp,note\nSMILES,-,\n*CC*,1,\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"missing column\(s\) SMILES, chi; .* \(SMILES: Monomer\?"):
        read_stage1_table(str(path))


def test_what_is_separated_otherwise_is_not_to_be_renamed(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("SMILES;chi\n*CC*;1\n", encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_stage1_table(str(path))
    assert str(error.value) == (
        f"{path}, line 1: missing column(s) SMILES, chi; found SMILES;chi; separated by semicolons? save as CSV with "
        "commas"
    )


def test_a_blank_repeat_unit_is_told_as_other_cells_are(tmp_path: Path) -> None:
    path = tmp_path / "merged.csv"
    path.write_text("SMILES,solvent,chi\n*CCO*,O,0.4\n,CCO,0.5\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"\n  line 3: SMILES = '': empty; write a repeat unit with two \*"):
        read_stage1_table(str(path))
