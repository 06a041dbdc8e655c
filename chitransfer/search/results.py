"""Results as the guide has them: best_params.json, all_trials.csv, top_20_trials.csv, and the summary in words.

Called by `search.run` during and after a search, by `chitransfer status`, and by `report`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from chitransfer.config import ObjectiveSettings
from chitransfer.errors import TrainingError
from chitransfer.files import write_csv, write_json
from chitransfer.search.objective import ERRORS, transfer_objective
from chitransfer.search.study import StudyFolder
from chitransfer.training.metrics import CHI_METRICS, SOLUBILITY_METRICS

COMPONENTS = ("stage1_mae", *CHI_METRICS, *SOLUBILITY_METRICS)
OTHER_ATTRIBUTES = (
    "seconds_stage1",
    "seconds_stage2",
    "peak_memory_mb",
    "stage1_epochs",
    "failure_reason",
)
TITLES = {
    "stage1_mae": "Stage 1 χ MAE (validation)",
    "exp_mae": "experimental χ MAE",
    "exp_rmse": "experimental χ RMSE",
    "exp_r2": "experimental χ R²",
    "sol_f1": "solubility F1",
    "sol_recall": "solubility recall",
    "sol_precision": "solubility precision",
    "sol_balanced_accuracy": "solubility balanced accuracy",
    "sol_mcc": "solubility MCC",
    "sol_auc": "solubility ROC-AUC",
}


@dataclass(frozen=True)
class Standing:
    """Where a study stands, worked out from its trials alone."""

    counts: dict[str, int]
    best: FrozenTrial | None
    default: FrozenTrial | None
    ranked: list[FrozenTrial]
    seconds_per_trial: float | None


def read_standing(study: optuna.Study) -> Standing:
    """Counts by state, the best trials first, the default configuration's trial, and the pace."""
    trials = study.get_trials(deepcopy=False)
    ranked = sorted((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: (t.values[0], t.number))
    ended = [t for t in trials if t.state.is_finished() and t.datetime_start and t.datetime_complete]
    counts = {state.name: sum(t.state == state for t in trials) for state in TrialState}
    return Standing(
        counts={name: n for name, n in counts.items() if n},
        best=ranked[0] if ranked else None,
        default=next((t for t in ranked if t.user_attrs.get("is_default")), None),
        ranked=ranked,
        seconds_per_trial=_pace(ended),
    )


def _pace(ended: list[FrozenTrial]) -> float | None:
    # Between ends, not per trial: with several workers trials overlap. The last ten, so that breaks do not count.
    ends = sorted(t.datetime_complete for t in ended if t.datetime_complete)[-11:]
    if len(ends) < 2:
        return ended[0].duration.total_seconds() if ended and ended[0].duration else None
    gaps = sorted((later - earlier).total_seconds() for earlier, later in pairwise(ends))
    return gaps[len(gaps) // 2]


def trials_frame(study: optuna.Study) -> pd.DataFrame:
    """One line a trial in order of number: state, objective, components, spread, parameters, seconds, failure."""
    parameters = list(study.user_attrs.get("contract", {}).get("space", {}))
    rows = []
    for trial in study.get_trials(deepcopy=False):
        attributes = trial.user_attrs
        row: dict[str, Any] = {
            "number": trial.number,
            "state": trial.state.name,
            "value": trial.values[0] if trial.values else None,
            "is_default": bool(attributes.get("is_default", False)),
        }
        row |= {name: trial.params.get(name) for name in parameters or trial.params}
        for name in COMPONENTS:
            row[name] = attributes.get(name)
            row[f"{name}_std"] = attributes.get(f"{name}_std")
        row |= {name: attributes.get(name) for name in OTHER_ATTRIBUTES}
        row["seconds_total"] = trial.duration.total_seconds() if trial.duration else None
        rows.append(row)
    return pd.DataFrame(rows)


def write_results(folder: StudyFolder, study: optuna.Study) -> None:
    """Write best_params.json (when a trial is complete), all_trials.csv and top_20_trials.csv."""
    frame = trials_frame(study)
    write_csv(folder.path / "all_trials.csv", frame)
    ranked = (
        frame[frame["state"] == "COMPLETE"].sort_values(["value", "number"], kind="stable") if len(frame) else frame
    )
    write_csv(folder.path / "top_20_trials.csv", ranked.head(20))
    standing = read_standing(study)
    if standing.best is None:
        return
    write_json(
        folder.path / "best_params.json",
        {
            "best_value": standing.best.values[0],
            "best_params": standing.best.params,
            "n_trials": sum(standing.counts.get(name, 0) for name in ("COMPLETE", "PRUNED", "FAIL")),
            "best_trial_number": standing.best.number,
            "study_name": folder.name,
            "components": {name: standing.best.user_attrs.get(name) for name in COMPONENTS},
            "default_value": standing.default.values[0] if standing.default else None,
        },
    )


def trivial_objective(reference: Mapping[str, float], stage1_mae: float, weights: ObjectiveSettings) -> float | None:
    """The objective of the trivial predictor, with a given Stage 1 MAE because it has none of its own."""
    try:
        return transfer_objective({**reference, "stage1_mae": stage1_mae}, weights)
    except TrainingError:
        return None


def beaten_by_trivial(best: Mapping[str, Any], reference: Mapping[str, float], weights: ObjectiveSettings) -> list[str]:
    """Weighted components on which the best trial is not better than the trivial predictor, each as a sentence."""
    sentences = []
    for name, weight in weights.model_dump().items():
        mine, trivial = best.get(name), reference.get(name)
        if weight <= 0 or mine is None or trivial is None:
            continue
        worse = mine >= trivial if name in ERRORS else mine <= trivial
        if worse:
            sentences.append(
                f"{TITLES[name]}: {mine:.3f} is no better than the trivial predictor's {trivial:.3f}, "
                "so this part of the objective rewards doing nothing here"
            )
    return sentences
