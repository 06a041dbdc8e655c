"""The commands: the guide's flags and module names, status, and a start that imports nothing slow."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
from rich.console import Console

from chitransfer import __version__, cli
from chitransfer.config import Config, override_config
from chitransfer.data.compute import ADDED_COLUMNS
from chitransfer.errors import ConfigError
from chitransfer.report.html import describe_origin
from chitransfer.search.run import run_search
from chitransfer.search.study_folder import StudyFolder
from chitransfer.sections import SearchSettings, guide_space
from chitransfer.training.run_folder import RunFolder
from tests.forests import few_trees

Run = Callable[..., tuple[int, str, str]]
GUIDE_FLAGS = {
    "n_trials": ("100", "search.n_trials", 100),
    "timeout_hours": ("72", "search.timeout_hours", 72.0),
    "n_cv_folds": ("3", "cv.n_cv_folds", 3),
    "stage2_epochs": ("15", "training.stage2_epochs", 15),
    "study_name": ("my_study", "search.study_name", "my_study"),
}


class TestFlags:
    @pytest.mark.parametrize("hyphens", [False, True])
    @pytest.mark.parametrize("with_equals", [False, True])
    def test_the_guides_flags(self, run_command: Run, captured: list[Config], hyphens: bool, with_equals: bool) -> None:
        words = ["search"]
        for name, (text, _, _) in GUIDE_FLAGS.items():
            flag = "--" + (name.replace("_", "-") if hyphens else name)
            words += [f"{flag}={text}"] if with_equals else [flag, text]
        code, _, err = run_command(*words)
        assert code == 0, err
        for _, dotted, value in GUIDE_FLAGS.values():
            assert attrgetter(dotted)(captured[0]) == value

    def test_underscores_in_values_stay(self, run_command: Run, captured: list[Config]) -> None:
        run_command("search", "--set", "model.encoder_hidden_dims=64_32", "--study_name=a_b_c")
        assert captured[0].model.encoder_hidden_dims == [64, 32]
        assert captured[0].search.study_name == "a_b_c"

    def test_set_wins_over_flags_and_flags_over_the_file(
        self, run_command: Run, captured: list[Config], tiny_yaml: Path
    ) -> None:
        run_command("search", "--config", tiny_yaml, "--n-trials", 7, "--seed", 5, "--set", "seed=6")
        assert captured[0].search.n_trials == 7
        assert captured[0].seed == 6
        assert captured[0].chem.fingerprint_bits == 64

    @pytest.mark.parametrize("words", [["search"], ["compare"], ["pretrain"], ["finetune", "--pretrained=model.pt"]])
    def test_without_a_file_a_command_takes_its_shipped_one(
        self, run_command: Run, monkeypatch: pytest.MonkeyPatch, project_root: Path, words: list[str]
    ) -> None:
        resolved: list[Config] = []

        def stop(config: Config, *_: object, **__: object) -> None:
            resolved.append(config)
            raise ConfigError("far enough")

        for name in ("search.run.run_search", "training.pretrain.run_pretraining", "training.finetune.run_finetuning"):
            monkeypatch.setattr(f"chitransfer.{name}", stop)
        monkeypatch.setattr("chitransfer.evidence.compare.run_comparison", stop)
        monkeypatch.setattr("chitransfer.training.settings.read_dataset", lambda *_: None)
        shipped = "config.yaml" if words[0] in ("pretrain", "finetune") else "config_hparam_search.yaml"
        run_command(*words)
        run_command(*words, "--config", project_root / "configs" / shipped)
        assert len(resolved) == 2
        assert resolved[0] == resolved[1]

    def test_the_guides_further_hyperparameters_join_its_six(
        self, run_command: Run, captured: list[Config], project_root: Path
    ) -> None:
        text = (project_root / "docs" / "guide.md").read_text(encoding="utf-8")
        (line,) = (line for line in text.splitlines() if "--set 'search.space." in line)
        code, _, err = run_command(*shlex.split(line)[1:])
        assert code == 0, err
        assert list(captured[0].search.space) == [*guide_space(), "chi_hidden", "batchnorm"]

    def test_a_resumed_study_takes_its_own_configuration(
        self, run_command: Run, captured: list[Config], finished_search: Any
    ) -> None:
        code, _, _ = run_command("search", "--resume", finished_search.folder.database, "--n_trials", 9)
        assert code == 0
        assert captured[0].search.n_trials == 9
        assert captured[0].training == finished_search.config.training

    def test_a_resumed_study_keeps_its_name(
        self, run_command: Run, captured: list[Config], finished_search: Any
    ) -> None:
        database = finished_search.folder.database
        code, _, err = run_command("search", "--resume", database, "--study-name", "other")
        assert code == 2
        assert "--study-name names a new study; done, which is resumed, keeps its name" in err
        assert not captured
        assert run_command("search", "--resume", database, "--study-name", "done")[0] == 0

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["search", "--n_trails", "3"], "--n-trails"),
            (["search", "--n_trials", "many"], "integer"),
            (["search", "--n_trials"], "--n-trials"),
            (["serach"], "serach"),
            (["status"], "study"),
        ],
    )
    def test_mistakes_are_exit_code_2(self, run_command: Run, words: list[str], expected: str) -> None:
        code, _, err = run_command(*words)
        assert code == 2
        assert expected in err
        assert "Traceback" not in err

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["search", "--n_trials", "0"], "from the command line: search.n_trials"),
            (["search", "--sampler", "magic"], "search.sampler"),
            (["search", "--config", "none.yaml"], "none.yaml"),
            (["search", "--resume", "none"], "no study found"),
            (["search", "--set", "seed"], "--set needs the form"),
            (["search", "--study_name", "../x"], "search.study_name"),
            (["status", "none"], "no study found"),
            (["compare", "--name", "../../escaped"], "--name should be 1 to 100 letters, digits, _, . and -"),
            (["data", "check", "--figure", "check.xyz"], "--figure check.xyz: the name must end in .png or .svg"),
            (["data", "build", "--n", "5", "--output", "/dev/null/table.csv"], "/dev/null is a file"),
            (["data", "compute", "--input", "none.csv", "--output", "none.xlsx"], "must end in .csv or .csv.gz"),
            (["data", "compute", "--input", "none.csv", "--output", "/"], "/: is a folder"),
            (["predict", "--model", "none.pt", "--input", "none.csv", "--output", "none.xlsx"], "must end in .csv"),
            (["predict", "--model", "none.pt", "--input", "none.csv", "--output", "/tmp"], "/tmp: is a folder"),
        ],
    )
    def test_what_cannot_be_done_is_one_message(self, run_command: Run, words: list[str], expected: str) -> None:
        code, _, err = run_command(*words)
        assert code == 2
        assert expected in err
        assert err.count("ERROR") == 1
        assert "Traceback" not in err

    @pytest.mark.parametrize("verb", ["search", "compare", "pretrain"])
    def test_a_device_that_is_not_there_leaves_no_folder(self, run_command: Run, tiny_yaml: Path, verb: str) -> None:
        code, _, err = run_command(verb, "--config", tiny_yaml, "--device", "cuda:99")
        assert code == 2
        assert "cuda:99 is not on this machine" in err
        assert not (tiny_yaml.parent / "results").exists()

    def test_a_file_the_system_refuses_is_one_message(
        self, run_command: Run, finished_search: Any, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        code, _, err = run_command("apply", finished_search.folder.path, "--output", tmp_path / "file" / "config.yaml")
        assert code == 2
        assert err.startswith(f"ERROR: {tmp_path / 'file'}")
        assert err.count("\n") == 1

    @pytest.mark.parametrize("name", [[], ["--study-name", "first"]])
    def test_a_results_folder_that_cannot_be_written_has_its_remedy(
        self, run_command: Run, tmp_path: Path, name: list[str]
    ) -> None:
        (tmp_path / "file").touch()
        code, _, err = run_command("search", *name, "--results-dir", tmp_path / "file" / "x")
        assert code == 2
        remedy = "make it writable or name another one with --results-dir"
        assert err == (
            f"ERROR: {tmp_path / 'file' / 'x' / 'hparam_search'}: the results folder cannot be written "
            f"(Not a directory); {remedy}\n"
        )
        with pytest.raises(ConfigError, match=f"cannot be written .*{remedy}"):
            RunFolder.create(str(tmp_path / "file" / "x"), "multitask")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
    def test_an_output_that_is_full_is_one_message(self) -> None:
        with Path("/dev/full").open("w", encoding="utf-8") as full:
            ended = subprocess.run(
                [sys.executable, "-m", "chitransfer", "data", "fetch"],
                stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
        assert ended.returncode == 2
        assert ended.stderr == (
            "ERROR: the output, a temporary folder (TMPDIR) or /dev/shm: cannot be written (No space left on device); "
            "free some disk space\n"
        )

    def test_a_reader_that_has_gone_is_no_news(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        ended = subprocess.run(
            [sys.executable, "-m", "chitransfer", "data", "fetch"],
            stdout=writing, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        os.close(writing)
        assert ended.returncode == 1
        assert ended.stderr == ""

    @pytest.mark.parametrize(
        ("reason", "code", "said"),
        [("no port is free", 1, "no port is free\n"), (143, 143, "terminated\n"), (0, 0, "")],
    )
    def test_what_ends_the_program_is_heard(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        reason: str | int,
        code: int,
        said: str,
    ) -> None:
        monkeypatch.setattr(cli, "app", lambda *_, **__: sys.exit(reason))
        with pytest.raises(SystemExit, match=f"^{code}$"):
            cli.main([])
        assert capsys.readouterr().err == said

    def test_letters_that_the_terminal_lacks_stop_nothing(self) -> None:
        ended = subprocess.run(
            [sys.executable, "-m", "chitransfer", "--help"],
            env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert "search" in ended.stdout


class TestStatus:
    @pytest.mark.parametrize("by_database", [True, False])
    def test_a_finished_study(self, run_command: Run, finished_search: Any, by_database: bool) -> None:
        folder = finished_search.folder
        code, out, _ = run_command("status", folder.database if by_database else folder.path)
        assert code == 0
        assert "study done: 6 of 6 trials ended (6 complete)" in out
        top = pd.read_csv(folder.path / "top_20_trials.csv")
        for place, row in enumerate(top.head(5).itertuples(), start=1):
            assert f"{place}. trial {row.number}: {row.value:.4f}" in out
        assert "6. trial" not in out
        assert f"exp MAE {top['exp_mae'][0]:.3f}" in out
        assert "pace: " in out

    def test_a_total_that_is_reached(self, run_command: Run, finished_search: Any, tmp_path: Path) -> None:
        folder = StudyFolder(Path(shutil.copytree(finished_search.folder.path, tmp_path / "done")))
        config, out = override_config(finished_search.config, {"search.n_trials": 4}), io.StringIO()
        with few_trees():
            assert run_search(config, Console(file=out, width=300), resume=folder, draw=lambda *_: None) == 0
        said = "nothing was left to do: 6 trials ended, the total is 4; a larger total (--n-trials) adds trials"
        assert said in out.getvalue()
        environment = json.loads((folder.path / "environment.json").read_text(encoding="utf-8"))
        before = json.loads((finished_search.folder.path / "environment.json").read_text(encoding="utf-8"))
        assert environment["earlier_runs"] == [{name: before[name] for name in ("started", "chitransfer", "command")}]
        assert {f"command of {run['started']}" for run in (before, environment)} <= describe_origin(folder).keys()
        assert "study done: 6 trials ended (6 complete)" in run_command("status", folder.path)[1]

    @pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "{", ""])
    def test_an_environment_that_is_no_object_says_nothing(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "environment.json").write_text(content, encoding="utf-8")
        assert describe_origin(StudyFolder(tmp_path)) == {}

    def test_it_changes_nothing(self, run_command: Run, finished_search: Any) -> None:
        before = finished_search.folder.database.read_bytes()
        run_command("status", finished_search.folder.path)
        assert finished_search.folder.database.read_bytes() == before


class TestStart:
    def test_help_imports_nothing_slow(self) -> None:
        slow = "{'torch', 'optuna', 'pandas', 'numpy', 'rdkit', 'sklearn', 'scipy', 'dask', 'matplotlib', 'thermo'}"
        program = f"import sys, chitransfer.cli; print(sorted({slow} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_who_only_reads_a_study_does_not_wait_for_pytorch(self, finished_search: Any, tmp_path: Path) -> None:
        """``status`` and ``apply`` start in a third of the time: neither do they wait for RDKit."""
        study = finished_search.folder.path
        program = f"""
