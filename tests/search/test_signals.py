"""Ctrl-C, SIGTERM and the time limit end a search cleanly: exit code, resume command, a study that goes on."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from rich.console import Console

from chitransfer.cli import main
from chitransfer.config import dump_config, load_config
from chitransfer.search import run
from chitransfer.search.run import run_search
from chitransfer.search.study import read_study
from chitransfer.search.study_folder import locate_study
from chitransfer.training import forest


def long_search(tiny: dict[str, object], tmp_path: Path, **changes: object) -> tuple[Path, list[str]]:
    """A search of many trials; its study's folder and command."""
    config = load_config(None, {**tiny, "search.n_trials": 500, "search.study_name": "long", **changes})
    path = tmp_path / "long.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    return tmp_path / "results" / "hparam_search" / "long", ["search", "--quiet", "--config", str(path)]


def wait_for(path: Path, process: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.exitcode is None, f"the search ended with {process.exitcode}"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def run_as_in_a_terminal(words: list[str]) -> None:
    """The command with SIGHUP heeded, though the tests may run under `nohup`."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    main(words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 143, "terminated")],
)
def test_a_signal_ends_the_search_cleanly(
    tiny: dict[str, object], tmp_path: Path, fork_server: Any, number: int, code: int, word: str
) -> None:
    study, words = long_search(tiny, tmp_path)
    process = fork_server.Process(target=run_as_in_a_terminal, args=(words,))
    process.start()
    wait_for(study / "trials" / "0001" / "scores.json", process)
    # A second Ctrl-C would end the search at once, a second SIGHUP must not: shell and system may send one each.
    for _ in range(2 if number == signal.SIGHUP else 1):
        os.kill(process.pid, number)
        time.sleep(0.05)
    process.join(60)
    assert process.exitcode == code
    (log,) = (study.parent / "logs").glob("search_long_*.log")
    text = log.read_text()
    assert f"search {word}: " in text
    assert f"resume with: chitransfer search --resume {study / 'study.db'}" in text
    assert "Traceback" not in text
    frame = pd.read_csv(study / "all_trials.csv")
    n_complete = int((frame["state"] == "COMPLETE").sum())
    assert n_complete >= 1
    assert json.loads((study / "best_params.json").read_text())["n_trials"] == n_complete
    assert (study / "figures" / "optimization_history.png").exists()
    assert not (study / "driver.json").exists()
    # It goes on: the interrupted trial is finished, not repeated under another number.
    again = fork_server.Process(
        target=main, args=(["search", "--quiet", "--resume", str(study), "--n_trials", str(n_complete + 1)],)
    )
    again.start()
    again.join(120)
    assert again.exitcode == 0
    states = [trial.state.name for trial in read_study(locate_study(study)).trials]
    assert "RUNNING" not in states
    assert len(states) == n_complete + 1


def test_a_signal_in_the_middle_of_a_long_stage_1(tiny: dict[str, object], tmp_path: Path, fork_server: Any) -> None:
    """The running trial is given up at the end of an epoch, not after all hundred thousand of them."""
    study, words = long_search(
        tiny,
        tmp_path,
        **{"training.num_epochs_pretrain": 100_000, "training.early_stopping_patience": 100_000, "search.rungs": [3]},
    )
    process = fork_server.Process(target=main, args=(words,))
    process.start()
    wait_for(study / "trials" / "0000" / "scores.json", process)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143
    assert time.monotonic() - began < 20
    assert [trial.state.name for trial in read_study(locate_study(study)).trials] == ["RUNNING"]


@pytest.mark.parametrize("noticed", [True, False])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_database_server_is_away(
    tiny: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, noticed: bool
) -> None:
    """The driver waits for it (noticed), or has not asked it for anything since."""
    storage = optuna.storages.InMemoryStorage()

    def lose_and_stop(driver: Any) -> str:
        monkeypatch.setattr(storage, "get_all_trials", refuse)
        os.kill(os.getpid(), number)
        return refuse() if noticed else driver._stop_requested()

    def refuse(*words: object, **named: object) -> Any:
        raise optuna.exceptions.StorageInternalError("connection refused")

    monkeypatch.setattr("chitransfer.search.lock.lock_on_server", lambda *words: nullcontext())
    monkeypatch.setattr("chitransfer.search.run.refuse_taken_name", lambda folder: None)
    monkeypatch.setattr(
        "chitransfer.search.run.create_study",
        lambda folder, contract, pruner: optuna.create_study(storage=storage, study_name=folder.name),
    )
    monkeypatch.setattr("chitransfer.search.run.SearchDriver.run", lose_and_stop)
    config = load_config(None, {**tiny, "search.storage": "postgresql://ann@host/db", "search.study_name": "away"})
    out = io.StringIO()
    assert run_search(config, Console(file=out, width=300), draw=lambda *_: None) == code
    stopped, resume = out.getvalue().splitlines()[-2:]
    assert stopped.startswith("search stopped. postgresql://ann@host/db, study away: ")
    assert "(connection refused)" in stopped
    assert resume == f"resume with: chitransfer search --resume {tmp_path / 'results' / 'hparam_search' / 'away'}"


def test_out_of_time_is_a_good_end(
    tiny: dict[str, object], tmp_path: Path, run_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, words = long_search(tiny, tmp_path)
    words.remove("--quiet")
    code, out, err = run_command(*words, "--timeout-hours", 2.0 / 3600)
    assert code == 0, err
    assert "search stopped after" in out
    flat = out.replace("\n", "")
    assert f"--resume {tmp_path / 'results' / 'hparam_search' / 'long' / 'study.db'}" in flat


def test_signal_handlers_are_put_back(tiny: dict[str, object], make_search: Any) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    make_search({**tiny, "search.n_trials": 1})
    assert [signal.getsignal(number) for number in numbers] == before


def test_interrupted_before_the_first_trial_it_says_how_to_go_on(
    tiny: dict[str, object], make_search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*parts: object) -> None:
        raise KeyboardInterrupt

    out = io.StringIO()
    config = load_config(None, {**tiny, "cv.random_forest": True, "search.study_name": "early", "search.n_trials": 1})
    with monkeypatch.context() as patch:
        patch.setattr(forest, "score_random_forest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_search(config, Console(file=out, width=300), draw=lambda *_: None)
    folder = locate_study(Path(config.paths.results_dir) / "hparam_search" / "early")
    assert f"interrupted; continue with: {folder.resume_command}" in out.getvalue()
    assert make_search(config.model_dump(), resume=folder)[0] == 0
    assert [trial.state.name for trial in read_study(folder).trials] == ["COMPLETE"]


@pytest.mark.parametrize("end", [RuntimeError("no figures today"), KeyboardInterrupt()])
def test_what_came_of_a_search_is_said_though_it_cannot_be_drawn(tiny: dict[str, object], end: BaseException) -> None:
    def fail(*_: object) -> None:
        raise end

    out = io.StringIO()
    config = load_config(None, {**tiny, "search.study_name": "undrawn", "search.n_trials": 1})
    with pytest.raises(type(end)):
        run_search(config, Console(file=out, width=300), draw=fail)
    assert "search finished: 1 complete" in out.getvalue()
    assert "best parameters: " in out.getvalue()
    folder = locate_study(Path(config.paths.results_dir) / "hparam_search" / "undrawn")
    said_how = out.getvalue().endswith(f"interrupted; continue with: {folder.resume_command}\n")
    assert said_how == isinstance(end, KeyboardInterrupt)


def test_a_second_hangup_may_come_late() -> None:
    """Between the search and its figures, say."""

    def fail(*_: object) -> None:
        raise AssertionError("the second one was heard")

    before = signal.signal(signal.SIGHUP, fail)
    try:
        with run.listen_for_stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.reason() == "terminate"
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGTERM) != stop.hear
    finally:
        signal.signal(signal.SIGHUP, before)
