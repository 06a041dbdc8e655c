"""The view of a study's database that the guide's query reads."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

from chitransfer.search.storage import create_leaderboard, open_storage, sqlite_address


def test_the_guides_query(finished_search: Any) -> None:
    with closing(sqlite3.connect(f"file:{finished_search.folder.database}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT number, value FROM leaderboard LIMIT 5").fetchall()
    top = pd.read_csv(finished_search.folder.path / "top_20_trials.csv").head(5)
    assert rows == list(zip(top["number"], top["value"], strict=True))


def test_of_several_objectives_it_shows_the_transfer_objective(tmp_path: Path) -> None:
    storage = open_storage(sqlite_address(tmp_path / "study.db", "rwc"))
    study = optuna.create_study(storage=storage, directions=["maximize", "minimize"])
    create_leaderboard(storage)
    for auc, objective in ((0.6, 2.25), (0.9, 1e-05), (0.7, 1.5)):
        study.add_trial(
            optuna.trial.create_trial(values=[auc, 0.5], user_attrs={"objective": objective, "exp_mae": 0.5})
        )
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        rows = connection.execute("SELECT number, value FROM leaderboard LIMIT 5").fetchall()
    assert rows == [(1, 1e-05), (2, 1.5), (0, 2.25)]


def test_it_cannot_be_written(finished_search: Any, tmp_path: Path) -> None:
    copied = shutil.copy(finished_search.folder.database, tmp_path)
    with closing(sqlite3.connect(copied)) as connection, pytest.raises(sqlite3.OperationalError):
        connection.execute("DELETE FROM leaderboard")
