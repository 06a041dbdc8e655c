"""Repeat units and polymer identity against chains written, cut and joined without the code under test."""

from __future__ import annotations

import csv
import itertools
import random
import string
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rdkit import Chem, rdBase
from rdkit.Chem import rdMolDescriptors

from chitransfer.chemistry.polymers import (
    LONGEST_SMILES,
    PolymerError,
    oligomer,
    parse_repeat_unit,
    polymer_identity,
    ring_of_units,
)
from chitransfer.chemistry.vectors import units_for_ring

UNITS = [
    "*CCO*",
    "*CC(*)C",
    "*CC(*)(C)C(=O)OC",
    "*CC(*)C(=O)NC(C)C",
    "*CC(*)c1ccccc1",
    "*CC(*)C(=O)[O-]",
    "*CC(*)C(=O)OCC[N+](C)(C)CCCS(=O)(=O)[O-]",
    "*CC(*)C(=O)OC1CC(C)(C)N([O])C(C)(C)C1",
    "*C[N+](C)(C)CCCC*",
    "*C(F)(F)C(*)(F)F",
    "*NC(=O)CCCCC*",
    "*NCCCCCCNC(=O)CCCCC(*)=O",
    "*OCCOC(=O)c1ccc(C(*)=O)cc1",
    "*Oc1ccc(C(C)(C)c2ccc(OC(*)=O)cc2)cc1",
    "*c1ccc(*)cc1",
    "*c1cccc(*)c1C",
    "*c1ccc2cc(*)ccc2c1",
    "*c1ccc(*)s1",
    "*c1ccc(*)[nH]1",
    "*n1c(=O)c2cc3c(=O)n(-c4ccc(Oc5ccc(*)cc5)cc4)c(=O)c3cc2c1=O",
    "*N1C(=O)c2ccc(cc2C1=O)Oc1ccc2C(=O)N(C(=O)c2c1)c1ccc(*)cc1",
    "*N1CCN(CC1)C(=O)CCC(*)=O",
    "*C1CCN(*)CC1",
    "*C1C(*)C(=O)OC1=O",
    "*C1(*)CCCC1",
    "*C12CC3CC(C1)CC(*)(C3)C2",
    "*[Si](C)(C)O*",
    "*[Si](C)(C)O[Si](*)(c1ccccc1)c1ccccc1",
    "*P(=O)(OC)OCC*",
    "*OP(*)(=O)[O-]",
    "*S(=O)(=O)c1ccc(*)cc1",
    "*CCSS*",
    "*[Se]CC*",
    "*[Ge](C)(C)*",
    "*B(O)O*",
    "*C#C*",
    "*C#Cc1ccc(*)cc1",
    "*C=C*",
    "*C=Cc1ccc(*)cc1",
    "*C=NN=C*",
    "*N=P(*)(C)C",
    "*Nc1ccc(*)cc1",
    "*[13CH2]C*",
    "*C([2H])([2H])*",
]


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


# ---------------------------------------------------------------------------------------------------------------------
# What is no repeat unit
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("smiles", "said"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("CCO", "exactly two"),
        ("CCO", "no *"),
        ("*CCO", "one *"),
        ("*CC(*)C*", "3 *"),
        ("*CC(*)C(=O)[O-].[Na+]", "leave counter-ions"),
        ("*CC.CC*", "more than one molecule"),
        ("C1*CC*1", "bonded once"),
        ("C*C*", "bonded once"),
        ("**", "nothing stands between"),
        ("*=C=CC*", "different order"),
        ("*C(C)(C)(C)C*", "valence"),
        ("*c1cccc1*", "kekulize"),
        ("*CC(*", "cannot read"),
        ("*CCö*", "plain ASCII"),
        ("*CC\x00O*", "plain ASCII"),
        ("*CC\ud800O*", "plain ASCII"),
        ("*CCO* *CC*", "a space"),
        ("*CCO* |$_AP1;;;;_AP2$|", "a space"),
        ("*N->[Fe]C*", "dative"),
        ("*C~C*", "unspecified"),
        ("*C$C*", "quadruple"),
        ("*=C=*", "no single bond"),
        ("*=C1C=CC(=*)C=C1", "no single bond"),
        ("*" + "C" * LONGEST_SMILES + "*", "longer than"),
    ],
)
def test_refusals_say_why(smiles: str, said: str) -> None:
    with pytest.raises(PolymerError) as caught:
        polymer_identity(smiles)
    assert said.lower() in str(caught.value).lower()


@pytest.mark.parametrize("make", [lambda text: oligomer(text, 2), lambda text: ring_of_units(text, 3)])
def test_chains_of_what_cannot_be_cut_are_refused_too(make: object) -> None:
    with pytest.raises(PolymerError):
        make("*=C=*")  # type: ignore[operator]


def check_ends_well(smiles: str) -> None:
    try:
        key = polymer_identity(smiles)
    except PolymerError:
        return
    assert polymer_identity(key) == key
    for molecule in (oligomer(smiles, 2), oligomer(smiles, 2, cap="C"), ring_of_units(key, 3)):
        assert molecule.GetNumAtoms() > 0


@settings(max_examples=150)
@given(st.text(max_size=40))
def test_any_text_gives_a_key_or_a_reason(smiles: str) -> None:
    check_ends_well(smiles)


PIECES = ["*", "C", "c1ccccc1", "(", ")", "=", "#", "/", "\\", "[C@H]", "[C@@]", "1", "2", "%10", "[*:1]", "[2*]", "N"]
PIECES += [
    "->",
    "<-",
    "~",
    "$",
    ":",
    "[H]",
    "[nH]",
    "[Na+]",
    ".",
    "[S@SP1]",
    "[Co@OH3]",
    "[C@AL1]",
    "[CH]",
    "F",
    "[O-]",
]


