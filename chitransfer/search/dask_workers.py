"""Rungs on Dask workers: on this machine, on a running Dask cluster, or in jobs on a batch system.

Made by `workers.make_workers`; the driver sees only the `Workers` protocol.
"""

from __future__ import annotations

import logging
import pickle
import time
import uuid
import warnings
from collections.abc import Collection
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cloudpickle  # type: ignore[import-untyped]
from distributed.client import Client
from distributed.scheduler import KilledWorker

import chitransfer
from chitransfer.config import Config
from chitransfer.data.assemble import Dataset
from chitransfer.errors import StudyError
from chitransfer.search import remote
from chitransfer.search.objective import RungResult, RungTask

POLL_SECONDS = 0.02
CONNECT_SECONDS = 2.0
RESULT_SECONDS = 10.0
SILENCE_SECONDS = 30.0
# A worker that dies before it begins a rung died of something else, as all workers of a machine that goes down. The
# limit, in multiples of `max_deaths`, ends rungs that kill every worker while they are read.
IDLE_DEATHS_PER_DEATH = 10
logger = logging.getLogger(__name__)


class Cluster(Protocol):
    """Where the workers are; see `clusters`."""

    address: str
    capacity: int | None
    devices: tuple[str, ...]
    n_threads: int

    def close(self) -> None:
        """Stop what was started for this search."""


@dataclass(eq=False)
class _Flight:
    """A rung in progress: the future the driver waits for, and Dask's own."""

    task: RungTask
    outcome: Future[RungResult]
    key: str = ""
    dask: Any = None
    deaths: int = 0
    idle_deaths: int = 0
    started: float | None = None
    worker: str = ""


