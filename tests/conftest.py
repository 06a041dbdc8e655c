"""Fixtures shared by the tests: the real tables where they are at hand, small tables of our own elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real tables beside the project."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real tables are not beside the project")
    return folder


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The project's root folder."""
    return ROOT
