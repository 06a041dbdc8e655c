"""χ from UNIFAC: against thermo's own UNIFAC class, a calculation by hand, and the measured tables."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import thermo.unifac
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from chitransfer.chemistry import unifac
from chitransfer.chemistry.groups import (
    FragmentationError,
    Groups,
    count_matrix,
    molecule_groups,
    repeat_unit_groups,
    subgroups,
)
from chitransfer.chemistry.unifac import (
    chi_of_groups,
    chi_of_smiles,
    default_parameters,
    fit_a_b,
    interactions,
    method_name,
)
from chitransfer.errors import DataError

PUBLISHED_ONLY = ["*CC(*)c1ccccc1", "*CC(*)OC(C)=O", "*CCO*", "*CC(*)O", "*CC(*)(C)C(=O)OC", "*CC(*)C(=O)NCC"]
SOLVENTS = ["O", "Cc1ccccc1", "CC(C)=O", "CCO", "ClC(Cl)Cl", "CCCCCC"]
NAMED_IN_THERMO = {"HCO": 20, "CHO": 26}


def _thermo_groups(groups: Groups, times: int = 1) -> dict[int, int]:
    numbers = {entry.group.upper().replace(" ", ""): number for number, entry in thermo.unifac.UFSG.items()}
    return {
        NAMED_IN_THERMO.get(name, numbers[name.upper().replace(" ", "")]): count * times
        for name, count in groups.by_name().items()
    }


def _chi_from_thermo(polymer: str, solvent: str, T: float, phi: float, table: dict) -> float:
    """χ of a chain of 40 units from thermo's activity coefficient of the solvent (longer ones overflow its γ of it)."""
    n = 40
    chain, molecule = repeat_unit_groups(polymer), molecule_groups(solvent)
    volumes = np.array([entry.R for entry in subgroups()])
    r = n * float(count_matrix([chain])[0] @ volumes) / float(count_matrix([molecule])[0] @ volumes)
    x1 = (1 - phi) / ((1 - phi) + phi / r)
    model = thermo.unifac.UNIFAC.from_subgroups(
        T=T,
        xs=[x1, 1 - x1],
        chemgroups=[_thermo_groups(molecule), _thermo_groups(chain, n)],
        subgroups=thermo.unifac.UFSG,
        interaction_data=table,
        version=0,
    )
    ln_a1 = math.log(x1 * model.gammas()[0])
    return (ln_a1 - math.log(1 - phi) - (1 - 1 / r) * phi) / phi**2


@pytest.mark.parametrize("polymer", PUBLISHED_ONLY)
@pytest.mark.parametrize("phi", [0.2, 0.8])
def test_agrees_with_thermos_unifac(polymer: str, phi: float) -> None:
    thermo.unifac.load_unifac_ip()
    for solvent in SOLVENTS:
        for T in (280.0, 370.0):
            expected = _chi_from_thermo(polymer, solvent, T, phi, thermo.unifac.UF2IP)
            found = chi_of_smiles(polymer, solvent, [T], volume_fraction=phi, parameters="unifac-2.0")[0]
            assert found == pytest.approx(expected, abs=2e-8)


def test_original_parameters_agree_with_thermos_unifac() -> None:
    thermo.unifac.load_unifac_ip()
    for polymer in PUBLISHED_ONLY:
        expected = _chi_from_thermo(polymer, "O", 298.15, 0.8, thermo.unifac.UFIP)
        assert chi_of_smiles(polymer, "O")[0] == pytest.approx(expected, abs=2e-8)


