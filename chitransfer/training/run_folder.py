"""What both stages of full training write to disk, and where: folder names, provenance, metrics, rejected rows.

Called by `training.pretrain` and `training.finetune`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import Timeout

from chitransfer.config import Config, dump_config
from chitransfer.data.assemble import Dataset, Rows
from chitransfer.errors import NO_LOCKS, OTHER_RESULTS_FOLDER, CheckpointError, ConfigError
from chitransfer.files import make_lock, make_new_folder, write_atomically
from chitransfer.provenance import versions, write_provenance
from chitransfer.training.metrics import chi_metrics


@dataclass(frozen=True)
class RunFolder:
    """Paths of everything that one full training keeps, under ``results/<stage>_<time>/``."""

    path: Path

    @classmethod
    def create(cls, results_dir: str, stage: str) -> RunFolder:
        """A new folder named after the stage and the local time.

        Raises
        ------
        ConfigError
            The results folder cannot be written.
        """
        name = f"{stage}_{datetime.now():%Y%m%d_%H%M%S}"
        try:
            return cls(make_new_folder(Path(results_dir), name))
        except OSError as error:
            raise ConfigError(
                f"paths.results_dir: {results_dir} cannot be written ({error.strerror}); {OTHER_RESULTS_FOLDER}"
            ) from error

    @property
    def best_model(self) -> Path:
        """The checkpoint to use."""
        return self.path / "checkpoints" / "best_model.pt"

    @property
    def final_model(self) -> Path:
        """Stage 1's weights of the last epoch."""
        return self.path / "checkpoints" / "final_model.pt"

    @property
    def state(self) -> Path:
        """The state from which an interrupted Stage 1 resumes."""
        return self.path / "checkpoints" / "state.pt"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Every metric."""
        return self.path / "metrics.json"

    @contextmanager
    def write_alone(self) -> Iterator[None]:
        """Hold the folder's lock; the operating system frees it when the process dies.

        Raises
        ------
        CheckpointError
            Another process writes here, or the file system has no locks.
        """
        lock = make_lock(self.path / "running.lock")
        try:
            lock.acquire()
        except Timeout as error:
            raise CheckpointError(f"{self.path}: another process is training in this folder; stop it first") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise CheckpointError(
                f"{self.path}: its file system has no file locks ({error.strerror}), which ensure that only one "
                "process at a time trains in a folder; choose a results folder on another file system "
                "(paths.results_dir)"
            ) from error
        try:
            yield
        finally:
            with suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def discard(self) -> None:
        """Delete the folder: the run ended before it wrote anything that could be used or resumed."""
        shutil.rmtree(self.path, ignore_errors=True)

    def write_start(self, config: Config, dataset: Dataset) -> None:
        """Write the resolved configuration, the environment and the rejected rows."""
        write_atomically(self.config, dump_config(config))
        write_provenance(self.path, dataset)


def describe_provenance(config: Config, dataset: Dataset, **more: Any) -> dict[str, Any]:
    """Versions, configuration, tables with their SHA-256, and the date, for a checkpoint."""
    return {
        "versions": versions(),
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "config": dump_config(config),
        "tables": {
            table.kind: {"source": table.source, "sha256": table.digest, "rows": len(table)} for table in dataset.tables
        },
        **more,
    }


def describe_rows(rows: Rows) -> dict[str, Any]:
    """Columns that identify a row of a table: line, SMILES, solvent and, for χ, temperature and value."""
    table = rows.table.rows
    names = [name for name in ("line", "SMILES", "solvent", "temp", "chi", "soluble") if name in table]
    return {name: table[name].to_numpy() for name in names}


def chi_scores(measured: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """MAE, RMSE, R², Spearman's ρ and number of χ values, both (n_rows,); only the number when there are none."""
    if len(measured) == 0:
        return {"n_rows": 0}
    named = {name.removeprefix("exp_"): value for name, value in chi_metrics(measured, predicted).items()}
    return {"n_rows": len(measured), **named}
