"""Running the top trials and the default configuration again, with fresh pretraining seeds and fresh folds.

Called by `search.run` when a search has finished; `evidence.overtuning` reads the results.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from chitransfer.config import Config
from chitransfer.counts import say_count
from chitransfer.data.assemble import Dataset
from chitransfer.search.driver import POLL_SECONDS, StopReason, StopRequested, give_up_overdue
from chitransfer.search.objective import RungResult, RungTask
from chitransfer.search.records import save_rung
from chitransfer.search.replicates import replicate_folder, values_of_runs
from chitransfer.search.results import computed_seconds, fresh_runs, missing_runs, read_standing
from chitransfer.search.space import to_overrides, trial_rungs
from chitransfer.search.study_folder import StudyFolder
from chitransfer.search.workers import InProcessWorkers, Workers

logger = logging.getLogger(__name__)


class RunWatcher(Protocol):
    """Follows the re-evaluation, as a progress display does."""

    def runs_announced(self, trials: str, n_runs: int, seconds: float) -> None:
        """`n_runs` runs of these trials begin, which will take about `seconds`."""

    def run_ended(self, number: int, outcome: str) -> None:
        """A run of a trial has ended."""

    def runs_stopped(self, n_left: int) -> None:
        """A stop leaves `n_left` runs to a resumed search."""


def reevaluate_top(
    config: Config,
    dataset: Dataset,
    study: optuna.Study,
    folder: StudyFolder,
    workers: Workers,
    stop_requested: StopRequested,
    watcher: RunWatcher | None = None,
) -> StopReason:
    """Run each chosen trial another `search.reevaluate_seeds` times; runs already on disk are kept.

    A run that fails is logged and left out. Returns why the re-evaluation ended.
    """
    standing = read_standing(study)
    by_number = {trial.number: trial for trial in standing.ranked}
    missing = missing_runs(fresh_runs(standing, config.search), folder)
    overrides = {
        number: to_overrides(by_number[number].params, config.search.space, by_number[number].user_attrs)
        for number, _ in missing
    }
    tasks = [
        RungTask(
            number=number,
            overrides=overrides[number],
            epoch=trial_rungs(config, overrides[number])[-1],
            state=None,
            replicate=replicate,
        )
        for number, replicate in missing
    ]
    if tasks and watcher is not None:
        seconds = len(tasks) * _seconds_of_a_run(list(by_number.values()), workers, len(tasks))
        others = "the best trials" if standing.default is None else "the best trials and the default configuration"
        n_trials = len({task.number for task in tasks})
        watcher.runs_announced(f"{others} ({say_count(n_trials, 'trial')})", len(tasks), seconds)
    running: dict[Future[RungResult], RungTask] = {}
    while tasks or running:
        while tasks and len(running) < workers.capacity:
            task = tasks.pop(0)
            running[workers.submit(task)] = task
        for task, result in _ended_runs(workers, running, config.search.trial_timeout_minutes):
            if result.failure:
                logger.warning("trial %d on fresh seeds and folds FAILED: %s", task.number, result.failure)
                outcome = f"FAILED: {result.failure}"
            else:
                save_rung(
                    replicate_folder(folder.trial(task.number), task.replicate),
                    result,
                    by_number[task.number].params,
                    dataset,
                )
                outcome = f"objective {result.value:.4f}"
            if watcher is not None:
                watcher.run_ended(task.number, outcome)
        reason = stop_requested()
        if reason is not None and (tasks or running):
            if watcher is not None:
                watcher.runs_stopped(len(tasks) + len(running))
            return reason
    return "finished"


def _ended_runs(
    workers: Workers, running: dict[Future[RungResult], RungTask], minutes: float | None
) -> Iterator[tuple[RungTask, RungResult]]:
    """Remove from `running` what is done or, as in the search, overdue."""
    for future in workers.wait(list(running), POLL_SECONDS):
        yield running.pop(future), future.result()
    before = {future: (task.number, 0.0) for future, task in running.items()}
    for future, failed in give_up_overdue(workers, before, minutes):
        yield running.pop(future), failed


def _seconds_of_a_run(complete: Sequence[FrozenTrial], workers: Workers, n_runs: int) -> float:
    """Wall-clock time of a run, from the computing time of complete trials."""
    computed = [(computed_seconds(trial) or 0.0) / len(values_of_runs(trial)) for trial in complete]
    # The computing time of trials in a pack is already their share of the wall-clock time.
    n_at_once = 1 if isinstance(workers, InProcessWorkers) else min(workers.capacity, n_runs)
    return float(np.median(computed)) / n_at_once
