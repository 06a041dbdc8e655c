"""Predictions for a CSV table of any length: read, predicted and written a chunk at a time, in order.

Called by `chitransfer predict --input` and `chitransfer screen`.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count, islice, takewhile
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import numpy as np
import pandas as pd

from chitransfer.counts import say_count
from chitransfer.data.csv_text import (
    BLANK_ROW,
    PREDICTED_AT,
    describe_csv_error,
    explain_read_errors,
    find_pair_columns,
    refuse_misnamed,
)
from chitransfer.data.tables import WATER
from chitransfer.data.temperatures import check_temperatures, name_temperature, read_kelvin
from chitransfer.errors import DataError
from chitransfer.files import as_cell, is_compressed, replace_atomically
from chitransfer.predict import Predictor
from chitransfer.progress import NamedProgress

CHUNK_ROWS = 4000
# A cell longer than this is no SMILES and no note; without a limit one missing quote swallows the file.
LONGEST_CELL = 1_000_000


@dataclass(frozen=True)
class TableReader:
    """A CSV table whose rows are read a chunk at a time.

    Attributes
    ----------
    header
        Column names as written.
    smiles, solvent, temperature
        Positions of the columns that matter; ``None`` where there is none. Without ``temp`` the temperature is
        ``temperature_K``, which tables of predictions have.
    """

    path: Path
    header: list[str]
    smiles: int
    solvent: int | None
    temperature: int | None

    @classmethod
    def open(cls, path: Path) -> TableReader:
        """Read the header.

        Raises
        ------
        DataError
            The file cannot be read, is empty, has no column SMILES, or has a column twice that matters.
        """
        with _open_text(path) as stream:
            header = [cell.strip() for cell in next(_table_rows(stream, path), [])]
        if not header:
            raise DataError(f"{path}: the file is empty; it needs a header line with a column SMILES")
        places = find_pair_columns(header, str(path))
        return cls(path, header, places["SMILES"], places.get("solvent"), places.get("temp"))

    def count_rows(self) -> int:
        """Rows below the header, blank lines included; for progress alone."""
        with _open_text(self.path) as stream:
            return max(0, sum(1 for _ in stream) - 1)

    def chunks(self, n_rows: int) -> Iterator[list[list[str]]]:
        """Lists of up to `n_rows` rows of cells, blank ones too."""
        with _open_text(self.path) as stream:
            rows = _table_rows(stream, self.path)
            next(rows, None)
            while chunk := list(islice(rows, n_rows)):
                yield chunk


def predict_table(
    predictor: Predictor,
    reader: TableReader,
    *,
    temperatures: Sequence[float] | None,
    solvent: str | None,
    n_jobs: int,
    progress: NamedProgress | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Iterator[tuple[list[list[str]], pd.DataFrame]]:
    """Rows as read and their predictions, chunk by chunk.

    Parameters
    ----------
    temperatures
        Kelvin, for every row; ``None`` takes the column ``temp`` (else ``temperature_K``) where there is one, else the
        reference temperature.
    solvent
        For every row; ``None`` takes the column ``solvent`` where there is one, else water.

    Raises
    ------
    DataError
        A temperature lies outside 150 … 1000 K, or a column of another name seems to hold a temperature or solvent that
        neither is given here nor stands in ``temp`` or ``solvent``.
    """
    given = {"temp": temperatures, "solvent": solvent}
    columns = {"temp": reader.temperature, "solvent": reader.solvent}
    settled = [name for name in columns if given[name] is not None or columns[name] is not None]
    refuse_misnamed(reader.header, settled, str(reader.path))
    chosen = None if temperatures is None else check_temperatures(temperatures)
    names = ["chi"] if chosen is None or len(chosen) == 1 else [f"chi_{name_temperature(value)}K" for value in chosen]
    total = reader.count_rows() if progress is not None else 0
    done = 0
    for rows in reader.chunks(chunk_rows):
        width = len(reader.header)
        unusable = [_explain_row(row, width) for row in rows]
        cells = [row if len(row) == width else [""] * width for row in rows]
        solvents = [solvent or WATER] * len(rows)
        if solvent is None and reader.solvent is not None:
            solvents = [row[reader.solvent].strip() for row in cells]
        if chosen is None:
            table, reasons = _row_temperatures(reader, cells, predictor.model.scales.T_ref)
        else:
            table, reasons = np.tile(chosen, (len(rows), 1)), [""] * len(rows)
        frame = predictor.predict_rows(
            [row[reader.smiles].strip() for row in cells], solvents, table, names, n_jobs=n_jobs
        )
        problem = [a or b or c for a, b, c in zip(unusable, frame["problem"], reasons, strict=True)]
        if table.shape[1] == 1:
            frame.insert(2, PREDICTED_AT, table[:, 0])
        frame["problem"] = problem
        done += len(rows)
        if progress is not None:
            progress("predicting", min(done, total), total)
        yield rows, frame
    if progress is not None:
        progress("predicting", total, total)


def _explain_row(row: list[str], width: int) -> str:
    if not any(cell.strip() for cell in row):
        return BLANK_ROW
    return (
        ""
        if len(row) == width
        else f"{say_count(len(row), 'cell')} where the header names {say_count(width, 'column')}"
    )


def _row_temperatures(reader: TableReader, cells: list[list[str]], T_ref: float) -> tuple[np.ndarray, list[str]]:
    """Each row's own temperature (n_rows, 1), NaN with a reason where it cannot be used; empty takes `T_ref`."""
    values = np.full((len(cells), 1), T_ref)
    reasons = [""] * len(cells)
    if reader.temperature is None:
        return values, reasons
    name = reader.header[reader.temperature]
    for row, own in enumerate(cells):
        text = own[reader.temperature].strip()
        if not text:
            continue
        try:
            values[row, 0] = read_kelvin(text, f"{name} {text!r}")
        except ValueError as error:
            values[row, 0], reasons[row] = np.nan, str(error)
    return values, reasons


