"""The study in its database and its folder: names of its files, creating, resuming with the contract checked, reading.

Called by `search.run` and by readers such as `chitransfer status`; `search.lock` keeps a second driver out.
"""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection

from chitransfer.config import Config, load_config
from chitransfer.errors import StudyError
from chitransfer.progress import NamedProgress
from chitransfer.search.contract import (
    NAMES,
    VARIANTS,
    find_differences,
    find_space_refusals,
    space_hint,
)
from chitransfer.search.objective import ERRORS
from chitransfer.search.storage import (
    DAMAGED,
    SQLITE_SECONDS,
    create_leaderboard,
    describe_storage_error,
    explain_storage_errors,
    open_storage,
    sqlite_address,
)
from chitransfer.secrecy import mask_passwords
from chitransfer.seeds import derive_seed

if TYPE_CHECKING:
    from chitransfer.data.assemble import Dataset

CONTRACT = "contract"
SECOND_PASS = "second_pass_"
# Set by scripts/run_hparam_search.sh to the words that started it: its virtual environment need not be active.
LAUNCHER = "CHITRANSFER_LAUNCHER"
CONTRACT_SEARCH_KEYS = ("pruner", "rungs", "n_pretrain_seeds", "replicates", "objectives", "control")


@dataclass(frozen=True)
class StudyFolder:
    """Names of everything a study keeps, under ``results/hparam_search/<study name>/``.

    Attributes
    ----------
    storage
        Address of the database server that holds the study; ``None``: ``study.db`` in the folder.
    """

    path: Path
    storage: str | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """What Optuna opens: the server's address, or the database in the folder."""
        return self.storage or sqlite_address(self.database)

    @property
    def place(self) -> str:
        """What messages call the study: its database, or its name on a server, never with a password."""
        return str(self.database) if self.storage is None else f"{mask_passwords(self.storage)}, study {self.name}"

    @property
    def resume_path(self) -> Path:
        """What ``--resume`` takes."""
        return self.database if self.storage is None else self.path

    @property
    def resume_command(self) -> str:
        """The command that goes on with the study; by the launcher where it started this process."""
        command = os.environ.get(LAUNCHER, "chitransfer search")
        return f"{command} --resume {shlex.quote(str(self.resume_path))}"

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

    def second_pass(self, number: int) -> StudyFolder:
        """The second pass on one trial's Stage 1; its database is in its folder, wherever the study's is."""
        return StudyFolder(self.path / f"{SECOND_PASS}{number:04d}")

    @property
    def first_pass(self) -> tuple[Path, int] | None:
        """Of a second pass, the folder of its study and the trial whose Stage 1 it took; ``None`` for other studies."""
        number = self.name.removeprefix(SECOND_PASS)
        is_inside = StudyFolder(self.path.parent).config.is_file()
        return (self.path.parent, int(number)) if is_inside and number != self.name and number.isdigit() else None

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
        There is no ``study.db`` there, and no configuration that names a database server.
    """
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or path.name == "study.db":
        if (folder / "study.db").is_file():
            return StudyFolder(folder.resolve())
        config = StudyFolder(folder).config
        storage = load_config(config).search.storage if config.is_file() else None
        if storage is not None:
            return StudyFolder(folder.resolve(), storage)
    studies = sorted(folder.glob("*/study.db"))
    hint = f", such as {studies[-1]}" if studies else ""
    raise StudyError(f"{path}: no study found; give the study's folder or its study.db{hint}")


def keep_storage(folder: StudyFolder, storage: str | None) -> StudyFolder:
    """The folder of a study to resume with the address given now, which may hold the password the kept one lacks.

    Raises
    ------
    StudyError
        The study lives elsewhere than the address says.
    """
    if (folder.storage is None) != (storage is None):
        raise StudyError(
            f"{folder.place}: the study stays where it was created; search.storage cannot be changed to "
            f"{'null' if storage is None else mask_passwords(storage)} when it is resumed"
        )
    return StudyFolder(folder.path, storage)


def load_study_config(folder: StudyFolder, overrides: Mapping[str, object]) -> Config:
    """The configuration a study was started with, with overrides (a larger budget, another device) laid over it."""
    if not folder.config.is_file():
        raise StudyError(
            f"{folder.config}: missing; put a copy of it back, or have it made again by going on with the study "
            f"under the configuration it began with: {folder.resume_command} --config FILE"
        )
    return load_config(folder.config, overrides)


def read_study(folder: StudyFolder) -> optuna.Study:
    """Open a study for reading.

    Raises
    ------
    StudyError
        The database is not one of Optuna's, is damaged, cannot be reached, or holds no such study.
    """
    name = folder.name
    if folder.storage is None:
        # Not read-only: what a killed driver was writing must be rolled back first, and SQLite does so on opening.
        address = f"file:{quote(str(folder.database))}?mode=rw"
        try:
            with closing(sqlite3.connect(address, timeout=SQLITE_SECONDS, uri=True)) as connection:
                names = [name for (name,) in connection.execute("SELECT study_name FROM studies")]
                (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            # Locked, or not to be opened: that says nothing about what is in it.
            if isinstance(error, sqlite3.OperationalError) and "no such" not in str(error):
                raise StudyError(describe_storage_error(folder.place, error)) from error
            # SQLite's own message may quote damaged bytes, and then cannot be decoded.
            raise StudyError(
                f"{folder.database}: not an Optuna study database ({error}). If it was one, {DAMAGED}"
            ) from error
        if state != "ok":
            raise StudyError(f"{folder.database}: {DAMAGED}")
        if len(names) != 1:
            raise StudyError(f"{folder.database}: expected one study in it, found {len(names)}: {names}")
        name = names[0]
    with explain_storage_errors(folder.place):
        try:
            study = optuna.load_study(study_name=name, storage=open_storage(folder.address))
        except KeyError as error:
            raise StudyError(f"{folder.place}: there is no study named {name!r}") from error
        try:
            # Whatever is damaged shows here, where it can be said; Optuna reads no finished trial twice.
            study.get_trials(deepcopy=False)
            study.user_attrs  # noqa: B018 - reading it is the check
        except (ValueError, LookupError, TypeError, AssertionError) as error:
            raise StudyError(f"{folder.place}: {DAMAGED}") from error
        return study


def refuse_taken_name(folder: StudyFolder) -> None:
    """Refuse the name of a study that left trials in the folder, or is on its database server; nothing is written.

    Raises
    ------
    StudyError
        There is one, or the server cannot be reached.
    """
    if (folder.path / "trials").exists():
        raise StudyError(
            f"{folder.path}: holds the trials of a study whose database is gone, which would be taken for those of the "
            "new one; put the database back, take the folder away, or choose another --study-name"
        )
    if folder.storage is None:
        return
    with explain_storage_errors(folder.place):
        storage = open_storage(folder.storage)
        try:
            is_taken = folder.name in optuna.get_all_study_names(storage)
        finally:
            storage.engine.dispose()
    if is_taken:
        raise _taken_name(folder)


def _taken_name(folder: StudyFolder) -> StudyError:
    return StudyError(
        f"{folder.place}: there is a study named {folder.name!r} already; choose another --study-name, or resume it "
        "from its folder"
    )


def create_study(folder: StudyFolder, contract: Mapping[str, Any], pruner: optuna.pruners.BasePruner) -> optuna.Study:
    """Create the study, its contract and the leaderboard view; an interruption leaves no half-made study behind.

    Raises
    ------
    StudyError
        The database cannot be reached, or has a study of that name.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    if folder.storage is not None:
        with explain_storage_errors(folder.place):
            try:
                study = _create_in(open_storage(folder.storage), folder.name, contract)
            except optuna.exceptions.DuplicatedStudyError as error:
                raise _taken_name(folder) from error
        study.pruner = pruner
        return study
    for left_over in folder.path.glob(".creating-*"):
        left_over.unlink()
    new = folder.path / f".creating-{os.getpid()}.db"
    with explain_storage_errors(folder.place):
        try:
            storage = open_storage(sqlite_address(new))
            _create_in(storage, folder.name, contract)
            storage.engine.dispose()
            new.replace(folder.database)
        finally:
            # Ctrl-C may have come meanwhile.
            for left_over in folder.path.glob(f"{new.name}*"):
                left_over.unlink()
        study = optuna.load_study(study_name=folder.name, storage=open_storage(folder.address))
    study.pruner = pruner
    return study


