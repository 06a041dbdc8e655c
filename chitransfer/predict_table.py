"""Predictions for a CSV table of any length: read, predicted and written one chunk at a time, in order.

Called by `chitransfer predict --input` and `chitransfer screen`.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, takewhile
from pathlib import Path

import numpy as np
import pandas as pd

from chitransfer.data.csv_text import PREDICTED_AT, without_rows
from chitransfer.data.pair_table import TableReader
from chitransfer.data.table_remarks import describe_blanks
from chitransfer.data.tables import WATER
from chitransfer.data.temperatures import check_temperatures, name_temperature, read_kelvin
from chitransfer.files import as_cell, is_compressed, replace_atomically
from chitransfer.predict import IDENTITY, Predictor
from chitransfer.progress import NamedProgress

CHUNK_ROWS = 4000
# Columns that distinguish a table of predictions from one of candidates.
OF_A_PREDICTION = frozenset({"A_K", "nearest_polymer"})
# χ and its interval at one of several temperatures; these columns replace `PREDICTED_AT`.
_AT_A_TEMPERATURE = re.compile(r"chi_[\d.]+K(_low|_high)?")


@dataclass
class BlankCells:
    """Counts the rows with a prediction, and those of them that leave ``solvent`` or ``temp`` blank.

    `predict_table` counts them while it processes a table.
    """

    n_blank: Counter[str] = field(default_factory=Counter)
    n_rows: int = 0

    def describe(self, predictor: Predictor, source: str) -> list[str]:
        """A line for every column that some rows fill and others leave blank, which then means water or `T_ref`."""
        return [
            describe_blanks(n, self.n_rows, source, column, predictor.model.scales.T_ref)
            for column, n in self.n_blank.items()
            if 0 < n < self.n_rows
        ]


def predict_table(
    predictor: Predictor,
    reader: TableReader,
    *,
    temperatures: Sequence[float] | None,
    solvent: str | None,
    n_jobs: int,
    progress: NamedProgress | None = None,
    chunk_rows: int = CHUNK_ROWS,
    blanks: BlankCells | None = None,
) -> Iterator[tuple[list[list[str]], pd.DataFrame]]:
    """Rows as read and their predictions from `Predictor.predict_rows`, chunk by chunk.

    Blank rows and those with more or fewer cells than the header get a ``problem`` and nothing else.

    Parameters
    ----------
    temperatures
        Kelvin, for every row; ``None`` uses the column ``temp`` (else ``temperature_K``) if there is one, else the
        reference temperature.
    solvent
        For every row; ``None`` uses the column ``solvent`` if there is one, else water.
    blanks
        Counts blank cells, if given.

    Raises
    ------
    DataError
        A temperature lies outside 150 … 1000 K, or a column of another name seems to hold a temperature or solvent,
        which is neither given as an argument nor in ``temp`` or ``solvent``.
    """
    given = {"temp": temperatures, "solvent": solvent}
    reader.refuse_misnamed([name for name, value in given.items() if value is not None])
    chosen = None if temperatures is None else check_temperatures(temperatures)
    names = ["chi"] if chosen is None or len(chosen) == 1 else [f"chi_{name_temperature(value)}K" for value in chosen]
    total = reader.count_rows() if progress is not None else 0
    done = 0
    for rows in reader.chunks(chunk_rows):
        unusable = [reader.explain_unusable(row) for row in rows]
        cells = [[""] * len(reader.header) if reason else row for row, reason in zip(rows, unusable, strict=True)]
        # An unusable row has no prediction, hence no solvent or temperature beside it.
        solvents = ["" if reason else solvent or WATER for reason in unusable]
        if solvent is None and reader.solvent is not None:
            solvents = [row[reader.solvent].strip() for row in cells]
        if chosen is None:
            table, reasons = _row_temperatures(reader, cells, predictor.model.scales.T_ref)
        else:
            table, reasons = np.tile(chosen, (len(rows), 1)), [""] * len(rows)
        table[[bool(reason) for reason in unusable]] = np.nan
        frame = predictor.predict_rows(
            [row[reader.smiles].strip() for row in cells], solvents, table, names, n_jobs=n_jobs
        )
        refusals = [a or b for a, b in zip(unusable, frame["problem"], strict=True)]
        problem = [a or b for a, b in zip(refusals, reasons, strict=True)]
        if table.shape[1] == 1:
            frame.insert(2, PREDICTED_AT, table[:, 0])
        frame["problem"] = problem
        if blanks is not None:
            # A row whose temperature is refused keeps the predictions in its solvent that need none.
            used = [row for row, refused in zip(cells, refusals, strict=True) if not refused]
            blanks.n_rows += len(used)
            for column, place in (("solvent", reader.solvent), ("temp", reader.temperature)):
                if place is not None and given[column] is None:
                    blanks.n_blank[column] += sum(not row[place].strip() for row in used)
        done += len(rows)
        if progress is not None:
            progress("predicting", min(done, total), total)
        yield rows, frame
    if progress is not None:
        progress("predicting", total, total)


def _row_temperatures(reader: TableReader, cells: list[list[str]], T_ref: float) -> tuple[np.ndarray, list[str]]:
    """Each row's own temperature (n_rows, 1), NaN with a reason where it is unusable; empty means `T_ref`."""
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
    """Write the table with its predictions beside it, atomically; returns the numbers of rows and of failed rows.

    A name in ``.gz`` is compressed. All input columns come first, unchanged except for formulas (`as_cell`). If a
    prediction's name is already taken, it gets ``_predicted`` appended: beside an input column ``solvent``,
    ``solvent_predicted`` is the solvent of the predictions. If that is taken too, as in a table predicted before, it is
    ``_predicted_2``, and so on. A byte order mark of the input is kept.
    """
    counts = [0, 0]

    def write(temporary: Path) -> None:
        opened = gzip.open if is_compressed(output) else open
        with opened(temporary, "wt", encoding="utf-8", newline="") as stream:
            stream.write(reader.mark)
            writer = csv.writer(stream, lineterminator="\n")
            taken = {name.lower() for name in reader.header}
            header_written = False
            for rows, frame in predictions:
                frame = frame.drop(columns=["SMILES", IDENTITY])
                if not header_written:
                    own = [_free_name(name, taken) for name in frame.columns]
                    writer.writerow(map(as_cell, [*reader.header, *own]))
                    header_written = True
                for row, values in zip(rows, frame.itertuples(index=False, name=None), strict=True):
                    writer.writerow(map(as_cell, [*reader.fit_row(row), *(_as_text(value) for value in values)]))
                counts[0] += len(rows)
                counts[1] += int((frame["problem"] != "").sum())
            if not header_written:
                raise without_rows(str(reader.path), reader.header)

    replace_atomically(output, write)
    return counts[0], counts[1]


