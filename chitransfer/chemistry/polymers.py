"""Repeat units and polymer identity: one key for every way to cut the same chain.

Called by `chemistry.identities`, `chemistry.features`, `chemistry.groups` and wherever a repeat unit is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import pairwise
from typing import Any, Literal

from rdkit import Chem, rdBase

from chitransfer.chemistry.charges import has_bonded_counter_ion, least_writing, settle_charges

LONGEST_SMILES = 2000
MOST_CUTS = 40
LEFT, RIGHT = 1, 2
STEREO_MARKS = frozenset("@/\\")
# A refused bond has one of these in its text: its own mark, or the bracket of a metal, to which RDKit makes it dative.
ODD_BOND_MARKS = frozenset("[$~:<>")
# With a lone electron they lack hydrogens, as in some public tables; oxygen has one in nitroxides.
NEVER_OPEN = frozenset({"C", "N", "Si", "P", "S"})
TETRAHEDRAL = (
    Chem.ChiralType.CHI_UNSPECIFIED,
    Chem.ChiralType.CHI_TETRAHEDRAL_CW,
    Chem.ChiralType.CHI_TETRAHEDRAL_CCW,
)
_STAR, _LEFT_END, _RIGHT_END = (Chem.MolFromSmarts(pattern) for pattern in ("[#0]", "[1#0]", "[2#0]"))
# All that linking sanitised units changes: their atoms keep the bonds they had, to other atoms.
_HYDROGENS_AND_RINGS = Chem.SanitizeFlags.SANITIZE_PROPERTIES | Chem.SanitizeFlags.SANITIZE_SYMMRINGS
_ODD_BOND, _HYDROGEN = map(Chem.MolFromSmarts, ("[$(*!-&!=&!#&!:*),$([!a]:*)]", "[#1]"))


class PolymerError(ValueError):
    """Why a text is no repeat unit, and what would make it one."""


@lru_cache(maxsize=4096)
def _parse(smiles: str) -> Chem.Mol:
    """The unit with ends labelled [1*] and [2*] in the order they are written, and no other marks."""
    molecule = _read(smiles)
    stars = [molecule.GetAtomWithIdx(i) for (i,) in molecule.GetSubstructMatches(_STAR, maxMatches=LONGEST_SMILES)]
    if len(stars) != 2:
        counted = {0: "no *", 1: "one *"}.get(len(stars), f"{len(stars)} *")
        raise PolymerError(f"a repeat unit needs exactly two * for its two chain ends, this has {counted}")
    if len(Chem.GetMolFrags(molecule)) > 1 or has_bonded_counter_ion(molecule):
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
    if "[" in smiles:
        # A labelled chain is the same polymer (docs/decisions.md).
        for atom in molecule.GetAtoms():
            atom.SetAtomMapNum(0)
            if atom.GetAtomicNum():
                atom.SetIsotope(0)
    molecule = _sanitise(molecule, smiles)
    _refuse_odd_bonds(molecule, smiles)
    if "[" in smiles:
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
    # Ends are told apart before stereo is cleaned: a centre between two equal ends is one of the chain's all the same.
    options: Any = Chem.SmilesParserParams()
    options.sanitize = False
    options.removeHs = False
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(text, options)
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise PolymerError("RDKit cannot read this SMILES; check brackets, ring numbers and bonds")
    return molecule


def _sanitise(molecule: Chem.Mol, smiles: str) -> Chem.Mol:
    settle_charges(molecule)
    with rdBase.BlockLogs():
        try:
            Chem.SanitizeMol(molecule)
            if "[" in smiles and molecule.HasSubstructMatch(_HYDROGEN):  # Written out, it stands in brackets.
                molecule = Chem.RemoveHs(molecule)
        except Chem.MolSanitizeException as error:
            raise PolymerError(f"RDKit cannot make sense of this SMILES: {error}") from error
        for atom in molecule.GetAtoms() if "@" in smiles else ():
            # RDKit does not carry these through a cut: square planes, octahedra, and centres with a lone electron.
            if atom.GetChiralTag() not in TETRAHEDRAL or atom.GetNumRadicalElectrons():
                atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
        Chem.AssignStereochemistry(molecule, cleanIt=True, force=True)
    return molecule


def parse_repeat_unit(smiles: str) -> Chem.Mol:
    """A sanitised molecule with two plain ``*`` atoms; labels, map numbers and charges on them are dropped.

    Raises
    ------
    PolymerError
        The text is unreadable, or does not have exactly two once-bonded ``*`` in one molecule.
    """
    unit = Chem.Mol(_parse(smiles))
    for end in _ends(unit):
        unit.GetAtomWithIdx(end).SetIsotope(0)
    return unit


@lru_cache(maxsize=200_000)
def polymer_identity(smiles: str) -> str:
    """The canonical repeat unit of a polymer, equal for every cut of the same chain.

    The chain is cut at every single bond that separates its two ends, which gives a cyclic word of blocks; the key is
    built from the least rotation of its primitive root, read in either direction. Double bonds are never cut, so E/Z
    survives; blocks are compared with their stereo centres.

    Raises
    ------
    PolymerError
        As `parse_repeat_unit`, or the backbone has no single bond to cut.

    >>> {polymer_identity(cut) for cut in ("*CCO*", "*OCC*", "*COC*", "*CCOCCO*")}
    {'*CCO*'}
    """
    unit = _parse(smiles)
    with rdBase.BlockLogs(), _cutting(smiles):
        forward = _blocks(_single_bonded_unit(unit))
        root = forward[: _period(forward)]
        backward = [_turn(block) for block in reversed(root)]
        return _join(min(_least_rotation(root), _least_rotation(backward)))


def oligomer(smiles: str, n_units: int, cap: Literal["H", "C", "*"] = "H") -> Chem.Mol:
    """An open chain of `n_units` ≥ 1 units, without stereo, whose ends carry hydrogen, a methyl group or a plain ``*``.

    Atoms come unit by unit in the order of `parse_repeat_unit`.

    Raises
    ------
    PolymerError
        As `polymer_identity`.
    """
    chain, ends = _chain(smiles, n_units)
    for end in sorted(ends, reverse=True):
        atom = chain.GetAtomWithIdx(end)
        atom.SetIsotope(0)
        if cap == "C":
            atom.SetAtomicNum(6)
            atom.SetNoImplicit(False)
        elif cap == "H":
            neighbour = atom.GetNeighbors()[0]
            if neighbour.GetNoImplicit() or neighbour.GetIsAromatic():
                neighbour.SetNumExplicitHs(neighbour.GetNumExplicitHs() + 1)
            chain.RemoveAtom(end)
    Chem.SanitizeMol(chain, _HYDROGENS_AND_RINGS if cap == "*" else Chem.SanitizeFlags.SANITIZE_ALL)
    return chain


def ring_of_units(smiles: str, n_units: int) -> Chem.Mol:
    """A ring of `n_units` units, without stereo: the endless chain seen from any of its atoms, if the ring is large.

    Rings must have at least three atoms along the chain. Aromatic atoms are those of the open chain, so that a large
    conjugated ring is not taken for an aromatic one.

    Raises
    ------
    PolymerError
        As `polymer_identity`.
    """
    chain, (left, right) = _chain(smiles, n_units)
    chain.AddBond(_neighbour(chain, right), _neighbour(chain, left), Chem.BondType.SINGLE)
    for end in sorted((left, right), reverse=True):
        chain.RemoveAtom(end)
    Chem.SanitizeMol(chain, _HYDROGENS_AND_RINGS)
    return chain


def _chain(smiles: str, n_units: int) -> tuple[Chem.RWMol, tuple[int, int]]:
    """`n_units` units in a row, cut at single bonds, and the indices of its left and right ``*``."""
    return _link([_flat_unit(smiles)] * n_units)


@dataclass(frozen=True)
class _Part:
    """A molecule with labelled ends, not to be changed, and the indices of its ends and of what they are bonded to."""

    molecule: Chem.Mol
    left: int
    right: int
    left_neighbour: int
    right_neighbour: int

    @classmethod
    def of(cls, molecule: Chem.Mol) -> _Part:
        left, right = _ends(molecule)
        return cls(molecule, left, right, _neighbour(molecule, left), _neighbour(molecule, right))


@lru_cache(maxsize=16)
def _flat_unit(smiles: str) -> _Part:
    """The unit without stereo, with labelled ends at single bonds."""
    unit = Chem.Mol(_parse(smiles))
    Chem.RemoveStereochemistry(unit)
    with rdBase.BlockLogs(), _cutting(smiles):
        return _Part.of(_single_bonded_unit(unit))


def _link(parts: Sequence[_Part]) -> tuple[Chem.RWMol, tuple[int, int]]:
    """Parts joined right end to left end by single bonds, atoms in order, and where the outer ends are; no stereo."""
    chain = Chem.RWMol(parts[0].molecule)
    start, last, inner = 0, parts[0], []
    for part in parts[1:]:
        next_start = chain.GetNumAtoms()
        chain.InsertMol(part.molecule)
        chain.AddBond(start + last.right_neighbour, next_start + part.left_neighbour, Chem.BondType.SINGLE)
        inner += [start + last.right, next_start + part.left]
        start, last = next_start, part
    chain.BeginBatchEdit()
    for dummy in inner:
        chain.RemoveAtom(dummy)
    chain.CommitBatchEdit()
    left, right = (end - sum(dummy < end for dummy in inner) for end in (parts[0].left, start + last.right))
    return chain, (left, right)


def _neighbour(molecule: Chem.Mol, end: int) -> int:
    return int(molecule.GetAtomWithIdx(end).GetBonds()[0].GetOtherAtomIdx(end))


def _ends(unit: Chem.Mol) -> tuple[int, int]:
    """Indices of the left and right ``*`` of a unit with labelled ends."""
    left, right = (unit.GetSubstructMatch(pattern)[0] for pattern in (_LEFT_END, _RIGHT_END))
    return left, right


def _blocks(unit: Chem.Mol) -> list[str]:
    """A unit's blocks from left to right as canonical SMILES, each with ends labelled [1*] (left) and [2*] (right)."""
    path = _backbone(unit)
    cuts = _backbone_cuts(unit, path)
    if not cuts:
        return [least_writing(Chem.MolToSmiles(unit))]
    if len(cuts) > MOST_CUTS:
        # RDKit takes time quadratic in the number of pieces.
        return [block for part in _split(unit, path, cuts[::MOST_CUTS]) for block in _blocks(part)]
    pieces = _cut(unit, path, cuts)
    fragments = Chem.GetMolFrags(pieces)
    fragment_of = {index: number for number, fragment in enumerate(fragments) for index in fragment}
    place_of = {fragment_of[index]: place for place, index in enumerate(path)}
    # One text for all pieces takes half the time of a molecule for each; RDKit keeps the atoms in the order written.
    texts = Chem.MolToSmiles(pieces).split(".")
    written = json.loads(pieces.GetProp("_smilesAtomOutputOrder").replace(",]", "]"))
    blocks, start = [], 0
    for text in texts:
        number = fragment_of[written[start]]
        blocks.append((place_of[number], least_writing(text)))
        start += len(fragments[number])
    return [text for _, text in sorted(blocks)]


