"""Subgroup counts: against hand-written ones, ugropy's oligomer differences, NIST's subgroup tables and brute force."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations

import pytest
import thermo.unifac
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from chitransfer.chemistry import cover
from chitransfer.chemistry import groups as module
from chitransfer.chemistry.cover import Candidate, CoverError, cheapest_covers
from chitransfer.chemistry.groups import (
    FragmentationError,
    count_matrix,
    molecule_groups,
    repeat_unit_groups,
    subgroups,
)
from chitransfer.chemistry.rdkit_drawing import import_ugropy

ugropy = import_ugropy()
# ugropy's solver announces its next version; the product has its own (chemistry.cover).
SOLVER_WARNING = pytest.mark.filterwarnings("ignore:PULP_CBC_CMD is deprecated:DeprecationWarning")


@pytest.mark.parametrize(
    ("smiles", "expected"),
    [
        ("*CC*", {"CH2": 1}),  # the primitive unit of polyethylene
        ("*CC(*)c1ccccc1", {"CH2": 1, "ACH": 5, "ACCH": 1}),
        ("*CCO*", {"CH2": 1, "CH2O": 1}),
        ("*CC(*)OC", {"CH2": 1, "CH": 1, "CH3O": 1}),
        ("*CC(*)OC(C)=O", {"CH2": 1, "CH": 1, "CH3COO": 1}),
        ("*CC(*)(C)C(=O)OC", {"CH3": 2, "CH2": 1, "C": 1, "COO": 1}),
        ("*O[Si](*)(C)C", {"CH3": 2, "SIO": 1}),
        ("*OC(=O)c1ccc(C(=O)OCC*)cc1", {"CH2": 2, "ACH": 4, "AC": 2, "COO": 2}),
        # gaps that the published list alone leaves open
        ("*CC(*)C(=O)NC(C)C", {"CH3": 2, "CH2": 1, "CH": 1, "AMHCH": 1}),
        ("*CC(*)N1CCCC1=O", {"CH2": 3, "AMCH2CH": 1}),
        ("*Oc1ccc(C(C)(C)c2ccc(OC(*)=O)cc2)cc1", {"CH3": 2, "C": 1, "ACH": 8, "AC": 4, "COO": 1, "O": 1}),
        ("*Oc1ccc(S(=O)(=O)c2ccc(*)cc2)cc1", {"ACH": 8, "AC": 4, "SU": 1, "O": 1}),
        ("*OCCOC(=O)NCCNC(*)=O", {"AMHCH2": 2, "CH2O": 2}),
        ("*C(=O)N*", {"AMH": 1}),
        # an amide across the ends of the unit, an imide that is no ketone, and rings that are no imidazolium
        ("*C(=O)NCCNC(=O)c1ccc(*)s1", {"AMHCH2": 2, "C4H2S": 1}),
        (
            "*C1CC(=O)N(c2cccc3c(N4C(=O)CC(*)C4=O)cccc23)C1=O",
            {"CH2": 2, "CH": 2, "ACH": 6, "AC": 4, "IMIDE": 2},
        ),
        ("*c1ccc2[nH]c(*)nc2c1", {"ACH": 3, "AC": 2, "anH": 1, "AC2N": 1}),
    ],
)
def test_counts_of_known_polymers(smiles: str, expected: dict[str, int]) -> None:
    assert repeat_unit_groups(smiles).by_name() == expected


# A carbonyl in a ring that RDKit calls aromatic, and the same without such a ring where there is one.
AROMATIC_CARBONYLS = {
    # Kapton as it is written in tables and as RDKit writes it, and a polyimide of the same kind with no fused core
    "*Oc1ccc(N2C(=O)c3cc4C(=O)N(c5ccc(*)cc5)C(=O)c4cc3C2=O)cc1": {"ACH": 10, "AC": 8, "O": 1, "IMIDE": 2},
    "*Oc1ccc(-n2c(=O)c3cc4c(=O)n(-c5ccc(*)cc5)c(=O)c4cc3c2=O)cc1": {"ACH": 10, "AC": 8, "O": 1, "IMIDE": 2},
    "*Oc1ccc(N2C(=O)c3ccc(cc3C2=O)-c2ccc3C(=O)N(c4ccc(*)cc4)C(=O)c3c2)cc1": {
        "ACH": 14, "AC": 10, "O": 1, "IMIDE": 2,
    },
    "*CC(*)N1C=CC(=O)NC1=O": {"CH2": 1, "CH=CH": 1, "AMCH": 1, "AMH": 1},
    "*CC(*)c1cc(=O)oc2ccccc12": {"CH2": 1, "CH": 1, "CH=C": 1, "ACH": 4, "AC": 2, "COO": 1},
    # carbazole keeps its rings, but not its nitrogen, which belongs to an amide
    "*CC(*)C(=O)n1c2ccccc2c2ccccc12": {"CH2": 1, "CH": 1, "ACH": 8, "AC": 4, "AM": 1},
    "CN1C(=O)c2ccccc2C1=O": {"CH3": 1, "ACH": 4, "AC": 2, "IMIDE": 1},
    "Cn1c(=O)c2cc3c(=O)n(C)c(=O)c3cc2c1=O": {"CH3": 2, "ACH": 2, "AC": 4, "IMIDE": 2},
    "O=c1cc[nH]c(=O)[nH]1": {"CH=CH": 1, "AMH": 2},
    "Cn1ccccc1=O": {"CH=CH": 2, "AMCH3": 1},
    "O=c1ccc2ccccc2o1": {"CH=CH": 1, "ACH": 4, "AC": 2, "COO": 1},
    "O=c1[nH]c2ccccc2c2ccccc12": {"ACH": 8, "AC": 4, "AMH": 1},
    "O=c1[nH]c2ccccc2[nH]1": {"ACH": 4, "AC": 2, "UREAH2": 1},
    "O=c1[nH]c2CCCCc2cc1": {"CH2": 4, "CH=CH": 1, "C=C": 1, "AMH": 1},
    # the carbonyl of xanthone stands between carbons
    "O=c1c2ccccc2oc2ccccc12": {"ACH": 8, "AC": 4, "CO": 1, "O": 1},
    # caffeine: its imidazole ring stays aromatic; carbonyldiimidazole is a urea
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C": {"CH3": 1, "AC": 1, "an": 1, "AC2HN": 1, "AMCH3": 2},
    "O=C(n1ccnc1)n1ccnc1": {"ACH": 2, "AC2H2N": 2, "UREA": 1},
    "O=Cn1cccc1": {"ACH": 4, "HCON": 1},
}  # fmt: skip


@pytest.mark.parametrize(("smiles", "expected"), AROMATIC_CARBONYLS.items())
def test_a_carbonyl_beside_aromatic_nitrogen_or_oxygen_is_no_ketone(smiles: str, expected: dict[str, int]) -> None:
    found = repeat_unit_groups(smiles) if "*" in smiles else molecule_groups(smiles)
    assert found.by_name() == expected


@pytest.mark.parametrize("smiles", [smiles for smiles in AROMATIC_CARBONYLS if "*" not in smiles])
def test_groups_of_such_rings_do_not_depend_on_how_they_are_written(smiles: str) -> None:
    written = Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(smiles), 10, randomSeed=1)
    assert {molecule_groups(text) for text in written} == {molecule_groups(smiles)}


def test_a_ring_with_a_carbonyl_and_a_double_bond_to_nitrogen_has_no_groups() -> None:
    with pytest.raises(FragmentationError, match="no UNIFAC group for the"):
        molecule_groups("O=c1[nH]cnc2ccccc12")


@pytest.mark.parametrize(
    ("labelled", "plain"),
    [
        ("[2H]O[2H]", "O"),
        ("[2H]C(Cl)(Cl)Cl", "ClC(Cl)Cl"),
        ("[2H]C([2H])([2H])S(=O)C([2H])([2H])[2H]", "CS(C)=O"),
        ("[13CH3]C#N", "CC#N"),
        ("[H]O[H]", "O"),
        ("C[S+](C)[O-]", "CS(C)=O"),
        ("C[S+2](C)([O-])[O-]", "CS(C)(=O)=O"),
    ],
)
def test_a_solvent_has_its_groups_whatever_its_labels_and_split_charges(labelled: str, plain: str) -> None:
    assert molecule_groups(labelled) == molecule_groups(plain)


def test_urethane_is_an_amide_beside_an_ether() -> None:
    found = repeat_unit_groups("*OCCOC(=O)NCCNC(*)=O").by_name()
    assert "COO" not in found
    assert "CH2NH" not in found


@pytest.mark.parametrize(
    "cuts", [("*CCO*", "*OCC*", "*COC*", "*CCOCCO*"), ("*CC(*)C(=O)OC", "*C(C*)C(=O)OC", "*CC(C(=O)OC)CC(*)C(=O)OC")]
)
def test_counts_do_not_depend_on_the_cut(cuts: tuple[str, ...]) -> None:
    assert len({repeat_unit_groups(cut) for cut in cuts}) == 1


def _hydrogen_capped(unit: str, n: int) -> str:
    """An oligomer written by text: the unit must be ``*…*`` with the second star last."""
    assert unit.startswith("*")
    assert unit.endswith("*")
    return "C" + unit[1:-1] * n + "C"


@SOLVER_WARNING
@pytest.mark.parametrize(
    "unit",
    ["*C*", "*CC(C)*", "*CC(O)*", "*CCO*", "*CCCCO*", "*OCCCCCC(=O)*", "*CC(Cl)*", "*CC(C(=O)O)*", "*CC(C#CC)*"],
)
def test_counts_are_what_an_oligomer_gains_with_one_more_unit(unit: str) -> None:
    """The oracle: ugropy's own fragmentations of two chains; the difference of some two of them is what we count."""
    longer, shorter = (
        ugropy.unifac.get_groups(_hydrogen_capped(unit, n), "smiles", search_multiple_solutions=True) for n in (4, 3)
    )
    ours = repeat_unit_groups(unit).by_name()
    differences = []
    for long in longer:
        for short in shorter:
            difference = Counter(long.subgroups)
            difference.subtract(short.subgroups)
            differences.append({name: count for name, count in difference.items() if count})
    assert ours in differences


