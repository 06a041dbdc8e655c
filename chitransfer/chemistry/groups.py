"""UNIFAC groups of repeat units and solvents: the table of subgroups, and the exact cover of a structure by them.

Called by `chemistry.unifac` (which turns counts into χ) and `data.build`; docs/physics.md explains the rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from rdkit import Chem, rdBase

from chitransfer.chemistry.charges import read_molecule
from chitransfer.chemistry.cover import Candidate, CoverError, cheapest_covers
from chitransfer.chemistry.polymers import oligomer, polymer_identity
from chitransfer.chemistry.rdkit_drawing import import_ugropy
from chitransfer.chemistry.repeat_units import PolymerError
from chitransfer.chemistry.vetoes import veto_patterns

# A subgroup's SMARTS never reaches more than this many bonds beyond the atoms it covers.
PATTERN_REACH = 4
# Number of backbone atoms that the longest subgroup spans.
LONGEST_MATCH = 6
ELEMENTS = frozenset({"C", "N", "O", "S", "F", "Cl", "Br", "I", "Si", "H"})
# Used in sets of atomic numbers to mean "some atom is aromatic".
AROMATIC = -1
_DOUBLE_BOND_OUTWARD, _HETEROATOMS = Chem.MolFromSmarts("a=*"), Chem.MolFromSmarts("[#7,#8]-[!#6]")


class FragmentationError(ValueError):
    """A structure cannot be written in UNIFAC groups; the message is the reason shown to the user."""


@dataclass(frozen=True)
class Subgroup:
    """One UNIFAC subgroup.

    Attributes
    ----------
    name, main_group
        Name and main-group number in the original UNIFAC list; interactions are between main groups.
    R, Q
        Van der Waals volume and surface area, dimensionless (relative to Bondi's standard segment).
    derived
        False for a published subgroup, True for one assembled here from published ones.
    """

    name: str
    main_group: int
    R: float
    Q: float
    derived: bool


@dataclass(frozen=True)
class Groups:
    """Counts of subgroups in one repeat unit or one molecule: pairs (index into `subgroups()`, count)."""

    counts: tuple[tuple[int, int], ...]

    @property
    def derived(self) -> bool:
        """Whether any of the subgroups is a derived one."""
        return any(subgroups()[index].derived for index, _ in self.counts)

    def by_name(self) -> dict[str, int]:
        """Counts by subgroup name, for reading and printing."""
        return {subgroups()[index].name: count for index, count in self.counts}


# Subgroups missing from the published list, each assigned to a published main group. R and Q are sums of published
# values, since Bondi's increments are additive; for example, the amide group of N-isopropylacrylamide is AMHCH2 with
# CH2 replaced by CH. NIST's revisions of UNIFAC list several of them with the same R and Q (tests compare).
DERIVED_SUBGROUPS: tuple[tuple[str, str, str, str], ...] = (
    # name, subgroup whose main group it joins, R and Q, SMARTS
    ("CHCO", "CH2CO", "CH2CO - CH2 + CH", "[CX4H][CX3H0]=O"),
    ("CCO", "CH2CO", "CH2CO - CH2 + C", "[CX4H0][CX3H0]=O"),
    ("CO", "CH2CO", "CH2CO - CH2", "[CX3H0]=O"),
    ("C-O", "CH2O", "CH2O - CH2 + C", "[CX4H0][OX2H0]"),
    ("O", "CH2O", "CH2O - CH2", "[OX2H0,oX2]"),
    ("CNH2", "CH2NH2", "CH2NH2 - CH2 + C", "[CX4H0][NX3H2]"),
    ("NH2", "CH2NH2", "CH2NH2 - CH2", "[NX3H2]"),
    ("CNH", "CH2NH", "CH2NH - CH2 + C", "[CX4H0][NX3H]"),
    ("NH", "CH2NH", "CH2NH - CH2", "[NX3H]"),
    ("CHN", "CH2N", "CH2N - CH2 + CH", "[CX4H][NX3H0]"),
    ("CN", "CH2N", "CH2N - CH2 + C", "[CX4H0][NX3H0]"),
    ("N", "CH2N", "CH2N - CH2", "[NX3H0]"),
    ("ACNH", "ACNH2", "AC + CH2NH - CH2", "[cH0][NX3H]"),
    ("ACN", "ACNH2", "AC + CH2N - CH2", "[cH0][NX3H0]"),
    ("anH", "ACNH2", "CH2NH - CH2", "[nX3H]"),
    ("an", "ACNH2", "CH2N - CH2", "[nX3H0]"),
    ("AC2H2N", "C5H5N", "C5H5N - 3 ACH", "[cH][nX2][cH]"),
    ("AC2HN", "C5H5N", "C5H5N - 4 ACH + AC", "[cH][nX2][cH0]"),
    ("AC2N", "C5H5N", "C5H5N - 5 ACH + 2 AC", "[cH0][nX2][cH0]"),
    ("pyN", "C5H5N", "C5H5N - 5 ACH", "[nX2]"),
    ("CHCN", "CH2CN", "CH2CN - CH2 + CH", "[CX4H]C#N"),
    ("CCN", "CH2CN", "CH2CN - CH2 + C", "[CX4H0]C#N"),
    ("C#N", "CH2CN", "CH2CN - CH2", "[CX2H0]#[NX1]"),
    ("NO2", "CHNO2", "CHNO2 - CH", "[$([NX3]([!O])(=O)=O),$([NX3+]([!O])(=O)[O-])](~[OX1])~[OX1]"),
    ("CHSH", "CH2SH", "CH2SH - CH2 + CH", "[CX4H][SX2H]"),
    ("CSH", "CH2SH", "CH2SH - CH2 + C", "[CX4H0][SX2H]"),
    ("SH", "CH2SH", "CH2SH - CH2", "[SX2H]"),
    ("SO", "DMSO", "DMSO - 2 CH3", "[$([SX3]=O),$([SX3+][O-])]~[OX1]"),
    ("CH3CL", "CH2CL", "CH2CL - CH2 + CH3", "[CX4H3]Cl"),
    ("CH2F", "CF2", "CF - C + CH2", "[CX4H2]F"),
    ("CHF", "CF2", "CF - C + CH", "[CX4H]F"),
    ("CHF2", "CF2", "CF2 - C + CH", "[CX4H](F)F"),
    ("F", "CF2", "CF - C", "[FX1]"),
    ("ANHYDRIDE", "COO", "COO + CH2CO - CH2", "[CX3H0](=O)[OX2][CX3H0]=O"),
    ("C-S", "CH2S", "CH2S - CH2 + C", "[CX4H0][SX2H0]"),
    ("S", "CH2S", "CH2S - CH2", "[SX2H0,sX2]"),
    ("CH2SU", "(CH2)2SU", "(CH2)2SU - CH2", "[CX4H2][SX4](=O)=O"),
    ("CHSU", "(CH2)2SU", "(CH2)2SU - 2 CH2 + CH", "[CX4H][SX4](=O)=O"),
    ("SU", "(CH2)2SU", "(CH2)2SU - 2 CH2", "[SX4](=O)=O"),
    ("HCONH2", "HCON(CH2)2", "HCON(CH2)2 - CH2 + CH2NH2 - CH2N - CH2", "[CX3H](=O)[NX3H2]"),
    ("HCONH", "HCON(CH2)2", "HCON(CH2)2 - 2 CH2 + CH2NH - CH2N", "[CX3H](=O)[NX3H]"),
    ("HCON", "HCON(CH2)2", "HCON(CH2)2 - 2 CH2", "[CX3H](=O)[#7X3H0]"),
    ("AMHCH", "AMHCH2", "AMHCH2 - CH2 + CH", "[CX3H0](=O)[NX3H][CX4H]"),
    ("AMHC", "AMHCH2", "AMHCH2 - CH2 + C", "[CX3H0](=O)[NX3H][CX4H0]"),
    ("AMH", "AMHCH2", "AMHCH2 - CH2", "[CX3H0](=O)[NX3H]"),
    ("AMCH3CH", "AMCH3CH2", "AMCH3CH2 - CH2 + CH", "[CX3H0](=O)[NX3H0]([CX4H3])[CX4H]"),
    ("AMCH2CH", "AM(CH2)2", "AM(CH2)2 - CH2 + CH", "[CX3H0](=O)[NX3H0]([CX4H2])[CX4H]"),
    ("AM(CH)2", "AM(CH2)2", "AM(CH2)2 - 2 CH2 + 2 CH", "[CX3H0](=O)[NX3H0]([CX4H])[CX4H]"),
    ("AMCH3", "AM(CH2)2", "AM(CH2)2 - 2 CH2 + CH3", "[CX3H0](=O)[NX3H0][CX4H3]"),
    ("AMCH2", "AM(CH2)2", "AM(CH2)2 - CH2", "[CX3H0](=O)[NX3H0][CX4H2]"),
    ("AMCH", "AM(CH2)2", "AM(CH2)2 - 2 CH2 + CH", "[CX3H0](=O)[NX3H0][CX4H]"),
    ("AM", "AM(CH2)2", "AM(CH2)2 - 2 CH2", "[CX3H0](=O)[#7X3H0]"),
    ("IMIDE", "AM(CH2)2", "AM(CH2)2 - 2 CH2 + CH2CO - CH2", "[CX3H0](=O)[NX3H0][CX3H0]=O"),
    ("IMIDEH", "AMHCH2", "AMHCH2 - CH2 + CH2CO - CH2", "[CX3H0](=O)[NX3H][CX3H0]=O"),
    ("UREAH3", "AMH2", "AMH2 + CH2NH - CH2", "[NX3H2][CX3H0](=O)[NX3H]"),
    ("UREAH2", "AMHCH2", "AMHCH2 - CH2 + CH2NH - CH2", "[NX3H][CX3H0](=O)[NX3H]"),
    ("UREAH", "AMHCH2", "AMHCH2 - CH2 + CH2N - CH2", "[NX3H][CX3H0](=O)[#7X3H0]"),
    ("UREA", "AM(CH2)2", "AM(CH2)2 - 3 CH2 + CH2N", "[#7X3H0][CX3H0](=O)[#7X3H0]"),
)

# Names spelled differently in ugropy and thermo; thermo calls both the aldehyde and the CH-O ether group CHO.
THERMO_NAMES = {"HCO": ("CHO", 10), "CHO": ("CHO", 13)}


@lru_cache(maxsize=1)
def subgroups() -> tuple[Subgroup, ...]:
    """All subgroups: those of original UNIFAC (R, Q and main group from `thermo`), then the derived ones."""
    from thermo.unifac import UFSG

    published = import_ugropy().unifac

    by_name: dict[str, list[Any]] = {}
    for entry in UFSG.values():
        by_name.setdefault(entry.group.upper().replace(" ", ""), []).append(entry)
    found: dict[str, Subgroup] = {}
    for name in published.subgroups.index:
        thermo_name, main = THERMO_NAMES.get(name, (name.upper().replace(" ", ""), None))
        entry = next(item for item in by_name[thermo_name] if main in (None, item.main_group_id))
        found[name] = Subgroup(name, int(entry.main_group_id), float(entry.R), float(entry.Q), derived=False)
    for name, joins, formula, _smarts in DERIVED_SUBGROUPS:
        R, Q = _sum_of(formula, found)
        found[name] = Subgroup(name, found[joins].main_group, R, Q, derived=True)
    return tuple(found.values())


@lru_cache(maxsize=65536)
def repeat_unit_groups(smiles: str) -> Groups:
    """Subgroups of one repeat unit inside an infinite chain.

    Subgroup matches, taken modulo the translation of the chain, cover each of the unit's atoms exactly once. These are
    the groups that an oligomer gains when it grows by one unit, without the arbitrariness of its ends.

    Raises
    ------
    FragmentationError
        With the reason: not a repeat unit, an ion, an element or atom environment without a UNIFAC group, or too many
        ways to choose the groups.
    """
    try:
        identity = polymer_identity(smiles)
    except PolymerError as error:
        raise FragmentationError(str(error)) from error
    return groups_of_identity(identity)


@lru_cache(maxsize=4096)
def molecule_groups(smiles: str) -> Groups:
    """Subgroups of a whole molecule (a solvent); raises `FragmentationError` as `repeat_unit_groups` does."""
    molecule = read_molecule(smiles)
    if molecule is None:
        raise FragmentationError(f"{smiles!r} is not a readable SMILES")
    # An isotope-labelled solvent has the same groups as the unlabelled one.
    for atom in molecule.GetAtoms():
        atom.SetIsotope(0)
    molecule = _without_carbonyl_aromaticity(Chem.RemoveHs(molecule))
    atoms = range(molecule.GetNumAtoms())
    _refuse_foreign_atoms(molecule, atoms)
    candidates = [(index, tuple(match)) for index, match in _matches(molecule)]
    return _best_groups(molecule, list(atoms), {}, candidates)


def count_matrix(groups: Sequence[Groups]) -> np.ndarray:
    """Counts as a matrix (n, len(subgroups())), float64."""
    matrix = np.zeros((len(groups), len(subgroups())))
    for row, found in enumerate(groups):
        for index, count in found.counts:
            matrix[row, index] = count
    return matrix


@lru_cache(maxsize=65536)
def groups_of_identity(identity: str) -> Groups:
    """`repeat_unit_groups` for a SMILES already returned by `polymer_identity`."""
    with rdBase.BlockLogs():
        unit = Chem.MolFromSmiles(identity)
    stars = [atom.GetIdx() for atom in unit.GetAtoms() if atom.GetAtomicNum() == 0]
    inner = [atom.GetIdx() for atom in unit.GetAtoms() if atom.GetAtomicNum() != 0]
    _refuse_foreign_atoms(unit, inner)
    chain, position, shown = _oligomer_for_matching(identity, unit, stars[0], stars[1])
    chain = _without_carbonyl_aromaticity(chain)
    candidates = []
    for index, match in _matches(chain):
        covered = tuple(position[atom] for atom in match)
        # The infinite chain has no ends, so matches near the oligomer's ends are skipped; each has a translate further
        # inside.
        if all(shown[atom] for atom in match) and len(set(covered)) == len(covered):
            candidates.append((index, covered))
    names = {atom: index for index, atom in enumerate(position) if shown[index]}
    return _best_groups(chain, inner, names, candidates)


def _oligomer_for_matching(
    identity: str, unit: Chem.Mol, head: int, tail: int
) -> tuple[Chem.Mol, list[int], list[bool]]:
    """An oligomer that is long enough, each atom's index in the unit, and whether it is out of reach of both ends."""
    size = unit.GetNumAtoms()
    length = len(Chem.GetShortestPath(unit, head, tail)) - 2
    copies = 1 + -(-(2 * PATTERN_REACH + LONGEST_MATCH) // length)
    inner_ends = {head + copy * size for copy in range(1, copies)} | {tail + copy * size for copy in range(copies - 1)}
    position = [index % size for index in range(copies * size) if index not in inner_ends]
    molecule = oligomer(identity, copies, cap="*")
    with rdBase.BlockLogs():
        Chem.SanitizeMol(molecule)
    near = {index for index, atom in enumerate(position) if atom in (head, tail)}
    for _ in range(PATTERN_REACH):
        near |= {beside.GetIdx() for index in near for beside in molecule.GetAtomWithIdx(index).GetNeighbors()}
    return molecule, position, [index not in near for index in range(len(position))]


def _without_carbonyl_aromaticity(molecule: Chem.Mol) -> Chem.Mol:
    """The molecule with aromaticity removed from every ring that has an exocyclic double bond.

    RDKit treats pyridone, uracil, coumarin and the imide rings of a pyromellitic diimide as aromatic, but they contain
    an amide, an ester or an imide. A benzene ring fused to one stays aromatic.
    """
    outward = {atom for match in molecule.GetSubstructMatches(_DOUBLE_BOND_OUTWARD) for atom in match}
    if not outward:
        return molecule
    aromatic = {bond.GetIdx() for bond in molecule.GetBonds() if bond.GetIsAromatic()}
    rings = molecule.GetRingInfo()
    cleared, kept = set(), set()
    for atoms, bonds in zip(rings.AtomRings(), rings.BondRings(), strict=True):
        if not outward.isdisjoint(atoms):
            cleared.update(bonds)
        elif aromatic.issuperset(bonds):
            kept.update(bonds)
    plain = Chem.Mol(molecule)
    Chem.Kekulize(plain)
    for index in aromatic:
        bond = plain.GetBondWithIdx(index)
        if index in cleared - kept:
            bond.SetIsAromatic(False)
        else:
            bond.SetBondType(Chem.BondType.AROMATIC)
    for atom in plain.GetAtoms():
        atom.SetIsAromatic(any(bond.GetIsAromatic() for bond in atom.GetBonds()))
    return plain


def _matches(molecule: Chem.Mol) -> list[tuple[int, tuple[int, ...]]]:
    present = {atom.GetAtomicNum() for atom in molecule.GetAtoms()}
    if any(atom.GetIsAromatic() for atom in molecule.GetAtoms()):
        present.add(AROMATIC)
    banned: dict[int, set[int]] = {}
    for pattern, mains in veto_patterns():
        for match in molecule.GetSubstructMatches(pattern):
            for main in mains:
                banned.setdefault(main, set()).add(match[0])
    found = []
    for index, pattern, needed in _patterns():
        if needed <= present:
            barred = banned.get(subgroups()[index].main_group, set())
            for match in molecule.GetSubstructMatches(pattern, maxMatches=100_000):
                if barred.isdisjoint(match):
                    found.append((index, match))
    return found


def _best_groups(
    molecule: Chem.Mol, universe: list[int], names: dict[int, int], matches: list[tuple[int, tuple[int, ...]]]
) -> Groups:
    """The cover with the fewest derived subgroups, then fewest subgroups, then largest polar surface, then by name."""
    table = subgroups()
    candidates = {Candidate(index, frozenset(covered), (int(table[index].derived), 1)) for index, covered in matches}
    try:
        solutions = cheapest_covers(universe, candidates)
    except CoverError as error:
        raise FragmentationError(f"this structure has too many ways to be written in UNIFAC groups: {error}") from error
    if not solutions:
        covered_atoms = {atom for candidate in candidates for atom in candidate.atoms}
        bare = [names.get(atom, atom) for atom in universe if atom not in covered_atoms]
        raise FragmentationError(_why_uncovered(molecule, bare))
    counted = {tuple(sorted(Counter(solution).items())) for solution in solutions}

    def preference(counts: tuple[tuple[int, int], ...]) -> tuple[float, list[tuple[str, int]]]:
        polar = sum(table[index].Q * count for index, count in counts if table[index].main_group > 4)
        return -round(polar, 6), sorted((table[index].name, count) for index, count in counts)

    return Groups(min(counted, key=preference))


def _refuse_foreign_atoms(molecule: Chem.Mol, atoms: Iterable[int]) -> None:
    for index in atoms:
        atom = molecule.GetAtomWithIdx(index)
        symbol, charge = atom.GetSymbol(), atom.GetFormalCharge()
        if symbol not in ELEMENTS:
            raise FragmentationError(f"UNIFAC has no group with the element {symbol}")
        # The charges of a nitro group cancel; those of an ion do not.
        if charge and all(neighbour.GetFormalCharge() != -charge for neighbour in atom.GetNeighbors()):
            raise FragmentationError(f"UNIFAC has no group for the ion {symbol}{charge:+d}")


def _why_uncovered(molecule: Chem.Mol, atoms: list[int]) -> str:
    if not atoms:
        return "no set of UNIFAC groups covers every atom exactly once"
    # A bond between heteroatoms (N–N, O–O) is a more likely cause than an adjacent carbonyl.
    paired = {atom for match in molecule.GetSubstructMatches(_HETEROATOMS) for atom in match}
    bare = molecule.GetAtomWithIdx(next((atom for atom in atoms if atom in paired), atoms[0]))
    around = {bare.GetIdx(), *(neighbour.GetIdx() for neighbour in bare.GetNeighbors())}
    # A double-bonded partner one step away (C=S next to the atom) is usually the cause.
    partners = {
        bond.GetOtherAtomIdx(index)
        for index in around
        for bond in molecule.GetAtomWithIdx(index).GetBonds()
        if bond.GetBondType() in (Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)
    }
    surroundings = Chem.MolFragmentToSmiles(molecule, sorted(around | partners), canonical=True)
    return f"no UNIFAC group for the {bare.GetSymbol()} atom in {surroundings}"


def _sum_of(formula: str, known: dict[str, Subgroup]) -> tuple[float, float]:
    R = Q = 0.0
    sign, factor = 1, 1
    for word in formula.split():
        if word in "+-":
            sign = 1 if word == "+" else -1
        elif word.isdigit():
            factor = int(word)
        else:
            R += sign * factor * known[word].R
            Q += sign * factor * known[word].Q
            sign, factor = 1, 1
    return R, Q


@lru_cache(maxsize=1)
def _patterns() -> tuple[tuple[int, Chem.Mol, frozenset[int]], ...]:
    """For each subgroup: its index, its SMARTS, and the elements (or `AROMATIC`) it needs in order to match."""
    published = import_ugropy().unifac
    smarts = dict(published.subgroups["smarts"]) | {name: text for name, _, _, text in DERIVED_SUBGROUPS}
    patterns = []
    for index, subgroup in enumerate(subgroups()):
        pattern = Chem.MolFromSmarts(smarts[subgroup.name])
        certain = [atom for atom in pattern.GetAtoms() if "," not in atom.GetSmarts() and "$" not in atom.GetSmarts()]
        needed = {atom.GetAtomicNum() for atom in certain if atom.GetAtomicNum() > 1}
        if any(atom.GetIsAromatic() for atom in certain):
            needed.add(AROMATIC)
        patterns.append((index, pattern, frozenset(needed)))
    return tuple(patterns)
