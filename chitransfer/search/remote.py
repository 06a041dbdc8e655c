"""The part of a study that lives in a Dask worker: it delivers code and data there and runs rungs.

`dask_workers` sends this module to workers by value, so it must not import chitransfer before that has arrived.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import io
import pickle
import sys
import threading
import traceback
import zipfile
import zlib
from pathlib import Path
from typing import Any

import distributed
from distributed import WorkerPlugin, get_worker

PACKAGE = "chitransfer"
# Attribute of the imported package that holds the digest of its source.
RELEASE = "__release__"

# Parameters of glibc's `mallopt` and their values in bytes: how much free memory a process keeps, and the size from
# which a block is mapped separately.
MALLOPT = {"M_TRIM_THRESHOLD": (-1, 512 * 2**20), "M_MMAP_THRESHOLD": (-3, 32 * 2**20)}


class StudyPlugin(WorkerPlugin):
    """A study in a worker process: its code, its data, and the `TrialRunner` built from them at the first rung.

    Dask keeps the plugin on the scheduler and sets it up in every worker that joins, restarted ones included.

    Parameters
    ----------
    name
        Unique to the study; a worker may serve several.
    package
        Digest and zipped source of chitransfer, used where the worker has none or a different one.
    payload
        `pack_payload` of (config, dataset).
    devices
        Device of each worker, indexed by the number at the end of its name; empty: the configuration's.
    n_threads
        Threads per rung; 0: PyTorch's default.
    """

    def __init__(
        self, name: str, package: tuple[str, bytes], payload: bytes, devices: tuple[str, ...], n_threads: int
    ) -> None:
        self.name = name
        self.package, self.payload = package, payload
        self.devices, self.n_threads = devices, n_threads

    def setup(self, worker: Any) -> None:
        """Called by Dask when the worker starts or the plugin arrives."""
        self._worker = worker
        self._one_at_a_time = lock_of_process()
        self._stop = threading.Event()
        self._runner: Any = None
        keep_freed_memory()

    def teardown(self, worker: Any) -> None:
        """Called by Dask when the study is removed: the running rung ends at its next epoch."""
        self._stop.set()

    def run(self, key: str, task: bytes) -> bytes:
        """Run one rung and tell the scheduler when it actually started.

        The result is pickled here: by the time Dask sends it, the process may import another study's chitransfer.
        """
        with self._one_at_a_time:
            self._worker.log_event(self.name, {"key": key, "worker": self._worker.address})
            import_release(*self.package, Path(self._worker.local_directory))
            if self._runner is None:
                self._runner = self._build_runner()
            return pickle.dumps(self._runner.run(pickle.loads(task)))

    def _build_runner(self) -> Any:
        runner = importlib.import_module(f"{PACKAGE}.search.runner")
        config, dataset = unpack_payload(self.payload)
        return runner.TrialRunner(
            config, dataset, device=self._device(), n_threads=self.n_threads, stop_requested=self._stop.is_set
        )

    def _device(self) -> str | None:
        if not self.devices:
            return None
        digits = str(self._worker.name).rpartition("-")[2]
        return self.devices[int(digits) % len(self.devices) if digits.isdigit() else 0]


def lock_of_process() -> Any:
    """The lock that lets one rung at a time compute in this process, for all studies and releases.

    A joined cluster may give a worker several threads and several studies, and training draws from PyTorch's single
    generator per process: two simultaneous rungs would not reproduce their seeds. The lock is stored in Dask's own
    module, because every study has its own copy of `remote`.
    """
    return vars(distributed).setdefault("chitransfer_computes", threading.Lock())


def keep_freed_memory() -> None:
    """With glibc, let this process keep freed memory for its next tensors.

    Dask starts workers with ``MALLOC_TRIM_THRESHOLD_=65536``, so every freed tensor is returned to the system, and the
    next one is mapped and zeroed page by page: an epoch of Stage 1 takes twice as long.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for parameter, value in MALLOPT.values():
            library.mallopt(parameter, value)


def run_rung(name: str, key: str, task: bytes) -> Any:
    """The Dask task: find the study in this worker and run one of its rungs; ``None`` if the study is not here.

    The result is pickled.
    """
    plugin: Any = get_worker().plugins.get(name)
    if plugin is None:
        return None
    try:
        return plugin.run(key, task)
    except Exception as error:  # noqa: BLE001 - raised again
        # Dask's client drops errors whose traceback is too deep to pickle, and the driver would wait for that rung for
        # ever; so the traceback is sent as text.
        error.add_note("in a worker:\n" + "".join(traceback.format_tb(error.__traceback__, limit=-10)))
        raise error.with_traceback(None) from None


def pack_payload(config: Any, dataset: Any) -> bytes:
    """Configuration and data as compressed bytes; count fingerprints are mostly zeros and compress well."""
    return zlib.compress(pickle.dumps((config, dataset), protocol=5), level=1)


def unpack_payload(payload: bytes) -> Any:
    """The inverse of `pack_payload`; its input comes from the same user's driver over Dask's connection."""
    return pickle.loads(zlib.decompress(payload))


def source_files(folder: Path) -> dict[str, bytes]:
    """The package's modules by relative path, sorted."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.py"))}


def digest_source(files: dict[str, bytes]) -> str:
    """SHA-256 over names and contents."""
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def pack_package(folder: Path) -> tuple[str, bytes]:
    """Digest and zip of a package's modules, for `StudyPlugin`."""
    files = source_files(folder)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"{PACKAGE}/{name}", content)
    return digest_source(files), stream.getvalue()


def import_release(digest: str, archive: bytes, folder: Path) -> None:
    """Let this process import exactly this chitransfer: the installed one if it is the same, else the zip.

    A different one already loaded for an earlier study is set aside and restored when asked for again. The caller holds
    `lock_of_process`.
    """
    # Stored in Dask's own module, like the lock.
    aside = vars(distributed).setdefault("chitransfer_releases", {})
    loaded = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == PACKAGE}
    if PACKAGE in loaded:
        present = getattr(loaded[PACKAGE], RELEASE, None) or _digest_installed()
        if present == digest:
            vars(loaded[PACKAGE])[RELEASE] = digest
            return
        aside[present] = loaded
    for name in loaded:
        del sys.modules[name]
    if digest in aside:
        sys.modules.update(aside[digest])
        return
    if _digest_installed() == digest:
        importlib.import_module(PACKAGE)
    else:
        path = folder / f"{PACKAGE}-{digest}.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archive)
        sys.path.insert(0, str(path))
        importlib.invalidate_caches()
        importlib.import_module(PACKAGE)
        # Its modules are found through the package; another study must find the installed ones again.
        sys.path.remove(str(path))
    vars(sys.modules[PACKAGE])[RELEASE] = digest


def _digest_installed() -> str:
    """`digest_source` of the chitransfer that is or would be imported; empty if there is none in a folder."""
    spec = importlib.util.find_spec(PACKAGE)
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent
    return digest_source(source_files(folder)) if folder is not None and folder.is_dir() else ""
