"""Kept encoders scored again: the same conditions give the same scores, others give what a search there would give."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from chitransfer.config import load_config, override_config
from chitransfer.data.assemble import Dataset
from chitransfer.errors import CheckpointError, StudyError
from chitransfer.search.encoders import read_encoders
from chitransfer.search.rescore import rescore_study, score_encoders
from chitransfer.search.study import read_study
from chitransfer.search.study_folder import StudyFolder
from tests.conftest import Tables, tiny_overrides, write_tables

FOR_CHI_ALONE = {"objective.sol_f1": 0.0, "objective.sol_recall": 0.0}


@pytest.fixture(scope="module")
def searched(make_search: Callable[..., tuple[int, Any]], tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A finished search of three trials."""
    root = tmp_path_factory.mktemp("searched")
    code, folder = make_search({**tiny_overrides(write_tables(root), root), "search.reevaluate_top": 0})
    assert code == 0
    assert isinstance(folder, StudyFolder)
    return folder


@pytest.fixture
def study(searched: StudyFolder, copy_study: Callable[[StudyFolder], StudyFolder]) -> StudyFolder:
    """A test's own copy of the search of three trials."""
    return copy_study(searched)


def test_the_same_conditions_give_the_same_scores(study: StudyFolder) -> None:
    rescored = rescore_study(study, {})
    searched = pd.read_csv(study.path / "all_trials.csv").set_index("number")
    assert len(rescored.trials) == len(searched) == 3
    assert not rescored.skipped
    for row in rescored.trials.itertuples():
        assert row.value == pytest.approx(searched.loc[row.number, "value"], rel=1e-6)
        assert row.exp_mae == pytest.approx(searched.loc[row.number, "exp_mae"], rel=1e-6)
    best = json.loads((rescored.folder / "best_params.json").read_text())
    assert best["best_params"] == json.loads((study.path / "best_params.json").read_text())["best_params"]


def test_rows_left_out_are_counted_and_listed(study: StudyFolder, tables: Tables) -> None:
    with tables.chi.open("a", encoding="utf-8") as stream:
        stream.write("CCO,0.5,310.0\n")
    rescored = rescore_study(study, {"paths.exp_chi_csv": str(tables.chi), "data.on_bad_rows": "skip"})
    said = f"1 of 16 rows of {tables.chi} cannot be used and is left out; rejected_rows.csv says why"
    assert said in rescored.describe()
    assert pd.read_csv(rescored.folder / "rejected_rows.csv")["value"].tolist() == ["CCO"]


def test_a_table_that_is_another_now_is_told(study: StudyFolder, tables: Tables) -> None:
    """The same table elsewhere is the same."""
    elsewhere = {"paths.exp_chi_csv": str(tables.chi), "paths.solubility_csv": str(tables.solubility)}
    assert rescore_study(study, elsewhere).warnings == []
    lines = tables.chi.read_text(encoding="utf-8").splitlines(keepends=True)
    tables.chi.write_text("".join(lines[:-1]), encoding="utf-8")
    assert rescore_study(study, elsewhere).warnings == [
        f"WARNING: the table of measured χ, {tables.chi}, is not the one that the study used (15 rows then, 14 now); "
        "old and new scores cannot be compared"
    ]


def test_encoders_are_scored_on_the_folds_given(shared_tiny_config: Any) -> None:
    runner: Any = SimpleNamespace(
        stage1_data=SimpleNamespace(features=SimpleNamespace(n_features=3)),
        device="cpu",
        folds="the search's",
        score_networks=lambda *words: words,
    )
    own: Any = "others"
    scored = [score_encoders(runner, shared_tiny_config, 5, [], *words) for words in ((), (own, 7))]
    assert [words[4:] for words in scored] == [("the search's", 0), ("others", 7)]  # type: ignore[index]


def test_a_control_is_scored_on_its_permuted_labels_again(
    make_search: Callable[..., tuple[int, Any]], tiny: dict[str, object]
) -> None:
    _, study = make_search({**tiny, "search.reevaluate_top": 0, "search.control": "permute"})
    rescored = rescore_study(study, {})
    searched = pd.read_csv(study.path / "all_trials.csv").set_index("number")
    again = rescored.trials.set_index("number")["exp_mae"]
    assert again.sort_index().tolist() == pytest.approx(searched["exp_mae"].sort_index().tolist())


def test_several_objectives_are_compared_by_the_transfer_objective(
    make_search: Callable[..., tuple[int, Any]], tiny: dict[str, object]
) -> None:
    objectives = ["sol_auc", "exp_mae"]
    _, study = make_search({**tiny, "search.reevaluate_top": 0, "search.n_trials": 4, "search.objectives": objectives})
    rescored = rescore_study(study, {})
    assert rescored.trials["value_before"].tolist() == pytest.approx(rescored.trials["value"].tolist(), rel=1e-6)
    assert rescored.trials["rank_before"].tolist() == [1, 2, 3, 4]
    assert rescored.rank_correlation == pytest.approx(1.0)


