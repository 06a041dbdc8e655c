"""Remarks on tables that were read, as lines for the console; none of them is an error.

Called by every command that trains, by `data.check`, `data.compute` and `data.solvents`, and by `predict_table` for the
table to predict.
"""

from __future__ import annotations

from collections.abc import Sequence

from chitransfer.counts import say_count
from chitransfer.data.csv_text import BUILTIN_PREFIX
from chitransfer.data.tables import WATER, Table
from chitransfer.data.temperatures import DEFAULT_TEMPERATURE_K

# Configuration keys of the Stage 2 tables.
PATH_KEYS = {"chi": "paths.exp_chi_csv", "solubility": "paths.solubility_csv"}
SHOWN_BLANKS = 5


def describe_builtin_beside_own(tables: Sequence[Table]) -> list[str]:
    """A line for every built-in Stage 2 table used alongside the user's own tables, perhaps unknowingly."""
    if all(table.source.startswith(BUILTIN_PREFIX) for table in tables):
        return []
    stage2 = [table for table in tables if table.kind in PATH_KEYS]
    remedy = "null leaves it out" if len(stage2) > 1 else "name one of your own"
    return [
        f"{PATH_KEYS[table.kind]} is {table.source} ({say_count(len(table), 'row')}), the built-in table, beside "
        f"tables of your own; {remedy}"
        for table in stage2
        if table.source.startswith(BUILTIN_PREFIX)
    ]


def describe_left_out(tables: Sequence[Table]) -> list[str]:
    """A line for every table with unusable rows that were left out (`provenance.write_provenance`)."""
    return [
        f"{n} of {say_count(len(table) + n, 'row')} of {table.source} cannot be used and {'is' if n == 1 else 'are'} "
        "left out; rejected_rows.csv says why"
        for table in tables
        if (n := len(table.rejected))
    ]


def describe_blank_cells(tables: Sequence[Table]) -> list[str]:
    """A line for every column that is filled in some of the used rows and blank, so the default applies, in others."""
    lines = []
    for table in tables:
        used = set(table.rows["line"])
        for column, every in table.blank_cells.items():
            blank = [line for line in every if line in used]
            if blank:
                lines.append(describe_blanks(len(blank), len(table), table.source, column, lines=blank))
    return lines


def describe_blanks(
    n_blank: int,
    n_rows: int,
    source: str,
    column: str,
    temperature: float = DEFAULT_TEMPERATURE_K,
    lines: Sequence[int] = (),
) -> str:
    """A line about rows with a blank ``solvent`` or ``temp``.

    Parameters
    ----------
    n_blank, n_rows
        Number of rows with a blank `column`, and of all used rows.
    temperature
        Temperature used for a blank ``temp``, in kelvin.
    lines
        Line numbers of the blank cells, of which the first are shown; empty if not recorded.
    """
    one = n_blank == 1
    shown = ", ".join(map(str, lines[:SHOWN_BLANKS])) + (", …" if len(lines) > SHOWN_BLANKS else "")
    where = f" ({'line' if one else 'lines'} {shown})" if lines else ""
    taken, to_write = ("in water", f"{WATER} where it is water")
    if column == "temp":
        taken, to_write = f"at {temperature:g} K", f"{temperature:g} where it is that"
    return (
        f"{n_blank} of {say_count(n_rows, 'usable row')} of {source} {'has' if one else 'have'} no {column}{where} "
        f"and {'is' if one else 'are'} taken to be {taken}; merged cells? fill {column} in every row, with {to_write}"
    )