@SOLVER_WARNING
@pytest.mark.parametrize(
    "smiles", ["O", "CO", "CCO", "CC(C)=O", "c1ccncc1", "ClC(Cl)Cl", "CN(C)C=O", "CS(C)=O", "OCCO"]
)
def test_solvents_are_fragmented_as_ugropy_does(smiles: str) -> None:
    assert molecule_groups(smiles).by_name() == ugropy.unifac.get_groups(smiles, "smiles").subgroups


def test_published_subgroups_are_thermos() -> None:
    known = {(round(g.R, 6), round(g.Q, 6), g.main_group_id) for g in thermo.unifac.UFSG.values()}
    published = [entry for entry in subgroups() if not entry.derived]
    assert {(round(g.R, 6), round(g.Q, 6), g.main_group) for g in published} == known
    by_name = {entry.name: entry for entry in published}
    assert by_name["HCO"].main_group == 10
    assert by_name["CHO"].main_group == 13


@pytest.mark.parametrize(
    ("ours", "number"),
    [("CHCO", 44), ("CCO", 45), ("ACNH", 80), ("ACN", 81), ("CHCN", 87), ("CCN", 88), ("C-S", 145)],
)
def test_derived_subgroups_have_the_values_nist_lists(ours: str, number: int) -> None:
    entry = next(group for group in subgroups() if group.name == ours)
    listed = thermo.unifac.NISTKTUFSG[number]
    assert entry.derived
    assert pytest.approx(listed.R, abs=2e-3) == entry.R
    assert pytest.approx(listed.Q, abs=2e-3) == entry.Q


