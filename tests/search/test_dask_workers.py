"""Dask workers of this machine: exact budgets, the same results as in-process, devices, threads, contradictions."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import pandas as pd
import psutil
import pytest
from distributed.scheduler import KilledWorker

from chitransfer.config import load_config
from chitransfer.errors import ConfigError, StudyError
from chitransfer.search import remote
from chitransfer.search.clusters import LocalWorkers
from chitransfer.search.dask_workers import DaskWorkers
from chitransfer.search.objective import RungTask
from chitransfer.search.runner import TrialRunner
from chitransfer.search.workers import InProcessWorkers, make_workers

SAME = ["number", "state", "value", "exp_mae", "sol_f1", "stage1_mae", "lr_pretrain", "latent_dim"]


@pytest.fixture(scope="module")
def local_workers(shared_tiny_config: Any, tiny_dataset: Any) -> Iterator[DaskWorkers]:
    cluster = LocalWorkers(2, (), 1)
    workers = DaskWorkers(cluster, shared_tiny_config, tiny_dataset, study_key="test", max_deaths=3, wait_minutes=1.0)
    yield workers
    workers.close()


def collect(workers: Any, tasks: list[RungTask]) -> list[Any]:
    futures = [workers.submit(task) for task in tasks]
    waiting = set(futures)
    while waiting:
        waiting -= workers.wait(list(waiting), 1.0)
    return [future.result() for future in futures]


def test_rungs_agree_with_a_runner_in_this_process(
    local_workers: DaskWorkers, shared_tiny_config: Any, tiny_dataset: Any
) -> None:
    runner = TrialRunner(shared_tiny_config, tiny_dataset, n_threads=1)
    tasks = [RungTask(number, {"training.lr_pretrain": 0.002 * (number + 1)}, 4, None) for number in range(4)]
    for task, remote_result in zip(tasks, collect(local_workers, tasks), strict=True):
        here = runner.run(task)
        assert remote_result.number == task.number
        assert remote_result.value == here.value
        assert remote_result.components == here.components


def test_a_rung_goes_on_from_a_state_made_elsewhere(
    local_workers: DaskWorkers, shared_tiny_config: Any, tiny_dataset: Any
) -> None:
    runner = TrialRunner(shared_tiny_config, tiny_dataset, n_threads=1)
    half = runner.run(RungTask(7, {}, 2, None))
    (rest,) = collect(local_workers, [RungTask(7, {}, 4, half.state)])
    assert rest.value == runner.run(RungTask(7, {}, 4, None)).value


def test_a_failure_inside_a_worker_arrives_as_it_would_from_this_process(local_workers: DaskWorkers) -> None:
    (future,) = [local_workers.submit(RungTask(1, {"training.lr_pretrain": -1.0}, 4, None))]
    while not local_workers.wait([future], 1.0):
        pass
    with pytest.raises(ConfigError, match=r"training\.lr_pretrain"):
        future.result()


class Endless:
    """Where it is unpickled, the stack overflows."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, ("(lambda f: f(f))(lambda f: f(f))",))


def test_an_error_with_a_traceback_too_deep_to_travel_arrives(local_workers: DaskWorkers) -> None:
    future = local_workers.submit(RungTask(1, {"x": Endless()}, 4, None))
    deadline = time.monotonic() + 120
    while not local_workers.wait([future], 1.0):
        assert time.monotonic() < deadline, "the driver waits for ever"
    error = future.exception()
    assert isinstance(error, RecursionError)
    assert "in a worker" in error.__notes__[0]


