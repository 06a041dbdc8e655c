"""Read and check repeat units as written; `PolymerError` says why a text is not a repeat unit.

Called by `chemistry.polymers`, `chemistry.vectors`, `chemistry.stereo` and wherever `PolymerError` is caught.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from rdkit import Chem, rdBase

from chitransfer.chemistry.charges import has_bonded_counter_ion, settle_charges

LONGEST_SMILES = 2000
LEFT, RIGHT = 1, 2
STEREO_MARKS = frozenset("@/\\")
# A SMILES with a refused bond contains one of these: the bond's own symbol, or the bracket of a metal, because RDKit
# makes bonds to metals dative.
ODD_BOND_MARKS = frozenset("[$~:<>")
# An unpaired electron on these means missing hydrogens, as in some public tables. Oxygen is not listed: in nitroxides
# the radical is real.
NEVER_OPEN = frozenset({"C", "N", "Si", "P", "S"})
TETRAHEDRAL = (
    Chem.ChiralType.CHI_UNSPECIFIED,
    Chem.ChiralType.CHI_TETRAHEDRAL_CW,
    Chem.ChiralType.CHI_TETRAHEDRAL_CCW,
)
_STAR, _LEFT_END, _RIGHT_END = (Chem.MolFromSmarts(pattern) for pattern in ("[#0]", "[1#0]", "[2#0]"))
_ODD_BOND, _HYDROGEN = map(Chem.MolFromSmarts, ("[$(*!-&!=&!#&!:*),$([!a]:*)]", "[#1]"))


class PolymerError(ValueError):
    """A text is not a repeat unit; the message says why and how to mend it."""


@lru_cache(maxsize=4096)
def labelled_unit(smiles: str) -> Chem.Mol:
    """The unit with its ends labelled [1*] and [2*] in the order written, and no other labels."""
    molecule = _read(smiles)
    stars = [molecule.GetAtomWithIdx(i) for (i,) in molecule.GetSubstructMatches(_STAR, maxMatches=LONGEST_SMILES)]
    if len(stars) != 2:
        counted = {0: "no *", 1: "one *"}.get(len(stars), f"{len(stars)} *")
        raise PolymerError(f"a repeat unit needs exactly two * for its two chain ends, this has {counted}")
    has_brackets = "[" in smiles
    if len(Chem.GetMolFrags(molecule)) > 1 or (has_brackets and has_bonded_counter_ion(molecule)):
        raise PolymerError("more than one molecule or ion; leave counter-ions and solvents out, as in C(=O)[O-]")
    _refuse_odd_bonds(molecule, smiles)
    for star, label in zip(stars, (LEFT, RIGHT), strict=True):
        if star.GetDegree() != 1:
            raise PolymerError("a * must be bonded once, to the atom at its chain end")
        star.SetIsotope(label)
        star.SetFormalCharge(0)
        star.SetNumExplicitHs(0)
        star.SetNumRadicalElectrons(0)
        star.SetNoImplicit(True)
    first, second = (star.GetBonds()[0] for star in stars)
    if first.GetIdx() == second.GetIdx():
        raise PolymerError("nothing stands between the two *; write the atoms of one unit between them")
    if first.GetBondType() != second.GetBondType():
        raise PolymerError("the two * are bonded by bonds of different order; both ends of a unit must match")
    if has_brackets:
        # An isotope-labelled chain is the same polymer (docs/decisions.md).
        for atom in molecule.GetAtoms():
            atom.SetAtomMapNum(0)
            if atom.GetAtomicNum():
                atom.SetIsotope(0)
    molecule = _sanitise(molecule, smiles)
    _refuse_odd_bonds(molecule, smiles)
    if has_brackets:
        open_atoms = {atom.GetSymbol() for atom in molecule.GetAtoms() if atom.GetNumRadicalElectrons()}
        if lacking := sorted(open_atoms & NEVER_OPEN):
            raise PolymerError(f"{lacking[0]} with open valences; write its hydrogens, as in [CH2], or no brackets")
    return molecule


def _refuse_odd_bonds(molecule: Chem.Mol, smiles: str) -> None:
    if not ODD_BOND_MARKS.isdisjoint(smiles) and molecule.HasSubstructMatch(_ODD_BOND):
        raise PolymerError("dative, quadruple, unspecified or stray aromatic bonds; use single, double or triple ones")


def _read(smiles: str) -> Chem.Mol:
    if len(smiles) > LONGEST_SMILES:
        raise PolymerError(f"longer than {LONGEST_SMILES} characters; give one repeat unit")
    text = smiles.strip()
    if not text:
        raise PolymerError("empty; write a repeat unit with two *, such as *CCO*")
    if not text.isascii() or not text.isprintable():
        raise PolymerError("SMILES are plain ASCII text; retype it without special characters")
    if " " in text:
        raise PolymerError("a space; give one SMILES alone, without a name or annotations after it")
    # Ends are labelled before stereo is cleaned up: a centre between two equal ends is still a stereo centre of the
    # chain.
    options: Any = Chem.SmilesParserParams()
    options.sanitize = False
    options.removeHs = False
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(text, options)
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise PolymerError("RDKit cannot read this SMILES; check brackets, ring numbers and bonds")
    return molecule


def _sanitise(molecule: Chem.Mol, smiles: str) -> Chem.Mol:
    if "+" in smiles:
        settle_charges(molecule)
    with rdBase.BlockLogs():
        try:
            Chem.SanitizeMol(molecule)
            if "[" in smiles and molecule.HasSubstructMatch(_HYDROGEN):  # Explicit hydrogen atoms need brackets.
                molecule = Chem.RemoveHs(molecule)
        except Chem.MolSanitizeException as error:
            raise PolymerError(f"RDKit cannot make sense of this SMILES: {error}") from error
        for atom in molecule.GetAtoms() if "@" in smiles else ():
            # RDKit loses these when a bond is cut: square-planar and octahedral centres, and centres with a radical.
            if atom.GetChiralTag() not in TETRAHEDRAL or atom.GetNumRadicalElectrons():
                atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
        Chem.AssignStereochemistry(molecule, cleanIt=True, force=True)
    return molecule


def parse_repeat_unit(smiles: str) -> Chem.Mol:
    """Read a repeat unit as a sanitised molecule with two plain ``*``, dropping their labels, map numbers and charges.

    Raises
    ------
    PolymerError
        The text is unreadable, or is not one molecule with exactly two singly connected ``*``.
    """
    unit = Chem.Mol(labelled_unit(smiles))
    for end in find_ends(unit):
        unit.GetAtomWithIdx(end).SetIsotope(0)
    return unit


def find_ends(unit: Chem.Mol) -> tuple[int, int]:
    """Indices of the left and right ``*`` of a unit with labelled ends."""
    left, right = (unit.GetSubstructMatch(pattern)[0] for pattern in (_LEFT_END, _RIGHT_END))
    return left, right
