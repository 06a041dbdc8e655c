"""Read CSV text into rows of cells with line numbers; any fault in the text raises one error that names the line.

Called by `data.tables`, `data.temperatures`, `data.solvents`, `data.monomers`, `data.pair_table` and its callers.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from chitransfer.counts import say_count
from chitransfer.errors import DataError

BUILTIN_PREFIX = "builtin:"
BUILTIN_TABLES = {
    "computed_chi": "computed_chi.csv.gz",
    "experimental_chi": "experimental_chi.csv",
    "water_solubility": "water_solubility.csv",
}
# Likely misnamings of an optional column, which would otherwise be ignored silently. Matched in lower case, with signs
# replaced by spaces and "°" by "deg": "T [K]" becomes "t k" (whereas a name "Tk" becomes "tk"), "°C" becomes "deg c".
_SCALE = "(celsius|centigrade|fahrenheit|kelvins?)"
_DEGREES = f"({_SCALE}|deg(ree)?s?( ?({_SCALE}|[ckf]))?)"
_UNIT = f"({_DEGREES}|[ckf])"
_ALONE = f"(deg(ree)?s? ?({_SCALE}|[ckf])|{_SCALE})"
_MEANT = {
    "temp": re.compile(f"temp(erature)?s?( .*|{_UNIT})?|(t|theta)( in)?( {_UNIT})?|t(k|{_DEGREES})|{_ALONE}"),
    "solvent": re.compile(".*solvent.*|(smiles )?solv( smiles)?"),
}
# Headers that may stand for a missing column; the error suggests them.
_LIKELY = _MEANT | {
    "SMILES": re.compile(".*(smiles|monomer|polymer|repeat|structure).*"),
    "chi": re.compile(r".*(\bchi|flory|huggins).*"),
    "soluble": re.compile(".*solub.*|label|class"),
}
# First bytes of ZIP archives, which include spreadsheet workbooks.
_ZIP = b"PK\x03\x04"
# First bytes of files compressed with something other than gzip.
_COMPRESSED = {b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "Zstandard", b"7z\xbc\xaf\x27\x1c": "7-Zip"}
# Separators that tables use instead of commas.
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SPLIT = re.compile(f"[{''.join(_SEPARATORS)}]")
# The typographic minus, U+2212, also used in Matplotlib's tick labels.
_MINUS = "\N{MINUS SIGN}"
# A longer cell cannot be a SMILES or a note.
LONGEST_CELL = 1_000_000
# Number of records searched for a header that is not in the first line.
LOOKED_AT = 10


@dataclass(frozen=True)
class Column:
    """A column of a table; an optional one may be missing."""

    name: str
    required: bool


# Columns of a table of polymer–solvent pairs for `chitransfer data compute`, `predict` and `screen`.
PAIR_COLUMNS = (Column("SMILES", True), Column("temp", False), Column("solvent", False))
# Name of the temperature column in the output of `chitransfer predict` and `screen`.
PREDICTED_AT = "temperature_K"


def read_source(source: str) -> tuple[bytes, str]:
    """The decompressed bytes of a path or ``builtin:`` name, and the name used in messages."""
    with open_source(source) as binary:
        return binary.read(), source


@contextmanager
def open_source(source: str) -> Iterator[BinaryIO]:
    """Open a path or ``builtin:`` name for reading; gzip is recognised by its first bytes and decompressed.

    Raises
    ------
    DataError
        The file cannot be read or decompressed, or there is no such built-in table.
    """
    path: Path | Traversable = Path(source)
    if source.startswith(BUILTIN_PREFIX):
        name = source.removeprefix(BUILTIN_PREFIX)
        if name not in BUILTIN_TABLES:
            raise DataError(f"{source}: there is no such built-in table; known: {', '.join(BUILTIN_TABLES)}")
        path = resources.files("chitransfer.data").joinpath("builtin", BUILTIN_TABLES[name])
    with _explain_read_errors(source), path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        yield cast(BinaryIO, gzip.GzipFile(fileobj=raw) if packed else raw)


@contextmanager
def _explain_read_errors(path: str) -> Iterator[None]:
    """Turn operating-system errors about reading or decompressing a file into a DataError with a remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file (paths are read from the current folder)") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder; give the CSV file inside it") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