def _create_in(storage: RDBStorage, name: str, contract: Mapping[str, Any]) -> optuna.Study:
    study = optuna.create_study(study_name=name, storage=storage, directions=_directions(contract))
    study.set_user_attr(CONTRACT, dict(contract))
    create_leaderboard(storage)
    return study


def _directions(contract: Mapping[str, Any]) -> list[StudyDirection]:
    """One objective is the transfer objective; several are metrics by name, errors minimised and scores maximised."""
    names = contract["search"].get("objectives") or []
    directions = [StudyDirection.MINIMIZE if name in ERRORS else StudyDirection.MAXIMIZE for name in names]
    return directions or [StudyDirection.MINIMIZE]


def resume_study(
    folder: StudyFolder,
    contract: Mapping[str, Any],
    pruner: optuna.pruners.BasePruner,
    *,
    allow_extended_space: bool = False,
) -> optuna.Study:
    """Open a study to go on with it.

    Parameters
    ----------
    allow_extended_space
        Take a search space that holds the study's own: wider ranges, further parameters. The study then has the new
        one for good.

    Raises
    ------
    StudyError
        Its contract (space, objective, data, folds, training settings) or its direction is not the present one; the
        message shows every difference.
    """
    study = read_study(folder)
    study.pruner = pruner
    if len(study.directions) == 1 and study.direction != StudyDirection.MINIMIZE:
        raise StudyError(f"{folder.place}: the study maximises; the transfer objective is minimised")
    known = study.user_attrs.get(CONTRACT)
    now = json.loads(json.dumps(contract))
    if known is None and folder.storage is not None and not study.get_trials(deepcopy=False):
        # Its driver died between creating the study and writing the contract.
        study.set_user_attr(CONTRACT, now)
        return study
    if known is None:
        raise StudyError(f"{folder.place}: was not written by chitransfer, so it cannot be resumed here")
    differences = find_differences(known, now)
    if allow_extended_space and differences:
        refusals = find_space_refusals(known["space"], now["space"])
        differences = [line for line in differences if not line.startswith("space.")] + refusals
    if differences:
        hint = "" if allow_extended_space else space_hint(known, now)
        raise StudyError(
            f"{folder.place}: the study cannot be resumed under other conditions\n"
            + "\n".join(f"  {line}" for line in differences)
            + f"\nResume without these changes, or start a new study.{hint}"
        )
    if now["space"] != known["space"]:
        study.set_user_attr(CONTRACT, {**known, "space": now["space"]})
    return study


def read_searched_dataset(config: Config, progress: NamedProgress | None = None) -> Dataset:
    """The dataset whose trials are scored: under ``search.control: permute`` with its measured values dealt out.

    Raises
    ------
    DataError
        As `training.settings.read_dataset`.
    """
    # Here, since they import RDKit and PyTorch: who only reads a study does without.
    from chitransfer.data.subsets import permute_labels
    from chitransfer.training.settings import read_dataset

    dataset = read_dataset(config, progress)
    if config.search.control == "permute":
        return permute_labels(dataset, derive_seed(config.seed, "permute"))
    return dataset


def make_contract(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What every trial of a study has in common; a resumed search must agree with all of it."""
    values = config.model_dump()
    training = {k: v for k, v in values["training"].items() if k not in {"device", "num_threads"}}
    search = {k: values["search"][k] for k in CONTRACT_SEARCH_KEYS}
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
        }
        | {NAMES: dataset.names_digest()}
        # A study of a release that put them on both sides of a split cannot go on.
        | ({VARIANTS: dataset.n_stereo_variants} if dataset.n_stereo_variants else {}),
    }
