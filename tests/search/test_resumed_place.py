"""A resumed study stays where it is and keeps its name, whatever the file says that it goes on under."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chitransfer.config import Config, dump_config, override_config
from chitransfer.errors import StudyError
from chitransfer.search.lock import drive_alone
from chitransfer.search.study_folder import StudyFolder, load_study_config
from chitransfer.search.summary import describe_status

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


def test_a_search_inside_a_comparison_goes_on_with_it(made_up_search: Callable[..., Any], tmp_path: Path) -> None:
    comparison = tmp_path / "compared"
    search = made_up_search(search__n_trials=5)
    search.folder = StudyFolder(comparison / "known_chemistry" / "outer_0" / "transfer_search")
    search.folder.path.mkdir(parents=True)
    (comparison / "conditions.json").write_text("{}")
    search.drive()
    search.workers.close()
    told = describe_status(search.study, search.folder, search.config.search)
    assert any(line.endswith("runs on fresh seeds and folds done") for line in told), "`search` cannot do the others"
    with drive_alone(StudyFolder(comparison)):
        told = describe_status(search.study, search.folder, search.config.search)
    assert any(line.startswith("its comparison is running (host ") for line in told)
    assert search.folder.resume_command == f"the `chitransfer compare` command that began {comparison}"
    search.workers.failure = lambda task: "made up"
    with pytest.raises(StudyError, match="repeat the comparison's command; other settings") as failed:
        search.drive(search__n_trials=20)
    assert "logs" not in str(failed.value), "a comparison keeps none"