def _single_bonded_unit(unit: Chem.Mol) -> Chem.Mol:
    """The unit with labelled ends, cut at a single bond of the chain whatever bond it was written with."""
    junction = unit.GetAtomWithIdx(_ends(unit)[0]).GetBonds()[0]
    if junction.GetBondType() == Chem.BondType.SINGLE:
        return unit
    path = _backbone(unit)
    cuts = _backbone_cuts(unit, path)
    if not cuts:
        raise PolymerError("the backbone has no single bond at which the chain could be cut")
    # The part after the first inner bond comes first, joined by the unit's own junction.
    left, right = _split(unit, path, cuts[:1])
    return _zip(right, left)


def _backbone(unit: Chem.Mol) -> tuple[int, ...]:
    """Atoms on the shortest way from the left end to the right one, both included."""
    path: tuple[int, ...] = Chem.GetShortestPath(unit, *_ends(unit))
    return path


def _backbone_cuts(unit: Chem.Mol, path: tuple[int, ...]) -> list[int]:
    """Single bonds between the two ends whose breaking separates them, from left to right."""
    cuts = []
    for begin, end in pairwise(path[1:-1]):
        bond = unit.GetBondBetweenAtoms(begin, end)
        # A bond on the path separates the ends exactly when it is in no ring.
        if bond.GetBondType() == Chem.BondType.SINGLE and not bond.IsInRing():
            cuts.append(bond.GetIdx())
    return cuts


