"""Polymer identity against chains written, cut and joined without the code under test."""

from __future__ import annotations

import csv
import itertools
import random
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors
from repeat_units import UNITS

from chitransfer.chemistry.polymers import polymer_identity, ring_of_units
from chitransfer.chemistry.repeat_units import parse_repeat_unit

# ---------------------------------------------------------------------------------------------------------------------
# A cutter of the tests' own: an explicit ring of units, opened at any bond that is in no other ring
# ---------------------------------------------------------------------------------------------------------------------


def join_and_cut(smiles: str, n_units: int) -> list[str]:
    """Every unit of n times the length, for chains without stereo, as SMILES with two stars."""
    unit = Chem.MolFromSmiles(smiles)
    size = unit.GetNumAtoms()
    stars = [atom.GetIdx() for atom in unit.GetAtoms() if atom.GetSymbol() == "*"]
    first, last = (unit.GetAtomWithIdx(star).GetNeighbors()[0].GetIdx() for star in stars)
    ring = Chem.RWMol()
    for _ in range(n_units):
        ring.InsertMol(unit)
    for k in range(n_units):
        ring.AddBond(k * size + last, (k + 1) % n_units * size + first, Chem.BondType.SINGLE)
    own_rings = [set(atoms) for atoms in unit.GetRingInfo().AtomRings()]
    path = Chem.GetShortestPath(unit, *stars)[1:-1]
    cuts = [(k * size + last, (k + 1) % n_units * size + first) for k in range(n_units)]
    for one, other in itertools.pairwise(path):
        bond = unit.GetBondBetweenAtoms(one, other)
        if bond.GetBondType() == Chem.BondType.SINGLE and not any({one, other} <= ring_ for ring_ in own_rings):
            cuts += [(k * size + one, k * size + other) for k in range(n_units)]
    found = []
    for one, other in cuts:
        opened = Chem.RWMol(ring)
        opened.RemoveBond(one, other)
        for atom in (one, other):
            opened.AddBond(atom, opened.AddAtom(Chem.Atom(0)), Chem.BondType.SINGLE)
        for k, star in itertools.product(reversed(range(n_units)), sorted(stars, reverse=True)):
            opened.RemoveAtom(k * size + star)
        found.append(Chem.MolToSmiles(opened, canonical=False))
    return found


