"""Add χ from UNIFAC to a table of polymers and solvents; rows without a value stay and give a reason.

Called by `chitransfer data compute`.
"""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np

from chitransfer.chemistry.groups import FragmentationError, Groups, molecule_groups, repeat_unit_groups
from chitransfer.chemistry.unifac import DEFAULT_TEMPERATURES, chi_of_groups, fit_a_b, method_name
from chitransfer.chunks import map_in_chunks
from chitransfer.data.csv_text import without_rows
from chitransfer.data.pair_table import TableReader
from chitransfer.data.table_remarks import describe_blanks
from chitransfer.data.tables import UNIFAC_CHI, WATER, canonical_solvent
from chitransfer.data.temperatures import DEFAULT_TEMPERATURE_K, read_kelvin
from chitransfer.files import as_cell, check_csv_name, write_csv_text
from chitransfer.progress import Progress

ADDED_COLUMNS = (UNIFAC_CHI, "A_unifac_K", "B_unifac", "method", "reason")
CHUNK = 200


@dataclass(frozen=True)
class ComputeSummary:
    """Result of `compute_table`.

    Attributes
    ----------
    output
        The table.
    n_rows, n_values
        Number of rows, and of rows that have a χ.
    n_polymers, n_solvents
        Over all rows whose cells could be read: distinct polymer SMILES as written, and distinct solvents by canonical
        SMILES.
    methods
        Number of rows per model that gave the value.
    reasons
        Number of rows without a value, per reason.
    remarks
        One line about the user's own columns that were replaced, and one for each column that is blank in some of the
        rows with a value and filled in others.
    seconds
        Wall time.
    """

    output: Path
    n_rows: int
    n_values: int
    n_polymers: int
    n_solvents: int
    methods: dict[str, int]
    reasons: dict[str, int]
    remarks: list[str]
    seconds: float


@dataclass(frozen=True)
class _Row:
    polymer: str
    solvent: str
    kelvin: float
    reason: str


def compute_table(
    input: Path,
    output: Path,
    *,
    n_jobs: int = 1,
    progress: Progress | None = None,
) -> ComputeSummary:
    """Add `ADDED_COLUMNS` to a CSV with columns ``SMILES[, solvent][, temp]`` (any case, any order, others kept).

    If there is no ``temp``, a column ``temperature_K``, as written by `chitransfer predict` and `screen`, replaces it.

    ``chi_unifac`` is χ at the row's temperature (default 298.15 K) in the row's solvent (default water);
    ``A_unifac_K`` and ``B_unifac`` come from χ = A/T + B fitted to UNIFAC at `DEFAULT_TEMPERATURES`; ``method`` names
    the model (docs/physics.md); ``reason`` says why a row has no value. Existing columns with these names are replaced,
    and reported if they do not come from an earlier computation. Rows with more or fewer cells than the header are
    truncated or padded, so that the added values line up with their columns.

    Parameters
    ----------
    input, output
        CSV, or CSV.GZ by name; the input may be a ``builtin:`` name; the output is replaced atomically.
    n_jobs
        Number of processes for fragmenting polymers.
    progress
        Called with (distinct polymers fragmented, their number).

    Raises
    ------
    DataError
        The file cannot be read as CSV, or has no SMILES column or no rows. A bad row is not an error.
    """
    started = time.perf_counter()
    check_csv_name(output)
    reader = TableReader.open(input)
    reader.refuse_misnamed()
    replaced = [name in ADDED_COLUMNS for name in reader.header]
    records = [_without_replaced(row, replaced) for row in reader.rows()]
    if not records:
        raise without_rows(str(input), reader.header)
    rows = [_read_row(reader, record) for record in records]
    polymers = sorted({row.polymer for row in rows if not row.reason})
    chains = dict(zip(polymers, map_in_chunks(_fragment_chunk, polymers, CHUNK, n_jobs, progress), strict=True))
    values, reasons = _values_of_rows(rows, chains)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    own = [not is_replaced for is_replaced in replaced]
    writer.writerow(map(as_cell, [*compress(reader.header, own), *ADDED_COLUMNS]))
    for record, value, reason in zip(records, values, reasons, strict=True):
        writer.writerow(map(as_cell, [*compress(reader.fit_row(record), own), *value, reason]))
    write_csv_text(output, reader.mark + text.getvalue())
    return ComputeSummary(
        output=output,
        n_rows=len(rows),
        n_values=sum(1 for reason in reasons if not reason),
        n_polymers=len({row.polymer for row in rows if row.polymer}),
        n_solvents=len({row.solvent for row in rows if row.solvent}),
        methods=dict(Counter(value[3] for value in values if value[3]).most_common()),
        reasons=dict(Counter(reason for reason in reasons if reason).most_common()),
        remarks=[
            *_describe_replaced(list(compress(reader.header, replaced)), str(input)),
            *_describe_blank_cells(reader, str(input), list(compress(records, (not why for why in reasons)))),
        ],
        seconds=time.perf_counter() - started,
    )


