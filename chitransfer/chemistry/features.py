"""Features of many polymers or solvents: in parallel, once per structure, remembered on disk.

`FeatureCache` is called by `data.assemble` and `data.check`, the `featurise_` functions by `predict` as well.
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
    """Where features are kept: ``$CHITRANSFER_CACHE``, else the user's cache folder, else one for temporary files."""
    import pooch

    try:
        return Path(os.environ.get("CHITRANSFER_CACHE") or pooch.os_cache("chitransfer")).expanduser()
    except RuntimeError as error:
        # As in a container: no HOME, and nobody of that number among the users.
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
        Repeat units, (n,). The periodic representation takes each to its polymer identity first, so every cut of a
        chain gives the same numbers to the last bit.
    n_jobs
        Processes, used for more than `CHUNK` structures; −1 takes every core.
    progress
        Called with (done, total).

    Returns
    -------
    numpy.ndarray
        (n, n_structure_features) float32, finite.

    Raises
    ------
    DataError
        A SMILES is no repeat unit, or a descriptor of it is not finite; the message names it.
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
    """Feature vectors of whole molecules: Morgan counts and plain descriptors, whatever the polymers' representation.

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
        RDKit cannot read a SMILES, or a descriptor of it is not finite; the message names it.
    """
    return _featurise(smiles, recipe, solvent_vector)


class FeatureCache:
    """Features remembered on disk, in files named by the hash of their structures, recipe and RDKit version.

    Work is kept chunk by chunk, so an interrupted run goes on where it stopped; a changed recipe has other names; a
    damaged or foreign file is noticed by its checksum and made again. Files hold plain arrays and execute nothing.

    Parameters
    ----------
    folder
        ``None`` remembers nothing.
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
        """Features of the distinct structures, and which of them each input is.

        Parameters
        ----------
        smiles
            Repeat units, (n,). With the periodic representation, cuts of one chain are one structure.
        are_identities
            `smiles` come from `polymer_identity` and are not worked out again.
        n_jobs
            Processes, used for more than `CHUNK` new structures; −1 takes every core.
        progress
            Called with (done, total) distinct structures.

        Returns
        -------
        features
            (n_distinct, n_structure_features) float32, without the zeros that nearly all of them are.
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
        """Features in the chunk's file; ``None`` when there is none that can be trusted."""
        if self._folder is None:
            return None
        key = _chunk_key(smiles, recipe)
        path = _chunk_path(self._folder, key)
        try:
            return _unpack(_unseal(path.read_bytes(), key), recipe)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, IndexError, EOFError) as error:
            logger.warning("%s cannot be used (%s) and is made again", path, error)
            return None

    def _save(self, smiles: list[str], recipe: FeatureRecipe, packed: bytes) -> None:
        if self._folder is None:
            return
        key = _chunk_key(smiles, recipe)
        path = _chunk_path(self._folder, key)
        try:
            write_atomically(path, _seal(packed, key))
        except OSError as error:
            # The features are at hand; a full or read-only disk costs only the next run's time.
            logger.warning("%s cannot be written (%s); features will be computed again next time", path, error)


def _chunk_key(smiles: list[str], recipe: FeatureRecipe) -> str:
    parts = [CACHE_MARK.decode(), f"rdkit {rdkit.__version__}", recipe.digest(), *smiles]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _chunk_path(folder: Path, key: str) -> Path:
    return folder / f"features-{key[:32]}.bin"


def _seal(packed: bytes, key: str) -> bytes:
    """What a chunk's file holds: a mark, a checksum that covers the chunk's key, and the output of `_pack`."""
    return CACHE_MARK + hashlib.sha256(key.encode() + packed).digest() + packed


def _unseal(content: bytes, key: str) -> bytes:
    """The inverse of `_seal`; raises before anything foreign is read."""
    start = len(CACHE_MARK) + hashlib.sha256().digest_size
    packed = content[start:]
    if content[:start] != CACHE_MARK + hashlib.sha256(key.encode() + packed).digest():
        raise ValueError("damaged, or made for something else")
    return packed


def _pack(features: np.ndarray, n_fingerprint: int) -> bytes:
    """Features as bytes: two npy arrays, the non-zero counts and the descriptors."""
    row, column = np.nonzero(features[:, :n_fingerprint])
    counts = np.empty(len(row), dtype=[("row", "<u2"), ("column", "<u4"), ("count", "<f4")])
    counts["row"], counts["column"], counts["count"] = row, column, features[row, column]
    stream = io.BytesIO()
    np.save(stream, counts)
    np.save(stream, features[:, n_fingerprint:])
    return stream.getvalue()


def _unpack(packed: bytes, recipe: FeatureRecipe) -> sparse.csr_array:
    """The features of `_pack`, (n, n_structure_features)."""
    stream = io.BytesIO(packed)
    counts = np.load(stream, allow_pickle=False)
    descriptors = np.load(stream, allow_pickle=False)
    fingerprints = sparse.coo_array(
        (counts["count"], (counts["row"], counts["column"])), shape=(len(descriptors), recipe.fingerprint_bits)
    )
    return sparse.csr_array(sparse.hstack([fingerprints, descriptors], format="csr", dtype=np.float32))


def end_idle_processes() -> None:
    """End the processes that features were worked out in; each would keep 170 MB for minutes."""
    get_reusable_executor().shutdown()


def _featurise_parts(
    parts: list[list[str]], recipe: FeatureRecipe, make_vector: MakeVector, n_jobs: int
) -> Iterator[bytes]:
    """Features of each part in order, as `_pack` packs them."""
    return call_each(_featurise_packed, [(part, recipe, make_vector) for part in parts], n_jobs)


def _featurise_packed(smiles: Sequence[str], recipe: FeatureRecipe, make_vector: MakeVector) -> bytes:
    # Packed where it is worked out: a fiftieth of the bytes goes from process to process.
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
