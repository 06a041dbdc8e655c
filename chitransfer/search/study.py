"""The study in its database: creating it, resuming it after a check of the contract, reading it.

Called by `search.run` and by readers such as `chitransfer status`; `search.lock` keeps a second driver out.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection

from chitransfer.config import Config
from chitransfer.errors import StudyError
from chitransfer.files import share_as_usual
from chitransfer.progress import NamedProgress
from chitransfer.search.contract import (
    NAMES,
    find_differences,
    find_space_refusals,
    make_contract,
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
from chitransfer.search.study_folder import StudyFolder
from chitransfer.seeds import derive_seed

if TYPE_CHECKING:
    from chitransfer.data.assemble import Dataset

CONTRACT = "contract"


def read_study(folder: StudyFolder) -> optuna.Study:
    """Open a study for reading.

    Raises
    ------
    StudyError
        The database is not one of Optuna's, is damaged, cannot be reached, or holds no such study.
    """
    name = folder.name
    if folder.storage is None:
        # Not read-only: a killed driver's unfinished writes must be rolled back first, which SQLite does on opening.
        address = f"{folder.database.absolute().as_uri()}?mode=rw"
        try:
            with closing(sqlite3.connect(address, timeout=SQLITE_SECONDS, uri=True)) as connection:
                names = [name for (name,) in connection.execute("SELECT study_name FROM studies")]
                (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            # Locked or unreadable, which says nothing about the contents.
            if isinstance(error, sqlite3.OperationalError) and "no such" not in str(error):
                raise StudyError(describe_storage_error(folder.place, error)) from error
            # SQLite's own message may quote damaged bytes, which then cannot be decoded.
            raise StudyError(
                f"{folder.database}: not an Optuna study database ({error}). If it used to be one, {DAMAGED}"
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
            raise StudyError(
                f"{folder.place}: there is no study named {name!r}; on a server a study is found by its folder's name, "
                "which must stay as it was"
            ) from error
        try:
            # Damage shows up here, where it can be reported; Optuna reads no finished trial twice.
            study.get_trials(deepcopy=False)
            study.user_attrs  # noqa: B018 - reading it is the check
        except (ValueError, LookupError, TypeError, AssertionError) as error:
            raise StudyError(f"{folder.place}: {DAMAGED}") from error
        return study


def refuse_taken_name(folder: StudyFolder) -> None:
    """Refuse the name of a study that left trials in the folder or exists on its database server; writes nothing.

    Raises
    ------
    StudyError
        There is one, or the server cannot be reached.
    """
    if (folder.path / "trials").exists():
        raise StudyError(
            f"{folder.path}: contains the trials of a study whose database is missing, and they would be mixed up "
            "with those of the new study; restore the database, move the folder away, or choose another --study-name"
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
        f"{folder.place}: a study named {folder.name!r} exists already; choose another --study-name, or resume it "
        "from its folder"
    )


def create_study(folder: StudyFolder, contract: Mapping[str, Any], pruner: optuna.pruners.BasePruner) -> optuna.Study:
    """Create the study, its contract and the leaderboard view; an interruption leaves no partial study behind.

    Raises
    ------
    StudyError
        The database cannot be reached, or already has a study of that name.
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
            storage = open_storage(sqlite_address(new, "rwc"), is_ours=True)
            _create_in(storage, folder.name, contract)
            storage.engine.dispose()
            # SQLite lets no one else write; in a group, everyone should be able to resume the study.
            share_as_usual(new)
            new.replace(folder.database)
        finally:
            # Ctrl-C may have come in between.
            for left_over in folder.path.glob(f"{new.name}*"):
                left_over.unlink()
        study = optuna.load_study(study_name=folder.name, storage=open_storage(folder.address, is_ours=True))
    study.pruner = pruner
    return study


def _create_in(storage: RDBStorage, name: str, contract: Mapping[str, Any]) -> optuna.Study:
    study = optuna.create_study(study_name=name, storage=storage, directions=_directions(contract))
    study.set_user_attr(CONTRACT, dict(contract))
    create_leaderboard(storage)
    return study


def _directions(contract: Mapping[str, Any]) -> list[StudyDirection]:
    """A single objective is the transfer objective; several are metrics: errors minimised, scores maximised."""
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
    """Open a study to resume it.

    Parameters
    ----------
    allow_extended_space
        Accept a search space that contains the study's own: wider ranges, further parameters. It permanently replaces
        the study's.

    Raises
    ------
    StudyError
        Its contract (space, objective, data, folds, training settings) or direction differs from the current one; the
        message lists every difference.
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
        raise StudyError(f"{folder.place}: was not created by chitransfer, so it cannot be resumed here")
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


def refuse_other_names(study: optuna.Study, place: str, config: Config, dataset: Dataset) -> None:
    """Refuse a study whose polymers had other names: they determine the folds and Stage 1's validation polymers.

    They cannot be compared if the tables differ or the study's release stored no checksum of the names.

    Raises
    ------
    StudyError
        The tables are the study's, but the names are not.
    """
    known = study.user_attrs.get(CONTRACT, {}).get("data", {})
    told = find_differences({"data": known}, {"data": make_contract(config, dataset)["data"]})
    if len(told) == 1 and told[0].startswith(f"data.{NAMES}:"):
        raise StudyError(f"{place}: {told[0]}")


def read_searched_dataset(config: Config, progress: NamedProgress | None = None) -> Dataset:
    """The dataset that trials are scored on; with ``search.control: permute`` its measured values are shuffled.

    Raises
    ------
    DataError
        As in `training.settings.read_dataset`.
    """
    # Imported here because they load RDKit and PyTorch, which reading a study does not need.
    from chitransfer.data.subsets import permute_labels
    from chitransfer.training.settings import read_dataset

    dataset = read_dataset(config, progress)
    if config.search.control == "permute":
        return permute_labels(dataset, derive_seed(config.seed, "permute"))
    return dataset
