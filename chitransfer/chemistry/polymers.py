"""Polymer identity (one key for every way to cut the same chain), and open chains and rings of a unit.

Called by `chemistry.identities`, `chemistry.vectors`, `chemistry.groups` and wherever polymers are told apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import pairwise
from typing import Literal

from rdkit import Chem, rdBase

from chitransfer.chemistry.charges import least_writing
from chitransfer.chemistry.repeat_units import LEFT, RIGHT, STEREO_MARKS, PolymerError, find_ends, labelled_unit

MOST_CUTS = 40
# Linking sanitised units changes nothing else: every atom keeps its bond types, only its neighbours change.
_HYDROGENS_AND_RINGS = Chem.SanitizeFlags.SANITIZE_PROPERTIES | Chem.SanitizeFlags.SANITIZE_SYMMRINGS


@lru_cache(maxsize=200_000)
def polymer_identity(smiles: str) -> str:
    """The canonical repeat unit of a polymer, the same for every cut of the same chain.

    The chain is cut at every single bond that separates its two ends, which gives a cyclic word of blocks. The key is
    built from the least rotation of the word's primitive root, over both reading directions. Double bonds are never
    cut, so E/Z is preserved; blocks are compared including their stereo centres.

    Raises
    ------
    PolymerError
        As for `parse_repeat_unit`, or the backbone has no single bond to cut.

    >>> {polymer_identity(cut) for cut in ("*CCO*", "*OCC*", "*COC*", "*CCOCCO*")}
    {'*CCO*'}
    """
    unit = labelled_unit(smiles)
    with rdBase.BlockLogs(), _cutting(smiles):
        forward = _blocks(_single_bonded_unit(unit))
        root = forward[: _period(forward)]
        backward = [_turn(block) for block in reversed(root)]
        return _join(min(_least_rotation(root), _least_rotation(backward)))


def oligomer(smiles: str, n_units: int, cap: Literal["H", "C", "*"] = "H") -> Chem.Mol:
    """An open chain of `n_units` ≥ 1 units, without stereo, capped with hydrogen, methyl groups or plain ``*``.

    Atoms are ordered unit by unit, as in `parse_repeat_unit`.

    Raises
    ------
    PolymerError
        As for `polymer_identity`.
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
    """A ring of `n_units` units, without stereo; in a large ring each atom sees the same as in the infinite chain.

    Rings must have at least three atoms along the chain. Aromaticity is taken from the open chain, so that a large
    conjugated ring does not count as aromatic.

    Raises
    ------
    PolymerError
        As for `polymer_identity`.
    """
    chain, (left, right) = _chain(smiles, n_units)
    chain.AddBond(_neighbour(chain, right), _neighbour(chain, left), Chem.BondType.SINGLE)
    chain.BeginBatchEdit()
    chain.RemoveAtom(left)
    chain.RemoveAtom(right)
    chain.CommitBatchEdit()
    Chem.SanitizeMol(chain, Chem.SanitizeFlags.SANITIZE_PROPERTIES)
    # A smallest set of rings, not all of their symmetric counterparts: through n para-phenylenes there are 2ⁿ of these,
    # and RDKit 2026.9 finds them all.
    Chem.GetSSSR(chain)
    return chain


def _chain(smiles: str, n_units: int) -> tuple[Chem.RWMol, tuple[int, int]]:
    """A chain of `n_units` units, cut at single bonds, and the indices of its left and right ``*``."""
    return _link([flat_unit(smiles)] * n_units)


@dataclass(frozen=True)
class Part:
    """A molecule (do not modify) with labelled ends, and the indices of its ends and of their neighbours."""

    molecule: Chem.Mol
    left: int
    right: int
    left_neighbour: int
    right_neighbour: int

    @classmethod
    def of(cls, molecule: Chem.Mol) -> Part:
        left, right = find_ends(molecule)
        return cls(molecule, left, right, _neighbour(molecule, left), _neighbour(molecule, right))


@lru_cache(maxsize=16)
def flat_unit(smiles: str) -> Part:
    """The unit without stereo, with ends labelled [1*] and [2*] at single bonds.

    Raises
    ------
    PolymerError
        As for `polymer_identity`.
    """
    unit = Chem.Mol(labelled_unit(smiles))
    Chem.RemoveStereochemistry(unit)
    with rdBase.BlockLogs(), _cutting(smiles):
        return Part.of(_single_bonded_unit(unit))


def _link(parts: Sequence[Part]) -> tuple[Chem.RWMol, tuple[int, int]]:
    """Join parts right end to left end by single bonds, keeping atom order; no stereo. Also returns the outer ends."""
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


