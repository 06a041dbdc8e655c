"""Monomer lists: the project's own, or a user's.

Called by `data.build`.
"""

from __future__ import annotations

from pathlib import Path

from rdkit import Chem, rdBase

from chitransfer.chemistry.enumerate import FAMILIES
from chitransfer.data.csv_text import Column, find_columns, parse_csv, read_source
from chitransfer.errors import DataError


def read_monomers(path: Path | None = None) -> dict[str, list[str]]:
    """Monomers by family from a CSV with columns ``family, SMILES``; ``None`` reads the project's own list.

    Raises
    ------
    DataError
        The file cannot be read, a column is missing, a family is none of `FAMILIES`, or a SMILES is no molecule.
    """
    content, name = read_source(str(path or Path(__file__).parent / "builtin" / "monomers.csv"))
    header, rows = parse_csv(content, name)
    places = find_columns(header, [Column("family", True), Column("SMILES", True)], name)
    families: dict[str, list[str]] = {}
    for line, row in rows:
        family, smiles = row[places["family"]].strip(), row[places["SMILES"]].strip()
        if family not in FAMILIES:
            raise DataError(f"{name}, line {line}: there is no monomer family {family!r}; known: {', '.join(FAMILIES)}")
        with rdBase.BlockLogs():
            molecule = Chem.MolFromSmiles(smiles)
        if molecule is None or molecule.GetNumAtoms() == 0:
            raise DataError(f"{name}, line {line}: {smiles!r} is not a readable SMILES; correct it or take the row out")
        families.setdefault(family, []).append(Chem.MolToSmiles(molecule))
    return families
