"""Tables with a byte order mark, as Excel writes them in UTF-8, give tables that Excel reads as UTF-8 again."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("mark", [MARK, b""])
@pytest.mark.parametrize("command", ["predict", "screen", "data compute"])
def test_the_mark_of_the_input_is_kept(
    trained: Any, tmp_path: Path, run_command: Callable[..., tuple[int, str, str]], command: str, mark: bytes
) -> None:
    path, output = tmp_path / "in.csv", tmp_path / "out.csv.gz"
    path.write_bytes(mark + "SMILES,Name\n*CC(*)O,Müller\n*CC(*)N,Weiß\n".encode())
    words = [*command.split(), "--input", path, "--output", output]
    words += [] if command == "data compute" else ["--model", trained.model]
    code, _, err = run_command(*words)
    assert code == 0, err
    written = gzip.decompress(output.read_bytes())
    assert written.startswith(mark + (b"rank" if command == "screen" else b"SMILES,Name,"))
    assert written.count(MARK) == bool(mark)
    assert "Müller" in written.decode()
