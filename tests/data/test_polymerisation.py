"""Monomers to repeat units: against textbook units, against SMiPoly, and silence where the answer is not unique."""

from __future__ import annotations

import warnings

import pandas as pd
import pytest

from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.data.polymerisation import _RULES, RepeatUnit, polymerise, vinyl_repeat_unit

TEXTBOOK = {
    "ethene": [
        ("C=Cc1ccccc1", "*CC(*)c1ccccc1"),
        ("C=C(C)C(=O)OC", "*CC(*)(C)C(=O)OC"),
        ("C=C(Cl)Cl", "*CC(*)(Cl)Cl"),
        ("FC(F)=C(F)F", "*C(F)(F)C(*)(F)F"),
        ("CCOC(=O)/C=C/C(=O)OCC", "*C(C(=O)OCC)C(*)C(=O)OCC"),
        ("C1=Cc2ccccc2C1", "*C1Cc2ccccc2C1*"),
        ("O=C1C=CC(=O)N1C", "*C1C(=O)N(C)C(=O)C1*"),
        ("C=CC1OCC=CCO1", "*CC(*)C1OCC=CCO1"),
        # A ring beside the vinyl group stays closed.
        ("C=CN1CCCC1=O", "*CC(*)N1CCCC1=O"),
        ("C=C(C)C(=O)OCC1CO1", "*CC(*)(C)C(=O)OCC1CO1"),
        ("C=C(C)C(=O)OCCN1CC1", "*CC(*)(C)C(=O)OCCN1CC1"),
        ("C=C1CCOC1=O", "*CC1(*)CCOC1=O"),
        ("C=C(C)C1=NCCO1", "*CC(*)(C)C1=NCCO1"),
        ("O=C1C=CC(=O)O1", "*C1C(=O)OC(=O)C1*"),
        ("C=CC1CCOCC1", "*CC(*)C1CCOCC1"),
        # Groups that condense, but only with what such a monomer lacks.
        ("C=C(C)C(=O)OCCO", "*CC(*)(C)C(=O)OCCO"),
        ("C=CC(=O)O", "*CC(*)C(=O)O"),
    ],
    "diene 1,4": [
        ("C=CC=C", "*CC=CC*"),
        ("C=CC(=C)C", "*CC=C(C)C*"),
        ("C=CC(=C)Cl", "*CC=C(Cl)C*"),
        ("C1=CCCC=C1", "*C1C=CC(*)CC1"),
    ],
    "lactam": [("O=C1CCCCCN1", "*NCCCCCC(*)=O"), ("CC1CC(=O)N1", "*NC(C)CC(*)=O")],
    "lactone": [
        ("O=C1CCCCCO1", "*OCCCCCC(*)=O"),
        ("CC1OC(=O)C(C)OC1=O", "*OC(C)C(*)=O"),
        ("O=C1CCCCC(=O)OCCCO1", "*OCCCOC(=O)CCCCC(*)=O"),
        ("C=CC1CC(=O)O1", "*OC(C=C)CC(*)=O"),
    ],
    "epoxide": [
        ("C1CO1", "*CCO*"),
        ("ClCC1CO1", "*CC(CCl)O*"),
        ("CC1OC1C", "*C(C)C(C)O*"),
        ("C=CCOCC1CO1", "*CC(COCC=C)O*"),
    ],
    "cyclic ether": [("C1CCOC1", "*CCCCO*"), ("C1COC1", "*CCCO*"), ("C1COCO1", "*CCOCO*"), ("C1OCOCO1", "*CO*")],
    "2-oxazoline": [("CCC1=NCCO1", "*CCN(*)C(=O)CC"), ("C1=NCCO1", "*CCN(*)C=O")],
    "isocyanate": [("CCCCN=C=O", "*N(CCCC)C(*)=O")],
    "carbodiimide": [("CCN=C=NCC", "*N(CC)C(*)=NCC"), ("C=CCN=C=NCC=C", "*N(CC=C)C(*)=NCC=C")],
    "acetylene": [("C#C", "*C=C*"), ("C#Cc1ccccc1", "*C=C(*)c1ccccc1")],
    "aldehyde": [("C=O", "*CO*"), ("CC=O", "*OC(*)C")],
    "acetone": [("CC(C)=O", "*OC(*)(C)C")],
    "amino acid": [("NCCCCCCCCCCC(=O)O", "*NCCCCCCCCCCC(*)=O"), ("NC(CO)C(=O)O", "*NC(CO)C(*)=O")],
    "hydroxy acid": [("CC(O)C(=O)O", "*OC(C)C(*)=O"), ("OCC=CCC(=O)O", "*OCC=CCC(*)=O")],
    "aniline": [("Nc1ccccc1", "*Nc1ccc(*)cc1")],
}


