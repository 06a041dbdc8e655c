"""The list of known errors in the public tables, and how each is corrected.

Called by `data.public_tables`; the list is ``builtin/corrections.csv``, and its entries accompany every fetched table.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

KINDS = {
    "unit": "the repeat unit is replaced",
    "solvent": "the solvent is replaced, or its rows are left out",
    "drop": "all rows of the entry are left out",
    "row": "one row is left out",
    "note": "known, but left as published",
}


@dataclass(frozen=True)
class Correction:
    """One known error in one public table.

    Attributes
    ----------
    table
        Name of the table in `fetch_table`.
    kind
        A key of `KINDS`.
    entry
        The polymer's name in the table; empty if the error is identified by structure.
    solvent
        The solvent's name in the table; empty for any solvent.
    given, corrected
        SMILES as published and as used; empty if there is none.
    reason
        One sentence that explains the correction.
    """

    table: str
    kind: str
    entry: str
    solvent: str
    given: str
    corrected: str
    reason: str


@lru_cache(maxsize=1)
def all_corrections() -> tuple[Correction, ...]:
    """Every known correction, in the order of the list."""
    text = resources.files("chitransfer.data").joinpath("builtin", "corrections.csv").read_text(encoding="utf-8")
    return tuple(Correction(**record) for record in csv.DictReader(text.splitlines()))


def corrections_of(table: str) -> tuple[Correction, ...]:
    """The known corrections of one public table."""
    return tuple(correction for correction in all_corrections() if correction.table == table)
