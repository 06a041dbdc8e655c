"""Where Dask workers come from: this machine, a running cluster, or jobs of a batch system.

Used by `workers.make_workers`; the code below takes plain settings.
"""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import socket
import sys
import tempfile
from contextlib import ExitStack, suppress
from typing import Any

import dask
from distributed import LocalCluster, Security, system
from distributed.utils import get_mp_context

from chitransfer.errors import ConfigError, StudyError, say_install
from chitransfer.interrupts import same_interrupts
from chitransfer.processors import count_processors
from chitransfer.search import preload
from chitransfer.sections import ClusterSettings

DASHBOARD_PORT = 8787
START_ATTEMPTS = 3
# A worker's death is reported at once and counted by the search (Dask's own count is per task, not per rung).
OUR_SCHEDULER = {"distributed.scheduler.allowed-failures": 0}
# Seconds before the end of a job's walltime at which its worker hands over its work.
FAREWELL_SECONDS = 90
# Bytes that every Unix allows for a socket's path, and those that multiprocessing appends to the temporary folder.
SOCKET_PATH_BYTES = 107
SOCKET_NAME_BYTES = len("/pymp-xxxxxxxx/listener-xxxxxxxx")
SUBMIT_COMMANDS = {"slurm": "sbatch", "pbs": "qsub", "lsf": "bsub", "sge": "qsub"}
JOB_CLASSES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster"}
logger = logging.getLogger(__name__)


class LocalWorkers:
    """One process per worker on this machine, supervised by a nanny that restarts it when it dies.

    Parameters
    ----------
    n_workers
        Number of rungs at a time.
    devices
        Assigned to the workers in turn; empty: the configuration's device for all.
    num_threads
        Threads per worker; 0 divides the machine's processors evenly.
    """

    def __init__(self, n_workers: int, devices: tuple[str, ...], num_threads: int) -> None:
        self.capacity: int | None = n_workers
        self.devices = devices
        self.n_threads = num_threads or max(1, count_processors() // n_workers)
        self._settings = ExitStack()
        self._settings.enter_context(dask.config.set(prepare_forking()))
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                self._cluster = _start_local(n_workers)
                break
            except RuntimeError as error:
                # A worker that dies during startup (out of memory, say) takes the whole Dask cluster down with it.
                logger.warning("the workers did not start (%s), attempt %d of %d", error, attempt, START_ATTEMPTS)
                if attempt == START_ATTEMPTS:
                    self._settings.close()
                    raise StudyError(
                        f"search.workers: {n_workers} worker processes cannot be started on this machine "
                        f"({describe_chain(error)}); try fewer, or check whether memory is short"
                    ) from error
        self.address = str(self._cluster.scheduler_address)

    def close(self) -> None:
        """Stop the workers and the scheduler."""
        self._cluster.close(timeout=10)
        self._settings.close()


def prepare_forking() -> dict[str, str]:
    """Dask settings that fork workers from a process that has already imported all they need.

    Otherwise every worker, restarted ones included, spends seconds importing PyTorch and the rest. Linux only, since
    forking is unsafe or untested elsewhere; and only if the path of the temporary folder is short enough for the socket
    through which new workers are requested.
    """
    if sys.platform != "linux":
        return {}
    if len(os.fsencode(tempfile.gettempdir())) + SOCKET_NAME_BYTES > SOCKET_PATH_BYTES:
        return {"distributed.worker.multiprocessing-method": "spawn"}
    method = {"distributed.worker.multiprocessing-method": "forkserver"}
    with dask.config.set(method):
        context = get_mp_context()  # sets Dask's own choice of modules, which the next line replaces
    # torch._dynamo: PyTorch's optimisers import it on first use, which takes a core two seconds.
    context.set_forkserver_preload(["distributed", "chitransfer.search.runner", "torch._dynamo"])
    return method


def describe_chain(error: BaseException) -> str:
    """The messages of an error and of its causes in turn; Dask's own error only says that another one caused it."""
    said = [str(error) or type(error).__name__]
    while (error := error.__cause__) is not None:  # type: ignore[assignment]
        said.append(str(error) or type(error).__name__)
    return ": ".join(said)


def _start_local(n_workers: int) -> LocalCluster:
    with dask.config.set(OUR_SCHEDULER):
        return LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=f"127.0.0.1:{free_dashboard_port()}",
            worker_dashboard_address=None,
            memory_limit=int(system.MEMORY_LIMIT / n_workers),
            preload=[*dask.config.get("distributed.worker.preload"), preload.__name__],
            silence_logs=50,
        )