@contextmanager
def open_csv(open_bytes: Callable[[], AbstractContextManager[BinaryIO]], name: str) -> Iterator[TextIO]:
    """Open the text of a CSV table for reading line by line.

    Parameters
    ----------
    open_bytes
        Opens the table's bytes; called again to find the line of an encoding error.
    name
        Name of the table in messages.

    Raises
    ------
    DataError
        The bytes are a workbook or use compression other than gzip, or turn out not to be UTF-8 while being read.
    """
    try:
        with open_bytes() as binary:
            begins = binary.read(max(map(len, _COMPRESSED)))
            for mark, program in _COMPRESSED.items():
                if begins.startswith(mark):
                    raise DataError(f"{name}: is compressed with {program}; decompress it, or compress it with gzip")
            if begins.startswith(_ZIP):
                raise DataError(f"{name}: is a workbook (.xlsx, .ods) or a ZIP archive; save the sheet as CSV in UTF-8")
            binary.seek(0)
            with io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text:
                yield text
    except UnicodeDecodeError as error:
        with open_bytes() as binary:
            line = 1 + sum(1 for _ in takewhile(_is_text, binary))
        raise DataError(f"{name}, line {line}: not UTF-8 text; save the table as CSV in UTF-8") from error


def read_records(text: TextIO, name: str) -> Iterator[tuple[int, list[str]]]:
    """Every record of CSV text, blank ones included, with its first line number.

    Raises
    ------
    DataError
        A line contains a NUL byte, is not valid CSV, or opens a quote that is never closed.
    """
    # Without strict mode, an unclosed quote would swallow the rest of the file into its cell.
    reader = csv.reader(_without_nul(text, name), strict=True)
    while True:
        line = reader.line_num + 1
        # The limit applies to the whole process; it is restored so that other CSV readers keep theirs.
        limit = csv.field_size_limit(LONGEST_CELL)
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{name}, line {line}: {_describe_csv_error(error)}") from error
        finally:
            csv.field_size_limit(limit)
        if record is None:
            return
        yield line, record


