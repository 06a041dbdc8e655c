"""Read a CSV table of polymer–solvent pairs of any length row by row; unusable rows keep their place.

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

# The reason given for a row of blank cells, which spreadsheets export.
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
        Positions of these columns; ``None`` for a missing one. If there is no ``temp``, the temperature column is
        ``temperature_K``, as in tables of predictions.
    mark
        The file's byte order mark, or empty. Output files repeat it, because without it Excel misreads UTF-8.
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
            The file cannot be read, is a workbook or not CSV text, is empty, has no column SMILES, has one of the
            needed columns twice, or has a line above its header.
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
        """`csv_text.refuse_misnamed` for this table; columns in `given` (``temp``, ``solvent``) are not needed."""
        found = {"temp": self.temperature, "solvent": self.solvent}
        settled = [name for name, place in found.items() if place is not None or name in given]
        refuse_misnamed(self.header, settled, str(self.path))

    def count_rows(self) -> int:
        """Number of rows below the header, blank lines included; only for progress bars."""
        with _open_text(self.path) as text:
            return max(0, sum(1 for _ in text) - 1)

    def rows(self) -> Iterator[list[str]]:
        """The cells of every row, blank rows included; empty lines are rows only in a table of one column.

        Raises
        ------
        DataError
            The text has a NUL byte, invalid UTF-8 or a quote that is never closed; the message names the line.
        """
        with _open_text(self.path) as text:
            yield from islice(_table_rows(text, self.path), 1, None)

    def chunks(self, n_rows: int) -> Iterator[list[list[str]]]:
        """The `rows` in lists of up to `n_rows`."""
        rows = self.rows()
        while chunk := list(islice(rows, n_rows)):
            yield chunk

    def explain_unusable(self, row: list[str]) -> str:
        """Why a row cannot be split into its columns (blank, or not as wide as the header); empty if it can."""
        if is_blank(row):
            return BLANK_ROW
        return "" if len(row) == len(self.header) else describe_width(row, self.header)

    def fit_row(self, row: list[str]) -> list[str]:
        """The row truncated or padded to the header's width, so that added cells line up with their columns."""
        width = len(self.header)
        return (row + [""] * width)[:width]


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    with open_csv(lambda: open_source(str(path)), str(path)) as text:
        yield text


def _table_rows(text: TextIO, path: Path) -> Iterator[list[str]]:
    """The header and every row below it; an empty line is a row only in a table of one column."""
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
        # Empty lines count as rows only if another row follows; trailing ones are dropped.
        yield from ([""] for _ in range(n_empty if len(header) == 1 else 0))
        n_empty = 0
        yield row