def _split(unit: Chem.Mol, path: tuple[int, ...], cuts: list[int]) -> list[Chem.Mol]:
    """Cut at the given bonds; the parts from left to right, with ends labelled."""
    pieces = _cut(unit, path, cuts)
    place = {index: position for position, index in enumerate(path)}
    mapping: list[tuple[int, ...]] = []
    parts = Chem.GetMolFrags(pieces, asMols=True, sanitizeFrags=False, fragsMolAtomMapping=mapping)
    order = sorted(range(len(parts)), key=lambda k: min(place.get(index, len(place)) for index in mapping[k]))
    return [parts[k] for k in order]


def _cut(unit: Chem.Mol, path: tuple[int, ...], cuts: list[int]) -> Chem.Mol:
    """The pieces in one molecule, their ends labelled; atoms keep their indices."""
    place = {index: position for position, index in enumerate(path)}
    labels = []
    for cut in cuts:
        bond = unit.GetBondWithIdx(cut)
        is_forward = place[bond.GetBeginAtomIdx()] < place[bond.GetEndAtomIdx()]
        # FragmentOnBonds labels the dummy that replaces the begin atom first; begin is what the end's part has lost.
        labels.append((LEFT, RIGHT) if is_forward else (RIGHT, LEFT))
    return Chem.FragmentOnBonds(unit, cuts, dummyLabels=labels)


