"""Features of many polymers or solvents, computed in parallel, once per structure, and cached on disk.

`data.assemble` and `data.check` call `FeatureCache`; `predict` also calls the `featurise_` functions.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import rdkit
from joblib.externals.loky import get_reusable_executor
from rdkit import rdBase
from scipy import sparse

from chitransfer.chemistry.identities import identify_polymers
from chitransfer.chemistry.repeat_units import PolymerError
from chitransfer.chemistry.vectors import (
    DESCRIPTORS,
    FEATURE_VERSION,
    FeatureRecipe,
    identity_vector,
    polymer_vector,
    solvent_vector,
)
from chitransfer.chunks import call_each, split_in_chunks
from chitransfer.errors import DataError
from chitransfer.files import write_atomically
from chitransfer.interrupts import restore_interrupts
from chitransfer.progress import Progress

__all__ = [
    "DESCRIPTORS",
    "FEATURE_VERSION",
    "FeatureCache",
    "FeatureRecipe",
    "default_cache_folder",
    "end_idle_processes",
    "featurise_polymers",
    "featurise_solvents",
]

CHUNK = 500
CACHE_MARK = b"chitransfer features 4\n"
MakeVector = Callable[[str, FeatureRecipe], np.ndarray]
logger = logging.getLogger(__name__)


def default_cache_folder() -> Path:
    """The cache folder: ``$CHITRANSFER_CACHE``, else the user's cache folder, else one for temporary files."""
    import pooch

    try:
        return Path(os.environ.get("CHITRANSFER_CACHE") or pooch.os_cache("chitransfer")).expanduser()
    except RuntimeError as error:
        # Happens in containers: HOME is unset and the user ID has no passwd entry.
        folder = Path(tempfile.gettempdir()) / "chitransfer"
        logger.warning("no cache folder (%s); %s is used (set CHITRANSFER_CACHE to another)", error, folder)
        return folder


def featurise_polymers(
    smiles: Sequence[str], recipe: FeatureRecipe, *, n_jobs: int = 1, progress: Progress | None = None
) -> np.ndarray:
    """Feature vectors of repeat units.

    Parameters
    ----------
    smiles
        Repeat units, (n,). The periodic representation first converts each to its polymer identity, so every cut of a
        chain gives bit-identical numbers.
    n_jobs
        Number of processes, used for more than `CHUNK` structures; −1 uses every core.
    progress
        Called with (done, total).

    Returns
    -------
    numpy.ndarray
        (n, n_structure_features) float32, finite.

    Raises
    ------
    DataError
        A SMILES is not a repeat unit, or one of its descriptors is not finite; the message names the SMILES.
    """
    parts = split_in_chunks(smiles, CHUNK)
    features = np.zeros((len(smiles), recipe.n_structure_features), dtype=np.float32)
    done = 0
    for part, packed in zip(parts, _featurise_parts(parts, recipe, polymer_vector, n_jobs), strict=True):
        features[done : done + len(part)] = _unpack(packed, recipe).toarray()
        done += len(part)
        if progress is not None:
            progress(done, len(smiles))
    return features


def featurise_solvents(smiles: Sequence[str], recipe: FeatureRecipe) -> np.ndarray:
    """Feature vectors of whole molecules: Morgan counts and plain descriptors, for either polymer representation.

    Parameters
    ----------
    smiles
        Solvents, (n,); single atoms such as water's ``O`` are molecules too.

    Returns
    -------
    numpy.ndarray
        (n, n_structure_features) float32, finite.

    Raises
    ------
    DataError
        RDKit cannot read a SMILES, or one of its descriptors is not finite; the message names the SMILES.
    """
    return _featurise(smiles, recipe, solvent_vector)


