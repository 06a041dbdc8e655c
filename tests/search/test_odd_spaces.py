"""Search spaces and studies at the edge of what the configuration accepts: all of them work, and quietly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

from chitransfer.config import load_config
from chitransfer.errors import ConfigError, StudyError
from chitransfer.search.rescore import rescore_study
from chitransfer.search.space import make_sampler, suggest_params
from chitransfer.search.study import create_study, read_study
from chitransfer.search.study_folder import StudyFolder
from chitransfer.search.summary import describe_side_by_side
from tests.conftest import TINY_SPACE

BOTH_TASKS = {
    name: {"key": f"training.{name}", "type": "categorical", "choices": [0.0, 1.0]}
    for name in ("lambda_exp", "lambda_sol")
}


def test_values_that_cannot_stand_together_fail_their_trial_alone(made_up_search: Callable[..., Any]) -> None:
    search = made_up_search(search__n_trials=12, search__sampler="random", search__enqueue_default=False)
    search.drive(**{f"search__space__{name}": parameter for name, parameter in BOTH_TASKS.items()})
    for trial in search.study.trials:
        is_possible = trial.params["lambda_exp"] + trial.params["lambda_sol"] > 0
        assert trial.state.name == ("COMPLETE" if is_possible else "FAIL")
        if not is_possible:
            assert trial.user_attrs["failure_reason"] == (
                "training: lambda_exp and lambda_sol cannot both be zero: Stage 2 would have nothing to learn"
            )
    assert {trial.state.name for trial in search.study.trials} == {"COMPLETE", "FAIL"}
    assert search.watcher.started == search.watcher.ended == list(range(12))


def test_a_trial_enqueued_outside_the_space_fails_alone(made_up_search: Callable[..., Any]) -> None:
    """Whoever enqueues by Optuna is not checked there; the search ended with a traceback, and every resume of it."""
    search = made_up_search(search__n_trials=1)
    search.drive()
    for params in ({"encoder_hidden": "32"}, {"lr_pretrain": -1.0}, {"encoder_dropout": 0.3, "unknown": 1}):
        search.study.enqueue_trial(params)
    search.drive(search__n_trials=5)
    assert [trial.state.name for trial in search.study.trials] == ["COMPLETE", "FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    reasons = [trial.user_attrs.get("failure_reason") for trial in search.study.trials]
    assert reasons[1:3] == [
        "search.space.encoder_hidden does not contain '32', the value the trial was enqueued with",
        "search.space.lr_pretrain does not contain -1.0, the value the trial was enqueued with",
    ]
    assert search.study.trials[3].params["encoder_dropout"] == 0.3


def test_a_value_that_the_fixed_ones_rule_out_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lambda_exp and lambda_sol cannot both be zero: Stage 2 would"):
        load_config(None, {"search.space.a": BOTH_TASKS["lambda_exp"], "training.lambda_sol": 0.0})


def test_steps_that_do_not_divide_a_range_are_no_warning() -> None:
    space = {
        "epochs": {"key": "training.stage2_epochs", "type": "int", "low": 1, "high": 4, "step": 2},
        "dropout": {"key": "model.encoder_dropout", "type": "float", "low": 0.0, "high": 0.5, "step": 0.2},
    }
    search = load_config(None, {"search.space": space, "search.sampler": "random"}).search
    study = optuna.create_study()
    drawn = [suggest_params(study, study.ask(), search, 7) for _ in range(30)]
    assert {params["epochs"] for params in drawn} == {1, 3}
    assert {round(params["dropout"], 9) for params in drawn} == {0.0, 0.2, 0.4}


def test_many_objectives_of_a_gaussian_process_are_no_warning() -> None:
    space = {"dropout": {"key": "model.encoder_dropout", "type": "float", "low": 0.0, "high": 0.5}}
    settings = {"search.sampler": "gp", "search.n_startup_trials": 1, "search.space": space}
    study = optuna.create_study(directions=["minimize"] * 5)
    distributions = {"dropout": optuna.distributions.FloatDistribution(0.0, 0.5)}
    for value in (0.1, 0.4):
        study.add_trial(
            optuna.trial.create_trial(
                values=[value, 1 - value, value**2, 0.3, 0.4], params={"dropout": value}, distributions=distributions
            )
        )
    search = load_config(None, settings).search
    study.sampler = make_sampler(search, 7, 2)
    assert 0.0 <= suggest_params(study, study.ask(), search, 7)["dropout"] <= 0.5


def test_parameters_called_like_columns_do_not_take_their_places(
    make_search: Callable[..., tuple[int, Any]],
    run_command: Callable[..., tuple[int, str, str]],
    tiny: dict[str, object],
) -> None:
    keys = {"number": "training.lr_pretrain", "value": "model.encoder_dropout", "exp_mae": "training.weight_decay"}
    space = {name: {"key": key, "type": "float", "low": 0.001, "high": 0.01} for name, key in keys.items()}
    code, study = make_search({**tiny, "search.space": space, "search.n_trials": 2, "search.reevaluate_top": 0})
    assert code == 0
    best = json.loads((study.path / "best_params.json").read_text())
    found = pd.read_csv(study.path / "all_trials.csv").set_index("number").loc[best["best_trial_number"]]
    assert found["value"] == pytest.approx(best["best_value"])
    assert found["exp_mae"] == pytest.approx(best["components"]["exp_mae"])
    assert {name: found[f"params_{name}"] for name in keys} == pytest.approx(best["best_params"])
    assert rescore_study(study, {}).trials["value"].min() == pytest.approx(best["best_value"], rel=1e-6)
    assert run_command("rescore", study.path)[0] == 0


def test_ctrl_c_while_a_study_is_created_leaves_nothing_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(storage: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("chitransfer.search.study.create_leaderboard", interrupt)
    with pytest.raises(KeyboardInterrupt):
        create_study(StudyFolder(tmp_path), {"search": {}}, optuna.pruners.NopPruner())
    assert list(tmp_path.iterdir()) == []


def test_damage_that_sqlite_quotes_is_told(tmp_path: Path) -> None:
    create_study(StudyFolder(tmp_path), {"search": {}}, optuna.pruners.NopPruner())
    whole = (tmp_path / "study.db").read_bytes()
    assert b"CREATE TABLE studies" in whole
    (tmp_path / "study.db").write_bytes(whole.replace(b"CREATE TABLE studies", b"CREATE T\xbfBLE studies"))
    with pytest.raises(StudyError, match="not an Optuna study database"):
        read_study(StudyFolder(tmp_path))


def test_what_cannot_be_computed_has_a_dash_in_the_table() -> None:
    lines = describe_side_by_side([("best", {"exp_mae": 0.1, "exp_r2": float("nan")}, 0.2), ("other", {}, None)])
    assert [line.split()[-2:] for line in lines[1:]] == [["0.2000", "–"], ["0.1000", "–"]]


def test_a_trial_under_way_is_not_given_a_parameter_that_joins_its_space(made_up_search: Callable[..., Any]) -> None:
    search = made_up_search(search__n_trials=3, search__rungs=[1, 2])
    search.stop = lambda: "interrupt" if len(search.workers.tasks) == 5 else None
    assert search.drive() == "interrupt"
    search.stop = lambda: None
    decay = {"key": "training.weight_decay", "type": "log", "low": 1e-5, "high": 1e-3}
    search.drive(search__space={**TINY_SPACE, "weight_decay": decay})
    # Trial 1 went on from the state of a rung that was trained without it.
    assert ["weight_decay" in trial.params for trial in search.study.trials] == [False, False, True]
    scores = json.loads((search.folder.trial(1) / "scores.json").read_text())
    assert scores["params"] == search.study.trials[1].params
