"""The driver, the only process that touches the study: asks Optuna, sends rungs to workers, reports, prunes, tells.

`search.run` and `evidence.nested` make a `SearchDriver`; everything it needs is passed in.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from chitransfer.config import Config
from chitransfer.data.assemble import Dataset
from chitransfer.errors import CheckpointError, ConfigError, StudyError
from chitransfer.search.objective import RungResult, RungTask
from chitransfer.search.records import SECONDS_TOTAL, SavedRung, discard_states, load_rung, save_rung, trial_attributes
from chitransfer.search.replicates import (
    FAILED_RUNS,
    count_runs,
    deserves_another_run,
    load_replicates,
    pool_runs,
    replicate_folder,
    run_values,
)
from chitransfer.search.results import OBJECTIVE, with_one_value
from chitransfer.search.space import (
    HALVED_BATCH_SIZE,
    default_params,
    make_sampler,
    suggest_params,
    to_overrides,
    trial_rungs,
)
from chitransfer.search.storage import AttributeTable
from chitransfer.search.study_folder import StudyFolder
from chitransfer.search.workers import Workers

POLL_SECONDS = 0.2
StopReason = Literal["finished", "timeout", "interrupt", "terminate"]
StopRequested = Callable[[], StopReason | None]
logger = logging.getLogger(__name__)


def stop_in_time(stop_requested: StopRequested, hours: float) -> StopRequested:
    """`stop_requested` with a time limit: ``"timeout"`` once that many hours from now have passed."""
    deadline = time.monotonic() + hours * 3600
    return lambda: stop_requested() or ("timeout" if time.monotonic() > deadline else None)


def give_up_overdue(
    workers: Workers, running: Mapping[Future[RungResult], tuple[int, float]], minutes: float | None
) -> Iterator[tuple[Future[RungResult], RungResult]]:
    """Abandon rungs that compute for longer than `search.trial_timeout_minutes`; yields them with failed results.

    Parameters
    ----------
    running
        For each rung, its trial's number and the seconds already counted against the limit.
    minutes
        The limit; ``None``: no limit.
    """
    if minutes is None:
        return
    for future, (number, before) in running.items():
        seconds = workers.running_seconds(future)
        if seconds is None or before + seconds <= minutes * 60 or future.done():
            continue
        workers.abandon(future)
        reason = (
            f"took longer than {minutes:g} minutes (search.trial_timeout_minutes); raise it, lower "
            "training.num_epochs_pretrain, or check what it is waiting for"
        )
        yield future, RungResult(number, epoch=0, finished=True, seconds={"failed": seconds}, failure=reason)


class Watcher(Protocol):
    """Follows the search, as a progress display does."""

    def trial_started(self, number: int) -> None:
        """A trial's first rung was sent to a worker."""

    def trial_ended(self, trial: FrozenTrial, n_runs: int) -> None:
        """A trial reached its final state, having used `n_runs` of the budget."""


@dataclass
class _ActiveTrial:
    trial: optuna.Trial
    params: dict[str, Any]
    # Epochs of all its rungs, and of those still to come.
    all_rungs: list[int]
    rungs: list[int] = field(default_factory=list)
    # Attributes from its last rung.
    attributes: Mapping[str, Any] = field(default_factory=dict)
    # Computed so far: by stage in the current run, and in total.
    seconds: dict[str, float] = field(default_factory=dict)
    seconds_before: float = 0.0
    runs: list[SavedRung] = field(default_factory=list)
    # Recorded in the study: attributes written by this process, and epochs whose value was reported.
    noted: dict[str, Any] = field(default_factory=dict)
    reported: set[int] = field(default_factory=set)


