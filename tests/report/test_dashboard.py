"""`chitransfer dashboard` serves the study, to this machine alone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest


def test_it_serves_the_study_to_this_machine_alone(
    make_search: Callable[..., tuple[int, Any]], tiny: dict[str, object], run_command: Callable[..., Any]
) -> None:
    pytest.importorskip("optuna_dashboard")
    _, folder = make_search({**tiny, "search.n_trials": 1, "search.reevaluate_top": 0})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "chitransfer", "dashboard", str(folder.path), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            summaries = json.loads(fetch(f"http://127.0.0.1:{port}/api/studies", server))["study_summaries"]
            assert [study["study_name"] for study in summaries] == [folder.name]
            page = fetch(f"http://127.0.0.1:{port}/dashboard", server)
            assert "<html" in page.lower()
            with socket.socket() as outside:
                # The whole of 127/8 is this machine; who listens on all its addresses answers here, too.
                assert outside.connect_ex(("127.0.0.2", port)) != 0
            code, _, error = run_command("dashboard", folder.path, "--port", port)
            assert code == 2
            assert f"--port {port} is taken" in error
        finally:
            server.terminate()
        printed, _ = server.communicate(timeout=60)
    assert f"dashboard of {folder.name}: http://127.0.0.1:{port}/ (Ctrl-C ends it)" in printed
    assert "Traceback" not in printed


def fetch(address: str, server: subprocess.Popen[str]) -> str:
    """What the server answers, once it does."""
    for _ in range(240):
        assert server.poll() is None, server.communicate()
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise AssertionError(f"{address} does not answer")
