"""The feature vector of one polymer or solvent, and its recipe: Morgan counts and descriptors of a ring of units.

Called by `chemistry.features`, which handles many structures at once.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from rdkit import Chem
from rdkit.Chem import Descriptors, rdFingerprintGenerator, rdMolDescriptors

from chitransfer.chemistry.charges import read_molecule
from chitransfer.chemistry.polymers import flat_unit, oligomer, polymer_identity, ring_of_units
from chitransfer.chemistry.repeat_units import parse_repeat_unit
from chitransfer.chemistry.stereo import without_stereo
from chitransfer.errors import CheckpointError, ConfigError, DataError

FEATURE_VERSION = 1
Representation = Literal["periodic", "repeat_unit"]
# Number of consecutive backbone atoms that determine whether a bond between them counts as rotatable.
SPAN_OF_ROTATABLE_BOND = 6
# RDKit adds the full sphere of one hydrogen (radius 0.33 Å) to the surface of every molecule that has hydrogens.
LONE_HYDROGEN_SURFACE = 4.0 * math.pi * 0.33**2
_STAR = Chem.MolFromSmarts("[#0]")
DESCRIPTORS = (
    "MolWt",
    "MolLogP",
    "MolMR",
    "TPSA",
    "LabuteASA",
    "NumHDonors",
    "NumHAcceptors",
    "NumHeteroatoms",
    "NumRotatableBonds",
    "RingCount",
    "NumAromaticRings",
    "FractionCSP3",
    "HeavyAtomCount",
)


@dataclass(frozen=True)
class FeatureRecipe:
    """Definition of a feature vector; vectors from different recipes must not be mixed.

    Attributes
    ----------
    representation
        ``periodic``: Morgan counts of a ring of units divided by the number of units, and extensive descriptors per
        heavy atom; independent of where the chain is cut. ``repeat_unit``: Morgan bits and plain descriptors of the
        unit as written, with ``*`` replaced by carbon.
    fingerprint_bits, fingerprint_radius
        Folded length, and radius in bonds.
    descriptors
        RDKit descriptors that follow the fingerprint, in order, from `DESCRIPTORS`.
    with_solvent
        Whether the solvent's counts and descriptors are appended to the polymer's.
    version
        Version of the feature code; it changes when the same recipe would give different numbers.

    Raises
    ------
    ConfigError
        A value is not allowed.
    """

    representation: Representation = "periodic"
    fingerprint_bits: int = 2048
    fingerprint_radius: int = 2
    descriptors: tuple[str, ...] = DESCRIPTORS
    with_solvent: bool = False
    version: int = FEATURE_VERSION

    def __post_init__(self) -> None:
        if self.representation not in get_args(Representation):
            raise ConfigError(f"representation must be periodic or repeat_unit, not {self.representation!r}")
        if self.fingerprint_bits < 1 or self.fingerprint_radius < 0:
            raise ConfigError(
                "a fingerprint needs at least 1 bit and a radius of 0 or more, not "
                f"{self.fingerprint_bits} bits and radius {self.fingerprint_radius}"
            )
        unknown = [name for name in self.descriptors if name not in DESCRIPTORS]
        if unknown or len(set(self.descriptors)) < len(self.descriptors):
            raise ConfigError(
                f"descriptors must be distinct names out of {', '.join(DESCRIPTORS)}; got {', '.join(self.descriptors)}"
            )

    @property
    def n_structure_features(self) -> int:
        """Number of columns for one polymer, and likewise for one solvent."""
        return self.fingerprint_bits + len(self.descriptors)

    @property
    def n_features(self) -> int:
        """Number of columns for a polymer, plus those of its solvent if used."""
        return self.n_structure_features * (2 if self.with_solvent else 1)

    def names(self) -> list[str]:
        """Column names of a polymer's vector, then of the solvent's, (n_features,)."""
        own = [f"morgan_{bit}" for bit in range(self.fingerprint_bits)] + list(self.descriptors)
        return own + ([f"solvent_{name}" for name in own] if self.with_solvent else [])

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values, for a checkpoint."""
        return asdict(self) | {"descriptors": list(self.descriptors)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FeatureRecipe:
        """The inverse of `to_dict`.

        Raises
        ------
        CheckpointError
            The recipe describes features that this release does not compute.
        """
        names = {field.name for field in fields(cls)}
        if set(values) != names or values["version"] != FEATURE_VERSION:
            raise CheckpointError(
                f"features must be of version {FEATURE_VERSION} with the keys {', '.join(sorted(names))}; "
                f"got {json.dumps(values, default=str, sort_keys=True)}. "
                "Use the release that wrote this file, or train again with this one."
            )
        try:
            return cls(**values | {"descriptors": tuple(values["descriptors"])})
        except (ConfigError, TypeError) as error:
            raise CheckpointError(f"this file's feature recipe is not usable: {error}") from error

    def digest(self) -> str:
        """SHA-256 of the recipe."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def polymer_vector(smiles: str, recipe: FeatureRecipe) -> np.ndarray:
    """Features of one repeat unit, (n_structure_features,) float64.

    The periodic features ignore stereochemistry: Morgan counts per unit of the infinite chain; HeavyAtomCount of one
    unit (the shortest possible); FractionCSP3 unchanged; every other descriptor per heavy atom.

    Raises
    ------
    PolymerError
        `smiles` is not a repeat unit.
    """
    if recipe.representation == "repeat_unit":
        return _unit_vector(smiles, recipe)
    return identity_vector(polymer_identity(smiles), recipe)


def identity_vector(identity: str, recipe: FeatureRecipe) -> np.ndarray:
    """Periodic features, as in `polymer_vector`, of a unit already returned by `polymer_identity`."""
    # With alternating stereo centres the unit spans two repeats, which would double every count per unit.
    identity = without_stereo(identity)
    part = flat_unit(identity)
    unit = part.molecule
    n_backbone = len(Chem.GetShortestPath(unit, part.left, part.right)) - 2
    n_units = units_for_ring(n_backbone, recipe.fingerprint_radius)
    ring = ring_of_units(identity, n_units)
    # Atom invariants come from the unit between its two `*`: in the ring of units every backbone atom would count as a
    # ring atom.
    invariants = rdMolDescriptors.GetConnectivityInvariants(unit)
    for end in sorted((part.left, part.right), reverse=True):
        del invariants[end]
    generator = _generator(recipe.fingerprint_bits, recipe.fingerprint_radius)
    counts = generator.GetCountFingerprintAsNumPy(ring, customAtomInvariants=invariants * n_units) / n_units
    values = _all_but_rotatable_bonds(ring)
    n_heavy = ring.GetNumHeavyAtoms()
    n_unit_heavy = n_heavy // n_units
    if values["LabuteASA"] != _surface_without_hydrogens(ring):
        values["LabuteASA"] -= LONE_HYDROGEN_SURFACE
    for name in values.keys() - {"HeavyAtomCount", "FractionCSP3"}:
        values[name] /= n_heavy
    # The ring of units is not a ring of the polymer, so rings are counted in the unit. Rotatable bonds are the
    # difference between open chains of n + 1 and n units, because RDKit does not count ring bonds as rotatable.
    values["RingCount"] = rdMolDescriptors.CalcNumRings(unit) / n_unit_heavy
    values["NumAromaticRings"] = rdMolDescriptors.CalcNumAromaticRings(unit) / n_unit_heavy
    n_shorter = -(-SPAN_OF_ROTATABLE_BOND // n_backbone)
    shorter = unit if n_shorter == 1 else oligomer(identity, n_shorter, cap="*")
    longer = oligomer(identity, n_shorter + 1, cap="*")
    values["NumRotatableBonds"] = (_rotatable_bonds(longer) - _rotatable_bonds(shorter)) / n_unit_heavy
    values["HeavyAtomCount"] = n_unit_heavy
    return _vector(counts, values, recipe)


def _unit_vector(smiles: str, recipe: FeatureRecipe) -> np.ndarray:
    unit = parse_repeat_unit(smiles)
    for (end,) in unit.GetSubstructMatches(_STAR):
        unit.GetAtomWithIdx(end).SetAtomicNum(6)
        unit.GetAtomWithIdx(end).SetNoImplicit(False)
    Chem.SanitizeMol(unit)
    bits = _generator(recipe.fingerprint_bits, recipe.fingerprint_radius).GetFingerprintAsNumPy(unit)
    return _vector(bits, _plain_descriptors(unit), recipe)


def solvent_vector(smiles: str, recipe: FeatureRecipe) -> np.ndarray:
    """Features of one whole molecule, (n_structure_features,) float64: Morgan counts and plain descriptors.

    Raises
    ------
    DataError
        RDKit cannot read `smiles`.
    """
    molecule = read_molecule(smiles)
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise DataError(f"{smiles!r}: RDKit cannot read this solvent; give its SMILES, such as O for water")
    counts = _generator(recipe.fingerprint_bits, recipe.fingerprint_radius).GetCountFingerprintAsNumPy(molecule)
    return _vector(counts, _plain_descriptors(molecule), recipe)


def _vector(fingerprint: np.ndarray, values: dict[str, float], recipe: FeatureRecipe) -> np.ndarray:
    return np.concatenate([fingerprint, [values[name] for name in recipe.descriptors]])


def units_for_ring(n_backbone: int, fingerprint_radius: int) -> int:
    """Number of units, each with `n_backbone` backbone atoms, that a ring needs to have at least 12 backbone atoms.

    The ring must be longer than a fingerprint environment and than the reach of any descriptor's patterns, so that
    neither wraps around and meets itself; a larger ring gives the same features.
    """
    return -(-max(12, 2 * fingerprint_radius + 2) // n_backbone)


def _plain_descriptors(molecule: Chem.Mol) -> dict[str, float]:
    return _all_but_rotatable_bonds(molecule) | {"NumRotatableBonds": _rotatable_bonds(molecule)}


def _all_but_rotatable_bonds(molecule: Chem.Mol) -> dict[str, float]:
    """All of `DESCRIPTORS` except NumRotatableBonds."""
    log_p, molar_refractivity = rdMolDescriptors.CalcCrippenDescriptors(molecule)
    return {
        "MolWt": Descriptors.MolWt(molecule),  # type: ignore[attr-defined]
        "MolLogP": log_p,
        "MolMR": molar_refractivity,
        "TPSA": rdMolDescriptors.CalcTPSA(molecule),
        "LabuteASA": rdMolDescriptors.CalcLabuteASA(molecule),
        "NumHDonors": rdMolDescriptors.CalcNumHBD(molecule),
        "NumHAcceptors": rdMolDescriptors.CalcNumHBA(molecule),
        "NumHeteroatoms": rdMolDescriptors.CalcNumHeteroatoms(molecule),
        "RingCount": rdMolDescriptors.CalcNumRings(molecule),
        "NumAromaticRings": rdMolDescriptors.CalcNumAromaticRings(molecule),
        "FractionCSP3": rdMolDescriptors.CalcFractionCSP3(molecule),
        "HeavyAtomCount": molecule.GetNumHeavyAtoms(),
    }


def _surface_without_hydrogens(molecule: Chem.Mol) -> float:
    return float(rdMolDescriptors.CalcLabuteASA(molecule, includeHs=False, force=True))


def _rotatable_bonds(molecule: Chem.Mol) -> int:
    return int(rdMolDescriptors.CalcNumRotatableBonds(molecule))


@lru_cache(maxsize=8)
def _generator(n_bits: int, radius: int) -> Any:
    return rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=n_bits)
