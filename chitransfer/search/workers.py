"""Where rungs run. The driver knows only `Workers`: submit a task, wait for some, stop.

`InProcessWorkers` is one thread beside the driver, so that signals are heard while a rung computes.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol

from chitransfer.config import Config
from chitransfer.data.assemble import Dataset
from chitransfer.search.objective import RungResult, RungTask, TrialRunner


class Workers(Protocol):
    """A place that runs rungs; results come back as futures whose errors are the worker's own."""

    @property
    def capacity(self) -> int:
        """How many rungs run at the same time."""

    def submit(self, task: RungTask) -> Future[RungResult]:
        """Start a rung."""

    def wait(self, futures: Collection[Future[RungResult]], timeout: float) -> set[Future[RungResult]]:
        """The futures that are done, after at most `timeout` seconds."""

    def close(self) -> None:
        """Give up what is running and free everything; may be called twice."""


class InProcessWorkers:
    """One rung at a time in a thread of this process."""

    capacity = 1

    def __init__(self, config: Config, dataset: Dataset) -> None:
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rung")
        self.runner = TrialRunner(
            config, dataset, n_threads=config.training.num_threads, stop_requested=self._stop.is_set
        )

    def submit(self, task: RungTask) -> Future[RungResult]:
        """Start a rung, or queue it behind the one running."""
        return self._pool.submit(self.runner.run, task)

    def wait(self, futures: Collection[Future[RungResult]], timeout: float) -> set[Future[RungResult]]:
        """The futures that are done, after at most `timeout` seconds."""
        return set(wait(futures, timeout=timeout, return_when=FIRST_COMPLETED).done)

    def close(self) -> None:
        """Stop the running rung at its next epoch and wait for that."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
