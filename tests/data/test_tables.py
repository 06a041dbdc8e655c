"""Reading tables: every check, every bad row named at once, and the same through the command line."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rdkit import Chem

from chitransfer.data.csv_text import read_source
from chitransfer.data.tables import (
    Contradictions,
    canonical_solvent,
    read_chi_table,
    read_solubility_table,
    read_stage1_table,
)
from chitransfer.errors import DataError


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(text: str | bytes, name: str = "table.csv") -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return str(path)

    return write


def message_of(read: Callable[..., object], source: str, **options: object) -> str:
    with pytest.raises(DataError) as error:
        read(source, **options)
    assert source in str(error.value)
    return str(error.value)


class TestReading:
    def test_columns_in_any_case_and_order(self, write: Callable[..., str]) -> None:
        table = read_chi_table(write("Temp,solvent,CHI,smiles\n300,CO,0.4,*CC*\n310.5,,-1e-1,*CC(*)C\n"))
        assert table.rows[["line", "SMILES", "solvent", "temp", "chi"]].to_dict("list") == {
            "line": [2, 3],
            "SMILES": ["*CC*", "*CC(*)C"],
            "solvent": ["CO", "O"],
            "temp": [300.0, 310.5],
            "chi": [0.4, -0.1],
        }
        assert table.kind == "chi"
        assert len(table) == 2

    def test_stage1_temperature_may_be_missing_as_column_or_cell(self, write: Callable[..., str]) -> None:
        assert read_stage1_table(write("SMILES,chi\n*CC*,0.4\n")).rows["temp"].tolist() == [298.15]
        assert read_stage1_table(write("SMILES,chi,temp\n*CC*,0.4,\n*CC*,0.4,350\n")).rows["temp"].tolist() == [
            298.15,
            350.0,
        ]

    @pytest.mark.parametrize(("text", "label"), [("1", 1), ("0", 0), ("1.0", 1), ("0.0", 0), ("True", 1), ("false", 0)])
    def test_labels(self, write: Callable[..., str], text: str, label: int) -> None:
        assert read_solubility_table(write(f"SMILES,soluble\n*CC*,{text}\n")).rows["soluble"].tolist() == [label]

    def test_further_columns_are_left_alone(self, write: Callable[..., str]) -> None:
        table = read_stage1_table(write('source,SMILES,chi,note\nx,*CC*,0.4,"a, b"\n'))
        assert table.rows["chi"].tolist() == [0.4]

    def test_byte_order_mark_windows_lines_blank_lines_and_spaces(self, write: Callable[..., str]) -> None:
        table = read_stage1_table(write("\ufeffSMILES,chi\r\n\r\n *CC* , 0.4 \r\n,\r\n*CC(*)C,0.5\r\n"))
        assert table.rows["line"].tolist() == [3, 5]
        assert table.rows["chi"].tolist() == [0.4, 0.5]

    def test_lines_are_those_of_the_file_even_after_a_cell_of_two_lines(self, write: Callable[..., str]) -> None:
        text = 'SMILES,chi,note\n*CC*,0.4,"two\nlines"\n*CC(*)C,x,\n'
        assert "line 4: chi = 'x'" in message_of(read_stage1_table, write(text))

    def test_gzip_is_read_by_content(self, write: Callable[..., str]) -> None:
        content = b"SMILES,chi\n*CC*,0.4\n"
        plain = read_stage1_table(write(content))
        packed = read_stage1_table(write(gzip.compress(content, mtime=0), "table.csv.gz"))
        assert packed.digest == plain.digest == hashlib.sha256(content).hexdigest()
        pd.testing.assert_frame_equal(packed.rows, plain.rows)

    def test_cuts_of_one_chain_share_their_identity(self, write: Callable[..., str]) -> None:
        rows = read_stage1_table(write("SMILES,chi\n*CCO*,1\n*OCC*,2\n*COC*,3\n*CCOCCO*,4\n*CCCO*,5\n")).rows
        assert rows["polymer"].nunique() == 2
        assert rows["polymer"][:4].nunique() == 1
        assert rows["SMILES"].tolist() == ["*CCO*", "*OCC*", "*COC*", "*CCOCCO*", "*CCCO*"]

    def test_repeated_measurements_are_kept_and_counted(self, write: Callable[..., str]) -> None:
        text = "SMILES,chi,temp\n*CCO*,1,300\n*OCC*,2,300\n*CCO*,3,310\n*CCO*,1,300\n"
        table = read_chi_table(write(text))
        assert len(table) == 4
        assert table.n_repeated == 2

    def test_builtin_names(self) -> None:
        content, name = read_source("builtin:experimental_chi")
        assert content.lower().startswith(b"smiles")
        assert name == "builtin:experimental_chi"
        with pytest.raises(DataError, match=r"no such built-in table; known: computed_chi"):
            read_source("builtin:nothing")

    def test_the_shared_tables_are_read_whole(self, shared_data: Path) -> None:
        source = shared_data / "experiment_chi.csv"
        raw = pd.read_csv(source)
        rows = read_chi_table(str(source)).rows
        assert rows["SMILES"].tolist() == raw["SMILES"].tolist()
        assert rows["chi"].tolist() == raw["chi"].tolist()
        assert rows["temp"].tolist() == raw["temp"].tolist()
        assert rows["solvent"].tolist() == [Chem.CanonSmiles(smiles) for smiles in raw["solvent"]]


class TestBadRows:
    TEXT = (
        "SMILES,chi,temp,solvent\n"
        "*CC*,0.4,300,O\n"
        "CC,0.4,300,O\n"  # 3: no star
        "*CC,0.4,300,O\n"  # 4: one star
        "*C(*)C*,0.4,300,O\n"  # 5: three stars
        "*C(*,0.4,300,O\n"  # 6: unparsable
        ",0.4,300,O\n"  # 7: empty
        "*CC*,nan,300,O\n"  # 8
        "*CC*,inf,300,O\n"  # 9
        "*CC*,,300,O\n"  # 10
        '*CC*,"0,4",300,O\n'  # 11
        "*CC*,1e9,300,O\n"  # 12
        "*CC*,0.4,25,O\n"  # 13: °C
        "*CC*,0.4,3000,O\n"  # 14
        "*CC*,0.4,,O\n"  # 15
        "*CC*,0.4,300,watr\n"  # 16
        "*CC*,0.4,300,*O\n"  # 17
        "*CC(*)C,0.5,310,CO\n"  # 18
    )
    BAD_LINES = range(3, 18)

    def test_every_bad_row_is_named_with_value_and_reason(self, write: Callable[..., str]) -> None:
        message = message_of(read_chi_table, write(self.TEXT))
        assert "15 of 17 rows cannot be used" in message
        for line in self.BAD_LINES:
            assert f"\n  line {line}: " in message, message
        for expected in (
            "line 13: temp = '25': temp must be in kelvin; below 150 it looks like °C: add 273.15",
            "line 11: chi = '0,4': chi is not a number (use a point, not a comma)",
            "line 8: chi = 'nan': chi must be a finite number",
            "line 10: chi = '': chi is missing",
            "line 16: watr: the solvent is not a SMILES",
            "data.on_bad_rows=skip",
        ):
            assert expected in message

    def test_skipping_keeps_the_rest_in_order_and_lists_what_was_left_out(self, write: Callable[..., str]) -> None:
        table = read_chi_table(write(self.TEXT), on_bad_rows="skip")
        assert table.rows["line"].tolist() == [2, 18]
        assert table.rejected["line"].tolist() == list(self.BAD_LINES)
        assert table.rejected["reason"].str.len().min() > 5

    @pytest.mark.parametrize(("chi", "n_rows"), [("-1000", 2), ("1000", 2), ("-1000.5", 1), ("1000.5", 1)])
    def test_chi_is_bounded_on_both_sides(self, write: Callable[..., str], chi: str, n_rows: int) -> None:
        source = write(f"SMILES,chi\n*CC*,1\n*CO*,{chi}\n")
        assert len(read_stage1_table(source, on_bad_rows="skip")) == n_rows

    def test_nothing_left_is_an_error(self, write: Callable[..., str]) -> None:
        message = message_of(read_stage1_table, write("SMILES,chi\nCC,1\n*CC*,x\n"), on_bad_rows="skip")
        first, *rows, last = message.splitlines()
        assert first.endswith("2 of 2 rows cannot be used")
        assert [row.strip().split(":")[0] for row in rows] == ["line 2", "line 3"]
        assert last == "Correct them."

    def test_many_bad_rows_are_not_all_printed(self, write: Callable[..., str]) -> None:
        rows = "".join(f"*CC*,x\n*CC*,{n}e9\n*CC*,nan\n" for n in range(1, 5)) + "*C,0\n" * 5 + "*C(*)C*,0\n" * 5
        message = message_of(read_stage1_table, write(f"SMILES,chi\n*CC*,1\n{rows}"))
        assert "22 of 23 rows" in message
        assert "… and 2 more" in message
        assert len(message.splitlines()) < 25

    @pytest.mark.parametrize("label", ["2", "-1", "", "yes", "nan", "0.5", "soluble"])
    def test_labels(self, write: Callable[..., str], label: str) -> None:
        message = message_of(read_solubility_table, write(f"SMILES,soluble\n*CC*,1\n*CO*,{label}\n"))
        assert f"line 3: soluble = '{label}': soluble must be 1 (soluble) or 0 (insoluble)" in message


class TestBrokenFiles:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", "the file is empty"),
            (b"\n \n,,\n", "the file is empty"),
            (b"SMILES,chi\n", "has a header (SMILES, chi) but no rows"),
            (b"SMILES,temp\n*CC*,300\n", "line 1: missing column(s) chi; found SMILES, temp"),
            (b"polymer,value\n*CC*,300\n", "missing column(s) SMILES, chi"),
            (b"Monomer,Chi_exp\n*CC*,1\n", "rename what is meant (SMILES: Monomer?; chi: Chi_exp?)"),
            ("SMILES,χ 298,chi_err\n*CC*,1,1\n".encode(), "rename what is meant (chi: χ 298 or chi_err?)"),
            (b"PK\x03\x04\x14\0\x06\0", "is a workbook (.xlsx, .ods) or a ZIP archive; save the sheet as CSV in UTF-8"),
            (b"SMILES;chi\n*CC*;300\n", "separated by semicolons? save as CSV with commas"),
            (b"SMILES|chi\n*CC*|300\n", "separated by vertical bars? save as CSV with commas"),
            (b"SMILES\tchi\n*CC*\t0.4\n", "separated by tabs? save as CSV with commas"),
            (b"SMILES;chi\n*CC*;0,4\n", "line 2: 2 cells where the header names 1 column (SMILES;chi)"),
            (b"SMILES,chi,Chi\n*CC*,1,2\n", "the column chi occurs 2 times"),
            (b"SMILES,chi\n*CC*,1\n*CC*,1,2\n", "line 3: 3 cells where the header names 2 columns"),
            (b"SMILES,chi\n*CC*\n", "line 2: 1 cell where"),
            ("SMILES,chi\n*CC*,1\n# Müller\n".encode("latin-1"), "line 3: not UTF-8"),
            (b"SMILES,chi\n\0\0,1\n", "NUL"),
            (b"SMILES,chi\n" + b"*" * 1_100_000 + b",1\n", "not readable as CSV"),
            (b"\x1f\x8bnot gzip at all", "cannot be read"),
            (gzip.compress(b"SMILES,chi\n*CC*,1\n", mtime=0)[:-12], "cannot be read"),
            (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff", "cannot be read"),
        ],
    )
    def test_message(self, write: Callable[..., str], content: bytes, expected: str) -> None:
        assert expected in message_of(read_stage1_table, write(content))

    def test_no_such_file_and_a_folder(self, tmp_path: Path) -> None:
        assert "there is no such file" in message_of(read_stage1_table, str(tmp_path / "none.csv"))
        assert "is a folder" in message_of(read_stage1_table, str(tmp_path))

    def test_experimental_chi_needs_its_temperature_column(self, write: Callable[..., str]) -> None:
        said = message_of(read_chi_table, write("SMILES,chi,temp_C\n*CC*,1,25\n"))
        assert "missing column(s) temp; found SMILES, chi, temp_C" in said
        assert "rename what is meant (temp: temp_C?); temp is in kelvin (°C + 273.15)" in said

    @pytest.mark.parametrize("on_bad_rows", ["error", "skip"])
    def test_a_whole_column_in_celsius_is_refused_with_its_hot_rows(
        self, write: Callable[..., str], on_bad_rows: str
    ) -> None:
        rows = "".join(f"*CC*,1,{temp}\n" for temp in ("25", "-20", "160", "", "warm"))
        said = message_of(read_chi_table, write("SMILES,chi,temp\n" + rows), on_bad_rows=on_bad_rows)
        assert "the column temp looks like °C as a whole: 2 of 3 values are below 150. Add 273.15 to every one" in said
        assert "on_bad_rows" not in said

    def test_half_a_column_in_celsius_is_a_matter_of_its_rows(self, write: Callable[..., str]) -> None:
        source = write("SMILES,chi,temp\n*CC*,1,25\n*CC*,1,300\n")
        assert "line 2: temp = '25': temp must be in kelvin" in message_of(read_chi_table, source)
        assert len(read_chi_table(source, on_bad_rows="skip")) == 1

    def test_below_absolute_zero_is_no_celsius(self, write: Callable[..., str]) -> None:
        said = message_of(read_chi_table, write("SMILES,chi,temp\n*CC*,1,-300\n"))
        assert "temp is below absolute zero" in said
        assert "273.15" not in said

    @given(st.binary(max_size=300))
    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_bytes_give_a_table_or_a_data_error(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "any.csv"
        path.write_bytes(b"SMILES,chi\n" + content)
        try:
            n_rows, message = len(read_stage1_table(str(path), on_bad_rows="skip")), ""
        except DataError as error:
            n_rows, message = 0, str(error)
        assert n_rows > 0 or str(path) in message


class TestContradictions:
    TEXT = (
        "SMILES,soluble,solvent\n"
        "*CCO*,1,O\n"
        "*OCC*,0,O\n"  # another cut of the same chain
        "*CCO*,1,O\n"
        "*CC*,1,O\n"
        "*CC*,0,O\n"  # a tie
        "*CC*,0,CO\n"  # another solvent
    )

    def test_error_names_lines_polymer_and_labels(self, write: Callable[..., str]) -> None:
        message = message_of(read_solubility_table, write(self.TEXT))
        assert "2 polymer–solvent pair(s) are called both soluble and insoluble" in message
        assert "lines 2, 3, 4: *CCO* in O: labels 1, 0, 1" in message
        assert "lines 5, 6: *CC* in O: labels 1, 0" in message
        assert "data.on_contradictory_labels" in message

    def test_of_many_lines_the_first_of_either_label_are_named(self, write: Callable[..., str]) -> None:
        text = "SMILES,soluble\n" + 1000 * "*CC*,1\n" + 2 * "*CC*,0\n"
        message = message_of(read_solubility_table, write(text))
        shown = "lines 2, 3, 4, 5, 6, 1002, 1003, … (1002 lines): *CC* in O: labels 1, 1, 1, 1, 1, 0, 0, …"
        assert f"  {shown}\n" in message

    def test_drop(self, write: Callable[..., str]) -> None:
        table = read_solubility_table(write(self.TEXT), on_contradictory_labels="drop")
        assert table.rows["line"].tolist() == [7]
        assert sorted(table.rejected["line"]) == [2, 3, 4, 5, 6]

    def test_majority_drops_ties(self, write: Callable[..., str]) -> None:
        table = read_solubility_table(write(self.TEXT), on_contradictory_labels="majority")
        assert table.rows["line"].tolist() == [2, 4, 7]
        assert table.rows.index.tolist() == [0, 1, 2]
        assert table.n_repeated == 1

    @pytest.mark.parametrize(("rule", "left_out"), [("drop", [2, 3, 4, 5, 6, 8]), ("majority", [3, 5, 6, 8])])
    def test_rows_that_cannot_be_used_stay_in_the_list(
        self, write: Callable[..., str], rule: Contradictions, left_out: list[int]
    ) -> None:
        source = write(self.TEXT + "*CC*,perhaps,O\n")
        table = read_solubility_table(source, on_bad_rows="skip", on_contradictory_labels=rule)
        assert sorted(table.rejected["line"]) == left_out
        assert table.rejected["reason"].str.contains("soluble must be 1").sum() == 1


class TestSolvents:
    @pytest.mark.parametrize("smiles", ["OCC", "c1ccccc1C", "O", "CC(=O)C"])
    def test_canonical(self, smiles: str) -> None:
        assert canonical_solvent(smiles) == Chem.CanonSmiles(smiles)

    def test_a_sulfoxide_is_one_solvent_however_its_charges_are_written(self) -> None:
        assert canonical_solvent("C[S+](C)[O-]") == canonical_solvent("CS(C)=O") == "CS(C)=O"
        assert canonical_solvent("C[N-][N+]#N") == canonical_solvent("CN=N#N") == "CN=[N+]=[N-]"

    def test_numbers_of_atoms_make_no_other_solvent(self) -> None:
        assert [canonical_solvent(smiles) for smiles in ("[OH2:1]", "[CH3:2][OH:1]")] == ["O", "CO"]

    @pytest.mark.parametrize("smiles", ["", "*O", "C(", "water", "CCO.O", "[Na+].[Cl-]", "[O]", "C[C]C"])
    def test_refused(self, smiles: str) -> None:
        with pytest.raises(ValueError, match="solvent"):
            canonical_solvent(smiles)


# ---------------------------------------------------------------------------------------------------------------------
# Ten ways to get it wrong, through the command line: one message, exit code 2, no traceback
# ---------------------------------------------------------------------------------------------------------------------

GOOD_CHI = "SMILES,chi,temp\n*CC*,0.4,300\n*CC(*)C,0.5,300\n*CC(*)O,0.1,300\n*CC(*)N,0.2,300\n"
GOOD_LABELS = "SMILES,soluble\n*CC*,0\n*CC(*)C,0\n*CC(*)O,1\n*CC(*)N,1\n"
BROKEN_TABLES = {
    "missing column": ("chi", "SMILES,chi\n*CC*,0.4\n", ["line 1", "temp"]),
    "celsius": ("chi", GOOD_CHI + "*CCO*,0.4,25\n", ["line 6", "'25'", "kelvin", "add 273.15"]),
    "unparsable SMILES": ("stage1", GOOD_CHI + "*CC(*,0.4,300\n", ["line 6", "*CC(*", "on_bad_rows=skip"]),
    "one star": ("stage1", GOOD_CHI + "*CCO,0.4,300\n", ["line 6", "*CCO", "on_bad_rows=skip"]),
    "NaN chi": ("stage1", GOOD_CHI + "*CCO*,NaN,300\n", ["line 6", "'NaN'", "finite"]),
    "label 2": ("solubility", GOOD_LABELS + "*CCO*,2\n", ["line 6", "'2'", "1 (soluble) or 0"]),
    "empty file": ("solubility", "", ["empty", "needs a header line"]),
    "no positive label": (
        "solubility",
        GOOD_LABELS.replace(",1\n", ",0\n"),
        ["no row has soluble = 1", "paths.solubility_csv to null"],
    ),
}
BROKEN_CONFIGS = {
    "unknown key": ("model:\n  encoder_dropuot: 0.1\n", ["line 2", "model.encoder_dropuot", "did you mean"]),
    "wrong type": ("training:\n  batch_size_dft: many\n", ["line 2", "training.batch_size_dft", "'many'", "integer"]),
}


@pytest.mark.parametrize("what", BROKEN_TABLES)
def test_broken_table_on_the_command_line(
    what: str, tmp_path: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    kind, text, expected = BROKEN_TABLES[what]
    texts = {"stage1": GOOD_CHI, "chi": GOOD_CHI, "solubility": GOOD_LABELS} | {kind: text}
    words: list[object] = ["search", "--results-dir", tmp_path / "results", "--set", f"paths.cache_dir={tmp_path}"]
    for name, key in (("stage1", "dft_chi_csv"), ("chi", "exp_chi_csv"), ("solubility", "solubility_csv")):
        (tmp_path / f"{name}.csv").write_text(texts[name], encoding="utf-8")
        words += ["--set", f"paths.{key}={tmp_path / name}.csv"]
    code, _, err = run_command(*words)
    assert code == 2
    assert err.startswith("ERROR: ")
    assert err.count("ERROR") == 1
    assert "Traceback" not in err
    for part in (str(tmp_path / f"{kind}.csv"), *expected):
        assert part in err, err
    assert not list((tmp_path / "results").glob("hparam_search/*/study.db"))


@pytest.mark.parametrize("what", BROKEN_CONFIGS)
def test_broken_configuration_on_the_command_line(
    what: str, tmp_path: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    text, expected = BROKEN_CONFIGS[what]
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    code, _, err = run_command("search", "--config", path)
    assert code == 2
    assert err.count("ERROR") == 1
    assert "Traceback" not in err
    for part in (str(path), *expected):
        assert part in err, err


def test_problems_of_all_tables_come_in_one_message(
    tmp_path: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    words: list[object] = ["search", "--results-dir", tmp_path / "results"]
    for key, text in (
        ("dft_chi_csv", "SMILES,chi\n*C,1\n"),
        ("exp_chi_csv", "SMILES,chi\n*CC*,1\n"),
        ("solubility_csv", "SMILES,soluble\n*CC*,2\n"),
    ):
        (tmp_path / f"{key}.csv").write_text(text)
        words += ["--set", f"paths.{key}={tmp_path / key}.csv"]
    code, _, err = run_command(*words)
    assert code == 2
    for key in ("dft_chi_csv", "exp_chi_csv", "solubility_csv"):
        assert f"{key}.csv" in err
