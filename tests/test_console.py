"""What commands print: whole lines in a narrow terminal, few lines of progress elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from chitransfer import console as console_module
from chitransfer.console import make_console, show_progress


def test_a_command_in_a_line_can_be_copied_from_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    line = f"resume with: bash scripts/run_hparam_search.sh --resume {'/a long folder' * 20}/study.db [bold]"
    console = make_console()
    assert console.is_terminal
    assert console.width == 80
    console.print(line)
    assert capsys.readouterr().out == f"{line}\n"


def test_long_work_says_now_and_then_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now)
    out = io.StringIO()
    with show_progress(Console(file=out, width=200)) as progress:
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
    with show_progress(Console(file=out, width=200)) as progress:
        for done in (1, 2, 3):
            progress("reading", done, 3)
        progress("polymer features", 500, 2000)
        progress("polymer features", 2000, 2000)
        progress("polymer features", 2000, 2000)
    assert out.getvalue().splitlines() == ["polymer features: 2000 done"]