def test_amide_core_with_its_two_neighbours_is_the_published_amide() -> None:
    values = {group.name: group for group in subgroups()}
    for quantity in ("R", "Q"):
        core, ch2, whole = (getattr(values[name], quantity) for name in ("AM", "CH2", "AM(CH2)2"))
        assert core + 2 * ch2 == pytest.approx(whole)


@pytest.mark.parametrize(
    ("whole", "parts"),
    [
        ("CHCO", "CO CH"), ("CCO", "CO C"), ("C-O", "O C"), ("CNH2", "NH2 C"), ("CNH", "NH C"), ("CHN", "N CH"),
        ("CN", "N C"), ("ACNH", "NH AC"), ("ACN", "N AC"), ("CHCN", "C#N CH"), ("CCN", "C#N C"), ("CHNO2", "NO2 CH"),
        ("CHSH", "SH CH"), ("CSH", "SH C"), ("CH2F", "F CH2"), ("CHF", "F CH"), ("CHF2", "F F CH"), ("C-S", "S C"),
        ("CH2SU", "SU CH2"), ("CHSU", "SU CH"), ("AMHCH", "AMH CH"), ("AMHC", "AMH C"), ("AMCH3CH", "AM CH3 CH"),
        ("AMCH2CH", "AM CH2 CH"), ("AM(CH)2", "AM CH CH"), ("AMCH3", "AM CH3"), ("AMCH2", "AM CH2"),
        ("AMCH", "AM CH"), ("AC2HN", "pyN ACH AC"), ("AC2H2N", "pyN ACH ACH"),
        ("AC2N", "pyN AC AC"), ("IMIDE", "AM CO"), ("IMIDEH", "AMH CO"), ("UREAH2", "AMH NH"), ("UREAH", "AMH N"),
        ("UREA", "AM N"), ("ANHYDRIDE", "COO CO"), ("UREAH3", "AMH2 NH"),
    ],
)  # fmt: skip
def test_derived_subgroups_are_the_sum_of_their_parts(whole: str, parts: str) -> None:
    values = {group.name: group for group in subgroups()}
    for quantity in ("R", "Q"):
        expected = sum(getattr(values[part], quantity) for part in parts.split())
        assert getattr(values[whole], quantity) == pytest.approx(expected, abs=1e-3)