def test_other_conditions_give_what_a_search_under_them_gives(
    study: StudyFolder, make_search: Callable[..., tuple[int, Any]], tiny: dict[str, object], tmp_path: Path
) -> None:
    changes: dict[str, object] = {"training.stage2_epochs": 6, "cv.n_cv_folds": 4, "objective.sol_f1": 0.5}
    rescored = rescore_study(study, changes)
    elsewhere = {**tiny, **changes, "paths.results_dir": str(tmp_path / "other"), "search.reevaluate_top": 0}
    # The sampler's first trials do not depend on scores.
    _, other = make_search({**elsewhere, "search.sampler": "random", "search.n_startup_trials": 10})
    searched = pd.read_csv(other.path / "all_trials.csv").set_index("number")
    mine = rescored.trials.set_index("number")
    assert mine.loc[0, "value"] == pytest.approx(searched.loc[0, "value"], rel=1e-6)
    assert mine.loc[0, "value"] != pytest.approx(mine.loc[0, "value_before"], rel=1e-3)


def test_the_trivial_predictor_is_scored_under_the_new_conditions(study: StudyFolder) -> None:
    rescored = rescore_study(study, {"solubility.positive": "insoluble"})
    kept = json.loads((rescored.folder / "reference.json").read_text())["trivial_predictor"]["mean"]
    before = json.loads((study.path / "reference.json").read_text())["trivial_predictor"]["mean"]
    assert kept == rescored.reference.trivial
    assert kept["exp_mae"] == before["exp_mae"]
    assert kept["sol_precision"] == pytest.approx(1.0 - before["sol_precision"])  # each says yes to every row
    header, objective, *_ = rescored.describe()
    assert header.split()[-5:] == ["default", "(trial", "0)", "trivial", "predictor"]
    assert f"{rescored.trials.set_index('number').loc[0, 'value']:.4f}" in objective.split()


def test_of_permuted_labels_nothing_better_than_the_trivial_predictor_is_asked(study: StudyFolder) -> None:
    rescored = rescore_study(study, {})
    worse = replace(rescored, trials=rescored.trials.assign(value=99.0, exp_mae=99.0, sol_f1=0.0))
    assert any(line.startswith("WARNING") for line in worse.describe())
    permuted = replace(worse, is_permuted=True).describe()
    assert permuted[0].startswith("control: measured values are shuffled")
    assert not any("WARNING" in line for line in permuted)


def test_a_task_that_is_weighed_and_no_longer_learned_is_warned_of(study: StudyFolder) -> None:
    lines = rescore_study(study, {"training.lambda_sol": 0.0}).describe()
    assert any(
        line.startswith("WARNING: training.lambda_sol is 0, so Stage 2 does not learn solubility") for line in lines
    )


def test_a_trial_that_ran_twice_is_compared_with_the_run_whose_encoders_it_kept(
    make_search: Callable[..., tuple[int, Any]], tiny: dict[str, object], run_command: Callable[..., Any]
) -> None:
    _, study = make_search({**tiny, "search.reevaluate_top": 0, "search.n_trials": 6, "search.replicates": 2})
    runs = {trial.number: trial.user_attrs["replicate_values"] for trial in read_study(study).trials}
    assert max(len(values) for values in runs.values()) == 2
    rescored = rescore_study(study, {})
    trials = rescored.trials.set_index("number").sort_index()
    assert trials["value_before"].tolist() == [runs[number][0] for number in sorted(runs)]
    assert trials["value"].tolist() == pytest.approx(trials["value_before"].tolist(), rel=1e-6)
    assert trials["rank_before"].tolist() == trials["value_before"].rank().tolist()
    assert "before: score of each trial's first run" in " ".join(run_command("rescore", study.path)[1].split())