import sys
from chitransfer.cli import main
for words in (["status", {str(study)!r}], ["apply", {str(study)!r}, "--output", {str(tmp_path / "new.yaml")!r}]):
    try:
        main(words)
    except SystemExit as end:
        assert not end.code
print(sorted({{"torch", "sklearn", "scipy.stats", "rdkit"}} & set(sys.modules)))
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert "6 complete" in done.stdout
        assert done.stdout.splitlines()[-1] == "[]"
        assert (tmp_path / "new.yaml").is_file()

    @pytest.mark.parametrize("words", [["--help"], ["-h"], ["search", "--help"], ["status", "-h"]])
    def test_help(self, run_command: Run, words: list[str]) -> None:
        code, out, _ = run_command(*words)
        assert code == 0
        assert "Usage" in out

    def test_version(self, run_command: Run) -> None:
        assert run_command("--version") == (0, f"chitransfer {__version__}\n", "")

    @pytest.mark.parametrize("module", ["hparam_search_transfer_aware", "train_dft_pretrain", "train_multitask"])
    def test_the_guides_modules_show_the_usage_they_have(self, module: str, project_root: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", f"src.training.{module}", "-h"],
            cwd=project_root, env={**os.environ, "COLUMNS": "200"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        usage = " ".join(done.stdout.split())
        assert re.match(rf"Usage: python\S* -m src\.training\.{module} \[OPTIONS\]", usage), usage

    def test_a_glob_the_shell_expanded(self, run_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[list[str]] = []

        def remember(config: Config, pretrained: list[str], *_: object) -> None:
            seen.append(pretrained)
            raise ConfigError("far enough")

        monkeypatch.setattr("chitransfer.training.finetune.run_finetuning", remember)
        run_command("finetune", "--pretrained", "a/best_model.pt", "b/best_model.pt", "c_d/best_model.pt", "--seed", 1)
        assert seen == [["a/best_model.pt", "b/best_model.pt", "c_d/best_model.pt"]]

    def test_help_names_every_sampler_and_pruner(self, run_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        _, out, _ = run_command("search", "--help")
        for key in ("sampler", "pruner"):
            for name in get_args(SearchSettings.model_fields[key].annotation):
                assert re.search(rf"--{key} .*\b{name}\b", out), name

    def test_help_of_data_compute_names_the_columns_it_adds(
        self, run_command: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        _, out, _ = run_command("data", "compute", "--help")
        named = re.search(r"The same table with (.*?)\.", out)
        assert named is not None
        assert tuple(named[1].split(", ")) == ADDED_COLUMNS

    def test_without_words_it_says_what_there_is(self, run_command: Run) -> None:
        _, out, err = run_command()
        assert "search" in out + err

    def test_the_guides_module_runs_one_trial(self, tiny_yaml: Path, project_root: Path, tmp_path: Path) -> None:
        """`python -m src.training.hparam_search_transfer_aware --config … --n_trials 1`, as the guide has it."""
        done = subprocess.run(
            [
                sys.executable, "-m", "src.training.hparam_search_transfer_aware",
                "--config", str(tiny_yaml), "--n_trials", "1", "--study_name", "one", "--set", "cv.random_forest=false",
            ],
            cwd=project_root, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        assert "search finished: 1 complete" in done.stdout
        assert (tmp_path / "results" / "hparam_search" / "one" / "best_params.json").exists()

    @pytest.mark.slow
    def test_the_launcher(self, tiny_yaml: Path, project_root: Path, tmp_path: Path) -> None:
        if not (Path(sys.prefix) / "bin" / "python").exists():
            pytest.skip("this Python is no virtual environment")
        environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PYTHONPATH": str(project_root)}
        launcher = project_root / "scripts" / "run_hparam_search.sh"

        def launch(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["bash", str(launcher), *words],
                cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False,
            )  # fmt: skip

        first = launch("--config", str(tiny_yaml), "--n_trials", "1", "--study_name", "launched")
        assert first.returncode == 0, first.stderr
        study = tmp_path / "results" / "hparam_search" / "launched"
        second = launch("--resume", str(study / "study.db"), "--n_trials", "2")
        assert second.returncode == 0, second.stderr
        assert len(pd.read_csv(study / "all_trials.csv")) == 2
        assert launch("--n_trials", "0").returncode == 2
        stopped = launch("--config", str(tiny_yaml), "--study_name", "stopped", "--timeout_hours", "1e-9")
        assert stopped.returncode == 0, stopped.stderr
        (line,) = (line for line in stopped.stdout.splitlines() if line.startswith("resume with: "))
        database = study.with_name("stopped") / "study.db"
        assert shlex.split(line)[2:] == ["bash", str(launcher), "--resume", str(database)]
