"""Polymers and solvents as vectors: Morgan counts and descriptors of a ring of units, computed once per structure.

`FeatureCache` is called by `data.assemble`; `featurise_polymers` and `featurise_solvents` by `predict` as well.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from joblib import Parallel, delayed
from rdkit import Chem, rdBase
from rdkit.Chem import Descriptors, rdFingerprintGenerator, rdMolDescriptors

from chitransfer.chemistry.polymers import PolymerError, oligomer, parse_repeat_unit, polymer_identity, ring_of_units
from chitransfer.errors import DataError
from chitransfer.files import replace_atomically

FEATURE_VERSION = 1
CHUNK = 1000
SMALL = 300
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
Progress = Callable[[int, int], None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureRecipe:
    """What a feature vector is made of; two recipes that differ give vectors that must not be mixed.

    Attributes
    ----------
    representation
        ``periodic``: Morgan counts of a ring of units divided by the number of units, extensive descriptors per heavy
        atom; the same however the chain is cut. ``repeat_unit``: Morgan bits and plain descriptors of the unit as
        written with ``*`` replaced by carbon.
    fingerprint_bits, fingerprint_radius
        Folded length and radius in bonds.
    with_solvent
        The solvent's own counts and descriptors are appended to the polymer's.
    version
        Of this code's features.
    """

    representation: Literal["periodic", "repeat_unit"] = "periodic"
    fingerprint_bits: int = 2048
    fingerprint_radius: int = 2
    with_solvent: bool = False
    version: int = FEATURE_VERSION

    @property
    def n_structure_features(self) -> int:
        """Columns of one polymer, and of one solvent."""
        return self.fingerprint_bits + len(DESCRIPTORS)

    def names(self) -> list[str]:
        """Column names of a polymer's vector, then of the solvent's."""
        own = [f"morgan_{bit}" for bit in range(self.fingerprint_bits)] + list(DESCRIPTORS)
        return own + ([f"solvent_{name}" for name in own] if self.with_solvent else [])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FeatureRecipe:
        """The inverse of `to_dict`."""
        return cls(**values)

    def digest(self) -> str:
        """SHA-256 of the recipe."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def default_cache_folder() -> Path:
    """Where features are kept: ``$CHITRANSFER_CACHE``, else the user's cache folder."""
    import pooch

    return Path(os.environ.get("CHITRANSFER_CACHE") or pooch.os_cache("chitransfer"))


def featurise_polymers(
    smiles: Sequence[str], recipe: FeatureRecipe, *, n_jobs: int = 1, progress: Progress | None = None
) -> np.ndarray:
    """Feature vectors of repeat units.

    Parameters
    ----------
    smiles
        Repeat units, (n,). The periodic representation takes each to its polymer identity first, so every cut of a
        chain gives the same numbers to the last bit.
    n_jobs
        Processes, used for more than a few hundred structures.
    progress
        Called with (done, total).

    Returns
    -------
    numpy.ndarray
        (n, fingerprint_bits + 13) float32, finite.

    Raises
    ------
    DataError
        A SMILES is no repeat unit, or a descriptor of it is not finite; the message names it.
    """
    return _featurise(smiles, recipe, _polymer_vector, n_jobs, progress)


def featurise_solvents(smiles: Sequence[str], recipe: FeatureRecipe) -> np.ndarray:
    """Feature vectors of whole molecules, (n, fingerprint_bits + 13) float32; as `featurise_polymers`."""
    return _featurise(smiles, recipe, _solvent_vector, 1, None)


