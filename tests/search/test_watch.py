"""Progress outside a terminal: few lines, each with what is left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from chitransfer.search import watch


def test_long_work_says_now_and_then_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(watch.time, "monotonic", lambda: now)
    out = io.StringIO()
    with watch.show_progress(Console(file=out, width=200)) as progress:
        for done in range(1, 101):
            progress("fine-tuning", done, 100)
            progress("quick", done, 100)
            now += 3.0 if done < 50 else 0.0
    lines = out.getvalue().splitlines()
    assert lines == [
        "fine-tuning: 21 of 100, 4 min left",
        "quick: 21 of 100, 4 min left",
        "fine-tuning: 41 of 100, 3 min left",
        "quick: 41 of 100, 3 min left",
        "fine-tuning: 100 done",
        "quick: 100 done",
    ]


def test_short_work_says_nothing_and_many_structures_their_number() -> None:
    out = io.StringIO()
    with watch.show_progress(Console(file=out, width=200)) as progress:
        for done in (1, 2, 3):
            progress("reading", done, 3)
        progress("polymer features", 500, 2000)
        progress("polymer features", 2000, 2000)
        progress("polymer features", 2000, 2000)
    assert out.getvalue().splitlines() == ["polymer features: 2000 done"]
