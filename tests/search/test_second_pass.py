"""The second pass: Stage 2 tuned on one kept encoder, resumable, and judged on folds that chose nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from chitransfer.config import Config, load_config, override_config
from chitransfer.console import make_console
from chitransfer.data.assemble import Dataset
from chitransfer.errors import CheckpointError, ConfigError, StudyError, TrainingError
from chitransfer.search import second_pass
from chitransfer.search.objective import FIRST_FRESH
from chitransfer.search.rescore import rescore_study
from chitransfer.search.second_pass import FreshScores, run_second_pass
from chitransfer.search.study_folder import StudyFolder
from chitransfer.search.summary import describe_first_pass
from tests.conftest import Tables, tiny_overrides, write_tables

SPACE = {
    "lr_finetune": {"key": "training.lr_finetune", "type": "log", "low": 1e-3, "high": 1e-1},
    "freeze_encoder": {"key": "training.freeze_encoder_stage2", "type": "categorical", "choices": [True, False]},
    "chi_head_dropout": {"key": "model.chi_head_dropout", "type": "float", "low": 0.0, "high": 0.4},
    "stage2_epochs": {"key": "training.stage2_epochs", "type": "int", "low": 2, "high": 6},
}

ENCODER_RATE = "{key: training.lr_encoder, type: log, low: 1.0e-5, high: 1.0e-3}"


@pytest.fixture(scope="module")
def searched(make_search: Callable[..., tuple[int, Any]], tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A finished search of two trials, with a small second-pass space."""
    root = tmp_path_factory.mktemp("searched")
    overrides = {**tiny_overrides(write_tables(root), root), "search.n_trials": 2, "search.reevaluate_top": 0}
    _, folder = make_search({**overrides, "second_pass.space": SPACE, "second_pass.n_trials": 4})
    assert isinstance(folder, StudyFolder)
    return folder


@pytest.fixture
def study(searched: StudyFolder, copy_study: Callable[[StudyFolder], StudyFolder]) -> StudyFolder:
    """A test's own copy of the search of two trials."""
    return copy_study(searched)


def read(folder: Path) -> pd.DataFrame:
    """All trials of a second pass."""
    return pd.read_csv(folder / "all_trials.csv")


def nothing(*words: object) -> None:
    """Draw no figures."""


def test_it_starts_from_the_first_pass_and_tunes_stage2_alone(study: StudyFolder) -> None:
    best = json.loads((study.path / "best_params.json").read_text())
    assert run_second_pass(study, make_console(quiet=True), draw=nothing) == 0
    own = study.path / f"second_pass_{best['best_trial_number']:04d}"
    trials = read(own)
    assert (trials["state"] == "COMPLETE").all()
    assert len(trials) == 4
    # Trial 0 repeats the first pass's Stage 2 settings, so it repeats its score.
    assert bool(trials["is_default"][0])
    assert trials["value"][0] == pytest.approx(best["best_value"], rel=1e-5)
    assert trials["value"].min() < trials["value"][0]
    assert trials["stage1_mae"].nunique() == 1
    assert set(json.loads((own / "best_params.json").read_text())["best_params"]) == set(SPACE)
    fresh = json.loads((own / "fresh_folds.json").read_text())
    assert len(fresh["first"]) == len(fresh["second"]) == 5
    assert np.isfinite([*fresh["first"], *fresh["second"]]).all()
    with pytest.raises(StudyError, match=f"a second pass keeps no Stage 1 .* rescore those of its study, {study.path}"):
        rescore_study(StudyFolder(own), {})


def test_started_again_it_goes_on(study: StudyFolder) -> None:
    run_second_pass(study, make_console(quiet=True), trial=0, draw=nothing)
    first = read(study.path / "second_pass_0000")
    run_second_pass(study, make_console(quiet=True), trial=0, overrides={"second_pass.n_trials": 6}, draw=nothing)
    second = read(study.path / "second_pass_0000")
    assert len(second) == 6
    pd.testing.assert_series_equal(second["value"][:4], first["value"], check_names=False)


def test_a_table_that_is_another_now_is_told(
    study: StudyFolder, tables: Tables, capsys: pytest.CaptureFixture[str]
) -> None:
    with tables.solubility.open("a", encoding="utf-8") as stream:
        stream.write("*CCO*,1\n")
    run_second_pass(
        study, make_console(), trial=0, overrides={"paths.solubility_csv": str(tables.solubility)}, draw=nothing
    )
    said = " ".join(capsys.readouterr().out.split())
    assert f"WARNING: the table of solubility, {tables.solubility}, is not the one that the study used" in said


