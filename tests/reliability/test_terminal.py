"""Ctrl-C as a terminal sends it: to the search and to every process it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chitransfer.config import dump_config, load_config


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are a matter of Unix")
@pytest.mark.slow
def test_workers_leave_ctrl_c_to_the_search(tiny: dict[str, object], tmp_path: Path) -> None:
    config = load_config(None, {**tiny, "search.n_trials": 500, "search.study_name": "long", "search.workers": 2})
    path = tmp_path / "long.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "chitransfer", "search", "--config", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        first = tmp_path / "results" / "hparam_search" / "long" / "trials" / "0001" / "scores.json"
        deadline = time.monotonic() + 120
        while not first.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert "Traceback" not in output
    assert "search interrupted: " in output
