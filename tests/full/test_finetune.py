"""Stage 2 in full: metrics that follow from the predictions, folds that hold, thresholds and the newest checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logit
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    mean_absolute_error,
    r2_score,
    recall_score,
    roc_auc_score,
)

from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.config import load_config, override_config
from chitransfer.errors import CheckpointError, TrainingError
from chitransfer.model.checkpoint import Pretrained, TrainedModel
from chitransfer.predict import Predictor
from chitransfer.report.model_figures import draw_model
from chitransfer.training import finetune
from chitransfer.training.crossval import make_folds
from chitransfer.training.finetune import (
    fit_ensemble,
    learnable_polymers,
    locate_pretrained,
    place_rows,
    run_finetuning,
)
from chitransfer.training.handover import hand_over
from chitransfer.training.pretrain import run_pretraining
from chitransfer.training.settings import read_dataset, stage2_settings
from tests.forests import few_trees
from tests.full.conftest import silent


@pytest.fixture(params=["trained", "trained_unfrozen"])
def either(request: pytest.FixtureRequest) -> Any:
    """The frozen model, then the one fine-tuned throughout."""
    return request.getfixturevalue(request.param)


def test_chi_metrics_follow_from_the_predictions(either: Any) -> None:
    frame = pd.read_csv(either.finetuning / "predictions_chi.csv")
    metrics = json.loads((either.finetuning / "metrics.json").read_text())["chi"]
    own, test = frame[frame["split"] == "cross-validation"], frame[frame["split"] == "test"]
    assert len(own) > 0
    assert len(test) > 0
    for name, rows, column in (
        ("train", own, "chi_train"),
        ("validation", own, "chi_cv"),
        ("test", test, "chi_model"),
    ):
        assert metrics[name]["mae"] == pytest.approx(mean_absolute_error(rows["chi"], rows[column]))
        assert metrics[name]["r2"] == pytest.approx(r2_score(rows["chi"], rows[column]))
    by_repeat = [mean_absolute_error(own["chi"], own[f"chi_cv_{repeat}"]) for repeat in (1, 2)]
    assert metrics["validation_mean_of_repeats"]["mae"] == pytest.approx(np.mean(by_repeat))
    assert repr(metrics["validation_mean_of_repeats"]["n_rows"]) == str(len(own))
    inside = (own["chi"] - own["chi_cv"]).abs() <= own["half_width_cv"]
    assert metrics["interval_validation"]["coverage_rows"] == pytest.approx(inside.mean())
    assert np.allclose(own["chi_cv"], own["A_K"] / own["temp"] + own["B"])
    assert metrics["train"]["mae"] < metrics["validation"]["mae"]
    trivial = [[own.loc[own[f"fold_{r}"] != fold, "chi"].mean() for fold in own[f"fold_{r}"]] for r in (1, 2)]
    mae = {name: scores["mae"] for name, scores in metrics["trivial_predictor"].items()}
    assert mae == {
        "validation": pytest.approx(mean_absolute_error(own["chi"], np.mean(trivial, axis=0))),
        "test": pytest.approx((test["chi"] - own["chi"].mean()).abs().mean()),
    }


def test_solubility_metrics_follow_from_the_predictions(either: Any) -> None:
    frame = pd.read_csv(either.finetuning / "predictions_solubility.csv")
    metrics = json.loads((either.finetuning / "metrics.json").read_text())["solubility"]
    for name, split, column, ranking in (
        ("validation", "cross-validation", "p_cv", "logit_cv"),
        ("test", "test", "p_model", "p_model"),
    ):
        rows = frame[frame["split"] == split]
        assert metrics[name]["f1"] == pytest.approx(f1_score(rows["positive"], rows["called_positive"]))
        assert metrics[name]["recall"] == pytest.approx(recall_score(rows["positive"], rows["called_positive"]))
        assert metrics[name]["auc"] == pytest.approx(roc_auc_score(rows["positive"], rows[ranking]))
        assert metrics[name]["pr_auc"] == pytest.approx(average_precision_score(rows["positive"], rows[ranking]))
        assert metrics[name]["brier"] == pytest.approx(brier_score_loss(rows["positive"], rows[column]))
        assert metrics["trivial_predictor"][name]["f1"] == pytest.approx(
            f1_score(rows["positive"], rows["SMILES"] != "")
        )
    assert (frame["p_low"] <= frame["p_high"]).all()
    own = frame[frame["split"] == "cross-validation"]
    # Both repeats have as many members.
    assert np.allclose(own["logit_cv"], logit(own[["p_cv_1", "p_cv_2"]]).mean(axis=1))
    for _, fold in own.sort_values("logit_cv").groupby("fold_1"):
        assert fold["p_cv"].is_monotonic_increasing


def test_every_column_is_documented(trained: Any, predictor: Predictor, project_root: Path) -> None:
    text = (project_root / "docs" / "models.md").read_text(encoding="utf-8")
    tables = [pd.read_csv(trained.finetuning / f"predictions_{kind}.csv") for kind in ("chi", "solubility")]
    for frame in (*tables, predictor.predict("*CCO*"), predictor.predict("*CCO*", temperature=[350.0])):
        assert [name for name in frame.columns if f"`{name}`" not in text and not name.startswith("chi_350K_")] == []


def test_a_polymer_has_one_fold_and_test_polymers_none(either: Any) -> None:
    chi = pd.read_csv(either.finetuning / "predictions_chi.csv")
    solubility = pd.read_csv(either.finetuning / "predictions_solubility.csv")
    both = pd.concat([chi, solubility])
    for repeat in (1, 2):
        assert (both.groupby("SMILES")[f"fold_{repeat}"].nunique() == 1).all()
        assert ((both[f"fold_{repeat}"] < 0) == (both["split"] == "test")).all()
    kept = Pretrained.load(either.pretraining / "checkpoints" / "best_model.pt").test_polymers
    assert {polymer_identity(smiles) for smiles in both.loc[both["split"] == "test", "SMILES"]} <= set(kept)


def test_labels_of_test_polymers_do_not_reach_the_model(trained: Any, tmp_path: Path) -> None:
    frame = pd.read_csv(trained.finetuning / "predictions_chi.csv")
    spoiled = pd.read_csv(trained.config.paths.exp_chi_csv)
    is_test = spoiled["SMILES"].isin(frame.loc[frame["split"] == "test", "SMILES"])
    assert is_test.any()
    spoiled.loc[is_test, "chi"] += 50.0
    path = tmp_path / "spoiled.csv"
    spoiled.to_csv(path, index=False)
    labels = pd.read_csv(trained.config.paths.solubility_csv)
    is_test = labels["SMILES"].isin(frame.loc[frame["split"] == "test", "SMILES"])
    labels.loc[is_test, "soluble"] = 1 - labels.loc[is_test, "soluble"]
    labels.to_csv(tmp_path / "labels.csv", index=False)
    values = trained.config.model_dump()
    values["paths"] |= {"exp_chi_csv": str(path), "solubility_csv": str(tmp_path / "labels.csv")}
    values["paths"] |= {"results_dir": str(tmp_path / "results")}
    config = type(trained.config).model_validate(values)
    folder = run_finetuning(config, [str(trained.pretraining / "checkpoints" / "best_model.pt")], silent, silent)
    mine, theirs = TrainedModel.load(folder.best_model), TrainedModel.load(trained.model)
    assert mine.chi_interval == theirs.chi_interval
    assert mine.threshold == theirs.threshold
    assert mine.probability is not None
    assert theirs.probability is not None
    assert (mine.probability.slope, mine.probability.intercept) == (
        theirs.probability.slope,
        theirs.probability.intercept,
    )
    for left, right in zip(mine.groups, theirs.groups, strict=True):
        assert all(tensor.equal(right.parameters[name]) for name, tensor in left.parameters.items())


def test_neither_computed_chi_nor_temperatures_of_test_polymers_are_taken(trained: Any, tmp_path: Path) -> None:
    stage1 = Pretrained.load(trained.pretraining / "checkpoints" / "best_model.pt")
    dataset = read_dataset(trained.config, silent)
    data = place_rows(dataset, stage1, 1, torch.device("cpu"))
    rows = dataset.stage1
    is_test = np.isin([dataset.polymers[one] for one in rows.polymer], stage1.test_polymers)
    assert data.computed is not None
    assert set(data.computed.structure.tolist()) == set(rows.structure[~is_test].tolist())
    assert not set(data.computed.structure.tolist()) & set(rows.structure[is_test].tolist())
    assert dataset.chi is not None
    of_test = np.isin([dataset.polymers[one] for one in dataset.chi.polymer], stage1.test_polymers)
    hot = replace(dataset.chi, temperature=np.where(of_test, 390.0, dataset.chi.temperature))
    folds = make_folds(dataset, 3, 1, 0, learnable_polymers(dataset, stage1.test_polymers))
    domain = finetune._fit_domain(replace(dataset, chi=hot), folds, stage1.test_polymers)
    assert (domain.coldest, domain.hottest) == (300.0, 340.0)
    assert not set(domain.measured.polymers) & set(stage1.test_polymers)


def test_every_network_is_fine_tuned_by_a_seed_of_its_own(trained: Any) -> None:
    stage1 = Pretrained.load(trained.pretraining / "checkpoints" / "best_model.pt")
    dataset = read_dataset(trained.config, silent)
    data = place_rows(dataset, stage1, 1, torch.device("cpu"))
    folds = make_folds(dataset, 3, 1, 0)
    settings = stage2_settings(trained.config, 0, is_full=True)
    twice = fit_ensemble([stage1.networks[0]] * 2, data, dataset, folds, settings, 1, silent)
    own, other = (group.parameters for group in twice.groups)
    assert not torch.equal(own["solubility.0.weight"], other["solubility.0.weight"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, TrainingError, MemoryError])
def test_what_ends_before_there_is_a_model_leaves_no_folder(
    trained: Any, tmp_path: Path, error: type[BaseException]
) -> None:
    def end(what: str, done: int, total: int) -> None:
        if what.startswith(("fine-tuning", "network")):
            raise error

    config, said = override_config(trained.config, {"paths.results_dir": str(tmp_path)}), []
    with pytest.raises(error):
        run_finetuning(config, [str(trained.pretraining / "checkpoints" / "best_model.pt")], said.append, end)
    assert said[-1].startswith("interrupted; fine-tuning cannot be resumed") == (error is KeyboardInterrupt)
    with pytest.raises(error):
        run_pretraining(config, silent, end)
    # Stage 1 goes on in the folder of an interrupted run; what an error ended at once is of no use.
    assert [path.name[:12] for path in tmp_path.iterdir()] == ["dft_pretrain"] * (error is KeyboardInterrupt)


def test_the_glob_takes_the_newest_and_counts(tmp_path: Path) -> None:
    for age, name in enumerate(("b", "c", "a")):
        path = tmp_path / f"dft_pretrain_{name}" / "best_model.pt"
        path.parent.mkdir()
        path.write_bytes(b"")
        os.utime(path, (1000 - age, 1000 - age))
    found, n = locate_pretrained([str(tmp_path / "dft_pretrain_*" / "best_model.pt")])
    assert found.parent.name == "dft_pretrain_b"
    assert n == 3
    expanded = sorted(str(path) for path in tmp_path.glob("dft_pretrain_*/best_model.pt"))
    assert locate_pretrained(expanded) == (found, 3)
    with pytest.raises(CheckpointError, match=r"nothing_\*\.pt: no such checkpoint"):
        locate_pretrained([*expanded, str(tmp_path / "nothing_*.pt")])
    # Python 3.11 and 3.12 refuse it; later ones take ** for *.
    with pytest.raises(CheckpointError, match=r"\*\*nothing\.pt: (not a pattern .*'results/\*\*/|no such checkpoint)"):
        locate_pretrained([str(tmp_path / "**nothing.pt")])


def test_another_recipe_is_refused_with_the_difference(trained: Any) -> None:
    values = trained.config.model_dump()
    values["chem"]["fingerprint_bits"] = 256
    config = type(trained.config).model_validate(values)
    with pytest.raises(CheckpointError, match=r"fingerprint_bits: the model has 128, here 256"):
        run_finetuning(config, [str(trained.pretraining / "checkpoints" / "best_model.pt")], silent, silent)


def test_what_stage_1_does_not_train_is_the_configurations_and_the_rest_the_checkpoints(
    trained: Any, tmp_path: Path
) -> None:
    values = trained.config.model_dump()
    values["paths"]["results_dir"] = str(tmp_path / "results")
    values["training"]["num_epochs_finetune"] = 1
    values["model"] |= {"encoder_latent_dim": 16, "chi_head_dropout": 0.25, "solubility_head_hidden_dim": 5}
    values["T_ref_K"] = 310.0
    said: list[str] = []
    checkpoint = trained.pretraining / "checkpoints" / "best_model.pt"
    folder = run_finetuning(type(trained.config).model_validate(values), [str(checkpoint)], said.append, silent)
    text = "\n".join(said)
    assert "model.encoder_latent_dim: 8, as Stage 1 was trained, not 16 as configured" in text
    assert "T_ref_K: 298.15, as Stage 1 was trained, not 310.0 as configured" in text
    assert "model.chi_head_dropout: 0.25, as configured; Stage 1 was trained with 0.1" in text
    assert "model.solubility_head_hidden_dim: 5, as configured" in text
    assert text.count("Stage 1 was trained") == 4
    used = load_config(folder.path / "config.yaml")
    shape = TrainedModel.load(folder.best_model).groups[0].network.shape
    for name in ("chi_head_dropout", "solubility_head_hidden_dim", "chi_head_hidden_dim", "encoder_dropout"):
        assert getattr(used.model, name) == getattr(shape, name), name
    assert (used.model.encoder_latent_dim, used.T_ref_K) == (shape.latent_dim, 298.15) == (8, 298.15)
    assert (shape.chi_head_dropout, shape.solubility_head_hidden_dim) == (0.25, 5)


def test_networks_that_are_handed_over_keep_what_stage_1_learned(trained: Any) -> None:
    stage1 = Pretrained.load(trained.pretraining / "checkpoints" / "best_model.pt")
    config = override_config(trained.config, {"model.solubility_head_hidden_dim": 5, "model.encoder_dropout": 0.3})
    handed, _, _ = hand_over(stage1, config)
    for before, after in zip(stage1.networks, handed.networks, strict=True):
        assert after.shape.encoder_dropout == 0.3
        assert not after.training
        for part in ("encoder", "heads.chi"):
            old, new = before.get_submodule(part).state_dict(), after.get_submodule(part).state_dict()
            assert all(tensor.equal(new[name]) for name, tensor in old.items())


@pytest.mark.parametrize("n_tested", [0, 1])
def test_what_a_search_saw_of_test_polymers_is_said_where_there_are_any(
    trained: Any, tmp_path: Path, n_tested: int
) -> None:
    kept = Pretrained.load(trained.pretraining / "checkpoints" / "best_model.pt").test_polymers
    values = trained.config.model_dump()
    values["training"]["num_epochs_finetune"] = 1
    values["paths"]["results_dir"] = str(tmp_path / "results")
    for key in ("exp_chi_csv", "solubility_csv"):
        frame = pd.read_csv(values["paths"][key])
        is_test = frame["SMILES"].map(polymer_identity).isin(kept)
        one = frame.loc[is_test, "SMILES"].iloc[0]
        frame[~is_test | (frame["SMILES"] == one) & (n_tested > 0)].to_csv(tmp_path / f"{key}.csv", index=False)
        values["paths"][key] = str(tmp_path / f"{key}.csv")
    said: list[str] = []
    checkpoint = str(trained.pretraining / "checkpoints" / "best_model.pt")
    folder = run_finetuning(type(trained.config).model_validate(values), [checkpoint], said.append, silent)
    notes = [
        place for place, line in enumerate(said) if "a search on the same tables scored its trials on them" in line
    ]
    assert len(notes) == n_tested
    scores = [place for place, line in enumerate(said) if " on test polymers (" in line]
    assert len(scores) == 2 * n_tested
    assert all(place < note for place in scores for note in notes)
    noted = json.loads(folder.metrics.read_text()).get("note_on_test")
    assert noted == (said[notes[0]] if notes else None)


def test_learning_from_one_table_alone(trained: Any, tmp_path: Path) -> None:
    for key, missing in (("exp_chi_csv", "predictions_chi.csv"), ("solubility_csv", "predictions_solubility.csv")):
        values = trained.config.model_dump()
        values["paths"] |= {key: None, "results_dir": str(tmp_path / key)}
        config = type(trained.config).model_validate(values)
        checkpoint = str(trained.pretraining / "checkpoints" / "best_model.pt")
        said: list[str] = []
        folder = run_finetuning(config, [checkpoint], said.append, silent)
        assert not (folder.path / missing).exists()
        assert ("no measured χ: the model's χ is that of Stage 1" in "".join(said)) == (key == "exp_chi_csv")
        model = TrainedModel.load(folder.best_model)
        assert (model.chi_interval is None) == (key == "exp_chi_csv")
        assert (model.probability is None) == (key == "solubility_csv")
        metrics = json.loads(folder.metrics.read_text())
        expected = (None, None) if model.probability is None else (model.threshold, model.positive_label)
        assert (metrics["threshold"], metrics["positive_label"]) == expected


def finetune_on(
    trained: Any, folder: Path, key: str, choose: Callable[[pd.DataFrame], pd.DataFrame]
) -> tuple[Any, str]:
    """Fine-tune on chosen rows of one table beside a random forest, with figures; the run and everything it said."""
    path = folder / "chosen.csv"
    choose(pd.read_csv(getattr(trained.config.paths, key))).to_csv(path, index=False)
    values = trained.config.model_dump()
    values["paths"] |= {key: str(path), "results_dir": str(folder / "results")}
    values["cv"]["random_forest"] = True
    config = type(trained.config).model_validate(values)
    said: list[str] = []
    checkpoint = str(trained.pretraining / "checkpoints" / "best_model.pt")
    with few_trees():
        run = run_finetuning(config, [checkpoint], said.append, silent)
    draw_model(run.path)
    return run, "\n".join(said)


@pytest.mark.parametrize(("key", "name", "n_figures"), [("exp_chi_csv", "χ", 5), ("solubility_csv", "solubility", 2)])
def test_a_table_of_test_polymers_alone_ends_in_a_report_that_says_so(
    trained: Any, tmp_path: Path, key: str, name: str, n_figures: int
) -> None:
    kept = Pretrained.load(trained.pretraining / "checkpoints" / "best_model.pt").test_polymers
    run, said = finetune_on(
        trained, tmp_path, key, lambda frame: frame[frame["SMILES"].map(polymer_identity).isin(kept)]
    )
    metrics = json.loads(run.metrics.read_text())["chi" if name == "χ" else "solubility"]
    assert metrics["validation"] == {"n_rows": 0}
    n_rows = metrics["test"]["n_rows"]
    assert n_rows > 0
    assert f"warning: {name}: all {n_rows} rows belong to test polymers" in said
    assert len(list((run.path / "figures").iterdir())) == n_figures
    assert Predictor.load(run.best_model).predict("*CCO*")["problem"].tolist() == [""]


def test_one_labelled_polymer_is_reported_without_a_calibrated_probability(trained: Any, tmp_path: Path) -> None:
    kept = Pretrained.load(trained.pretraining / "checkpoints" / "best_model.pt").test_polymers

    def choose(frame: pd.DataFrame) -> pd.DataFrame:
        one = next(smiles for smiles in frame["SMILES"] if polymer_identity(smiles) not in kept)
        return frame[frame["SMILES"] == one].assign(soluble=[0, 1])

    run, said = finetune_on(trained, tmp_path, "solubility_csv", choose)
    assert "no P(soluble)" in said
    assert TrainedModel.load(run.best_model).probability is None
    frame = pd.read_csv(run.path / "predictions_solubility.csv")
    assert frame["p_cv"].between(0, 1, inclusive="neither").all()
    metrics = json.loads(run.metrics.read_text())["solubility"]
    assert metrics["validation"]["brier"] == pytest.approx(brier_score_loss(frame["positive"], frame["p_cv"]))


def test_the_domain_has_no_solvent_that_only_test_polymers_have(trained: Any, tmp_path: Path) -> None:
    stage1 = Pretrained.load(trained.pretraining / "checkpoints" / "best_model.pt")
    # Of the test polymers each table gets a solvent of its own, of the others another one.
    others = {"dft_chi_csv": ("CO", "CCCCO"), "exp_chi_csv": ("CCC", "CCCC"), "solubility_csv": ("CCCO", "CCCCC")}
    values = trained.config.model_dump()
    values["paths"]["results_dir"] = str(tmp_path / "results")
    values["training"]["num_epochs_finetune"] = 1
    for key, (tested, learned) in others.items():
        frame = pd.read_csv(values["paths"][key])
        is_test = frame["SMILES"].map(polymer_identity).isin(stage1.test_polymers)
        extra = [frame[is_test].head(2).assign(solvent=tested), frame[~is_test].head(2).assign(solvent=learned)]
        pd.concat([frame, *extra]).to_csv(tmp_path / f"{key}.csv", index=False)
        values["paths"][key] = str(tmp_path / f"{key}.csv")
    checkpoint = str(trained.pretraining / "checkpoints" / "best_model.pt")
    folder = run_finetuning(type(trained.config).model_validate(values), [checkpoint], silent, silent)
    met = TrainedModel.load(folder.best_model).domain.solvents
    assert met == {"O", "CCO", *(learned for _, learned in others.values())}


def test_measured_chi_of_one_polymer_vouches_for_it_alone(trained: Any, tmp_path: Path) -> None:
    kept = Pretrained.load(trained.pretraining / "checkpoints" / "best_model.pt").test_polymers

    def choose(frame: pd.DataFrame) -> pd.DataFrame:
        one = next(smiles for smiles in frame["SMILES"] if polymer_identity(smiles) not in kept)
        return frame[frame["SMILES"] == one]

    run, said = finetune_on(trained, tmp_path, "exp_chi_csv", choose)
    assert "warning: `chi_in_domain` is true only for polymers of similarity 1" in said
    one = pd.read_csv(run.path / "predictions_chi.csv")["SMILES"].iloc[0]
    found = Predictor.load(run.best_model).predict([one, "*CC(*)CCCC"], temperature=[300.0], solvent="O")
    assert found["chi_in_domain"].tolist() == [True, False]
    assert "unlike every polymer with measured χ" in found["domain_note"].iloc[1]


def test_config_file_of_the_project_is_valid(project_root: Path) -> None:
    config = load_config(project_root / "configs" / "config.yaml")
    assert config.training.num_epochs_finetune == 200
    assert config.training.freeze_encoder_stage2