def test_aromatic_sulfone_and_sulfide_match_nists_increments() -> None:
    values = {group.name: group for group in subgroups()}
    for ours, number in (("SU", 122), ("S", 187), ("CO", 178)):
        listed = thermo.unifac.NISTUFSG[number]  # listed together with the aromatic carbon
        R = values[ours].R + values["AC"].R
        Q = values[ours].Q + values["AC"].Q
        assert pytest.approx((listed.R, listed.Q), abs=2e-3) == (R, Q)


@pytest.mark.parametrize(
    ("smiles", "words"),
    [
        ("*CC(*)P(C)C", "element P"),
        ("*CC(*)C(=O)[O-]", "ion O-1"),
        ("*CC(*)[N+](C)(C)C", "ion N+1"),
        ("*CC(*)C(=O)OCCc1ccc(N=Nc2ccccc2)cc1", "N atom"),
        ("*CC(*)N1CCCC1=S", "C=S"),
        ("*CC(*)O[N+](=O)[O-]", "N atom"),
        ("*CC(*)S(=O)(=O)O", "O atom"),
        ("*CC(*)C(=O)NO", "N atom in O=CNO"),
        ("*CC(*)C(=O)OO", "O atom"),
        ("*CC(*)[Si](C)(C)O", "O atom"),
        ("*CC(*)S(=O)(=O)NC", "N atom"),
        ("*CC(*)C(=O)NN(C)C", "N atom"),
        ("*NNC(=O)c1cccc(C(*)=O)c1", "N atom"),
        ("*NC(=O)NNC(=O)NCCCCCC*", "N atom"),
        ("*CC(c1ccccc1)OO*", "O atom in COO"),
        ("*CC(*)C(=O)OOC(C)(C)C", "O atom in O=COO"),
        ("*CC(*)OO[Si](C)(C)C", "O atom in COO"),
        ("*N[Si](*)(C)C", "N atom in"),
        ("*CC(*)C(=O)F", "C atom in CC(=O)F"),
        ("*CC(*)C(=O)Br", "C atom in CC"),
        ("*CCC=C(*)F", "F atom in C=CF"),
        ("*CC(F)=C(F)C*", "F atom in C=CF"),
        ("*CC(*)C=C(F)F", "F atom in C=CF"),
        ("*CC(*)C#CF", "F atom in C#CF"),
        ("*CC(*)OC(=O)F", "F atom in O=CF"),
        ("*CC(*)C=CSC", "S atom in C=CSC"),
        ("*SC=CSCC*", "S atom in C=CSC"),
        ("*CC(*)C=CS", "S atom in C=CS"),
        ("*CC(*)C(=O)SC", "S atom in CSC=O"),
        ("*CCOC(=O)S*", "S atom in CSC=O"),
        ("*CC(*)CSC#N", "S atom in CSC#N"),
        ("*CC(*)CSS(C)(=O)=O", "S atom in CSS"),
        ("*CC(*)CSN(C)C", "S atom in CSN"),
        ("*CC(*)C[Si](C)(C)SC", "S atom in CS"),
        ("*CC(*)S(=O)(=O)OC", "O atom in COS(=O)=O"),
        ("*Oc1ccc(S(*)(=O)=O)cc1", "O atom in cOS(=O)=O"),
        ("*CCOS(=O)(=O)O*", "O atom in COS(=O)=O"),
        ("*CCOS(=O)O*", "O atom in COS=O"),
        ("*CC(*)COS(C)=O", "O atom in COS=O"),
        ("*CC(*)C(=O)N(C)OC", "N atom in CN(O)C=O"),
        ("*CC(*)C(=O)ON1C(=O)CCC1=O", "N atom in O=CN(O)C=O"),
        ("*CC(*)C(=O)NS(C)(=O)=O", "N atom in O=CNS(=O)=O"),
        ("*CC(*)NC(=O)NS(C)(=O)=O", "N atom in O=CNS(=O)=O"),
        ("*CC(*)C(=O)N(C)[Si](C)(C)C", "N atom in CN("),
        ("*CC(*)OC#N", "O atom in COC#N"),
        ("*CC(*)N(C)C#N", "N atom in CN(C)C#N"),
        ("*CC", "one *"),
        ("nonsense", "SMILES"),
    ],
)
def test_what_has_no_groups_says_why(smiles: str, words: str) -> None:
    with pytest.raises(FragmentationError, match=re.escape(words)):
        repeat_unit_groups(smiles)


