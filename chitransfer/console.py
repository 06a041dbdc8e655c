"""Output of all commands: the console, progress, and readable durations."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from chitransfer.progress import NamedProgress

SECONDS_BETWEEN_LINES = 60.0
logger = logging.getLogger(__name__)


class _LastingConsole(Console):
    """A console whose reader or terminal may vanish: the command continues, since files and the log hold everything."""

    def _write_buffer(self) -> None:
        try:
            super()._write_buffer()
        except OSError as error:
            # The error of a terminal that is gone.
            if error.errno != errno.EIO:
                raise
            raise BrokenPipeError from error

    def on_broken_pipe(self) -> None:
        """Stop printing."""
        self.quiet = True
        discard_output(sys.stdout)
        logger.warning("the reader of the output is gone; continuing without it")


def discard_output(stream: TextIO) -> None:
    """Redirect a standard stream whose reader has gone, or which is full, to the null device."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def make_console(quiet: bool = False) -> Console:
    """The console of a command: prints lines unchanged and unbroken, so that commands in them can be copied."""
    return _LastingConsole(quiet=quiet, soft_wrap=True, markup=False, highlight=False)


def format_seconds(seconds: float) -> str:
    """``47 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def show_progress(console: Console) -> Iterator[NamedProgress]:
    """A ``(what, done, total)`` callback for all but trials: bars in a terminal, occasional lines elsewhere."""
    if not console.is_terminal:
        yield _PlainProgress(console).update
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bars: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done, total=total)

        yield update


class _PlainProgress:
    """A progress bar's text as lines a minute apart, for logs of cluster jobs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began: dict[str, tuple[float, int]] = {}
        self._said: dict[str, float] = {}
        self._finished: set[str] = set()

    def update(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        began, done_before = self._began.setdefault(what, (now, done))
        if done == total and (total > 1000 or what in self._said) and what not in self._finished:
            self._finished.add(what)
            self._console.print(f"{what}: {total} done")
        elif done > done_before and now - self._said.get(what, began) >= SECONDS_BETWEEN_LINES:
            left = format_seconds((now - began) / (done - done_before) * (total - done))
            self._console.print(f"{what}: {done} of {total}, {left} left")
            self._said[what] = now
