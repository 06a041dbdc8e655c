"""Writing files so that a reader never sees a partial one: a temporary name in the same folder, then `os.replace`.

Called by every layer that writes.
"""

from __future__ import annotations

import errno
import gzip
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from chitransfer.errors import ConfigError, DataError

# Errors of systems, some network file systems among them, that cannot flush a folder's entries to disk on demand.
NO_FOLDER_SYNC = frozenset({errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOTSUP})
# Errors of systems without permissions, such as memory cards and Windows shares.
NO_PERMISSIONS = frozenset({errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})
CSV_ENDINGS = (".csv", ".csv.gz")
# Number of random letters in a `tempfile` name.
RANDOM_LETTERS = 8
NO_FILE = "is a device or a pipe, not a file that can be replaced"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `content` to `path`, replacing an existing file in one step; creates missing folders."""
    replace_atomically(path, lambda temporary: temporary.write_bytes(_as_bytes(content)))


def write_json(path: Path, values: object) -> None:
    """Write `values` as formatted by `dump_json`."""
    write_atomically(path, dump_json(values) + "\n")


def dump_json(values: object) -> str:
    """`values` as indented JSON text; NaN and infinity become ``null`` so that any JSON reader can load it."""
    return json.dumps(plain_numbers(values), indent=2, allow_nan=False)


def write_csv(path: Path, frame: pd.DataFrame, mark: str = "") -> None:
    """Write a table as CSV without its index; floats keep every digit needed to read them back unchanged.

    Text and column names are made safe for spreadsheets (`as_cell`); a path in ``.gz`` is compressed. `mark`, a byte
    order mark, comes first.
    """
    safe = frame.copy()
    for column in frame.select_dtypes(include=["object", "string"]).columns:
        safe[column] = frame[column].map(as_cell)
    write_csv_text(path, mark + safe.to_csv(index=False, header=[str(as_cell(name)) for name in frame]))


def write_csv_text(path: Path, text: str) -> None:
    """Write CSV text, compressed if the name says so; the same text always gives the same bytes."""
    write_atomically(path, gzip.compress(text.encode(), mtime=0) if is_compressed(path) else text)


def is_compressed(path: Path) -> bool:
    """Whether a file of this name is compressed with gzip: it ends in ``.gz``, in upper or lower case."""
    return has_ending(path, (".gz",))


def has_ending(path: Path, endings: tuple[str, ...]) -> bool:
    """Whether a file's name ends in one of `endings` (given in lower case), ignoring case."""
    return path.name.lower().endswith(endings)


def check_csv_name(path: Path) -> None:
    """Check the name of a table to be written; raises DataError if it ends in none of `CSV_ENDINGS`."""
    if not has_ending(path, CSV_ENDINGS):
        raise DataError(f"{path}: the table is a CSV; end its name with {' or '.join(CSV_ENDINGS)}")


def beside_csv(path: Path, ending: str) -> Path:
    """The path beside a CSV table with the same name but `ending` in place of one of `CSV_ENDINGS`."""
    stem = path.with_suffix("") if is_compressed(path) else path
    return stem.with_suffix(ending)