class JoinedWorkers:
    """The workers of a Dask cluster started by others; `search.devices` cannot be resolved there.

    Raises
    ------
    ConfigError
        The address asks for certificates, and those of Dask's configuration are missing or cannot be read.
    """

    capacity: int | None = None
    devices: tuple[str, ...] = ()

    def __init__(self, address: str, num_threads: int) -> None:
        self.address, self.n_threads = address, num_threads
        if address.startswith("tls://"):
            refuse_missing_certificates(address)

    def close(self) -> None:
        """Leave the cluster running: it is not ours."""


def refuse_missing_certificates(address: str) -> None:
    """Refuse an address of TLS without what it takes, at which Dask's client breaks off with an error of its own.

    Raises
    ------
    ConfigError
        A file of ``distributed.comm.tls`` is not named, or cannot be read.
    """
    try:
        if Security().get_connection_args("client")["ssl_context"] is not None:
            return
        problem = "not all are named"
    except OSError as error:
        problem = str(error)
    raise ConfigError(
        f"search.scheduler: {address} needs certificates ({problem}); set distributed.comm.tls.ca-file, client.cert "
        "and client.key in Dask's configuration"
    )


class BatchWorkers:
    """Jobs on Slurm, PBS, LSF or SGE through dask-jobqueue, between a minimum and a maximum number.

    Raises
    ------
    ConfigError
        dask-jobqueue is not installed, or cannot build a job from the settings.
    StudyError
        The batch system's commands are not available on this machine.
    """

    def __init__(self, system: str, settings: ClusterSettings, num_threads: int) -> None:
        self.capacity: int | None = settings.maximum_jobs * settings.workers_per_job
        shares_gpus = settings.gpus_per_job > 1 and settings.workers_per_job > 1
        self.devices = tuple(f"cuda:{i}" for i in range(settings.gpus_per_job)) if shares_gpus else ()
        self.n_threads = num_threads or max(1, settings.cores // settings.workers_per_job)
        try:
            with same_interrupts():
                jobqueue = importlib.import_module("dask_jobqueue")
        except ImportError as error:
            raise ConfigError(f"search.scheduler: {system} needs dask-jobqueue; {say_install('cluster')}") from error
        if shutil.which(SUBMIT_COMMANDS[system]) is None:
            raise StudyError(
                f"search.scheduler: {system} is not available on this machine ({SUBMIT_COMMANDS[system]} was not "
                "found); run the search where its commands are available, such as a login node"
            )
        try:
            with dask.config.set(OUR_SCHEDULER):
                self._cluster = getattr(jobqueue, JOB_CLASSES[system])(**job_options(system, settings))
            try:
                # The first jobs are submitted synchronously, so that a refusal is noticed.
                self._cluster.sync(_hand_over, self._cluster, max(1, settings.minimum_jobs))
                self._cluster.adapt(minimum_jobs=settings.minimum_jobs, maximum_jobs=settings.maximum_jobs)
            except BaseException:
                # Dask raises an AssertionError when it closes jobs that never started; by then the scheduler is gone.
                with suppress(AssertionError, OSError):
                    self._cluster.close(timeout=20)
                raise
        except (ValueError, TypeError) as error:
            raise ConfigError(f"cluster: {system} jobs cannot be created from these settings ({error})") from error
        except (OSError, RuntimeError) as error:
            raise StudyError(
                f"search.scheduler: {system} rejected the job; correct the cluster section\n{error}"
            ) from error
        self.address = str(self._cluster.scheduler_address)

    def close(self) -> None:
        """Cancel the jobs and end the scheduler."""
        self._cluster.close(timeout=20)


async def _hand_over(cluster: Any, n_jobs: int) -> None:
    # `scale` would do the same in the background, where a refusal only ends up in a log.
    while len(cluster.worker_spec) < n_jobs:
        cluster.worker_spec.update(cluster.new_worker_spec())
    await cluster


def job_options(system: str, settings: ClusterSettings) -> dict[str, Any]:
    """Arguments for dask-jobqueue's cluster classes."""
    directives = [*gpu_directives(system, settings.gpus_per_job), *settings.directives]
    options: dict[str, Any] = {
        "queue": settings.queue,
        "walltime": format_walltime(system, settings.walltime),
        "cores": settings.cores,
        "memory": settings.memory,
        "processes": settings.workers_per_job,
        "job_extra_directives": directives,
        "job_script_prologue": list(settings.setup),
        "worker_extra_args": [
            "--lifetime", f"{max(60, walltime_seconds(settings.walltime) - FAREWELL_SECONDS)}s",
            "--no-dashboard",
        ],
        "scheduler_options": {"dashboard_address": f"127.0.0.1:{free_dashboard_port()}"},
        "local_directory": settings.local_directory,
    }  # fmt: skip
    if settings.interface is not None:
        options["interface"] = settings.interface
    if settings.python is not None:
        options["python"] = settings.python
    if settings.account is not None:
        options["project" if system in {"lsf", "sge"} else "account"] = settings.account
    if system == "lsf":
        # LSF counts slots.
        options["ncpus"] = settings.cores
    if system == "pbs" and settings.gpus_per_job:
        # Imported here, as only clusters need this package. PBS accepts only whole numbers.
        from dask_jobqueue.pbs import pbs_format_bytes_ceil

        memory = pbs_format_bytes_ceil(dask.utils.parse_bytes(settings.memory))
        options["resource_spec"] = f"select=1:ncpus={settings.cores}:mem={memory}:ngpus={settings.gpus_per_job}"
    return options


def gpu_directives(system: str, n_gpus: int) -> list[str]:
    """Directives that request GPUs from each batch system; PBS uses its resource line instead."""
    if n_gpus == 0:
        return []
    return {
        "slurm": [f"--gres=gpu:{n_gpus}"],
        "lsf": [f"-gpu num={n_gpus}"],
        "sge": [f"-l gpu={n_gpus}"],
        "pbs": [],
    }[system]


def walltime_seconds(walltime: str) -> int:
    """Seconds of ``[days-]hours:minutes[:seconds]``.

    >>> walltime_seconds("1-02:00:30")
    93630
    """
    days, _, clock = walltime.rpartition("-")
    hours, minutes, *seconds = (int(part) for part in clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + (seconds[0] if seconds else 0)


def format_walltime(system: str, walltime: str) -> str:
    """The same time in the format of the batch system: hours, minutes and seconds; LSF without seconds, rounded up.

    Slurm would read ``04:00`` as minutes and seconds, and the others have no days.

    >>> format_walltime("slurm", "04:00"), format_walltime("lsf", "2-00:00:30")
    ('04:00:00', '48:01')
    """
    seconds = walltime_seconds(walltime)
    if system == "lsf":
        minutes = -(-seconds // 60)
        return f"{minutes // 60:02d}:{minutes % 60:02d}"
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def free_dashboard_port() -> int:
    """Dask's usual port on this machine's own address, or any free port if that is taken."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", DASHBOARD_PORT))
        except OSError:
            return 0
    return DASHBOARD_PORT
