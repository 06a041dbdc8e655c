"""A search through a real Slurm: a controller, a node and authentication, all this test's own, on this machine."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from searching import check_complete, read_trials, wait_for_trials

from chitransfer.config import dump_config, load_config

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
WHERE = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
MISSING = [name for name in PROGRAMS if shutil.which(name, path=WHERE) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(MISSING), reason=f"Slurm is not installed (no {', '.join(MISSING)}): slurm-wlm and munge"),
]
SETTINGS = """
ClusterName=chitransfer
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(n: int) -> list[int]:
    """Ports nothing listens on."""
    probes = [socket.socket() for _ in range(n)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_until(holds: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
    """Look twice a second."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.5)


class Slurm:
    """One node, one partition, every file in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = folder / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.settings), "PATH": WHERE, "OMP_NUM_THREADS": "1"}
        self.daemons: list[subprocess.Popen[bytes]] = []
        for name in ("state", "spool"):
            (folder / name).mkdir()
        self.settings.write_text(
            SETTINGS.format(
                host=socket.gethostname().partition(".")[0],
                ports=free_ports(2),
                user=pwd.getpwuid(os.getuid()).pw_name,
                folder=folder,
                cpus=os.cpu_count(),
                memory=int(psutil.virtual_memory().total / 2**20 * 0.9),
            )
        )
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))

    def start(self) -> None:
        places = ("socket", "pid-file", "log-file", "seed-file")
        files = [f"--{place}={self.folder / 'munge'}.{place.partition('-')[0]}" for place in places]
        self.start_daemon("munged", "--foreground", "--force", f"--key-file={self.folder / 'munge.key'}", *files)
        wait_until((self.folder / "munge.socket").exists, "munged listens")
        self.start_daemon("slurmctld", "-D")
        self.start_daemon("slurmd", "-D")
        wait_until(lambda: self.tell("sinfo", "-h", "-o", "%T") == "idle", f"the node is idle; see {self.folder}")

    def start_daemon(self, program: str, *words: str) -> None:
        with (self.folder / f"{program}.out").open("wb") as log:
            self.daemons.append(
                subprocess.Popen(
                    [str(shutil.which(program, path=WHERE)), *words],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self.environment,
                )
            )

    def tell(self, *words: str) -> str:
        """What a command of Slurm prints; empty when it fails."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout.strip() if done.returncode == 0 else ""

    def jobs(self) -> dict[int, str]:
        """The state of each job, those that ended a short while ago included."""
        lines = self.tell("scontrol", "-o", "show", "jobs").splitlines()
        fields = [dict(word.partition("=")[::2] for word in line.split()) for line in lines if "JobId=" in line]
        return {int(job["JobId"]): job["JobState"] for job in fields}

    def processes(self) -> list[psutil.Process]:
        """Whatever runs under this Slurm: daemons, steps and jobs."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURM_CONF") == str(self.settings):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def stop(self) -> list[str]:
        """End everything; what would not end by itself and had to be killed, by its command."""
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(30)
        left = []
        for process in self.processes():
            try:
                left.append(" ".join(process.cmdline()))
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return left


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    # A socket's path must be short, and every folder above it closed to others (or sticky).
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    slurm = Slurm(folder)
    try:
        slurm.start()
        yield slurm
    finally:
        left = slurm.stop()
    assert left == [], "Slurm is down and something of it still ran"
    shutil.rmtree(folder)


class Search:
    """`chitransfer search --scheduler slurm` as a user calls it."""

    def __init__(self, slurm: Slurm, tiny: dict[str, object], tmp_path: Path, n_trials: int) -> None:
        self.slurm, self.log = slurm, tmp_path / "search.log"
        self.folder = tmp_path / "results" / "hparam_search" / "batch"
        self.known = set(slurm.jobs())
        overrides = {
            **tiny,
            "search.sampler": "random",
            "search.rungs": [2],
            "search.max_worker_deaths": 10,
            "cluster.queue": "main",
            "cluster.walltime": "00:20:00",
            "cluster.cores": 1,
            "cluster.memory": "1GB",
            "cluster.interface": "lo",
            "cluster.local_directory": str(tmp_path / "scratch"),
            "cluster.minimum_jobs": 1,
            "cluster.maximum_jobs": 2,
        }
        settings = tmp_path / "tiny.yaml"
        settings.write_text(dump_config(load_config(None, overrides)), encoding="utf-8")
        words = ["search", "--config", str(settings), "--study-name", "batch", "--n-trials", str(n_trials)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "chitransfer", *words, "--scheduler", "slurm"],
                cwd=tmp_path,
                env=slurm.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def jobs(self) -> dict[int, str]:
        """The jobs of this search."""
        return {number: state for number, state in self.slurm.jobs().items() if number not in self.known}

    def finish(self) -> None:
        try:
            code = self.process.wait(400)
        finally:
            self.process.kill()
            self.process.wait()
        assert code == 0, self.log.read_text()
        wait_until(lambda: self.slurm.tell("squeue", "-h") == "", "all jobs are gone after the search")
        daemons = {daemon.pid for daemon in self.slurm.daemons}
        wait_until(lambda: {p.pid for p in self.slurm.processes()} == daemons, "only Slurm's daemons are left")


def test_jobs_of_slurm_compute_the_trials(slurm: Slurm, tiny: dict[str, object], tmp_path: Path) -> None:
    search = Search(slurm, tiny, tmp_path, n_trials=6)
    search.finish()
    check_complete(search.folder, 6)
    jobs = search.jobs()
    assert jobs
    assert set(jobs.values()) <= {"CANCELLED", "COMPLETED"}, jobs


def test_a_job_cancelled_in_the_middle_costs_no_trial(slurm: Slurm, tiny: dict[str, object], tmp_path: Path) -> None:
    search = Search(slurm, {**tiny, "training.num_epochs_pretrain": 40}, tmp_path, n_trials=8)
    try:
        wait_for_trials(search.folder / "study.db", 2)
        running = [number for number, state in search.jobs().items() if state == "RUNNING"]
        assert running
        n_ended = sum(t.state.is_finished() for t in read_trials(search.folder / "study.db"))
        slurm.tell("scancel", "--signal=KILL", "--full", str(running[0]))
        assert n_ended < 8, "too late to matter"
    finally:
        search.finish()
    check_complete(search.folder, 8)
    assert len(search.jobs()) >= 2, "no job took the place of the one cancelled"