def _zip(first: Chem.Mol, second: Chem.Mol) -> Chem.Mol:
    """Join first's right end to second's left end."""
    first, second = Chem.Mol(first), Chem.Mol(second)
    for star in (first.GetAtomWithIdx(_ends(first)[1]), second.GetAtomWithIdx(_ends(second)[0])):
        star.SetIsotope(0)
        star.SetAtomMapNum(1)
    joined = Chem.molzip(first, second)
    Chem.SanitizeMol(joined)
    return joined


def _period(word: list[str]) -> int:
    n = len(word)
    return next(p for p in range(1, n + 1) if n % p == 0 and word == word[:p] * (n // p))


def _least_rotation(word: list[str]) -> tuple[str, ...]:
    return min(tuple(word[start:] + word[:start]) for start in range(len(word)))


@lru_cache(maxsize=50_000)
def _turn(block: str) -> str:
    """A block read from the other end."""
    molecule = Chem.Mol(_read_block(block))
    left, right = _ends(molecule)
    molecule.GetAtomWithIdx(left).SetIsotope(RIGHT)
    molecule.GetAtomWithIdx(right).SetIsotope(LEFT)
    return least_writing(Chem.MolToSmiles(molecule))


def _join(blocks: Sequence[str]) -> str:
    if all(STEREO_MARKS.isdisjoint(block) for block in blocks):
        chain, ends = _link([_read_part(block) for block in blocks])
        for end in ends:
            chain.GetAtomWithIdx(end).SetIsotope(0)
        Chem.SanitizeMol(chain, _HYDROGENS_AND_RINGS)
        return str(Chem.MolToSmiles(chain))
    joined = reduce(_zip, map(_read_block, blocks))
    # Unlabelled in the text, not in the molecule, where a centre between two equal ends would lose its mark.
    return str(Chem.MolToSmiles(joined).replace("[1*]", "*").replace("[2*]", "*"))


@lru_cache(maxsize=4096)
def _read_block(block: str) -> Chem.Mol:
    return Chem.MolFromSmiles(block)


@lru_cache(maxsize=4096)
def _read_part(block: str) -> _Part:
    return _Part.of(_read_block(block))


@contextmanager
def _cutting(smiles: str) -> Iterator[None]:
    try:
        yield
    except (Chem.MolSanitizeException, RuntimeError) as error:
        raise PolymerError(f"RDKit cannot cut and join the chain of {smiles}") from error
