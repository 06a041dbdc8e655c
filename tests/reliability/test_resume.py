"""Resuming with a wider space, from a copied folder, and a study of an earlier release."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from searching import SHORTEST, comparable, read_trials

from chitransfer.config import load_config
from chitransfer.console import make_console
from chitransfer.errors import StudyError
from chitransfer.search.contract import find_differences, find_space_refusals
from chitransfer.search.encoders import read_encoders
from chitransfer.search.run import run_search
from chitransfer.search.study_folder import StudyFolder, load_study_config, locate_study
from tests.forests import few_trees

Search = Callable[..., tuple[int, Any]]
STORED = Path(__file__).parent / "study_0_1"


def resume(overrides: dict[str, object], folder: StudyFolder, *, extended: bool) -> int:
    return run_search(
        load_config(None, overrides),
        make_console(quiet=True),
        resume=folder,
        allow_extended_space=extended,
        draw=lambda study, reference, folder: None,
    )


@pytest.fixture
def small(tiny: dict[str, object]) -> dict[str, object]:
    return {**tiny, **SHORTEST, "search.n_trials": 2, "training.num_epochs_pretrain": 1}


def widened(small: dict[str, object]) -> dict[str, object]:
    space: dict[str, Any] = copy.deepcopy(small["search.space"])  # type: ignore[assignment]
    space["encoder_dropout"]["high"] = 0.5
    space["chi_head_dropout"] = {"key": "model.chi_head_dropout", "type": "float", "low": 0.0, "high": 0.4}
    return {**small, "search.space": space, "search.n_trials": 4}


def test_a_wider_space_is_taken_when_asked_for(
    small: dict[str, object], make_search: Search, caplog: pytest.LogCaptureFixture
) -> None:
    _, folder = make_search(small)
    before = comparable(read_trials(folder.database))
    with pytest.raises(StudyError, match=r"encoder_dropout(.|\n)*--allow-extended-space accepts it"):
        resume(widened(small), folder, extended=False)
    assert resume(widened(small), folder, extended=True) == 0
    trials = read_trials(folder.database)
    assert comparable(trials)[:2] == before
    assert all("chi_head_dropout" in trial.params for trial in trials[2:])
    # From now on the study has the wider space: the old one is refused, the new one needs no permission.
    with pytest.raises(StudyError, match="chi_head_dropout"):
        resume({**small, "search.n_trials": 5}, folder, extended=False)
    assert "at random" not in caplog.text
    assert resume({**widened(small), "search.n_trials": 5, "search.sampler": "nsga2"}, folder, extended=False) == 0
    assert "search.sampler nsga2 draws encoder_dropout, chi_head_dropout at random" in caplog.text


FLOAT = {"key": "model.encoder_dropout", "type": "float", "low": 0.1, "high": 0.3, "choices": None, "step": None}
CHOICE = {"key": "model.encoder_latent_dim", "type": "categorical", "choices": [4, 8], "low": None, "high": None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": {**FLOAT, "low": 0.2}}, r"space\.x\.low: can only be lowered"),
        ({"x": {**FLOAT, "high": 0.2}}, r"space\.x\.high: can only be raised"),
        ({"x": {**FLOAT, "type": "log"}}, r"space\.x\.type"),
        ({"x": {**FLOAT, "key": "model.chi_head_dropout"}}, r"space\.x\.key"),
        ({"x": {**FLOAT, "step": 0.1}}, r"space\.x\.step"),
        ({"y": {**CHOICE, "choices": [4, 8, 16]}}, "Optuna cannot change the choices"),
        ({"x": None}, "cannot be removed"),
    ],
)
def test_what_is_no_extension(change: dict[str, Any], said: str) -> None:
    known = {"x": FLOAT, "y": CHOICE}
    now = {name: parameter for name, parameter in {**known, **change}.items() if parameter is not None}
    (refusal,) = find_space_refusals(known, now)
    assert re.search(said, refusal)


def test_what_is_an_extension() -> None:
    known = {"x": FLOAT, "y": CHOICE}
    now = {**known, "x": {**FLOAT, "low": 0.0, "high": 0.9}, "z": FLOAT}
    assert find_space_refusals(known, now) == []


def test_keys_an_earlier_release_did_not_have_count_as_their_default() -> None:
    now = {"seed": 42, "objective": {"exp_mae": 1.5, "sol_mcc": 0.0}, "data": {}, "space": {}}
    known = {"seed": 42, "objective": {"exp_mae": 1.5}, "data": {}, "space": {}}
    assert find_differences(known, now) == []
    assert find_differences(known, {**now, "objective": {"exp_mae": 1.5, "sol_mcc": 1.0}}) == [
        "objective.sol_mcc: None in the study, now 1.0"
    ]
    assert find_differences({**known, "data": {"chi": 1}}, now) == ["data.chi: 1 in the study, now None"]


def test_a_copied_folder_goes_on_elsewhere(small: dict[str, object], make_search: Search, tmp_path: Path) -> None:
    _, folder = make_search(small)
    before = comparable(read_trials(folder.database))
    elsewhere = tmp_path / "another machine" / "renamed ?%#"
    shutil.copytree(folder.path, elsewhere)
    shutil.rmtree(folder.path)
    # What a driver that died on the first machine left behind does not count on this one.
    (elsewhere / "driver.json").write_text(json.dumps({"host": "gone", "pid": 1, "since": "long ago"}))
    moved = locate_study(elsewhere)
    assert resume({**small, "search.n_trials": 3}, moved, extended=False) == 0
    assert comparable(read_trials(moved.database))[:2] == before
    assert not (elsewhere / "driver.json").exists()
    assert not folder.path.exists()


def test_a_resumed_study_stays_where_it_is(run_command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    study = tmp_path / "here" / "hparam_search" / "study"
    study.mkdir(parents=True)
    (study / "study.db").touch()
    code, _, err = run_command("search", "--resume", study, "--results-dir", tmp_path / "there")
    assert code == 2
    assert f"--results-dir is for a new study; {study.resolve()}, which is resumed, stays where it is" in err
    assert "--results-dir" not in run_command("search", "--resume", study, "--results-dir", tmp_path / "here")[2]


def test_a_study_of_an_earlier_release_goes_on(tmp_path: Path) -> None:
    """Trial 2 was under way, after its first rung, when the earlier release was stopped."""
    copied = tmp_path / "study"
    shutil.copytree(STORED, copied)
    folder = locate_study(copied / "study" / "study.db")
    before = read_trials(folder.database)
    assert [t.state.name for t in before] == ["COMPLETE", "COMPLETE", "RUNNING"]
    tables = {
        f"paths.{key}": str(copied / "tables" / name)
        for key, name in (
            ("dft_chi_csv", "computed.csv"),
            ("exp_chi_csv", "measured.csv"),
            ("solubility_csv", "soluble.csv"),
        )
    }
    config = load_study_config(folder, {**tables, "paths.cache_dir": str(tmp_path / "cache"), "search.n_trials": 4})
    with few_trees():
        code = run_search(config, make_console(quiet=True), resume=folder, draw=lambda study, reference, folder: None)
    assert code == 0
    after = read_trials(folder.database)
    assert [t.state.name for t in after] == ["COMPLETE"] * 4
    assert comparable(after)[:2] == comparable(before)[:2]
    assert after[2].params == before[2].params
    assert after[2].intermediate_values.items() >= before[2].intermediate_values.items()
    assert [len(read_encoders(folder.trial(number))) for number in range(4)] == [1] * 4