class SearchDriver:
    """One search over one study.

    Parameters
    ----------
    stop_requested
        Called several times a second; a reason ends the search once completed work has been written.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        study: optuna.Study,
        folder: StudyFolder,
        workers: Workers,
        watcher: Watcher,
        stop_requested: StopRequested,
    ) -> None:
        self.config, self.dataset, self.study, self.folder = config, dataset, study, folder
        self.workers, self.watcher = workers, watcher
        self._stop_requested = stop_requested
        self._table = AttributeTable(folder.address)
        self._active: dict[Future[RungResult], _ActiveTrial] = {}
        begun = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self._interrupted = [trial.number for trial in begun]
        asked = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
        self._n_asked = len(asked)
        self._n_runs = sum(count_runs(trial) for trial in asked if trial.state.is_finished()) + len(begun)
        if config.search.replicates > 1:
            self._n_runs += sum(
                len(load_replicates(folder.trial(trial.number))) + trial.user_attrs.get(FAILED_RUNS, 0)
                for trial in begun
            )
        self._failures: list[str] = []

    def run(self) -> StopReason:
        """Search until the budget of `search.n_trials` is spent, or a stop is requested.

        The budget counts trials; with `search.replicates` above 1 it counts runs, including repeats of a trial.

        Raises
        ------
        StudyError
            `search.max_consecutive_failures` trials failed in a row, or all trials have ended and none is complete.
        """
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state.is_finished():
                # A killed search may have recorded the end of the trial without deleting its states.
                discard_states(self.folder.trial(trial.number))
        while True:
            while len(self._active) < self.workers.capacity and self._start_next():
                pass
            if not self._active:
                self._refuse_failures_alone()
                return "finished"
            done = self.workers.wait(list(self._active), POLL_SECONDS)
            # Sorted, because a set of futures is ordered differently in every process and pruners depend on earlier
            # reports.
            for future in sorted(done, key=lambda one: self._active[one].trial.number):
                self._receive(self._active.pop(future), future)
            before = {future: (active.trial.number, active.seconds_before) for future, active in self._active.items()}
            for future, failed in give_up_overdue(self.workers, before, self.config.search.trial_timeout_minutes):
                self._take(self._active.pop(future), failed)
            reason = self._stop_requested()
            if reason is not None:
                return reason

    def _start_next(self) -> bool:
        """Send the first rung of another trial; interrupted trials come before new ones."""
        if self._interrupted:
            begun = self.study.get_trials(deepcopy=False)[self._interrupted.pop(0)]
            trial, saved = self._trial(begun), load_rung(self.folder.trial(begun.number))
            reported = set(begun.intermediate_values)
        elif self._n_runs < self.config.search.n_trials:
            trial, saved, reported = self._ask(), None, set()
        else:
            return False
        active = _ActiveTrial(trial, trial.params, [], reported=reported)
        self.watcher.trial_started(trial.number)
        try:
            # The state on disk was trained without any parameter that joined the space since.
            if saved is None:
                active.params = suggest_params(self.study, trial, self.config.search, self.config.seed)
            active.all_rungs = trial_rungs(self.config, to_overrides(active.params, self.config.search.space))
        except ConfigError as error:
            # Some values are invalid, singly or in combination; of several lines the first only counts them.
            lines = str(error).splitlines()
            self._fail(active, "; ".join(line.strip() for line in lines[1:] or lines))
            return True
        if saved is None:
            self._begin(active)
            return True
        active.rungs = [epoch for epoch in active.all_rungs if epoch > saved.epoch]
        active.seconds = saved.seconds
        active.seconds_before = sum(saved.seconds.values())
        self._judge(active, saved)
        return True

    def _ask(self) -> optuna.Trial:
        number = self._n_asked
        if number == 0 and self.config.search.enqueue_default and not self.study.get_trials(deepcopy=False):
            params, outside = default_params(self.config)
            self.study.enqueue_trial(params, user_attrs={"is_default": not outside})
        self.study.sampler = make_sampler(self.config.search, self.config.seed, number)
        self._n_asked += 1
        self._n_runs += 1
        return self.study.ask()

    def _trial(self, frozen: FrozenTrial) -> optuna.Trial:
        self.study.sampler = make_sampler(self.config.search, self.config.seed, frozen.number)
        return optuna.Trial(self.study, frozen._trial_id)

    def _begin(self, active: _ActiveTrial) -> None:
        """Send the first rung, without a state."""
        active.rungs = list(active.all_rungs)
        self._send(active, None)

    def _send(self, active: _ActiveTrial, state: bytes | None) -> None:
        task = RungTask(
            number=active.trial.number,
            overrides=to_overrides(active.params, self.config.search.space, active.attributes),
            epoch=active.rungs.pop(0) if active.rungs else active.all_rungs[-1],
            state=state,
            replicate=len(active.runs),
        )
        self._active[self.workers.submit(task)] = active

    def _receive(self, active: _ActiveTrial, future: Future[RungResult]) -> None:
        try:
            result = future.result()
        except CheckpointError as error:
            logger.warning("trial %d is restarted: %s", active.trial.number, error)
            self._begin(active)
        else:
            self._take(active, result)

    def _take(self, active: _ActiveTrial, result: RungResult) -> None:
        """Write a rung's results, then continue its trial or end it."""
        self.folder.check_there()
        if not result.failure and not math.isfinite(result.value):
            result = replace(result, failure=f"the objective is {result.value}")
        active.seconds_before += sum(result.seconds.values())
        if result.failure and active.runs:
            logger.warning("trial %d: an additional run failed and is left out: %s", result.number, result.failure)
            active.trial.set_user_attr(FAILED_RUNS, 1)
            self._complete(active)
            return
        if result.failure:
            self._fail(active, result.failure)
            return
        active.seconds = {name: value + active.seconds.get(name, 0.0) for name, value in result.seconds.items()}
        halved = result.halved_batch_size or active.attributes.get(HALVED_BATCH_SIZE)
        peak = max(result.peak_memory_mb, active.attributes.get("peak_memory_mb") or 0.0)
        result = replace(result, seconds=active.seconds, halved_batch_size=halved, peak_memory_mb=peak)
        folder = replicate_folder(self.folder.trial(result.number), len(active.runs))
        save_rung(folder, result, active.params, self.dataset)
        saved = SavedRung(result.epoch, result.finished, result.value, trial_attributes(result), result.state)
        if active.runs:
            active.runs.append(saved)
            self._run_again_or_complete(active)
            return
        self._judge(active, saved)

    def _judge(self, active: _ActiveTrial, saved: SavedRung) -> None:
        """Report a finished rung, then prune the trial, continue it, or tell Optuna its result."""
        trial = active.trial
        active.attributes = saved.attributes
        self._note(active, saved.attributes)
        several = bool(self.config.search.objectives)
        if not several and saved.epoch not in active.reported:
            trial.report(saved.value, step=saved.epoch)
            active.reported.add(saved.epoch)
        if saved.finished or not active.rungs:
            active.rungs = []
            active.runs = [saved]
            if self.config.search.replicates > 1:
                active.runs += load_replicates(self.folder.trial(trial.number))
            self._run_again_or_complete(active)
        elif not several and trial.should_prune():
            self._tell(trial, TrialState.PRUNED, None)
        else:
            self._send(active, saved.state)

    def _run_again_or_complete(self, active: _ActiveTrial) -> None:
        """Racing: run a trial that may still beat the incumbent again, within the budget."""
        if len(active.runs) < self.config.search.replicates and self._n_runs < self.config.search.n_trials:
            others = list(run_values(self.study).values())
            # A trial whose further run failed was complete but not yet reported when the search was stopped.
            has_failed = FAILED_RUNS in active.trial.user_attrs
            if not has_failed and deserves_another_run([run.value for run in active.runs], others):
                self._n_runs += 1
                active.seconds = {}
                self._send(active, None)
                return
        self._complete(active)

    def _complete(self, active: _ActiveTrial) -> None:
        value, attributes = active.runs[0].value, active.runs[0].attributes
        if self.config.search.replicates > 1:
            value, attributes = pool_runs(active.runs)
        objectives = self.config.search.objectives
        self._note(active, {**attributes, OBJECTIVE: value} if objectives else attributes)
        if objectives:
            missing = [name for name in objectives if attributes.get(name) is None]
            if missing:
                self._fail(active, f"{', '.join(missing)} cannot be computed from these predictions")
                return
        self._tell(active.trial, TrialState.COMPLETE, [float(attributes[n]) for n in objectives] or value)

    def _note(self, active: _ActiveTrial, attributes: Mapping[str, Any]) -> None:
        """Write attributes that this process has not written yet, in one commit."""
        new = {name: value for name, value in attributes.items() if (name, value) not in active.noted.items()}
        if new:
            self._table.write(active.trial, new)
            active.noted |= new

    def _tell(self, trial: optuna.Trial, state: TrialState, value: float | list[float] | None) -> None:
        self.study.tell(trial, value, state=state)
        discard_states(self.folder.trial(trial.number))
        self._failures.clear()
        self._announce_end(trial.number)

    def _fail(self, active: _ActiveTrial, reason: str) -> None:
        trial = active.trial
        self._note(active, {"failure_reason": reason, SECONDS_TOTAL: round(active.seconds_before, 3)})
        self.study.tell(trial, state=TrialState.FAIL)
        discard_states(self.folder.trial(trial.number))
        logger.error("trial %d FAILED: %s", trial.number, reason)
        self._announce_end(trial.number)
        self._failures.append(reason)
        if len(self._failures) >= self.config.search.max_consecutive_failures:
            raise self._explain_failures(
                f"{len(self._failures)} trials in a row failed; the search stops.", self._failures
            )

    def _announce_end(self, number: int) -> None:
        ended = with_one_value(self.study.get_trials(deepcopy=False)[number])
        self.watcher.trial_ended(ended, count_runs(ended))

    def _refuse_failures_alone(self) -> None:
        trials = self.study.get_trials(deepcopy=False)
        failed = [trial for trial in trials if trial.state == TrialState.FAIL]
        if failed and not any(trial.state == TrialState.COMPLETE for trial in trials):
            reasons = [str(trial.user_attrs.get("failure_reason", "no reason was recorded")) for trial in failed]
            raise self._explain_failures(f"no trial is complete, {len(failed)} failed.", reasons)

    def _explain_failures(self, said: str, reasons: Sequence[str]) -> StudyError:
        """The common reason of several failures, where to read more, and how to continue."""
        common, count = Counter(reasons).most_common(1)[0]
        said = f"{said} {count} of them: {common}\n"
        if self.folder.comparison is not None:
            return StudyError(
                f"{said}If memory, time, a device or a disk was short, correct that and repeat the comparison's "
                "command; other settings, such as a lower search.space.lr_pretrain, need another --name"
            )
        return StudyError(
            f"{said}Details are in {self.folder.path.parent / 'logs'}; --n-trials 1 runs a single trial. If memory, "
            "time, a device or a disk was short, correct that (search.halve_batch_when_out_of_memory=true uses smaller "
            f"batches) and resume with: {self.folder.resume_command}\nOther settings, such as a lower "
            "search.space.lr_pretrain or training.precision=fp32, need a new study"
        )
