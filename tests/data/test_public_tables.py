"""Public tables of °C and of two files: kelvin in the project's tables, corrections counted, nothing fetched twice."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from chitransfer.data import published
from chitransfer.data.corrections import all_corrections, corrections_of
from chitransfer.data.published import find_source, list_sources
from chitransfer.data.sources import FetchedTable, fetch_table

WRONG, RIGHT = "*CC(*)C(=O)ON(C)C", "*CC(*)C(=O)N(C)C"
CHI = f"""ps_pair,ps_pair_nonCyclic,temp,chi
C1CO1_O,*CCO*_O,25,0.4
C1CC1_CO,{WRONG}_CO,60.85,1.1234567
C1CC1_CO,{WRONG}_CO,-10,0.2
"""
COSMO = """ps_pair,temp,chi
C1CC1_CO,25,0.7
C1CO1_O,100,0.6
"""


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small MTL_ChiParameter, pinned in place of the real one."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    digests = {}
    for name, text in (("data_Chi.csv", CHI), ("data_COSMO.csv", COSMO)):
        (folder / name).write_text(text, encoding="utf-8")
        digests[name] = hashlib.sha256(text.encode()).hexdigest()
    pinned = tuple(
        replace(source, files=tuple(replace(file, sha256=digests[file.name], size=None) for file in source.files))
        for source in list_sources()
        if source.name.startswith("mtl")
    )
    monkeypatch.setattr(published, "_SOURCES", pinned)
    return folder


def fetch(name: str, mirror: Path) -> FetchedTable:
    folder = mirror.parent
    return fetch_table(name, output_folder=folder / "out", cache_folder=folder / "cache", base_url=str(mirror))


def test_celsius_become_kelvin_and_corrections_are_counted(mirror: Path) -> None:
    fetched = fetch("mtl-chi", mirror)
    assert pd.read_csv(fetched.table).to_numpy().tolist() == [
        ["*CCO*", 0.4, 298.15, "O"],
        [RIGHT, 1.123457, 334.0, "CO"],
        [RIGHT, 0.2, 263.15, "CO"],
    ]
    applied = pd.read_csv(fetched.corrections)
    assert applied[["kind", "rows", "given", "corrected"]].to_numpy().tolist() == [["unit", 2, WRONG, RIGHT]]
    assert (fetched.n_polymers, fetched.n_solvents) == (2, 2)


def test_units_of_computed_chi_come_from_the_measured_file(mirror: Path) -> None:
    """A second file in the cache is no reason to say that nothing was transferred, nor a first one."""
    for missing in ("data_Chi.csv", "data_COSMO.csv"):
        fetched = fetch("mtl-cosmo-rs", mirror)
        assert not fetched.from_cache
        assert pd.read_csv(fetched.table).to_numpy().tolist() == [
            [RIGHT, 0.7, 298.15, "CO"],
            ["*CCO*", 0.6, 373.15, "O"],
        ]
        assert fetch("mtl-cosmo-rs", mirror).from_cache
        next((mirror.parent / "cache").rglob(f"*{missing}")).unlink()
    assert not fetch("mtl-cosmo-rs", mirror).from_cache


def test_corrections_belong_to_their_own_table() -> None:
    tables = {correction.table for correction in all_corrections()}
    assert tables <= {source.name for source in list_sources()}
    assert len(tables) > 1
    assert sum(len(corrections_of(table)) for table in tables) == len(all_corrections())
    assert {correction.table for correction in corrections_of("polysol")} == {"polysol"}


def test_a_mirror_may_end_with_a_slash() -> None:
    (file,) = find_source("polysol").files
    assert file.addresses("https://mirror/") == file.addresses("https://mirror")
    assert file.addresses("https://mirror/")[1] == f"https://mirror/{file.name}"
