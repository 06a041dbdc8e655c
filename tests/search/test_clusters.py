"""Jobs of batch systems: their scripts say what the configuration says, and what comes to nothing is taken down."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chitransfer.config import load_config
from chitransfer.errors import ConfigError, StudyError
from chitransfer.search import clusters
from chitransfer.search.clusters import (
    BatchWorkers,
    LocalWorkers,
    gpu_directives,
    job_options,
    prepare_forking,
    walltime_seconds,
)
from chitransfer.search.workers import make_workers
from chitransfer.sections import ClusterSettings


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:10", 600), ("04:00:00", 14400), ("1-02:00:30", 93630), ("100:00:00", 360000)]
)
def test_walltimes(text: str, seconds: int) -> None:
    assert walltime_seconds(text) == seconds


@pytest.mark.parametrize("walltime", ["02:00:00", "02:00", "0-2:00"])
@pytest.mark.parametrize(
    ("system", "expected"),
    [
        (
            "slurm",
            ["#SBATCH -p gpu", "#SBATCH -A polymers", "#SBATCH -t 02:00:00\n", "--gres=gpu:2", "--constraint=a100"],
        ),
        (
            "pbs",
            ["#PBS -q gpu", "#PBS -A polymers", "select=1:ncpus=8:mem=15GB:ngpus=2", "#PBS -l walltime=02:00:00\n"],
        ),
        ("lsf", ["#BSUB -q gpu", '#BSUB -P "polymers"', "#BSUB -n 8", "-gpu num=2", "#BSUB -W 02:00\n"]),
        ("sge", ["#$ -q gpu", "#$ -P polymers", "-l gpu=2", "h_rt=02:00:00\n"]),
    ],
)
def test_job_scripts_say_what_the_configuration_says(system: str, expected: list[str], walltime: str) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    settings = ClusterSettings(
        queue="gpu",
        account="polymers",
        walltime=walltime,
        cores=8,
        memory="16GB",
        workers_per_job=2,
        gpus_per_job=2,
        directives=["--constraint=a100"],
        setup=["module load cuda"],
        python="/opt/python",
    )
    options = job_options(system, settings)
    job_class = {"slurm": "SLURMJob", "pbs": "PBSJob", "lsf": "LSFJob", "sge": "SGEJob"}[system]
    module = __import__(f"dask_jobqueue.{system}", fromlist=[job_class])
    options = {key: value for key, value in options.items() if key != "scheduler_options"}
    script = getattr(module, job_class)(scheduler="tcp://10.0.0.1:8786", **options).job_script()
    for text in [*expected, "module load cuda", "/opt/python -m distributed.cli.dask_worker", "--lifetime 7110s"]:
        assert text in script, script
    assert "--nworkers 2" in script
    assert jobqueue is not None


@pytest.mark.parametrize(
    ("system", "walltime"), [("slurm", "48:00:30"), ("pbs", "48:00:30"), ("lsf", "48:01"), ("sge", "48:00:30")]
)
def test_days_are_told_in_hours(system: str, walltime: str) -> None:
    assert job_options(system, ClusterSettings(walltime="2-00:00:30"))["walltime"] == walltime


def test_no_gpus_are_asked_for_unless_wanted() -> None:
    assert gpu_directives("slurm", 0) == []
    assert "ngpus" not in str(job_options("pbs", ClusterSettings()))


def test_more_least_than_largest_jobs_is_refused() -> None:
    with pytest.raises(ConfigError, match="minimum_jobs must be at most maximum_jobs"):
        load_config(None, {"cluster.minimum_jobs": 5, "cluster.maximum_jobs": 2})


def test_a_batch_system_that_is_not_here_is_named(
    tiny: dict[str, object], tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("PATH", "")
    config = load_config(None, {**tiny, "search.scheduler": "slurm"})
    with pytest.raises(StudyError, match="slurm is not available on this machine"):
        make_workers(config, tiny_dataset, "key")


@pytest.mark.parametrize(
    ("fails_in", "error", "expected", "said"),
    [
        ("__init__", OSError("no address"), StudyError, "slurm rejected the job"),
        ("__init__", ValueError("bad key"), ConfigError, "jobs cannot be created from these settings"),
        ("sync", RuntimeError("sbatch: error"), StudyError, "slurm rejected the job"),
        ("adapt", ValueError("bad number"), ConfigError, "jobs cannot be created from these settings"),
        ("sync", KeyboardInterrupt("by the user"), KeyboardInterrupt, "by the user"),
    ],
)
def test_jobs_that_come_to_nothing_are_taken_down(
    monkeypatch: pytest.MonkeyPatch, fails_in: str, error: BaseException, expected: type[BaseException], said: str
) -> None:
    done: list[str] = []

    class Cluster:
        def __init__(self, **options: object) -> None:
            self.step("__init__")

        def step(self, name: str) -> None:
            done.append(name)
            if name == fails_in:
                raise error

        def sync(self, *words: object) -> None:
            self.step("sync")

        def adapt(self, **options: object) -> None:
            self.step("adapt")

        def close(self, timeout: float) -> None:
            done.append("close")
            raise AssertionError

    monkeypatch.setitem(sys.modules, "dask_jobqueue", SimpleNamespace(SLURMCluster=Cluster))
    monkeypatch.setattr("shutil.which", lambda command: "/usr/bin/sbatch")
    with pytest.raises(expected, match=said):
        BatchWorkers("slurm", ClusterSettings(), 1)
    assert done.count("close") == (fails_in != "__init__")


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_workers_are_forked_only_where_the_socket_for_it_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = set()
    for length in range(60, 90):
        folder = tempfile.mkdtemp(dir=tempfile.gettempdir())
        place = Path(folder).rename(folder + "x" * (length - len(folder)))
        with monkeypatch.context() as patch, socket.socket(socket.AF_UNIX) as listener:
            patch.setattr(tempfile, "tempdir", str(place))
            (method,) = prepare_forking().values()
            # As multiprocessing calls it.
            path = tempfile.mktemp(prefix="listener-", dir=tempfile.mkdtemp(prefix="pymp-"))
            said = "it fits"
            try:
                listener.bind(path)
            except OSError as error:
                said = str(error)
        shutil.rmtree(place)
        assert method == {"it fits": "forkserver", "AF_UNIX path too long": "spawn"}[said], length
        methods.add(method)
    assert methods == {"forkserver", "spawn"}


def test_workers_that_cannot_start_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(n_workers: int) -> None:
        raise RuntimeError("Nanny failed to start.") from OSError("AF_UNIX path too long")

    monkeypatch.setattr(clusters, "_start_local", fail)
    with pytest.raises(StudyError, match=r"\(Nanny failed to start\.: AF_UNIX path too long\); try fewer"):
        LocalWorkers(2, (), 1)


def test_a_dask_configuration_that_cannot_be_read_is_refused_before_the_search(tmp_path: Path) -> None:
    """Dask reads it as it is imported, so only in a process that has not."""
    (tmp_path / "dask.yaml").write_text("distributed: [", encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "chitransfer", "search", "--workers", "2", "--results-dir", str(tmp_path / "results")],
        env=os.environ | {"DASK_CONFIG": str(tmp_path / "dask.yaml")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("ERROR: Dask's own configuration, ~/.config/dask or DASK_CONFIG: ")
    assert f"{tmp_path / 'dask.yaml'}' is malformed" in ended.stderr
    assert not (tmp_path / "results").exists()
