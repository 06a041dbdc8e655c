"""Normalise charges that can be drawn in several ways: S=O and P=O, not S⁺–O⁻ and P⁺–O⁻; N=N⁺=N⁻, not N⁻–N⁺≡N.

Called wherever a SMILES is read (`chemistry.polymers`, `read_molecule`). RDKit normalises nitro groups and nitrogen
oxides itself, but treats the two forms of a sulfoxide, an azide or an imidazolium as different substances.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from rdkit import Chem, rdBase

_SPLIT_CHARGES = Chem.MolFromSmarts("[S,P,Se,As;+1,+2]-[$([O-,S-;D1]),$([N-]),$([C-])]")
# Azides and diazo compounds; nitrile oxides.
_DIAZO, _NITRILE_OXIDE = map(Chem.MolFromSmarts, ("[N-,C-]-[N+]#[ND1+0]", "[N-,C-]=[N+]=[OD1]"))

# Some chemical catalogues draw counter-ions with a bond: C(=O)O[Na].
_BONDED_COUNTER_ION = Chem.MolFromSmarts("[Li,Na,K,Rb,Cs;!D0]")
# The charged nitrogen of an amidinium, guanidinium or imidazolium ion in a Kekulé form, the carbon, and the nitrogen
# that the charge can move to.
_AMIDINIUM = Chem.MolFromSmarts("[NX3+;!$(N[-])]=[CX3]-[NX3+0]")
# Number of resonance forms of one block to examine before giving up and leaving the block as written.
MOST_WRITINGS = 64


def settle_charges(molecule: Chem.Mol) -> None:
    """Normalise the charges of a molecule, sanitised or not, in place.

    S⁺ and P⁺ (Se⁺, As⁺) next to O⁻, S⁻, N⁻ or C⁻ become double bonds; C⁻–N⁺≡N and N⁻–N⁺≡N become C=N⁺=N⁻ and N=N⁺=N⁻;
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
            # A carbanion between two N⁺≡N has only one charge to give away.
            if molecule.GetAtomWithIdx(begin).GetFormalCharge() == 0:
                continue
            molecule.GetAtomWithIdx(begin).SetFormalCharge(0)
            molecule.GetAtomWithIdx(end).SetFormalCharge(-1)
            molecule.GetBondBetweenAtoms(begin, middle).SetBondType(first)
            molecule.GetBondBetweenAtoms(middle, end).SetBondType(second)


def read_molecule(smiles: str) -> Chem.Mol | None:
    """Read a whole molecule, such as a solvent, and sanitise it; ``None`` if RDKit cannot read it.

    >>> Chem.MolToSmiles(read_molecule("C[S+](C)[O-]"))
    'CS(C)=O'
    """
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is not None and any(atom.GetFormalCharge() for atom in molecule.GetAtoms()):
            settle_charges(molecule)
            Chem.SanitizeMol(molecule)
    return molecule


def has_bonded_counter_ion(molecule: Chem.Mol) -> bool:
    """Whether an alkali metal is bonded to a molecule, sanitised or not."""
    return bool(molecule.HasSubstructMatch(_BONDED_COUNTER_ION))


@lru_cache(maxsize=50_000)
def least_writing(smiles: str) -> str:
    """Canonical SMILES of a part of a chain, independent of which nitrogen of an amidinium ion carries the charge.

    Among the resonance forms with the most aromatic atoms, it is the alphabetically first.

    >>> least_writing("Cn1cc[n+](CC)c1") == least_writing("C[n+]1ccn(CC)c1")
    True
    """
    if "+" not in smiles:
        return smiles
    aromatic, waiting = {smiles: 0}, [smiles]
    while waiting and len(aromatic) <= MOST_WRITINGS:
        molecule = Chem.MolFromSmiles(waiting[-1])
        aromatic[waiting.pop()] = sum(atom.GetIsAromatic() for atom in molecule.GetAtoms())
        new = {str(Chem.MolToSmiles(moved)) for moved in _move_charges(molecule)} - aromatic.keys()
        aromatic |= dict.fromkeys(new, 0)
        waiting += sorted(new)
    return smiles if waiting else min(aromatic, key=lambda text: (-aromatic[text], text))


def _move_charges(molecule: Chem.Mol) -> Iterator[Chem.Mol]:
    """Yield every form of the molecule in which the charge of one amidinium ion sits on another of its nitrogens."""
    plain = Chem.Mol(molecule)
    Chem.Kekulize(plain, clearAromaticFlags=True)
    for charged, carbon, neutral in plain.GetSubstructMatches(_AMIDINIUM):
        moved = Chem.Mol(plain)
        moved.GetAtomWithIdx(charged).SetFormalCharge(0)
        moved.GetAtomWithIdx(neutral).SetFormalCharge(1)
        moved.GetBondBetweenAtoms(charged, carbon).SetBondType(Chem.BondType.SINGLE)
        moved.GetBondBetweenAtoms(carbon, neutral).SetBondType(Chem.BondType.DOUBLE)
        Chem.SanitizeMol(moved)
        yield moved