def test_polymers_of_other_names_are_refused(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their names the validation polymers of Stage 1 were drawn."""
    monkeypatch.setattr(Dataset, "names_digest", lambda self: "of another RDKit")
    with pytest.raises(StudyError, match=r"names: the polymers have other names .*the version of RDKit differs"):
        rescore_study(study, {})
    # Of other tables there is nothing to compare.
    assert len(rescore_study(study, {"paths.solubility_csv": None, **FOR_CHI_ALONE}).trials) == 3
    with closing(sqlite3.connect(study.database)) as connection, connection:
        (contract,) = connection.execute(
            "SELECT value_json FROM study_user_attributes WHERE key = 'contract'"
        ).fetchone()
        kept = json.loads(contract)
        del kept["data"]["names"]
        connection.execute("UPDATE study_user_attributes SET value_json = ? WHERE key = 'contract'", [json.dumps(kept)])
    assert len(rescore_study(study, {}).trials) == 3, "a study of an earlier release has no checksum of them"


@pytest.mark.parametrize(
    "change",
    [
        {"training.lr_schedule_factor": 0.3},
        {"seed": 7},
        {"training.validation_fraction": 0.2},
        {"T_ref_K": 310.0},
        {"chem.fingerprint_radius": 1},
        {"search.control": "permute"},
    ],
)
def test_what_concerns_stage1_is_refused(study: StudyFolder, change: dict[str, object]) -> None:
    with pytest.raises(StudyError, match=f"changed: {next(iter(change))}"):
        rescore_study(study, change)


def test_a_trial_without_its_encoder_is_left_out(study: StudyFolder) -> None:
    (study.trial(1) / "stage1.pt").unlink()
    (study.trial(2) / "stage1.pt").write_bytes(b"damaged")
    rescored = rescore_study(study, {})
    assert rescored.trials["number"].tolist() == [0]
    assert set(rescored.skipped) == {1, 2}
    assert "missing" in rescored.skipped[1]
    assert "not a chitransfer model file" in rescored.skipped[2]
    assert [line.split(":")[0] for line in rescored.describe_skipped()] == ["trial 1 left out", "trial 2 left out"]
    many = replace(rescored, skipped=dict.fromkeys(range(20), "missing"))
    assert many.describe_skipped()[4:] == ["trial 4 left out: missing", "… and 15 more trials"]
    (study.trial(0) / "stage1.pt").unlink()
    with pytest.raises(CheckpointError, match="no trial kept"):
        rescore_study(study, {})


def test_trials_of_searched_lengths_go_to_their_end_and_keep_their_encoders(
    make_search: Callable[..., tuple[int, Any]], tiny: dict[str, object]
) -> None:
    space = {"epochs": {"key": "training.num_epochs_pretrain", "type": "categorical", "choices": [2, 6]}}
    _, study = make_search({**tiny, "search.space": space, "search.n_trials": 4, "search.rungs": [1, 3]})
    searched = pd.read_csv(study.path / "all_trials.csv").set_index("number")
    assert set(searched["epochs"]) == {2, 6}
    assert searched["stage1_epochs"].tolist() == searched["epochs"].tolist()
    for again in study.path.glob("trials/*/replicate_1000/scores.json"):
        scores = json.loads(again.read_text())
        assert scores["epoch"] == searched.loc[scores["number"], "epochs"]
    rescored = rescore_study(study, {})
    assert not rescored.skipped
    values = rescored.trials.set_index("number")["value"].sort_index()
    assert values.tolist() == pytest.approx(searched["value"].tolist(), rel=1e-6)


def test_a_changed_bit_of_an_encoder_is_noticed(
    study: StudyFolder, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    path = study.trial(1) / "stage1.pt"
    (encoder,) = read_encoders(study.trial(1))
    whole, bias = path.read_bytes(), encoder.weights["encoder.0.bias"].numpy().tobytes()
    place = whole.index(bias)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    code, out, err = run_command("rescore", study.path)
    assert (code, "Traceback" in err) == (0, False)
    assert f"{path}: the file is damaged" in out.replace("\n", "")


@pytest.mark.parametrize("spoil", ["torn", "no record", "not finite"])
def test_damage_to_an_encoder_of_an_earlier_release(study: StudyFolder, spoil: str) -> None:
    """They have no checksum; what does not fit is left out all the same."""
    path = study.trial(1) / "stage1.pt"
    (encoder,) = read_encoders(study.trial(1))
    weights = {name: torch.full_like(weight, torch.nan) for name, weight in encoder.weights.items()}
    kept = {"torn": [vars(encoder)], "no record": [[1]], "not finite": [{**vars(encoder), "weights": weights}]}
    torch.save([vars(encoder)], path)
    assert len(rescore_study(study, {}).trials) == 3
    torch.save(kept[spoil], path)
    if spoil == "torn":
        path.write_bytes(path.read_bytes()[:-30])
    assert set(rescore_study(study, {}).skipped) == {1}


def test_weights_of_another_size_are_refused(study: StudyFolder) -> None:
    (encoder,) = read_encoders(study.trial(0))
    config = override_config(load_config(study.config), {"model.encoder_latent_dim": 5})
    with pytest.raises(CheckpointError, match="do not fit"):
        encoder.build(config, 77)


def test_the_command(study: StudyFolder, run_command: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run_command("rescore", study.path, "--stage2_epochs", 4, "--set", "training.class_weight_pos=2.0")
    assert code == 0
    assert "3 trials rescored without pretraining" in out
    assert "rank correlation" in out
    code, _, err = run_command("rescore", study.path, "--set", "training.lr_schedule_factor=0.1")
    assert code == 2
    assert "training.lr_schedule_factor" in err
    useless = ("model.encoder_dropout=0.1", "search.n_trials=9", "training.lr_pretrain=0.1", "training.n_networks=2")
    words = [word for setting in useless for word in ("--set", setting)]
    code, _, err = run_command("rescore", study.path, *words, "--set", "training.class_weight_pos=2.0")
    assert code == 2
    assert f"without effect when trials are rescored: {', '.join(one.split('=')[0] for one in useless)};" in err
    assert len(list((study.path / "rescored").iterdir())) == 1
    code, _, err = run_command("rescore", study.path, "--set", "training.lr_encoder=0.5")
    assert code == 2
    assert "without effect when trials are rescored: training.lr_encoder; leave it out" in err
    unfrozen = ("--set", "training.lr_encoder=0.01", "--set", "training.freeze_encoder_stage2=false")
    assert run_command("rescore", study.path, *unfrozen)[0] == 0
