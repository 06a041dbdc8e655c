"""Fetching and converting the public tables: against a local server, mirrors, and every way a transfer goes wrong."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from chitransfer.data import published, sources
from chitransfer.data.polymerisation import vinyl_repeat_unit
from chitransfer.data.published import RemoteFile, find_source, list_sources
from chitransfer.data.sources import fetch_table
from chitransfer.errors import DataError

POLYSOL_HEADER = "polymer;mono_name;mono_smiles;solvent;solvent_smiles;solvent_characteristic"
POLYSOL_ROWS = (
    "Poly(e-caprolactam);e-caprolactam;O=C1CCCCCN1;formic acid;O=CO;1",
    "Poly[imino-(1-oxohexamethylene)];imino-(1-oxohexamethylene);CCCCCC(N)=O;formic acid;O=CO;1",
    "Poly(styrene) atactic;styrene;C=Cc1ccccc1;toluene;Cc1ccccc1;1",
    "Poly(styrene) atactic;styrene;C=Cc1ccccc1;Water;O;0",
    "Poly(styrene);styrene;C=Cc1ccccc1;trifluoroethanol;OC(F)(F)CF;0",
    "Poly(allene);allene;C=C=C;benzene;c1ccccc1;1",
    "Poly(vinyl formal);vinyl formal;C=COCOC=C;Water;O;0",
    "Poly(vinyl chloride);vinyl chloride;C=CCl;acetone;CC(C)=O;1",
)


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[object]:
    """A function that serves a folder over HTTP and returns its address."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small PolySol, pinned in place of the real one."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    pin_polysol(folder, "\n".join((POLYSOL_HEADER, *POLYSOL_ROWS)) + "\n", monkeypatch)
    return folder


