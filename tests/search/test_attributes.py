"""Attributes of a trial written in one commit."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

from chitransfer.search.storage import AttributeTable, open_storage, sqlite_address


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "study.db"


@pytest.fixture
def trial(database: Path) -> optuna.Trial:
    """A running trial, the second of its study."""
    study = optuna.create_study(storage=open_storage(sqlite_address(database, "rwc")), study_name="one")
    study.ask()
    return study.ask()


@pytest.fixture
def commits() -> Iterator[list[Any]]:
    """What is committed through SQLAlchemy meanwhile."""
    seen: list[Any] = []
    note = seen.append
    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", note)
    yield seen
    sqlalchemy.event.remove(sqlalchemy.Engine, "commit", note)


def read_attributes(database: Path) -> list[dict[str, Any]]:
    """Each trial's attributes as Optuna reads them anew."""
    study = optuna.load_study(study_name="one", storage=open_storage(sqlite_address(database)))
    return [trial.user_attrs for trial in study.trials]


def test_optuna_reads_what_was_written_in_one_commit(database: Path, trial: optuna.Trial, commits: list[Any]) -> None:
    attributes = {"a": 0.1, "b": None, "c": [1, 2.5], "d": "χ: it's", "e": True, "f": math.inf, "g": {"h": 1}}
    AttributeTable(sqlite_address(database)).write(trial, attributes)
    assert len(commits) == 1
    assert read_attributes(database) == [{}, attributes]


def test_later_values_take_the_places_of_earlier_ones(database: Path, trial: optuna.Trial) -> None:
    trial.set_user_attr("a", 1)
    trial.set_user_attr("b", 2)
    AttributeTable(sqlite_address(database)).write(trial, {"b": 3, "c": 4})
    assert read_attributes(database) == [{}, {"a": 1, "b": 3, "c": 4}]
    trial.set_user_attr("c", 5)
    assert read_attributes(database) == [{}, {"a": 1, "b": 3, "c": 5}]


def test_all_are_written_or_none(database: Path, trial: optuna.Trial) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON trial_user_attributes WHEN new.key = 'b' "
            "BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
    with pytest.raises(sqlalchemy.exc.SQLAlchemyError, match="refused"):
        AttributeTable(sqlite_address(database)).write(trial, {"a": 1, "b": 2})
    assert read_attributes(database) == [{}, {}]


def test_a_trial_that_ended_keeps_its_own(database: Path, trial: optuna.Trial) -> None:
    """Another driver may have ended it."""
    table = AttributeTable(sqlite_address(database))
    table.write(trial, {"a": 1})
    trial.study.tell(trial, 0.5)
    table.write(trial, {"a": 2, "b": 3})
    assert read_attributes(database) == [{}, {"a": 1}]
