"""Oligomers and rings of units against molecules written by hand."""

from __future__ import annotations

import pytest
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors

from chitransfer.chemistry.polymers import oligomer, ring_of_units
from chitransfer.chemistry.repeat_units import parse_repeat_unit
from chitransfer.chemistry.vectors import units_for_ring


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


def test_rings_through_both_sides_of_a_phenylene_count_once() -> None:
    """All 2²⁵ of them, which RDKit finds from 2026.9 on if it is asked to, would fill the memory."""
    ring = ring_of_units("*OCCOC(=O)c1ccc(cc1)C(*)=O", 25)
    assert ring.GetRingInfo().NumRings() == 26


@pytest.mark.parametrize(("n_backbone", "expected"), [(1, 12), (2, 6), (3, 4), (5, 3), (14, 1)])
def test_rings_have_twelve_backbone_atoms(n_backbone: int, expected: int) -> None:
    assert units_for_ring(n_backbone, 2) == expected
    assert units_for_ring(1, 6) == 14


def test_a_caller_may_change_its_molecule() -> None:
    before = Chem.MolToSmiles(parse_repeat_unit("*CCO*"))
    parse_repeat_unit("*CCO*").GetAtomWithIdx(1).SetAtomicNum(14)
    oligomer("*CCO*", 3).GetAtomWithIdx(1).SetAtomicNum(14)
    assert Chem.MolToSmiles(parse_repeat_unit("*CCO*")) == before
    assert all(atom.GetIsotope() == 0 for atom in parse_repeat_unit("[1*]CC[2*]").GetAtoms())
