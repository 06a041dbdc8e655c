"""One way to write charges that neighbours share: S=O and P=O, not S⁺–O⁻ and P⁺–O⁻; N=N⁺=N⁻, not N⁻–N⁺≡N.

Called wherever a SMILES is read (`chemistry.polymers`, `read_molecule`). RDKit settles nitro groups and oxides of
nitrogen by itself, but takes the two writings of a sulfoxide or an azide for two substances.
"""

from __future__ import annotations

from rdkit import Chem, rdBase

_SPLIT_CHARGES = Chem.MolFromSmarts("[S,P,Se,As;+1,+2]-[$([O-,S-;D1]),$([N-]),$([C-])]")
# Azides and diazo compounds; nitrile oxides.
_DIAZO, _NITRILE_OXIDE = map(Chem.MolFromSmarts, ("[N-,C-]-[N+]#[ND1+0]", "[N-,C-]=[N+]=[OD1]"))


def settle_charges(molecule: Chem.Mol) -> None:
    """Write the charges of a molecule, sanitised or not, in the one way, in place.

    S⁺ and P⁺ (Se⁺, As⁺) beside O⁻, S⁻, N⁻ or C⁻ become double bonds, C⁻–N⁺≡N and N⁻–N⁺≡N become C=N⁺=N⁻ and N=N⁺=N⁻,
    C⁻=N⁺=O becomes C≡N⁺–O⁻.
    """
    for centre, partner in molecule.GetSubstructMatches(_SPLIT_CHARGES):
        atom, beside = molecule.GetAtomWithIdx(centre), molecule.GetAtomWithIdx(partner)
        if atom.GetFormalCharge() > 0 > beside.GetFormalCharge():
            atom.SetFormalCharge(atom.GetFormalCharge() - 1)
            beside.SetFormalCharge(0)
            molecule.GetBondBetweenAtoms(centre, partner).SetBondType(Chem.BondType.DOUBLE)
    for pattern, first, second in (
        (_DIAZO, Chem.BondType.DOUBLE, Chem.BondType.DOUBLE),
        (_NITRILE_OXIDE, Chem.BondType.TRIPLE, Chem.BondType.SINGLE),
    ):
        for begin, middle, end in molecule.GetSubstructMatches(pattern):
            # A carbanion between two N⁺≡N has one charge to give.
            if molecule.GetAtomWithIdx(begin).GetFormalCharge() == 0:
                continue
            molecule.GetAtomWithIdx(begin).SetFormalCharge(0)
            molecule.GetAtomWithIdx(end).SetFormalCharge(-1)
            molecule.GetBondBetweenAtoms(begin, middle).SetBondType(first)
            molecule.GetBondBetweenAtoms(middle, end).SetBondType(second)


def read_molecule(smiles: str) -> Chem.Mol | None:
    """A whole molecule such as a solvent, sanitised; ``None`` where RDKit cannot read it.

    >>> Chem.MolToSmiles(read_molecule("C[S+](C)[O-]"))
    'CS(C)=O'
    """
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is not None and any(atom.GetFormalCharge() for atom in molecule.GetAtoms()):
            settle_charges(molecule)
            Chem.SanitizeMol(molecule)
    return molecule
