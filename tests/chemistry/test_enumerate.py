"""Repeat units from monomers: known polymers by each rule, a fixed order, and what is refused."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from rdkit import Chem

from chitransfer.chemistry.enumerate import (
    RULES,
    Reaction,
    _transformations,
    find_unused,
    list_reactions,
    run_reaction,
)
from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.data.monomers import read_monomers
from chitransfer.errors import DataError

SMALL = {
    "vinyl": ["C=Cc1ccccc1", "C=CC(=O)O"],
    "diol": ["OCCO", "OCCCCO"],
    "diacid": ["O=C(O)CCCCC(=O)O"],
    "diamine": ["NCCCCCCN"],
    "epoxide": ["C1CO1"],
}


@pytest.mark.parametrize(
    ("families", "polymer_class", "expected"),
    [
        ({"vinyl": ["C=Cc1ccccc1"]}, "vinyl", "*CC(*)c1ccccc1"),
        ({"cyclic_olefin": ["C1=CC2CCC1C2"]}, "vinyl", "*C1C2CCC(C2)C1*"),
        ({"diene": ["C=C(C)C=C"]}, "diene", "*CC(C)=CC*"),
        ({"hydroxy_acid": ["CC(O)C(=O)O"]}, "polyester", "*OC(C)C(*)=O"),
        # Units carry no stereo, whatever that of their monomer.
        ({"hydroxy_acid": ["C[C@H](O)C(=O)O"]}, "polyester", "*OC(C)C(*)=O"),
        ({"lactone": ["O=C1CCCCCO1"]}, "polyester", "*OCCCCCC(*)=O"),
        ({"diacid": ["O=C(O)c1ccc(C(=O)O)cc1"], "diol": ["OCCO"]}, "polyester", "*OCCOC(=O)c1ccc(C(*)=O)cc1"),
        ({"cyclic_anhydride": ["O=C1CCC(=O)O1"], "epoxide": ["CC1CO1"]}, "polyester", "*OCC(C)OC(=O)CCC(*)=O"),
        (
            {"bisphenol": ["CC(C)(c1ccc(O)cc1)c1ccc(O)cc1"]},
            "polycarbonate",
            "*Oc1ccc(C(C)(C)c2ccc(OC(*)=O)cc2)cc1",
        ),
        ({"epoxide": ["C1CO1"]}, "polyether", "*CCO*"),
        ({"cyclic_ether": ["C1CCOC1"]}, "polyether", "*CCCCO*"),
        (
            {"dihalide": ["O=S(=O)(c1ccc(Cl)cc1)c1ccc(Cl)cc1"], "bisphenol": ["Oc1ccc(O)cc1"]},
            "polyether",
            "*Oc1ccc(Oc2ccc(S(=O)(=O)c3ccc(*)cc3)cc2)cc1",
        ),
        (
            {"dihalide": ["O=C(c1ccc(F)cc1)c1ccc(F)cc1"], "bisphenol": ["Oc1ccc(O)cc1"]},
            "polyether",
            "*Oc1ccc(Oc2ccc(C(=O)c3ccc(*)cc3)cc2)cc1",
        ),
        ({"lactam": ["O=C1CCCCCN1"]}, "polyamide", "*NCCCCCC(*)=O"),
        ({"amino_acid": ["CNCC(=O)O"]}, "polyamide", "*N(C)CC(*)=O"),
        ({"diacid": ["O=C(O)CCCCC(=O)O"], "diamine": ["NCCCCCCN"]}, "polyamide", "*NCCCCCCNC(=O)CCCCC(*)=O"),
        (
            {"dianhydride": ["O=C1OC(=O)c2cc3c(cc21)C(=O)OC3=O"], "diamine": ["Nc1ccc(Oc2ccc(N)cc2)cc1"]},
            "polyimide",
            "*c1ccc(Oc2ccc(N3C(=O)c4cc5c(cc4C3=O)C(=O)N(*)C5=O)cc2)cc1",
        ),
        (
            {"diisocyanate": ["O=C=NCCCCCCN=C=O"], "diol": ["OCCCCO"]},
            "polyurethane",
            "*OCCCCOC(=O)NCCCCCCNC(*)=O",
        ),
        ({"diisocyanate": ["O=C=NCCCCCCN=C=O"], "diamine": ["NCCN"]}, "polyurea", "*NCCNC(=O)NCCCCCCNC(*)=O"),
        ({"silanediol": ["C[Si](C)(O)O"]}, "polysiloxane", "*O[Si](*)(C)C"),
        ({"silanediol": ["C[Si](C)(O)CC[Si](C)(C)O"]}, "polysiloxane", "*O[Si](C)(C)CC[Si](*)(C)C"),
    ],
)
def test_each_rule_makes_the_polymer_it_should(
    families: dict[str, list[str]], polymer_class: str, expected: str
) -> None:
    families = {name: [Chem.CanonSmiles(smiles) for smiles in members] for name, members in families.items()}
    units = [unit for unit in map(run_reaction, list_reactions(families, seed=0)) if unit is not None]
    assert (polymer_identity(expected), polymer_class) in {(unit.identity, unit.polymer_class) for unit in units}


def test_every_rule_is_known_to_smipoly_or_has_a_reaction_of_its_own() -> None:
    for index, rule in enumerate(RULES):
        assert _transformations(index), rule


def test_a_monomer_the_rule_does_not_fit_gives_nothing() -> None:
    epoxide_rule = next(i for i, rule in enumerate(RULES) if rule.families == (("epoxide",),))
    assert run_reaction(Reaction(epoxide_rule, ("CCO",))) is None


@pytest.mark.parametrize("monomer", ["C=Cc1ccc(C=C)cc1", "C=C(C)C(=O)OCCOC(=O)C(=C)C", "C=CC(=O)NCNC(=O)C=C"])
def test_a_crosslinking_monomer_gives_nothing(monomer: str) -> None:
    families = {"vinyl": [Chem.CanonSmiles(monomer)]}
    assert list(list_reactions(families, seed=0)) == []
    (told,) = find_unused(families)
    assert told == f"vinyl {Chem.CanonSmiles(monomer)} (two C=C that polymerise: it crosslinks)"


@pytest.mark.parametrize(
    ("monomer", "unit"),
    [
        ("C=CC(=O)OCC=C", "*CC(*)C(=O)OCC=C"),
        ("C=C(C)C(=O)OCC=C", "*CC(*)(C)C(=O)OCC=C"),
        ("C=Cc1ccc(CC=C)cc1", "*CC(*)c1ccc(CC=C)cc1"),
        ("C=CCOC=C", "*CC(*)OCC=C"),
        ("C=CC(=O)OCC=CC", "*CC(*)C(=O)OCC=CC"),
        ("C=CC(=C)C", "*CC(*)C(=C)C"),
        ("C=C(C#N)C(=O)OC", "*CC(*)(C#N)C(=O)OC"),
    ],
)
def test_one_polymerising_bond_is_enough_whatever_others_there_are(monomer: str, unit: str) -> None:
    families = {"vinyl": [Chem.CanonSmiles(monomer)]}
    (reaction,) = list_reactions(families, seed=0)
    found = run_reaction(reaction)
    assert found is not None
    assert found.identity == polymer_identity(unit)
    assert find_unused(families) == []


def test_an_acrylate_with_a_cyclic_olefin_polymerises_as_an_acrylate() -> None:
    reactions = list_reactions({"vinyl": [Chem.CanonSmiles("C=CC(=O)OC1CC2CC1C=C2")]}, seed=0)
    identities = [None if unit is None else unit.identity for unit in map(run_reaction, reactions)]
    assert sorted(identities, key=str) == [polymer_identity("*CC(*)C(=O)OC1CC2CC1C=C2"), None]


def test_monomers_that_nothing_is_made_of_are_found() -> None:
    families = {
        "vinyl": ["C=CC=O", "C=Cc1ccccc1"],
        "lactam": ["O=C1CCCN1"],
        # By a rule of our own, to which no list of SMiPoly's belongs.
        "cyclic_ether": ["CCO"],
        "diacid": ["O=C(O)CC(=O)O"],
    }
    assert find_unused(families) == [
        "vinyl C=CC=O",
        "lactam O=C1CCCN1",
        "cyclic_ether CCO",
        "diacid O=C(O)CC(=O)O (no partner in the list)",
    ]
    assert find_unused(SMALL) == []


def test_of_the_projects_own_list_33_take_part_in_nothing() -> None:
    assert Counter(one.split()[0] for one in find_unused(read_monomers())) == {
        "vinyl": 24,
        "cyclic_olefin": 2,
        "lactam": 5,
        "epoxide": 2,
    }


def test_units_are_linear_and_carry_their_identity() -> None:
    units = [unit for unit in map(run_reaction, islice(list_reactions(SMALL, seed=1), 40)) if unit is not None]
    assert units
    for unit in units:
        assert unit.identity.count("*") == 2
        assert polymer_identity(unit.identity) == unit.identity


def test_the_order_depends_on_the_seed_alone() -> None:
    orders = [tuple(list_reactions(SMALL, seed=seed)) for seed in range(6)]
    assert orders[3] == tuple(list_reactions(SMALL, seed=3))
    assert len(set(orders)) > 1
    assert len({frozenset(order) for order in orders}) == 1


def test_classes_take_turns() -> None:
    classes = [RULES[reaction.rule].polymer_class for reaction in list_reactions(SMALL, seed=0)]
    offered = set(classes)
    assert set(classes[: len(offered)]) == offered


@pytest.mark.slow
def test_the_projects_own_list_offers_every_class_the_guide_promises() -> None:
    counts = Counter(RULES[one.rule].polymer_class for one in list_reactions(read_monomers(), seed=0))
    promised = {
        "vinyl",
        "polyester",
        "polyamide",
        "polyether",
        "polycarbonate",
        "polyurethane",
        "polyimide",
        "polysiloxane",
    }
    assert promised <= set(counts)
    assert sum(counts.values()) > 50_000


def test_monomers_are_canonical_and_without_repeats() -> None:
    for family, members in read_monomers().items():
        assert len(set(members)) == len(members), family


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"name,SMILES\nx,C\n", r"line 1: missing column\(s\) family; found name, SMILES"),
        (b"family,SMILES\nvinyl,C=C\nvinyl,C1C\n", r"line 3: SMILES = 'C1C': not a readable SMILES\nCorrect them, or"),
        (b"family,SMILES\nvinyl,C=C\nvinyl,\n", "line 3: SMILES = '': not a readable SMILES"),
        (
            b"family,SMILES\nvinyls,C=C\n",
            "(?s)line 2: family = 'vinyls': there is no .*Known families: amino_acid, .*, vinyl",
        ),
        (
            b"family,SMILES\nvinyls,C=C\nvinyl,C=CC\nvinyl,C1C\n",
            r"2 of 3 rows cannot be used\n  line 2: family = 'vinyls': .*\n  line 4: SMILES = 'C1C': not",
        ),
        (b"family,SMILES\nvinyl,C=C\xe9\n", "line 2: not UTF-8 text"),
        (b"family,SMILES\nvinyl,C=C,styrene\n", "line 2: 3 cells"),
        (b"", "empty"),
    ],
)
def test_a_broken_monomer_list_says_where(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "monomers.csv"
    path.write_bytes(text)
    with pytest.raises(DataError, match=words):
        read_monomers(path)
