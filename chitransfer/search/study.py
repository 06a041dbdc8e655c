"""The study on disk: creating, resuming with the contract checked, locking against a second driver, the leaderboard.

Called by `search.driver` (the only writer) and by readers such as `chitransfer status`.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import RDBStorage

from chitransfer.config import Config, load_config
from chitransfer.data.assemble import Dataset
from chitransfer.errors import StudyError
from chitransfer.files import write_json

CONTRACT = "contract"
LEADERBOARD = """
CREATE VIEW IF NOT EXISTS leaderboard AS
SELECT trials.number AS number, trial_values.value AS value, trials.datetime_complete AS finished
FROM trials JOIN trial_values ON trial_values.trial_id = trials.trial_id
WHERE trials.state = 'COMPLETE'
ORDER BY trial_values.value, trials.number
"""


@dataclass(frozen=True)
class StudyFolder:
    """Names of everything a study keeps, under ``results/hparam_search/<study name>/``."""

    path: Path

    @property
    def name(self) -> str:
        """The study's name."""
        return self.path.name

    @property
    def database(self) -> Path:
        """Optuna's SQLite database."""
        return self.path / "study.db"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def figures(self) -> Path:
        """The PNGs."""
        return self.path / "figures"

    @property
    def reference(self) -> Path:
        """Scores of the trivial predictor."""
        return self.path / "reference.json"

    def trial(self, number: int) -> Path:
        """Everything one trial left behind."""
        return self.path / "trials" / f"{number:04d}"

    @property
    def log(self) -> Path:
        """Where this run's log goes; one file a start."""
        stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
        return self.path.parent / "logs" / f"search_{self.name}_{stamp}.log"


def new_study_name() -> str:
    """``transfer_aware_YYYYMMDD_HHMMSS`` in local time, as the guide has it."""
    return f"transfer_aware_{datetime.now():%Y%m%d_%H%M%S}"


def locate_study(path: Path) -> StudyFolder:
    """The study a user means by its ``study.db`` or its folder.

    Raises
    ------
    StudyError
        There is no ``study.db`` there.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / "study.db").is_file() or (not path.is_dir() and path.name != "study.db"):
        raise StudyError(f"{path}: no study found; give the study's folder or its study.db")
    return StudyFolder(folder.resolve())


def load_study_config(folder: StudyFolder, overrides: Mapping[str, object]) -> Config:
    """The configuration a study was started with, with overrides (a larger budget, another device) laid over it."""
    if not folder.config.is_file():
        raise StudyError(f"{folder.config}: missing, so the study cannot be resumed without --config")
    return load_config(folder.config, overrides)


def open_storage(folder: StudyFolder) -> RDBStorage:
    """The study's SQLite storage; waits up to a minute for other readers."""
    return RDBStorage(f"sqlite:///{folder.database}", engine_kwargs={"connect_args": {"timeout": 60}})


def read_study(folder: StudyFolder) -> optuna.Study:
    """Open a study for reading.

    Raises
    ------
    StudyError
        The database is not one of Optuna's, or holds no study or several.
    """
    try:
        with closing(sqlite3.connect(f"file:{folder.database}?mode=ro", uri=True)) as connection:
            names = [name for (name,) in connection.execute("SELECT study_name FROM studies")]
    except sqlite3.DatabaseError as error:
        raise StudyError(f"{folder.database}: not an Optuna study database ({error})") from error
    if len(names) != 1:
        raise StudyError(f"{folder.database}: expected one study in it, found {len(names)}: {names}")
    return optuna.load_study(study_name=names[0], storage=open_storage(folder))


def create_study(folder: StudyFolder, contract: Mapping[str, Any], pruner: optuna.pruners.BasePruner) -> optuna.Study:
    """Create the study, its contract and the leaderboard view."""
    folder.path.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=folder.name, storage=open_storage(folder), direction="minimize", pruner=pruner
    )
    study.set_user_attr(CONTRACT, dict(contract))
    with closing(sqlite3.connect(folder.database, timeout=60)) as connection:
        connection.execute(LEADERBOARD)
        connection.commit()
    return study


def resume_study(folder: StudyFolder, contract: Mapping[str, Any], pruner: optuna.pruners.BasePruner) -> optuna.Study:
    """Open a study to go on with it.

    Raises
    ------
    StudyError
        Its contract (space, objective, data, folds, training settings) or its direction is not the present one; the
        message shows every difference.
    """
    study = read_study(folder)
    study.pruner = pruner
    if study.direction != optuna.study.StudyDirection.MINIMIZE:
        raise StudyError(f"{folder.database}: the study maximises; the transfer objective is minimised")
    known = study.user_attrs.get(CONTRACT)
    if known is None:
        raise StudyError(f"{folder.database}: was not written by chitransfer, so it cannot be resumed here")
    differences = list(_differences(known, json.loads(json.dumps(contract)), ""))
    if differences:
        raise StudyError(
            f"{folder.database}: the study cannot be resumed under other conditions\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\nResume without these changes, or start a new study."
        )
    return study


def make_contract(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What every trial of a study has in common; a resumed search must agree with all of it."""
    values = config.model_dump()
    training = {k: v for k, v in values["training"].items() if k not in {"device", "num_threads"}}
    search = {k: values["search"][k] for k in ("pruner", "rungs", "n_pretrain_seeds")}
    return {
        "seed": config.seed,
        "T_ref_K": config.T_ref_K,
        "space": values["search"]["space"],
        "search": search,
        **{k: values[k] for k in ("objective", "cv", "solubility", "chem", "model")},
        "training": training,
        "data": {
            rows.table.kind: {"sha256": rows.table.digest, "rows": len(rows)}
            for rows in (dataset.stage1, dataset.chi, dataset.solubility)
            if rows is not None
        },
    }


def _differences(known: Any, now: Any, prefix: str) -> Iterator[str]:
    if isinstance(known, dict) and isinstance(now, dict):
        for key in sorted(known.keys() | now.keys()):
            dotted = f"{prefix}.{key}" if prefix else key
            yield from _differences(known.get(key), now.get(key), dotted)
    elif known != now:
        yield f"{prefix}: the study has {known!r}, now {now!r}"


@contextmanager
def drive_alone(folder: StudyFolder) -> Iterator[None]:
    """Hold the study's driver lock; the operating system frees it when the process dies.

    Raises
    ------
    StudyError
        Another driver holds it; the message names its host and process.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    holder = folder.path / "driver.json"
    lock = FileLock(folder.path / "driver.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        who = _read_holder(holder)
        raise StudyError(f"{folder.path}: another search is writing to this study ({who}); stop it first") from error
    try:
        write_json(holder, {"host": socket.gethostname(), "pid": os.getpid(), "since": f"{datetime.now():%F %T}"})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _read_holder(holder: Path) -> str:
    try:
        values = json.loads(holder.read_text())
        return f"host {values['host']}, pid {values['pid']}, since {values['since']}"
    except (OSError, ValueError, KeyError):
        return "host and pid unknown"