@pytest.mark.parametrize(
    ("smiles", "groups"),
    [
        ("*CC(*)(F)F", "CH2 CF2"),
        ("*CCSS*", "CH2S CH2S"),
        ("*Sc1ccc(*)cc1", "ACH ACH ACH ACH AC AC S"),
        ("*CC(*)S(=O)(=O)C=C", "CH2 CHSU CH2=CH"),
        ("*CC=C(*)OC", "CH2 CH=C CH3O"),
        ("*CC=C(Br)C*", "CH2 CH2 CH=C BR"),
        ("*Oc1ccc(OC=COc2ccc(*)cc2)cc1", "ACH ACH ACH ACH ACH ACH ACH ACH AC AC AC AC CH=CH O O O"),
    ],
)
def test_neighbours_of_what_is_refused_have_their_groups(smiles: str, groups: str) -> None:
    assert repeat_unit_groups(smiles).by_name() == Counter(groups.split())


@pytest.mark.parametrize("smiles", ["F", "FF", "BrBr", "II", "OO", "NN", "NO", "OS(=O)(=O)O"])
def test_small_molecules_are_not_made_of_the_groups_of_organic_ones(smiles: str) -> None:
    with pytest.raises(FragmentationError, match=r"no UNIFAC group for the (F|Br|I|O|N) atom"):
        molecule_groups(smiles)


def test_unreadable_solvent_says_so() -> None:
    with pytest.raises(FragmentationError, match="not a readable SMILES"):
        molecule_groups("C1CC")