def write_predictions(
    reader: TableReader, predictions: Iterator[tuple[list[list[str]], pd.DataFrame]], output: Path
) -> tuple[int, int]:
    """Write the table with its predictions beside it, atomically; the numbers of rows and of rows with a problem.

    A name in ``.gz`` is compressed. Every column of the input comes first, as it was but for formulas (`as_cell`). A
    prediction whose name is taken already gets ``_predicted`` appended: beside a column ``solvent``,
    ``solvent_predicted`` is what they are for. Where that is taken as well, as in a table predicted before, it is
    ``_predicted_2``, and so on.
    """
    counts = [0, 0]

    def write(temporary: Path) -> None:
        opened = gzip.open if is_compressed(output) else open
        with opened(temporary, "wt", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            taken = {name.lower() for name in reader.header}
            header_written = False
            for rows, frame in predictions:
                frame = frame.drop(columns="SMILES")
                if not header_written:
                    own = [_free_name(name, taken) for name in frame.columns]
                    writer.writerow(map(as_cell, [*reader.header, *own]))
                    header_written = True
                width = len(reader.header)
                for row, values in zip(rows, frame.itertuples(index=False, name=None), strict=True):
                    # A row with too many cells must not push the predictions out of their columns.
                    cells = (row + [""] * width)[:width]
                    writer.writerow(map(as_cell, [*cells, *(_as_text(value) for value in values)]))
                counts[0] += len(rows)
                counts[1] += int((frame["problem"] != "").sum())
            if not header_written:
                raise DataError(f"{reader.path}: has a header ({', '.join(reader.header)}) but no rows")

    replace_atomically(output, write)
    return counts[0], counts[1]


def _free_name(name: str, taken: Collection[str]) -> str:
    others = (f"{name}_predicted{again}" for again in chain([""], (f"_{number}" for number in count(2))))
    return next(free for free in chain([name], others) if free.lower() not in taken)


def _as_text(value: object) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, float):
        return repr(round(value, 8))
    return str(value)


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    try:
        with _open_unpacked(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text:
            yield text
    except UnicodeDecodeError as error:
        with _open_unpacked(path) as binary:
            line = 1 + sum(1 for _ in takewhile(_is_text, binary))
        raise DataError(f"{path}, line {line}: not UTF-8 text; save the table as CSV in UTF-8") from error


@contextmanager
def _open_unpacked(path: Path) -> Iterator[BinaryIO]:
    with explain_read_errors(path), path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw


def _is_text(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _table_rows(stream: TextIO, path: Path) -> Iterator[list[str]]:
    """The header and every row below it; an empty line is none, unless it is an empty cell of the only column."""
    rows = _csv_rows(stream, path)
    header = next((row for row in rows if any(cell.strip() for cell in row)), None)
    if header is None:
        return
    yield header
    n_empty = 0
    for row in rows:
        if not row or (len(row) == 1 and row[0].isspace()):
            n_empty += 1
            continue
        # Behind the last row there are none: only another row brings them back.
        yield from ([""] for _ in range(n_empty if len(header) == 1 else 0))
        n_empty = 0
        yield row


def _csv_rows(stream: TextIO, path: Path) -> Iterator[list[str]]:
    reader = csv.reader((line.replace("\0", "") for line in stream), strict=True)
    while True:
        start = reader.line_num + 1
        # The limit is one for the whole process, whose other readers must keep theirs.
        limit = csv.field_size_limit(LONGEST_CELL)
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}, line {start}: {describe_csv_error(error)}") from error
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        yield row