def _describe_replaced(names: list[str], source: str) -> list[str]:
    """A line about the user's own columns that were replaced; none if an earlier computation wrote them."""
    if not names or UNIFAC_CHI in names:
        return []
    return [f"{', '.join(names)} of {source} {'is' if len(names) == 1 else 'are'} replaced; rename what is to be kept"]


def _describe_blank_cells(reader: TableReader, source: str, used: list[list[str]]) -> list[str]:
    lines = []
    for column, place in (("solvent", reader.solvent), ("temp", reader.temperature)):
        n_blank = 0 if place is None else sum(not record[place].strip() for record in used)
        if 0 < n_blank < len(used):
            lines.append(describe_blanks(n_blank, len(used), source, column))
    return lines


def _without_replaced(row: list[str], replaced: list[bool]) -> list[str]:
    """The row with its replaced cells emptied, so that a row with no other content counts as blank."""
    return ["" if place < len(replaced) and replaced[place] else cell for place, cell in enumerate(row)]


def _read_row(reader: TableReader, record: list[str]) -> _Row:
    unusable = reader.explain_unusable(record)
    if unusable:
        return _Row("", "", DEFAULT_TEMPERATURE_K, unusable)
    polymer = record[reader.smiles].strip()
    kelvin, reason = DEFAULT_TEMPERATURE_K, ""
    written = "" if reader.temperature is None else record[reader.temperature].strip()
    try:
        kelvin = read_kelvin(written) if written else kelvin
    except ValueError as error:
        reason = str(error)
    solvent = ("" if reader.solvent is None else record[reader.solvent].strip()) or WATER
    try:
        solvent = canonical_solvent(solvent)
    except ValueError as error:
        reason = reason or str(error)
    return _Row(polymer, solvent, kelvin, reason)


def _fragment_chunk(polymers: list[str]) -> list[tuple[Groups | None, str]]:
    return [_groups_or_reason(repeat_unit_groups, smiles) for smiles in polymers]


def _groups_or_reason(fragment: Callable[[str], Groups], smiles: str) -> tuple[Groups | None, str]:
    try:
        return fragment(smiles), ""
    except FragmentationError as error:
        return None, str(error)


def _values_of_rows(
    rows: list[_Row], chains: dict[str, tuple[Groups | None, str]]
) -> tuple[list[list[str]], list[str]]:
    """The first four added cells of every row, and its reason (empty if it has values)."""
    values = [[""] * 4 for _ in rows]
    reasons = [row.reason for row in rows]
    by_solvent: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if not row.reason:
            by_solvent.setdefault(row.solvent, []).append(place)
    for solvent, places in by_solvent.items():
        molecule, trouble = _groups_or_reason(molecule_groups, solvent)
        usable: list[int] = []
        for place in places:
            chain, why = chains[rows[place].polymer]
            if molecule is None:
                reasons[place] = f"solvent: {trouble}"
            elif chain is None:
                reasons[place] = f"polymer: {why}"
            else:
                usable.append(place)
        if molecule is not None and usable:
            _fill_solvent(rows, chains, molecule, usable, values)
    return values, reasons


def _fill_solvent(
    rows: list[_Row],
    chains: dict[str, tuple[Groups | None, str]],
    molecule: Groups,
    places: list[int],
    values: list[list[str]],
) -> None:
    polymers = sorted({rows[place].polymer for place in places})
    groups = {polymer: found for polymer in polymers if (found := chains[polymer][0]) is not None}
    kelvin_of_fit = np.asarray(DEFAULT_TEMPERATURES, dtype=float)
    fitted = chi_of_groups([groups[polymer] for polymer in polymers], [molecule], kelvin_of_fit)[:, 0]
    A, B = fit_a_b(kelvin_of_fit, fitted)
    line = {polymer: place for place, polymer in enumerate(polymers)}
    by_temperature: dict[float, list[int]] = {}
    for place in places:
        by_temperature.setdefault(rows[place].kelvin, []).append(place)
    for kelvin, here in by_temperature.items():
        chi = chi_of_groups([groups[rows[place].polymer] for place in here], [molecule], [kelvin])[:, 0, 0]
        for place, value in zip(here, chi, strict=True):
            row = line[rows[place].polymer]
            method = method_name(groups[rows[place].polymer], molecule)
            values[place] = [f"{value:.4f}", f"{A[row]:.2f}", f"{B[row]:.4f}", method]
