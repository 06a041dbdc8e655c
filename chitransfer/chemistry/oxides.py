"""One way to write an oxygen on sulfur or phosphorus: S=O and P=O, not S⁺–O⁻ and P⁺–O⁻.

Called wherever a SMILES is read (`chemistry.polymers`, `read_molecule`). RDKit settles nitro groups by
itself, but takes the two writings of a sulfoxide for two substances.
"""

from __future__ import annotations

from rdkit import Chem, rdBase

_SPLIT_CHARGES = Chem.MolFromSmarts("[S,P;+1,+2]-[O-;D1]")


def join_split_charges(molecule: Chem.Mol) -> None:
    """Turn every S⁺–O⁻ and P⁺–O⁻ of a molecule, sanitised or not, into S=O and P=O, in place."""
    for centre, oxygen in molecule.GetSubstructMatches(_SPLIT_CHARGES):
        atom = molecule.GetAtomWithIdx(centre)
        if atom.GetFormalCharge() > 0:
            atom.SetFormalCharge(atom.GetFormalCharge() - 1)
            molecule.GetAtomWithIdx(oxygen).SetFormalCharge(0)
            molecule.GetBondBetweenAtoms(centre, oxygen).SetBondType(Chem.BondType.DOUBLE)


def read_molecule(smiles: str) -> Chem.Mol | None:
    """A whole molecule such as a solvent, sanitised; ``None`` where RDKit cannot read it.

    >>> Chem.MolToSmiles(read_molecule("C[S+](C)[O-]"))
    'CS(C)=O'
    """
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is not None and molecule.HasSubstructMatch(_SPLIT_CHARGES):
            join_split_charges(molecule)
            Chem.SanitizeMol(molecule)
    return molecule