def test_a_result_that_died_with_its_worker_is_computed_again(
    local_workers: DaskWorkers, shared_tiny_config: Any, tiny_dataset: Any
) -> None:
    class Dead:
        """Finished when looked at; when its result is asked for, two workers have died of it."""

        status = "finished"

        def result(self, timeout: float) -> None:
            raise KilledWorker("rung", None, 0)

        def exception(self, timeout: float) -> KilledWorker:
            return KilledWorker("rung", None, 0)

    task = RungTask(5, {}, 4, None)
    future = local_workers.submit(task)
    local_workers._flights[future].dask = Dead()
    while not local_workers.wait([future], 1.0):
        pass
    assert future.result().value == TrialRunner(shared_tiny_config, tiny_dataset, n_threads=1).run(task).value


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as glibc makes them")
def test_tensors_reuse_memory_that_was_freed(local_workers: DaskWorkers) -> None:
    def faults_of_a_tensor() -> float:
        import resource

        import torch

        for _ in range(20):
            torch.ones(2**20)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.ones(2**20)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20

    # A tensor of 4 MB that is mapped anew has a fault for each of its 1,024 pages.
    assert local_workers._client.submit(faults_of_a_tensor, pure=False).result() < 50


def test_workers_are_forked_with_everything_imported(local_workers: DaskWorkers) -> None:
    parents = set(local_workers._client.run(os.getppid).values())
    assert len(parents) == 1
    started_by = " ".join(psutil.Process(*parents).cmdline())
    if sys.platform == "linux":
        assert "multiprocessing.forkserver" in started_by
        # Whichever test started the server, it imports the slow things once for all.
        assert "chitransfer.search." in started_by
    else:
        assert "forkserver" not in started_by


def test_workers_leave_ctrl_c_to_the_driver(local_workers: DaskWorkers) -> None:
    handlers = local_workers._client.run(signal.getsignal, signal.SIGINT)
    assert set(handlers.values()) == {signal.SIG_IGN}


def test_the_dashboard_is_on_this_machine_alone(local_workers: DaskWorkers) -> None:
    assert local_workers.dashboard.startswith("http://127.0.0.1:")
    assert local_workers._cluster.address.startswith("tcp://127.0.0.1:")


def test_capacity_and_closing_twice(shared_tiny_config: Any, tiny_dataset: Any, local_workers: DaskWorkers) -> None:
    assert local_workers.capacity == 2
    workers = InProcessWorkers(shared_tiny_config, tiny_dataset)
    workers.close()
    workers.close()


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [2, 4])
def test_every_budget_is_met_exactly(
    n_workers: int, tiny: dict[str, object], make_search: Callable[..., tuple[int, Any]]
) -> None:
    code, folder = make_search({**tiny, "search.n_trials": 9, "search.workers": n_workers})
    assert code == 0
    trials = pd.read_csv(folder.path / "all_trials.csv")
    assert trials["number"].tolist() == list(range(9))
    assert set(trials["state"]) == {"COMPLETE"}
    code, _ = make_search({**tiny, "search.n_trials": 11, "search.workers": n_workers}, resume=folder)
    assert code == 0
    again = pd.read_csv(folder.path / "all_trials.csv")
    assert len(again) == 11
    pd.testing.assert_frame_equal(again[SAME].head(9), trials[SAME])


@pytest.mark.slow
def test_a_random_search_gives_the_same_trials_with_any_number_of_workers(
    tiny: dict[str, object], make_search: Callable[..., tuple[int, Any]], tmp_path: Path
) -> None:
    overrides = {**tiny, "search.sampler": "random", "search.n_trials": 5}
    frames = []
    for workers in (1, 2):
        where = {"search.workers": workers, "paths.results_dir": str(tmp_path / f"with{workers}")}
        _, folder = make_search({**overrides, **where})
        frames.append(pd.read_csv(folder.path / "all_trials.csv")[SAME])
    pd.testing.assert_frame_equal(frames[0], frames[1])


def test_a_connection_that_cannot_be_closed_leaves_no_cluster_behind() -> None:
    closed: list[str] = []

    class Client:
        status = "closed"

        def close(self, timeout: float) -> None:
            raise TimeoutError

    workers = object.__new__(DaskWorkers)
    workers._closed, workers._flights = False, {}
    workers._client, workers._cluster = Client(), SimpleNamespace(close=lambda: closed.append("cluster"))  # type: ignore[assignment]
    workers.close()
    assert closed == ["cluster"]


# ---------------------------------------------------------------------------------------------------------------------
# Choosing workers
# ---------------------------------------------------------------------------------------------------------------------


