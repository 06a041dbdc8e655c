"""Optuna's database: SQLite in the study's folder, or PostgreSQL by address; readable errors without passwords.

Called by `search.study` and `search.run`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from chitransfer.errors import NO_SPACE, ConfigError, StudyError, name_place, say_install
from chitransfer.secrecy import mask_passwords

# Raised by a storage if the database is away, full or damaged, as opposed to a bug of ours.
STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
CONNECT_SECONDS = 10
END_OWN_BACKEND = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = :pid AND application_name = :name"
# How long SQLite waits for other writers.
SQLITE_SECONDS = 60.0
DAMAGED = "the file is damaged; restore it from a copy (trials/*/scores.json still hold each trial's results)"
# A study with several objectives stores the transfer objective in an attribute (`records.OBJECTIVE`), as JSON text.
LEADERBOARD = """
CREATE VIEW leaderboard AS
SELECT trials.number AS number,
       COALESCE(CAST(objective.value_json AS DOUBLE PRECISION), trial_values.value) AS value,
       trials.datetime_complete AS finished, studies.study_name AS study_name
FROM trials JOIN trial_values ON trial_values.trial_id = trials.trial_id
            JOIN studies ON studies.study_id = trials.study_id
            LEFT JOIN trial_user_attributes AS objective
                ON objective.trial_id = trials.trial_id AND objective.key = 'objective'
WHERE trials.state = 'COMPLETE' AND trial_values.objective = 0
ORDER BY value, number
"""
WRITE_ATTRIBUTE = sqlalchemy.text(
    "INSERT INTO trial_user_attributes (trial_id, key, value_json) "
    "SELECT trial_id, :key, :value FROM trials WHERE trial_id = :trial AND state = 'RUNNING' "
    "ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json"
)


def open_storage(address: str, *, is_ours: bool = False) -> RDBStorage:
    """Optuna's storage at an address; SQLite waits up to a minute for other writers.

    Parameters
    ----------
    is_ours
        This process has created its tables, or will; then the slow check of their version is skipped.

    Raises
    ------
    ConfigError
        The driver for PostgreSQL is not installed.
    StudyError
        The address is invalid.
    """
    engine_address, settings = _connecting(address)
    try:
        return RDBStorage(engine_address, engine_kwargs=settings, skip_compatibility_check=is_ours)
    except ImportError:
        raise ConfigError(f"search.storage: PostgreSQL needs psycopg; {say_install('postgresql')}") from None
    except (sqlalchemy.exc.ArgumentError, ValueError):
        # The library's own message repeats the whole address.
        raise StudyError(
            f"search.storage: {mask_passwords(address)} is not the address of a database; the form is "
            "postgresql://user@host:port/database, with special characters of a password written as %XX"
        ) from None


def sqlite_address(path: Path, mode: Literal["rw", "rwc"] = "rw") -> str:
    """SQLAlchemy's address of a file, whatever characters its path has; mode ``rwc`` creates it if needed."""
    query = {"mode": mode, "uri": "true"}
    return sqlalchemy.URL.create("sqlite", database=path.absolute().as_uri(), query=query).render_as_string()


