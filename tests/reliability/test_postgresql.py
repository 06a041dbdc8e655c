"""A study on PostgreSQL: the same rules, a lock on the server, a server that goes away, and no password anywhere."""

from __future__ import annotations

import gc
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from searching import finish_code, start_search, stop

from chitransfer.errors import ConfigError, StudyError
from chitransfer.search import storage
from chitransfer.search.storage import find_lock_holder, hold_again, lock_on_server, open_storage
from chitransfer.search.study_folder import keep_storage, locate_study

pytest.importorskip("psycopg")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # SQLAlchemy's pool leaves its connections to the end of the process.
    pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PASSWORD = "sesame-open-7391"


def find_programs() -> Path | None:
    """The folder of PostgreSQL's server programs."""
    folders = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    found = shutil.which("postgres")
    return next((f for f in folders if (f / "initdb").exists()), Path(found).resolve().parent if found else None)


class Server:
    """A PostgreSQL server of this test's own, with a password."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        # The server refuses to run as root.
        self.user = pwd.getpwnam("postgres") if os.getuid() == 0 else None
        folder.mkdir()
        secret = folder / "secret"
        secret.write_text(PASSWORD)
        if self.user is not None:
            for path in (folder, secret):
                os.chown(path, self.user.pw_uid, self.user.pw_gid)
        self.call("initdb", "-D", str(folder / "data"), "-U", "ann", "-A", "scram-sha-256", "--pwfile", str(secret))

    def call(self, program: str, *words: str) -> None:
        subprocess.run(
            [str(self.programs / program), *words],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
            user=None if self.user is None else self.user.pw_uid,
        )

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        log = str(self.folder / "log")
        self.call("pg_ctl", "-D", str(self.folder / "data"), "-o", options, "-l", log, "-w", "start")

    def stop(self, how: str = "immediate") -> None:
        self.call("pg_ctl", "-D", str(self.folder / "data"), "-m", how, "-w", "stop")

    @property
    def address(self) -> str:
        return f"postgresql://ann:{PASSWORD}@127.0.0.1:{self.port}/postgres"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed")
    # Not in pytest's own folder, which every session of pytest that starts closes to other users again.
    with tempfile.TemporaryDirectory(prefix="chitransfer-postgresql-") as root:
        Path(root).chmod(0o755)
        server = Server(programs, Path(root, "server"))
        server.start()
        yield server
        server.stop()


@pytest.fixture(autouse=True)
def _close_connections() -> Iterator[None]:
    """Let what PostgreSQL's driver says of connections left open fall on this file's tests, which expect it."""
    yield
    gc.collect()


@pytest.fixture
def stored(tiny: dict[str, object], server: Server, tmp_path: Path) -> dict[str, object]:
    return {**tiny, "search.storage": server.address, "search.study_name": tmp_path.name.replace("_", "-")[:60]}


def trials_of(stored: dict[str, object]) -> list[optuna.trial.FrozenTrial]:
    address = str(stored["search.storage"]).replace("postgresql:", "postgresql+psycopg:")
    return optuna.load_study(study_name=str(stored["search.study_name"]), storage=address).get_trials(deepcopy=False)


def folder_of(stored: dict[str, object]) -> Path:
    return Path(str(stored["paths.results_dir"])) / "hparam_search" / str(stored["search.study_name"])


def run(stored: dict[str, object], resume: bool = False) -> int:
    return finish_code(start_search(stored, folder_of(stored) if resume else None))


def test_a_study_on_a_server_is_searched_and_resumed(stored: dict[str, object]) -> None:
    assert run(stored) == 0
    assert [t.state.name for t in trials_of(stored)] == ["COMPLETE"] * 3
    assert not (folder_of(stored) / "study.db").exists()
    before = (folder_of(stored) / "config.yaml").read_bytes()
    assert run({**stored, "seed": 7}) == 2, "a second study of that name must be refused"
    assert (folder_of(stored) / "config.yaml").read_bytes() == before
    assert run({**stored, "search.n_trials": 5}, resume=True) == 0
    assert [t.number for t in trials_of(stored)] == list(range(5))


def test_the_leaderboard_is_there(stored: dict[str, object]) -> None:
    """With several objectives, which it reads from text."""
    assert run({**stored, "search.objectives": ["sol_auc", "exp_mae"]}) == 0
    objectives = {t.number: t.user_attrs["objective"] for t in trials_of(stored)}
    opened = open_storage(str(stored["search.storage"]))
    query = sqlalchemy.text("SELECT number, value FROM leaderboard WHERE study_name = :name")
    with opened.engine.connect() as connection:
        rows = [tuple(row) for row in connection.execute(query, {"name": stored["search.study_name"]})]
    opened.engine.dispose()
    assert rows == sorted(objectives.items(), key=lambda item: item[1])


def test_the_password_is_nowhere(stored: dict[str, object], run_command: Callable[..., tuple[int, str, str]]) -> None:
    assert run(stored) == 0
    wrong = str(stored["search.storage"]).replace(PASSWORD, f"{PASSWORD}-wrong")
    assert run({**stored, "search.storage": wrong, "search.study_name": "other"}) == 2
    assert run({**stored, "search.storage": wrong.replace(":5", ":bad5"), "search.study_name": "third"}) == 2
    code, out, err = run_command("search", "--storage", f"mysql://ann:{PASSWORD}@host/db")
    assert code == 2
    assert "postgresql://" in err
    code, out2, err2 = run_command("search", "--storage", f"postgresql://ann:{PASSWORD}@127.0.0.1:1/db")
    assert code == 2
    for text in (out, err, out2, err2):
        assert PASSWORD not in text
    results = Path(str(stored["paths.results_dir"]))
    assert (results / "errors.txt").is_file()
    for path in results.rglob("*"):
        if path.is_file():
            assert PASSWORD.encode() not in path.read_bytes(), path


def test_status_needs_no_password_in_the_folder(
    stored: dict[str, object], run_command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(stored) == 0
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    code, out, _ = run_command("status", folder_of(stored))
    assert code == 0
    assert "3 of 3 trials ended" in out


def test_a_second_driver_is_refused_even_from_another_folder(stored: dict[str, object], tmp_path: Path) -> None:
    address, name = str(stored["search.storage"]), str(stored["search.study_name"])
    with lock_on_server(address, name):
        with (
            pytest.raises(StudyError, match=rf"another search .*host {socket.gethostname()[:24]}, pid {os.getpid()}"),
            lock_on_server(address, name),
        ):
            pass
        with lock_on_server(address, f"{name}-other"):
            pass
        assert find_lock_holder(address, name) == f"host {socket.gethostname()[:24]}, pid {os.getpid()}"
        elsewhere = address.removesuffix("postgres") + "template1"
        assert find_lock_holder(elsewhere, name) is None, "another database of the server has a study of that name"
    assert find_lock_holder(address, name) is None
    with lock_on_server(address, name):
        pass


def wait_for_two_trials(stored: dict[str, object]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if sum(t.state.is_finished() for t in trials_of(stored)) >= 2:
                return
        except KeyError:
            pass
        time.sleep(0.2)


def test_a_server_that_restarts_in_the_middle(stored: dict[str, object], server: Server) -> None:
    process = start_search({**stored, "search.n_trials": 12})
    wait_for_two_trials(stored)
    server.stop()
    time.sleep(4)
    server.start()
    holders = []
    while process.is_alive():
        holders.append(find_lock_holder(str(stored["search.storage"]), str(stored["search.study_name"])))
        time.sleep(0.1)
    assert f"host {socket.gethostname()[:24]}, pid {process.pid}" in holders, "it goes on without its lock"
    assert finish_code(process) == 0
    trials = trials_of(stored)
    assert [t.number for t in trials] == list(range(12))
    assert {t.state.name for t in trials} == {"COMPLETE"}


def check_at_once() -> None:
    """Let the search make sure of its lock whenever it looks for a signal."""
    from chitransfer.search import run

    run.LOCK_CHECK_SECONDS = 0.0


@pytest.mark.parametrize("is_noticed", [True, False])
def test_another_driver_that_came_while_the_server_was_away_is_the_only_one(
    stored: dict[str, object], server: Server, is_noticed: bool
) -> None:
    process = start_search({**stored, "search.n_trials": 1000}, prepare=None if is_noticed else check_at_once)
    wait_for_two_trials(stored)
    if is_noticed:
        server.stop()
        time.sleep(4)
    os.kill(process.pid or 0, signal.SIGSTOP)
    if not is_noticed:
        server.stop()
    server.start()
    with lock_on_server(str(stored["search.storage"]), str(stored["search.study_name"])):
        os.kill(process.pid or 0, signal.SIGCONT)
        assert finish_code(process) == 2
    said = Path(str(stored["paths.results_dir"]), "errors.txt").read_text()
    assert f"another search is writing to this study (host {socket.gethostname()[:24]}, pid {os.getpid()})" in said


def test_a_lock_whose_connection_only_the_server_believes_in_is_taken_again(stored: dict[str, object]) -> None:
    """As after a failure of the network."""
    address, name = str(stored["search.storage"]), str(stored["search.study_name"])
    with lock_on_server(address, name):
        lock = storage._held[address, name]
        assert lock._connection is not None
        descriptor = lock._connection.connection.dbapi_connection.fileno()  # type: ignore[union-attr]
        still_open = os.dup(descriptor)
        here, there = socket.socketpair()
        there.close()
        os.dup2(here.fileno(), descriptor)
        here.close()
        before = lock._backend
        hold_again(address, name)
        os.close(still_open)
        assert lock._backend != before
        assert find_lock_holder(address, name) is not None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_server_is_away(
    stored: dict[str, object], server: Server, number: signal.Signals, code: int
) -> None:
    process = start_search({**stored, "search.n_trials": 20})
    while not (folder_of(stored) / "trials" / "0001").exists():
        time.sleep(0.1)
    server.stop()
    try:
        assert stop(process, number) == code
    finally:
        server.start()
    assert run({**stored, "search.n_trials": 4}, resume=True) == 0
    assert {t.state.name for t in trials_of(stored)} == {"COMPLETE"}


def test_a_driver_killed_frees_the_lock(stored: dict[str, object]) -> None:
    process = start_search({**stored, "search.n_trials": 20})
    while not (folder_of(stored) / "trials" / "0001").exists():
        time.sleep(0.1)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert run({**stored, "search.n_trials": 6}, resume=True) == 0
    assert {t.state.name for t in trials_of(stored)} == {"COMPLETE"}


def test_a_storage_cannot_change_on_resume(stored: dict[str, object]) -> None:
    assert run(stored) == 0
    folder = locate_study(folder_of(stored))
    with pytest.raises(StudyError, match=r"the study stays where it was created") as told:
        keep_storage(folder, None)
    assert PASSWORD not in str(told.value)


@pytest.mark.parametrize("address", ["sqlite:///x.db", "mysql://u@h/d", "postgresql:/h/d"])
def test_other_storages_are_configuration_errors(address: str, tiny: dict[str, object]) -> None:
    from chitransfer.config import load_config

    with pytest.raises(ConfigError, match=r"postgresql://user@host:port/database"):
        load_config(None, {**tiny, "search.storage": address})
