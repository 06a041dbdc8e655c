"""Fetch public tables by name from a pinned address, check and convert them, and store them with their licence.

Called by ``chitransfer data fetch``; `data.public_tables` does the conversion.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from chitransfer import __version__
from chitransfer.data.corrections import KINDS, Correction
from chitransfer.data.published import RemoteFile, Source, find_source
from chitransfer.errors import DataError
from chitransfer.files import write_atomically, write_csv, write_json
from chitransfer.progress import Progress

TIMEOUT_S = 30


@dataclass(frozen=True)
class FetchedTable:
    """A converted public table on disk, and a summary of the conversion.

    Attributes
    ----------
    source
        What was fetched.
    table, licence, corrections, left_out, provenance
        The files written; the table is ready for ``paths.dft_chi_csv``, ``exp_chi_csv`` or ``solubility_csv``.
    n_published, n_rows, n_polymers, n_solvents, n_left_out, n_duplicates
        Rows in the published file; rows, distinct repeat units and solvents in the table; rows left out; and repeated
        rows, which are not counted among those left out.
    applied
        Corrections that applied to rows, each with the number of rows.
    from_cache
        Whether every file was already in the cache.
    """

    source: Source
    table: Path
    licence: Path
    corrections: Path
    left_out: Path
    provenance: Path
    n_published: int
    n_rows: int
    n_polymers: int
    n_solvents: int
    n_left_out: int
    n_duplicates: int
    applied: tuple[tuple[Correction, int], ...] = field(default=())
    from_cache: bool = False


def fetch_table(
    name: str,
    *,
    output_folder: Path,
    base_url: str | None = None,
    cache_folder: Path | None = None,
    progress: Progress | None = None,
) -> FetchedTable:
    """Fetch a public table, convert it, and write it with its licence, corrections and left-out rows.

    Parameters
    ----------
    name
        One of `published.list_sources`.
    output_folder
        Folder for ``NAME.csv``, ``NAME.LICENSE.txt``, ``NAME.corrections.csv``, ``NAME.left_out.csv`` and
        ``NAME.json``; each is moved into place only after everything has been converted.
    base_url
        A mirror for closed networks: an ``http(s)://`` address or a folder that holds the files, either under their
        plain names or in the pinned layout ``owner/name/commit/path``. The SHA-256 is still checked.
    cache_folder
        Where the published files are kept; default ``$CHITRANSFER_CACHE`` or the user's cache folder.
    progress
        Called with (bytes so far, total bytes or 0 if unknown).

    Raises
    ------
    DataError
        The name is unknown; the file cannot be reached; the download has another SHA-256, is truncated or is a web
        page; or the content is not in the format this version expects.
    """
    from chitransfer.chemistry.features import default_cache_folder
    from chitransfer.data import public_tables

    source = find_source(name)
    cache = (cache_folder or default_cache_folder()) / "sources"
    contents, fetched = {}, False
    for file in source.files:
        path, transferred = _fetch_file(file, cache, base_url, progress)
        contents[file.name] = path.read_bytes()
        fetched = fetched or transferred
    converted = getattr(public_tables, source.conversion)(contents)
    paths = {
        "table": output_folder / f"{name}.csv",
        "licence": output_folder / f"{name}.LICENSE.txt",
        "corrections": output_folder / f"{name}.corrections.csv",
        "left_out": output_folder / f"{name}.left_out.csv",
        "provenance": output_folder / f"{name}.json",
    }
    result = FetchedTable(
        source,
        **paths,
        n_published=converted.n_published,
        n_rows=len(converted.table),
        n_polymers=int(converted.table["SMILES"].nunique()),
        n_solvents=int(converted.table["solvent"].nunique()),
        n_left_out=len(converted.left_out),
        n_duplicates=converted.n_duplicates,
        applied=tuple(converted.applied),
        from_cache=not fetched,
    )
    _write(result, converted.table, converted.left_out)
    return result


def _write(result: FetchedTable, table: pd.DataFrame, left_out: pd.DataFrame) -> None:
    # The table is written last: if it exists, so do its companion files.
    write_atomically(result.licence, f"{result.source.licence}\nPlease cite: {result.source.citation}\n")
    applied = [
        (c.kind, KINDS[c.kind], count, c.entry, c.solvent, c.given, c.corrected, c.reason)
        for c, count in result.applied
    ]
    columns = ["kind", "meaning", "rows", "entry", "solvent", "given", "corrected", "reason"]
    write_csv(result.corrections, pd.DataFrame(applied, columns=columns))
    write_csv(result.left_out, left_out)
    write_json(
        result.provenance,
        {
            "name": result.source.name,
            "kind": result.source.kind,
            "citation": result.source.citation,
            "chitransfer": __version__,
            "files": [
                {"address": file.addresses(None)[0], "sha256": file.sha256, "size": file.size}
                for file in result.source.files
            ],
            "n_published": result.n_published,
            "n_rows": result.n_rows,
            "n_left_out": result.n_left_out,
            "n_duplicates": result.n_duplicates,
            "n_corrections": len(result.applied),
        },
    )
    write_csv(result.table, table)


def _fetch_file(file: RemoteFile, cache: Path, base_url: str | None, progress: Progress | None) -> tuple[Path, bool]:
    """The checked path of the published file in the cache, and whether it had to be downloaded."""
    import pooch

    downloader = _Downloader(file, base_url, progress)
    with _quiet_pooch():
        try:
            path = pooch.retrieve(
                url=file.addresses(base_url)[0],
                known_hash=f"sha256:{file.sha256}",
                fname=f"{file.sha256[:12]}-{file.name}",
                path=cache,
                downloader=downloader,
            )
        except PermissionError as error:
            # Pooch's own error has neither errno nor filename.
            raise DataError(
                f"{cache}: the cache of published files cannot be used (Permission denied); check permissions, or name "
                "another folder with CHITRANSFER_CACHE"
            ) from error
    return Path(path), downloader.used


class _Downloader:
    """Downloads one file for pooch and explains what is wrong with it before pooch compares hashes."""

    def __init__(self, file: RemoteFile, base_url: str | None, progress: Progress | None) -> None:
        self.file = file
        self.base_url = base_url
        self.progress = progress
        self.used = False

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        self.used = True
        if self.base_url is not None and "://" not in self.base_url:
            self._copy(Path(output_file))
        else:
            self._download(output_file)
        self._check(Path(output_file))

    def _copy(self, target: Path) -> None:
        candidates = [Path(address) for address in self.file.addresses(self.base_url)]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            raise DataError(
                f"{self.file.name} is not in the mirror folder {self.base_url}; looked for "
                + " and ".join(str(path) for path in candidates)
            )
        try:
            shutil.copyfile(found, target)
        except OSError as error:
            raise DataError(f"{found}: cannot be read ({error})") from error

    def _download(self, output_file: str) -> None:
        import requests
        from pooch import HTTPDownloader

        bar = _Bar(self.progress) if self.progress is not None else False
        addresses = self.file.addresses(self.base_url)
        for position, address in enumerate(addresses):
            try:
                HTTPDownloader(progressbar=bar, timeout=TIMEOUT_S)(address, output_file, None)
            except requests.HTTPError as error:
                missing = error.response is not None and error.response.status_code == requests.codes.not_found
                if missing and position + 1 < len(addresses):
                    continue
                raise DataError(self._unreachable(address, str(error))) from error
            except requests.RequestException as error:
                raise DataError(self._unreachable(address, _plain(error))) from error
            except OSError as error:
                if error.errno is None:
                    # Not from the operating system; for example, requests cannot find a certificate file.
                    raise DataError(self._unreachable(address, str(error))) from error
                raise DataError(f"{output_file}: cannot be written ({error})") from error
            return

    def _unreachable(self, address: str, why: str) -> str:
        return (
            f"{self.file.name} could not be fetched from {address} ({why}). Without a network, put the file in a "
            "folder and give that folder with --base-url; its SHA-256 is still checked. Nothing was written."
        )

    def _check(self, path: Path) -> None:
        import pooch

        if pooch.file_hash(str(path)) == self.file.sha256:
            return
        with path.open("rb") as stream:
            size, head = path.stat().st_size, stream.read(512).lstrip().lower()
        if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
            raise DataError(
                f"{self.file.name}: a web page came instead of the file (a login or a proxy in between?). Open the "
                f"address in a browser to see it: {self.file.addresses(self.base_url)[0]}. Nothing was written."
            )
        if self.file.size is not None and size < self.file.size:
            raise DataError(
                f"{self.file.name}: {size:,} of {self.file.size:,} bytes arrived. Either the transfer was cut short "
                "(try again), or another file was sent in its place. Nothing was written."
            )
        raise DataError(
            f"{self.file.name}: SHA-256 must be {self.file.sha256}, but {pooch.file_hash(str(path))} came "
            f"({size:,} bytes). The mirror holds another version, or the file was changed on the way. "
            "Nothing was written."
        )


class _Bar:
    """The progress-bar interface that pooch uses, forwarded to a (done, total) callback."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.total = 0
        self.done = 0

    def reset(self) -> None:
        self.done = 0

    def update(self, count: int) -> None:
        self.done += count
        self.progress(self.done, int(self.total or 0))

    def close(self) -> None:
        pass


def _plain(error: Exception) -> str:
    """The cause of an error in plain words, without the library's object addresses."""
    text = str(error)
    for sign, meaning in (
        ("NameResolutionError", "the name cannot be resolved: offline?"),
        ("Connection refused", "connection refused"),
        ("timed out", f"no answer within {TIMEOUT_S} s"),
        ("CERTIFICATE_VERIFY_FAILED", "the certificate cannot be verified"),
        ("IncompleteRead", "the connection broke off"),
    ):
        if sign in text:
            return meaning
    return f"{type(error).__name__}: {text}"


@contextmanager
def _quiet_pooch() -> Iterator[None]:
    """Keep pooch's log messages off the terminal; the program itself says what it fetches."""
    import pooch

    logger = pooch.get_logger()
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
