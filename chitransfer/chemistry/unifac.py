"""χ(T) of many polymers in many solvents from UNIFAC group contributions.

Called by `data.build` and `data.compute`. docs/physics.md gives the formulas, the choices made and a worked example.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from chitransfer.chemistry.groups import Groups, count_matrix, molecule_groups, repeat_unit_groups, subgroups
from chitransfer.errors import DataError

# Polymer volume fraction at which the solvent's activity is converted to χ; docs/physics.md says how it was chosen.
VOLUME_FRACTION = 0.8
DEFAULT_TEMPERATURES = (273.15, 298.15, 323.15, 348.15, 373.15)
COORDINATION_NUMBER = 10.0
# Polymers per block; bounds the memory of the (polymer, subgroup) intermediates.
BLOCK = 4096
WATER_MAIN_GROUP = 7
ParameterSet = Literal["unifac", "unifac-filled", "unifac-2.0"]


@lru_cache(maxsize=4)
def interactions(parameters: ParameterSet) -> np.ndarray:
    """Interaction parameters a[m, n] in kelvin between subgroups, (n_subgroups, n_subgroups), as tabulated by `thermo`.

    ``unifac``: original UNIFAC as published (Fredenslund et al. 1975 and its revisions), NaN for pairs never fitted.
    ``unifac-2.0``: Hayer et al. (2025), all pairs refitted and completed. ``unifac-filled``: ``unifac`` where it has a
    value, ``unifac-2.0`` elsewhere.
    """
    if parameters == "unifac-filled":
        published = interactions("unifac")
        return np.where(np.isnan(published), interactions("unifac-2.0"), published)
    import thermo.unifac

    thermo.unifac.load_unifac_ip()
    table = {"unifac-2.0": thermo.unifac.UF2IP, "unifac": thermo.unifac.UFIP}[parameters]
    mains = [subgroup.main_group for subgroup in subgroups()]
    numbers = sorted(set(mains))
    by_main = np.array(
        [[0.0 if m == n else table.get(m, {}).get(n, np.nan) for n in numbers] for m in numbers], dtype=float
    )
    place = np.searchsorted(numbers, mains)
    return by_main[np.ix_(place, place)]


def default_parameters(solvent: Groups) -> ParameterSet:
    """``unifac-filled`` for water, ``unifac-2.0`` for every other solvent; docs/physics.md says why."""
    table = subgroups()
    aqueous = any(table[index].main_group == WATER_MAIN_GROUP for index, _ in solvent.counts)
    return "unifac-filled" if aqueous else "unifac-2.0"


def method_name(polymer: Groups, solvent: Groups, parameters: ParameterSet | None = None) -> str:
    """Name of the model behind the pair's χ: the parameters actually used, plus ``+derived`` for derived subgroups."""
    chosen = parameters or default_parameters(solvent)
    if chosen == "unifac-filled":
        present = sorted({index for index, _ in (*polymer.counts, *solvent.counts)})
        if not np.isnan(interactions("unifac")[np.ix_(present, present)]).any():
            chosen = "unifac"
    return chosen + ("+derived" if polymer.derived or solvent.derived else "")


def chi_of_groups(
    polymers: Sequence[Groups],
    solvents: Sequence[Groups],
    temperatures: Sequence[float] | np.ndarray,
    *,
    volume_fraction: float = VOLUME_FRACTION,
    parameters: ParameterSet | None = None,
) -> np.ndarray:
    """Flory-Huggins χ for every polymer, solvent and temperature.

    χ = [ln a₁ − ln φ₁ − φ₂]/φ₂² for an infinite chain, with ln a₁ from UNIFAC (combinatorial and residual) at φ₂.

    Parameters
    ----------
    polymers, solvents
        Subgroups of repeat units and of solvent molecules.
    temperatures
        In kelvin, (n_temperatures,).
    volume_fraction
        φ₂ of the polymer, between 0 and 1 (both excluded), from UNIFAC volumes.
    parameters
        Which interaction table; ``None`` uses `default_parameters` for each solvent.

    Returns
    -------
    float64 (n_polymers, n_solvents, n_temperatures), dimensionless; NaN where a parameter is missing.

    Raises
    ------
    DataError
        A temperature is not positive, or the volume fraction does not lie between 0 and 1.
    """
    kelvin = np.asarray(temperatures, dtype=float)
    if kelvin.ndim != 1 or not (np.isfinite(kelvin) & (kelvin > 0)).all():
        raise DataError(f"temperatures must be positive numbers in kelvin, got {temperatures!r}")
    if not 0.0 < volume_fraction < 1.0:
        raise DataError(f"the volume fraction of polymer must lie between 0 and 1, got {volume_fraction}")
    chain, molecules = count_matrix(polymers), count_matrix(solvents)
    used = np.flatnonzero(chain.any(axis=0) | molecules.any(axis=0))
    chain, molecules = chain[:, used], molecules[:, used]
    R, Q = _volumes_and_surfaces()
    R, Q = R[used], Q[used]
    tables = [interactions(parameters or default_parameters(solvent))[np.ix_(used, used)] for solvent in solvents]
    result = np.empty((len(chain), len(molecules), len(kelvin)))
    for start in range(0, len(chain), BLOCK):
        block = slice(start, start + BLOCK)
        for place, (molecule, a) in enumerate(zip(molecules, tables, strict=True)):
            combinatorial = _staverman_guggenheim(molecule, chain[block], R, Q, volume_fraction)
            for step, T in enumerate(kelvin):
                residual = _residual(molecule, chain[block], R, Q, a, T, volume_fraction)
                result[block, place, step] = (combinatorial + residual) / volume_fraction**2
    return result


