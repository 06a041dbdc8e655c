"""Where rungs run. The driver only knows `Workers`: submit a task, wait for some, give one up, stop.

`InProcessWorkers` is one thread beside the driver, so that signals are handled while a rung computes; `make_workers`
chooses between it, `pack_workers` and `dask_workers`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Protocol

import torch

from chitransfer.config import Config
from chitransfer.data.assemble import Dataset
from chitransfer.errors import ConfigError
from chitransfer.interrupts import COMPUTING
from chitransfer.search.objective import RungResult, RungTask
from chitransfer.search.runner import TrialRunner, refuse_lone_pairs
from chitransfer.training.settings import build_stage1_data, resolve_device

# Default number of trials per pack on a GPU: Stage 1 of ten takes little longer than that of one, and the sampler still
# learns from earlier packs.
PACK_ON_A_GPU = 10
# How long a rung that was given up may take to notice before the driver continues without it.
PATIENCE_SECONDS = 10.0
# Threads of such rungs that were still computing then.
_left_behind: set[threading.Thread] = set()
logger = logging.getLogger(__name__)


class Workers(Protocol):
    """A place that runs rungs; results are returned as futures whose errors are the worker's own."""

    @property
    def capacity(self) -> int:
        """How many rungs run at the same time."""

    def submit(self, task: RungTask) -> Future[RungResult]:
        """Start a rung."""

    def wait(self, futures: Collection[Future[RungResult]], timeout: float) -> set[Future[RungResult]]:
        """The futures that are done, after at most `timeout` seconds."""

    def running_seconds(self, future: Future[RungResult]) -> float | None:
        """How long a rung has been computing (its share, if computed with others); ``None`` while it waits."""

    def abandon(self, future: Future[RungResult]) -> None:
        """Give up a rung that takes too long; its worker can be used again afterwards."""

    def close(self) -> None:
        """Give up running rungs and free everything; may be called twice."""


def check_workers(config: Config) -> None:
    """Refuse settings that `make_workers` could not fulfil, before anything is written.

    Raises
    ------
    ConfigError
        The keys contradict each other, a device is missing, or the user's own Dask configuration cannot be read.
    """
    search = config.search
    if search.pack != "auto" and search.pack > 1 and not _is_one_process(config):
        raise ConfigError(
            f"search.pack {search.pack} trains trials together in the search's own process; it cannot be combined with "
            "search.scheduler, or with several search.workers or search.devices (set search.pack to 1)"
        )
    if not _is_one_process(config):
        _check_dask()
    if search.scheduler is None:
        for name in search.devices or [config.training.device]:
            resolve_device(name)
    elif search.devices or search.workers > 1:
        jobs = "set cluster.maximum_jobs, cluster.workers_per_job and cluster.gpus_per_job instead"
        raise ConfigError(
            "search.workers and search.devices apply to this machine and cannot be combined with search.scheduler "
            f"{search.scheduler}; {'leave them out' if '://' in search.scheduler else jobs}"
        )


def _check_dask() -> None:
    try:
        # Dask reads the files in the user's home and in DASK_CONFIG on import.
        import dask  # noqa: F401
    except ValueError as error:
        raise ConfigError(f"Dask's own configuration, ~/.config/dask or DASK_CONFIG: {error}") from error


def _is_one_process(config: Config) -> bool:
    return config.search.scheduler is None and max(config.search.workers, len(config.search.devices)) == 1


def make_workers(config: Config, dataset: Dataset, study_key: str) -> Workers:
    """The workers that a configuration asks for: in this process, on this machine, or on a cluster.

    Parameters
    ----------
    study_key
        Unique to the study, and the same when it is resumed; letters and digits.

    Raises
    ------
    ConfigError
        As in `check_workers`, or a package is missing.
    TrainingError
        As in `refuse_lone_pairs`.
    StudyError
        The scheduler does not answer.
    """
    check_workers(config)
    search, threads = config.search, config.training.num_threads
    if _is_one_process(config):
        device = resolve_device(search.devices[0] if search.devices else config.training.device)
        size = search.pack if search.pack != "auto" else PACK_ON_A_GPU if device.type == "cuda" else 1
        if size == 1:
            return InProcessWorkers(config, dataset, device=str(device))
        from chitransfer.search.pack_workers import PackWorkers

        return PackWorkers(config, dataset, size, device=str(device))
    if config.model.use_batchnorm:
        # Other processes would only report it once the study exists.
        refuse_lone_pairs(config, build_stage1_data(config, dataset, torch.device("cpu")))
    # Dask takes a second to import, and most searches do not need it.
    from chitransfer.search.clusters import BatchWorkers, JoinedWorkers, LocalWorkers
    from chitransfer.search.dask_workers import Cluster, DaskWorkers

    cluster: Cluster
    if search.scheduler is None:
        cluster = LocalWorkers(max(search.workers, len(search.devices)), tuple(search.devices), threads)
    elif "://" in search.scheduler:
        cluster = JoinedWorkers(search.scheduler, threads)
    else:
        cluster = BatchWorkers(search.scheduler, config.cluster, threads)
    return DaskWorkers(
        cluster,
        config,
        dataset,
        study_key=study_key,
        max_deaths=search.max_worker_deaths,
        wait_minutes=config.cluster.scheduler_wait_minutes,
    )


