"""Structure-based names to repeat units: against units written by hand, and silence on names of other kinds."""

from __future__ import annotations

import pytest
from rdkit import Chem

from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.data.structure_names import repeat_unit_from_name

BY_HAND = {
    "oxyethylene": "*CCO*",
    "oxymethylene": "*CO*",
    "oxytetramethylene": "*CCCCO*",
    "oxycarbonylpentamethylene": "*OC(=O)CCCCC*",
    "oxyhexanoyl": "*OCCCCCC(*)=O",
    "oxyhexanoyliminoethylene": "*OCCCCCC(=O)NCC*",
    "N-(perfluorooctylethylenecarbonyl)iminoethylene": "*CCN(*)C(=O)CC" + "C(F)(F)" * 7 + "C(F)(F)F",
    "oxyterephthaloyloxyethylene": "*OCCOC(=O)c1ccc(C(*)=O)cc1",
    "oxy-2,6-dimethyl-1,4-phenylene": "*Oc1c(C)cc(*)cc1C",
    "oxycarbonyloxy-1,4-phenylene-isopropylidene-1,4-phenylene": "*Oc1ccc(C(C)(C)c2ccc(OC(*)=O)cc2)cc1",
    "imino-(1-oxohexamethylene)": "*NCCCCCC(*)=O",
    "iminoadipoyliminododecamethylene": "*NCCCCCCCCCCCCNC(=O)CCCCC(*)=O",
    "imino-(1-oxo-3-methyltrimethylene)": "*NC(=O)CC(C)*",
    "oxycarbonyl-1,2-propylene": "*OC(C)CC(*)=O",
    "oxycarbonylethylidene": "*OC(C)C(*)=O",
    "oxy-1-oxo-1,2-propylene": "*OC(C)C(*)=O",
    "N-propanoyliminoethylene": "*CCN(*)C(=O)CC",
    "N-n-hexyliminocarbonyl": "*N(CCCCCC)C(*)=O",
    "thio-1,4-phenylene": "*Sc1ccc(*)cc1",
    "oxy-1,4-phenylenesulfonyl-1,4-phenylene": "*Oc1ccc(S(=O)(=O)c2ccc(*)cc2)cc1",
    "oxymethylphenylsilylene": "*O[Si](*)(C)c1ccccc1",
    "di-n-hexylsilylene": "*[Si](*)(CCCCCC)CCCCCC",
    "bis(trifluoroethoxy)phosphazene": "*N=P(*)(OCC(F)(F)F)OCC(F)(F)F",
    "4-nitrophenoxyphenoxyphosphazene": "*N=P(*)(Oc1ccccc1)Oc1ccc([N+](=O)[O-])cc1",
    "2,5-di-n-butoxy-1,4-phenylene": "*c1cc(OCCCC)c(*)cc1OCCCC",
    "oxyfumaroyloxytetramethylene": "*OC(=O)/C=C/C(=O)OCCCC*",
    "imino-1-carboxy-1,3-propylenecarbonyl": "*NC(C(=O)O)CCC(*)=O",
    "iminocarbonylpyridine-2,6-diyl-carbonylimino-1,4-phenylene": "*NC(=O)c1cccc(C(=O)Nc2ccc(*)cc2)n1",
    "iminoisophthaloylimino-1,3-phenylene": "*NC(=O)c1cccc(C(=O)Nc2cccc(*)c2)c1",
    "hydrazoadipoylhydrazoisophthaloyl": "*NNC(=O)CCCCC(=O)NNC(=O)c1cccc(C(*)=O)c1",
    "oxy-2,2,2-trichloroethylidene": "*OC(*)C(Cl)(Cl)Cl",
    "oxymethylenecyclopropylidenemethyleneoxyhexamethylene": "*OCC1(CC1)COCCCCCC*",
    "1,4-phenylene-1,2-diphenylethenylene": "*c1ccc(C(c2ccccc2)=C(*)c2ccccc2)cc1",
    "oxyisophthaloyloxy-1,4-phenylene-fluorenylidene-1,4-phenylene":
    "*OC(=O)c1cccc(C(=O)Oc2ccc(C3(c4ccc(*)cc4)c4ccccc4-c4ccccc43)cc2)c1",
}  # fmt: skip


@pytest.mark.parametrize(("name", "unit"), BY_HAND.items())
def test_names_spell_their_unit(name, unit):
    made = repeat_unit_from_name(name)
    assert made is not None
    assert polymer_identity(made) == polymer_identity(unit)


# Carbons of the acids that the names of acyl groups come from.
ACIDS = {"oxalyl": 2, "tartronoyl": 3, "succinoyl": 4, "glutaroyl": 5, "adipoyl": 6, "azelaoyl": 9, "sebacoyl": 10}
ACIDS |= {"dodecanedioyl": 12, "fumaroyl": 4, "isophthaloyl": 8, "terephthaloyl": 8, "propanoyl": 3, "octadecanoyl": 18}


@pytest.mark.parametrize(("acyl", "n_carbons"), ACIDS.items())
def test_acyl_groups_have_the_carbons_of_their_acid(acyl: str, n_carbons: int) -> None:
    unit = repeat_unit_from_name(f"oxy{acyl}")
    assert unit is not None
    assert sum(atom.GetSymbol() == "C" for atom in Chem.MolFromSmiles(unit).GetAtoms()) == n_carbons


@pytest.mark.parametrize("hyphenated", ["oxy-ethylene", "oxyethylene", "hexafluoroiso-propylidene-1,4-phenylene"])
def test_line_breaks_of_the_printed_name_do_not_matter(hyphenated):
    assert repeat_unit_from_name(hyphenated) == repeat_unit_from_name(
        hyphenated.replace("o-p", "op").replace("y-e", "ye")
    )


@pytest.mark.parametrize(
    "name",
    [
        "", "styrene", "ethylene", "e-caprolactam", "vinyl alcohol", "oxyphenylene", "oxyxylylene", "1,4-phenyl",
        "imino(", "oxy-7-methyltetramethylene", "oxy-1,9-phenylene", "trimethyl", "poly", "oxy" * 3 + "z",
        "2,2,2-trimethylethylene", "penta",
    ],
)  # fmt: skip
def test_other_names_are_left_alone(name):
    assert repeat_unit_from_name(name) is None