@settings(max_examples=400)
@given(unit=st.sampled_from(UNITS), edits=st.lists(st.tuples(st.integers(0, 80), st.sampled_from(PIECES)), max_size=4))
@example(unit="*[C@H]1CC[C@](*)CC1", edits=[])
@example(unit="*CC[S@SP1](*)c1ccccc1", edits=[])
@example(unit="*[C@H]1CC->[C@@H](*)CC1", edits=[])
def test_broken_units_give_a_key_or_a_reason(unit: str, edits: list[tuple[int, str]]) -> None:
    for place, piece in edits:
        place %= len(unit) + 1
        unit = unit[:place] + piece + unit[place:]
    check_ends_well(unit)


@pytest.mark.parametrize(
    "smiles",
    [
        "*" + "C" * (LONGEST_SMILES - 2) + "*",
        "*" + "".join(random.Random(3).choices("CCO", k=LONGEST_SMILES - 2)) + "*",
        "*" + "/C=C" * 480 + "/*",
        "*" + "c1ccc(cc1)" * 190 + "*",
        "*" + "(" * 1500,
        "[" * LONGEST_SMILES,
        "*C" + "(C" * 600 + ")" * 600 + "*",
        "*" + "C1CC1" * 300 + "*",
    ],
)
@pytest.mark.timeout(60)
def test_the_longest_texts_take_seconds(smiles: str) -> None:
    check_ends_well(smiles)


# ---------------------------------------------------------------------------------------------------------------------
# Molecules made of units
# ---------------------------------------------------------------------------------------------------------------------


def canonical(smiles: str) -> str:
    return str(Chem.MolToSmiles(Chem.MolFromSmiles(smiles)))


@pytest.mark.parametrize("n_units", [1, 2, 5])
def test_oligomers_are_what_their_text_says(n_units: int) -> None:
    for unit in ("CCO", "CC(c1ccccc1)", "OCCOC(=O)c1ccc(cc1)C(=O)", "C[Si](C)(C)O", "NCCCCCC(=O)"):
        text = f"*{unit}*"
        assert Chem.MolToSmiles(oligomer(text, n_units)) == canonical(unit * n_units)
        assert Chem.MolToSmiles(oligomer(text, n_units, cap="C")) == canonical("C" + unit * n_units + "C")
        assert Chem.MolToSmiles(oligomer(text, n_units, cap="*")) == canonical("*" + unit * n_units + "*")


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("*c1ccc(*)[nH]1", "c1cc[nH]c1"),
        ("*n1c(=O)cc(*)c1=O", "O=C1C=CC(=O)N1"),
        ("*=CC=*", "C=C"),
        ("*[Si](C)(C)*", "C[SiH2]C"),
    ],
)
def test_hydrogen_caps_complete_their_atoms(unit: str, expected: str) -> None:
    ended = Chem.MolFromSmiles(Chem.MolToSmiles(oligomer(unit, 1)))
    known = Chem.MolFromSmiles(expected)
    assert rdMolDescriptors.CalcMolFormula(ended) == rdMolDescriptors.CalcMolFormula(known)


def test_a_ring_of_ethylene_oxide_is_a_crown_ether() -> None:
    assert Chem.MolToSmiles(ring_of_units("*CCO*", 6)) == canonical("C1COCCOCCOCCOCCOCCO1")
    assert Chem.MolToSmiles(ring_of_units("*COC*", 6)) == canonical("C1COCCOCCOCCOCCOCCO1")
    assert Chem.MolToSmiles(ring_of_units("*CC*", 3)) == canonical("C1CCCCC1")


def test_a_conjugated_ring_keeps_the_aromatic_atoms_of_the_open_chain() -> None:
    ring = ring_of_units("*C=C*", 9)
    assert not any(atom.GetIsAromatic() for atom in ring.GetAtoms())
    assert sum(atom.GetIsAromatic() for atom in ring_of_units("*c1ccc(*)cc1", 3).GetAtoms()) == 18


@pytest.mark.parametrize(
    ("smiles", "expected"), [("*C*", 12), ("*CC*", 6), ("*CCO*", 4), ("*CCCCO*", 3), ("*NCCCCCCNC(=O)CCCCC(*)=O", 1)]
)
def test_rings_have_twelve_backbone_atoms(smiles: str, expected: int) -> None:
    assert units_for_ring(smiles) == expected
    assert units_for_ring("*C*", fingerprint_radius=6) == 14


def test_a_caller_may_change_its_molecule() -> None:
    before = Chem.MolToSmiles(parse_repeat_unit("*CCO*"))
    parse_repeat_unit("*CCO*").GetAtomWithIdx(1).SetAtomicNum(14)
    oligomer("*CCO*", 3).GetAtomWithIdx(1).SetAtomicNum(14)
    assert Chem.MolToSmiles(parse_repeat_unit("*CCO*")) == before
    assert all(atom.GetIsotope() == 0 for atom in parse_repeat_unit("[1*]CC[2*]").GetAtoms())


def test_rdkit_still_logs_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PolymerError):
        polymer_identity("*CC(*")
    assert capfd.readouterr().err == ""
    rdBase.LogToPythonStderr()
    Chem.MolFromSmiles("CC(")
    assert "SMILES Parse Error" in capfd.readouterr().err


def test_the_alphabet_of_the_fuzz_covers_smiles() -> None:
    written = set("".join(UNITS + PIECES))
    assert set("*()[]=#/\\@+-%:.~$<>") <= written | set(string.digits)
