"""CSV text to rows of cells with their line numbers; every fault of the text ends in one error that names the line.

Called by `data.tables`, `data.temperatures`, `data.compute`, `data.monomers` and `predict_table`.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from chitransfer.counts import say_count
from chitransfer.errors import DataError

BUILTIN_PREFIX = "builtin:"
BUILTIN_TABLES = {
    "computed_chi": "computed_chi.csv.gz",
    "experimental_chi": "experimental_chi.csv",
    "water_solubility": "water_solubility.csv",
}
# Headers that are easily written for an optional column, which would then be left out without a word; in small letters,
# with a blank for every sign but that of degrees: "T [K]" reads "t k", unlike the "Tk" of a name, "°C" reads "deg c".
_SCALE = "(celsius|centigrade|fahrenheit|kelvins?)"
_DEGREES = f"({_SCALE}|deg(ree)?s?( ?({_SCALE}|[ckf]))?)"
_UNIT = f"({_DEGREES}|[ckf])"
_ALONE = f"(deg(ree)?s? ?({_SCALE}|[ckf])|{_SCALE})"
_MEANT = {
    "temp": re.compile(f"temp(erature)?s?( .*|{_UNIT})?|(t|theta)( in)?( {_UNIT})?|t(k|{_DEGREES})|{_ALONE}"),
    "solvent": re.compile(".*solvent.*|(smiles )?solv( smiles)?"),
}
# Headers that may be meant by a column that is missing, to be named beside it.
_LIKELY = _MEANT | {
    "SMILES": re.compile(".*(smiles|monomer|polymer|repeat|structure).*"),
    "chi": re.compile(r".*(\bchi|flory|huggins).*"),
    "soluble": re.compile(".*solub.*|label|class"),
}
# How ZIP archives begin, and with them the workbooks of spreadsheet programs.
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class Column:
    """A column of a table; an optional one may be missing."""

    name: str
    required: bool


# Of a table of polymer–solvent pairs for `chitransfer data compute`, `predict` and `screen`.
PAIR_COLUMNS = (Column("SMILES", True), Column("temp", False), Column("solvent", False))
# What `chitransfer predict` and `screen` call the temperature they predict for.
PREDICTED_AT = "temperature_K"


def read_source(source: str) -> tuple[bytes, str]:
    """The decompressed bytes of a path or ``builtin:`` name, and the name used in messages."""
    if source.startswith(BUILTIN_PREFIX):
        name = source.removeprefix(BUILTIN_PREFIX)
        if name not in BUILTIN_TABLES:
            raise DataError(f"{source}: there is no such built-in table; known: {', '.join(BUILTIN_TABLES)}")
        raw = resources.files("chitransfer.data").joinpath("builtin", BUILTIN_TABLES[name]).read_bytes()
        return (gzip.decompress(raw) if BUILTIN_TABLES[name].endswith(".gz") else raw), source
    path = Path(source)
    with explain_read_errors(path):
        raw = path.read_bytes()
        return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw), str(path)


@contextmanager
def explain_read_errors(path: Path) -> Iterator[None]:
    """Turn what the system says of a file that cannot be read or decompressed into a DataError with a remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file (paths are read from the current folder)") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder; give the CSV file inside it") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


# Why a row of blank cells, as spreadsheets export them, has no result.
BLANK_ROW = "the row is empty"


def parse_csv(content: bytes, name: str, *, keep_blank: bool = False) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header's cells, stripped, and every row that is not blank with its line; all rows are as wide as the header.

    Parameters
    ----------
    keep_blank
        Keep rows of several cells that are all blank, too.

    Raises
    ------
    DataError
        The bytes are a workbook, no UTF-8 text or no CSV, a quote is never closed, a row has another number of cells,
        or there is no row.
    """
    if content.startswith(_ZIP):
        raise DataError(f"{name}: is a workbook (.xlsx, .ods) or a ZIP archive; save the sheet as CSV in UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{name}, line {line}: not UTF-8 text; save the table as CSV in UTF-8") from error
    if "\0" in text:
        raise DataError(f"{name}: holds NUL bytes, so it is no CSV text; save the table as CSV in UTF-8")
    # Not strict, a quote that is never closed would take the rest of the file into its cell.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    header: list[str] | None = None
    last_line = 0
    try:
        for record in reader:
            line, last_line = last_line + 1, reader.line_num
            is_blank = not any(cell.strip() for cell in record)
            if is_blank and not (keep_blank and header is not None and len(record) == len(header) > 1):
                continue
            if header is None:
                header = [cell.strip() for cell in record]
            elif len(record) != len(header):
                raise DataError(
                    f"{name}, line {line}: {say_count(len(record), 'cell')} where the header names "
                    f"{say_count(len(header), 'column')} ({', '.join(header)}); quote cells that hold commas"
                    f"{_hint_at_separator(header)}"
                )
            else:
                rows.append((line, record))
    except csv.Error as error:
        raise DataError(f"{name}, line {last_line + 1}: {describe_csv_error(error)}") from error
    if header is None:
        raise DataError(f"{name}: the file is empty; it needs a header line and at least one row")
    if not rows:
        raise DataError(f"{name}: has a header ({', '.join(header)}) but no rows")
    return header, rows


def describe_csv_error(error: csv.Error) -> str:
    """What is wrong with a line, given what Python's strict reader said of it."""
    if "unexpected end of data" in str(error):
        return 'a quote (") is opened here and never closed'
    return f"not readable as CSV ({error})"