@pytest.mark.parametrize("smiles", UNITS)
def test_every_cut_of_a_chain_has_one_key(smiles: str) -> None:
    key = polymer_identity(smiles)
    generator = random.Random(0)
    unit = Chem.MolFromSmiles(smiles)
    n_backbone = (
        len(Chem.GetShortestPath(unit, *(atom.GetIdx() for atom in unit.GetAtoms() if not atom.GetAtomicNum()))) - 2
    )
    # A ring wants three atoms.
    fewest = -(-3 // n_backbone)
    for n_units in range(fewest, fewest + 3):
        for cut in join_and_cut(smiles, n_units):
            molecule = Chem.MolFromSmiles(cut)
            shuffled = list(range(molecule.GetNumAtoms()))
            generator.shuffle(shuffled)
            turned = Chem.MolToSmiles(Chem.RenumberAtoms(molecule, shuffled), canonical=False)
            with_hydrogens = Chem.MolToSmiles(Chem.AddHs(molecule))
            kekulised = Chem.MolToSmiles(molecule, kekuleSmiles=True)
            for text in (cut, turned, with_hydrogens, kekulised):
                assert polymer_identity(text) == key, text


@pytest.mark.parametrize("smiles", UNITS)
def test_the_key_is_a_repeat_unit_of_the_chain_and_its_own_key(smiles: str) -> None:
    key = polymer_identity(smiles)
    assert polymer_identity(key) == key
    unit, known = parse_repeat_unit(key), parse_repeat_unit(smiles)
    times, rest = divmod(known.GetNumAtoms() - 2, unit.GetNumAtoms() - 2)
    assert rest == 0
    assert Chem.GetFormalCharge(known) == times * Chem.GetFormalCharge(unit)
    ring, same = ring_of_units(key, 6 * times), ring_of_units(smiles, 6)
    assert rdMolDescriptors.CalcMolFormula(ring) == rdMolDescriptors.CalcMolFormula(same)
    assert Chem.MolToSmiles(ring) == Chem.MolToSmiles(same)


def test_kekulised_units_have_the_key_of_the_aromatic_ones() -> None:
    assert polymer_identity("*C1=CC=C(*)C=C1") == polymer_identity("*c1ccc(*)cc1")
    assert polymer_identity("*C1=CC=C(*)S1") == polymer_identity("*c1ccc(*)s1")


# ---------------------------------------------------------------------------------------------------------------------
# Stereo: chains as words, whose equality under rotation, reversal and repetition needs no chemistry
# ---------------------------------------------------------------------------------------------------------------------

LETTERS = {
    "E": "C=C",
    "Z": "C=C",
    "c": "C",
    "o": "O",
    "m": "C(F)",
    "@": "[C@H](F)",
    "a": "[C@@H](F)",
    "s": "[Si](C)(C)",
    "k": "C(=O)",
    "p": "c1ccc(cc1)",
    "t": "[C@H]1CC[C@@H](CC1)",
    "u": "[C@H]1CC[C@H](CC1)",
}
FROM_THE_OTHER_END = str.maketrans("@a", "a@")


def write_word(word: str) -> str:
    """The repeat unit that reads `word`; E and Z are double bonds, with slashes on both sides."""
    text, slash = "*", "/"
    if word[0] in "EZ":
        text += slash
    for position, letter in enumerate(word):
        if position and word[position - 1] in "EZ":
            text += slash
        elif position and letter in "EZ":
            slash = "/"
            text += slash
        text += LETTERS[letter]
        if letter == "Z":
            slash = "\\" if slash == "/" else "/"
        elif letter != "E":
            slash = "/"
    return text + (slash if word[-1] in "EZ" else "") + "*"


def turn_word(word: str) -> str:
    """The same chain read from the other end: a centre's hand changes with the direction."""
    return word[::-1].translate(FROM_THE_OTHER_END)


def name_of_chain(word: str) -> str:
    """Equal for two words exactly when they are units of one chain."""
    period = next(p for p in range(1, len(word) + 1) if len(word) % p == 0 and word[:p] * (len(word) // p) == word)
    root = word[:period]
    readings = [root, turn_word(root)]
    return min(text[start:] + text[:start] for text in readings for start in range(period))


@pytest.mark.parametrize(("letters", "longest"), [("EZco@am", 3), ("EZ@a", 5), ("ptukc", 3), ("@ac", 5)])
def test_keys_tell_chains_apart_exactly_as_words_do(letters: str, longest: int) -> None:
    keys: dict[str, set[str]] = defaultdict(set)
    chains: dict[str, set[str]] = defaultdict(set)
    for length in range(1, longest + 1):
        for parts in itertools.product(letters, repeat=length):
            word = "".join(parts)
            key = polymer_identity(write_word(word))
            keys[name_of_chain(word)].add(key)
            chains[key].add(name_of_chain(word))
            assert polymer_identity(key) == key
    assert all(len(found) == 1 for found in keys.values())
    assert all(len(found) == 1 for found in chains.values())


@settings(max_examples=60)
@given(
    word=st.text(alphabet=sorted(LETTERS), min_size=1, max_size=12),
    start=st.integers(0, 11),
    times=st.integers(1, 3),
    is_turned=st.booleans(),
)
@example(word="EZEEZ", start=2, times=3, is_turned=True)
def test_rotated_repeated_and_turned_words_have_one_key(word: str, start: int, times: int, is_turned: bool) -> None:
    start %= len(word)
    other = (word[start:] + word[:start]) * times
    assert polymer_identity(write_word(turn_word(other) if is_turned else other)) == polymer_identity(write_word(word))


@pytest.mark.parametrize("word", ["E", "Z", "@", "@aEc", "ZEco"])
def test_chains_of_hundreds_of_blocks_keep_their_key(word: str) -> None:
    times = 160 // len(word)
    assert polymer_identity(write_word(word * times)) == polymer_identity(write_word(word))


@pytest.mark.parametrize(
    "cuts",
    [
        ["*CCO*", "*OCC*", "*COC*", "*CCOCCO*", "[*:1]CCO[*:2]", "[1*]CCO[2*]", "[*+]CCO[*]", "*[CH2:7][CH2:8]O*"],
        ["*C/C=C\\C*", "*CC/C=C\\*", "*\\C=C/CC*", "*/C=C\\CC*", "[H]C(*)/C([H])=C([H])\\C([H])([H])*"],
        ["*C/C=C/C*", "*CC/C=C/*", "*/C=C/CC*"],
        ["*C/C=C(/C)C*", "*C/C(C)=C\\C*", "*CC/C=C(\\*)C"],
        ["*=CC=*", "*C=C*", "*C=CC=C*"],
        ["*=Nc1ccc(N=*)cc1", "*N=Nc1ccc(*)cc1"],
        ["*[C@H](C)C(=O)O*", "*OC(=O)[C@H](*)C", "*C(=O)O[C@@H](*)C"],
        ["*C[C@H](*)C", "*C[C@@H](*)C", "*C[C@H](C)C[C@@H](*)C"],
        ["*O[C@H](C)O*", "*OO[C@H](*)C", "*OO[C@@H](*)C"],
        ["*[C@H](F)*", "*[C@@H](F)*", "*[C@@H](F)[C@@H](F)*"],
        ["*CCS(=O)*", "*CC[S+]([O-])*", "*[S+]([O-])CC*"],
        ["*CCS(=O)(=O)*", "*CC[S+2]([O-])([O-])*", "*CC[S+](=O)([O-])*"],
        ["*CCP(=O)(C)*", "*CC[P+]([O-])(C)*"],
        ["*CC(*)CN=[N+]=[N-]", "*CC(*)C[N-][N+]#N", "*CC(*)CN=N#N", "*C(C*)C[N-][N+]#N"],
        ["*CC(*)C(=O)C=[N+]=[N-]", "*CC(*)C(=O)[CH-][N+]#N"],
        ["*CC(*)C(=[N+]=[N-])[N+]#N", "*CC(*)[C-]([N+]#N)[N+]#N"],
        ["*CC(*)C#[N+][O-]", "*CC(*)[C-]=[N+]=O", "*CC(*)C#N=O"],
        ["*N=P(*)(OC)OC", "*[N-][P+](*)(OC)OC", "*[P+](OC)(OC)[N-]*"],
        ["*CC(*)CP(C)(C)=C", "*CC(*)C[P+](C)(C)[CH2-]"],
        ["*CC(*)P(C)(C)=S", "*CC(*)[P+](C)(C)[S-]"],
        ["*CC(*)S(C)=NC", "*CC(*)[S+](C)[N-]C"],
        ["*CC[Se](=O)*", "*CC[Se+]([O-])*"],
        ["*CC(*)n1cc[n+](CC)c1", "*CC(*)[n+]1ccn(CC)c1", "*CC(*)[N+]1=CN(CC)C=C1"],
        ["*CCOCn1cc[n+](*)c1", "*n1cc[n+](CCOC*)c1", "*OCC[n+]1ccn(C*)c1", "*C[n+]1ccn(CCO*)c1"],
        ["*CC(*)c1ccc2c(c1)n(C)c[n+]2CC", "*CC(*)c1ccc2c(c1)[n+](C)cn2CC"],
        ["*NC(CCCNC(=[NH2+])N)C(*)=O", "*NC(CCC[NH+]=C(N)N)C(*)=O"],
        ["*CC(*)c1cc[n+](C)c(N)c1", "*CC(*)C1=CC(=[NH2+])N(C)C=C1"],
        [
            "*O[C@@H]1O[C@H](CO)[C@@H](*)[C@H](O)[C@H]1O",
            "*[C@@H]1O[C@H](CO)[C@@H](O*)[C@H](O)[C@H]1O",
            "*[C@H]1[C@H](O)[C@@H](O)[C@H](O*)O[C@@H]1CO",
        ],
    ],
)
def test_known_cuts_of_one_polymer(cuts: list[str]) -> None:
    assert len({polymer_identity(cut) for cut in cuts}) == 1


@pytest.mark.parametrize(
    "polymers",
    [
        ["*CC(*)(C)C(=O)OC", "*CC(*)C(=O)OCC", "*CC(*)OC(=O)CC", "*CC(*)(C)OC(C)=O", "*CC(*)(CC)C(=O)O"],
        ["*C/C=C\\C*", "*C/C=C/C*", "*CC=CC*", "*CC(*)C=C"],
        ["*C[C@H](*)C", "*C[C@H](C)C[C@H](*)C", "*CC(*)C"],
        ["*C[S@@+]([O-])CC*", "*C[S+]([O-])CC*", "*CSCC*", "*CS(=O)(=O)CC*"],
        ["*[C@H](F)*", "*[C@H](F)[C@@H](F)*", "*C(*)F"],
        ["*O[C@H](C)C(*)=O", "*O[C@@H](C)C(*)=O", "*OC(C)C(*)=O"],
        ["*[C@H]1CC[C@@H](*)CC1", "*[C@H]1CC[C@H](*)CC1", "*C1CCC(*)CC1"],
        ["*c1ccc(*)cc1", "*c1cccc(*)c1", "*c1ccccc1*"],
        ["*CC(*)C", "*C(C)(C)CC*", "*C(C)CC(*)CC", "*CC(C)CC*"],
        ["*O*", "*OOC*", "*OC*", "*OCC*", "*OCCC*"],
        # Amylose and cellulose differ at one centre.
        ["*O[C@@H]1O[C@H](CO)[C@@H](*)[C@H](O)[C@H]1O", "*O[C@H]1O[C@H](CO)[C@@H](*)[C@H](O)[C@H]1O"],
    ],
)
def test_different_polymers_have_different_keys(polymers: list[str]) -> None:
    assert len({polymer_identity(polymer) for polymer in polymers}) == len(polymers)


@pytest.mark.parametrize(
    ("labelled", "plain"),
    [
        ("*C([2H])([2H])C(*)([2H])c1c([2H])c([2H])c([2H])c([2H])c1[2H]", "*CC(*)c1ccccc1"),
        ("*[13CH2][13CH](*)c1ccccc1", "*CC(*)c1ccccc1"),
        ("*C([2H])([2H])[C@]([3H])(*)C", "*C[C@]([H])(*)C"),
        # Both hydrogens of a centre that deuterium alone makes one.
        ("*C[C@]([2H])([H])*", "*CC*"),
    ],
)
def test_isotopes_make_no_other_polymer(labelled: str, plain: str) -> None:
    assert polymer_identity(labelled) == polymer_identity(plain)
    assert not any(atom.GetIsotope() for atom in parse_repeat_unit(labelled).GetAtoms())


def test_the_real_tables_keep_their_polymers_apart(shared_data: Path) -> None:
    units: set[str] = set()
    for name in ("experiment_chi.csv", "cosmo_rs_chi.csv", "solubility.csv"):
        with (shared_data / name).open(encoding="utf-8") as stream:
            units.update(row["SMILES"] for row in csv.DictReader(stream))
    rings: dict[str, set[str]] = defaultdict(set)
    for unit in units:
        key = polymer_identity(unit)
        # None of these is drawn with a multiple of its shortest unit, except poly(tetrafluoroethylene) and the like.
        times = (parse_repeat_unit(unit).GetNumAtoms() - 2) // (parse_repeat_unit(key).GetNumAtoms() - 2)
        n_units = 12 // times
        rings[key].add(Chem.MolToSmiles(ring_of_units(unit, n_units)))
    assert all(len(found) == 1 for found in rings.values())
    by_ring = defaultdict(set)
    for key, (ring,) in rings.items():
        # Rings carry no stereo, so keys that differ by stereo alone share one.
        by_ring[ring].add(key)
    assert all(len(keys) == 1 or any(mark in key for key in keys for mark in "/\\@") for keys in by_ring.values())
    assert len(rings) > 150
