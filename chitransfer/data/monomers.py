"""Read monomer lists: the project's own, or a user's.

Called by `data.build` and ``chitransfer data build``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rdkit import Chem, rdBase

from chitransfer.chemistry.enumerate import FAMILIES
from chitransfer.counts import say_count
from chitransfer.data.csv_text import Column, find_columns, parse_csv, read_source
from chitransfer.data.rejected_rows import describe_rejected
from chitransfer.errors import DataError

SHOWN_MONOMERS = 5


def read_monomers(path: Path | None = None) -> dict[str, list[str]]:
    """Monomers by family from a CSV with columns ``family, SMILES``; ``None`` reads the project's own list.

    Raises
    ------
    DataError
        The file cannot be read, a column is missing, or some rows have a family that is not in `FAMILIES` or a SMILES
        that is not a molecule; the message lists all such rows.
    """
    content, name = read_source(str(path or Path(__file__).parent / "builtin" / "monomers.csv"))
    header, rows = parse_csv(content, name)
    places = find_columns(header, [Column("family", True), Column("SMILES", True)], name)
    families: dict[str, list[str]] = {}
    refused: list[tuple[int, str, str]] = []
    for line, row in rows:
        family, smiles = row[places["family"]].strip(), row[places["SMILES"]].strip()
        if family not in FAMILIES:
            refused.append((line, f"family = {family!r}", "there is no such monomer family"))
            continue
        with rdBase.BlockLogs():
            molecule = Chem.MolFromSmiles(smiles)
        if molecule is None or molecule.GetNumAtoms() == 0:
            refused.append((line, f"SMILES = {smiles!r}", "not a readable SMILES"))
            continue
        families.setdefault(family, []).append(Chem.MolToSmiles(molecule))
    if refused:
        raise DataError(
            f"{describe_rejected(name, refused, len(rows))}\nCorrect them, or remove these rows. Known families: "
            f"{', '.join(FAMILIES)}"
        )
    return families


def describe_unused(unused: Sequence[str]) -> str:
    """Message with the number of monomers that take part in no polymerisation, and the first few of them."""
    verb, whose = ("takes", "its") if len(unused) == 1 else ("take", "their")
    shown = ", ".join(unused[:SHOWN_MONOMERS]) + (", …" if len(unused) > SHOWN_MONOMERS else "")
    return f"{say_count(len(unused), 'monomer')} {verb} part in no polymerisation of {whose} family: {shown}"
