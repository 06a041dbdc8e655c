"""Nested comparison: no test polymer is ever seen, the tables follow from the predictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.config import Config, override_config
from chitransfer.data.assemble import Dataset
from chitransfer.data.subsets import keep_rows, permute_labels, without_polymers
from chitransfer.errors import StudyError
from chitransfer.evidence import compare, nested
from chitransfer.evidence.compare import (
    ROWS,
    Plan,
    compare_to_default,
    measure_gaps,
    run_comparison,
    score_pooled,
    share_of_right_slopes,
)
from chitransfer.evidence.nested import PROTOCOLS, OuterFold, run_outer_fold, search_inside
from chitransfer.model.members import FittedMembers
from chitransfer.search import driver
from chitransfer.search.study_folder import StudyFolder
from chitransfer.sections import ObjectiveSettings
from chitransfer.training import conformal, forest
from chitransfer.training.stage2 import fit_members


@pytest.fixture(scope="module", autouse=True)
def small_ensembles() -> Iterator[None]:
    """Fewer trees, resamples and epochs: what is tested here does not depend on how many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forest, "N_TREES", 20)
        patch.setattr(conformal, "N_RESAMPLES", 20)
        patch.setattr(nested, "SCRATCH_EPOCHS", 10)
        yield


@pytest.fixture(scope="module")
def small_config(shared_tiny_config: Config) -> Config:
    """The smallest searches that still choose."""
    changes = {"search.n_trials": 3, "search.reevaluate_top": 1, "search.reevaluate_seeds": 1}
    return override_config(shared_tiny_config, {**changes, "training.num_epochs_finetune": 3})


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, small_config: Config, tiny_dataset: Any) -> Path:
    """A comparison of two outer folds under both protocols."""
    folder = tmp_path_factory.mktemp("compare")
    run_comparison(small_config, tiny_dataset, folder, Plan(2, 1, PROTOCOLS), lambda line: None)
    return folder


def test_inner_data_hold_no_test_polymer(tiny_dataset: Any) -> None:
    test = tiny_dataset.measured_polymers()[:5]
    known = without_polymers(tiny_dataset, test, from_stage1=False)
    new = without_polymers(tiny_dataset, test, from_stage1=True)
    for inner in (known, new):
        assert not np.isin(inner.chi.polymer, test).any()
        assert not np.isin(inner.solubility.polymer, test).any()
        assert len(inner.chi.table.rows) == len(inner.chi)
    assert np.isin(known.stage1.polymer, test).any()
    assert not np.isin(new.stage1.polymer, test).any()


def test_searches_never_saw_the_test_polymers(compared: Path, tiny_dataset: Any) -> None:
    measured = [tiny_dataset.polymers[number] for number in tiny_dataset.measured_polymers()]
    for protocol in PROTOCOLS:
        tested: list[str] = []
        for fold in sorted((compared / protocol.replace(" ", "_")).glob("outer_*")):
            polymers = json.loads((fold / "done.json").read_text())["test_polymers"]
            tested += polymers
            searched = pd.read_csv(fold / "transfer_search" / "trials" / "0000" / "out_of_fold_chi.csv")
            assert not set(searched["polymer"]) & set(polymers)
            predicted = pd.read_csv(fold / "predictions" / "transfer_best_chi.csv")
            assert set(predicted["polymer"]) <= set(polymers)
        assert sorted(tested) == sorted(measured)


def run_one_fold(config: Config, dataset: Dataset, folder: Path, test: np.ndarray) -> tuple[float, float]:
    """R² on the test polymers of the configuration the search chose, and its gap from what the search promised."""
    fold = OuterFold(folder, PROTOCOLS[0], 0, test)
    run_outer_fold(config, dataset, fold, 1, lambda line: None)
    predicted = pd.read_csv(fold.predictions("transfer_best", "chi"))
    gap = measure_gaps(config, [fold], 1).iloc[0]
    return float(sk.r2_score(predicted["chi"], predicted["predicted_chi"])), float(gap["raw"] - gap["truth"])


