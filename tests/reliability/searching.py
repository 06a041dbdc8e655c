"""Searches as processes of their own, started in a fraction of a second, so that tests can kill them."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from forking import CONTEXT
from optuna.trial import FrozenTrial

# Laid over the tiny configuration: Stage 2 hardly computes.
SHORTEST: dict[str, object] = {"training.stage2_epochs": 1, "cv.n_cv_repeats": 1, "cv.n_cv_folds": 2}


def start_search(
    overrides: Mapping[str, object], resume: Path | None = None, prepare: Callable[[], object] | None = None
) -> BaseProcess:
    """Start a search (or go on with a study) after `prepare` ran in its process; its exit code is the command's."""
    process = CONTEXT.Process(target=_search, args=(dict(overrides), resume, prepare))
    process.start()
    return process


def _search(overrides: dict[str, object], resume: Path | None, prepare: Callable[[], object] | None) -> None:
    if prepare is not None:
        prepare()
    from chitransfer.config import load_config
    from chitransfer.console import make_console
    from chitransfer.errors import ChitransferError
    from chitransfer.search.run import run_search
    from chitransfer.search.study_folder import keep_storage, locate_study

    config = load_config(None, overrides)
    folder = None if resume is None else keep_storage(locate_study(resume), config.search.storage)
    try:
        code = run_search(config, make_console(quiet=True), resume=folder, draw=_draw_nothing)
    except ChitransferError as error:
        Path(str(overrides["paths.results_dir"]), "errors.txt").write_text(f"ERROR: {error}")
        code = 2
    sys.exit(code)


def _draw_nothing(study: Any, reference: Any, folder: Any) -> None:
    """Figures are tested elsewhere."""


def go_on(overrides: Mapping[str, object], folder: Path, prepare: Callable[[], object] | None = None) -> BaseProcess:
    """Resume when the study exists already, else start it anew under the same name."""
    return start_search(overrides, folder if (folder / "study.db").is_file() else None, prepare)


def finish_code(process: BaseProcess, timeout: float = 400) -> int:
    """Wait for the end; the exit code."""
    process.join(timeout)
    assert process.exitcode is not None, "the search hangs"
    return int(process.exitcode)


def kill(process: BaseProcess) -> None:
    """What the out-of-memory killer and a power cut do."""
    if process.pid is not None and process.is_alive():
        process.kill()
    process.join(30)


def stop(process: BaseProcess, number: signal.Signals) -> int:
    """Send a signal and wait for the end."""
    import os

    os.kill(process.pid or 0, number)
    process.join(60)
    return int(process.exitcode if process.exitcode is not None else -1)


def read_trials(database: Path) -> list[FrozenTrial]:
    """The trials of a study, read as another process does."""
    from chitransfer.search.storage import open_storage, sqlite_address

    storage = open_storage(sqlite_address(database))
    try:
        (summary,) = optuna.get_all_study_summaries(storage)
        return optuna.load_study(study_name=summary.study_name, storage=storage).get_trials(deepcopy=False)
    finally:
        storage.engine.dispose()


def comparable(trials: list[FrozenTrial]) -> list[tuple[Any, ...]]:
    """What must not depend on how often a search was interrupted."""
    return [(t.number, t.state.name, t.values, t.params, t.intermediate_values) for t in trials]


def wait_for_trials(database: Path, n_ended: int, timeout: float = 120.0) -> None:
    """Wait until so many trials have ended."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if database.is_file() and sum(t.state.is_finished() for t in read_trials(database)) >= n_ended:
            return
        time.sleep(0.1)
    raise TimeoutError(f"{database}: not {n_ended} trials after {timeout} s")


def check_complete(folder: Path, n_trials: int) -> pd.DataFrame:
    """Exactly the budget, every trial once, each with its files; returns all_trials.csv."""
    trials = read_trials(folder / "study.db")
    assert [t.number for t in trials] == list(range(n_trials))
    assert {t.state.name for t in trials} == {"COMPLETE"}
    table = pd.read_csv(folder / "all_trials.csv")
    assert table["number"].tolist() == list(range(n_trials))
    for trial in trials:
        assert (folder / "trials" / f"{trial.number:04d}" / "scores.json").is_file()
    assert not list(folder.rglob("rung_*.pt")), "a finished trial left a rung's state behind"
    return table
