"""Repeat units from structure-based polymer names such as "oxycarbonyl-1,4-phenylene", by joining their subunits.

Called by `data.public_tables` for handbook entries that name the repeat unit rather than the monomer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rdkit import Chem, rdBase

NUMERALS = ("di", "tri", "tetra", "penta", "hexa", "hepta", "octa", "nona", "deca", "undeca", "dodeca", "trideca",
            "tetradeca", "pentadeca", "hexadeca", "heptadeca", "octadeca")  # fmt: skip
ALKANES = ("meth", "eth", "prop", "but", "pent", "hex", "hept", "oct", "non", "dec", "undec", "dodec", "tridec",
           "tetradec", "pentadec", "hexadec", "heptadec", "octadec")  # fmt: skip

# A subunit is a SMILES with locants as atom map numbers, and the two locants that carry its chain bonds. `None` means
# that the name must give these two locants ("1,4-phenylene").
_SUBUNITS: dict[str, tuple[str, tuple[int, int] | None]] = {
    "oxy": ("[O:1]", (1, 1)),
    "thio": ("[S:1]", (1, 1)),
    "dithio": ("[S:1][S:2]", (1, 2)),
    "tetrathio": ("[S:1]SS[S:2]", (1, 2)),
    "imino": ("[N:1]", (1, 1)),
    "hydrazo": ("[N:1][N:2]", (1, 2)),
    "carbonyl": ("[C:1]=O", (1, 1)),
    "sulfonyl": ("[S:1](=O)=O", (1, 1)),
    "silylene": ("[Si:1]", (1, 1)),
    "phosphazene": ("[N:2]=[P:1]", (2, 1)),
    "methylene": ("[C:1]", (1, 1)),
    "ethylene": ("[C:1][C:2]", (1, 2)),
    "ethylidene": ("[C:1][C:2]", (1, 1)),
    "isopropylidene": ("C[C:1]C", (1, 1)),
    "hexafluoroisopropylidene": ("FC(F)(F)[C:1]C(F)(F)F", (1, 1)),
    "2-pentylidene": ("C[C:1]CCC", (1, 1)),
    "cyclopropylidene": ("[C:1]1CC1", (1, 1)),
    "fluorenylidene": ("[C:1]1c2ccccc2-c2ccccc21", (1, 1)),
    "propylene": ("[C:1][C:2][C:3]", (1, 2)),
    "butylene": ("[C:1][C:2][C:3][C:4]", None),
    "pentylene": ("[C:1][C:2][C:3][C:4][C:5]", None),
    "ethenylene": ("[C:1]=[C:2]", (1, 2)),
    "ethynylene": ("[C:1]#[C:2]", (1, 2)),
    "phenylene": ("[c:1]1[c:2][c:3][c:4][c:5][c:6]1", None),
    "cyclohexylene": ("[C:1]1[C:2][C:3][C:4][C:5][C:6]1", None),
    "cyclopropylene": ("[C:1]1[C:2][C:3]1", None),
    "naphthalenediyl": ("[c:1]1[c:2][c:3][c:4]c2[c:5][c:6][c:7][c:8]c12", None),
    "pyridinediyl": ("[n:1]1[c:2][c:3][c:4][c:5][c:6]1", None),
    "oxalyl": ("[C:1](=O)[C:2]=O", (1, 2)),
    "tartronoyl": ("[C:1](=O)C(O)[C:2]=O", (1, 2)),
    "succinoyl": ("[C:1](=O)CC[C:2]=O", (1, 2)),
    "glutaroyl": ("[C:1](=O)CCC[C:2]=O", (1, 2)),
    "adipoyl": ("[C:1](=O)CCCC[C:2]=O", (1, 2)),
    "azelaoyl": ("[C:1](=O)CCCCCCC[C:2]=O", (1, 2)),
    "sebacoyl": ("[C:1](=O)CCCCCCCC[C:2]=O", (1, 2)),
    "dodecanedioyl": ("[C:1](=O)CCCCCCCCCC[C:2]=O", (1, 2)),
    "fumaroyl": (r"[C:1](=O)/C=C/[C:2]=O", (1, 2)),
    "isophthaloyl": ("[C:1](=O)c1cccc(c1)[C:2]=O", (1, 2)),
    "terephthaloyl": ("[C:1](=O)c1ccc(cc1)[C:2]=O", (1, 2)),
}
for _count, _numeral in enumerate(NUMERALS, start=2):
    if _count > 2:
        _chain = "".join(f"[C:{position}]" for position in range(1, _count + 1))
        _SUBUNITS[f"{_numeral}methylene"] = (_chain, (1, _count))
for _count, _alkane in enumerate(ALKANES, start=1):
    if _count > 2:
        # "oxyhexanoyl": the chain enters at the far carbon and leaves through the acyl carbon.
        _SUBUNITS[f"{_alkane}anoyl"] = ("[C:2]" + "C" * (_count - 2) + "[C:1]=O", (2, 1))

# Substituents: SMILES whose first atom is bonded to the locant; "=O" has a double bond, "" is a hydrogen.
_SUBSTITUENTS: dict[str, str] = {
    "hydro": "", "oxo": "=O", "hydroxy": "O", "chloro": "Cl", "bromo": "Br", "nitro": "[N+](=O)[O-]",
    "sulfo": "S(=O)(=O)O", "carboxy": "C(=O)O", "hydroxymethyl": "CO", "vinyl": "C=C", "phenyl": "c1ccccc1",
    "m-tolyl": "c1cccc(C)c1", "p-sulfophenyl": "c1ccc(S(=O)(=O)O)cc1", "furfuryl": "Cc1ccco1", "acetyl": "C(C)=O",
    "benzoyl": "C(=O)c1ccccc1", "propanoyl": "C(=O)CC", "(9-carbazolyl)acetyl": "C(=O)Cn1c2ccccc2c2ccccc21",
    "perfluorooctylethylenecarbonyl": "C(=O)CC" + "C(F)(F)" * 7 + "C(F)(F)F", "4-methylbenzoyl": "C(=O)c1ccc(C)cc1",
    "dodecyloxycarbonyl": "C(=O)OCCCCCCCCCCCC", "dihexylamino": "N(CCCCCC)CCCCCC", "octylthio": "SCCCCCCCC",
    "4-phenoxyphenyl": "c1ccc(Oc2ccccc2)cc1", "2-phenylethenyl": "C=Cc1ccccc1",
    "phenoxy": "Oc1ccccc1", "4-nitrophenoxy": "Oc1ccc([N+](=O)[O-])cc1", "trifluoroethoxy": "OCC(F)(F)F",
}  # fmt: skip
for _count, _alkane in enumerate(ALKANES, start=1):
    for _prefix in ("", "n-"):
        _SUBSTITUENTS[f"{_prefix}{_alkane}yl"] = "C" * _count
        _SUBSTITUENTS[f"{_prefix}{_alkane}oxy"] = "O" + "C" * _count
        _SUBSTITUENTS[f"{_prefix}{_alkane}yloxy"] = "O" + "C" * _count

_SUBUNIT_NAMES = sorted(_SUBUNITS, key=len, reverse=True)
_SUBSTITUENT_NAMES = sorted(_SUBSTITUENTS, key=len, reverse=True)
_LOCANTS = re.compile(r"(?:N|\d+(?:,\d+)*)-")
_MULTIPLIERS = {"di": 2, "bis": 2, "tri": 3, "tetra": 4}
# Subunits with a single atom, which carries substituents that the name gives without a locant ("diphenylsilylene").
_UNLOCATED = {"silylene", "phosphazene", "imino"}
# A hyphen between two words is a line break in the printed name ("hexafluoroiso-propylidene").
_LINE_BREAK = re.compile(r"(?<=[a-z]{2})-(?=[a-z]{2})")
_DIYL = re.compile(r"pyridine-(\d,\d)-diyl")


@dataclass(frozen=True)
class _Substituent:
    smiles: str
    locants: tuple[int, ...]
    count: int


def repeat_unit_from_name(name: str) -> str | None:
    """The repeat unit that a structure-based name describes, or ``None`` if the name has unknown subunits.

    Parameters
    ----------
    name
        The part inside ``poly(…)``: ``"oxyterephthaloyloxyethylene"``, ``"imino-(1-oxohexamethylene)"``,
        ``"oxy-2,6-dimethyl-1,4-phenylene"``.

    Returns
    -------
    str or None
        A canonical SMILES with two ``*``; subunits keep the order and direction of the name (IUPAC, "Nomenclature of
        regular single-strand organic polymers", Pure Appl. Chem. 74 (2002) 1921).

    Examples
    --------
    >>> repeat_unit_from_name("oxyethylene")
    '*CCO*'
    """
    text = _DIYL.sub(r"\1-pyridinediyl", _LINE_BREAK.sub("", name.strip()))
    if _is_monomer_like(text):
        return None
    parts: list[Chem.RWMol] = []
    while text:
        text = text.lstrip("- ")
        parsed = _read_subunit(text)
        if parsed is None:
            return None
        part, text = parsed
        parts.append(part)
    return _join(parts) if parts else None


def _is_monomer_like(name: str) -> bool:
    # "ethylene", for example, names a monomer as well as a subunit; the monomer rules handle these.
    return name in {"ethylene", "propylene", "carbonyl"} or not name


def _read_subunit(text: str) -> tuple[Chem.RWMol, str] | None:
    """Read one subunit with its substituents from the start of `text`; also returns the rest of the text."""
    substituents: list[_Substituent] = []
    opened = 0
    while True:
        while text[:1] in "([" and text and not _starts_with_bracketed_substituent(text):
            opened, text = opened + 1, text[1:]
        locants: tuple[int, ...] = ()
        at = None if _starts_with_numbered_substituent(text) else _LOCANTS.match(text)
        if at:
            locants = tuple(1 if part == "N" else int(part) for part in at.group()[:-1].split(","))
        for base in _SUBUNIT_NAMES:
            if text.startswith(base):
                rest, chosen = text[len(base) :], None
            elif at and text[at.end() :].startswith(base) and len(locants) == 2:
                rest, chosen = text[at.end() + len(base) :], (locants[0], locants[1])
            else:
                continue
            while opened and rest[:1] in ")]" and rest:
                opened, rest = opened - 1, rest[1:]
            part = _build(base, chosen, substituents) if not opened else None
            if part is not None:
                return part, rest
        found = _read_substituent(text[at.end() :] if at else text, locants)
        if found is None:
            return None
        substituent, text = found
        substituents.append(substituent)
        text = text.lstrip("- ")


def _starts_with_numbered_substituent(text: str) -> bool:
    return any(text.startswith(name) for name in _SUBSTITUENT_NAMES if name[0].isdigit())


def _starts_with_bracketed_substituent(text: str) -> bool:
    return any(text.startswith(name) for name in _SUBSTITUENT_NAMES if name.startswith("("))


def _read_substituent(text: str, locants: tuple[int, ...]) -> tuple[_Substituent, str] | None:
    for prefix, times in (("", 1), *_MULTIPLIERS.items()):
        if not text.startswith(prefix):
            continue
        inner = text[len(prefix) :].removeprefix("-")
        for name in _SUBSTITUENT_NAMES:
            for shape in (name, f"({name})", f"[{name}]"):
                if inner.startswith(shape) and (times == max(len(locants), 1) or not locants):
                    return _Substituent(_SUBSTITUENTS[name], locants, times), inner[len(shape) :]
    return None


def _build(base: str, chosen: tuple[int, int] | None, substituents: Sequence[_Substituent]) -> Chem.RWMol | None:
    """The subunit as a molecule with ``*`` labelled 1 and 2 at its two chain bonds; ``None`` if it cannot be built."""
    smiles, ends = _SUBUNITS[base]
    ends = chosen or ends
    if ends is None:
        return None
    molecule = Chem.RWMol(Chem.MolFromSmiles(smiles, sanitize=False))
    places = {atom.GetAtomMapNum(): atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetAtomMapNum()}
    if any(locant not in places for locant in ends):
        return None
    free = [locant for locant in places if locant not in ends]
    for substituent in substituents:
        locants = substituent.locants
        if not locants:
            if base in _UNLOCATED:
                locants = (1,) * substituent.count
            elif len(free) == substituent.count:
                locants = tuple(free)
            else:
                return None
        for locant in locants:
            if locant not in places:
                return None
            _attach(molecule, places[locant], substituent.smiles)
    for label, locant in enumerate(ends, start=1):
        star = molecule.AddAtom(Chem.Atom(0))
        molecule.GetAtomWithIdx(star).SetIsotope(label)
        molecule.AddBond(places[locant], star, Chem.BondType.SINGLE)
    for atom in molecule.GetAtoms():
        atom.SetAtomMapNum(0)
        # Bracket atoms in the template do not specify hydrogens; they are added by valence.
        atom.SetNoImplicit(False)
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(molecule)
    except (Chem.AtomValenceException, Chem.KekulizeException):
        return None
    return molecule


def _attach(molecule: Chem.RWMol, place: int, smiles: str) -> None:
    if not smiles:
        return
    bond = Chem.BondType.DOUBLE if smiles.startswith("=") else Chem.BondType.SINGLE
    start = molecule.GetNumAtoms()
    molecule.InsertMol(Chem.MolFromSmiles(smiles.removeprefix("=")))
    first = molecule.GetAtomWithIdx(start)
    first.SetNumExplicitHs(0)
    molecule.AddBond(place, start, bond)


def _join(parts: Sequence[Chem.RWMol]) -> str:
    """Bond each part's second open end to the next part's first one; the outer two ends stay open."""
    chain = Chem.RWMol(parts[0])
    for part in parts[1:]:
        offset = chain.GetNumAtoms()
        right = next(atom for atom in chain.GetAtoms() if atom.GetAtomicNum() == 0 and atom.GetIsotope() == 2)
        left = next(atom for atom in part.GetAtoms() if atom.GetAtomicNum() == 0 and atom.GetIsotope() == 1)
        tail, head = right.GetNeighbors()[0].GetIdx(), left.GetNeighbors()[0].GetIdx()
        stars = sorted((right.GetIdx(), left.GetIdx() + offset), reverse=True)
        chain.InsertMol(part)
        chain.AddBond(tail, head + offset, Chem.BondType.SINGLE)
        for star in stars:
            chain.RemoveAtom(star)
    for atom in chain.GetAtoms():
        atom.SetIsotope(0)
    Chem.SanitizeMol(chain)
    return str(Chem.MolToSmiles(chain))
