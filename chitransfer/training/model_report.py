"""The numbers of a fine-tuned model on disk: predictions per row, and metrics that can be recomputed from them.

Called by `training.finetune`; `report.model_figures` draws from the tables it writes.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from chitransfer.counts import say_count
from chitransfer.data.assemble import Dataset, Rows
from chitransfer.files import write_csv, write_json
from chitransfer.model.calibration import COVERAGE, ProbabilityCalibration
from chitransfer.model.checkpoint import TrainedModel
from chitransfer.training.against_forest import (
    FOREST,
    compare_chi,
    compare_solubility,
    describe_difference,
    judge_forest,
)
from chitransfer.training.conformal import (
    coverage_metrics,
    cross_fit_calibration,
    cross_fit_coverage,
    cross_fit_half_widths,
    promised_coverage,
)
from chitransfer.training.forest import ForestPredictions
from chitransfer.training.metrics import call_metrics, solubility_metrics
from chitransfer.training.out_of_fold import TaskPredictions
from chitransfer.training.resampling import Estimate
from chitransfer.training.run_folder import RunFolder, chi_scores, describe_rows
from chitransfer.training.trivial import training_means

CHI_FILE, SOLUBILITY_FILE = "predictions_chi.csv", "predictions_solubility.csv"
CROSS_VALIDATION, TEST = "cross-validation", "test"
CHI_SHOWN = {"mae": "MAE", "r2": "R²"}
SOLUBILITY_SHOWN = {"f1": "F1", "recall": "recall", "precision": "precision", "auc": "AUC", "brier": "Brier"}
SEARCHED_ON_TEST = (
    "test polymers: neither stage was trained on them, but a search on the same tables scored its trials on them, so "
    "if it chose these settings the errors may be slightly optimistic; `chitransfer compare` tests on polymers that "
    "no search saw"
)
ALL_KEPT = "add measured polymers, or lower training.test_fraction and pretrain again"


def write_model_report(
    folder: RunFolder,
    dataset: Dataset,
    model: TrainedModel,
    chi: TaskPredictions | None,
    slopes: TaskPredictions | None,
    logits: TaskPredictions | None,
    forest: ForestPredictions | None = None,
) -> list[str]:
    """Write predictions_chi.csv, predictions_solubility.csv and metrics.json; returns a summary in a few lines.

    With a `forest`, the summary also says how well it predicts the same rows.
    """
    # A model without a probability has not learned solubility at all.
    learned = model.probability is not None
    metrics: dict[str, Any] = {
        "threshold": model.threshold if learned else None,
        "positive_label": model.positive_label if learned else None,
    }
    said = []
    if chi is not None and slopes is not None and dataset.chi is not None:
        frame = chi_frame(dataset.chi, model, chi, slopes)
        if forest is not None and forest.chi is not None:
            frame["chi_forest"] = forest.chi.value
        write_csv(folder.path / CHI_FILE, frame)
        metrics["chi"] = chi_report(frame, dataset.chi.polymer)
        if model.chi_interval is not None:
            metrics["chi"]["stated_coverage"] = model.chi_interval.coverage
        said += describe_chi(metrics["chi"])
    if logits is not None and dataset.solubility is not None:
        frame = solubility_frame(dataset.solubility, model, logits)
        if forest is not None and forest.solubility is not None:
            frame["p_forest"] = forest.solubility.value
            frame["forest_called_positive"] = forest.solubility.called_positive().astype(int)
        write_csv(folder.path / SOLUBILITY_FILE, frame)
        metrics["solubility"] = solubility_report(frame, dataset.solubility.polymer)
        said += _describe_solubility(metrics["solubility"], model.probability is not None)
    if "chi" not in metrics:
        said.append(
            "note: no measured χ: the model's χ is that of Stage 1, without an interval; in_domain refers to solubility"
        )
    if any(metrics[kind][TEST]["n_rows"] for kind in ("chi", "solubility") if kind in metrics):
        metrics["note_on_test"] = SEARCHED_ON_TEST
        said.append(SEARCHED_ON_TEST)
    write_json(folder.metrics, metrics)
    return said


def chi_frame(rows: Rows, model: TrainedModel, chi: TaskPredictions, slopes: TaskPredictions) -> pd.DataFrame:
    """One line per χ row.

    ``chi_cv_N`` and ``chi_cv`` come from members that never saw the polymer (repeat N; all repeats), ``chi_train`` from
    those that learned from it, ``chi_model`` from all. ``half_width_cv`` is calibrated on the other folds.
    ``chi_trivial`` is the mean χ of the training folds, over all repeats; empty where a repeat has none. ``A_K`` and
    ``B`` belong to ``chi_cv`` (test rows: ``chi_model``): chi_cv = A_K / temp + B.
    """
    own, left_out, spread = chi.learned, chi.left_out(), chi.left_out_spread()
    half_width = np.full(len(rows), np.nan)
    if model.chi_interval is not None:
        half_width = model.chi_interval.half_width(spread)
        half_width[own] = cross_fit_half_widths(
            (rows.value - left_out)[own], spread[own], rows.polymer[own], chi.fold[0][own]
        )
    trivial = np.full(len(rows), np.nan)
    if own.any():
        trivial = training_means(rows.value, chi.fold).mean(axis=0)
    A = slopes.left_out()
    columns: dict[str, Any] = {**describe_rows(rows), "split": np.where(own, CROSS_VALIDATION, TEST)}
    for repeat, values in enumerate(chi.left_out_by_repeat(), start=1):
        columns[f"fold_{repeat}"] = chi.fold[repeat - 1]
        columns[f"chi_cv_{repeat}"] = np.where(own, values, np.nan)
    columns |= {
        "chi_cv": np.where(own, left_out, np.nan),
        "half_width_cv": half_width,
        "chi_train": chi.trained(),
        "chi_model": chi.values.mean(axis=(0, 1)),
        "chi_trivial": trivial,
        "A_K": A,
        "B": left_out - A / rows.temperature,
    }
    return pd.DataFrame(columns)


def chi_report(frame: pd.DataFrame, polymer: np.ndarray) -> dict[str, Any]:
    """Metrics of a `chi_frame`; `polymer` (n_rows,) identifies the polymer of each row."""
    chi, own = frame["chi"].to_numpy(), (frame["split"] == CROSS_VALIDATION).to_numpy()
    repeats = [name for name in frame.columns if name.startswith("chi_cv_")]
    by_repeat = [chi_scores(chi[own], frame[name].to_numpy()[own]) for name in repeats]
    report = {
        "n_polymers": {CROSS_VALIDATION: len(np.unique(polymer[own])), TEST: len(np.unique(polymer[~own]))},
        "train": chi_scores(chi[own], frame["chi_train"].to_numpy()[own]),
        "validation": chi_scores(chi[own], frame["chi_cv"].to_numpy()[own]),
        "validation_by_repeat": by_repeat,
        "validation_mean_of_repeats": {
            name: count if name == "n_rows" else float(np.mean([one[name] for one in by_repeat]))
            for name, count in by_repeat[0].items()
        },
        "validation_by_fold": [
            _by_fold(frame[f"fold_{k}"].to_numpy(), chi, frame[name].to_numpy()) for k, name in enumerate(repeats, 1)
        ],
        "test": chi_scores(chi[~own], frame["chi_model"].to_numpy()[~own]),
    }
    if own.any():
        trivial = frame["chi_trivial"].to_numpy()
        report["trivial_predictor"] = {
            name: chi_scores(chi[rows], trivial[rows])
            for name, rows in (("validation", own), (TEST, ~own))
            if np.isfinite(trivial[rows]).all()
        }
    if "chi_forest" in frame:
        forest = frame["chi_forest"].to_numpy()
        report["random_forest"] = {
            name: chi_scores(chi[rows], forest[rows]) for name, rows in (("validation", own), (TEST, ~own))
        }
        difference = compare_chi(chi[own], [frame[name].to_numpy()[own] for name in repeats], forest[own], polymer[own])
        report["mae_less_forest"] = None if difference is None else asdict(difference)
    half_width = frame["half_width_cv"].to_numpy()
    stated = {
        "validation": cross_fit_coverage(polymer[own], frame["fold_1"].to_numpy()[own]),
        "test": promised_coverage(len(np.unique(polymer[own]))),
    }
    for name, rows, predicted in (("validation", own, "chi_cv"), ("test", ~own, "chi_model")):
        rows = rows & np.isfinite(half_width)
        if rows.any():
            report[f"interval_{name}"] = {"stated_coverage": stated[name]} | coverage_metrics(
                chi[rows], frame[predicted].to_numpy()[rows], half_width[rows], polymer[rows]
            )
    return report


def _by_fold(fold: np.ndarray, chi: np.ndarray, predicted: np.ndarray) -> list[dict[str, float]]:
    return [chi_scores(chi[fold == one], predicted[fold == one]) for one in range(int(fold.max()) + 1)]


def solubility_frame(rows: Rows, model: TrainedModel, logits: TaskPredictions) -> pd.DataFrame:
    """One line per solubility row; probabilities are of the positive class.

    ``p_cv_N`` comes from members of repeat N that never saw the polymer, uncalibrated; ``logit_cv`` from all repeats.
    ``p_cv`` is ``logit_cv`` calibrated on the other folds; ``called_positive`` compares it with a threshold chosen on
    those folds with the same sigmoid. Every fold has its own sigmoid, so rows are ranked by ``logit_cv``, not ``p_cv``.
    ``p_train`` and ``p_model`` are calibrated as in the model; ``p_low``, ``p_high`` is the interval of the members
    that left the row out.
    """
    own, positive = logits.learned, rows.value == model.positive_label
    calibration = model.probability
    columns: dict[str, Any] = {
        **describe_rows(rows),
        "positive": positive.astype(int),
        "split": np.where(own, CROSS_VALIDATION, TEST),
    }
    for repeat, values in enumerate(logits.left_out_by_repeat(), start=1):
        columns[f"fold_{repeat}"] = logits.fold[repeat - 1]
        columns[f"p_cv_{repeat}"] = np.where(own, expit(values), np.nan)
    fold = logits.fold[0][own]
    logit_cv = np.where(own, logits.left_out(), np.nan)
    p_cv, called = np.full(len(rows), np.nan), np.zeros(len(rows), dtype=bool)
    p_cv[own], threshold = cross_fit_calibration(logit_cv[own], positive[own], fold)
    called[own] = p_cv[own] >= threshold
    p_model = _calibrated(calibration, logits.values.mean(axis=(0, 1)))
    called[~own] = p_model[~own] >= model.threshold
    low, high = _interval(calibration, logits)
    columns |= {
        "logit_cv": logit_cv,
        "p_cv": p_cv,
        "called_positive": called.astype(int),
        "p_low": low,
        "p_high": high,
        "p_train": _calibrated(calibration, logits.trained()),
        "p_model": p_model,
    }
    return pd.DataFrame(columns)


def _calibrated(calibration: ProbabilityCalibration | None, logit: np.ndarray) -> np.ndarray:
    result: np.ndarray = expit(logit) if calibration is None else calibration.probability(logit)
    return result


def _interval(calibration: ProbabilityCalibration | None, logits: TaskPredictions) -> tuple[np.ndarray, np.ndarray]:
    n_rows = logits.values.shape[2]
    low, high = np.full(n_rows, np.nan), np.full(n_rows, np.nan)
    if calibration is not None:
        for row in range(n_rows):
            low[row : row + 1], high[row : row + 1] = calibration.interval(logits.left_out_members(row)[:, None])
    return low, high


def solubility_report(frame: pd.DataFrame, polymer: np.ndarray) -> dict[str, Any]:
    """Metrics of a `solubility_frame`; `polymer` (n_rows,) identifies the polymer of each row."""
    positive, own = frame["positive"].to_numpy() == 1, (frame["split"] == CROSS_VALIDATION).to_numpy()
    called = frame["called_positive"].to_numpy() == 1
    report: dict[str, Any] = {
        "n_polymers": {CROSS_VALIDATION: len(np.unique(polymer[own])), TEST: len(np.unique(polymer[~own]))},
        "validation": _solubility_scores(
            positive[own], frame["p_cv"].to_numpy()[own], called[own], frame["logit_cv"].to_numpy()[own]
        ),
        "validation_auc_by_repeat": [
            _solubility_scores(positive[own], frame[name].to_numpy()[own], called[own]).get("auc")
            for name in frame.columns
            if name.startswith("p_cv_")
        ],
        "test": _solubility_scores(positive[~own], frame["p_model"].to_numpy()[~own], called[~own]),
    }
    # Of the two constant predictions, "positive" never has the lower F1.
    report["trivial_predictor"] = {
        name: {
            score.removeprefix("sol_"): value
            for score, value in call_metrics(positive[rows], rows[rows], absent=np.nan).items()
        }
        for name, rows in (("validation", own), (TEST, ~own))
        if rows.any()
    }
    if "p_forest" in frame:
        forest, forest_called = frame["p_forest"].to_numpy(), frame["forest_called_positive"].to_numpy() == 1
        report["random_forest"] = {
            name: _solubility_scores(positive[rows], forest[rows], forest_called[rows])
            for name, rows in (("validation", own), (TEST, ~own))
        }
        difference = compare_solubility(positive[own], frame["logit_cv"].to_numpy()[own], forest[own], polymer[own])
        report["auc_less_forest"] = None if difference is None else asdict(difference)
    train = frame["p_train"].to_numpy()[own]
    report["train"] = {
        name: value
        for name, value in _solubility_scores(positive[own], train, train >= 0.5).items()
        if name in ("n_rows", "auc", "pr_auc", "brier")
    }
    return report


def _solubility_scores(
    positive: np.ndarray, probability: np.ndarray, called: np.ndarray, ranking: np.ndarray | None = None
) -> dict[str, float]:
    if len(positive) == 0:
        return {"n_rows": 0}
    named = solubility_metrics(positive, probability, called, ranking, absent=np.nan)
    return {"n_rows": len(positive), **{name.removeprefix("sol_"): value for name, value in named.items()}}


def _shown(scores: dict[str, float], titles: dict[str, str]) -> str:
    """The scores that have both a title and a value."""
    return ", ".join(
        f"{title} {scores[name]:.3f}" for name, title in titles.items() if np.isfinite(scores.get(name, np.nan))
    )


def _estimate(written: dict[str, float] | None) -> Estimate | None:
    return None if written is None else Estimate(**written)


def describe_chi(report: dict[str, Any]) -> list[str]:
    """A `chi_report` in words; undefined metrics, such as R² where all χ are equal, are omitted."""
    lines = []
    if report["validation"]["n_rows"]:
        mean, pooled = report["validation_mean_of_repeats"], report["validation"]
        lines.append(
            f"χ on polymers left out: {_shown(mean, CHI_SHOWN)} (mean over repeats); "
            f"{_shown(pooled, CHI_SHOWN)} (all members that left the polymer out)"
        )
        if "validation" in report["trivial_predictor"]:
            trivial = report["trivial_predictor"]["validation"]
            lines.append(f"  trivial predictor (mean of the training folds): {_shown(trivial, CHI_SHOWN)}")
            if trivial["mae"] <= mean["mae"]:
                lines.append(
                    "warning: χ: the mean of the training folds does not have a larger MAE on polymers left out, "
                    f"{trivial['mae']:.3f} against {mean['mae']:.3f}; for new polymers it predicts χ as well as this "
                    "model"
                )
        if "random_forest" in report:
            forest = report["random_forest"]["validation"]
            difference = _estimate(report["mae_less_forest"])
            lines += [FOREST + _shown(forest, CHI_SHOWN), *describe_difference(difference, "MAE")]
            few, ahead = say_count(report["n_polymers"][CROSS_VALIDATION], "polymer"), mean["mae"] - forest["mae"]
            lines += judge_forest("χ: the random forest has the lower MAE", ahead, difference, few)
    else:
        lines.append(
            f"warning: χ: all {report['test']['n_rows']} rows belong to test polymers; the model was trained on no "
            f"measured χ, and its χ has no interval; {ALL_KEPT}"
        )
    if "interval_validation" in report:
        inside = report["interval_validation"]
        lines.append(
            f"{100 * inside['stated_coverage']:.0f} % prediction interval: "
            f"{_describe_coverage(inside)}, median width {inside['median_width']:.2f}"
        )
    if report.get("stated_coverage", COVERAGE) < COVERAGE:
        stated = report["stated_coverage"]
        lines.append(
            f"warning: a χ interval from {say_count(report['n_polymers'][CROSS_VALIDATION], 'polymer')} can promise "
            f"{stated:.0%} at most, not {COVERAGE:.0%}; chi_low … chi_high promises {stated:.0%}. Measure χ of 9 "
            "polymers or more"
        )
    if report["test"]["n_rows"]:
        rows = say_count(report["test"]["n_rows"], "row")
        lines.append(f"χ on test polymers ({rows}): {_shown(report['test'], CHI_SHOWN)}")
        if "trivial_predictor" in report:
            lines.append(f"  trivial predictor: {_shown(report['trivial_predictor'][TEST], CHI_SHOWN)}")
        if "random_forest" in report:
            lines.append(f"  random forest: {_shown(report['random_forest'][TEST], CHI_SHOWN)}")
        if "interval_test" in report:
            lines.append(f"  the interval {_describe_coverage(report['interval_test'])}")
    return lines


def _describe_coverage(inside: dict[str, float]) -> str:
    of_polymer, of_all = inside["coverage_polymers"], inside["coverage_rows"]
    return f"covers {of_polymer:.1%} of a polymer's rows on average, {of_all:.1%} of all rows"


def _describe_solubility(report: dict[str, Any], is_calibrated: bool) -> list[str]:
    scores = report["validation"]
    if not scores["n_rows"]:
        return [
            f"warning: solubility: all {report['test']['n_rows']} rows belong to test polymers; the model has not "
            f"learned solubility and gives no P(soluble); {ALL_KEPT}"
        ]
    trivial = report["trivial_predictor"]
    lines = [
        f"solubility on polymers left out: {_shown(scores, SOLUBILITY_SHOWN)}",
        f"  trivial predictor (every row in the positive class): {_shown(trivial['validation'], SOLUBILITY_SHOWN)}",
    ]
    if "random_forest" in report:
        forest = report["random_forest"]["validation"]
        difference = _estimate(report["auc_less_forest"])
        lines += [FOREST + _shown(forest, SOLUBILITY_SHOWN), *describe_difference(difference, "AUC")]
        few = say_count(report["n_polymers"][CROSS_VALIDATION], "polymer")
        few, ahead = "polymers of one class" if difference is None else few, forest["auc"] - scores["auc"]
        lines += judge_forest("solubility: the random forest ranks better", ahead, difference, few)
    if scores["f1"] <= trivial["validation"]["f1"]:
        lines.append(
            "warning: solubility: F1 is no better than when every row is called positive; see ROC-AUC and Brier, or "
            "set solubility.positive to the other class"
        )
    if report[TEST]["n_rows"]:
        rows = say_count(report[TEST]["n_rows"], "row")
        lines += [
            f"solubility on test polymers ({rows}): {_shown(report[TEST], SOLUBILITY_SHOWN)}",
            f"  trivial predictor: {_shown(trivial[TEST], SOLUBILITY_SHOWN)}",
        ]
        if "random_forest" in report:
            lines.append(f"  random forest: {_shown(report['random_forest'][TEST], SOLUBILITY_SHOWN)}")
    if not is_calibrated:
        lines.append(
            f"warning: the {scores['n_rows']} solubility rows of the training belong to one class, or to polymers in "
            "one fold; a probability cannot be calibrated on polymers left out, so the model gives no P(soluble). "
            "Add soluble and insoluble polymers"
        )
    return lines