def _blocks(unit: Chem.Mol) -> list[str]:
    """A unit's blocks, left to right, as canonical SMILES with ends labelled [1*] (left) and [2*] (right)."""
    path = _backbone(unit)
    cuts = _backbone_cuts(unit, path)
    if not cuts:
        return [least_writing(Chem.MolToSmiles(unit))]
    if len(cuts) > MOST_CUTS:
        # RDKit's time is quadratic in the number of pieces.
        return [block for part in _split(unit, path, cuts[::MOST_CUTS]) for block in _blocks(part)]
    pieces = _cut(unit, path, cuts)
    fragments = Chem.GetMolFrags(pieces)
    fragment_of = {index: number for number, fragment in enumerate(fragments) for index in fragment}
    place_of = {fragment_of[index]: place for place, index in enumerate(path)}
    # Writing all pieces as one SMILES takes half the time of one molecule per piece; RDKit records the output order.
    texts = Chem.MolToSmiles(pieces).split(".")
    written = json.loads(pieces.GetProp("_smilesAtomOutputOrder").replace(",]", "]"))
    blocks, start = [], 0
    for text in texts:
        number = fragment_of[written[start]]
        blocks.append((place_of[number], least_writing(text)))
        start += len(fragments[number])
    return [text for _, text in sorted(blocks)]


def _single_bonded_unit(unit: Chem.Mol) -> Chem.Mol:
    """The unit with labelled ends, moved to a single bond of the chain if it was cut at another kind of bond."""
    junction = unit.GetAtomWithIdx(find_ends(unit)[0]).GetBonds()[0]
    if junction.GetBondType() == Chem.BondType.SINGLE:
        return unit
    path = _backbone(unit)
    cuts = _backbone_cuts(unit, path)
    if not cuts:
        raise PolymerError("the backbone has no single bond at which the chain could be cut")
    # The part after the first inner cut comes first; the unit's original junction bond joins the two.
    left, right = _split(unit, path, cuts[:1])
    return _zip(right, left)


def _backbone(unit: Chem.Mol) -> tuple[int, ...]:
    """Atoms on the shortest path from the left end to the right end, both included."""
    path: tuple[int, ...] = Chem.GetShortestPath(unit, *find_ends(unit))
    return path


def _backbone_cuts(unit: Chem.Mol, path: tuple[int, ...]) -> list[int]:
    """Single bonds that separate the two ends when broken, from left to right."""
    cuts = []
    for begin, end in pairwise(path[1:-1]):
        bond = unit.GetBondBetweenAtoms(begin, end)
        # A bond on the path separates the ends exactly when it is not in a ring.
        if bond.GetBondType() == Chem.BondType.SINGLE and not bond.IsInRing():
            cuts.append(bond.GetIdx())
    return cuts


def _split(unit: Chem.Mol, path: tuple[int, ...], cuts: list[int]) -> list[Chem.Mol]:
    """Cut at the given bonds and return the parts from left to right, with labelled ends."""
    pieces = _cut(unit, path, cuts)
    place = {index: position for position, index in enumerate(path)}
    mapping: list[tuple[int, ...]] = []
    parts = Chem.GetMolFrags(pieces, asMols=True, sanitizeFrags=False, fragsMolAtomMapping=mapping)
    order = sorted(range(len(parts)), key=lambda k: min(place.get(index, len(place)) for index in mapping[k]))
    return [parts[k] for k in order]


def _cut(unit: Chem.Mol, path: tuple[int, ...], cuts: list[int]) -> Chem.Mol:
    """The pieces as one molecule with labelled ends; atoms keep their indices."""
    place = {index: position for position, index in enumerate(path)}
    labels = []
    for cut in cuts:
        bond = unit.GetBondWithIdx(cut)
        is_forward = place[bond.GetBeginAtomIdx()] < place[bond.GetEndAtomIdx()]
        # FragmentOnBonds expects first the label of the dummy that replaces the begin atom, which sits on the part of
        # the end atom.
        labels.append((LEFT, RIGHT) if is_forward else (RIGHT, LEFT))
    return Chem.FragmentOnBonds(unit, cuts, dummyLabels=labels)


def _zip(first: Chem.Mol, second: Chem.Mol) -> Chem.Mol:
    """Join first's right end to second's left end."""
    first, second = Chem.Mol(first), Chem.Mol(second)
    for star in (first.GetAtomWithIdx(find_ends(first)[1]), second.GetAtomWithIdx(find_ends(second)[0])):
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
    """The block read from its other end."""
    molecule = Chem.Mol(_read_block(block))
    left, right = find_ends(molecule)
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
    # Labels are removed from the text: in the molecule, a stereo centre between two equal ends would lose its mark.
    return str(Chem.MolToSmiles(joined).replace("[1*]", "*").replace("[2*]", "*"))


@lru_cache(maxsize=4096)
def _read_block(block: str) -> Chem.Mol:
    return Chem.MolFromSmiles(block)


@lru_cache(maxsize=4096)
def _read_part(block: str) -> Part:
    return Part.of(_read_block(block))


@contextmanager
def _cutting(smiles: str) -> Iterator[None]:
    try:
        yield
    except (Chem.MolSanitizeException, RuntimeError) as error:
        raise PolymerError(f"RDKit cannot cut and join the chain of {smiles}") from error
