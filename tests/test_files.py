"""Files are whole or not there; what is written is what is read back."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import re
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chitransfer.errors import ConfigError, describe_os_error
from chitransfer.files import (
    beside_csv,
    check_writable,
    refuse_overwriting,
    replace_atomically,
    write_atomically,
    write_csv,
    write_json,
)


def test_folders_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text.txt"
    write_atomically(path, "χ = 0.5\n")
    assert path.read_text(encoding="utf-8") == "χ = 0.5\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["text.txt"]


def test_a_failing_write_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    write_atomically(path, b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half of")
        assert temporary.parent == path.parent
        assert temporary.suffix == path.suffix
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="full"):
        replace_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["text.txt"]


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    there, link = tmp_path / "scratch" / "best.csv", tmp_path / "best.csv"
    write_atomically(there, "old")
    link.symlink_to(there)
    write_atomically(link, "new")
    assert link.is_symlink()
    assert there.read_text() == "new"
    assert [entry.name for entry in there.parent.iterdir()] == ["best.csv"]


def test_a_full_disk_is_told_with_the_file_that_was_meant(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as raised:
        replace_atomically(tmp_path / "model.pt", fail)
    told = "model.pt: cannot be written (No space left on device); free some disk space"
    assert describe_os_error(raised.value) == f"{tmp_path}/{told}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["table.csv.gz", "TABLE.CSV.GZ"])
def test_a_name_in_gz_is_compressed(tmp_path: Path, name: str) -> None:
    write_csv(tmp_path / name, pd.DataFrame({"SMILES": ["*CC*"]}))
    assert gzip.decompress((tmp_path / name).read_bytes()) == b"SMILES\n*CC*\n"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("best.csv", "best.png"), ("best.1.csv.gz", "best.1.png"), ("BEST.CSV.GZ", "BEST.png"), ("b.Csv", "b.png")],
)
def test_what_lies_beside_a_table_is_called_as_it_is(name: str, expected: str) -> None:
    assert beside_csv(Path("folder") / name, ".png") == Path("folder") / expected


@pytest.mark.parametrize("name", ["self", "frame", 7])
def test_a_column_may_have_any_name(tmp_path: Path, name: object) -> None:
    write_csv(tmp_path / "t.csv", pd.DataFrame({name: ["=a"]}))
    assert (tmp_path / "t.csv").read_text() == f"{name}\n'=a\n"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("folder", "is a folder"),
        ("folder.csv", "is a folder"),
        ("file.txt/deep/new.csv", "file.txt is a file"),
        ("new.xyz", "must end in .csv or .csv.gz"),
        ("sealed/new.csv", "sealed cannot be written"),
    ],
)
def test_what_cannot_be_written_is_refused_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    for folder in ("folder", "folder.csv", "sealed"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file.txt").touch()
    # Nothing is sealed from root.
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "sealed")
    endings = () if name == "folder" else (".csv", ".csv.gz")
    with pytest.raises(ConfigError, match=re.escape(expected)):
        check_writable(tmp_path / name, "--output", endings)


def test_what_can_be_written_is_not_made_beforehand(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deeper" / "table.CSV", "--output", (".csv",))
    assert list(tmp_path.iterdir()) == []


def test_no_file_takes_the_place_of_a_device_or_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match=re.escape(f"--output {pipe}: is a device or a pipe")):
        check_writable(pipe, "--output")
    with pytest.raises(OSError, match="is a device or a pipe") as raised:
        write_atomically(pipe, "x")
    assert describe_os_error(raised.value).startswith(f"{pipe}: cannot be used (is a device or a pipe")
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("spelling", ["in.csv", "folder/../in.csv", "symbolic.csv", "hard.csv"])
def test_a_file_that_is_read_is_not_written(tmp_path: Path, spelling: str) -> None:
    source, model = tmp_path / "in.csv", tmp_path / "model.pt"
    source.write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "symbolic.csv").symlink_to(source)
    (tmp_path / "hard.csv").hardlink_to(source)
    with pytest.raises(
        ConfigError, match=re.escape(f"--output {tmp_path / spelling}: is the file of --input {source}")
    ):
        refuse_overwriting(tmp_path / spelling, "--output", {"--model": model, "--input": source})
    refuse_overwriting(tmp_path / "other.csv", "--output", {"--model": model, "--input": source})


def test_results_can_be_read_by_others(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("x")
    write_atomically(tmp_path / "ours", "x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, None])
def test_a_file_system_that_keeps_no_permissions_is_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    refusal: Exception = NotImplementedError() if number is None else OSError(number, os.strerror(number))

    def refuse(*_: object, **options: object) -> None:
        raise refusal

    monkeypatch.setattr(os, "chmod", refuse)
    write_atomically(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"
    refusal = OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.EIO))):
        write_atomically(tmp_path / "b", "x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_json_has_no_nan_and_takes_numpy(tmp_path: Path) -> None:
    values = {"nan": float("nan"), "inf": [np.inf, 1.5], "n": np.int64(3), "x": np.float32(0.5), 7: (1, None, True)}
    write_json(tmp_path / "v.json", values)
    strict = json.loads((tmp_path / "v.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert strict == {"nan": None, "inf": [None, 1.5], "n": 3, "x": 0.5, "7": [1, None, True]}


def test_floats_come_back_from_csv_to_the_last_digit(tmp_path: Path, rng: np.random.Generator) -> None:
    frame = pd.DataFrame({"x": rng.normal(size=200) * 10.0 ** rng.integers(-300, 300, 200)})
    write_csv(tmp_path / "x.csv", frame)
    with (tmp_path / "x.csv").open(newline="") as stream:
        assert [float(row["x"]) for row in csv.DictReader(stream)] == frame["x"].tolist()


def test_no_cell_is_a_formula_and_the_frame_is_not_changed(tmp_path: Path) -> None:
    frame = pd.DataFrame({"SMILES": ["=HYPERLINK(1)", "*CC*", "@x", "-x", "+1+1"], "chi": [-1.0, 2.0, 3.0, 4.0, 5.0]})
    frame["@SUM(A1)"] = "plain"
    before = frame.copy(deep=True)
    write_csv(tmp_path / "t.csv", frame)
    with (tmp_path / "t.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["SMILES"] for row in rows] == ["'=HYPERLINK(1)", "*CC*", "'@x", "'-x", "'+1+1"]
    assert float(rows[0]["chi"]) == -1.0
    assert list(rows[0]) == ["SMILES", "chi", "'@SUM(A1)"]
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("number", ["-1.3", "+4", "-.5", "-1e-3", "-inf"])
def test_numbers_that_came_as_text_stay_as_they_are(tmp_path: Path, number: str) -> None:
    write_csv(tmp_path / "t.csv", pd.DataFrame({"logP": [number, "-a"]}))
    assert (tmp_path / "t.csv").read_text() == f"logP\n{number}\n'-a\n"


def test_no_folder_is_opened_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse_folders(path: str | Path, *further: int) -> int:
        if Path(path).is_dir():
            raise PermissionError(f"{path}: as on Windows")
        return opened(path, *further)

    monkeypatch.setattr(os, "open", refuse_folders)
    with pytest.raises(PermissionError):
        write_atomically(tmp_path / "a", "x")
    monkeypatch.setattr("sys.platform", "win32")
    write_atomically(tmp_path / "b", "x")
    assert (tmp_path / "b").read_text() == "x"


def test_a_file_system_that_syncs_no_folders_is_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, refusal = os.fsync, errno.EINVAL

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(refusal, os.strerror(refusal))
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_atomically(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"
    refusal = errno.EIO
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.EIO))):
        write_atomically(tmp_path / "b", "x")