@pytest.mark.parametrize(
    "smiles", ["O=C(NCc1ccco1)N1CCN(S(C)(=O)=O)CC1", "FC(F)(F)c1ccncc1Cl", "C[Si](C)(C)OCC#N", "CCO"]
)
def test_leaving_out_patterns_that_cannot_match_changes_nothing(smiles: str, monkeypatch: pytest.MonkeyPatch) -> None:
    molecule = Chem.MolFromSmiles(smiles)
    quick = module._matches(molecule)
    every = tuple((index, pattern, frozenset()) for index, pattern, _ in module._patterns())
    monkeypatch.setattr(module, "_patterns", lambda: every)
    assert module._matches(molecule) == quick


def test_every_atom_is_counted_once() -> None:
    """Heavy atoms of the groups add up to those of the unit, for a polymer of many groups."""
    unit = "*Oc1ccc(C(C)(C)c2ccc(OC(=O)NCCCCCCNC(*)=O)cc2)cc1"
    patterns = {index: pattern for index, pattern, _ in module._patterns()}
    counted = sum(patterns[index].GetNumAtoms() * count for index, count in repeat_unit_groups(unit).counts)
    assert counted == Chem.MolFromSmiles(unit).GetNumAtoms() - 2


@pytest.mark.parametrize("n", [2, 16, 20, 60])
def test_long_grafts_get_the_best_of_very_many_covers(n: int) -> None:
    """By hand: each unit of the ester chain starts with the CH2 of the unit before; the first carbonyl has none."""
    found = repeat_unit_groups(f"*CC(*)C(=O){'OCC(=O)' * n}OC").by_name()
    assert found == {"CH3": 1, "CH2": 1, "CH": 1, "CH2COO": n, "COO": 1}
    found = repeat_unit_groups(f"*CC(*)C{'OC' * n}").by_name()
    assert found == {"CH2": 2, "CH": 1, "CH3O": 1, "CH2O": n - 1}


def test_a_search_that_is_given_up_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cover, "MOST_COVERS", 2)
    with pytest.raises(FragmentationError, match="search for the best cover was given up at 2 partial covers"):
        molecule_groups("CC(C)OC(C)OCOC(C)OCC")
    separate = {Candidate(piece, frozenset({atom}), (0, 1)) for atom in (0, 1) for piece in (0, 1)}
    with pytest.raises(CoverError, match="given up"):
        cheapest_covers([0, 1], separate)


def test_count_matrix_has_the_counts() -> None:
    found = repeat_unit_groups("*CC(*)c1ccccc1")
    matrix = count_matrix([found, molecule_groups("O")])
    assert matrix.shape == (2, len(subgroups()))
    assert matrix.sum(axis=1).tolist() == [7.0, 1.0]


PIECES = st.lists(
    st.tuples(st.integers(0, 4), st.frozensets(st.integers(0, 4), min_size=1, max_size=3), st.integers(0, 1)),
    max_size=9,
)


@settings(max_examples=150)
@given(n=st.integers(1, 5), pieces=PIECES)
def test_covers_are_those_of_brute_force(n: int, pieces: list[tuple[int, frozenset[int], int]]) -> None:
    universe = list(range(n))
    candidates = {Candidate(piece, atoms, (extra, 1)) for piece, atoms, extra in pieces if max(atoms) < n}
    best: tuple[int, int] | None = None
    expected: set[tuple[int, ...]] = set()
    for size in range(1, n + 1):
        for chosen in combinations(sorted(candidates, key=repr), size):
            atoms = [atom for candidate in chosen for atom in candidate.atoms]
            if sorted(atoms) == universe:
                cost = (sum(c.cost[0] for c in chosen), sum(c.cost[1] for c in chosen))
                if best is None or cost < best:
                    best, expected = cost, set()
                if cost == best:
                    expected.add(tuple(sorted(c.piece for c in chosen)))
    assert {tuple(sorted(pieces)) for pieces in cheapest_covers(universe, candidates)} == expected