@pytest.mark.parametrize(
    ("rule", "monomer", "unit"), [(rule, *pair) for rule, pairs in TEXTBOOK.items() for pair in pairs]
)
def test_textbook_monomers_give_their_polymer(rule, monomer, unit):
    made = polymerise(monomer)
    assert isinstance(made, RepeatUnit), made
    assert made.rule == rule
    assert polymer_identity(made.smiles) == polymer_identity(unit)


@pytest.mark.parametrize(
    ("monomer", "words"),
    [
        ("C=C=C", "cumulated"),
        ("CC(C)=C=O", "cumulated"),
        ("C=C=NC(=O)CC", "cumulated"),
        ("O=CCCCC=O", "2 groups"),
        ("N[C@@H](CCC(=O)O)C(=O)O", "2 acid"),
        ("OCC(O)C(=O)O", "1 acid and 2 hydroxyl"),
        ("C=COCOC=C", "more than one"),
        ("C=COC(=O)/C=C/C", "more than one C=C"),
        ("C=CC(=C)CCC=C(C)C", "more than two conjugated"),
        ("C1=CC2C3C=CC(C3)C2C1", "more than one"),
        ("C1=CC2CCC1C2", "keep its ring or open it"),
        ("C1CCOCC1", "does not polymerise"),
        ("CCCCCCN=C=NC", "2 different repeat units"),
        ("[C]COC(=O)c1ccc(C(=O)O)cc1", "open valences"),
        # two kinds of groups
        ("C=C(C)C(=O)OCCN=C=O", "a C=C and an isocyanate can polymerise in more than one way"),
        ("C=CC=O", "a C=C and an aldehyde"),
        ("C=C(CO)C(=O)O", "a C=C and a hydroxyl, amine or acid group"),
        ("OCCN=C=O", "an isocyanate and a hydroxyl"),
        ("OCC1CO1", "a three-membered ring and a hydroxyl"),
        ("O=CCCC1CO1", "a three-membered ring and an aldehyde"),
        ("O=C1CCC(CC2CO2)O1", "a lactone or lactam and a three-membered ring"),
        ("C#CCN=C=O", "an isocyanate and an acetylene"),
        # a C=C that may stay beside a ring that no rule opens
        ("C=CCN1CC1", "no polymerisation rule"),
        ("C=CC1COC(=O)O1", "no polymerisation rule"),
        # an anhydride and an N-carboxyanhydride are no lactones or lactams
        ("O=C1CCC(=O)O1", "no polymerisation rule"),
        ("O=C1CNC(=O)O1", "no polymerisation rule"),
        ("O=C1COC(=O)N1", "no polymerisation rule"),
        ("OCCO", "no polymerisation rule"),
        ("CCCCCC", "no polymerisation rule"),
        ("C1CC", "cannot read"),
    ],
)
def test_a_monomer_with_no_single_answer_is_left_with_the_reason(monomer, words):
    assert words in str(polymerise(monomer))


def test_every_rule_has_a_textbook_case():
    assert {name for name, _ in _RULES} == set(TEXTBOOK)


def test_smipoly_agrees():
    from smipoly.smip import monc, polg

    monomers = [
        "C=Cc1ccccc1", "C=C(C)C(=O)OC", "FC(F)=C(F)F", "C1=Cc2ccccc2C1", "C1CO1", "CC1CO1", "O=C1CCCCCO1",
        "CC1CC(=O)O1", "O=C1CCCCCN1", "O=C1CCCN1", "OCCCCCC(=O)O", "CC(O)C(=O)O", "NCCCCCC(=O)O", "C=CC#N",
        "C=COC(C)=O",
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classified = monc.moncls(pd.DataFrame({"SMILES": monomers}), smiColn="SMILES", dsp_rsl=False)
        made = polg.biplym(classified, targ=["polyolefin", "polyether", "polyester", "polyamide"], dsp_rsl=False)
    alone = made[made["mon2"] == ""]
    assert len(alone) >= 14
    for monomer, unit in zip(alone["mon1"], alone["polym"], strict=True):
        ours = polymerise(monomer)
        assert isinstance(ours, RepeatUnit), (monomer, ours)
        assert polymer_identity(ours.smiles) == polymer_identity(unit), monomer


@pytest.mark.parametrize(
    ("monomer", "unit"),
    [
        ("C=CC(N)=O", "*CC(*)C(N)=O"),
        ("C=C(Cl)Cl", "*CC(*)(Cl)Cl"),
        ("C=CC=C", None),
        ("CC=CC", None),
        ("C=CC1OCC=CCO1", None),
        ("not a molecule", None),
    ],
)
def test_strict_vinyl_rule(monomer, unit):
    assert vinyl_repeat_unit(monomer) == unit