class DaskWorkers:
    """Sends rungs through a Dask scheduler; a rung whose worker died is sent again from its last checkpoint.

    Parameters
    ----------
    cluster
        Where the workers are.
    study_key
        Unique to the study, and the same when it is resumed.
    max_deaths
        Number of workers that may die computing a rung before its trial is given up.
    wait_minutes
        How long to wait for a lost scheduler.
    """

    def __init__(
        self,
        cluster: Cluster,
        config: Config,
        dataset: Dataset,
        *,
        study_key: str,
        max_deaths: int,
        wait_minutes: float,
    ) -> None:
        self._cluster = cluster
        self._max_deaths, self._wait_seconds = max_deaths, wait_minutes * 60
        self._flights: dict[Future[RungResult], _Flight] = {}
        self._scheduler_id = ""
        self._lost_since: float | None = None
        self._alone_since: float | None = time.monotonic()
        self._n_workers, self._counted = 0, 0.0
        self._closed = False
        cloudpickle.register_pickle_by_value(remote)
        self._plugin = remote.StudyPlugin(
            name=f"chitransfer-{study_key}",
            package=remote.pack_package(Path(chitransfer.__file__).parent),
            payload=remote.pack_payload(config, dataset),
            devices=cluster.devices,
            n_threads=cluster.n_threads,
        )
        try:
            self._client = self._connect(30.0)
            self._bring_study()
        except BaseException:
            cluster.close()
            raise

    @property
    def capacity(self) -> int:
        """Number of rungs at a time: the cluster's own figure, or one for each worker currently connected."""
        if self._cluster.capacity is not None:
            return self._cluster.capacity
        if time.monotonic() - self._counted > 2.0:
            self._count_workers()
        return max(1, self._n_workers)

    @property
    def dashboard(self) -> str:
        """Address of Dask's dashboard; that of our own scheduler listens on this machine only."""
        link = str(self._client.dashboard_link)
        if self._cluster.capacity is None:
            return link
        return f"http://127.0.0.1:{link.rpartition(':')[2]}"

    def submit(self, task: RungTask) -> Future[RungResult]:
        """Send a rung to any free worker."""
        flight = _Flight(task, Future())
        flight.outcome.set_running_or_notify_cancel()
        self._flights[flight.outcome] = flight
        self._send(flight)
        return flight.outcome

    def wait(self, futures: Collection[Future[RungResult]], timeout: float) -> set[Future[RungResult]]:
        """The futures that are done, after at most about `timeout` seconds.

        Raises
        ------
        StudyError
            The scheduler was away for longer than `wait_minutes`.
        """
        deadline = time.monotonic() + timeout
        while True:
            for future in futures:
                if not future.done() and future in self._flights:
                    self._look_at(self._flights[future])
            done = {future for future in futures if future.done()}
            if done or time.monotonic() >= deadline:
                for future in done:
                    self._flights.pop(future, None)
                if not done:
                    self._mention_loneliness()
                return done
            time.sleep(POLL_SECONDS)

    def running_seconds(self, future: Future[RungResult]) -> float | None:
        """How long the rung has been computing; ``None`` while it waits for a worker."""
        flight = self._flights.get(future)
        return None if flight is None or flight.started is None else time.monotonic() - flight.started

    def abandon(self, future: Future[RungResult]) -> None:
        """Give up a rung that hangs: its worker process is killed and restarted by its nanny."""
        flight = self._flights.pop(future)
        self._cancel(flight)
        try:
            self._client.restart_workers([flight.worker], timeout=60, raise_for_error=False)
        except (ValueError, KeyError, OSError, TimeoutError) as error:
            logger.warning("worker %s could not be restarted (%s); it may still be busy", flight.worker, error)

    def close(self) -> None:
        """Give up running rungs and free everything; may be called twice."""
        if self._closed:
            return
        self._closed = True
        try:
            for flight in self._flights.values():
                self._cancel(flight)
            if self._client.status == "running":
                self._client.unregister_worker_plugin(self._plugin.name)
        except (OSError, ValueError, TimeoutError, CancelledError) as error:
            logger.debug("the study could not be removed from the scheduler: %s", error)
        finally:
            try:
                self._client.close(timeout=5)
            except (OSError, TimeoutError, CancelledError) as error:
                logger.debug("the connection to the scheduler could not be closed: %s", error)
            finally:
                self._cluster.close()

    # -----------------------------------------------------------------------------------------------------------------

    def _connect(self, timeout: float) -> Client:
        try:
            client = Client(self._cluster.address, timeout=timeout, set_as_default=False, name="chitransfer")
        except (OSError, TimeoutError) as error:
            raise StudyError(
                f"search.scheduler: no Dask scheduler answers at {self._cluster.address} ({error}); "
                "start one with `dask scheduler` or correct the address"
            ) from error
        client.subscribe_topic(self._plugin.name, self._note_start)
        return client

    def _bring_study(self) -> None:
        """Put the study on the scheduler unless this scheduler already has it."""
        identity = str(self._client.scheduler_info(n_workers=0)["id"])
        if identity != self._scheduler_id:
            self._client.register_plugin(self._plugin, name=self._plugin.name)
            self._scheduler_id = identity

    def _note_start(self, event: Any) -> None:
        _, what = event
        for flight in list(self._flights.values()):
            if flight.key == what["key"]:
                flight.started, flight.worker = time.monotonic(), what["worker"]

    def _send(self, flight: _Flight) -> None:
        flight.key = f"rung-{flight.task.number}-{flight.task.epoch}-{uuid.uuid4().hex[:12]}"
        flight.started, flight.worker, flight.dask = None, "", None
        if self._client.status != "running":
            return
        with warnings.catch_warnings():
            # A large network's state goes to one worker, once, so there is nothing to share beforehand.
            warnings.filterwarnings("ignore", message="Sending large graph")
            run_rung = remote.run_rung
            flight.dask = self._client.submit(
                # The lambda and what it calls are pickled by value, so a worker can read the task without chitransfer.
                lambda *words: run_rung(*words),
                self._plugin.name,
                flight.key,
                pickle.dumps(flight.task),
                key=flight.key,
                pure=False,
            )

    def _cancel(self, flight: _Flight) -> None:
        if flight.dask is not None and self._client.status == "running":
            self._client.cancel([flight.dask], force=True, asynchronous=False)

    def _look_at(self, flight: _Flight) -> None:
        """Complete a rung that has ended, resend one that was lost."""
        status = "lost" if flight.dask is None else flight.dask.status
        if status == "pending":
            return
        if status in {"lost", "cancelled"} or self._client.status != "running":
            self._recover(flight)
        elif status == "finished":
            self._take_result(flight)
        else:
            self._take_error(flight)

    def _take_result(self, flight: _Flight) -> None:
        try:
            result = flight.dask.result(timeout=RESULT_SECONDS)
        except (TimeoutError, CancelledError, OSError):
            return  # The worker died with the result; Dask recomputes it, or the next look finds it lost.
        except KilledWorker:
            self._take_error(flight)  # It died with the result, and so did the one that recomputed it.
            return
        if result is None:
            self._scheduler_id = ""
            self._recover(flight)
        else:
            flight.outcome.set_result(pickle.loads(result))

    def _take_error(self, flight: _Flight) -> None:
        try:
            error = flight.dask.exception(timeout=RESULT_SECONDS)
        except (TimeoutError, CancelledError, OSError):
            return
        if not isinstance(error, KilledWorker):
            flight.outcome.set_exception(error)
            return
        has_begun = flight.started is not None
        flight.deaths += has_begun
        flight.idle_deaths += not has_begun
        if flight.deaths < self._max_deaths and flight.idle_deaths < IDLE_DEATHS_PER_DEATH * self._max_deaths:
            if has_begun:
                logger.warning(
                    "trial %d: its worker died before Stage 1 epoch %d; the rung is resubmitted (%d of %d)",
                    flight.task.number, flight.task.epoch, flight.deaths, self._max_deaths,
                )  # fmt: skip
            self._send(flight)
            return
        flight.outcome.set_result(
            RungResult(
                number=flight.task.number,
                epoch=0,
                finished=True,
                failure=(
                    f"its worker died {flight.deaths + flight.idle_deaths} times before Stage 1 epoch "
                    f"{flight.task.epoch}, most likely because it ran out of memory; give workers more "
                    "(cluster.memory, fewer search.workers), or lower training.batch_size_dft; on preempted "
                    "machines raise search.max_worker_deaths or add search.rungs"
                ),
            )
        )

    def _recover(self, flight: _Flight) -> None:
        """Either the scheduler lost the rung or we lost the scheduler: reconnect, then send the rung again."""
        if self._lost_since is None:
            self._lost_since = time.monotonic()
            logger.warning("the connection to the Dask scheduler was lost; trying to reconnect")
        try:
            if self._client.status in {"closed", "closing"}:
                self._client = self._connect(CONNECT_SECONDS)
            if self._client.status == "running":
                self._bring_study()
                self._send(flight)
                self._lost_since = None
                return
        except (StudyError, OSError, TimeoutError, CancelledError) as error:
            logger.debug("the scheduler still does not answer: %s", error)
        if self._lost_since is not None and time.monotonic() - self._lost_since > self._wait_seconds:
            raise StudyError(
                f"the Dask scheduler at {self._cluster.address} was lost and did not come back within "
                f"{self._wait_seconds / 60:g} minutes (cluster.scheduler_wait_minutes); start one there and resume. "
                "All finished trials are kept"
            )

    def _count_workers(self) -> None:
        self._counted = time.monotonic()
        try:
            self._n_workers = len(self._client.nthreads())
        except (OSError, TimeoutError, CancelledError, AttributeError):
            return

    def _mention_loneliness(self) -> None:
        """Report once that no worker has been connected for a while."""
        if time.monotonic() - self._counted > 5.0 and self._client.status == "running":
            self._count_workers()
        if self._n_workers:
            self._alone_since = time.monotonic()
        elif self._alone_since is not None and time.monotonic() - self._alone_since > SILENCE_SECONDS:
            logger.warning("no worker has joined the scheduler at %s yet; waiting", self._cluster.address)
            self._alone_since = None