def test_a_planted_leak_shows_as_a_gap(
    small_config: Config, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, object] = {"training.freeze_encoder_stage2": False, "training.lr_encoder": 0.03}
    changes |= {"training.stage2_epochs": 60, "training.lr_finetune": 0.03, "search.n_trials": 2}
    changes |= {"search.reevaluate_top": 0, "cv.n_cv_repeats": 1}
    config = override_config(small_config, changes)
    # Labels that nothing can predict, so that whoever predicts them has seen them.
    dataset = permute_labels(tiny_dataset, 4)
    test = dataset.measured_polymers()[::3]
    honest, honest_gap = run_one_fold(config, dataset, tmp_path / "honest", test)

    def fit_on_everything(
        network: Any, data: Any, chi: np.ndarray, solubility: np.ndarray, *words: Any
    ) -> FittedMembers:
        return fit_members(network, data, np.ones_like(chi), np.ones_like(solubility), *words)

    monkeypatch.setattr(nested, "without_polymers", lambda dataset, test, from_stage1: dataset)
    monkeypatch.setattr(nested, "fit_members", fit_on_everything)
    leaky, leaky_gap = run_one_fold(config, dataset, tmp_path / "leaky", test)
    assert honest < 0.2
    assert leaky > 0.7
    assert leaky_gap > honest_gap + 1.0


