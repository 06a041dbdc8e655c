"""Workers, scheduler and driver that die, hang, run out of memory or lose the network while Dask carries the search."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from searching import check_complete, comparable, go_on, kill, read_trials, start_search, stop, wait_for_trials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def search(tiny: dict[str, object], tmp_path: Path) -> dict[str, object]:
    return {
        **tiny,
        "search.study_name": "faults",
        "search.sampler": "random",
        "search.n_trials": 8,
        "search.workers": 2,
        "search.rungs": [2],
        "paths.results_dir": str(tmp_path / "results"),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results" / "hparam_search" / "faults"


def dask_workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes under a driver, not their helpers: forked from its fork server, or spawned elsewhere."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            command = " ".join(child.cmdline())
            if "spawn_main" in command or ("multiprocessing.forkserver" in command and child.ppid() != pid):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def await_dask_workers_of(pid: int, n: int = 2) -> list[psutil.Process]:
    """The same as soon as there are so many of them."""
    deadline = time.monotonic() + 60
    while len(found := dask_workers_of(pid)) < n:
        assert time.monotonic() < deadline, f"{len(found)} of {n} workers"
        time.sleep(0.05)
    return found


def finish(process: object, timeout: float = 400) -> None:
    process.join(timeout)  # type: ignore[attr-defined]
    assert process.exitcode == 0  # type: ignore[attr-defined]


class _Configure:
    """Runs in the search's process: Dask's settings and this machine's memory as the test wants them."""

    def __init__(self, settings: Mapping[str, object], memory: int | None = None) -> None:
        self.settings, self.memory = dict(settings), memory

    def __call__(self) -> None:
        import dask
        from distributed import system

        dask.config.set(self.settings)
        if self.memory is not None:
            system.MEMORY_LIMIT = self.memory


def test_undisturbed(search: dict[str, object], folder: Path) -> None:
    """What the faults below cost is measured against this one."""
    finish(start_search(search))
    check_complete(folder, 8)


def test_one_worker_killed(search: dict[str, object], folder: Path) -> None:
    process = start_search(search)
    wait_for_trials(folder / "study.db", 1)
    await_dask_workers_of(process.pid or 0)[0].kill()
    finish(process)
    check_complete(folder, 8)


def test_all_workers_killed_twice(search: dict[str, object], folder: Path) -> None:
    process = start_search(search)
    for n_ended in (1, 3):
        wait_for_trials(folder / "study.db", n_ended)
        for worker in await_dask_workers_of(process.pid or 0):
            worker.kill()
    finish(process)
    check_complete(folder, 8)


def test_driver_killed_with_its_workers_at_work(search: dict[str, object], folder: Path) -> None:
    process = start_search(search)
    wait_for_trials(folder / "study.db", 2)
    workers = await_dask_workers_of(process.pid or 0)
    before = comparable([t for t in read_trials(folder / "study.db") if t.state.name == "COMPLETE"])
    kill(process)
    assert not psutil.wait_procs(workers, timeout=60)[1], "workers outlive their driver"
    finish(go_on(search, folder))
    check_complete(folder, 8)
    after = comparable(read_trials(folder / "study.db"))
    assert all(trial in after for trial in before)


def test_terminated_with_workers(search: dict[str, object], folder: Path) -> None:
    process = start_search(search)
    wait_for_trials(folder / "study.db", 1)
    assert stop(process, signal.SIGTERM) == 143
    finish(go_on(search, folder))
    check_complete(folder, 8)


HANG = """
import pathlib, time
from chitransfer.training import stage1
mark = pathlib.Path({mark!r})
# Dask runs a preloaded program twice.
if stage1.Stage1Run.train_to.__name__ != "hang_once":
    train = stage1.Stage1Run.train_to
    def hang_once(self, epoch):
        if {wanted}:
            try:
                mark.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                {fault}
        train(self, epoch)
    stage1.Stage1Run.train_to = hang_once
"""


