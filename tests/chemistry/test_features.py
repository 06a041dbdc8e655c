"""Features against raw RDKit on molecules written by hand, and the recipes that name them."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import Crippen, Descriptors, Lipinski, MolSurf, rdFingerprintGenerator

from chitransfer.chemistry import vectors as vectors_module
from chitransfer.chemistry.features import (
    DESCRIPTORS,
    FeatureCache,
    FeatureRecipe,
    featurise_polymers,
    featurise_solvents,
)
from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.errors import CheckpointError, ConfigError, DataError

# Written so that text repeated end to end is the chain; shortest units, whose features are those of the text.
CHAINS = [
    "CCO",
    "CC(c1ccccc1)",
    "CC(C)(C(=O)OC)",
    "CC(C(=O)NC(C)C)",
    "C",
    "C(F)(F)",
    "O[Si](C)(C)",
    "OCCOC(=O)c1ccc(cc1)C(=O)",
    "NCCCCCC(=O)",
    "NCCCCCCNC(=O)CCCCC(=O)",
    "C1CCN(CC1)C(=O)",
    "c1ccc(cc1)",
    "c1ccc(s1)",
    "CC(C1CCCO1)",
    "CC(C(=O)[O-])",
    "CSS",
    "N1C(=O)c2ccc(cc2C1=O)Oc1ccc2C(=O)N(C(=O)c2c1)c1ccc(cc1)",
]
CUTS = [
    ["*CCO*", "*OCC*", "*COC*", "*CCOCCO*", "[2*]OCCOCC[1*]"],
    ["*CC(*)c1ccccc1", "*C(c1ccccc1)C*", "*CC(CC(*)C1=CC=CC=C1)c1ccccc1"],
    ["*C/C=C\\C*", "*/C=C\\CC*"],
    ["*OCCOC(=O)c1ccc(C(*)=O)cc1", "*C(=O)OCCOC(=O)c1ccc(*)cc1", "*CCOC(=O)c1ccc(C(=O)O*)cc1"],
    ["*=CC=*", "*C=C*"],
]
RAW: dict[str, Callable[[Chem.Mol], float]] = {
    "MolWt": Descriptors.MolWt,  # type: ignore[attr-defined]
    "MolLogP": Crippen.MolLogP,  # type: ignore[attr-defined]
    "MolMR": Crippen.MolMR,  # type: ignore[attr-defined]
    "TPSA": MolSurf.TPSA,  # type: ignore[attr-defined]
    "LabuteASA": MolSurf.LabuteASA,  # type: ignore[attr-defined]
    "NumHDonors": Lipinski.NumHDonors,
    "NumHAcceptors": Lipinski.NumHAcceptors,
    "NumHeteroatoms": Lipinski.NumHeteroatoms,
    "NumRotatableBonds": Lipinski.NumRotatableBonds,
    "RingCount": Lipinski.RingCount,
    "NumAromaticRings": Lipinski.NumAromaticRings,
    "FractionCSP3": Lipinski.FractionCSP3,
    "HeavyAtomCount": Lipinski.HeavyAtomCount,
}
N_LONG = 14


def chain(text: str, n_units: int) -> Chem.Mol:
    return Chem.MolFromSmiles(text * n_units)


def count_carbons(molecule: Chem.Mol) -> tuple[int, int]:
    """All carbons, and the saturated ones."""
    carbons = [atom for atom in molecule.GetAtoms() if atom.GetSymbol() == "C"]
    return len(carbons), sum(atom.GetHybridization() == Chem.HybridizationType.SP3 for atom in carbons)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0, 2, 3])
@pytest.mark.parametrize("text", CHAINS)
def test_periodic_counts_are_what_an_open_chain_gains_with_a_unit(text: str, radius: int) -> None:
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=1024)
    longer, shorter = (
        generator.GetCountFingerprintAsNumPy(chain(text, n)).astype(np.int64) for n in (N_LONG + 1, N_LONG)
    )
    recipe = FeatureRecipe(fingerprint_bits=1024, fingerprint_radius=radius)
    (vector,) = featurise_polymers([f"*{text}*"], recipe)
    np.testing.assert_array_equal(vector[:1024], longer - shorter)


@pytest.mark.parametrize("text", ["C", "CCO", "CC(C)", "CSS"])
def test_wide_environments_do_not_meet_themselves_around_the_ring(text: str) -> None:
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=9, fpSize=1024)
    longer, shorter = (generator.GetCountFingerprintAsNumPy(chain(text, n)).astype(np.int64) for n in (31, 30))
    (vector,) = featurise_polymers([f"*{text}*"], FeatureRecipe(fingerprint_bits=1024, fingerprint_radius=9))
    np.testing.assert_array_equal(vector[:1024], longer - shorter)


@pytest.mark.parametrize("text", CHAINS)
def test_periodic_descriptors_are_the_growth_of_an_open_chain_per_heavy_atom(text: str) -> None:
    (vector,) = featurise_polymers([f"*{text}*"], FeatureRecipe())
    values = dict(zip(DESCRIPTORS, vector[2048:], strict=True))
    longer, shorter = chain(text, N_LONG + 1), chain(text, N_LONG)
    n_heavy = longer.GetNumHeavyAtoms() - shorter.GetNumHeavyAtoms()
    assert values.pop("HeavyAtomCount") == n_heavy
    (carbons, saturated), (fewer, fewer_saturated) = count_carbons(longer), count_carbons(shorter)
    fraction = (saturated - fewer_saturated) / (carbons - fewer) if carbons else 0.0
    assert values.pop("FractionCSP3") == pytest.approx(fraction)
    for name, value in values.items():
        growth = RAW[name](longer) - RAW[name](shorter)
        assert value == pytest.approx(growth / n_heavy, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("cuts", CUTS)
def test_cuts_of_a_chain_have_the_same_features_to_the_last_bit(cuts: list[str]) -> None:
    features = featurise_polymers(cuts, FeatureRecipe())
    assert len({row.tobytes() for row in features}) == 1


@pytest.mark.parametrize(
    "variants",
    [
        # syndiotactic, whose unit has two repeats, isotactic, and without stereochemistry
        ["*C[C@H](c1ccccc1)C[C@@H](*)c1ccccc1", "*C[C@H](c1ccccc1)C[C@H](*)c1ccccc1", "*CC(*)c1ccccc1"],
        ["*O[C@H](C)C(=O)O[C@@H](C)C(*)=O", "*O[C@H](C)C(*)=O", "*OC(C)C(*)=O"],
        ["*C/C=C/CC/C=C\\C*", "*C/C=C/C*", "*CC=CC*"],
    ],
)
def test_polymers_that_differ_in_stereo_alone_have_the_same_features(variants: list[str], tmp_path: Path) -> None:
    assert len({polymer_identity(variant) for variant in variants}) == len(variants)
    features = featurise_polymers(variants, FeatureRecipe())
    assert len({row.tobytes() for row in features}) == 1
    kept, index = FeatureCache(tmp_path).polymer_features(variants, FeatureRecipe())
    np.testing.assert_array_equal(kept.toarray()[index], features)


def test_periodic_features_do_not_depend_on_the_size_of_the_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    smiles = [f"*{text}*" for text in CHAINS]
    known = featurise_polymers(smiles, FeatureRecipe())
    monkeypatch.setattr(vectors_module, "units_for_ring", lambda n_backbone, radius: 25)
    larger = featurise_polymers(smiles, FeatureRecipe())
    np.testing.assert_array_equal(larger[:, :2048], known[:, :2048])
    np.testing.assert_allclose(larger[:, 2048:], known[:, 2048:], rtol=1e-5, atol=1e-6)


def test_a_ring_in_the_unit_is_told_from_the_ring_of_units() -> None:
    cyclic, open_chain = featurise_polymers(["*C1CCC(*)CC1", "*CCCC*"], FeatureRecipe())
    shared = np.flatnonzero((cyclic[:2048] > 0) & (open_chain[:2048] > 0))
    assert len(shared) == 0


@pytest.mark.parametrize("smiles", ["*CCO*", "*OCC*", "*CC(*)c1ccccc1", "*=CC=*", "*NCCCCCC(*)=O", "[1*]CC[2*]"])
def test_repeat_unit_features_are_rdkits_of_the_unit_as_written(smiles: str) -> None:
    molecule = Chem.MolFromSmiles(smiles.replace("[1*]", "*").replace("[2*]", "*").replace("*", "C"))
    (vector,) = featurise_polymers([smiles], FeatureRecipe(representation="repeat_unit"))
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    np.testing.assert_array_equal(vector[:2048], generator.GetFingerprintAsNumPy(molecule))
    expected = [RAW[name](molecule) for name in DESCRIPTORS]
    np.testing.assert_allclose(vector[2048:], np.array(expected, dtype=np.float32), rtol=1e-6)


@pytest.mark.parametrize("representation", ["periodic", "repeat_unit"])
@pytest.mark.parametrize("smiles", ["O", "CCO", "c1ccccc1", "ClC(Cl)Cl", "[Ar]", "[Na+].[Cl-]", "CN1CCCC1=O", "[H][H]"])
def test_solvent_features_are_rdkits_of_the_molecule(smiles: str, representation: str) -> None:
    recipe = FeatureRecipe(representation=representation, with_solvent=True)  # type: ignore[arg-type]
    (vector,) = featurise_solvents([smiles], recipe)
    molecule = Chem.MolFromSmiles(smiles)
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    np.testing.assert_array_equal(vector[:2048], generator.GetCountFingerprintAsNumPy(molecule))
    expected = [RAW[name](molecule) for name in DESCRIPTORS]
    np.testing.assert_allclose(vector[2048:], np.array(expected, dtype=np.float32), rtol=1e-6)


def test_chosen_descriptors_come_in_the_chosen_order() -> None:
    every = featurise_polymers(["*CCO*"], FeatureRecipe(fingerprint_bits=128))
    some = featurise_polymers(["*CCO*"], FeatureRecipe(fingerprint_bits=128, descriptors=("TPSA", "MolWt")))
    expected = every[0, [128 + DESCRIPTORS.index("TPSA"), 128 + DESCRIPTORS.index("MolWt")]]
    np.testing.assert_array_equal(some[0, 128:], expected)
    none = featurise_solvents(["O"], FeatureRecipe(fingerprint_bits=128, descriptors=()))
    assert none.shape == (1, 128)


def test_features_of_the_real_tables_are_finite_and_whole_counts(shared_data: Path) -> None:
    with (shared_data / "solubility.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    units, solvents = (sorted({row[column] for row in rows}) for column in ("SMILES", "solvent"))
    for features in (featurise_polymers(units, FeatureRecipe()), featurise_solvents(solvents, FeatureRecipe())):
        assert features.dtype == np.float32
        assert np.isfinite(features).all()
        np.testing.assert_array_equal(features[:, :2048], np.rint(features[:, :2048]))


def test_inputs_are_not_changed_and_repeats_allowed() -> None:
    smiles = ["*OCC*", "*CCO*", "*OCC*"]
    given = list(smiles)
    features = featurise_polymers(smiles, FeatureRecipe())
    featurise_polymers(smiles, FeatureRecipe(representation="repeat_unit"))
    cached, index = FeatureCache(None).polymer_features(smiles, FeatureRecipe())
    assert smiles == given
    np.testing.assert_array_equal(cached[index].toarray(), features)
    assert index.dtype == np.int64
    assert cached.shape[0] == 1


def test_no_structures_give_no_rows() -> None:
    assert featurise_polymers([], FeatureRecipe()).shape == (0, 2061)
    assert featurise_solvents([], FeatureRecipe()).shape == (0, 2061)
    features, index = FeatureCache(None).polymer_features([], FeatureRecipe())
    assert features.shape == (0, 2061)
    assert index.shape == (0,)


@pytest.mark.parametrize("smiles", ["CCO", "*CC", "*CC(*", ""])
def test_errors_name_the_structure(smiles: str) -> None:
    recipe = FeatureRecipe()
    for call in (
        lambda: featurise_polymers(["*CCO*", smiles], recipe),
        lambda: featurise_polymers([smiles], dataclasses.replace(recipe, representation="repeat_unit")),
        lambda: FeatureCache(None).polymer_features(["*CCO*", smiles], recipe),
    ):
        with pytest.raises(DataError) as caught:
            call()
        assert str(caught.value).startswith(f"{smiles}: ")


@pytest.mark.parametrize("smiles", ["", "C(", "not a molecule"])
def test_unreadable_solvents_are_named(smiles: str) -> None:
    with pytest.raises(DataError, match="solvent") as caught:
        featurise_solvents(["O", smiles], FeatureRecipe())
    assert repr(smiles) in str(caught.value)


def test_a_descriptor_that_is_not_finite_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = vectors_module._all_but_rotatable_bonds
    monkeypatch.setattr(vectors_module, "_all_but_rotatable_bonds", lambda ring: plain(ring) | {"TPSA": np.nan})
    with pytest.raises(DataError, match=r"\*CCO\*: .*TPSA"):
        featurise_polymers(["*CCO*"], FeatureRecipe())


# ---------------------------------------------------------------------------------------------------------------------
# Recipe
# ---------------------------------------------------------------------------------------------------------------------


def test_the_guides_family_is_2048_bits_and_13_descriptors() -> None:
    recipe = FeatureRecipe()
    assert (recipe.fingerprint_bits, recipe.fingerprint_radius, len(recipe.descriptors)) == (2048, 2, 13)
    assert recipe.n_features == recipe.n_structure_features == len(recipe.names()) == 2061


def test_names_cover_polymer_and_solvent() -> None:
    recipe = FeatureRecipe(fingerprint_bits=64, with_solvent=True)
    assert recipe.n_features == 2 * recipe.n_structure_features == len(recipe.names()) == len(set(recipe.names()))
    assert recipe.names()[64] == "MolWt"
    assert recipe.names()[77 + 64] == "solvent_MolWt"


def test_recipes_survive_a_checkpoint_and_differ_by_digest() -> None:
    recipes = [
        FeatureRecipe(),
        FeatureRecipe(representation="repeat_unit"),
        FeatureRecipe(fingerprint_bits=1024),
        FeatureRecipe(fingerprint_radius=3),
        FeatureRecipe(descriptors=("MolWt",)),
        FeatureRecipe(with_solvent=True),
    ]
    assert len({recipe.digest() for recipe in recipes}) == len(recipes)
    for recipe in recipes:
        assert FeatureRecipe.from_dict(recipe.to_dict()) == recipe
        assert FeatureRecipe.from_dict(recipe.to_dict()).digest() == recipe.digest()


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"colour": "red"},
        {"descriptors": ["MolWt", "Luck"]},
        {"representation": "drawn"},
        {"version": "1"},
    ],
)
def test_recipes_of_other_releases_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        FeatureRecipe.from_dict(FeatureRecipe().to_dict() | change)
    incomplete = FeatureRecipe().to_dict()
    del incomplete["descriptors"]
    with pytest.raises(CheckpointError):
        FeatureRecipe.from_dict(incomplete)


@pytest.mark.parametrize(
    "values",
    [
        {"representation": "drawn"},
        {"fingerprint_bits": 0},
        {"fingerprint_radius": -1},
        {"descriptors": ("Luck",)},
        {"descriptors": ("MolWt", "MolWt")},
    ],
)
def test_impossible_recipes_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        FeatureRecipe(**values)  # type: ignore[arg-type]