def test_no_row_learns_from_the_labels_of_test_polymers(
    small_config: Config, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    config = override_config(small_config, {"search.n_trials": 2})
    test = tiny_dataset.measured_polymers()[::3]
    chi, solubility = tiny_dataset.chi, tiny_dataset.solubility
    assert chi is not None
    assert solubility is not None
    in_chi, in_solubility = (np.isin(rows.polymer, test) for rows in (chi, solubility))
    other = replace(
        tiny_dataset,
        chi=replace(chi, value=np.where(in_chi, chi.value + 50.0, chi.value)),
        solubility=replace(solubility, value=np.where(in_solubility, 1.0 - solubility.value, solubility.value)),
    )
    predicted = []
    for name, dataset in (("own", tiny_dataset), ("other", other)):
        fold = OuterFold(tmp_path / name, PROTOCOLS[0], 0, test)
        run_outer_fold(config, dataset, fold, 1, lambda line: None)
        frames = {path.name: pd.read_csv(path) for path in (fold.path / "predictions").glob("*.csv")}
        predicted.append(frames)
    assert {"default_full_chi.csv", "transfer_best_chi.csv", "random_forest_solubility.csv"} <= predicted[0].keys()
    for name, frame in predicted[0].items():
        for column in {"predicted_chi", "probability_positive", "threshold"} & set(frame):
            assert np.array_equal(frame[column], predicted[1][name][column]), (name, column)


def test_the_only_polymer_of_a_class_may_be_the_one_tested(
    small_config: Config, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """Neither the guard nor a classifier has two classes then; the fold is finished all the same."""
    config = override_config(small_config, {"search.n_trials": 2, "search.reevaluate_top": 0, "cv.n_cv_repeats": 1})
    rows = tiny_dataset.solubility
    assert rows is not None
    test = tiny_dataset.measured_polymers()[::3]
    label = (rows.polymer == rows.polymer[np.isin(rows.polymer, test)][0]).astype(int)
    table = replace(rows.table, rows=rows.table.rows.assign(soluble=label))
    dataset = replace(tiny_dataset, solubility=replace(rows, value=label.astype(float), table=table))
    said: list[str] = []
    fold = OuterFold(tmp_path, PROTOCOLS[0], 0, test)
    run_outer_fold(config, dataset, fold, 1, said.append)
    assert any("WARNING" in line and "too few to correct the best trial for selection bias" in line for line in said)
    candidates = json.loads((tmp_path / "candidates.json").read_text())
    assert candidates["transfer_noise_aware"] == candidates["transfer_best"]
    assert fold.stage1_mae("transfer_noise_aware") == fold.stage1_mae("transfer_best") != []
    assert measure_gaps(config, [fold], 1).empty
    for row in ROWS:
        predicted = pd.read_csv(fold.predictions(row, "solubility"))
        assert predicted["soluble"].sum() == 1, row


def test_an_inner_search_that_cannot_go_on_leaves_its_configuration(
    small_config: Config, tiny_dataset: Any, tmp_path: Path
) -> None:
    folder = StudyFolder(tmp_path / "inner")
    once = override_config(small_config, {"search.n_trials": 1})
    search_inside(once, tiny_dataset, folder, lambda line: None, "inner")
    before = folder.config.read_bytes()
    with pytest.raises(StudyError, match="under other conditions"):
        search_inside(override_config(once, {"seed": 7}), tiny_dataset, folder, lambda line: None, "inner")
    assert folder.config.read_bytes() == before


def test_an_inner_search_without_a_complete_trial_goes_on(
    small_config: Config, tiny_dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StudyFolder(tmp_path / "inner")
    config = override_config(small_config, {"search.n_trials": 1, "search.timeout_hours": 1e-9})
    # An earlier release said that such a search was done, and then it could not go on.
    for done in (False, True):
        if done:
            (folder.path / "done.json").write_text("{}")
        message = r"inner: no trial was complete after 1e-09 h \(search\.timeout_hours\)"
        with monkeypatch.context() as patch:
            # Within a poll the trial could be over.
            patch.setattr(driver, "POLL_SECONDS", 0.0)
            with pytest.raises(StudyError, match=message):
                search_inside(config, tiny_dataset, folder, lambda line: None, "inner")
        assert (folder.path / "done.json").is_file() == done
    more = override_config(config, {"search.timeout_hours": 1.0})
    study = search_inside(more, tiny_dataset, folder, lambda line: None, "inner")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]


def test_an_inner_search_that_its_time_ended_says_so(
    small_config: Config, tiny_dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said = StudyFolder(tmp_path / "inner"), list[str]()

    def one_trial_long(stop_requested: driver.StopRequested, hours: float) -> driver.StopRequested:
        return lambda: "timeout" if (folder.trial(0) / "scores.json").is_file() else None

    monkeypatch.setattr(nested, "stop_in_time", one_trial_long)
    config = override_config(small_config, {"search.pruner": "none"})
    search_inside(config, tiny_dataset, folder, said.append, "inner")
    (warning,) = [line for line in said if "WARNING" in line]
    assert warning == "inner: WARNING: ended by search.timeout_hours after 1 of 3 trials"
    assert json.loads((folder.path / "done.json").read_text()) == {"n_trials": 1, "reason": "timeout"}


def test_table_has_every_row_and_follows_from_the_predictions(compared: Path) -> None:
    table = pd.read_csv(compared / "table.csv")
    assert set(table["protocol"]) == set(PROTOCOLS)
    for protocol in PROTOCOLS:
        own = table[table["protocol"] == protocol].set_index("row")
        assert set(own.index) == set(ROWS)
        frames = [
            pd.read_csv(p) for p in (compared / protocol.replace(" ", "_")).glob("outer_*/predictions/ridge_chi.csv")
        ]
        pooled = pd.concat(frames)
        assert own.loc["ridge", "exp_mae"] == pytest.approx(
            sk.mean_absolute_error(pooled["chi"], pooled["predicted_chi"])
        )
        low = pooled[pooled["chi"] < 1.5]
        assert own.loc["ridge", "exp_mae_low_chi"] == pytest.approx((low["chi"] - low["predicted_chi"]).abs().mean())
    differences = pd.read_csv(compared / "differences.csv").set_index(["protocol", "row", "metric"])
    own = table[table["protocol"] == PROTOCOLS[0]].set_index("row")
    expected = own.loc["mean", "exp_mae"] - own.loc["default", "exp_mae"]
    line = differences.loc[(PROTOCOLS[0], "mean", "exp_mae")]
    assert line["difference"] == pytest.approx(expected)
    assert line["low"] <= line["difference"] <= line["high"]


def test_differences_are_drawn_by_polymer_whatever_its_stereo(small_config: Config, compared: Path) -> None:
    cis, trans, flat = (polymer_identity(unit) for unit in ("*C/C=C\\C*", "*C/C=C/C*", "*CC=CC*"))
    frame = pd.read_csv(compared / PROTOCOLS[0].replace(" ", "_") / "outer_0" / "predictions" / "ridge_chi.csv")
    first = frame["polymer"].unique()[:2]
    found = []
    for names in ((cis, trans), (flat, flat)):
        renamed = frame.replace({"polymer": dict(zip(first, names, strict=True))})
        other = renamed.assign(predicted_chi=0.5)
        pooled = {"default": {"chi": renamed}, "ridge": {"chi": other}}
        found.append(compare_to_default(pooled, 1, small_config, PROTOCOLS[0]))
    assert found[0] == found[1]
    assert [line["metric"] for line in found[0]] == ["exp_mae"]


def frames_off_by(error: float) -> dict[str, pd.DataFrame]:
    """χ of six polymers, each predicted that much too high."""
    polymers = [polymer_identity(f"*C{'C' * n}O*") for n in range(6)]
    chi = pd.DataFrame({"polymer": polymers, "solvent": "O", "temp": 300.0, "chi": np.arange(6.0), "seed": 0})
    return {"chi": chi.assign(predicted_chi=chi["chi"] + error)}


def test_differences_are_a_row_minus_what_it_is_compared_with(small_config: Config) -> None:
    rows = {"default": 0.3, "ridge": 0.2, "transfer_best": 0.5, "default_full": 0.1, "transfer_full": 0.15}
    lines = compare_to_default({row: frames_off_by(error) for row, error in rows.items()}, 1, small_config, "p")
    found = {line["row"]: (line["against"], line["difference"]) for line in lines if line["metric"] == "exp_mae"}
    assert found == {
        "ridge": ("default", pytest.approx(-0.1)),
        "transfer_best": ("default", pytest.approx(0.2)),
        "default_full": ("default", pytest.approx(-0.2)),
        "transfer_full": ("default_full", pytest.approx(0.05)),
    }


def test_a_row_has_no_objective_where_only_stage_1_is_weighed(small_config: Config) -> None:
    weights = {**dict.fromkeys(ObjectiveSettings.model_fields, 0.0), "stage1_mae": 1.0}
    alone = override_config(small_config, {"objective": weights})
    pooled = {"default": frames_off_by(0.3), "ridge": frames_off_by(0.2)}
    assert "objective" not in score_pooled(pooled["ridge"], 1, alone)
    assert [line["metric"] for line in compare_to_default(pooled, 1, alone, "p")] == ["exp_mae"]


def test_the_outer_truth_is_the_whole_objective_on_the_test_polymers(small_config: Config, tmp_path: Path) -> None:
    weights = {"exp_mae": 2.0, "sol_f1": 0.0, "sol_recall": 0.0, "stage1_mae": 0.5}
    config = override_config(small_config, {f"objective.{name}": weight for name, weight in weights.items()})
    fold = OuterFold(tmp_path, PROTOCOLS[0], 3, np.zeros(1, dtype=int))
    (tmp_path / "predictions").mkdir()
    frames_off_by(0.3)["chi"].to_csv(fold.predictions("transfer_best", "chi"), index=False)
    (tmp_path / "predictions" / "transfer_best.json").write_text(json.dumps({"stage1_mae": [0.1, 0.3]}))
    (tmp_path / "overtuning.json").write_text(json.dumps({"best_value": 0.4, "corrected": {"value": 0.6}}))
    (line,) = measure_gaps(config, [fold], 1).to_dict("records")
    assert (line["protocol"], line["fold"], line["raw"], line["corrected"]) == (PROTOCOLS[0], 3, 0.4, 0.6)
    assert line["truth"] == pytest.approx(2.0 * 0.3 + 0.5 * 0.2)


@pytest.mark.parametrize("label", [0, 1])
def test_calls_are_of_the_positive_class_whichever_it_is(small_config: Config, label: int) -> None:
    frame = pd.DataFrame({"soluble": [1, 1, 0, 0, 0], "probability_positive": 0.5, "called_positive": [1, 0, 1, 1, 0]})
    scores = score_pooled({"solubility": frame.assign(seed=0)}, label, small_config)
    assert scores["sol_recall"] == pytest.approx(1 / 2 if label else 2 / 3)
    assert scores["sol_precision"] == pytest.approx(1 / 3 if label else 2 / 3)


def test_test_polymers_without_a_positive_row_have_no_objective(small_config: Config) -> None:
    frame = pd.DataFrame({"soluble": [0, 0], "probability_positive": 0.5, "called_positive": [0, 1], "seed": 0})
    scores = score_pooled({**frames_off_by(0.3), "solubility": frame}, 1, small_config)
    assert "objective" not in scores
    assert np.isnan([scores["sol_f1"], scores["sol_recall"]]).all()


def test_a_finished_comparison_is_not_run_again(
    compared: Path, small_config: Config, tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an outer fold was run again")

    monkeypatch.setattr(compare, "run_outer_fold", refuse)
    before = (compared / "table.csv").read_text()
    assert run_comparison(small_config, tiny_dataset, compared, Plan(2, 1, PROTOCOLS), lambda line: None)
    assert (compared / "table.csv").read_text() == before


def test_other_conditions_are_refused(compared: Path, small_config: Config, tiny_dataset: Any) -> None:
    other = override_config(small_config, {"search.n_trials": 4})
    with pytest.raises(StudyError, match=r"other conditions \(search\.n_trials\)"):
        run_comparison(other, tiny_dataset, compared, Plan(2, 1, PROTOCOLS), lambda line: None)
    with pytest.raises(StudyError, match="n_outer"):
        run_comparison(small_config, tiny_dataset, compared, Plan(3, 1, PROTOCOLS), lambda line: None)


def test_a_table_of_one_polymer_is_refused_before_anything_is_computed(
    small_config: Config, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    rows = tiny_dataset.chi
    assert rows is not None
    dataset = replace(tiny_dataset, chi=keep_rows(rows, rows.polymer == rows.polymer[0]))
    with pytest.raises(StudyError, match=r"all its polymers \(1\).*--set paths\.exp_chi_csv=null"):
        run_comparison(small_config, dataset, tmp_path, Plan(2, 1, PROTOCOLS), lambda line: None)
    assert not list(tmp_path.iterdir())


def test_slopes_are_counted_by_pair() -> None:
    frame = pd.DataFrame(
        {
            "polymer": ["a", "a", "b", "b", "c", "c"],
            "solvent": ["O"] * 6,
            "temp": [300.0, 340.0, 300.0, 340.0, 300.0, 301.0],
            "chi": [1.0, 0.8, 0.5, 0.7, 1.0, 2.0],
            "predicted_chi": [2.0, 1.5, 0.9, 0.8, 2.0, 1.0],
        }
    )
    assert share_of_right_slopes(frame) == 0.5
    # What was measured as flat has no sign to be right or wrong about.
    flat = pd.DataFrame(
        {"polymer": "d", "solvent": "O", "temp": [300.0, 340.0], "chi": 0.4, "predicted_chi": [1.0, 2.0]}
    )
    assert share_of_right_slopes(pd.concat([frame, flat])) == 0.5


def test_flat_predictions_have_no_slope(rng: np.random.Generator) -> None:
    """Temperatures less their mean add up to rounding, not to zero: a constant must not get a sign from that."""
    temperature = rng.uniform(280.0, 400.0, (40, 7))
    frame = pd.DataFrame(
        {
            "polymer": np.repeat(np.arange(40), 7).astype(str),
            "solvent": "O",
            "temp": temperature.ravel(),
            "chi": (200.0 / temperature).ravel(),
            "predicted_chi": 0.7321,
        }
    )
    assert np.isnan(share_of_right_slopes(frame))
    frame.loc[frame["polymer"] == "3", "predicted_chi"] = frame["chi"]
    assert share_of_right_slopes(frame) == pytest.approx(1 / 40)
    assert np.isnan(share_of_right_slopes(frame.assign(chi=0.3, predicted_chi=frame["chi"])))


def test_a_constant_is_not_ranked(compared: Path) -> None:
    table, differences = pd.read_csv(compared / "table.csv"), pd.read_csv(compared / "differences.csv")
    for metric in ("exp_spearman", "sol_auc", "sol_pr_auc", "slope_sign"):
        assert table.loc[table["row"] == "mean", metric].isna().all()
        assert table.loc[table["row"] == "ridge", "exp_spearman"].notna().all()
    assert set(differences.loc[differences["row"] == "mean", "metric"]) == {
        "objective", "exp_mae", "sol_f1", "sol_recall"
    }  # fmt: skip


def test_command_says_which_protocols_there_are(run_command: Callable[..., tuple[int, str, str]]) -> None:
    code, _, error = run_command("compare", "--protocol", "old")
    assert code == 2
    assert "known, new or both" in error
