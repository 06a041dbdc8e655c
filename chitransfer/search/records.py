"""What a trial leaves on disk: scores and out-of-fold predictions when done, the last rung's state until then.

Written by `search.driver`, read back on resume and by `search.results` and `evidence`.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from chitransfer.files import remove_left_over, write_atomically, write_csv, write_json
from chitransfer.search.objective import RungResult
from chitransfer.search.space import HALVED_BATCH_SIZE

if TYPE_CHECKING:
    from chitransfer.data.assemble import Dataset

# Attribute of a trial: computing time of all its rungs and runs, without pauses of the search.
SECONDS_TOTAL = "seconds_total"
# Likewise: holds the transfer objective in a study with several objectives.
OBJECTIVE = "objective"
# File in a trial's folder with its Stage 1 results.
ENCODERS_FILE = "stage1.pt"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedRung:
    """The last rung a trial finished, as read back from disk."""

    epoch: int
    finished: bool
    value: float
    attributes: dict[str, Any]
    state: bytes

    @property
    def seconds(self) -> dict[str, float]:
        """Computing time of this rung and those before it, by stage."""
        names = [name for name in self.attributes if name.startswith("seconds_") and name != SECONDS_TOTAL]
        return {name.removeprefix("seconds_"): self.attributes[name] for name in names}


def trial_attributes(result: RungResult) -> dict[str, Any]:
    """The user attributes of a trial: components, their spread, seconds, memory; plain JSON values."""
    attributes: dict[str, Any] = {name: _or_none(value) for name, value in result.components.items()}
    attributes |= {f"{name}_std": _or_none(value) for name, value in result.spread.items()}
    attributes |= {f"seconds_{name}": round(value, 3) for name, value in result.seconds.items()}
    attributes[SECONDS_TOTAL] = round(sum(result.seconds.values()), 3)
    attributes["peak_memory_mb"] = _or_none(round(result.peak_memory_mb, 1))
    attributes["stage1_epochs"] = result.epoch
    if result.halved_batch_size is not None:
        attributes[HALVED_BATCH_SIZE] = result.halved_batch_size
    attributes["stage1_best_epoch"] = [replicate.best_epoch for replicate in result.replicates]
    return attributes


def save_rung(folder: Path, result: RungResult, params: dict[str, Any], dataset: Dataset) -> None:
    """Write all results of a rung; the small file that makes it valid is written last.

    A search killed at any moment finds either this whole rung or the previous one.
    """
    if result.state:
        write_atomically(folder / f"rung_{result.epoch:05d}.pt", result.state)
    if result.encoders:
        write_atomically(folder / ENCODERS_FILE, result.encoders)
    for kind, frame in (("chi", chi_frame(result, dataset)), ("solubility", solubility_frame(result, dataset))):
        if frame is not None:
            write_csv(folder / f"out_of_fold_{kind}.csv", frame)
    history = pd.DataFrame(
        [{"pretrain_seed": index, **row} for index, r in enumerate(result.replicates) for row in r.history]
    )
    write_csv(folder / "stage1_history.csv", history)
    write_json(
        folder / "scores.json",
        {
            "number": result.number,
            "params": params,
            "epoch": result.epoch,
            "finished": result.finished,
            "value": result.value,
            "attributes": trial_attributes(result),
            "replicates": [
                {
                    "seed": replicate.seed,
                    "best_epoch": replicate.best_epoch,
                    "per_repeat": replicate.scores.per_repeat,
                    "per_fold": replicate.scores.per_fold,
                    "threshold": replicate.out_of_fold.threshold.tolist(),
                }
                for replicate in result.replicates
            ],
        },
    )
    for old in folder.glob("rung_*.pt"):
        if result.finished or old.name != f"rung_{result.epoch:05d}.pt":
            old.unlink(missing_ok=True)
    remove_left_over(folder)


def discard_states(folder: Path) -> None:
    """Delete the states of a trial that has ended, and files a killed search left half-written."""
    for state in folder.glob("rung_*.pt"):
        state.unlink(missing_ok=True)
    remove_left_over(folder)


def load_rung(folder: Path) -> SavedRung | None:
    """The last whole rung in a trial's folder; ``None`` if there is none or it is damaged (it is then run again)."""
    path = folder / "scores.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        state = b"" if values["finished"] else (folder / f"rung_{values['epoch']:05d}.pt").read_bytes()
        return SavedRung(
            epoch=values["epoch"],
            finished=values["finished"],
            value=float(values["value"]),
            attributes=values["attributes"],
            state=state,
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        logger.warning("%s is damaged; the trial is restarted", path)
        return None


def chi_frame(result: RungResult, dataset: Dataset) -> pd.DataFrame | None:
    """Out-of-fold χ, one line per row, repeat and pretraining seed."""
    if dataset.chi is None:
        return None
    rows = dataset.chi.table.rows
    return _stack(
        result,
        lambda r, repeat: rows.assign(fold=r.out_of_fold.fold_of_chi[repeat], predicted_chi=r.out_of_fold.chi[repeat]),
    )


def solubility_frame(result: RungResult, dataset: Dataset) -> pd.DataFrame | None:
    """Out-of-fold probabilities of the positive class and the call at the fold's threshold, like `chi_frame`."""
    if dataset.solubility is None:
        return None
    rows = dataset.solubility.table.rows

    def one(r: Any, repeat: int) -> pd.DataFrame:
        fold = r.out_of_fold.fold_of_solubility[repeat]
        return rows.assign(
            fold=fold,
            probability_positive=r.out_of_fold.probability[repeat],
            threshold=r.out_of_fold.threshold[repeat][fold],
            called_positive=r.out_of_fold.called_positive()[repeat].astype(int),
        )

    return _stack(result, one)


def _stack(result: RungResult, make: Any) -> pd.DataFrame:
    return pd.concat(
        [
            make(replicate, repeat).assign(pretrain_seed=index, repeat=repeat)
            for index, replicate in enumerate(result.replicates)
            for repeat in range(replicate.out_of_fold.threshold.shape[0])
        ],
        ignore_index=True,
    )


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