def is_free(path: Path) -> bool:
    """Whether no one else is reading or writing a SQLite file right now."""
    address = f"{path.absolute().as_uri()}?mode=rw"
    try:
        with closing(sqlite3.connect(address, timeout=0.0, isolation_level=None, uri=True)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            return True
    except sqlite3.OperationalError:
        return False


def _connecting(address: str) -> tuple[str, dict[str, Any]]:
    """Arguments for SQLAlchemy's engine: the address with its driver, and how to connect."""
    if address.startswith("sqlite:"):
        # Pooled connections stay open at exit, which Python 3.13 warns about; new ones cost a trial 20 ms.
        return address, {"connect_args": {"timeout": SQLITE_SECONDS}, "poolclass": NullPool}
    return _psycopg(address), {
        # A connection that the server dropped is replaced before use.
        "pool_pre_ping": True,
        "connect_args": {"connect_timeout": CONNECT_SECONDS, "application_name": "chitransfer"},
    }


class AttributeTable:
    """Optuna's table of trial attributes, written many rows at once.

    Optuna commits every attribute separately, some thirty per rung, which is slow if the database is on a shared file
    system or a server.
    """

    def __init__(self, address: str) -> None:
        engine_address, settings = _connecting(address)
        self._engine = sqlalchemy.create_engine(engine_address, **settings)

    def write(self, trial: optuna.Trial, attributes: Mapping[str, Any]) -> None:
        """Set attributes of a running trial, all of them or none; those of an ended trial are not changed."""
        rows = [{"trial": trial._trial_id, "key": k, "value": json.dumps(v)} for k, v in attributes.items()]
        with self._engine.begin() as connection:
            connection.execute(WRITE_ATTRIBUTE, rows)


def _psycopg(address: str) -> str:
    return address.replace("postgresql://", "postgresql+psycopg://", 1)


def create_leaderboard(storage: RDBStorage) -> None:
    """The read-only view ``leaderboard``: number and transfer objective of complete trials, best first."""
    if sqlalchemy.inspect(storage.engine).has_table("leaderboard"):
        return
    with storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text(LEADERBOARD))


@contextmanager
def explain_storage_errors(place: str) -> Iterator[None]:
    """Turn a database failure into a StudyError that says what to do; the original is not chained, because it may quote
    the address with its password."""
    try:
        yield
    except STORAGE_ERRORS as error:
        raise StudyError(describe_storage_error(place, error)) from None


def describe_storage_error(place: str, error: BaseException) -> str:
    """What went wrong with the database at `place`, in one sentence, and how to fix it."""
    reason = _find_reason(error)
    if "disk is full" in reason or "No space" in reason:
        remedy = "the disk is full; free some space"
    elif "readonly" in reason:
        remedy = "the database or its folder cannot be written; check permissions"
    elif "locked" in reason:
        remedy = "another program is reading or writing it; wait until that ends, or close it"
    elif "unable to open" in reason:
        remedy = "check that it exists, that its folder was not moved, and its permissions"
    elif "malformed" in reason or "not a database" in reason:
        return f"{place}: the study's database cannot be used ({reason}); {DAMAGED}"
    else:
        remedy = "check that the database exists and that you have access"
    return f"{place}: the study's database cannot be used ({reason}); {remedy}. All finished trials are kept"


def is_in_use(error: BaseException) -> bool:
    """Whether a SQLite file cannot be used merely because another program has it open."""
    return "locked" in _find_reason(error)


