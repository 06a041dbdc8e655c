"""Identities of many polymers: each distinct SMILES is computed once, in parallel, and cached on disk.

Called by `data.tables`, `chemistry.features`, `training.finetune` and `predict`; for a single polymer use
`polymers.polymer_identity`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rdkit

from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.chemistry.repeat_units import PolymerError
from chitransfer.chunks import map_in_chunks
from chitransfer.files import write_atomically
from chitransfer.progress import Progress

IDENTITY_VERSION = 7
CHUNK = 500
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identified:
    """The canonical key of a repeat unit, or ``None`` with the reason why there is none."""

    key: str | None
    reason: str = ""


def identify_polymers(
    smiles: Sequence[str],
    *,
    cache_folder: Path | None = None,
    n_jobs: int = 1,
    progress: Progress | None = None,
) -> list[Identified]:
    """Polymer identity of every SMILES, in order; an unusable SMILES gives a reason instead of raising.

    Parameters
    ----------
    smiles
        Repeat units as written, (n,); duplicates cost nothing.
    cache_folder
        Cache folder. The key is a hash of the distinct SMILES and the RDKit version, because canonical SMILES differ
        between versions. ``None`` turns caching off.
    n_jobs
        Number of processes, used for more than `CHUNK` distinct structures.
    progress
        Called with the numbers of distinct structures (done, total).
    """
    distinct = sorted(set(smiles))
    parts = [str(IDENTITY_VERSION), f"rdkit {rdkit.__version__}", *distinct]
    fingerprint = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    path = None if cache_folder is None else cache_folder / f"identities-{fingerprint[:32]}.json.z"
    known = None if path is None else _load(path, len(distinct))
    if known is None:
        known = map_in_chunks(_identify_chunk, distinct, CHUNK, n_jobs, progress)
        if path is not None and len(distinct) > CHUNK:
            packed = json.dumps([[found.key, found.reason] for found in known]).encode()
            try:
                write_atomically(path, zlib.compress(packed))
            except OSError as error:
                logger.warning("%s: cannot be written (%s); identities will be computed again next time", path, error)
    by_smiles = dict(zip(distinct, known, strict=True))
    return [by_smiles[text] for text in smiles]


def _identify_chunk(smiles: Sequence[str]) -> list[Identified]:
    found = []
    for text in smiles:
        try:
            found.append(Identified(polymer_identity(text)))
        except PolymerError as error:
            found.append(Identified(None, str(error)))
    return found


def _load(path: Path, n: int) -> list[Identified] | None:
    try:
        pairs = json.loads(zlib.decompress(path.read_bytes()))
        if len(pairs) == n:
            return [Identified(key, reason) for key, reason in pairs]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        logger.warning("%s cannot be read (%s) and is computed again", path, error)
        return None
    except (ValueError, TypeError, zlib.error):
        pass
    logger.warning("%s is damaged and is computed again", path)
    return None
