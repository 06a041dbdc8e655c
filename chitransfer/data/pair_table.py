"""A CSV table of polymer–solvent pairs of any length, read a row at a time; rows that cannot be used keep their place.

Called by `data.compute`, `predict_table` and `commands.model`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

from chitransfer.data.csv_text import (
    LOOKED_AT,
    describe_width,
    find_pair_columns,
    is_blank,
    open_csv,
    open_source,
    read_records,
    refuse_lines_above,
    refuse_misnamed,
)
from chitransfer.errors import DataError

# Why a row of blank cells, as spreadsheets export them, has no result.
BLANK_ROW = "the row is empty"
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class TableReader:
    """A CSV table whose rows are read one by one or a chunk at a time.

    Attributes
    ----------
    path
        The file, or the ``builtin:`` name of a table.
    header
        Column names as written.
    smiles, solvent, temperature
        Positions of the columns that matter; ``None`` where there is none. Without ``temp`` the temperature is
        ``temperature_K``, which tables of predictions have.
    mark
        The byte order mark the file begins with, else empty: what is made of the file begins with it, too, since
        without it Excel takes UTF-8 for another encoding.
    """

    path: Path
    header: list[str]
    smiles: int
    solvent: int | None
    temperature: int | None
    mark: str = ""

    @classmethod
    def open(cls, path: Path) -> TableReader:
        """Read the header.

        Raises
        ------
        DataError
            The file cannot be read, is a workbook or no CSV text, is empty, has no column SMILES, has a column twice
            that matters, or a line above its header.
        """
        with _open_text(path) as text:
            refuse_lines_above(list(islice(read_records(text, str(path)), LOOKED_AT)), str(path))
        with _open_text(path) as text:
            header = [cell.strip() for cell in next(_table_rows(text, path), [])]
        if not header:
            raise DataError(f"{path}: the file is empty; it needs a header line with a column SMILES")
        places = find_pair_columns(header, str(path))
        with open_source(str(path)) as binary:
            mark = BYTE_ORDER_MARK if binary.read(3) == BYTE_ORDER_MARK.encode() else ""
        return cls(path, header, places["SMILES"], places.get("solvent"), places.get("temp"), mark)

    def refuse_misnamed(self, given: Collection[str] = ()) -> None:
        """`csv_text.refuse_misnamed` of this table; those of ``temp`` and ``solvent`` in `given` are not needed."""
        found = {"temp": self.temperature, "solvent": self.solvent}
        settled = [name for name, place in found.items() if place is not None or name in given]
        refuse_misnamed(self.header, settled, str(self.path))

    def count_rows(self) -> int:
        """Rows below the header, blank lines included; for progress alone."""
        with _open_text(self.path) as text:
            return max(0, sum(1 for _ in text) - 1)

    def rows(self) -> Iterator[list[str]]:
        """The cells of every row, blank ones too; an empty line is none but in a table of one column.

        Raises
        ------
        DataError
            The text cannot be read on: a NUL byte, no UTF-8, a quote that is never closed. It names the line.
        """
        with _open_text(self.path) as text:
            yield from islice(_table_rows(text, self.path), 1, None)

    def chunks(self, n_rows: int) -> Iterator[list[list[str]]]:
        """Lists of up to `n_rows` of the `rows`."""
        rows = self.rows()
        while chunk := list(islice(rows, n_rows)):
            yield chunk

    def explain_unusable(self, row: list[str]) -> str:
        """Why a row's cells cannot be told apart: it is blank or not as wide as the header; else empty."""
        if is_blank(row):
            return BLANK_ROW
        return "" if len(row) == len(self.header) else describe_width(row, self.header)

    def fit_row(self, row: list[str]) -> list[str]:
        """A row as wide as the header, so that what is written beside it stands in its own columns."""
        width = len(self.header)
        return (row + [""] * width)[:width]


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    with open_csv(lambda: open_source(str(path)), str(path)) as text:
        yield text


def _table_rows(text: TextIO, path: Path) -> Iterator[list[str]]:
    """The header and every row below it; an empty line is none, unless it is an empty cell of the only column."""
    rows = (record for _, record in read_records(text, str(path)))
    header = next((row for row in rows if not is_blank(row)), None)
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