def test_worked_example_of_the_documentation(project_root: Path) -> None:
    """Poly(vinyl alcohol) in water at 298.15 K: every number by hand, as docs/physics.md prints them."""
    T, phi2 = 298.15, 0.8
    R = {"CH2": 0.6744, "CH": 0.4469, "OH": 1.0, "H2O": 0.92}
    Q = {"CH2": 0.540, "CH": 0.228, "OH": 1.2, "H2O": 1.4}
    main = {"CH2": "alkyl", "CH": "alkyl", "OH": "OH", "H2O": "H2O"}
    a = {
        ("alkyl", "OH"): 986.5,
        ("OH", "alkyl"): 156.4,
        ("alkyl", "H2O"): 1318.0,
        ("H2O", "alkyl"): 300.0,
        ("OH", "H2O"): 353.5,
        ("H2O", "OH"): -229.1,
    }
    psi = {(m, n): math.exp(-a.get((main[m], main[n]), 0.0) / T) for m in R for n in R}
    r1, q1, r2, q2 = R["H2O"], Q["H2O"], 0.6744 + 0.4469 + 1.0, 0.540 + 0.228 + 1.2
    theta1 = (0.2 * q1 / r1) / (0.2 * q1 / r1 + 0.8 * q2 / r2)
    ratio = 0.2 / theta1
    combinatorial = -5 * q1 * (math.log(ratio) + 1 - ratio)
    amount = {"H2O": 0.2 / r1, "CH2": 0.8 / r2, "CH": 0.8 / r2, "OH": 0.8 / r2}
    surface = sum(amount[k] * Q[k] for k in amount)
    theta = {k: amount[k] * Q[k] / surface for k in amount}
    mixed = {k: sum(theta[m] * psi[m, k] for m in theta) for k in theta}
    residual = Q["H2O"] * (1 - math.log(mixed["H2O"]) - sum(theta[m] * psi["H2O", m] / mixed[m] for m in theta))
    chi = (combinatorial + residual) / phi2**2
    assert chi_of_smiles("*CC(*)O", "O", [T])[0] == pytest.approx(chi, abs=1e-9)
    page = (project_root / "docs" / "physics.md").read_text(encoding="utf-8")
    for number in (theta1, combinatorial, *theta.values(), *mixed.values(), residual, chi):
        assert f"{number:.4f}" in page


@pytest.mark.parametrize("block", [1, 4, 4096])
def test_many_at_once_equal_one_at_a_time(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unifac, "BLOCK", block)
    polymers = [repeat_unit_groups(smiles) for smiles in PUBLISHED_ONLY]
    solvents = [molecule_groups(smiles) for smiles in SOLVENTS]
    temperatures = [273.15, 298.15, 350.0]
    together = chi_of_groups(polymers, solvents, temperatures)
    assert together.shape == (len(polymers), len(solvents), 3)
    for i, polymer in enumerate(PUBLISHED_ONLY):
        for j, solvent in enumerate(SOLVENTS):
            np.testing.assert_allclose(together[i, j], chi_of_smiles(polymer, solvent, temperatures), rtol=1e-12)


def test_chi_does_not_depend_on_how_many_units_are_counted() -> None:
    single = repeat_unit_groups("*CC(*)O")
    double = Groups(tuple((index, 2 * count) for index, count in single.counts))
    water = [molecule_groups("O")]
    np.testing.assert_allclose(chi_of_groups([double], water, [300.0]), chi_of_groups([single], water, [300.0]))


def test_a_polymer_in_its_own_kind_of_liquid_has_no_residual_part() -> None:
    """Polyethylene in an alkane: one main group, so only the combinatorial part is left, and it is small."""
    chi = chi_of_smiles("*CC*", "CCCCCCCCCC", [280.0, 380.0])
    assert chi[0] == pytest.approx(chi[1], abs=1e-12)
    assert abs(chi[0]) < 0.1


def test_missing_parameters_are_nan_and_spoil_only_their_polymers() -> None:
    polymers = [repeat_unit_groups("*O[Si](*)(C)C"), repeat_unit_groups("*CC(*)O")]
    chi = chi_of_groups(polymers, [molecule_groups("O")], [298.15], parameters="unifac")[:, 0, 0]
    assert np.isnan(chi[0])
    assert np.isfinite(chi[1])
    assert np.isfinite(chi_of_groups(polymers, [molecule_groups("O")], [298.15])).all()


def test_filled_parameters_keep_what_is_published() -> None:
    published, filled = interactions("unifac"), interactions("unifac-filled")
    known = np.isfinite(published)
    assert np.array_equal(filled[known], published[known])
    assert np.isfinite(filled).all()
    assert np.isfinite(interactions("unifac-2.0")).all()


