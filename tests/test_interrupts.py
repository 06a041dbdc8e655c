"""Ctrl-C and SIGTERM end commands that RDKit has been at work in, and the work goes on from there."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from chitransfer.chemistry.features import FeatureRecipe, featurise_polymers
from chitransfer.chemistry.identities import identify_polymers
from chitransfer.chemistry.stereo import merge_stereo_variants
from chitransfer.cli import main
from chitransfer.config import dump_config, load_config
from chitransfer.interrupts import (
    COMPUTING,
    end_despite_threads,
    exit_on_termination,
    repeat_swallowed,
    same_interrupts,
)


@pytest.mark.parametrize(
    "work",
    [
        lambda: identify_polymers(["*CCO*", "*C"]),
        lambda: featurise_polymers(["*CCO*"], FeatureRecipe(fingerprint_bits=16)),
        lambda: merge_stereo_variants(["*C/C=C/C*"]),
    ],
)
def test_a_signal_reaches_python_after_structures_were_worked_out(work: Callable[[], object]) -> None:
    # Another test's libraries may have put a handler of their own in place.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        work()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_library_that_takes_ctrl_c_gives_it_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        with same_interrupts():
            signal.signal(signal.SIGINT, lambda *_: sys.exit())
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def heeded_hangup() -> Iterator[None]:
    """SIGHUP as in a terminal, though the tests may run under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heeded_hangup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_hangup_disturbs_no_clean_up(number: int) -> None:
    before = signal.getsignal(number)
    with exit_on_termination():
        with pytest.raises(SystemExit) as stop:
            signal.raise_signal(number)
        assert stop.value.code == 143
        if number == signal.SIGHUP:
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("heeded_hangup")
def test_what_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with exit_on_termination():
        signal.raise_signal(signal.SIGHUP)


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_that_python_swallows_is_heard_all_the_same(number: int, expected: type[BaseException]) -> None:
    class Swallowing:
        def __del__(self) -> None:
            signal.raise_signal(number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with exit_on_termination(), repeat_swallowed():
            Swallowing()
            with pytest.raises(expected):
                time.sleep(20)
    finally:
        signal.signal(signal.SIGINT, before)


def test_on_windows_the_signal_is_raised_since_killing_would_end_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.delattr("os.kill")

    class Swallowing:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with repeat_swallowed():
            Swallowing()
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - here it does not wake the main thread
                for _ in range(2000):
                    time.sleep(0.01)
    finally:
        signal.signal(signal.SIGINT, before)


def run_search(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with the function `search` of a source text as its program."""
    program = f"from chitransfer import cli\n{source}cli.app = search\ncli.main([])\n"
    (folder / "program.py").write_text(program, encoding="utf-8")
    words = [sys.executable, "-m", "program"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60)


def test_an_interrupt_in_generated_code_ends_python_m_with_the_exit_code(tmp_path: Path) -> None:
    # Ctrl-C while a dataclass is being made: Python -m would die of the signal, though it was caught.
    ended = run_search("def search(*_, **__):\n    exec('raise KeyboardInterrupt')\n", tmp_path)
    assert (ended.returncode, ended.stderr) == (130, "interrupted\n")


def test_an_interrupt_that_a_library_logs_on_its_way_is_not_printed(tmp_path: Path) -> None:
    source = (
        "import os, signal\n"
        "from sqlalchemy import create_engine, event\n"
        "engine = create_engine('sqlite://')\n"
        "def fail(*_):\n"
        "    raise OSError(5, 'the disk is gone')\n"
        "def search(*_, **__):\n"
        "    for happen in (fail, lambda *_: os.kill(os.getpid(), signal.SIGTERM)):\n"
        "        event.listen(engine, 'reset', happen)\n"
        "        engine.connect().close()\n"
        "        event.remove(engine, 'reset', happen)\n"
    )
    ended = run_search(source, tmp_path)
    assert ended.returncode == 143
    assert "the disk is gone" in ended.stderr, "what else a library has to say is printed"
    assert "SystemExit" not in ended.stderr
    assert ended.stderr.endswith("\nterminated\n")


@pytest.mark.parametrize(("number", "code", "word"), [(2, 130, "interrupted"), (15, 143, "terminated")])
def test_what_an_interrupt_left_half_made_is_not_reported(tmp_path: Path, number: int, code: int, word: str) -> None:
    # As in SQLAlchemy: a weak reference not yet stored when the interrupt came has no hash when its callback runs.
    source = (
        "import os, weakref\n"
        "kept = []\n"
        "class Collection:\n"
        "    pass\n"
        "def search(*_, **__):\n"
        "    collection = Collection()\n"
        "    kept.append(weakref.ref(collection, lambda ref: ref in {}))\n"
        f"    os.kill(os.getpid(), {number})\n"
        "    collection.gone = True\n"
    )
    ended = run_search(source, tmp_path)
    assert (ended.returncode, ended.stderr) == (code, f"{word}\n")


def test_a_thread_that_hangs_does_not_decide_how_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    at_exit: list[Callable[[], None]] = []
    ended: list[int] = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    monkeypatch.setattr("os._exit", ended.append)
    end_despite_threads(130)
    assert not at_exit
    released = threading.Event()
    thread = threading.Thread(target=released.wait, args=(60,), name=COMPUTING, daemon=True)
    thread.start()
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    at_exit[0]()
    released.set()
    thread.join()
    at_exit[0]()
    assert ended == [0], "once released the thread may end as Python ends it"


def interrupt(words: Sequence[str], until: str, number: int, folder: Path) -> tuple[int, str]:
    """Send a signal to a command once it has printed `until`; its exit code and all it printed."""
    path = folder / "printed.txt"
    with path.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "chitransfer", *words], stdout=stream, stderr=subprocess.STDOUT, cwd=folder
        )
    deadline = time.monotonic() + 90
    try:
        while until not in path.read_text(encoding="utf-8"):
            assert process.poll() is None, path.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, f"{until!r} was not printed"
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(number)
        process.wait(20)
    finally:
        process.kill()
        process.wait()
    return process.returncode, path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_pretraining_goes_on(
    tiny: dict[str, object], tmp_path: Path, run_command: Callable[..., tuple[int, str, str]], number: int, code: int
) -> None:
    config = tmp_path / "long.yaml"
    endless = {"training.num_epochs_pretrain": 1_000_000, "training.early_stopping_patience": 1_000_000}
    config.write_text(dump_config(load_config(None, {**tiny, **endless})), encoding="utf-8")
    ended, printed = interrupt(["pretrain", "--config", str(config)], "Stage 1: ", number, tmp_path)
    assert ended == code, printed
    assert "Traceback" not in printed
    command = printed.replace("\n", " ").partition("interrupted; continue with: chitransfer ")[2]
    words = shlex.split(command)[:3]
    assert words[:2] == ["pretrain", "--resume"]
    # A run of a million epochs is not for a test: its folder is told to stop soon.
    kept = Path(words[2]) / "config.yaml"
    kept.write_text(kept.read_text(encoding="utf-8").replace("1000000", "3"), encoding="utf-8")
    ended, _, error = run_command(*words)
    assert ended == 0, error
    assert (kept.parent / "checkpoints" / "best_model.pt").is_file()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_comparison_says_how_to_go_on(
    tiny: dict[str, object], tmp_path: Path, number: int, code: int
) -> None:
    config = tmp_path / "long.yaml"
    endless = {"search.n_trials": 10_000}
    config.write_text(dump_config(load_config(None, {**tiny, **endless})), encoding="utf-8")
    words = ["compare", "--config", str(config), "--outer", "2", "--protocol", "known"]
    ended, printed = interrupt(words, "outer folds to do", number, tmp_path)
    assert ended == code, printed
    assert "interrupted; the same command continues" in printed
    assert "Traceback" not in printed
