"""Rungs of several trials trained as one program, in this process.

Made by `workers.make_workers`; the driver sees only the `Workers` protocol.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from chitransfer.config import Config
from chitransfer.data.assemble import Dataset
from chitransfer.search.memory import reset_peak_memory
from chitransfer.search.objective import RungResult, RungTask
from chitransfer.search.runner import (
    Cancelled,
    Stage2MemoryError,
    TrialRunner,
    describe_failure,
    fails_trial,
)
from chitransfer.search.workers import InProcessWorkers, Job
from chitransfer.shortage import is_out_of_memory
from chitransfer.training.packed import train_together
from chitransfer.training.stage1 import Stage1Run

logger = logging.getLogger(__name__)


class PackWorkers(InProcessWorkers):
    """Up to `size` rungs at a time in a thread of this process, their Stage 1 trained as one program.

    Tasks are collected until the driver waits and no pack is running; they are then trained together, and their results
    are returned at the same moment. So the next pack is full again, and which trials share a pack does not depend on
    how fast anything runs.

    Parameters
    ----------
    size
        Rungs per pack.
    make_runner
        Called like `TrialRunner`.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        size: int,
        *,
        device: str | None = None,
        make_runner: Callable[..., TrialRunner] = TrialRunner,
    ) -> None:
        super().__init__(config, dataset, device=device, make_runner=make_runner)
        self.capacity = self.runner.n_kept = size
        self._collected: list[Job] = []
        self._under_way: list[Job] = []
        self._delivering = threading.Lock()

    def submit(self, task: RungTask) -> Future[RungResult]:
        """Add a rung to the next pack."""
        job = Job(task)
        self._jobs[job.outcome] = job
        self._collected.append(job)
        return job.outcome

    def wait(self, futures: Collection[Future[RungResult]], timeout: float) -> set[Future[RungResult]]:
        """The futures that are done, after at most `timeout` seconds: all of a pack or none."""
        if self._collected and all(job.outcome.done() or job.give_up.is_set() for job in self._under_way):
            self._under_way, self._collected = self._collected, []
            self._queue.put(self._under_way)
        wait(futures, timeout=timeout, return_when=FIRST_COMPLETED)
        with self._delivering:
            return super().wait(futures, 0.0)

    def running_seconds(self, future: Future[RungResult]) -> float | None:
        """A rung's share of its pack's computing time; ``None`` while the rung is waiting for its pack."""
        seconds = super().running_seconds(future)
        return None if seconds is None else seconds / len(self._under_way)

    def abandon(self, future: Future[RungResult]) -> None:
        """Drop a rung from its pack after the current epoch; where that takes long, the next pack waits for it."""
        self._collected = [job for job in self._collected if job.outcome is not future]
        super().abandon(future)

    # -----------------------------------------------------------------------------------------------------------------
    # In the thread
    # -----------------------------------------------------------------------------------------------------------------

    def _run_jobs(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.started = time.monotonic()
        try:
            outcomes = self._run_pack(jobs)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to whoever asked for the rungs
            outcomes = [error] * len(jobs)
        with self._delivering:
            for job, outcome in zip(jobs, outcomes, strict=True):
                if job.outcome.done():
                    continue
                if isinstance(outcome, RungResult):
                    job.outcome.set_result(outcome)
                else:
                    job.outcome.set_exception(outcome)

    def _run_pack(self, jobs: Sequence[Job]) -> list[RungResult | BaseException]:
        """Results or errors, in the order of the jobs; a pack that runs out of memory is retried with fewer members."""
        outcomes: list[RungResult | BaseException | None] | None
        try:
            outcomes = self._train_and_score(jobs)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            outcomes = None
        # Outside the except block, so that the traceback no longer holds the failed attempt's tensors.
        if outcomes is not None:
            return [
                self._try_alone(job) if outcome is None else outcome
                for job, outcome in zip(jobs, outcomes, strict=True)
            ]
        if len(jobs) == 1:
            return [self._try_alone(jobs[0])]
        self.runner.free_memory()
        half = len(jobs) // 2
        logger.warning("out of memory with %d trials in a pack (search.pack); retrying with %d", len(jobs), half)
        return [*self._run_pack(jobs[:half]), *self._run_pack(jobs[half:])]

    def _try_alone(self, job: Job) -> RungResult | BaseException:
        """Result or error of a rung that shares the memory with no other rung."""
        if _gives_up(job):
            return Cancelled()
        self.runner.free_memory()
        try:
            return self._run_alone(job)
        except Exception as error:  # noqa: BLE001 - it is this trial's alone
            _gives_up(job)
            return error

    def _train_and_score(self, jobs: Sequence[Job]) -> list[RungResult | BaseException | None]:
        """Results or errors of a pack; ``None`` where memory was too short to score a member beside the others."""
        started = time.perf_counter()
        reset_peak_memory(self.runner.device)
        runs_of: dict[int, list[Stage1Run]] = {}
        errors: dict[int, BaseException] = {}
        for number, job in enumerate(jobs):
            try:
                runs_of[number] = self.runner.start(job.task)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                # An error such as a damaged state concerns that trial only.
                errors[number] = error
        owners = [number for number, runs in runs_of.items() for _ in runs]
        failures = train_together(
            [run for runs in runs_of.values() for run in runs],
            [jobs[number].task.epoch for number in owners],
            gave_up=lambda position: _gives_up(jobs[owners[position]]),
        )
        for position, failure in failures.items():
            errors.setdefault(owners[position], failure)
        # Each member's share, so that the seconds of all trials add up to those of the search.
        share = (time.perf_counter() - started) / len(jobs)
        return [self._score(job, runs_of.get(number, []), errors.get(number), share) for number, job in enumerate(jobs)]

    def _score(
        self, job: Job, runs: Sequence[Stage1Run], error: BaseException | None, stage1_seconds: float
    ) -> RungResult | BaseException | None:
        if _gives_up(job):
            return Cancelled()
        try:
            if error is not None:
                raise error
            self._current.job = job
            return self.runner.score(job.task, runs, stage1_seconds)
        except Stage2MemoryError as shortage:
            logger.warning("trial %d in a pack (search.pack): %s; retrying alone", job.task.number, str(shortage))
            # Not the error, because its traceback holds the member's runs.
            return None
        except Exception as other:  # noqa: BLE001 - as in `InProcessWorkers`
            if fails_trial(other):
                return describe_failure(job.task, other, stage1_seconds)
            _gives_up(job)
            return other


def _gives_up(job: Job) -> bool:
    """Whether a rung was given up; if so, its waiting caller is notified at once."""
    if job.give_up.is_set() and not job.outcome.done():
        job.outcome.set_exception(Cancelled())
    return job.give_up.is_set()