def test_the_model_is_named_for_each_value() -> None:
    water, toluene = molecule_groups("O"), molecule_groups("Cc1ccccc1")
    assert default_parameters(water) == "unifac-filled"
    assert default_parameters(toluene) == "unifac-2.0"
    assert method_name(repeat_unit_groups("*CC(*)O"), water) == "unifac"
    assert method_name(repeat_unit_groups("*O[Si](*)(C)C"), water) == "unifac-filled"
    assert method_name(repeat_unit_groups("*CC(*)O"), toluene) == "unifac-2.0"
    assert method_name(repeat_unit_groups("*CC(*)C(=O)NC(C)C"), toluene) == "unifac-2.0+derived"
    assert method_name(repeat_unit_groups("*CC(*)O"), molecule_groups("CC(C)C(=O)C(C)C")) == "unifac-2.0+derived"


def test_a_and_b_are_the_least_squares_line() -> None:
    temperatures = np.array([273.15, 298.15, 323.15, 373.15])
    chi = np.random.default_rng(0).normal(size=(3, 2, 4))
    A, B = fit_a_b(temperatures, chi)
    assert A.shape == B.shape == (3, 2)
    expected = np.polyfit(1 / temperatures, chi.reshape(6, 4).T, 1)
    np.testing.assert_allclose(A.ravel(), expected[0])
    np.testing.assert_allclose(B.ravel(), expected[1])
    one, _ = fit_a_b(np.array([300.0]), np.array([[0.4]]))
    assert np.isnan(one).all()


@pytest.mark.parametrize("temperatures", [[0.0], [-5.0], [float("nan")]])
def test_impossible_temperatures_are_refused(temperatures: list[float]) -> None:
    with pytest.raises(DataError, match="kelvin"):
        chi_of_smiles("*CCO*", "O", temperatures)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.2])
def test_impossible_volume_fractions_are_refused(fraction: float) -> None:
    with pytest.raises(DataError, match="volume fraction"):
        chi_of_smiles("*CCO*", "O", [300.0], volume_fraction=fraction)


def _chi_or_nan(polymer: str, solvent: str, T: float) -> float:
    try:
        return float(chi_of_smiles(polymer, solvent, [T])[0])
    except FragmentationError:
        return float("nan")


def test_ranks_measured_chi(shared_data: Path) -> None:
    table = pd.read_csv(shared_data / "experiment_chi.csv")
    pairs = zip(table.SMILES, table.solvent, table.temp, strict=True)
    found = np.array([_chi_or_nan(polymer, solvent, T) for polymer, solvent, T in pairs])
    known = np.isfinite(found)
    assert known.sum() >= 1140
    assert spearmanr(found[known], table.chi[known]).statistic >= 0.65
    water = known & (table.solvent == "O").to_numpy()
    assert water.sum() == 25
    assert spearmanr(found[water], table.chi[water]).statistic >= 0.6


def test_orders_water_soluble_before_insoluble(shared_data: Path) -> None:
    table = pd.read_csv(shared_data / "solubility.csv").query("solvent == 'O'")
    found = np.array([_chi_or_nan(smiles, "O", 298.15) for smiles in table.SMILES])
    known = np.isfinite(found)
    assert known.sum() >= 24  # Not the ions, and not the sulfonic acid.
    assert roc_auc_score(table.soluble[known], -found[known]) >= 0.8


@pytest.mark.parametrize(
    "smiles",
    [
        "*CC(*)C(=O)N(C)C",
        "*CC(*)C(=O)N(CC)CC",
        "*CC(*)C(=O)N1CCCC1",
        "*CC(*)C(=O)NC(C)C",
        "*CC(*)C(=O)NCC",
    ],
)
def test_chi_of_substituted_acrylamides_in_water_rises_with_temperature(smiles: str) -> None:
    chi = chi_of_smiles(smiles, "O", [276.15, 303.15, 333.15])
    assert (np.diff(chi) > 0).all()