def _free_name(name: str, taken: Collection[str]) -> str:
    return next(free for free in _written_names(name) if free.lower() not in taken)


def _written_names(name: str) -> Iterator[str]:
    """Names for a prediction, in order of preference if earlier ones are taken."""
    return chain([name, f"{name}_predicted"], (f"{name}_predicted_{number}" for number in count(2)))


def find_predictions(header: Sequence[str], names: Collection[str]) -> set[str]:
    """The columns of a table that `write_predictions` or `screen.write_screening` wrote; empty for other tables.

    Parameters
    ----------
    names
        Names of predictions, except χ at several temperatures. If a table has a name more often than ``A_K``, with
        ``_predicted`` appended or not, the first of them are its own columns.

    Returns
    -------
    set
        Names in lower case.
    """
    if not set(header) >= OF_A_PREDICTION:
        return set()
    present = {name.lower() for name in header}

    def written(name: str) -> list[str]:
        return list(takewhile(present.__contains__, map(str.lower, _written_names(name))))

    n_times = len(written("A_K"))
    if PREDICTED_AT not in header and (several := {name for name in header if _AT_A_TEMPERATURE.fullmatch(name)}):
        # Then a column `chi` belongs to the input table.
        names = several.union(names) - {"chi", "chi_low", "chi_high"}
    return {column for name in names for column in written(name)[-n_times:]}


def _as_text(value: object) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, float):
        return repr(round(value, 8))
    return str(value)
