"""Solvents for which χ is computed: read them from a table, and find their UNIFAC groups.

Called by `data.build` and `chitransfer data build --solvents-from`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chitransfer.chemistry.groups import Groups, molecule_groups
from chitransfer.data.csv_text import Column, find_columns, parse_csv, read_source
from chitransfer.data.rejected_rows import describe_rejected
from chitransfer.data.table_remarks import describe_blanks
from chitransfer.data.tables import WATER, canonical_solvent
from chitransfer.errors import DataError


def read_solvents(path: Path) -> tuple[list[str], list[str]]:
    """Distinct solvents of a CSV with a column ``solvent``, as canonical SMILES in file order; an empty cell is water.

    Returns
    -------
    solvents, warnings
        Solvents with UNIFAC groups; and a warning for each solvent without, and for empty cells among filled ones.

    Raises
    ------
    DataError
        The file cannot be read, has no such column, a cell is not a solvent, or no solvent has UNIFAC groups.
    """
    content, name = read_source(str(path))
    header, rows = parse_csv(content, name)
    place = find_columns(header, [Column("solvent", True)], name)["solvent"]
    groups: dict[str, str] = {}
    refused: list[tuple[int, str, str]] = []
    for line, row in rows:
        try:
            solvent = canonical_solvent(row[place].strip() or WATER)
        except ValueError as error:
            refused.append((line, row[place], str(error)))
            continue
        if solvent not in groups:
            groups[solvent] = _why_no_groups(solvent)
    if refused:
        raise DataError(f"{describe_rejected(name, refused, len(rows))}\nCorrect them, or remove these rows.")
    solvents = [solvent for solvent, reason in groups.items() if not reason]
    if not solvents:
        raise DataError(f"{name}: UNIFAC has groups for none of its solvents; name some with --solvent")
    warnings = [f"{name}: {solvent} is left out: {reason}" for solvent, reason in groups.items() if reason]
    blank = [line for line, row in rows if not row[place].strip()]
    if 0 < len(blank) < len(rows):
        warnings.append(describe_blanks(len(blank), len(rows), name, "solvent", lines=blank))
    return solvents, warnings


def _why_no_groups(solvent: str) -> str:
    try:
        molecule_groups(solvent)
    except ValueError as error:
        return str(error)
    return ""


def check_solvents(solvents: Sequence[str]) -> tuple[list[str], list[Groups]]:
    """Distinct solvents as canonical SMILES with their UNIFAC groups.

    Raises
    ------
    DataError
        A SMILES is not a solvent, a solvent has no UNIFAC groups, or the list is empty.
    """
    names, groups = [], []
    for smiles in solvents:
        try:
            name = canonical_solvent(smiles)
            found = molecule_groups(name)
        except ValueError as error:
            raise DataError(f"solvent {smiles!r}: {error}") from error
        if name not in names:
            names.append(name)
            groups.append(found)
    if not names:
        raise DataError("give at least one solvent as a SMILES (water is O)")
    return names, groups
