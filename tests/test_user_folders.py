"""The user's own folders: the home that ~ stands for, and a current folder that is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chitransfer.chemistry.features import default_cache_folder
from chitransfer.config import load_config, parse_set_options

RunCommand = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in this test's own folder, beside the current one."""
    folder, current = tmp_path / "home", tmp_path / "current"
    folder.mkdir()
    current.mkdir()
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(folder))
    monkeypatch.chdir(current)
    return folder


@pytest.mark.parametrize("key", ["dft_chi_csv", "exp_chi_csv", "solubility_csv", "results_dir", "cache_dir"])
def test_every_path_of_the_configuration_may_begin_at_home(home: Path, key: str) -> None:
    config = load_config(None, parse_set_options([f"paths.{key}=~/x~y"]))
    assert getattr(config.paths, key) == f"{home}/x~y"
    (home / "config.yaml").write_text(f"paths:\n  {key}: ~/x\n", encoding="utf-8")
    assert getattr(load_config(home / "config.yaml").paths, key) == f"{home}/x"


@pytest.mark.parametrize("value", ["builtin:computed_chi", "tables/~x.csv", "./~"])
def test_other_paths_stay_as_they_are(home: Path, value: str) -> None:
    assert load_config(None, {"paths.dft_chi_csv": value}).paths.dft_chi_csv == value


def test_an_option_with_its_value_in_one_word_may_begin_at_home(home: Path, run_command: RunCommand) -> None:
    code, _, error = run_command("pretrain", "--config=~/none.yaml")
    assert code == 2
    assert f"{home}/none.yaml" in error


def test_the_cache_may_be_at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHITRANSFER_CACHE", "~/cache")
    assert default_cache_folder() == home / "cache"


@pytest.mark.parametrize("words", [["status", "x"], ["search"], ["apply", "x"]])
def test_a_current_folder_that_is_gone_is_one_message(home: Path, run_command: RunCommand, words: list[str]) -> None:
    Path.cwd().rmdir()
    assert run_command(*words) == (2, "", "ERROR: the current folder is gone; cd to another\n")


def test_a_name_that_the_locale_cannot_write_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text('paths: {exp_chi_csv: "χ.csv"}\n', encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "chitransfer", "data", "check", "--config", str(path)],
        env=os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    last = ended.stderr.decode().splitlines()[-1]
    assert ended.returncode == 2
    assert last == r"ERROR: \u03c7.csv: cannot be written in this locale (ascii); set LC_ALL=C.UTF-8"