class FeatureCache:
    """Features remembered on disk, in files named by the hash of their structures and recipe.

    Work is kept chunk by chunk, so an interrupted run goes on where it stopped; a changed recipe has other names; a
    damaged file is made again. Files hold plain arrays and execute nothing.

    Parameters
    ----------
    folder
        ``None`` remembers nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def polymer_features(
        self, smiles: Sequence[str], recipe: FeatureRecipe, *, n_jobs: int = 1, progress: Progress | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features of the distinct structures, and which of them each input is.

        Parameters
        ----------
        smiles
            Repeat units, (n,); give polymer identities where different cuts of a chain should count once.

        Returns
        -------
        features
            (n_distinct, n_structure_features) float32.
        index
            (n,) int64 into `features`.

        Raises
        ------
        DataError
            As `featurise_polymers`.
        """
        distinct, index = np.unique(np.asarray(smiles, dtype=object), return_inverse=True)
        features = np.empty((len(distinct), recipe.n_structure_features), dtype=np.float32)
        for start in range(0, len(distinct), CHUNK):
            chunk = distinct[start : start + CHUNK].tolist()
            features[start : start + len(chunk)] = self._chunk(chunk, recipe, n_jobs)
            if progress is not None:
                progress(start + len(chunk), len(distinct))
        return features, index.astype(np.int64)

    def _chunk(self, smiles: list[str], recipe: FeatureRecipe, n_jobs: int) -> np.ndarray:
        if self._folder is None:
            return featurise_polymers(smiles, recipe, n_jobs=n_jobs)
        name = hashlib.sha256((recipe.digest() + "\n" + "\n".join(smiles)).encode()).hexdigest()
        path = self._folder / f"features-{name[:32]}.npz"
        shape = (len(smiles), recipe.n_structure_features)
        known = _load_chunk(path, shape, recipe.fingerprint_bits)
        if known is not None:
            return known
        features = featurise_polymers(smiles, recipe, n_jobs=n_jobs)
        replace_atomically(path, lambda temporary: _save_chunk(temporary, features, recipe.fingerprint_bits))
        return features


def _save_chunk(path: Path, features: np.ndarray, n_fingerprint: int) -> None:
    counts = features[:, :n_fingerprint]
    row, column = np.nonzero(counts)
    np.savez(
        path,
        row=row.astype(np.uint16),
        column=column.astype(np.uint16 if n_fingerprint <= 2**16 else np.uint32),
        count=counts[row, column],
        descriptors=features[:, n_fingerprint:],
    )