def pin_polysol(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> RemoteFile:
    content = text.encode()
    real = find_source("polysol").files[0]
    file = replace(real, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    (folder / file.name).write_bytes(content)
    monkeypatch.setattr(
        published,
        "_SOURCES",
        tuple(
            replace(source, files=(file,)) if source.name.startswith("polysol") else source for source in list_sources()
        ),
    )
    return file


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def fetch(folder: Path, base_url: str | None, name: str = "polysol", **options: object) -> sources.FetchedTable:
    return fetch_table(
        name,
        output_folder=folder / "out",
        cache_folder=folder / "cache",
        base_url=base_url,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("way", ["folder", "http"])
def test_mirror_gives_the_converted_table_with_everything_that_belongs_to_it(tmp_path, mirror, serve, way):
    fetched = fetch(tmp_path, str(mirror) if way == "folder" else serve(mirror))
    table = pd.read_csv(fetched.table)
    assert list(table.columns) == ["SMILES", "soluble", "solvent", "name", "rule"]
    assert table[["SMILES", "soluble", "solvent"]].to_numpy().tolist() == [
        ["*NCCCCCC(*)=O", 1, "O=CO"],
        ["*CC(*)c1ccccc1", 1, "Cc1ccccc1"],
        ["*CC(*)c1ccccc1", 0, "O"],
        ["*CC(*)c1ccccc1", 0, "OCC(F)(F)F"],
        ["*CC1CC(*)OCO1", 0, "O"],
    ]
    assert (fetched.n_published, fetched.n_rows, fetched.n_duplicates, fetched.n_left_out) == (8, 5, 1, 2)
    assert (fetched.n_polymers, fetched.n_solvents) == (3, 4)
    left_out = pd.read_csv(fetched.left_out)
    assert left_out["entry"].tolist() == ["Poly(allene)", "Poly(vinyl chloride)"]
    assert left_out["line"].tolist() == [7, 9]
    assert "more than one way" in left_out["reason"][0]
    assert "chlorinated" in left_out["reason"][1]
    applied = pd.read_csv(fetched.corrections)
    assert sorted(applied["kind"]) == ["row", "solvent", "unit"]
    assert applied["reason"].str.len().min() > 10
    assert "MIT License" in fetched.licence.read_text()
    assert "2024 cstubb" in fetched.licence.read_text()
    assert f"Please cite: {find_source('polysol').citation}\n" in fetched.licence.read_text()
    provenance = json.loads(fetched.provenance.read_text())
    assert provenance["n_rows"] == 5
    assert provenance["files"][0]["sha256"] == find_source("polysol").files[0].sha256
    assert files_in(tmp_path / "out") == [
        "polysol.LICENSE.txt", "polysol.corrections.csv", "polysol.csv", "polysol.json", "polysol.left_out.csv",
    ]  # fmt: skip


def test_pinned_layout_of_a_mirror_is_found_first(tmp_path, mirror):
    file = find_source("polysol").files[0]
    pinned = mirror / file.repository / file.commit / file.path
    pinned.parent.mkdir(parents=True)
    (mirror / file.name).rename(pinned)
    (mirror / file.name).write_text("something else")
    assert fetch(tmp_path, str(mirror)).n_rows == 5


def test_second_fetch_needs_no_transfer(tmp_path, mirror):
    first = fetch(tmp_path, str(mirror))
    second = fetch(tmp_path, str(tmp_path / "gone"))
    assert not first.from_cache
    assert second.from_cache
    assert second.table.read_bytes() == first.table.read_bytes()


def test_the_command_says_when_nothing_was_transferred(tmp_path, mirror, monkeypatch, run_command):
    monkeypatch.setenv("CHITRANSFER_CACHE", str(tmp_path / "kept"))
    words = ["data", "fetch", "polysol", "--output-folder", tmp_path / "out", "--base-url"]
    table = f"table: {tmp_path / 'out' / 'polysol.csv'}"
    printed = run_command(*words, mirror)[1].splitlines()
    assert printed[-1] == table
    assert printed[-2].endswith(", 1 repeat of earlier rows dropped")
    assert run_command(*words, tmp_path / "gone")[1].splitlines()[-1] == f"{table} (from files fetched before)"


def test_damaged_cache_is_fetched_again(tmp_path, mirror):
    fetch(tmp_path, str(mirror))
    cached = next((tmp_path / "cache").rglob("*.csv"))
    cached.write_bytes(cached.read_bytes()[:50])
    fetched = fetch(tmp_path, str(mirror))
    assert not fetched.from_cache
    assert fetched.n_rows == 5


def test_progress_counts_the_bytes(tmp_path, mirror, serve):
    seen: list[tuple[int, int]] = []
    fetch(tmp_path, serve(mirror), progress=lambda done, total: seen.append((done, total)))
    size = find_source("polysol").files[0].size
    assert seen[-1] == (size, size)


def test_cache_folder_comes_from_the_environment(tmp_path, mirror, monkeypatch):
    monkeypatch.setenv("CHITRANSFER_CACHE", str(tmp_path / "elsewhere"))
    fetch_table("polysol", output_folder=tmp_path / "out", base_url=str(mirror))
    assert len(files_in(tmp_path / "elsewhere")) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page came"),
        (b"  <HTML>proxy", "a web page came"),
        ("\n".join((POLYSOL_HEADER, *POLYSOL_ROWS)).encode()[:100], ": 100 of .* cut short"),
        (("\n".join((POLYSOL_HEADER, *POLYSOL_ROWS)) + "\nmore").encode(), "SHA-256 must be"),
        (b"", ": 0 of .* cut short"),
    ],
)
def test_wrong_content_is_one_clear_error_and_leaves_nothing(tmp_path, mirror, serve, content, words):
    (mirror / find_source("polysol").files[0].name).write_bytes(content)
    for base in (serve(mirror), str(mirror)):
        with pytest.raises(DataError, match=words) as caught:
            fetch(tmp_path, base)
        assert "Nothing was written" in str(caught.value)
    assert files_in(tmp_path / "cache") == []
    assert not (tmp_path / "out").exists()


def test_connection_that_breaks_off_is_one_clear_error(tmp_path, mirror):
    size = find_source("polysol").files[0].size

    class Breaking(_Handler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.write(b"polymer;mono")
            self.close_connection = True

    server = http.server.HTTPServer(("127.0.0.1", 0), Breaking)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(DataError, match=r"cut short|broke off"):
            fetch(tmp_path, f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        server.server_close()
    assert files_in(tmp_path / "cache") == []


def test_offline_says_what_to_do(tmp_path, mirror, serve):
    address = serve(mirror)
    port = int(address.rsplit(":", 1)[1])
    with pytest.raises(DataError, match=r"could not be fetched .*--base-url"):
        fetch(tmp_path, f"http://127.0.0.1:{port}/nowhere")
    with pytest.raises(DataError, match=r"connection refused.*--base-url"):
        fetch(tmp_path, "http://127.0.0.1:1")
    with pytest.raises(DataError, match="is not in the mirror folder"):
        fetch(tmp_path, str(tmp_path / "no such folder"))
    assert files_in(tmp_path / "cache") == []
    assert not (tmp_path / "out").exists()


def test_a_missing_file_of_certificates_is_not_blamed_on_the_output(tmp_path, mirror, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(
        DataError, match=r"could not be fetched from https://.* \(.*none\.pem\)\. .*--base-url"
    ) as raised:
        fetch(tmp_path, "https://127.0.0.1:1")
    assert "written (" not in str(raised.value)
    assert files_in(tmp_path) == ["mirror/" + path.name for path in mirror.iterdir()]


def test_a_cache_that_cannot_be_written_is_one_clear_error(tmp_path, mirror, monkeypatch, run_command):
    # Root may write everywhere.
    def refuse(path: str, *_: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setenv("CHITRANSFER_CACHE", str(tmp_path / "closed"))
    monkeypatch.setattr(os, "makedirs", refuse)
    code, _, error = run_command("data", "fetch", "polysol", "--base-url", mirror, "--output-folder", tmp_path / "out")
    assert code == 2
    assert error.startswith(f"ERROR: {tmp_path}/closed/sources: the cache of published files cannot be used")
    assert error.endswith("name another folder with CHITRANSFER_CACHE\n")
    assert not (tmp_path / "out").exists()


def test_a_failed_fetch_keeps_what_was_there(tmp_path, mirror):
    before = fetch(tmp_path, str(mirror)).table.read_bytes()
    next((tmp_path / "cache").rglob("*.csv")).unlink()
    (mirror / find_source("polysol").files[0].name).write_text("<html>")
    with pytest.raises(DataError):
        fetch(tmp_path, str(mirror))
    assert (tmp_path / "out" / "polysol.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("polymer;mono_name;solvent\na;b;c\n", "column(s) mono_smiles"),
        (POLYSOL_HEADER + "\n", "no rows"),
        (POLYSOL_HEADER + "\na;b;C=C;water;O\n", "line 2 does not have as many cells"),
        (POLYSOL_HEADER + "\na;b;C=C;water;O;yes\n", "line 2: solubility 'yes'"),
        (POLYSOL_HEADER + "\na;b;C=C;water;not a molecule;1\n", "line 2: solvent"),
    ],
)
def test_changed_format_names_the_line(tmp_path, monkeypatch, text, words):
    folder = tmp_path / "changed"
    folder.mkdir()
    pin_polysol(folder, text, monkeypatch)
    with pytest.raises(DataError) as caught:
        fetch(tmp_path, str(folder))
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"no public table called 'polysoll'[\s\S]*polyverse-chi"):
        fetch_table("polysoll", output_folder=tmp_path)


def test_polyverse_is_converted_in_kelvin_with_its_ring_corrected(tmp_path, monkeypatch):
    content = (
        b"SN,Polymer,Polymer_SMILES,Solvent,Solvent_SMILES,chi,temperature [K],Reference\n"
        b"1,poly(ethylene oxide),[*]CCO[*],water,O,0.45,298.0,doi 1\n"
        b"2,cellulose nitrate,O=N(=O)OCC1CC(O[*])C(ON(=O)=O)C(O)C1[*],acetone,CC(C)=O,0.27,293.0,doi 2\n"
        b"3,nonsense,[*]CC,acetone,CC(C)=O,0.27,293.0,doi 3\n"
        b"4,no value,[*]CC[*],acetone,CC(C)=O,,293.0,doi 4\n"
    )
    real = find_source("polyverse-chi")
    file = replace(real.files[0], sha256=hashlib.sha256(content).hexdigest())
    (tmp_path / file.name).write_bytes(content)
    monkeypatch.setattr(published, "_SOURCES", (replace(real, files=(file,)),))
    fetched = fetch(tmp_path, str(tmp_path), "polyverse-chi")
    table = pd.read_csv(fetched.table)
    assert table[["SMILES", "chi", "temp", "solvent"]].to_numpy().tolist() == [
        ["*CCO*", 0.45, 298.0, "O"],
        ["*OC1OC(CO[N+](=O)[O-])C(*)C(O)C1O[N+](=O)[O-]", 0.27, 293.0, "CC(C)=O"],
    ]
    assert pd.read_csv(fetched.left_out)["line"].tolist() == [4, 5]
    assert "no sale" in fetched.licence.read_text()


def test_every_source_is_pinned_and_says_its_licence():
    for source in list_sources():
        assert source.licence.strip()
        assert source.citation
        assert source.kind in {"stage1", "chi", "solubility"}
        for file in source.files:
            assert len(file.sha256) == 64
            assert len(file.commit) == 40
            assert file.addresses(None) == [
                f"https://raw.githubusercontent.com/{file.repository}/{file.commit}/{file.path}"
            ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mtl-chi", "experiment_chi.csv"),
        ("mtl-cosmo-rs", "cosmo_rs_chi.csv"),
        ("polysol-vinyl", "solubility.csv"),
    ],
)
def test_real_files_give_the_shared_tables_row_for_row(tmp_path, shared_data, serve, name, expected):
    fetched = fetch(tmp_path, serve(shared_data / "raw"), name)
    wanted = pd.read_csv(shared_data / expected)
    given = pd.read_csv(fetched.table)[list(wanted.columns)]
    pd.testing.assert_frame_equal(given, wanted, check_exact=True)


def test_real_polysol_goes_well_beyond_the_vinyl_subset(tmp_path, shared_data):
    fetched = fetch(tmp_path, str(shared_data / "raw"))
    table = pd.read_csv(fetched.table)
    assert len(table) == 1392
    assert fetched.n_polymers == 337
    assert len(table) + fetched.n_left_out + fetched.n_duplicates == fetched.n_published == 1818
    left_out = pd.read_csv(fetched.left_out)
    assert left_out["reason"].str.len().min() > 10
    # Names whose monomer, as published, is another polymer's.
    units = dict(zip(table["name"], table["SMILES"], strict=True))
    assert units["Poly(2,5-dimethoxy-1,4-phenylenethenylene)"] == "*C=Cc1cc(OC)c(*)cc1OC"
    assert units["Poly(tetramethyl-1,4-phenylenethenylene)"] == "*C=Cc1c(C)c(C)c(*)c(C)c1C"
    for name in ("6-iminohexamethylenecarbonyl-1,4-phenylene", "1-methyl-4,5-imidazolediyl-carbonyliminoethylene"):
        assert not any(name in one for one in units)
        assert left_out["entry"].str.contains(name, regex=False).sum() == 4
    # Every row of the uncorrected vinyl subset is there, unless a listed correction touched it.
    vinyl = pd.read_csv(shared_data / "solubility.csv")
    published_rows = pd.read_csv(shared_data / "raw" / find_source("polysol").files[0].name, sep=";")
    corrections = pd.read_csv(fetched.corrections).fillna("")
    touched = set(corrections.loc[corrections["kind"] != "note", "entry"]) | set(
        published_rows.loc[published_rows["solvent"].isin(corrections["solvent"]), "polymer"]
    )
    have = set(table[["SMILES", "solvent", "soluble"]].itertuples(index=False, name=None))
    missing = [row for row in vinyl.itertuples(index=False, name=None) if row not in have]
    entries = _entries_by_vinyl_unit(published_rows)
    for smiles, *_ in missing:
        assert entries[smiles] & (touched | NAMED_DIFFERENTLY), smiles


# Entries whose name spells another polymer than the vinyl reading of their structure.
NAMED_DIFFERENTLY = {
    "Poly(beta-vinyl-beta-propiolactone)",  # opens its lactone ring; the handbook lists it with the polyesters
    "Poly(oxyethylene)",
    "Poly(N-propanoyliminoethylene)",
    "Poly(N-benzoyliminoethylene)",
    "Poly[N-((9-carbazolyl)acetyl)iminoethylene]",
    "Poly(2,5-dimethoxy-1,4-phenylenethenylene)",
    "Poly(tetramethyl-1,4-phenylenethenylene)",
    "Poly(6-n-hexyl-1,4-naphthalenediylethenylene)",
    "Poly(1,3-cyclohexyleneethenylene)",
    "Poly(N-vinyliminocarbonyl)",
    "Poly(tetrathioethylene)",
    "Poly(iminoethyleneiminocarbonyl-1,4-phenylene-sulfonyl-1,4-phenylenecarbonyl)",
    "Poly(oxyethyleneoxycarbonyliminohexa-methyleneiminocarbonyl)",
    "Poly(oxyethyleneoxycarbonylimino-1,3-phenyleneiminocarbonyl)",
    "Poly(oxyethyleneoxycarbonyliminoethylene-iminocarbonyl)",
    "Poly(oxy-3-chloro-1,2-propylene)",
}


def _entries_by_vinyl_unit(rows: pd.DataFrame) -> dict[str | None, set[str]]:
    units = {monomer: vinyl_repeat_unit(monomer) for monomer in rows["mono_smiles"].unique()}
    return rows.groupby(rows["mono_smiles"].map(units))["polymer"].agg(set).to_dict()
