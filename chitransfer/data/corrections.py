"""The visible list of what is known to be wrong in the public tables, and what each error becomes.

Called by `data.public_tables`; the list itself is ``builtin/corrections.csv`` and travels with every fetched table.
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
    """One known error of one public table.

    Attributes
    ----------
    table
        The name `fetch_table` knows the table by.
    kind
        A key of `KINDS`.
    entry
        The polymer's name in the table; empty when the error is found by its structure.
    solvent
        The solvent's name in the table; empty when any.
    given, corrected
        SMILES as published and as used; empty where there is none.
    reason
        Why, in one sentence.
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
