"""Progress of a search: a live panel in a terminal, plain lines elsewhere; the same lines go to the log.

Made by `search.run` and `search.second_pass`; `evidence.nested` takes the plain counter.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from chitransfer.console import format_seconds
from chitransfer.counts import say_count
from chitransfer.progress import Say
from chitransfer.search.replicates import values_of_runs

if TYPE_CHECKING:
    from chitransfer.search.results import Standing
    from chitransfer.sections import SearchSettings

logger = logging.getLogger(__name__)


def describe_components(attributes: dict[str, object]) -> str:
    """``exp MAE 0.291, F1 0.83, recall 0.95, Stage 1 MAE 0.12``, as far as the trial has them."""
    names = {"exp_mae": "exp MAE", "sol_f1": "F1", "sol_recall": "recall", "stage1_mae": "Stage 1 MAE"}
    values = [f"{title} {attributes[name]:.3f}" for name, title in names.items() if attributes.get(name) is not None]
    return ", ".join(values)


class SearchDisplay:
    """Shows runs done, the lowest objective so far with its components, and the time left; then the re-evaluation.

    Parameters
    ----------
    search
        Its budget is counted as in the driver: in trials, or in their runs if `search.replicates` lets some run again.
    standing
        State of the study after earlier parts of the search.
    n_runs_after
        Approximate number of runs after the last trial; the time left includes them.
    default
        What to call the default configuration.
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
        self._best_line = Text(overflow="ellipsis", no_wrap=True)
        self._show_best()
        self._n_runs_after, self._default = n_runs_after, default
        self._n_runs_done = 0
        self._started = time.monotonic()
        self._console, self._ending = console, ExitStack()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[what]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
        )
        self._panel = Live(Group(self._progress, self._best_line), console=console)
        what = "trials" if search.replicates == 1 else "runs"
        self._bar = self._progress.add_task("starting", what=what, total=self._n_total, completed=self._n_done)

    def __enter__(self) -> SearchDisplay:
        if self._console.is_terminal:
            self._ending.enter_context(self._panel)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ending.close()

    @property
    def n_ended(self) -> int:
        """Trials and repeated runs that have ended since the display was made."""
        return self._n_done - self._n_before + self._n_runs_done

    def trial_started(self, number: int) -> None:
        """Note a trial's start in the log."""
        logger.debug("trial %d started", number)

    def trial_ended(self, trial: FrozenTrial, n_runs: int) -> None:
        """Count a trial's runs, keep the best, and report both."""
        self._n_done += n_runs
        if trial.state == TrialState.COMPLETE:
            value = trial.values[0]
            is_best = self._best is None or value < self._best.values[0]
            if is_best:
                self._best = trial
                self._show_best()
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
        self._progress.update(self._bar, completed=self._n_done, description=f"{left} left")

    def runs_announced(self, trials: str, n_runs: int, seconds: float) -> None:
        """Report that trials run again, with a bar of their own."""
        about = format_seconds(seconds)
        line = f"running {trials} again on fresh seeds and folds: {say_count(n_runs, 'run')}, about {about}"
        logger.info("%s", line)
        self._console.print(line)
        self._n_runs, self._runs_started = n_runs, time.monotonic()
        self._bar = self._progress.add_task(f"about {about} left", what="runs again", total=n_runs)

    def run_ended(self, number: int, outcome: str) -> None:
        """Count a run and report its outcome."""
        self._n_runs_done += 1
        pace = (time.monotonic() - self._runs_started) / self._n_runs_done
        left = format_seconds(pace * (self._n_runs - self._n_runs_done))
        self._say(f"trial {number:>3} again: {outcome}", self._n_runs_done, self._n_runs, left)
        self._progress.update(self._bar, completed=self._n_runs_done, description=f"{left} left")

    def runs_stopped(self, n_left: int) -> None:
        """Report what a resumed search still has to do."""
        line = f"{n_left} of {self._n_runs} runs on fresh seeds and folds are left; resuming the search runs them"
        logger.info("%s", line)
        self._console.print(line)

    def search_stopped(self, command: str) -> None:
        """Report that a signal was caught and how to resume, before results are written."""
        line = f"stopping; results so far are being written. Resume with: {command}"
        logger.info("%s", line)
        self._console.print(line)

    def storage_away(self, what: str) -> None:
        """Report that the study's database is currently unusable."""
        line = f"{what}; waiting for it"
        logger.warning("%s", line)
        self._console.print(f"WARNING: {line}")

    def _say(self, line: str, done: int, total: int, left: str) -> None:
        logger.info("%s [%d/%d, %s left]", line, done, total, left)
        self._console.print(f"[{done}/{total}] {line}; {left} left")

    def _show_best(self) -> None:
        if self._best is not None:
            about = f"{self._best.values[0]:.4f}; {describe_components(self._best.user_attrs)}"
            self._best_line.plain = f"best so far, trial {self._best.number}: {about}"

    def _time_left(self) -> str:
        pace = (time.monotonic() - self._started) / (self._n_done - self._n_before)
        return format_seconds(pace * (max(0, self._n_total - self._n_done) + self._n_runs_after))


class TrialCounter:
    """Watches a search inside other work: reports every tenth trial how many have ended and how long one takes."""

    def __init__(self, say: Say, what: str, n_trials: int) -> None:
        self._say, self._what, self._n_trials, self._n_ended = say, what, n_trials, 0
        self._started = time.monotonic()

    def trial_started(self, number: int) -> None:
        """Nothing to report."""

    def trial_ended(self, trial: FrozenTrial, n_runs: int) -> None:
        """Count it."""
        self._n_ended += 1
        n = trial.number + 1
        if n % 10 == 0 or n == self._n_trials:
            pace = format_seconds((time.monotonic() - self._started) / self._n_ended)
            self._say(f"{self._what}: {n} of {self._n_trials} trials, {pace} each")