def find_columns(header: list[str], wanted: Sequence[Column], name: str) -> dict[str, int]:
    """Where the wanted columns are; names count in any case.

    Raises
    ------
    DataError
        A required one is missing, or one is there several times.
    """
    lowered = [cell.lower() for cell in header]
    positions: dict[str, int] = {}
    missing = []
    for column in wanted:
        found = [position for position, cell in enumerate(lowered) if cell == column.name.lower()]
        if len(found) > 1:
            raise DataError(f"{name}, line 1: the column {column.name} is there {len(found)} times; keep one")
        if found:
            positions[column.name] = found[0]
        elif column.required:
            missing.append(column.name)
    if missing:
        meant = _hint_at_names(header, missing, positions)
        kelvin = "; temp is in kelvin (°C + 273.15)" if "temp" in missing else ""
        raise DataError(
            f"{name}, line 1: missing column(s) {', '.join(missing)}; found {', '.join(header)} "
            f"(names may be in any case, in any order); rename what is meant{meant}{kelvin}"
            f"{_hint_at_separator(header)}"
        )
    return positions


def find_pair_columns(header: list[str], name: str) -> dict[str, int]:
    """`find_columns` for `PAIR_COLUMNS`; chitransfer's own `PREDICTED_AT` is ``temp`` where there is no ``temp``."""
    positions = find_columns(header, PAIR_COLUMNS, name)
    if "temp" not in positions:
        written = find_columns(header, [Column(PREDICTED_AT, False)], name)
        if PREDICTED_AT in written:
            positions["temp"] = written[PREDICTED_AT]
    return positions


def refuse_misnamed(header: list[str], settled: Collection[str], name: str) -> None:
    """Make sure that no column seems to be meant by an optional one that is missing.

    Parameters
    ----------
    header, settled
        The header's cells; the columns that `find_columns` found among them, or that are not needed.

    Raises
    ------
    DataError
        There is such a column: its values would be ignored, and the defaults (298.15 K, water) taken instead.
    """
    for column, pattern in _MEANT.items():
        for cell in header if column not in settled else []:
            if pattern.fullmatch(_in_words(cell)):
                what = "kelvin (°C + 273.15)" if column == "temp" else "SMILES of solvents"
                raise DataError(
                    f"{name}, line 1: there is no column {column}, but one called {cell}; call it {column} if it holds "
                    f"{what}, otherwise rename it or take it out"
                )


def read_number(text: str, what: str) -> float:
    """The finite number that a cell holds, in plain ASCII; raises ValueError, which calls it `what`."""
    if not text:
        raise ValueError(f"{what} is missing")
    try:
        if "_" in text or not text.isascii():
            raise ValueError
        value = float(text)
    except ValueError:
        hint = " (use a point, not a comma)" if "," in text else ""
        raise ValueError(f"{what} is not a number{hint}") from None
    if not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number")
    return value


def _in_words(cell: str) -> str:
    return re.sub("[^a-z0-9]+", " ", cell.lower().replace("°", " deg ").replace("χ", " chi ")).strip()


def _hint_at_names(header: list[str], missing: list[str], positions: dict[str, int]) -> str:
    free = [cell for position, cell in enumerate(header) if position not in positions.values()]
    hints = []
    for column in missing:
        likely = [cell for cell in free if column in _LIKELY and _LIKELY[column].fullmatch(_in_words(cell))]
        hints += [f"{column}: {' or '.join(likely)}?"] if likely else []
    return f" ({'; '.join(hints)})" if hints else ""


def _hint_at_separator(header: list[str]) -> str:
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if any(separator in cell for cell in header):
            return f"; separated by {name}? save as CSV with commas"
    return ""