def test_one_worker_stays_in_this_process(shared_tiny_config: Any, tiny_dataset: Any) -> None:
    workers = make_workers(shared_tiny_config, tiny_dataset, "key")
    try:
        assert isinstance(workers, InProcessWorkers)
    finally:
        workers.close()


@pytest.mark.parametrize("extra", [{"search.workers": 2}, {"search.devices": ["cuda:0"]}])
@pytest.mark.parametrize(
    ("scheduler", "remedy"), [("slurm", r"cluster\.maximum_jobs"), ("tcp://h:1", "leave them out")]
)
def test_a_scheduler_and_local_workers_contradict_each_other(
    scheduler: str, remedy: str, extra: dict[str, object], tiny: dict[str, object], tiny_dataset: Any
) -> None:
    config = load_config(None, {**tiny, "search.scheduler": scheduler, **extra})
    with pytest.raises(ConfigError, match=remedy):
        make_workers(config, tiny_dataset, "key")


def test_a_device_that_is_not_there_is_named(tiny: dict[str, object], tiny_dataset: Any) -> None:
    config = load_config(None, {**tiny, "search.devices": ["cuda:7", "cuda:8"]})
    with pytest.raises(ConfigError, match="cuda:7 is not on this machine"):
        make_workers(config, tiny_dataset, "key")


