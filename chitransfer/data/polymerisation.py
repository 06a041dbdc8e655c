"""Repeat units from monomers of unknown family: one rule per way of polymerising, which answers only if unambiguous.

Called by `data.public_tables` for entries that name a monomer; `data.structure_names` reads entries that name the unit.
If a monomer list gives the family, `chemistry.enumerate` applies SMiPoly's rules instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rdkit import Chem, rdBase

from chitransfer.chemistry.polymers import polymer_identity


@dataclass(frozen=True)
class RepeatUnit:
    """A repeat unit (canonical SMILES with two ``*``) and the name of the rule that made it."""

    smiles: str
    rule: str


_ACID = "[CX3](=O)[OX2H1]"
_DONOR = "[$([OX2H1]),$([SX2H1]),$([NX3;H2,H1;!r3]);!$(*-[C,S,N]=[O,S,N])]"
# The C=C next to an aromatic ring, C=O, C=N, C#N or another C=C, or in a vinyl ether, ester or amide.
_ACTIVATED = "[$(C=C-[a,$(C=[O,N,C]),$(C#N)]),$([CH2]=[CH]-[O,#7])]"
# Rings that can open, including some that no rule below opens.
_RING_KINDS = (
    ("a 2-oxazoline", "[#6;R]1=[#7;R][#6;R][#6;R][#8;R]1"),
    ("a lactone or lactam", "[O,N;R;!$(*(C=O)C=O)]-[CX3;R]=[OX1]"),
    ("a three-membered ring", "[OX2,NX3,SX2]1[CX4][CX4]1"),
    ("a cyclosiloxane", "[Si;R][O;R]"),
)
_OPEN_KINDS = (
    ("an isocyanate", "[NX2]=[CX2]=[OX1]"),
    ("a carbodiimide", "[NX2]=[CX2]=[NX2]"),
    ("an acetylene", "[CX2H1]#[CX2]"),
    ("an aldehyde", "[OX1]=[CX3;H1,H2;!$(C(=O)[#7,#8,#16])]"),
)


def vinyl_repeat_unit(monomer: str) -> str | None:
    """Turn ``CH2=CXY`` into ``*CC(*)(X)Y`` if that is the monomer's only aliphatic C=C; ``None`` otherwise.

    This is the strict rule of the widely used vinyl subset of PolySol. It wrongly accepts a cumulated CH2=C=X too;
    `polymerise` is stricter.
    """
    molecule = _parse(monomer)
    if molecule is None or len(_matches(molecule, "C=C")) != 1:
        return None
    found = _matches(molecule, "[CH2]=[C]")
    return _open_double_bond(molecule, found[0][0], found[0][1]) if len(found) == 1 else None


def polymerise(monomer: str) -> RepeatUnit | str:
    """The repeat unit of a monomer whose groups can polymerise in only one way, else the reason why there is none.

    Rules, in order of preference: amino and hydroxy acids (polycondensation); 2-oxazolines, lactams, lactones and
    cyclic diesters, epoxides, cyclic ethers and acetals (ring opening); isocyanates, carbodiimides, aldehydes and
    acetone (addition over C=N and C=O); terminal acetylenes; acyclic and cyclic 1,3-dienes (1,4-addition); vinyl and
    vinylidene monomers, fluorinated ethenes, 1,2-disubstituted and cyclic ethenes that cannot open their ring
    (1,2-addition); anilines (head to tail, para). These are the polymerisations that occur in PolySol.

    A monomer with two kinds of groups gets no answer, with two exceptions. A C=C next to an aromatic ring, C=O, C=N,
    C≡N or C=C, or in a vinyl ether, ester or amide, is assumed to polymerise while rings stay closed (glycidyl
    methacrylate, N-vinylpyrrolidone). Any other C=C is assumed to survive while another group polymerises (allyl
    glycidyl ether, β-vinyl-β-propiolactone). An amino acid with a hydroxyl group gives the amide.

    Parameters
    ----------
    monomer
        SMILES of one molecule.

    Returns
    -------
    RepeatUnit or str
        The unit with its rule, or a sentence that says why the monomer was left out.

    Examples
    --------
    >>> polymerise("O=C1CCCCCN1").smiles
    '*NCCCCCC(*)=O'
    """
    molecule = _parse(monomer)
    if molecule is None:
        return "RDKit cannot read the monomer"
    if any(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms()) or "[C]" in monomer:
        return "the structure has open valences, so it is no monomer"
    if _matches(molecule, "[#6]=[#6]=[#6,#7,#8,#15,#16]"):
        return "cumulated double bonds polymerise in more than one way"
    rivals, is_vinyl = _rivals(molecule)
    if len(rivals) > 1:
        return f"a monomer with {' and '.join(rivals)} can polymerise in more than one way"
    for name, rule in _RULES:
        if name in (_RINGS if is_vinyl else _OVER_DOUBLE_BOND if rivals else ()):
            continue
        units = rule(molecule)
        if units is None:
            continue
        if isinstance(units, str):
            return units
        distinct = {polymer_identity(unit) for unit in units}
        if len(distinct) == 1:
            return RepeatUnit(units[0], name)
        if len(distinct) > 1:
            return f"the {name} rule gives {len(distinct)} different repeat units"
    return "no polymerisation rule fits the monomer"


def _parse(smiles: str) -> Chem.Mol | None:
    with rdBase.BlockLogs():
        return Chem.MolFromSmiles(smiles)


def _matches(molecule: Chem.Mol, smarts: str) -> list[tuple[int, ...]]:
    return [tuple(match) for match in molecule.GetSubstructMatches(Chem.MolFromSmarts(smarts))]


def _rivals(molecule: Chem.Mol) -> tuple[list[str], bool]:
    """Names of the kinds of groups that would polymerise, and whether there is a C=C that leaves rings closed."""
    is_vinyl = bool(_matches(molecule, _ACTIVATED))
    kinds = [name for name, pattern in (*_RING_KINDS, *_OPEN_KINDS) if _matches(molecule, pattern)]
    if is_vinyl:
        kinds = ["a C=C", *(name for name, _ in _OPEN_KINDS if name in kinds)]
    acids, donors = _matches(molecule, _ACID), _matches(molecule, _DONOR)
    takes_donors = any(name not in ("a C=C", "an acetylene") for name in kinds)
    if (acids and donors) or ((acids or donors) and takes_donors):
        kinds.append("a hydroxyl, amine or acid group")
    return kinds, is_vinyl


def _finish(molecule: Chem.RWMol, ends: tuple[int, ...]) -> str | None:
    """Add ``*`` to each end and write the canonical SMILES; ``None`` if an end has no free valence."""
    for end in ends:
        molecule.AddBond(end, molecule.AddAtom(Chem.Atom(0)), Chem.BondType.SINGLE)
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(molecule)
    except (Chem.AtomValenceException, Chem.KekulizeException, Chem.AtomKekulizeException):
        return None
    Chem.AssignStereochemistry(molecule, cleanIt=True, force=True)
    return str(Chem.MolToSmiles(Chem.MolFromSmiles(Chem.MolToSmiles(molecule))))


def _open_double_bond(molecule: Chem.Mol, first: int, second: int) -> str | None:
    """A=B to *A–B*."""
    opened = Chem.RWMol(molecule)
    opened.GetBondBetweenAtoms(first, second).SetBondType(Chem.BondType.SINGLE)
    opened.GetBondBetweenAtoms(first, second).SetStereo(Chem.BondStereo.STEREONONE)
    return _finish(opened, (first, second))


def _open_ring(molecule: Chem.Mol, first: int, second: int) -> str | None:
    """Cut the ring bond A–B; both sides become chain ends."""
    opened = Chem.RWMol(molecule)
    opened.RemoveBond(first, second)
    return _finish(opened, (first, second))


def _kept(units: list[str | None]) -> list[str] | None:
    return [unit for unit in units if unit is not None] or None


Rule = Callable[[Chem.Mol], "list[str] | str | None"]


def _condense(nucleophile: str, name: str) -> Rule:
    """Polycondensation of A-B monomers: split off water between the nucleophile and the acid."""

    def rule(molecule: Chem.Mol) -> list[str] | str | None:
        acids, donors = _matches(molecule, _ACID), _matches(molecule, nucleophile)
        if not acids or not donors:
            return None
        if len(acids) > 1 or len(donors) > 1:
            return f"{len(acids)} acid and {len(donors)} {name} groups can condense in more than one way"
        condensed = Chem.RWMol(molecule)
        carbon, hydroxyl, donor = acids[0][0], acids[0][2], donors[0][0]
        condensed.AddBond(carbon, condensed.AddAtom(Chem.Atom(0)), Chem.BondType.SINGLE)
        condensed.AddBond(donor, condensed.AddAtom(Chem.Atom(0)), Chem.BondType.SINGLE)
        condensed.RemoveAtom(hydroxyl)
        return _kept([_finish(condensed, ())])

    return rule


def _ring_opening(bond: str, *, at_most: int = 1) -> Rule:
    """Cut the matched ring bond (the pattern's first two atoms) of a monomer with one such ring.

    The ring may contain up to `at_most` such groups (a cyclic diester has two); each cut must give the same polymer.
    """

    def rule(molecule: Chem.Mol) -> list[str] | str | None:
        found = _matches(molecule, bond)
        if not found:
            return None
        rings = [set(atoms) for atoms in molecule.GetRingInfo().AtomRings()]
        homes = [index for index, atoms in enumerate(rings) if {found[0][0], found[0][1]} <= atoms]
        if len(homes) != 1 or len(found) > at_most or not all(set(match[:2]) <= rings[homes[0]] for match in found):
            return None
        return _kept([_open_ring(molecule, match[0], match[1]) for match in found])

    return rule


def _cyclic_ether(molecule: Chem.Mol) -> list[str] | str | None:
    rings = molecule.GetRingInfo().AtomRings()
    if len(rings) != 1 or any(bond.GetBondType() != Chem.BondType.SINGLE for bond in molecule.GetBonds()):
        return None
    ring = rings[0]
    symbols = [molecule.GetAtomWithIdx(index).GetSymbol() for index in ring]
    oxygens = [index for index in ring if molecule.GetAtomWithIdx(index).GetSymbol() == "O"]
    if set(symbols) != {"C", "O"}:
        return None
    if len(ring) == 6 and len(oxygens) == 1:
        return "a six-membered cyclic ether does not polymerise"
    bonds = [
        (oxygen, neighbour.GetIdx())
        for oxygen in oxygens
        for neighbour in molecule.GetAtomWithIdx(oxygen).GetNeighbors()
    ]
    if len(oxygens) > 1:
        # An acetal opens between an oxygen and the carbon that carries both oxygens.
        bonds = [(oxygen, carbon) for oxygen, carbon in bonds if _n_oxygens(molecule, carbon) == 2]
    return _kept([_open_ring(molecule, first, second) for first, second in bonds])


def _n_oxygens(molecule: Chem.Mol, atom: int) -> int:
    return sum(neighbour.GetSymbol() == "O" for neighbour in molecule.GetAtomWithIdx(atom).GetNeighbors())


def _epoxide(molecule: Chem.Mol) -> list[str] | str | None:
    """Either bond to the oxygen gives the same chain, read from the other end."""
    found = _matches(molecule, "[OX2]1[CX4][CX4]1")
    if len(found) != 1:
        return None
    oxygen, first, second = found[0]
    return _kept([_open_ring(molecule, oxygen, first), _open_ring(molecule, oxygen, second)])


def _oxazoline(molecule: Chem.Mol) -> list[str] | str | None:
    found = _matches(molecule, "[#6;R]1=[#7;R][#6;R][#6;R][#8;R]1")
    if len(found) != 1:
        return None
    carbon, nitrogen, _, far, oxygen = found[0]
    opened = Chem.RWMol(molecule)
    opened.RemoveBond(oxygen, far)
    opened.GetBondBetweenAtoms(carbon, nitrogen).SetBondType(Chem.BondType.SINGLE)
    opened.GetBondBetweenAtoms(carbon, oxygen).SetBondType(Chem.BondType.DOUBLE)
    return _kept([_finish(opened, (nitrogen, far))])


def _addition(pattern: str, *, alone: str = "") -> Rule:
    """Open the double bond between the pattern's first two atoms; `alone` must not match more than once."""

    def rule(molecule: Chem.Mol) -> list[str] | str | None:
        found = _matches(molecule, pattern)
        if not found:
            return None
        if len(found) > 1:
            return f"{len(found)} groups can polymerise"
        if alone and len(_matches(molecule, alone)) > 1:
            return f"{len(_matches(molecule, alone))} groups can polymerise"
        return _kept([_open_double_bond(molecule, found[0][0], found[0][1])])

    return rule


def _carbodiimide(molecule: Chem.Mol) -> list[str] | str | None:
    found = _matches(molecule, "[NX2]=[CX2]=[NX2]")
    if len(found) != 1:
        return None
    first, carbon, second = found[0]
    return _kept([_open_double_bond(molecule, first, carbon), _open_double_bond(molecule, second, carbon)])


def _acetylene(molecule: Chem.Mol) -> list[str] | str | None:
    found = _matches(molecule, "[CX2H1]#[CX2]")
    if not found:
        return None
    if len({frozenset(match) for match in found}) > 1 or _matches(molecule, "[CH2]=[C]"):
        return "more than one group can polymerise"
    opened = Chem.RWMol(molecule)
    opened.GetBondBetweenAtoms(found[0][0], found[0][1]).SetBondType(Chem.BondType.DOUBLE)
    return _kept([_finish(opened, (found[0][0], found[0][1]))])


def _diene(molecule: Chem.Mol) -> list[str] | str | None:
    found = _matches(molecule, "[C;!$(C=*=*)]=[C;!$(C=*=*)]-[C;!$(C=*=*)]=[C;!$(C=*=*)]")
    chains = {frozenset(match): match for match in found}
    if not chains:
        return None
    if len(chains) > 1 or len(_matches(molecule, "C=C")) > 2:
        return "more than two conjugated double bonds can polymerise in more than one way"
    outer, near, far, end = next(iter(chains.values()))
    opened = Chem.RWMol(molecule)
    for pair, order in (
        ((outer, near), Chem.BondType.SINGLE),
        ((near, far), Chem.BondType.DOUBLE),
        ((far, end), Chem.BondType.SINGLE),
    ):
        bond = opened.GetBondBetweenAtoms(*pair)
        bond.SetBondType(order)
        bond.SetStereo(Chem.BondStereo.STEREONONE)
        bond.SetBondDir(Chem.BondDir.NONE)
    return _kept([_finish(opened, (outer, end))])


def _ethene(molecule: Chem.Mol) -> list[str] | str | None:
    """Open the only C=C: CH2=CXY, CF2=CFX, XCH=CHY, or in a ring that cannot open to relieve strain."""
    vinyl, every = _matches(molecule, "[CH2]=[C]"), _matches(molecule, "C=C")
    if not every:
        return None
    if len({frozenset(match) for match in vinyl}) == 1:
        spectators = [match for match in every if set(match) != set(vinyl[0])]
        if any(not molecule.GetBondBetweenAtoms(*match).IsInRing() for match in spectators):
            return "more than one C=C can polymerise"
        return _kept([_open_double_bond(molecule, vinyl[0][0], vinyl[0][1])])
    if len(every) > 1:
        return "more than one C=C can polymerise"
    first, second = every[0]
    bond = molecule.GetBondBetweenAtoms(first, second)
    if bond.IsInRing() and not _matches(molecule, "[C;R]=[C;R]-[c,$(C=O)]"):
        return "a cyclic olefin may keep its ring or open it"
    return _kept([_open_double_bond(molecule, first, second)])


def _aniline(molecule: Chem.Mol) -> list[str] | str | None:
    found = _matches(molecule, "[NX3H2]-c1cc[cH]cc1")
    if len(_matches(molecule, "[NX3;H2,H1]")) != 1 or not found or len(_matches(molecule, "[NX3H2]-c")) != 1:
        return None
    opened = Chem.RWMol(molecule)
    return _kept([_finish(opened, (found[0][0], found[0][4]))])


_RINGS = ("2-oxazoline", "lactam", "lactone", "epoxide", "cyclic ether")
_OVER_DOUBLE_BOND = ("diene 1,4", "ethene")
_RULES: tuple[tuple[str, Rule], ...] = (
    ("amino acid", _condense("[NX3;H2,H1;!$(NC=O)]", "amine")),
    ("hydroxy acid", _condense("[OX2H1;!$(OC=O)]", "hydroxyl")),
    ("2-oxazoline", _oxazoline),
    ("lactam", _ring_opening("[NX3;R;!$(N(C=O)C=O)]-[CX3;R](=[OX1])-[#6]")),
    ("lactone", _ring_opening("[OX2;R;!$(O(C=O)C=O)]-[CX3;R](=[OX1])-[#6]", at_most=2)),
    ("epoxide", _epoxide),
    ("cyclic ether", _cyclic_ether),
    ("isocyanate", _addition("[NX2]=[CX2]=[OX1]")),
    ("carbodiimide", _carbodiimide),
    ("acetylene", _acetylene),
    ("diene 1,4", _diene),
    ("ethene", _ethene),
    ("aldehyde", _addition("[OX1]=[CX3;H1,H2;!$(C(=O)[#7,#8,#16])]", alone="[OX1]=[CX3]")),
    ("acetone", _addition("[OX1]=[CX3]([CH3])[CH3]")),
    ("aniline", _aniline),
)