class FeatureCache:
    """Features cached on disk, in files named by a hash of their structures, recipe and RDKit version.

    Chunks are saved as they are finished, so an interrupted run continues where it stopped. A changed recipe gives
    different file names. A checksum detects damaged or foreign files, which are then recomputed. Files hold plain
    arrays, so loading them executes no code.

    Parameters
    ----------
    folder
        Cache folder; ``None`` turns caching off.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def polymer_features(
        self,
        smiles: Sequence[str],
        recipe: FeatureRecipe,
        *,
        are_identities: bool = False,
        n_jobs: int = 1,
        progress: Progress | None = None,
    ) -> tuple[sparse.csr_array, np.ndarray]:
        """Features of the distinct structures, and the index that maps each input to its structure.

        Parameters
        ----------
        smiles
            Repeat units, (n,). With the periodic representation, different cuts of one chain are one structure.
        are_identities
            Whether `smiles` already come from `polymer_identity`; if so, it is not called again.
        n_jobs
            Number of processes, used for more than `CHUNK` new structures; −1 uses every core.
        progress
            Called with the numbers of distinct structures (done, total).

        Returns
        -------
        features
            (n_distinct, n_structure_features) float32, sparse because nearly all values are zero.
        index
            (n,) int64 into `features`.

        Raises
        ------
        DataError
            As `featurise_polymers`.
        """
        keys = list(smiles)
        if recipe.representation == "periodic" and not are_identities:
            keys = self._identities(keys, n_jobs)
        distinct, index = np.unique(np.asarray(keys, dtype=object), return_inverse=True)
        parts = split_in_chunks(distinct.tolist(), CHUNK)
        found = {number: self._load(part, recipe) for number, part in enumerate(parts)}
        missing = [number for number, features in found.items() if features is None]
        done = len(distinct) - sum(len(parts[number]) for number in missing)
        if progress is not None:
            progress(done, len(distinct))
        make_vector = identity_vector if recipe.representation == "periodic" else polymer_vector
        made = _featurise_parts([parts[number] for number in missing], recipe, make_vector, n_jobs)
        for number, packed in zip(missing, made, strict=True):
            part = parts[number]
            found[number] = _unpack(packed, recipe)
            self._save(part, recipe, packed)
            done += len(part)
            if progress is not None:
                progress(done, len(distinct))
        empty = sparse.csr_array((0, recipe.n_structure_features), dtype=np.float32)
        features = sparse.csr_array(sparse.vstack([*found.values()] or [empty], format="csr"))
        return features, index.astype(np.int64).reshape(len(keys))

    def _identities(self, smiles: list[str], n_jobs: int) -> list[str]:
        found = identify_polymers(smiles, cache_folder=self._folder, n_jobs=n_jobs)
        for text, identified in zip(smiles, found, strict=True):
            if identified.key is None:
                raise DataError(f"{text}: {identified.reason}")
        return [str(identified.key) for identified in found]

    def _load(self, smiles: list[str], recipe: FeatureRecipe) -> sparse.csr_array | None:
        """Features from the chunk's file; ``None`` if the file is missing or cannot be trusted."""
        if self._folder is None:
            return None
        key = _chunk_key(smiles, recipe)
        path = _chunk_path(self._folder, key)
        try:
            return _unpack(_unseal(path.read_bytes(), key), recipe)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, IndexError, EOFError) as error:
            logger.warning("%s cannot be used (%s) and is computed again", path, error)
            return None

    def _save(self, smiles: list[str], recipe: FeatureRecipe, packed: bytes) -> None:
        if self._folder is None:
            return
        key = _chunk_key(smiles, recipe)
        path = _chunk_path(self._folder, key)
        try:
            write_atomically(path, _seal(packed, key))
        except OSError as error:
            # The features are already in memory; a full or read-only disk only costs the next run some time.
            logger.warning("%s cannot be written (%s); features will be computed again next time", path, error)


def _chunk_key(smiles: list[str], recipe: FeatureRecipe) -> str:
    parts = [CACHE_MARK.decode(), f"rdkit {rdkit.__version__}", recipe.digest(), *smiles]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _chunk_path(folder: Path, key: str) -> Path:
    return folder / f"features-{key[:32]}.bin"


def _seal(packed: bytes, key: str) -> bytes:
    """Content of a chunk's file: a marker, a checksum that also covers the chunk's key, and the output of `_pack`."""
    return CACHE_MARK + hashlib.sha256(key.encode() + packed).digest() + packed


def _unseal(content: bytes, key: str) -> bytes:
    """The inverse of `_seal`; raises before any foreign content is parsed."""
    start = len(CACHE_MARK) + hashlib.sha256().digest_size
    packed = content[start:]
    if content[:start] != CACHE_MARK + hashlib.sha256(key.encode() + packed).digest():
        raise ValueError("damaged, or made for something else")
    return packed


def _pack(features: np.ndarray, n_fingerprint: int) -> bytes:
    """Serialise features as two npy arrays: the non-zero counts and the descriptors."""
    row, column = np.nonzero(features[:, :n_fingerprint])
    counts = np.empty(len(row), dtype=[("row", "<u2"), ("column", "<u4"), ("count", "<f4")])
    counts["row"], counts["column"], counts["count"] = row, column, features[row, column]
    stream = io.BytesIO()
    np.save(stream, counts)
    np.save(stream, features[:, n_fingerprint:])
    return stream.getvalue()


def _unpack(packed: bytes, recipe: FeatureRecipe) -> sparse.csr_array:
    """The inverse of `_pack`: features, (n, n_structure_features)."""
    stream = io.BytesIO(packed)
    counts = np.load(stream, allow_pickle=False)
    descriptors = np.load(stream, allow_pickle=False)
    fingerprints = sparse.coo_array(
        (counts["count"], (counts["row"], counts["column"])), shape=(len(descriptors), recipe.fingerprint_bits)
    )
    return sparse.csr_array(sparse.hstack([fingerprints, descriptors], format="csr", dtype=np.float32))


def end_idle_processes() -> None:
    """End idle worker processes; each would otherwise hold 170 MB for minutes."""
    get_reusable_executor().shutdown()


def _featurise_parts(
    parts: list[list[str]], recipe: FeatureRecipe, make_vector: MakeVector, n_jobs: int
) -> Iterator[bytes]:
    """Features of each part, in order, serialised by `_pack`."""
    return call_each(_featurise_packed, [(part, recipe, make_vector) for part in parts], n_jobs)


def _featurise_packed(smiles: Sequence[str], recipe: FeatureRecipe, make_vector: MakeVector) -> bytes:
    # Packing in the worker reduces the data sent between processes fiftyfold.
    return _pack(_featurise(smiles, recipe, make_vector), recipe.fingerprint_bits)


def _featurise(smiles: Sequence[str], recipe: FeatureRecipe, make_vector: MakeVector) -> np.ndarray:
    vectors = np.zeros((len(smiles), recipe.n_structure_features), dtype=np.float32)
    with rdBase.BlockLogs():
        for position, text in enumerate(smiles):
            try:
                vector = make_vector(text, recipe)
            except PolymerError as error:
                raise DataError(f"{text}: {error}") from error
            finally:
                restore_interrupts()
            if not np.isfinite(vector).all():
                names = [name for name, value in zip(recipe.names(), vector, strict=False) if not np.isfinite(value)]
                raise DataError(f"{text}: RDKit gives no finite value for {', '.join(names)}; leave this structure out")
            vectors[position] = vector
    return vectors