def parse_csv(content: bytes, name: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The stripped header cells, and every non-blank row with its line number; all rows are as wide as the header.

    Raises
    ------
    DataError
        As for `open_csv` and `read_records`; or there is a line above the header, a row whose number of cells differs
        from the header's, or no row at all.
    """
    header: list[str] | None = None
    rows: list[tuple[int, list[str]]] = []
    with open_csv(lambda: io.BytesIO(content), name) as text:
        records = read_records(text, name)
        first = list(islice(records, LOOKED_AT))
        refuse_lines_above(first, name)
        for line, record in chain(first, records):
            if is_blank(record):
                continue
            if header is None:
                header = [cell.strip() for cell in record]
            elif len(record) != len(header):
                raise DataError(
                    f"{name}, line {line}: {describe_width(record, header)} ({', '.join(header)}); quote cells that "
                    f"hold commas{_hint_at_separator(header)}"
                )
            else:
                rows.append((line, record))
    if header is None:
        raise DataError(f"{name}: the file is empty; it needs a header line and at least one row")
    if not rows:
        raise without_rows(name, header)
    return header, rows


def refuse_lines_above(first: Sequence[tuple[int, list[str]]], name: str) -> None:
    """Refuse a line above the header, such as a title or Excel's ``sep=;``.

    Parameters
    ----------
    first
        The first records of a table, blank ones included, with their line numbers.

    Raises
    ------
    DataError
        There is such a line; the message says what to delete.
    """
    filled = [(line, record) for line, record in first if not is_blank(record)]
    if not filled:
        return
    line, record = filled[0]
    written = ",".join(record).strip()
    if re.fullmatch("sep=.?", written, re.IGNORECASE):
        with_commas = "" if written.endswith(",") else ", and save the table as CSV with commas"
        raise DataError(
            f"{name}, line {line}: {written} is Excel's note on the separator, not the header; delete line {line}"
            f"{with_commas}"
        )
    if _names_columns(record):
        return
    for other, candidate in filled[1:]:
        # A row of units below the header has no more cells than the header itself.
        if _names_columns(candidate) and _count_filled(candidate) > _count_filled(record):
            raise DataError(
                f"{name}, line {line}: the header must be the first line; it seems to be line {other} "
                f"({', '.join(cell.strip() for cell in candidate)}): delete everything above it"
            )


def _names_columns(record: list[str]) -> bool:
    """Whether a cell, or a part of it between other separators, is the name of a structure column."""
    return any(part.strip().lower() in {"smiles", "solvent"} for cell in record for part in _SPLIT.split(cell))


def _count_filled(record: list[str]) -> int:
    return sum(bool(part.strip()) for cell in record for part in _SPLIT.split(cell))


def is_blank(record: list[str]) -> bool:
    """Whether every cell of a record is empty or whitespace."""
    return not any(cell.strip() for cell in record)


def describe_width(record: list[str], header: list[str]) -> str:
    """How many cells a record has, and how many it should have."""
    return f"{say_count(len(record), 'cell')} where the header names {say_count(len(header), 'column')}"


def without_rows(name: str, header: list[str]) -> DataError:
    """The error for a table with a header but no rows."""
    return DataError(f"{name}: has a header ({', '.join(header)}) but no rows")


def _without_nul(lines: Iterable[str], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise DataError(
                f"{name}, line {number}: contains a NUL byte, so it is not CSV text; save the table as CSV in UTF-8"
            )
        yield line


def _is_text(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _describe_csv_error(error: csv.Error) -> str:
    """What is wrong with a line, based on the error of Python's strict reader."""
    if "unexpected end of data" in str(error):
        return 'a quote (") is opened here and never closed'
    return f"not readable as CSV ({error})"


def find_columns(header: list[str], wanted: Sequence[Column], name: str) -> dict[str, int]:
    """Positions of the wanted columns; names are case-insensitive.

    Raises
    ------
    DataError
        A required column is missing, or a column occurs several times.
    """
    lowered = [cell.lower() for cell in header]
    positions: dict[str, int] = {}
    missing = []
    for column in wanted:
        found = [position for position, cell in enumerate(lowered) if cell == column.name.lower()]
        if len(found) > 1:
            raise DataError(f"{name}, line 1: the column {column.name} occurs {len(found)} times; keep one")
        if found:
            positions[column.name] = found[0]
        elif column.required:
            missing.append(column.name)
    if missing:
        lacking = f"{name}, line 1: missing column(s) {', '.join(missing)}; found {', '.join(header)}"
        # If the whole header is one cell because of a wrong separator, there is no column to rename.
        if separator := _hint_at_separator(header):
            raise DataError(f"{lacking}{separator}")
        meant = _hint_at_names(header, missing, positions)
        kelvin = "; temp is in kelvin (°C + 273.15)" if "temp" in missing else ""
        raise DataError(f"{lacking} (names may be in any case, in any order); rename what is meant{meant}{kelvin}")
    return positions


def find_pair_columns(header: list[str], name: str) -> dict[str, int]:
    """`find_columns` for `PAIR_COLUMNS`; chitransfer's own `PREDICTED_AT` serves as ``temp`` if there is none."""
    positions = find_columns(header, PAIR_COLUMNS, name)
    if "temp" not in positions:
        written = find_columns(header, [Column(PREDICTED_AT, False)], name)
        if PREDICTED_AT in written:
            positions["temp"] = written[PREDICTED_AT]
    return positions


def refuse_misnamed(header: list[str], settled: Collection[str], name: str) -> None:
    """Refuse a column that looks like a misnamed optional column.

    Parameters
    ----------
    header, settled
        The header cells; the columns that `find_columns` found or that are not needed.

    Raises
    ------
    DataError
        There is such a column: its values would be ignored and the defaults (298.15 K, water) used instead.
    """
    for column, pattern in _MEANT.items():
        for cell in header if column not in settled else []:
            if pattern.fullmatch(_in_words(cell)):
                what = "kelvin (°C + 273.15)" if column == "temp" else "SMILES of solvents"
                raise DataError(
                    f"{name}, line 1: there is no column {column}, but one called {cell}; call it {column} if it "
                    f"holds {what}, otherwise rename or remove it"
                )


def read_number(text: str, what: str) -> float:
    """Read a finite number in plain ASCII from a cell; raises a ValueError that calls it `what`."""
    if not text:
        raise ValueError(f"{what} is missing")
    try:
        if "_" in text or not text.isascii():
            raise ValueError
        value = float(text)
    except ValueError:
        hint = ""
        if "," in text:
            thousands = " (write no thousands separator)" if text.rfind(".") > text.rfind(",") else ""
            hint = thousands or " (use a point, not a comma)"
        elif _MINUS in text:
            hint = " (write the minus as -, the sign on the keyboard)"
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
    for separator, name in _SEPARATORS.items():
        if any(separator in cell for cell in header):
            return f"; separated by {name}? save as CSV with commas"
    return ""