def chi_of_smiles(
    polymer: str,
    solvent: str = "O",
    temperatures: Sequence[float] = (298.15,),
    *,
    volume_fraction: float = VOLUME_FRACTION,
    parameters: ParameterSet | None = None,
) -> np.ndarray:
    """χ of one repeat unit in one solvent at each temperature (K): float64 (n_temperatures,), as in `chi_of_groups`.

    Raises `groups.FragmentationError` with the reason if UNIFAC has no groups for one of them.

    Example
    -------
    >>> chi_of_smiles("*CC(*)O", "O", [298.15]).round(3)
    array([0.986])
    """
    found = chi_of_groups(
        [repeat_unit_groups(polymer)],
        [molecule_groups(solvent)],
        temperatures,
        volume_fraction=volume_fraction,
        parameters=parameters,
    )
    return found[0, 0]


def fit_a_b(temperatures: np.ndarray, chi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit A (K) and B of χ = A/T + B by least squares on the last axis; NaN for fewer than two distinct temperatures.

    Parameters
    ----------
    temperatures
        Kelvin, (n_temperatures,).
    chi
        (..., n_temperatures).
    """
    inverse = 1.0 / np.asarray(temperatures, dtype=float)
    values = np.asarray(chi, dtype=float)
    if len(np.unique(inverse)) < 2:
        empty = np.full(values.shape[:-1], np.nan)
        return empty, empty.copy()
    centred = inverse - inverse.mean()
    A = (values * centred).sum(axis=-1) / (centred**2).sum()
    return A, values.mean(axis=-1) - A * inverse.mean()


def _staverman_guggenheim(
    molecule: np.ndarray, chain: np.ndarray, R: np.ndarray, Q: np.ndarray, volume_fraction: float
) -> np.ndarray:
    """The combinatorial part of ln a₁ beyond ln φ₁ + (1 − 1/r)φ₂, (n_polymers,)."""
    r1, q1 = molecule @ R, molecule @ Q
    r2, q2 = chain @ R, chain @ Q
    surface = (1 - volume_fraction) * q1 / r1
    theta1 = surface / (surface + volume_fraction * q2 / r2)
    ratio = (1 - volume_fraction) / theta1
    return -COORDINATION_NUMBER / 2 * q1 * (np.log(ratio) + 1 - ratio)


def _residual(
    molecule: np.ndarray,
    chain: np.ndarray,
    R: np.ndarray,
    Q: np.ndarray,
    a: np.ndarray,
    T: float,
    volume_fraction: float,
) -> np.ndarray:
    """ln γ₁ᴿ of the solvent at polymer volume fraction φ₂, (n_polymers,)."""
    present = molecule > 0
    # A missing parameter invalidates only the polymers whose groups need it.
    psi = np.exp(-np.nan_to_num(a) / T)
    amount = (1 - volume_fraction) * molecule / (molecule @ R) + volume_fraction * chain / (chain @ R)[:, None]
    in_mixture = _ln_group_activity(amount, Q, psi)[:, present]
    in_solvent = _ln_group_activity(molecule[None, :], Q, psi)[:, present]
    result = (in_mixture - in_solvent) @ molecule[present]
    missing = np.isnan(a)
    if missing.any():
        has = (amount > 0).astype(float)
        result[((has @ missing) * has).sum(axis=1) > 0] = np.nan
    return result


def _ln_group_activity(amount: np.ndarray, Q: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """ln Γₖ of each subgroup, (n, groups), from amounts (n, groups); psi is [m, n] = exp(−a_mn/T)."""
    theta = amount * Q
    theta /= theta.sum(axis=1, keepdims=True)
    mixed = theta @ psi  # (n, groups): Σₘ θₘ ψₘₖ
    return Q * (1 - np.log(mixed) - (theta / mixed) @ psi.T)


@lru_cache(maxsize=1)
def _volumes_and_surfaces() -> tuple[np.ndarray, np.ndarray]:
    table = subgroups()
    return np.array([entry.R for entry in table]), np.array([entry.Q for entry in table])