def test_a_comparison_of_fewer_trials_does_not_stay(study: StudyFolder) -> None:
    """It is about the best trial of then; a report would take it for that of now."""
    run_second_pass(study, make_console(quiet=True), trial=0, overrides={"second_pass.n_trials": 1}, draw=nothing)
    kept = study.path / "second_pass_0000" / "fresh_folds.json"
    kept.write_text('{"first": [2.0, 2.0], "second": [1.0, 1.0]}', encoding="utf-8")
    run_second_pass(study, make_console(quiet=True), trial=0, overrides={"search.timeout_hours": 1e-9}, draw=nothing)
    assert not kept.exists()


def test_what_cannot_go_on_leaves_its_configuration(study: StudyFolder) -> None:
    run_second_pass(study, make_console(quiet=True), trial=0, overrides={"second_pass.n_trials": 1}, draw=nothing)
    config = study.path / "second_pass_0000" / "config.yaml"
    assert not (config.parent / "fresh_folds.json").exists(), "with itself the first pass need not be compared"
    before = config.read_bytes()
    with pytest.raises(StudyError, match="under other conditions"):
        run_second_pass(study, make_console(quiet=True), trial=0, overrides={"objective.sol_f1": 9.0}, draw=nothing)
    assert config.read_bytes() == before


def test_what_it_cannot_do_is_refused(study: StudyFolder) -> None:
    console = make_console(quiet=True)
    with pytest.raises(StudyError, match="no trial 9"):
        run_second_pass(study, console, trial=9, draw=nothing)
    with pytest.raises(StudyError, match="other conditions"):
        run_second_pass(study, console, overrides={"training.lr_schedule_factor": 0.1}, draw=nothing)
    (study.trial(1) / "stage1.pt").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        run_second_pass(study, console, trial=1, draw=nothing)
    with pytest.raises(ConfigError, match=r"second_pass\.space.*cannot tune training\.lr_pretrain"):
        load_config(None, {"second_pass.space.lr": {**SPACE["lr_finetune"], "key": "training.lr_pretrain"}})