def test_a_scheduler_that_does_not_answer_is_named(
    tiny: dict[str, object], tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = DaskWorkers._connect
    monkeypatch.setattr(DaskWorkers, "_connect", lambda self, timeout: connect(self, 0.5))
    config = load_config(None, {**tiny, "search.scheduler": "tcp://127.0.0.1:9"})
    with pytest.raises(StudyError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        make_workers(config, tiny_dataset, "key")


def test_a_scheduler_that_stays_away_ends_the_search_with_how_to_go_on() -> None:
    workers = object.__new__(DaskWorkers)
    workers._cluster, workers._client = SimpleNamespace(address="tcp://h:1"), SimpleNamespace(status="connecting")
    workers._lost_since, workers._wait_seconds = float("-inf"), 600.0
    with pytest.raises(StudyError, match=r"tcp://h:1 was lost .* within 10 minutes .* start one there and resume"):
        workers._recover(SimpleNamespace())


@pytest.mark.parametrize(("ca_file", "problem"), [(None, "not all are named"), ("gone.pem", "No such file")])
def test_tls_without_certificates_says_where_they_are_set(
    ca_file: str | None, problem: str, tiny: dict[str, object], tiny_dataset: Any
) -> None:
    config = load_config(None, {**tiny, "search.scheduler": "tls://127.0.0.1:9"})
    named = {"distributed.comm.tls.ca-file": ca_file, "distributed.comm.tls.client.cert": ca_file}
    with dask.config.set(named), pytest.raises(ConfigError, match=rf"certificates \(.*{problem}.*client\.key"):
        make_workers(config, tiny_dataset, "key")


@pytest.mark.parametrize("scheduler", ["kubernetes", "tcp://", "127.0.0.1:8786", "slurm2"])
def test_unknown_schedulers_are_configuration_errors(scheduler: str, tiny: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"search\.scheduler"):
        load_config(None, {**tiny, "search.scheduler": scheduler})


# ---------------------------------------------------------------------------------------------------------------------
# What travels to workers
# ---------------------------------------------------------------------------------------------------------------------


def test_each_worker_takes_the_device_of_its_number() -> None:
    class Worker:
        local_directory = "."

        def __init__(self, name: object) -> None:
            self.name = name

    plugin = remote.StudyPlugin("name", ("", b""), b"", ("cuda:0", "cuda:1"), 1)
    chosen = []
    for name in (0, 1, 2, "SLURMCluster-5-1", "odd"):
        plugin._worker = Worker(name)
        chosen.append(plugin._device())
    assert chosen == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]


def test_studies_that_share_a_worker_compute_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, followed = threading.Event(), threading.Event()
    order: list[str] = []

    class Runner:
        def run(self, task: str) -> None:
            order.append(f"{task} begins")
            if task == "first":
                begun.set()
                followed.wait(1.0)
            else:
                followed.set()
            order.append(f"{task} ends")

    monkeypatch.setattr(remote, "import_release", lambda *words: None)
    monkeypatch.setattr(remote.StudyPlugin, "_build_runner", lambda self: Runner())
    worker = SimpleNamespace(local_directory=str(tmp_path), address="here", log_event=lambda *words: None)
    studies = [remote.StudyPlugin(name, ("", b""), b"", (), 1) for name in ("first", "second")]
    for study in studies:
        study.setup(worker)
    threads = [threading.Thread(target=study.run, args=("key", pickle.dumps(study.name))) for study in studies]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join(60)
    assert order == ["first begins", "first ends", "second begins", "second ends"]


def test_the_study_survives_its_journey(shared_tiny_config: Any, tiny_dataset: Any) -> None:
    payload = remote.pack_payload(shared_tiny_config, tiny_dataset)
    config, dataset = remote.unpack_payload(payload)
    assert config == shared_tiny_config
    assert (dataset.polymer_features != tiny_dataset.polymer_features).nnz == 0
    assert len(payload) < len(pickle.dumps(tiny_dataset)) / 2


def test_code_is_brought_to_a_python_that_has_none(project_root: Path, tmp_path: Path) -> None:
    digest, archive = remote.pack_package(project_root / "chitransfer")
    (tmp_path / "archive").write_bytes(archive)
    names = zipfile.ZipFile(tmp_path / "archive").namelist()
    assert "chitransfer/search/remote.py" in names
    assert not [name for name in names if "__pycache__" in name]
    program = f"""
import sys, pathlib
sys.path = [entry for entry in sys.path if entry != {str(project_root)!r}]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
namespace = {{"__name__": "remote"}}
exec(pathlib.Path({str(project_root / "chitransfer/search/remote.py")!r}).read_text(), namespace)
try:
    import chitransfer
    raise SystemExit("chitransfer was there already")
except ImportError:
    pass
namespace["import_release"]({digest!r}, pathlib.Path({str(tmp_path / "archive")!r}).read_bytes(),
                             pathlib.Path({str(tmp_path / "scratch")!r}))
import chitransfer.seeds
print(chitransfer.seeds.__file__)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"chitransfer-{digest}.zip" in done.stdout


def test_code_that_is_there_already_is_used(project_root: Path, tmp_path: Path) -> None:
    digest, archive = remote.pack_package(project_root / "chitransfer")
    remote.import_release(digest, archive, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_studies_of_two_releases_share_a_worker(project_root: Path, tmp_path: Path) -> None:
    runner = "from chitransfer.search.objective import Result\nclass TrialRunner:\n"
    runner += "    def __init__(self, *words, **options): pass\n    def run(self, task): return Result(task)\n"
    for release in ("old", "new"):
        package = tmp_path / release / "chitransfer"
        (package / "search").mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "search" / "__init__.py").write_text("")
        (package / "search" / "runner.py").write_text(runner)
        result = f"class Result:\n    def __init__(self, task): self.said = task + ' by the {release} one'\n"
        (package / "search" / "objective.py").write_text(result)
    program = f"""
import pathlib, pickle, sys, types
tmp_path = pathlib.Path({str(tmp_path)!r})
sys.path = [str(tmp_path / "new"), *(entry for entry in sys.path if entry != {str(project_root)!r})]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
remote = types.ModuleType("remote")
exec(pathlib.Path({str(project_root / "chitransfer/search/remote.py")!r}).read_text(), vars(remote))
worker = types.SimpleNamespace(address="here", log_event=lambda *words: None, local_directory=tmp_path / "own")
plugins = {{}}
for release in ("old", "new"):
    package = remote.pack_package(tmp_path / release / "chitransfer")
    plugins[release] = remote.StudyPlugin(release, package, remote.pack_payload(None, None), (), 0)
    plugins[release].setup(worker)
for release in ("old", "new", "old", "new"):
    print(pickle.loads(plugins[release].run("key", pickle.dumps("rung"))).said)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["rung by the old one", "rung by the new one"] * 2, done.stderr
