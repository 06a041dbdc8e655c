"""Files of tensors and plain values: checksummed, so damage is always noticed; reading them executes nothing.

The format of model files (`model.checkpoint`) and of what a search stores of a trial (`search.encoders`,
`search.runner`).
"""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from chitransfer.errors import CheckpointError

MAGIC = "chitransfer model"
FORMAT_VERSION = 1
ZIP_START = b"PK\x03\x04"
# Raised when unpacking values that are not the expected ones.
MALFORMED = (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError)


def pack_content(kind: str, content: dict[str, Any], provenance: dict[str, Any]) -> bytes:
    """A file's bytes: tensors and plain values with a checksum.

    Raises
    ------
    TypeError
        The content includes anything else.
    """
    plain = {"content": _plain(content), "provenance": _plain(provenance)}
    stream = io.BytesIO()
    torch.save(
        {"magic": MAGIC, "format_version": FORMAT_VERSION, "kind": kind, "sha256": _digest(plain), **plain}, stream
    )
    return stream.getvalue()


def open_file(path: Path) -> BinaryIO:
    """Open a file of this format.

    Raises
    ------
    CheckpointError
        The file is missing or cannot be opened.
    """
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such model file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); give the .pt file itself") from error


def read_content(
    stream: BinaryIO, name: object, kind: str, remedy: str = "get it again", hint: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Content and provenance of a file made by `pack_content`, on the CPU; nothing in it is executed.

    Parameters
    ----------
    name
        Name of the file in messages, for example its path.
    remedy
        What to do if it is damaged.
    hint
        What to add if it is of another kind.

    Raises
    ------
    CheckpointError
        It is damaged, cut short, not chitransfer's, of another kind, or of a newer format.
    """
    return _check(_read(stream, name, remedy), name, kind, remedy, hint)


def pack_records(kind: str, records: Sequence[dict[str, Any]]) -> bytes:
    """A trial's records, one per pretraining seed, as bytes with a checksum."""
    return pack_content(kind, {"records": list(records)}, {})


def read_records(stream: BinaryIO, name: object, kind: str, remedy: str) -> list[dict[str, Any]]:
    """The inverse of `pack_records`; also reads a bare list without checksum, as written by earlier releases.

    Raises
    ------
    CheckpointError
        As `read_content`.
    """
    whole = _read(stream, name, remedy)
    records = whole if isinstance(whole, list) else _check(whole, name, kind, remedy, "")[0].get("records")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise CheckpointError(f"{name}: the file is incomplete; {remedy}")
    return records


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _read(stream: BinaryIO, name: object, remedy: str) -> Any:
    try:
        start = stream.read(len(ZIP_START))
        stream.seek(0)
        # PyTorch reads its older, non-ZIP format with less careful code.
        if start != ZIP_START:
            raise CheckpointError(f"{name}: not a chitransfer model file")
        if not _has_directory(stream):
            raise CheckpointError(f"{name}: the file is cut short or damaged; {remedy}")
        stream.seek(0)
        with warnings.catch_warnings():
            # Warnings about foreign files are superseded by an error below.
            warnings.simplefilter("ignore")
            return torch.load(stream, weights_only=True, map_location="cpu")
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{name}: not a chitransfer model file (it asks for code to be run)") from error
    except Exception as error:  # any list of what damaged bytes make PyTorch raise has turned out too short
        raise CheckpointError(f"{name}: the file is damaged ({first_line(error)}); {remedy}") from error


def _has_directory(stream: BinaryIO) -> bool:
    try:
        return zipfile.is_zipfile(stream)
    except zipfile.BadZipFile:
        # Some versions of Python raise an error for a damaged ZIP64 end record.
        return False


def _check(whole: Any, name: object, kind: str, remedy: str, hint: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if not isinstance(whole, dict) or whole.get("magic") != MAGIC:
        raise CheckpointError(f"{name}: not a chitransfer model file")
    version = whole.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"{name}: written in format {version!r}, this chitransfer reads up to {FORMAT_VERSION}; "
            "install a newer chitransfer"
        )
    if whole.get("kind") != kind:
        raise CheckpointError(f"{name}: holds a {whole.get('kind')}, needed is a {kind}{hint}")
    content, provenance = whole.get("content"), whole.get("provenance")
    if not isinstance(content, dict) or not isinstance(provenance, dict):
        raise CheckpointError(f"{name}: the file is incomplete; {remedy}")
    if _digest({"content": content, "provenance": provenance}) != whole.get("sha256"):
        raise CheckpointError(f"{name}: the file is damaged (its checksum does not fit); {remedy}")
    return content, provenance


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key if isinstance(key, int) else str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value).copy())
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().clone()
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values, not {type(value).__name__}")


def _digest(value: Any) -> str:
    digest = hashlib.sha256()
    for part in _bytes(value):
        digest.update(part)
    return digest.hexdigest()


def _bytes(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        yield b"{"
        for key, inner in value.items():
            yield repr(key).encode()
            yield from _bytes(inner)
        yield b"}"
    elif isinstance(value, list):
        yield b"["
        for inner in value:
            yield from _bytes(inner)
        yield b"]"
    elif isinstance(value, Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield value.contiguous().view(-1).numpy().tobytes()
    else:
        yield repr(value).encode()
