"""Results: the guide's tree and keys, and an objective that can be worked out again from what is on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from sklearn import metrics as sk

from chitransfer.config import load_config
from chitransfer.errors import ConfigError, TrainingError
from chitransfer.search.objective import (
    COMPONENTS,
    objective_terms,
    refuse_choice_without_runs,
    refuse_constant_objective,
    refuse_nothing_to_learn,
    transfer_objective,
)
from chitransfer.search.results import read_standing
from chitransfer.search.study import read_study
from chitransfer.search.study_folder import StudyFolder
from chitransfer.search.summary import (
    PERMUTED,
    Names,
    describe_budget,
    describe_data,
    describe_objective,
    describe_reference,
    describe_status,
)
from chitransfer.sections import ObjectiveSettings, SearchSettings
from tests.formulas import guide_objective

GUIDE = {"exp_mae": 1.5, "sol_f1": 2.0, "sol_recall": 1.5, "stage1_mae": 0.1}


class TestObjective:
    def test_it_is_the_guides_formula(self, rng: np.random.Generator) -> None:
        for values in rng.random((20, 4)):
            components = dict(zip(GUIDE, values, strict=True))
            assert transfer_objective(components, ObjectiveSettings()) == pytest.approx(guide_objective(**components))

    def test_scores_of_the_design_enter_as_one_minus_score(self) -> None:
        weights = ObjectiveSettings(sol_auc=1.0, sol_mcc=2.0, exp_rmse=3.0, exp_r2=4.0, sol_balanced_accuracy=5.0)
        components = {"sol_auc": 0.9, "sol_mcc": 0.4, "exp_rmse": 0.3, "exp_r2": 0.6, "sol_balanced_accuracy": 0.7}
        terms = objective_terms(components, weights)
        assert terms == pytest.approx(
            {
                "sol_auc": 0.1,
                "sol_mcc": 2 * 0.6,
                "exp_rmse": 0.9,
                "exp_r2": 1.6,
                "sol_balanced_accuracy": 1.5,
            }
        )

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_what_is_not_finite_fails_the_trial_by_name(self, bad: float) -> None:
        with pytest.raises(TrainingError, match="because of exp_mae"):
            transfer_objective({**dict.fromkeys(GUIDE, 0.5), "exp_mae": bad}, ObjectiveSettings())

    def test_an_unweighted_component_may_be_nan(self) -> None:
        components = {**dict.fromkeys(GUIDE, 0.5), "sol_auc": float("nan")}
        assert np.isfinite(transfer_objective(components, ObjectiveSettings()))


def study_that_ended(seconds: Sequence[float], computed: float) -> optuna.Study:
    """Trials that ended at these seconds and computed so long each."""
    study, began = optuna.create_study(), datetime(2026, 1, 1)
    for end in seconds:
        trial = optuna.trial.create_trial(value=1.0, user_attrs={"seconds_total": computed, "stage1_mae": 0.1})
        trial.datetime_start, trial.datetime_complete = began, began + timedelta(seconds=end)
        study.add_trial(trial)
    return study


class TestPace:
    def test_breaks_do_not_count(self) -> None:
        assert read_standing(study_that_ended([8, 3000, 3008, 9000], 8)).seconds_per_trial == 8

    def test_trials_that_overlap_count_by_the_clock(self) -> None:
        assert read_standing(study_that_ended([8, 10, 16, 18, 24], 8)).seconds_per_trial == 4

    def test_time_left_counts_the_runs_on_fresh_seeds(self, tmp_path: Path) -> None:
        search = SearchSettings(n_trials=7, reevaluate_top=1, reevaluate_seeds=2)
        status = describe_status(study_that_ended([10, 20, 30], 10), StudyFolder(tmp_path), search)
        assert "pace: 10 s a trial, about 80 s left" in status, "four trials, and two of them twice more"


class TestTree:
    def test_the_guides_files_are_there(self, finished_search: Any) -> None:
        path = finished_search.folder.path
        for name in (
            "study.db",
            "best_params.json",
            "all_trials.csv",
            "top_20_trials.csv",
            "figures/optimization_history.png",
            "figures/param_importances.png",
            "figures/parallel_coordinate.png",
            "figures/slice_plot.png",
            "config.yaml",
            "environment.json",
            "reference.json",
        ):
            assert (path / name).stat().st_size > 0, name
        (log,) = (path.parent / "logs").glob("search_*.log")
        assert "objective" in log.read_text()
        assert not list(path.rglob(".*-*")), "temporary files are left"
        assert sorted(p.name for p in (path / "trials").iterdir()) == [f"{n:04d}" for n in range(6)]
        assert not list(path.rglob("rung_*.pt"))

    def test_the_kept_configuration_is_the_one_that_ran(self, finished_search: Any) -> None:
        assert load_config(finished_search.folder.config) == finished_search.config

    def test_best_params_has_the_guides_keys(self, finished_search: Any) -> None:
        best = json.loads((finished_search.folder.path / "best_params.json").read_text())
        assert {"best_value", "best_params", "n_trials", "best_trial_number"} <= best.keys()
        assert best["n_trials"] == 6
        assert list(best["best_params"]) == list(finished_search.config.search.space)
        frame = pd.read_csv(finished_search.folder.path / "all_trials.csv")
        row = frame.set_index("number").loc[best["best_trial_number"]]
        assert best["best_value"] == frame["value"].min() == row["value"]
        for name, value in best["best_params"].items():
            assert type(value)(row[name]) == value
        assert best["default_value"] == frame.loc[0, "value"]

    def test_all_trials_has_every_component_and_parameter(self, finished_search: Any) -> None:
        frame = pd.read_csv(finished_search.folder.path / "all_trials.csv")
        assert frame["number"].tolist() == list(range(6))
        assert set(frame["state"]) == {"COMPLETE"}
        for name in (*COMPONENTS, *(f"{name}_std" for name in COMPONENTS), *finished_search.config.search.space):
            # One pretraining seed has no spread.
            assert frame[name].notna().all() != (name == "stage1_mae_std"), name
        assert (frame["seconds_total"] - frame["seconds_stage1"] - frame["seconds_stage2"]).abs().max() < 0.01
        assert (frame["seconds_total"] > 0).all()
        assert frame["failure_reason"].isna().all()
        assert frame["is_default"].tolist() == [True] + [False] * 5

    def test_top_20_is_sorted(self, finished_search: Any) -> None:
        top = pd.read_csv(finished_search.folder.path / "top_20_trials.csv")
        assert top["value"].is_monotonic_increasing
        assert len(top) == 6


class TestRecomputing:
    def test_from_the_components_of_all_trials(self, finished_search: Any) -> None:
        frame = pd.read_csv(finished_search.folder.path / "all_trials.csv")
        expected = guide_objective(frame["exp_mae"], frame["sol_f1"], frame["sol_recall"], frame["stage1_mae"])
        np.testing.assert_allclose(frame["value"], expected, rtol=1e-12)
        best = json.loads((finished_search.folder.path / "best_params.json").read_text())
        assert best["best_value"] == pytest.approx(guide_objective(**{n: best["components"][n] for n in GUIDE}))

    def test_from_the_out_of_fold_predictions_on_disk(self, finished_search: Any) -> None:
        frame = pd.read_csv(finished_search.folder.path / "all_trials.csv").set_index("number")
        for number, row in frame.iterrows():
            folder = finished_search.folder.trial(number)
            chi = pd.read_csv(folder / "out_of_fold_chi.csv")
            labels = pd.read_csv(folder / "out_of_fold_solubility.csv")
            history = pd.read_csv(folder / "stage1_history.csv")
            by_repeat = [part for _, part in chi.groupby(["pretrain_seed", "repeat"])]
            assert len(by_repeat) == 2
            exp_mae = np.mean([sk.mean_absolute_error(part["chi"], part["predicted_chi"]) for part in by_repeat])
            parts = [part for _, part in labels.groupby(["pretrain_seed", "repeat"])]
            for part in parts:
                called = (part["probability_positive"] >= part["threshold"]).astype(int)
                assert (called == part["called_positive"]).all()
            sol_f1 = np.mean([sk.f1_score(part["soluble"], part["called_positive"]) for part in parts])
            sol_recall = np.mean([sk.recall_score(part["soluble"], part["called_positive"]) for part in parts])
            sol_auc = np.mean([sk.roc_auc_score(part["soluble"], part["probability_positive"]) for part in parts])
            kept = json.loads((folder / "scores.json").read_text())["replicates"]
            best = [
                history[(history["pretrain_seed"] == n) & (history["epoch"] == replicate["best_epoch"])]
                for n, replicate in enumerate(kept)
            ]
            stage1_mae = np.mean([one["validation_mae"].item() for one in best])
            assert row["value"] == pytest.approx(guide_objective(exp_mae, sol_f1, sol_recall, stage1_mae))
            assert row["sol_auc"] == pytest.approx(sol_auc)

    def test_out_of_fold_rows_are_those_of_the_tables_in_order(self, finished_search: Any) -> None:
        written = pd.read_csv(finished_search.config.paths.exp_chi_csv)
        chi = pd.read_csv(finished_search.folder.trial(0) / "out_of_fold_chi.csv")
        for _, part in chi.groupby(["pretrain_seed", "repeat"]):
            assert part["SMILES"].tolist() == written["SMILES"].tolist()
            assert part["chi"].tolist() == written["chi"].tolist()

    def test_no_polymer_is_in_two_folds_of_a_repeat_across_both_files(self, finished_search: Any) -> None:
        folder = finished_search.folder.trial(3)
        both = pd.concat([pd.read_csv(folder / f"out_of_fold_{name}.csv") for name in ("chi", "solubility")])
        assert both.groupby(["repeat", "polymer"])["fold"].nunique().max() == 1

    def test_all_trials_share_their_folds(self, finished_search: Any) -> None:
        files = [pd.read_csv(finished_search.folder.trial(n) / "out_of_fold_chi.csv")["fold"] for n in range(6)]
        assert all((one == files[0]).all() for one in files)


class TestReadingByOthers:
    def test_optuna_loads_the_study(self, finished_search: Any) -> None:
        storage = optuna.storages.RDBStorage(f"sqlite:///{finished_search.folder.database}")
        study = optuna.load_study(study_name="done", storage=storage)
        best = json.loads((finished_search.folder.path / "best_params.json").read_text())
        assert study.best_value == best["best_value"]
        assert study.best_params == best["best_params"]
        storage.engine.dispose()

    def test_the_summary_shows_default_and_trivial_predictor(self, finished_search: Any) -> None:
        for expected in ("default (trial 0)", "trivial predictor", "objective (lower is better)", "best parameters:"):
            assert expected in finished_search.printed


def test_a_search_says_when_a_table_has_fewer_polymers_than_folds(tiny_dataset: Any, shared_tiny_config: Any) -> None:
    cv = shared_tiny_config.cv.model_copy(update={"n_cv_folds": 13})
    lines = describe_data(tiny_dataset, shared_tiny_config.model_copy(update={"cv": cv}))
    assert [line.split(" (")[0] for line in lines if "folds" in line] == [
        "  measured χ is scored in at most 12 of 13 folds"
    ]
    assert not any("folds" in line for line in describe_data(tiny_dataset, shared_tiny_config))


def test_a_search_says_how_many_rows_are_in_solvents_that_stage_1_has_not(
    tiny_dataset: Any, shared_tiny_config: Any
) -> None:
    assert not any("no computed" in line for line in describe_data(tiny_dataset, shared_tiny_config))
    solvent = tiny_dataset.chi.solvent.copy()
    solvent[:3] = len(tiny_dataset.solvents)
    dataset = replace(tiny_dataset, chi=replace(tiny_dataset.chi, solvent=solvent))
    assert "  3 rows of measured χ in 1 solvent without computed χ in Stage 1" in describe_data(
        dataset, shared_tiny_config
    )


def test_a_search_says_that_one_value_of_chi_teaches_nothing(tiny_dataset: Any, shared_tiny_config: Any) -> None:
    assert not any("every row" in line for line in describe_data(tiny_dataset, shared_tiny_config))
    stage1 = replace(tiny_dataset.stage1, value=np.full(len(tiny_dataset.stage1), 0.5))
    lines = describe_data(replace(tiny_dataset, stage1=stage1), shared_tiny_config)
    assert "  Stage 1's χ is 0.5 in every row, so there is nothing to learn from it" in lines


def test_what_the_trials_are_compared_with_is_told_before_the_search() -> None:
    outside = {"model.encoder_hidden_dims": [300]}
    (warning,) = describe_reference(load_config(None, outside), Names())
    assert warning.startswith(
        "WARNING: the search space does not contain the default configuration (model.encoder_hidden"
    )
    assert describe_reference(load_config(None), Names()) == []
    assert describe_reference(load_config(None, {**outside, "search.enqueue_default": False}), Names()) == []
    assert describe_reference(load_config(None, {"search.control": "permute"}), Names()) == [PERMUTED]


def test_a_task_that_is_weighed_and_not_learned_is_warned_of() -> None:
    unlearned = {"training.lambda_sol": 0.0}
    (warning,) = describe_reference(load_config(None, unlearned), Names())
    assert warning.startswith("WARNING: training.lambda_sol is 0, so Stage 2 does not learn solubility")
    assert warning.endswith("raise training.lambda_sol, or set objective.sol_f1, objective.sol_recall to 0")
    (warning,) = describe_objective(load_config(None, {"training.lambda_exp": 0.0}))
    assert warning.endswith("raise training.lambda_exp, or set objective.exp_mae to 0")
    unweighed = {"objective.sol_f1": 0.0, "objective.sol_recall": 0.0}
    searched = {"search.space.own": {"key": "training.lambda_sol", "type": "float", "low": 0.5, "high": 2.0}}
    for further in (unweighed, searched, {"paths.solubility_csv": None}):
        assert describe_objective(load_config(None, {**unlearned, **further})) == []


WITHOUT_CHI = {"paths.exp_chi_csv": None, "objective.sol_f1": 0.0, "objective.sol_recall": 0.0}


def test_an_objective_of_tables_left_out_is_warned_of_or_refused() -> None:
    (warning,) = describe_objective(load_config(None, WITHOUT_CHI))
    assert warning.startswith("WARNING: the objective contains exp_mae, but the table is set to null (paths), so")
    constant = load_config(None, {**WITHOUT_CHI, "objective.stage1_mae": 0.0})
    with pytest.raises(
        ConfigError, match=r"only exp_mae has a weight, but its table is set to null \(paths\), so every"
    ):
        refuse_constant_objective(constant)
    for overrides in (WITHOUT_CHI, {"paths.exp_chi_csv": None}, {}):
        refuse_constant_objective(load_config(None, overrides))
    only_stage1 = {"objective.exp_mae": 0.0, "objective.sol_f1": 0.0, "objective.sol_recall": 0.0}
    for overrides in ({"paths.exp_chi_csv": None}, only_stage1):
        assert describe_objective(load_config(None, overrides)) == []


@pytest.mark.parametrize("verb", ["search", "compare", "rescore"])
def test_every_verb_that_scores_refuses_it(
    run_command: Callable[..., tuple[int, str, str]], tmp_path: Path, finished_search: Any, verb: str
) -> None:
    place = [finished_search.folder.path] if verb == "rescore" else ["--results-dir", tmp_path]
    constant = {**WITHOUT_CHI, "objective.stage1_mae": 0.0}
    settings = [f"--set={key}={'null' if value is None else value}" for key, value in constant.items()]
    code, _, err = run_command(verb, *place, *settings)
    assert code == 2
    assert "every trial would score 0" in " ".join(err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("absent", "objective"), [("exp_chi_csv", "exp_r2"), ("solubility_csv", "sol_auc")])
def test_several_objectives_without_the_table_of_one_are_refused_before_a_trial(
    run_command: Callable[..., tuple[int, str, str]], tmp_path: Path, absent: str, objective: str
) -> None:
    objectives = f"--set=search.objectives=[stage1_mae, {objective}]"
    code, _, err = run_command("search", "--results-dir", tmp_path, objectives, f"--set=paths.{absent}=null")
    assert code == 2
    assert f"no trial has {objective}, because the table is set to null" in " ".join(err.split())
    assert not list(tmp_path.iterdir())


UNLEARNED = [("lambda_exp", "solubility_csv"), ("lambda_sol", "exp_chi_csv")]


@pytest.mark.parametrize("verb", ["search", "compare", "rescore"])
@pytest.mark.parametrize(("weight", "absent"), UNLEARNED)
def test_nothing_to_learn_is_refused_before_anything_is_trained(
    run_command: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    finished_search: Any,
    verb: str,
    weight: str,
    absent: str,
) -> None:
    place = [finished_search.folder.path] if verb == "rescore" else ["--results-dir", tmp_path]
    code, _, err = run_command(verb, *place, f"--set=training.{weight}=0", f"--set=paths.{absent}=null")
    assert code == 2
    assert f"training.{weight}: is 0 and paths.{absent} is null, so Stage 2 would have nothing" in " ".join(err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("weight", "absent"), UNLEARNED)
def test_a_weight_that_is_searched_or_a_second_table_leaves_something_to_learn(weight: str, absent: str) -> None:
    zero = {f"training.{weight}": 0.0}
    searched = {"search.space.own": {"key": f"training.{weight}", "type": "float", "low": 0.5, "high": 2.0}}
    for overrides in (zero, {f"paths.{absent}": None}, {**zero, f"paths.{absent}": None, **searched}):
        refuse_nothing_to_learn(load_config(None, overrides))


def test_a_pruner_without_a_rung_is_told() -> None:
    late = {"training.num_epochs_pretrain": 4, "search.rungs": [10], "search.pruner": "median"}
    assert describe_budget(load_config(None, late)) == [
        "search.pruner median: no rung before Stage 1 epoch 4 (search.rungs, training.num_epochs_pretrain), so no "
        "trial is pruned"
    ]
    assert describe_budget(load_config(None, {**late, "search.pruner": "none"})) == []
    # Trials that draw more epochs reach it.
    epochs = {"key": "training.num_epochs_pretrain", "type": "int", "low": 4, "high": 20}
    (line,) = describe_budget(load_config(None, {**late, "search.space.epochs": epochs}))
    assert line.startswith("unpromising trials are pruned at Stage 1 epoch 10 ")


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "gp", "cmaes", "nsga2"])
def test_a_sampler_that_heeds_no_pruned_trial_is_told(sampler: str) -> None:
    pruned = {"search.sampler": sampler, "search.pruner": "median"}
    told = [line for line in describe_budget(load_config(None, pruned)) if "complete trials only" in line]
    assert told == [
        f"search.sampler {name} learns from complete trials only, and pruning leaves few of them: with "
        "search.pruner none all trials are complete"
        for name in ("gp", "cmaes", "nsga2")
        if name == sampler
    ]
    assert describe_budget(load_config(None, {**pruned, "search.pruner": "none"})) == []


def test_status_tells_that_labels_were_dealt_out(finished_search: Any) -> None:
    for control in ("none", "permute"):
        search = finished_search.config.search.model_copy(update={"control": control})
        lines = describe_status(read_study(finished_search.folder), finished_search.folder, search)
        assert (PERMUTED in lines) == (control == "permute")


def test_to_choose_by_fresh_runs_needs_some() -> None:
    by_fresh_runs = {"search.select": "reevaluated"}
    with pytest.raises(ConfigError, match=r"its fresh runs, but search\.reevaluate_top: 0 gives none; set"):
        refuse_choice_without_runs(load_config(None, {**by_fresh_runs, "search.reevaluate_top": 0}))
    refuse_choice_without_runs(load_config(None, by_fresh_runs))
    refuse_choice_without_runs(load_config(None, {"search.reevaluate_top": 0}))
