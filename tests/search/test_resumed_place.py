"""A resumed study stays where it is and keeps its name, whatever the file says that it goes on under."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chitransfer.config import Config, dump_config, override_config
from chitransfer.search.study_folder import load_study_config

RunCommand = Callable[..., tuple[int, str, str]]


@pytest.fixture
def other_file(finished_search: Any, tmp_path: Path) -> Path:
    """The study's configuration under another name and another results folder, with another time."""
    changes = {"search.study_name": "other", "paths.results_dir": "elsewhere", "search.timeout_hours": 7.0}
    path = tmp_path / "other.yaml"
    path.write_text(dump_config(override_config(finished_search.config, changes)), encoding="utf-8")
    return path


def test_a_file_changes_neither_name_nor_place(
    finished_search: Any, other_file: Path, captured: list[Config], run_command: RunCommand
) -> None:
    words = ["search", "--resume", finished_search.folder.path, "--config", other_file]
    code, _, err = run_command(*words, "--n-trials", 9)
    assert code == 0, err
    changes = {"search.timeout_hours": 7.0, "search.n_trials": 9}
    assert captured == [override_config(load_study_config(finished_search.folder, {}), changes)]
    assert run_command(*words, "--study-name", "other")[0] == 2
    assert run_command(*words, "--results-dir", "elsewhere")[0] == 2


@pytest.mark.parametrize("text", [None, "searhc: {}\n"])
def test_a_file_in_place_of_a_lost_or_damaged_configuration_keeps_the_name(
    finished_search: Any,
    copy_study: Callable[[Any], Any],
    other_file: Path,
    captured: list[Config],
    run_command: RunCommand,
    text: str | None,
) -> None:
    study = copy_study(finished_search.folder)
    study.config.unlink()
    if text is not None:
        study.config.write_text(text, encoding="utf-8")
    code, _, err = run_command("search", "--resume", study.path, "--config", other_file)
    assert code == 0, err
    (config,) = captured
    assert (config.search.study_name, config.search.timeout_hours) == ("done", 7.0)
