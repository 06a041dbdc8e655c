"""What a rung reports beside its scores."""

from __future__ import annotations

import math
import sys
import types

import pytest

from chitransfer.search.objective import peak_process_memory_mb


@pytest.mark.parametrize(("platform", "expected"), [("linux", 3 * 2**10), ("darwin", 3.0)])
def test_peak_memory_in_the_units_of_the_system(
    monkeypatch: pytest.MonkeyPatch, platform: str, expected: float
) -> None:
    usage = types.SimpleNamespace(ru_maxrss=3 * 2**20)
    monkeypatch.setitem(
        sys.modules,
        "resource",
        types.SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: usage),  # type: ignore[arg-type]
    )
    monkeypatch.setattr(sys, "platform", platform)
    assert peak_process_memory_mb() == expected


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 10 < peak_process_memory_mb() < 1e6
    monkeypatch.setitem(sys.modules, "resource", None)
    assert math.isnan(peak_process_memory_mb())