def _find_reason(error: BaseException) -> str:
    """The first line of the database's own message, without passwords."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    cause = getattr(cause, "orig", None) or cause
    return mask_passwords((str(cause).strip() or type(cause).__name__).splitlines()[0])


@contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk or an unwritable folder into a StudyError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in {*NO_SPACE, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}:
            raise
        remedy = "free some disk space" if error.errno in NO_SPACE else "make it writable"
        raise StudyError(
            f"{name_place(error, folder)}: cannot be written ({error.strerror}); {remedy} and resume. All finished "
            "trials are kept"
        ) from error


class _ServerLock:
    """The database server's lock on a study; it is released when the connection ends."""

    def __init__(self, address: str, study_name: str, place: str) -> None:
        self._place = place
        self._key = _lock_key(study_name)
        self._me = f"chitransfer host {socket.gethostname()[:24]}, pid {os.getpid()}"
        self._engine = sqlalchemy.create_engine(
            _psycopg(address),
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"connect_timeout": CONNECT_SECONDS, "application_name": self._me, "keepalives_idle": 60},
        )
        self._connection: sqlalchemy.Connection | None = None
        # Process id of the server process that serves the connection.
        self._backend: int | None = None
        self._checked = 0.0

    def take(self) -> None:
        """Take the lock over a new connection; raises as `hold_again` does."""
        self.close()
        self._connection = connection = self._engine.connect()
        if self._backend is not None:
            # After a network failure the server may still hold the lock for the lost connection.
            connection.execute(sqlalchemy.text(END_OWN_BACKEND), {"pid": self._backend, "name": self._me})
        query = sqlalchemy.text("SELECT pg_try_advisory_lock(:key)")
        for _ in range(1 if self._backend is None else 20):
            if connection.scalar(query, {"key": self._key}):
                self._backend = connection.scalar(sqlalchemy.text("SELECT pg_backend_pid()"))
                return
            time.sleep(0.1)
        who = _read_lock_holder(connection, self._key) or "unknown"
        raise StudyError(f"{self._place}: another search is writing to this study ({who}); stop it first")

    def hold_again(self, every: float) -> None:
        """As the function of the same name."""
        if time.monotonic() - self._checked < every:
            return
        self._checked = time.monotonic()
        if not self._is_held():
            self.take()

    def _is_held(self) -> bool:
        try:
            return self._connection is not None and self._connection.scalar(sqlalchemy.text("SELECT 1")) == 1
        except SQLAlchemyError:
            return False

    def close(self) -> None:
        """Free the lock."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


# The locks that this process holds, by address and study.
_held: dict[tuple[str, str], _ServerLock] = {}


@contextmanager
def lock_on_server(address: str | None, study_name: str) -> Iterator[None]:
    """Hold a lock on the database server; does nothing for SQLite.

    If its connection dies, the lock is lost, and `hold_again` takes it again.

    Raises
    ------
    StudyError
        Another driver holds it; the message names its host and process.
    """
    if address is None:
        yield
        return
    which, place = (address, study_name), f"{mask_passwords(address)}, study {study_name}"
    with explain_storage_errors(place):
        # Opening the storage first reports a missing driver or a wrong address in our own words.
        open_storage(address).engine.dispose()
        lock = _ServerLock(address, study_name, place)
    try:
        with explain_storage_errors(place):
            lock.take()
        _held[which] = lock
        yield
    finally:
        if _held.get(which) is lock:
            del _held[which]
        lock.close()


def hold_again(address: str | None, study_name: str, every: float = 0.0) -> None:
    """Make sure that a lock from `lock_on_server` is still held, and take it again if its connection died.

    Parameters
    ----------
    every
        Do nothing if less than this many seconds have passed since the last check.

    Raises
    ------
    StudyError
        Another driver has taken it; the message names its host and process.
    sqlalchemy.exc.SQLAlchemyError
        The server is away.
    """
    if address is not None and (lock := _held.get((address, study_name))) is not None:
        lock.hold_again(every)


def find_lock_holder(address: str | None, study_name: str) -> str | None:
    """Host and process that hold the database server's lock on a study; ``None`` if free, or if the study is in SQLite.

    Raises
    ------
    StudyError
        The server cannot be reached.
    """
    if address is None:
        return None
    engine = open_storage(address).engine
    try:
        with explain_storage_errors(f"{mask_passwords(address)}, study {study_name}"), engine.connect() as connection:
            return _read_lock_holder(connection, _lock_key(study_name))
    finally:
        engine.dispose()


def _lock_key(study_name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"chitransfer {study_name}".encode()).digest()[:8], "big", signed=True)


def _read_lock_holder(connection: sqlalchemy.Connection, key: int) -> str | None:
    holder = connection.scalar(
        sqlalchemy.text(
            "SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid) "
            "WHERE locktype = 'advisory' AND granted AND ((classid::bigint << 32) | objid::bigint) = :key "
            # A server lists the locks of all its databases.
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) LIMIT 1"
        ),
        {"key": key},
    )
    return None if holder is None else str(holder).removeprefix("chitransfer ")