def test_a_worker_that_hangs_is_started_anew(search: dict[str, object], folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "hang.py"
    program.write_text(HANG.format(mark=str(tmp_path / "hung"), wanted="True", fault="time.sleep(10_000)"))
    prepare = _Configure({"distributed.worker.preload": [str(program)]})
    finish(start_search({**search, "search.trial_timeout_minutes": 0.5}, prepare=prepare))
    states = [t.state.name for t in read_trials(folder / "study.db")]
    assert sorted(states) == ["COMPLETE"] * 7 + ["FAIL"]


def test_a_trial_that_takes_too_much_memory_fails_with_the_remedy(
    search: dict[str, object], folder: Path, tmp_path: Path
) -> None:
    program = tmp_path / "eat.py"
    greedy = "[bytearray(64 << 20) for _ in range(200) if not time.sleep(0.05)]"
    text = HANG.format(mark=str(tmp_path / "x"), wanted="self.settings.batch_size == 13", fault=greedy)
    program.write_text(text.replace("exist_ok=False", "exist_ok=True"))
    space = {"batch": {"key": "training.batch_size_dft", "type": "categorical", "choices": [13, 16]}}
    prepare = _Configure({"distributed.worker.preload": [str(program)]}, memory=3 * 2**30)
    finish(
        start_search(
            {
                **search,
                "search.space": space,
                "search.n_trials": 4,
                "search.max_worker_deaths": 2,
                "search.enqueue_default": False,
                "search.max_consecutive_failures": 50,
            },
            prepare=prepare,
        )
    )
    trials = read_trials(folder / "study.db")
    assert {trial.params["batch"] for trial in trials} == {13, 16}
    for trial in trials:
        greedy_trial = trial.params["batch"] == 13
        assert trial.state.name == ("FAIL" if greedy_trial else "COMPLETE")
        if greedy_trial:
            assert "its worker died 2 times" in trial.user_attrs["failure_reason"]
            assert "cluster.memory" in trial.user_attrs["failure_reason"]


# ---------------------------------------------------------------------------------------------------------------------
# A cluster that others started
# ---------------------------------------------------------------------------------------------------------------------

# A worker whose Python cannot import chitransfer: its code has to arrive with the study.
BARE = (
    "import sys; sys.path = [e for e in sys.path if e != {root!r}]; "
    "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; "
    "from distributed.cli.dask_worker import main; main()"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """A scheduler and workers as processes of their own, optionally in network namespaces."""

    def __init__(self, scratch: Path, root: Path, host: str = "127.0.0.1") -> None:
        self.scratch, self.root, self.host, self.port = scratch, root, host, free_port()
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        return f"tcp://{self.host}:{self.port}"

    def start(self, words: list[str], **settings: str) -> subprocess.Popen[bytes]:
        with (self.scratch / f"process{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                words,
                cwd=self.scratch,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **settings},
            )
        self.processes.append(process)
        return process

    def start_scheduler(self, **settings: str) -> subprocess.Popen[bytes]:
        words = ["-m", "distributed.cli.dask_scheduler", "--host", self.host, "--port", str(self.port)]
        return self.start([sys.executable, *words, "--no-dashboard"], **settings)

    def start_worker(self, *prefix: str) -> subprocess.Popen[bytes]:
        program = BARE.format(root=str(self.root))
        words = ["-c", program, self.address, "--no-nanny", "--nthreads", "1", "--no-dashboard"]
        return self.start([*prefix, sys.executable, *words, "--death-timeout", "120"])

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait(30)


@pytest.fixture
def cluster(tmp_path: Path, project_root: Path) -> Iterator[Cluster]:
    scratch = tmp_path / "cluster"
    scratch.mkdir()
    cluster = Cluster(scratch, project_root)
    yield cluster
    cluster.stop()


def joining(search: dict[str, object], cluster: Cluster) -> dict[str, object]:
    return {**search, "search.workers": 1, "search.scheduler": cluster.address}


def test_joining_workers_that_have_no_chitransfer(search: dict[str, object], folder: Path, cluster: Cluster) -> None:
    cluster.start_scheduler()
    for _ in range(2):
        cluster.start_worker()
    finish(start_search(joining(search, cluster)))
    check_complete(folder, 8)
    assert cluster.processes[0].poll() is None, "a cluster of others must be left running"


def test_scheduler_lost_and_back(search: dict[str, object], folder: Path, cluster: Cluster) -> None:
    scheduler, worker = cluster.start_scheduler(), cluster.start_worker()
    process = start_search(joining(search, cluster))
    wait_for_trials(folder / "study.db", 2)
    scheduler.kill()
    worker.kill()
    scheduler.wait()
    time.sleep(5)
    cluster.start_scheduler()
    cluster.start_worker()
    finish(process)
    check_complete(folder, 8)


@contextmanager
def network_hosts(names: list[str]) -> Iterator[str]:
    """Network namespaces joined to this one by a bridge; yields this machine's address on it."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    with ExitStack() as clean:
        try:
            ip("link", "add", "chibr", "type", "bridge")
            clean.callback(ip, "link", "del", "chibr")
            ip("addr", "add", "10.77.0.1/24", "dev", "chibr")
            ip("link", "set", "chibr", "up")
            for number, name in enumerate(names, start=2):
                ip("netns", "add", name)
                clean.callback(ip, "netns", "del", name)
                ip("link", "add", f"v{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
                ip("link", "set", f"v{name}", "master", "chibr", "up")
                ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
                ip("-n", name, "link", "set", "eth0", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except (subprocess.CalledProcessError, FileNotFoundError):
            pytest.skip("network namespaces cannot be made here")
        yield "10.77.0.1"


def test_a_host_that_falls_off_the_network(search: dict[str, object], folder: Path, cluster: Cluster) -> None:
    with network_hosts(["chia", "chib"]) as host:
        cluster.host = host
        cluster.start_scheduler(DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="15s")
        for name in ("chia", "chib"):
            cluster.start_worker("ip", "netns", "exec", name)
        try:
            process = start_search({**joining(search, cluster), "search.n_trials": 10})
            wait_for_trials(folder / "study.db", 2)
            subprocess.run(["ip", "link", "set", "vchia", "down"], check=True)
            finish(process)
        finally:
            cluster.stop()
    check_complete(folder, 10)