def test_polymers_of_other_names_are_refused(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their names the validation polymers of Stage 1 were drawn."""
    monkeypatch.setattr(Dataset, "names_digest", lambda self: "of another RDKit")
    with pytest.raises(StudyError, match=r"the polymers have other names .*the version of RDKit differs"):
        run_second_pass(study, make_console(quiet=True), draw=nothing)
    assert not list(study.path.glob("second_pass_*"))


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([-0.22, -0.18, -0.2], "the first pass's Stage 2 settings are the better choice on these polymers"),
        ([0.22, 0.18, 0.2], "the second pass's Stage 2 settings are the better choice on these polymers"),
        ([0.3, 0.1, 0.2], "no difference was found between the two passes' Stage 2 settings"),
        ([0.3, -0.1, 0.0], "no difference was found between the two passes' Stage 2 settings"),
        ([0.0, 0.0, 0.0], "no difference was found between the two passes' Stage 2 settings"),
    ],
)
def test_a_second_pass_that_was_lucky_is_called_so(gains: list[float], verdict: str) -> None:
    first = np.array([1.0, 1.5, 1.2])
    line = FreshScores(first, first - np.array(gains)).describe()
    half_width = 4.302653 * np.std(gains, ddof=1) / np.sqrt(3)  # Student's t of two degrees of freedom.
    assert f"gain {np.mean(gains):.4f} ± {half_width:.4f} (95 %); {verdict}" in line


def test_fresh_folds_come_with_seeds_that_tuned_neither_pass(
    shared_tiny_config: Config, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bytes]] = []

    def score(runner: Any, config: Config, number: int, encoders: Any, folds: np.ndarray, first: int) -> Any:
        seen.append((first, folds.tobytes()))
        return SimpleNamespace(value=config.model.encoder_dropout)

    monkeypatch.setattr(second_pass, "score_encoders", score)
    config = override_config(shared_tiny_config, {"model.encoder_dropout": 0.25})
    runner: Any = SimpleNamespace(dataset=tiny_dataset)
    encoders: Any = [1, 2]
    found = second_pass.compare_on_fresh_folds(runner, config, 3, encoders, {"encoder_dropout": 0.125})
    assert (found.first.tolist(), found.second.tolist()) == ([0.25] * 5, [0.125] * 5)
    assert seen[::2] == seen[1::2], "both passes are scored alike"
    for what in zip(*seen[::2], strict=True):
        assert len(set(what)) == 5
    assert min(first for first, _ in seen) >= FIRST_FRESH * 2


def test_the_command_stops_and_goes_on(
    study: StudyFolder, run_command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = study.path / "second_pass_0000"
    started = ["search", "--second-pass", study.path, "--trial", 0, "--n_trials", 3, "--set", "objective.sol_f1=0.5"]
    code, out, _ = run_command(*started, "--timeout-hours", 1e-9)
    assert code == 0
    assert "second pass on trial 0" in out
    assert "second pass stopped after 1e-09 h: " in out
    assert f"resume with: chitransfer search --resume {own / 'study.db'}" in out.replace("\n", "")
    # On and on under its own configuration: what the first command changed need not be said again.
    with monkeypatch.context() as patch:
        patch.setattr("chitransfer.search.second_pass.compare_on_fresh_folds", _interrupt)
        code, out, _ = run_command("search", "--resume", own, "--timeout-hours", 1)
    assert code == 130
    assert f"continue with: chitransfer search --resume {own / 'study.db'}" in out.replace("\n", "")
    code, out, _ = run_command("search", "--resume", own / "study.db")
    assert code == 0
    assert load_config(own / "config.yaml").objective.sol_f1 == 0.5
    refused = run_command("search", "--resume", own, "--config", own / "config.yaml")[2]
    assert "a second pass continues with its own configuration; leave out --config" in refused
    last_words = out[out.index("second pass on the Stage 1 of trial 0") :]
    assert last_words.startswith(f"second pass on the Stage 1 of trial 0 of {study.name}: here the default")
    assert "Key Insight" not in last_words, "all its trials share one Stage 1"
    assert (own / "report.html").is_file()
    code, again, _ = run_command("report", own)
    assert code == 0
    assert again == last_words
    assert len(read(own)) == 3
    for said in (
        "nothing was left to do: 3 trials ended, the total is 3; a larger total (--n-trials) adds trials",
        "  first pass (trial 0)",
        "best parameters: lr_finetune=",
        "that neither pass has seen",
    ):
        assert said in out
    assert StudyFolder(own).reference.is_file(), "a report needs it"
    (said,) = describe_first_pass(StudyFolder(own))
    assert said.startswith(f"second pass on the Stage 1 of trial 0 of {study.name}: here the default")


def _interrupt(*words: object) -> None:
    raise KeyboardInterrupt


def test_folds_that_cannot_be_scored_do_not_end_it(
    study: StudyFolder, run_command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*words: object) -> None:
        raise TrainingError("the loss became nan")

    monkeypatch.setattr("chitransfer.search.second_pass.compare_on_fresh_folds", diverge)
    code, out, _ = run_command("search", "--second-pass", study.path, "--trial", 0, "--n_trials", 3)
    own = study.path / "second_pass_0000"
    assert code == 0
    assert "WARNING: the two passes could not be compared on them: the loss became nan" in " ".join(out.split())
    assert (own / "report.html").is_file()
    assert not (own / "fresh_folds.json").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--workers", 4, "--pruner", "median", "--storage", "postgresql://u@h/db"], "--pruner, --storage, --workers"),
        (["--devices", "cpu", "--study-name", "x", "--results-dir", "y"], "--results-dir, --devices, --study-name"),
        (["--set", "search.rungs=[1]", "--set", "cluster.memory=9GB"], "cluster.memory, search.rungs"),
        (["--set", "training.lr_pretrain=0.1"], "training.lr_pretrain"),
        (["--set", "search.n_pretrain_seeds=2"], "search.n_pretrain_seeds"),
        (["--set", "search={workers: 2, rungs: [1]}"], "search.rungs, --workers"),
        (["--set", "training.lr_finetune=0.1"], "training.lr_finetune: a second pass tunes it (second_pass.space.lr_f"),
        (["--stage2-epochs", 5], "training.stage2_epochs: a second pass tunes it (second_pass.space.stage2_epochs)"),
        (
            ["--set", f"second_pass.space={{rate: {ENCODER_RATE}}}"],
            "second_pass.space.rate.key: no trial uses training",
        ),
        (["--allow-extended-space"], "--allow-extended-space"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    study: StudyFolder, run_command: Callable[..., tuple[int, str, str]], words: list[object], named: str
) -> None:
    code, _, err = run_command("search", "--second-pass", study.path, *words)
    assert code == 2
    assert named in err
    assert "Traceback" not in err
    assert not list(study.path.glob("second_pass_*"))


def test_flags_that_have_one_are_heeded(study: StudyFolder) -> None:
    heeded = {
        "search.sampler": "random",
        "search.timeout_hours": 1.0,
        "training.device": "cpu",
        "objective.sol_f1": 0.5,
    }
    console = make_console(quiet=True)
    assert run_second_pass(study, console, trial=0, overrides={**heeded, "second_pass.n_trials": 1}, draw=nothing) == 0
    kept = load_config(study.path / "second_pass_0000" / "config.yaml")
    assert (kept.search.sampler, kept.search.timeout_hours, kept.objective.sol_f1) == ("random", 1.0, 0.5)
