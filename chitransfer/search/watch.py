"""Progress of a search: a live panel in a terminal, plain lines elsewhere; the same lines go to the log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from chitransfer.counts import say_count
from chitransfer.search.replicates import values_of_runs

if TYPE_CHECKING:
    from chitransfer.search.results import Standing
    from chitransfer.sections import SearchSettings

SECONDS_BETWEEN_LINES = 60.0
logger = logging.getLogger(__name__)


def format_seconds(seconds: float) -> str:
    """``47 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def describe_components(attributes: dict[str, object]) -> str:
    """``exp MAE 0.291, F1 0.83, recall 0.95, Stage 1 MAE 0.12`` of what a trial has."""
    names = {"exp_mae": "exp MAE", "sol_f1": "F1", "sol_recall": "recall", "stage1_mae": "Stage 1 MAE"}
    values = [f"{title} {attributes[name]:.3f}" for name, title in names.items() if attributes.get(name) is not None]
    return ", ".join(values)


class SearchDisplay:
    """Shows runs done, the lowest objective so far with its components, and the time left; then the re-evaluation.

    Parameters
    ----------
    search
        Its budget is counted as the driver does: in trials, or in their runs where `search.replicates` lets some run
        again.
    standing
        Where an earlier part of the search left the study.
    n_runs_after
        About how many runs of trials follow the last trial; the time left counts them.
    default
        What the default configuration is called.
    """

    def __init__(
        self,
        console: Console,
        search: SearchSettings,
        standing: Standing,
        n_runs_after: int = 0,
        default: str = "default configuration",
    ) -> None:
        self._n_total, self._n_done, self._n_before = search.n_trials, standing.n_runs, standing.n_runs
        self._best = min(standing.ranked, key=lambda trial: trial.values[0], default=None)
        self._n_runs_after, self._default = n_runs_after, default
        self._n_runs_done = 0
        self._started = time.monotonic()
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[what]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        what = "trials" if search.replicates == 1 else "runs"
        self._bar = self._progress.add_task("starting", what=what, total=self._n_total, completed=self._n_done)

    def __enter__(self) -> SearchDisplay:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()

    @property
    def n_ended(self) -> int:
        """Trials and runs again that have ended since the display was made."""
        return self._n_done - self._n_before + self._n_runs_done

    def trial_started(self, number: int) -> None:
        """Note a trial's start in the log."""
        logger.debug("trial %d started", number)

    def trial_ended(self, trial: FrozenTrial, n_runs: int) -> None:
        """Count a trial's runs, keep the best, and say both."""
        self._n_done += n_runs
        if trial.state == TrialState.COMPLETE:
            value = trial.values[0]
            is_best = self._best is None or value < self._best.values[0]
            if is_best:
                self._best = trial
            n_good = len(values_of_runs(trial))
            note = f" (mean of {n_good} runs)" if n_good > 1 else ""
            note += f" ({self._default})" if trial.user_attrs.get("is_default") else ""
            what = f"objective {value:.4f}{' *best*' if is_best else ''}{note}; {describe_components(trial.user_attrs)}"
        elif trial.state == TrialState.PRUNED:
            what = "pruned"
        else:
            what = f"FAILED: {trial.user_attrs.get('failure_reason', 'no reason given')}"
        left = self._time_left()
        line = f"trial {trial.number:>3}: {what}"
        self._say(line, self._n_done, self._n_total, left)
        best = "" if self._best is None else f"best {self._best.values[0]:.4f} (trial {self._best.number}), "
        self._progress.update(self._bar, completed=self._n_done, description=f"{best}{left} left")

    def runs_announced(self, trials: str, n_runs: int, seconds: float) -> None:
        """Say that trials run again, and show a bar of their own."""
        about = format_seconds(seconds)
        line = f"running {trials} again on fresh seeds and folds: {say_count(n_runs, 'run')}, about {about}"
        logger.info("%s", line)
        self._console.print(line)
        self._n_runs, self._runs_started = n_runs, time.monotonic()
        self._bar = self._progress.add_task(f"about {about} left", what="runs again", total=n_runs)

    def run_ended(self, number: int, outcome: str) -> None:
        """Count a run and say what came of it."""
        self._n_runs_done += 1
        pace = (time.monotonic() - self._runs_started) / self._n_runs_done
        left = format_seconds(pace * (self._n_runs - self._n_runs_done))
        self._say(f"trial {number:>3} again: {outcome}", self._n_runs_done, self._n_runs, left)
        self._progress.update(self._bar, completed=self._n_runs_done, description=f"{left} left")

    def runs_stopped(self, n_left: int) -> None:
        """Say what a resumed search still has to do."""
        line = f"{n_left} of {self._n_runs} runs on fresh seeds and folds are left; the resumed search does them"
        logger.info("%s", line)
        self._console.print(line)

    def _say(self, line: str, done: int, total: int, left: str) -> None:
        logger.info("%s [%d/%d, %s left]", line, done, total, left)
        self._console.print(f"[{done}/{total}] {line}; {left} left")

    def _time_left(self) -> str:
        pace = (time.monotonic() - self._started) / (self._n_done - self._n_before)
        return format_seconds(pace * (max(0, self._n_total - self._n_done) + self._n_runs_after))


class _PlainProgress:
    """What a progress bar says, as lines a minute apart: for logs of cluster jobs."""

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


@contextmanager
def show_progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A ``(what, done, total)`` callback for all but trials: bars in a terminal, now and then a line elsewhere."""
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


def make_console(quiet: bool = False) -> Console:
    """The console of a command: prints lines as they are, whole ones where the output goes to a file."""
    return Console(quiet=quiet, width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)
