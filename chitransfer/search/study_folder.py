"""The folder of a study: the names of everything in it, and finding the one a user means.

Called by `search.study` and by all code that reads or writes the folder.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from chitransfer.config import Config, load_config
from chitransfer.errors import ConfigError, StudyError
from chitransfer.search.storage import sqlite_address
from chitransfer.secrecy import mask_passwords

SECOND_PASS = "second_pass_"
# File in the folder of a comparison.
CONDITIONS = "conditions.json"
# Set by scripts/run_hparam_search.sh to its own command line; its virtual environment need not be active.
LAUNCHER = "CHITRANSFER_LAUNCHER"


@dataclass(frozen=True)
class StudyFolder:
    """Paths of everything a study keeps, under ``results/hparam_search/<study name>/``.

    Attributes
    ----------
    storage
        Address of the database server that holds the study; ``None``: ``study.db`` in the folder.
    """

    path: Path
    storage: str | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """The address Optuna opens: the server's, or the database in the folder."""
        return self.storage or sqlite_address(self.database)

    @property
    def place(self) -> str:
        """Name of the study in messages: its database, or its name on a server, never with a password."""
        return str(self.database) if self.storage is None else f"{mask_passwords(self.storage)}, study {self.name}"

    @property
    def resume_path(self) -> Path:
        """The argument of ``--resume``."""
        return self.database if self.storage is None else self.path

    @property
    def resume_command(self) -> str:
        """The command to resume the study, using the launcher if it started this process; or a hint at that command."""
        if self.comparison is not None:
            return f"the `chitransfer compare` command that began {self.comparison}"
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
        """Scores of the trivial predictor and of the random forest."""
        return self.path / "reference.json"

    def trial(self, number: int) -> Path:
        """The folder of one trial."""
        return self.path / "trials" / f"{number:04d}"

    def second_pass(self, number: int) -> StudyFolder:
        """The second pass on one trial's Stage 1; its database is in its folder, wherever the study's is."""
        return StudyFolder(self.path / f"{SECOND_PASS}{number:04d}")

    @property
    def first_pass(self) -> tuple[Path, int] | None:
        """For a second pass, its study's folder and the trial whose Stage 1 it uses; ``None`` for other studies."""
        number = self.name.removeprefix(SECOND_PASS)
        is_inside = StudyFolder(self.path.parent).config.is_file()
        return (self.path.parent, int(number)) if is_inside and number != self.name and number.isdigit() else None

    @property
    def comparison(self) -> Path | None:
        """For a search inside a comparison, which alone can resume it, the comparison's folder; else ``None``."""
        folder = self.path.parent.parent.parent
        return folder if (folder / CONDITIONS).is_file() else None

    def check_there(self) -> None:
        """Check that the folder still exists where it was when the search began.

        Raises
        ------
        StudyError
            It is gone; writing now would create a second one.
        """
        if not self.path.is_dir():
            command = os.environ.get(LAUNCHER, "chitransfer search")
            raise StudyError(
                f"{self.path}: the study's folder is missing; was it moved? All finished trials are kept: continue "
                f"with {command} --resume FOLDER, giving its new place"
            )

    @property
    def log(self) -> Path:
        """Path of this run's log; one file per start."""
        stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
        return self.path.parent / "logs" / f"search_{self.name}_{stamp}.log"


def refuse_odd_bytes(path: Path) -> None:
    """Refuse a folder for studies whose name is not UTF-8, before anything is created in it.

    Raises
    ------
    StudyError
        It is not, so neither database nor configuration nor log could refer to it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise StudyError(
            f"{os.fsencode(path)!r}: the name of a results folder must be valid UTF-8; choose another with "
            "--results-dir (paths.results_dir), or rename it"
        ) from error


def new_study_name() -> str:
    """``transfer_aware_YYYYMMDD_HHMMSS`` in local time, as in the guide."""
    return f"transfer_aware_{datetime.now():%Y%m%d_%H%M%S}"


def locate_study(path: Path) -> StudyFolder:
    """The study a user means by its ``study.db`` or its folder.

    If only a link to ``study.db`` is there and everything else lies elsewhere, the study's folder is the link's target.

    Raises
    ------
    StudyError
        There is no ``study.db``, and no configuration that names a database server.
    """
    refuse_odd_bytes(path.resolve())
    folder = path if path.is_dir() else path.parent
    database = folder / "study.db"
    # A study may keep only its database elsewhere through a link: its configuration then lies beside the link.
    if database.is_symlink() and not StudyFolder(folder).config.is_file():
        target = database.resolve()
        if target.name == "study.db" and StudyFolder(target.parent).config.is_file():
            folder = target.parent
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
    """The folder of a study to resume, with the given address, which may include the password the stored one lacks.

    Raises
    ------
    StudyError
        The study is stored elsewhere than the address says.
    """
    if (folder.storage is None) != (storage is None):
        raise StudyError(
            f"{folder.place}: the study stays where it was created; on resuming, search.storage cannot be changed to "
            f"{'null' if storage is None else mask_passwords(storage)}"
        )
    return StudyFolder(folder.path, storage)


def load_study_config(folder: StudyFolder, overrides: Mapping[str, object]) -> Config:
    """The configuration a study was started with, with overrides (a larger budget, another device) applied.

    Raises
    ------
    StudyError
        The folder has no ``config.yaml``.
    ConfigError
        A value in it or an override is not allowed.
    """
    if not folder.config.is_file():
        raise StudyError(
            f"{folder.config}: missing; restore a copy, or recreate it by resuming the study with the configuration "
            f"it began with: {folder.resume_command} --config FILE"
        )
    return load_config(folder.config, overrides)


def load_resumed_config(folder: StudyFolder, path: Path | None, overrides: Mapping[str, object]) -> Config:
    """The configuration to resume with: the study's own, or a file's with the study's name and place.

    Raises
    ------
    StudyError, ConfigError
        As in `load_study_config` and `load_config`.
    """
    if path is None:
        return load_study_config(folder, overrides)
    place: dict[str, object] = {"search.study_name": folder.name}
    # The file may replace a configuration that is lost or unreadable.
    with suppress(ConfigError):
        own = load_config(folder.config)
        place = {"search.study_name": own.search.study_name, "paths.results_dir": own.paths.results_dir}
    return load_config(path, {**place, **overrides})
