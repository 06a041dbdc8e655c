"""CSV text: faults that would lose rows or columns without a word end in an error that names the line."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from chitransfer.chemistry.identities import CHUNK, identify_polymers
from chitransfer.data.csv_text import PAIR_COLUMNS, find_columns, find_pair_columns, parse_csv, refuse_misnamed
from chitransfer.data.pair_table import TableReader
from chitransfer.data.solvents import read_solvents
from chitransfer.data.tables import canonical_solvent, read_solubility_table, read_stage1_table
from chitransfer.errors import DataError
from tests.conftest import Tables


def test_a_quote_that_is_never_closed_is_named_where_it_opens() -> None:
    rows = "".join(f"*CC(*){'C' * n},{n % 2},O\n" for n in range(8))
    text = 'SMILES,soluble,solvent\n*CCO*,1,O\n*CCN*,1,"O\n' + rows
    with pytest.raises(DataError, match=r'table.csv, line 3: a quote \("\) is opened here and never closed'):
        parse_csv(text.encode(), "table.csv")


def test_quoted_commas_quotes_and_line_breaks_are_read() -> None:
    header, rows = parse_csv(b'SMILES,note\n*CCO*,"a, ""b""\nc"\n*CC*,d\n', "table.csv")
    assert header == ["SMILES", "note"]
    assert rows == [(2, ["*CCO*", 'a, "b"\nc']), (4, ["*CC*", "d"])]


KELVIN = ["temperature", "Temp_K", "T", "T (K)", "temp [K]", "T / K", "TK", "T_kelvin", "temps", "kelvin"]
CELSIUS = ["T (°C)", "T [°C]", "T / °C", "t/°C", "T_C", "Tdeg", "TdegC", "T_celsius", "theta", "Temperature/C", "tempC"]
CELSIUS += ["°C", "deg_C", "degrees Celsius", "T°C"]


@pytest.mark.parametrize("cell", KELVIN + CELSIUS)
def test_a_column_that_is_likely_the_temperature_is_not_ignored(cell: str) -> None:
    header = ["SMILES", "chi", cell]
    with pytest.raises(DataError, match=r"no column temp, but one called .* if it holds kelvin \(°C \+ 273.15\)"):
        refuse_misnamed(header, find_columns(header, PAIR_COLUMNS, "table.csv"), "table.csv")


@pytest.mark.parametrize("cell", ["solvent_smiles", "Solvents", "solvent (SMILES)", "SMILES_solvent", "solventSMILES"])
def test_a_column_that_is_likely_the_solvent_is_not_ignored(cell: str) -> None:
    header = ["SMILES", cell]
    with pytest.raises(DataError, match="there is no column solvent, but one called"):
        refuse_misnamed(header, find_columns(header, PAIR_COLUMNS, "table.csv"), "table.csv")


ORDINARY = ["template", "Tg", "Tm (K)", "T_g_K", "Tc", "T1", "title", "type", "tacticity", "test", "total"]


@pytest.mark.parametrize("cell", ["temp", "solvent", "solvation", "note", *ORDINARY])
def test_other_columns_are_nobodys_business(cell: str) -> None:
    header = ["SMILES", cell]
    refuse_misnamed(header, find_columns(header, PAIR_COLUMNS, "table.csv"), "table.csv")


def test_the_temperature_of_predictions_is_temp_where_there_is_none() -> None:
    assert find_pair_columns(["SMILES", "Temperature_K"], "table.csv") == {"SMILES": 0, "temp": 1}
    assert find_pair_columns(["temperature_K", "SMILES", "temp", "temperature_K"], "t.csv") == {"SMILES": 1, "temp": 2}
    with pytest.raises(DataError, match="line 1: the column temperature_K occurs 2 times"):
        find_pair_columns(["SMILES", "temperature_K", "temperature_K"], "table.csv")


def test_labels_may_stand_beside_a_temperature(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("SMILES,soluble,temperature\n*CCO*,1,298\n*CC*,0,298\n", encoding="utf-8")
    assert len(read_solubility_table(str(path))) == 2


@pytest.mark.parametrize("solvent", ["ClC(Cl)Cl chloroform", "O\nO", "C" * 2001])
def test_solvents_are_one_molecule_of_sane_size(solvent: str) -> None:
    with pytest.raises(ValueError, match="the solvent is"):
        canonical_solvent(solvent)


@pytest.mark.parametrize("number", ["1_0", "١"])
def test_numbers_are_written_plainly(tmp_path: Path, number: str) -> None:
    path = tmp_path / "computed.csv"
    path.write_text(f"SMILES,chi\n*CCO*,{number}\n", encoding="utf-8")
    with pytest.raises(DataError, match="chi is not a number"):
        read_stage1_table(str(path))


def test_data_check_names_rows_that_cannot_be_used(
    tmp_path: Path, tables: Tables, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("SMILES,soluble\n*CCO*,1\n*CC*,0\n*CC(*)C,perhaps\n", encoding="utf-8")
    words = ["data", "check"]
    for key, value in (tables.overrides() | {"paths.solubility_csv": path}).items():
        words += ["--set", f"{key}={value}"]
    code, out, err = run_command(*words)
    assert code == 2
    assert err.endswith("ERROR: a search would not start with these tables; see warning 1\n")
    page = " ".join(out.split())
    assert "line 4: soluble = 'perhaps': soluble must be 1 (soluble) or 0 (insoluble)). A search stops there;" in page
    assert "leave such rows out with data.on_bad_rows=skip. 2." in page
    code, out, err = run_command(*words, "--set", "data.on_bad_rows=skip")
    assert code == 0
    assert "insoluble)). A search leaves them out." in " ".join(out.split())


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    units = [f"*CC(*){'C' * (n % 40)}{'O' * (n % 3)}{'N' * (n // 40)}" for n in range(CHUNK + 100)]
    found = identify_polymers(units, cache_folder=blocked)
    assert sum(one.key is not None for one in found) > CHUNK
    assert "cannot be written" in caplog.text
    assert "damaged" not in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04\x14\0\x06\0", r": is a workbook \(.xlsx, .ods\) or a ZIP archive"),
        (lzma.compress(b"SMILES\n*CC*\n"), ": is compressed with xz; decompress it, or compress it with gzip"),
        (bz2.compress(b"SMILES\n*CC*\n"), ": is compressed with bzip2; decompress it, "),
        (b"SMILES\n*CC*\n*C\0C*\n", ", line 3: contains a NUL byte"),
        (b"SMILES\n*CC*\n\xff\xfe*CCO*\n", ", line 3: not UTF-8 text"),
        (b"SMI\0LES\n*CC*\n", ", line 1: contains a NUL byte"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_every_reader_refuses_what_is_no_text(tmp_path: Path, content: bytes, message: str, packed: bool) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(gzip.compress(content) if packed else content)
    for read in (read_solvents, lambda table: list(TableReader.open(table).rows())):
        with pytest.raises(DataError, match=re.escape(str(path)) + message):
            read(path)


def test_blank_rows_are_no_rows() -> None:
    """Where a row must keep its place a table is read by `TableReader`."""
    assert parse_csv(b"SMILES,temp\n,\n*CC*,300\n\n", "table.csv")[1] == [(3, ["*CC*", "300"])]
