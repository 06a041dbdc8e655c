"""One driver per study: the lock that ensures it, and who holds the lock.

Taken by `search.run`, `search.second_pass` and `evidence.compare`; `chitransfer status` asks who holds it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from chitransfer.errors import NO_LOCKS, OTHER_RESULTS_FOLDER, StudyError
from chitransfer.files import make_lock, write_json
from chitransfer.search.storage import explain_write_errors, find_lock_holder, lock_on_server
from chitransfer.search.study_folder import StudyFolder

# `find_driver` takes the lock briefly to see whether it is free.
SECONDS_FOR_A_READER = 1.0


@contextmanager
def explain_unwritable(path: Path) -> Iterator[None]:
    """Name the results folder that a file system error concerns."""
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise StudyError(
                f"{path}: its file system has no file locks ({error.strerror}), which ensure that only one search at "
                "a time runs a study; choose a results folder on another file system with --results-dir "
                "(paths.results_dir)"
            ) from error
        raise StudyError(
            f"{path}: the results folder cannot be written ({error.strerror or error}); {OTHER_RESULTS_FOLDER}"
        ) from error


@contextmanager
def drive_alone(folder: StudyFolder, what: str = "search is writing to this study") -> Iterator[None]:
    """Hold the study's driver lock; the operating system frees it when the process dies.

    `what` describes what the holder does where the lock is already held. A study on a database server has a second lock
    there, because its folder may be used from several machines.

    Raises
    ------
    StudyError
        Another driver holds it (the message names its host and process), or the folder cannot be written.
    """
    holder, lock = _holder_and_lock(folder)
    try:
        with explain_unwritable(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=SECONDS_FOR_A_READER)
    except StudyError:
        _remove_if_empty(folder.path)
        raise
    except Timeout as error:
        who = _read_holder(holder)
        raise StudyError(f"{folder.path}: another {what} ({who}); stop it first") from error
    try:
        with lock_on_server(folder.storage, folder.name), explain_write_errors(folder.path):
            write_json(holder, {"host": socket.gethostname(), "pid": os.getpid(), "since": f"{datetime.now():%F %T}"})
            yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        # Before releasing the lock, which may then be another driver's.
        _remove_if_empty(folder.path)
        lock.release()


def find_driver(folder: StudyFolder) -> str | None:
    """Host and process now driving the study, or the comparison it is part of; ``None`` if there is none.

    Raises
    ------
    StudyError
        The study's database server cannot be reached.
    """
    holder, lock = _holder_and_lock(folder if folder.comparison is None else StudyFolder(folder.comparison))
    # A killed driver leaves this file behind, so its presence alone proves nothing.
    if holder.is_file():
        try:
            with lock:
                pass
        except Timeout:
            return _read_holder(holder)
        except OSError:
            return f"{_read_holder(holder)}, unless it was killed; only a user who may write to the folder can find out"
    return find_lock_holder(folder.storage, folder.name)


def _holder_and_lock(folder: StudyFolder) -> tuple[Path, FileLock]:
    return folder.path / "driver.json", make_lock(folder.path / "driver.lock")


def _remove_if_empty(path: Path) -> None:
    """Remove the folder of a study that was never created: an error came first, and it holds only the lock."""
    with suppress(OSError):
        if [entry.name for entry in path.iterdir()] == ["driver.lock"]:
            (path / "driver.lock").unlink()
        path.rmdir()


def _read_holder(holder: Path) -> str:
    try:
        values = json.loads(holder.read_text(encoding="utf-8"))
        return f"host {values['host']}, pid {values['pid']}, since {values['since']}"
    except (OSError, ValueError, KeyError):
        return "host and pid unknown"
