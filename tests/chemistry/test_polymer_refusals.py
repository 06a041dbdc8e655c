"""What is no repeat unit is refused with its reason; any text ends in a key or a reason."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rdkit import Chem, rdBase
from repeat_units import UNITS

from chitransfer.chemistry.polymers import oligomer, polymer_identity, ring_of_units
from chitransfer.chemistry.repeat_units import LONGEST_SMILES, PolymerError


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
        ("*CC(*)C(=O)O[Na]", "leave counter-ions"),
        ("*CC(*)c1ccc(S(=O)(=O)O[K])cc1", "leave counter-ions"),
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
        ("*CCN(C)(C)[Zn]CC*", "dative"),
        ("*CCN->B(O)O*", "dative"),
        ("*OB(O)<-NCC*", "dative"),
        ("*C~C*", "unspecified"),
        ("*C$C*", "quadruple"),
        ("*[Ge](:C)(C)*", "stray aromatic"),
        ("*C:C*", "stray aromatic"),
        ("*[C][C]*", "C with open valences"),
        ("*C[C@](C)O*", "write its hydrogens"),
        ("*[N]CC*", "N with open valences"),
        ("*O[Si](*)C", "Si with open valences"),
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