def as_cell(value: object) -> object:
    """A value for a CSV file: text that a spreadsheet would run as a formula, unless a number, gets an apostrophe."""
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) and not is_number(value)
    return f"'{value}" if is_formula else value


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path` (same ending), then flush it and move it into place.

    If `path` is a link, its target is replaced.

    Raises
    ------
    OSError
        It cannot be written, or it is a device or a pipe, which a file would replace; the error names `path`.
    """
    if _is_no_file(path):
        raise OSError(errno.EINVAL, NO_FILE, str(path))
    if path.is_symlink():
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _replace(path, write)
    except OSError as error:
        # A full disk's error names no file, and users do not know the temporary one.
        is_ours = error.filename is None or Path(error.filename).name.startswith(f".{path.stem}-")
        if error.errno is None or not is_ours:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def share_as_usual(path: Path) -> None:
    """Give a file the permissions of any new file of the user, if the file system supports permissions."""
    umask = os.umask(0)
    os.umask(umask)
    try:
        path.chmod(0o666 & ~umask)
    except NotImplementedError:
        pass
    except OSError as error:
        # The file itself is complete.
        if error.errno not in NO_PERMISSIONS:
            raise


def remove_left_over(folder: Path) -> None:
    """Delete temporary files of `replace_atomically` left by a killed process; nobody else may be writing."""
    for path in folder.glob(f".*-{'?' * RANDOM_LETTERS}.*"):
        path.unlink(missing_ok=True)


def make_lock(path: Path) -> FileLock:
    """A non-blocking lock that the operating system releases when its holder dies.

    On a file system without locks, taking it raises OSError with a number in `errors.NO_LOCKS`.
    """
    # With its fallback, the mere existence of the file is the lock there, and a killed process would leave it for ever.
    return FileLock(path, timeout=0, fallback_to_soft=False)


def make_new_folder(parent: Path, name: str) -> Path:
    """Create a folder that did not exist before: `name`, or `name` with ``_2``, ``_3``, … appended.

    Raises
    ------
    OSError
        `parent` cannot be written.
    """
    parent.mkdir(parents=True, exist_ok=True)
    path, attempt = parent / name, 1
    while True:
        try:
            path.mkdir()
        except FileExistsError:
            attempt += 1
            path = parent / f"{name}_{attempt}"
        else:
            return path


def check_writable(path: Path, option: str, endings: tuple[str, ...] = ()) -> None:
    """Refuse a file that cannot be written, before anything is computed for it.

    Parameters
    ----------
    option
        The user's option for it, for the message.
    endings
        Allowed endings of its name, in lower case; case is ignored. Empty: any.

    Raises
    ------
    ConfigError
        It has another ending, is a folder, a device or a pipe, or its folder cannot be created or written.
    """
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder; name a file")
    if endings and not has_ending(path, endings):
        raise ConfigError(f"{option} {path}: the name must end in {' or '.join(endings)}")
    if _is_no_file(path):
        raise ConfigError(f"{option} {path}: {NO_FILE}; name a file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ConfigError(f"{option} {path}: {folder} is a file, so nothing can lie below it; name another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {path}: {folder} cannot be written; check permissions or name another folder")


def refuse_overwriting(path: Path, option: str, sources: Mapping[str, Path]) -> None:
    """Refuse to write a file that is also to be read, even under another spelling or through a link.

    Parameters
    ----------
    option, sources
        The user's option for it, for the message; the files to be read, by their options.

    Raises
    ------
    ConfigError
        It is one of them.
    """
    for source_option, source in sources.items():
        if path.exists() and source.exists() and path.samefile(source):
            raise ConfigError(
                f"{option} {path}: is the file of {source_option} {source}, which would be overwritten; "
                "name another file"
            )


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        # mkstemp creates private files.
        share_as_usual(temporary)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # Windows cannot open folders, and flushes their entries by itself.
    if sys.platform == "win32":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        # The file itself is complete and in place.
        if error.errno not in NO_FOLDER_SYNC:
            raise


def _is_no_file(path: Path) -> bool:
    """Whether something exists that is neither file nor folder, such as ``/dev/null``, which root could replace."""
    return path.exists() and not path.is_file() and not path.is_dir()


def is_number(text: str) -> bool:
    """Whether Python reads the text as a number, including ``nan`` and ``inf``."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _as_bytes(content: bytes | str) -> bytes:
    return content.encode("utf-8") if isinstance(content, str) else content


def plain_numbers(value: Any) -> Any:
    """Plain Python values with NaN and infinity as ``None``, for JSON; dictionary keys become text."""
    if isinstance(value, dict):
        return {str(key): plain_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_numbers(inner) for inner in value]
    if hasattr(value, "tolist"):
        return plain_numbers(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