def describe_workers(workers: Workers, config: Config) -> list[str]:
    """Number of rungs at a time and where to watch them; empty for the single one in this process."""
    dashboard = getattr(workers, "dashboard", None)
    if dashboard is None:
        return []
    where = config.search.scheduler or "this machine"
    return [f"{workers.capacity} workers on {where}; Dask dashboard: {dashboard}"]


def wait_for_left_behind(minutes: float | None) -> None:
    """Wait until the rungs given up in this process have ended, which they do after the current epoch.

    Training draws from PyTorch's single generator per process, so two at once would not reproduce their seeds.

    Parameters
    ----------
    minutes
        `search.trial_timeout_minutes`; after as long again a rung is considered to hang and is no longer waited for.
        ``None``: no limit.
    """
    for thread in _left_behind - {threading.current_thread()}:
        thread.join(None if minutes is None else minutes * 60)
        if thread.is_alive():
            logger.warning("an abandoned trial does not end; its thread remains and keeps its memory")
        _left_behind.discard(thread)


@dataclass(eq=False)
class Job:
    """A rung in progress: whoever asked for it holds the future, and may give it up."""

    task: RungTask
    outcome: Future[RungResult] = field(default_factory=Future)
    give_up: threading.Event = field(default_factory=threading.Event)
    started: float | None = None


class InProcessWorkers:
    """One rung at a time in a thread of this process.

    Parameters
    ----------
    make_runner
        Called like `TrialRunner`.
    """

    capacity: int = 1

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        *,
        device: str | None = None,
        make_runner: Callable[..., TrialRunner] = TrialRunner,
    ) -> None:
        self._current = threading.local()
        self._timeout_minutes = config.search.trial_timeout_minutes
        self.runner = make_runner(
            config,
            dataset,
            device=device,
            n_threads=config.training.num_threads,
            stop_requested=self._is_given_up,
        )
        self._jobs: dict[Future[RungResult], Job] = {}
        self._start_thread()

    def submit(self, task: RungTask) -> Future[RungResult]:
        """Start a rung, or queue it behind the running one."""
        job = Job(task)
        self._jobs[job.outcome] = job
        self._queue.put([job])
        return job.outcome

    def wait(self, futures: Collection[Future[RungResult]], timeout: float) -> set[Future[RungResult]]:
        """The futures that are done, after at most `timeout` seconds."""
        done = set(wait(futures, timeout=timeout, return_when=FIRST_COMPLETED).done)
        for future in done:
            self._jobs.pop(future, None)
        return done

    def running_seconds(self, future: Future[RungResult]) -> float | None:
        """How long the rung has been computing; ``None`` while it is queued."""
        job = self._jobs.get(future)
        return None if job is None or job.started is None else time.monotonic() - job.started

    def abandon(self, future: Future[RungResult]) -> None:
        """Ask the rung to end after the current epoch; where that takes long, the next rung waits for it."""
        job = self._jobs.pop(future)
        job.give_up.set()
        wait([future], timeout=PATIENCE_SECONDS)
        if not future.done():
            logger.warning(
                ("trial %d does not respond yet; the next one waits for the end of its epoch"), job.task.number
            )
            self._queue.put(None)
            _left_behind.add(self._thread)
            self._start_thread()

    def close(self) -> None:
        """Stop the running rung after the current epoch and wait for that, but not for long."""
        for job in self._jobs.values():
            job.give_up.set()
        self._queue.put(None)
        self._thread.join(timeout=PATIENCE_SECONDS)
        if self._thread.is_alive():
            _left_behind.add(self._thread)
        self._jobs.clear()

    def _start_thread(self) -> None:
        self._queue: queue.SimpleQueue[Sequence[Job] | None] = queue.SimpleQueue()
        # A daemon, so that a hanging rung cannot keep the program from ending.
        self._thread = threading.Thread(target=self._work, args=(self._queue,), name=COMPUTING, daemon=True)
        self._thread.start()

    def _work(self, jobs: queue.SimpleQueue[Sequence[Job] | None]) -> None:
        while (together := jobs.get()) is not None:
            wait_for_left_behind(self._timeout_minutes)
            self._run_jobs(
                [job for job in together if not job.give_up.is_set() and job.outcome.set_running_or_notify_cancel()]
            )

    def _run_jobs(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.started = time.monotonic()
            try:
                job.outcome.set_result(self._run_alone(job))
            except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to whoever asked for the rung
                job.outcome.set_exception(error)

    def _is_given_up(self) -> bool:
        # Other code that uses the runner, in a thread of its own, has no job.
        job: Job | None = getattr(self._current, "job", None)
        return job is not None and job.give_up.is_set()

    def _run_alone(self, job: Job) -> RungResult:
        self._current.job = job
        return self.runner.run(job.task)