def _load_chunk(path: Path, shape: tuple[int, int], n_fingerprint: int) -> np.ndarray | None:
    """The chunk, or ``None`` when it must be computed; the zip's checksums tell damage from data."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            features = np.zeros(shape, dtype=np.float32)
            features[saved["row"], saved["column"]] = saved["count"]
            features[:, n_fingerprint:] = saved["descriptors"]
            return features
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s is damaged (%s) and is made again", path, error)
        return None


def _featurise(
    smiles: Sequence[str],
    recipe: FeatureRecipe,
    make_vector: Callable[[str, FeatureRecipe], np.ndarray],
    n_jobs: int,
    progress: Progress | None,
) -> np.ndarray:
    features = np.empty((len(smiles), recipe.n_structure_features), dtype=np.float32)
    jobs = n_jobs if len(smiles) > SMALL else 1
    size = SMALL if jobs > 1 else max(len(smiles), 1)
    parts = [smiles[start : start + size] for start in range(0, len(smiles), size)]
    tasks = (delayed(_featurise_part)(list(part), recipe, make_vector) for part in parts)
    done = 0
    for part in Parallel(n_jobs=jobs, return_as="generator")(tasks):
        features[done : done + len(part)] = part
        done += len(part)
        if progress is not None:
            progress(done, len(smiles))
    return features


def _featurise_part(
    smiles: list[str], recipe: FeatureRecipe, make_vector: Callable[[str, FeatureRecipe], np.ndarray]
) -> np.ndarray:
    vectors = np.zeros((len(smiles), recipe.n_structure_features), dtype=np.float32)
    with rdBase.BlockLogs():
        for position, text in enumerate(smiles):
            try:
                vectors[position] = make_vector(text, recipe)
            except PolymerError as error:
                raise DataError(f"{text}: {error}") from error
            if not np.isfinite(vectors[position]).all():
                names = [name for name, v in zip(recipe.names(), vectors[position], strict=False) if not np.isfinite(v)]
                raise DataError(f"{text}: RDKit gives no finite value for {', '.join(names)}; leave this structure out")
    return vectors


def _polymer_vector(smiles: str, recipe: FeatureRecipe) -> np.ndarray:
    if recipe.representation == "repeat_unit":
        return _unit_vector(smiles, recipe)
    identity = polymer_identity(smiles)
    unit = parse_repeat_unit(identity)
    n_units = units_for_ring(unit, recipe.fingerprint_radius)
    ring = ring_of_units(identity, n_units)
    n_heavy = ring.GetNumHeavyAtoms()
    values = _plain_descriptors(ring)
    # The ring itself is no ring of the polymer, and its bonds do rotate: both are read off the open chain's growth.
    longer, shorter = oligomer(identity, 3), oligomer(identity, 2)
    n_unit_heavy = n_heavy // n_units
    values["RingCount"] = (values["RingCount"] - 1) / n_heavy
    values["NumRotatableBonds"] = (_rotatable_bonds(longer) - _rotatable_bonds(shorter)) / n_unit_heavy
    values["HeavyAtomCount"] = n_unit_heavy
    for name in set(DESCRIPTORS) - {"RingCount", "NumRotatableBonds", "HeavyAtomCount", "FractionCSP3"}:
        values[name] /= n_heavy
    counts = _generator(recipe.fingerprint_bits, recipe.fingerprint_radius).GetCountFingerprintAsNumPy(ring)
    return np.concatenate([counts / n_units, [values[name] for name in DESCRIPTORS]])


def _unit_vector(smiles: str, recipe: FeatureRecipe) -> np.ndarray:
    unit = parse_repeat_unit(smiles)
    for atom in unit.GetAtoms():
        if atom.GetAtomicNum() == 0:
            atom.SetAtomicNum(6)
            atom.SetNoImplicit(False)
    Chem.SanitizeMol(unit)
    bits = _generator(recipe.fingerprint_bits, recipe.fingerprint_radius).GetFingerprintAsNumPy(unit)
    values = _plain_descriptors(unit)
    return np.concatenate([bits, [values[name] for name in DESCRIPTORS]])


def _solvent_vector(smiles: str, recipe: FeatureRecipe) -> np.ndarray:
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise DataError(f"{smiles}: RDKit cannot read this solvent")
    counts = _generator(recipe.fingerprint_bits, recipe.fingerprint_radius).GetCountFingerprintAsNumPy(molecule)
    values = _plain_descriptors(molecule)
    return np.concatenate([counts, [values[name] for name in DESCRIPTORS]])


def units_for_ring(unit: Chem.Mol, fingerprint_radius: int = 2) -> int:
    """Units in the ring of a repeat unit: at least 3, and at least 12 backbone atoms.

    A ring must be longer than a fingerprint environment, so that no environment meets itself around it.
    """
    stars = [atom.GetIdx() for atom in unit.GetAtoms() if atom.GetAtomicNum() == 0]
    n_backbone = len(Chem.GetShortestPath(unit, *stars)) - 2
    return max(3, -(-max(12, 2 * fingerprint_radius + 2) // n_backbone))


def _plain_descriptors(molecule: Chem.Mol) -> dict[str, float]:
    log_p, molar_refractivity = rdMolDescriptors.CalcCrippenDescriptors(molecule)
    return {
        "MolWt": Descriptors.MolWt(molecule),
        "MolLogP": log_p,
        "MolMR": molar_refractivity,
        "TPSA": rdMolDescriptors.CalcTPSA(molecule),
        "LabuteASA": rdMolDescriptors.CalcLabuteASA(molecule),
        "NumHDonors": rdMolDescriptors.CalcNumHBD(molecule),
        "NumHAcceptors": rdMolDescriptors.CalcNumHBA(molecule),
        "NumHeteroatoms": rdMolDescriptors.CalcNumHeteroatoms(molecule),
        "NumRotatableBonds": _rotatable_bonds(molecule),
        "RingCount": rdMolDescriptors.CalcNumRings(molecule),
        "NumAromaticRings": rdMolDescriptors.CalcNumAromaticRings(molecule),
        "FractionCSP3": rdMolDescriptors.CalcFractionCSP3(molecule),
        "HeavyAtomCount": molecule.GetNumHeavyAtoms(),
    }


def _rotatable_bonds(molecule: Chem.Mol) -> int:
    return int(rdMolDescriptors.CalcNumRotatableBonds(molecule))


@lru_cache(maxsize=8)
def _generator(n_bits: int, radius: int) -> Any:
    return rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=n_bits)
