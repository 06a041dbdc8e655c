"""Results as in the guide: best_params.json, all_trials.csv, top_20_trials.csv; and the state of a study.

Called by `search.run`, `search.summary`, `evidence` and `report`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from chitransfer.errors import StudyError
from chitransfer.files import write_csv, write_json
from chitransfer.search.objective import COMPONENTS, FIRST_FRESH
from chitransfer.search.records import OBJECTIVE, SECONDS_TOTAL, load_rung
from chitransfer.search.replicates import (
    REPLICATE_VALUES,
    count_runs,
    posterior_means,
    replicate_folder,
    values_of_runs,
)
from chitransfer.search.space import HALVED_BATCH_SIZE
from chitransfer.search.study import CONTRACT
from chitransfer.search.study_folder import StudyFolder
from chitransfer.sections import SearchSettings

OTHER_ATTRIBUTES = (
    "seconds_stage1",
    "seconds_stage2",
    "peak_memory_mb",
    "stage1_epochs",
    "failure_reason",
)
# Columns of all_trials.csv, also as written by `chitransfer rescore`, that are not parameters.
OWN_COLUMNS = frozenset(
    {"number", "state", "value", "is_default", "value_before", "rank_before", *COMPONENTS}
    | {f"{name}_std" for name in COMPONENTS}
    | {*OTHER_ATTRIBUTES, HALVED_BATCH_SIZE, "n_runs", "posterior_mean", "on_pareto_front", SECONDS_TOTAL}
)
TITLES = {
    "stage1_mae": "Stage 1 χ MAE (validation)",
    "exp_mae": "experimental χ MAE",
    "exp_rmse": "experimental χ RMSE",
    "exp_r2": "experimental χ R²",
    "exp_spearman": "experimental χ Spearman ρ",
    "sol_f1": "solubility F1",
    "sol_recall": "solubility recall",
    "sol_precision": "solubility precision",
    "sol_balanced_accuracy": "solubility balanced accuracy",
    "sol_mcc": "solubility MCC",
    "sol_auc": "solubility ROC-AUC",
    "sol_pr_auc": "solubility PR-AUC",
    "sol_brier": "solubility Brier score",
}


@dataclass(frozen=True)
class Standing:
    """The state of a study, computed from its trials alone.

    Attributes
    ----------
    counts
        Trials by state; states without a trial are left out.
    n_ended, n_runs
        Trials in a final state, and the runs they took; the latter is larger only with `search.replicates`.
    ranked
        Complete trials, best first: by posterior mean, which in a plain search is the objective.
    posterior
        Posterior mean of each complete trial by number, in the same order.
    """

    counts: dict[str, int]
    n_ended: int
    n_runs: int
    default: FrozenTrial | None
    ranked: list[FrozenTrial]
    posterior: dict[int, float]
    seconds_per_trial: float | None

    @property
    def best(self) -> FrozenTrial | None:
        """The first of `ranked`."""
        return self.ranked[0] if self.ranked else None


def read_standing(study: optuna.Study) -> Standing:
    """Counts by state, ranked trials, the default configuration's trial, and the pace."""
    trials = [with_one_value(trial) for trial in study.get_trials(deepcopy=False)]
    complete = {trial.number: trial for trial in trials if trial.state == TrialState.COMPLETE}
    posterior = posterior_means({number: values_of_runs(trial) for number, trial in complete.items()})
    ended = [trial for trial in trials if trial.state.is_finished()]
    counts = {state.name: sum(t.state == state for t in trials) for state in TrialState}
    return Standing(
        counts={name: n for name, n in counts.items() if n},
        n_ended=len(ended),
        n_runs=sum(map(count_runs, ended)),
        default=next((t for t in complete.values() if t.user_attrs.get("is_default")), None),
        ranked=[complete[number] for number in posterior],
        posterior=posterior,
        seconds_per_trial=_pace([t for t in ended if t.datetime_start and t.datetime_complete]),
    )


def read_recommended(folder: StudyFolder, standing: Standing) -> FrozenTrial:
    """The trial named in best_params.json, else the best one; all output that concerns a single trial uses this one.

    So the trial a user reviewed is the one that gets applied, whatever `search.select` chose it by.

    Raises
    ------
    StudyError
        No trial is complete.
    """
    if standing.best is None:
        raise StudyError(f"{folder.path}: no trial is complete yet, so there is nothing to report or apply")
    try:
        number = json.loads((folder.path / "best_params.json").read_text(encoding="utf-8"))["best_trial_number"]
    except (OSError, ValueError, KeyError, TypeError):
        number = None
    return next((trial for trial in standing.ranked if trial.number == number), standing.best)


def has_lowest_objective(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Whether none of `trials` has a lower objective, so that the trial may be called the best."""
    return bool(trial.values[0] <= min(other.values[0] for other in trials))


def explain_recommended(standing: Standing, recommended: FrozenTrial, select: str) -> list[str]:
    """A line explaining why the recommended trial is not the one with the lowest objective, if so."""
    if has_lowest_objective(recommended, standing.ranked):
        return []
    lowest = min(standing.ranked, key=lambda trial: (trial.values[0], trial.number))
    if standing.best is not None and recommended.number == standing.best.number:
        why = "it has the lowest posterior mean, which gives few runs less weight than many (search.replicates)"
    elif select != "best":
        why = f"search.select is {select}"
    else:
        why = "it was chosen earlier; the end of the search or `chitransfer report` chooses again"
    return [
        f"trial {recommended.number} is recommended (best_params.json), not trial {lowest.number} with the lowest "
        f"objective ({lowest.values[0]:.4f}): {why}"
    ]


def count_reevaluated(top: int, n_complete: int) -> int:
    """How many of the best trials run again: at most `top`, and at most a quarter of the complete ones."""
    return min(top, -(-n_complete // 4)) if n_complete > 1 else 0


def expect_runs(search: SearchSettings) -> int:
    """Approximate number of re-evaluation runs after a search; the default may already be among the best."""
    n_trials = count_reevaluated(search.reevaluate_top, search.n_trials)
    return (n_trials + search.enqueue_default) * search.reevaluate_seeds if n_trials else 0


def choose_trials(standing: Standing, top: int) -> list[int]:
    """The best trials, at most `top` and at most a quarter of the complete ones, and the default configuration's.

    Where trials ran several times, the best are those with the lowest posterior mean.
    """
    numbers = [trial.number for trial in standing.ranked[: count_reevaluated(top, len(standing.ranked))]]
    if numbers and standing.default is not None and standing.default.number not in numbers:
        numbers.append(standing.default.number)
    return numbers


def fresh_runs(standing: Standing, search: SearchSettings) -> list[tuple[int, int]]:
    """The runs with fresh seeds and folds that follow a search, as (trial, replicate), in order.

    Every trial runs once before any runs a second time, so that trials can be compared after a stop.
    """
    numbers = choose_trials(standing, search.reevaluate_top)
    return [(number, FIRST_FRESH + seed) for seed in range(search.reevaluate_seeds) for number in numbers]


def missing_runs(runs: Sequence[tuple[int, int]], folder: StudyFolder) -> list[tuple[int, int]]:
    """Those of `fresh_runs` that are not on disk: not run yet, or failed."""
    return [
        (number, replicate)
        for number, replicate in runs
        if load_rung(replicate_folder(folder.trial(number), replicate)) is None
    ]


def describe_counts(counts: Mapping[str, int], running: str) -> str:
    """``5 complete, 1 pruned``; `running` is the word for a trial in that state, e.g. ``interrupted``."""
    return ", ".join(
        f"{n} {running if name == TrialState.RUNNING.name else name.lower()}" for name, n in counts.items()
    )


def with_one_value(trial: FrozenTrial) -> FrozenTrial:
    """The trial with the transfer objective as its value, even if the study has several objectives."""
    if trial.values is None or OBJECTIVE not in trial.user_attrs:
        return trial
    one = copy.copy(trial)
    one.values = [trial.user_attrs[OBJECTIVE]]
    return one


def pareto_numbers(study: optuna.Study) -> list[int]:
    """Trials of a study with several objectives that no other trial beats on all of them; none with one objective."""
    return [trial.number for trial in study.best_trials] if len(study.directions) > 1 else []


def _pace(ended: list[FrozenTrial]) -> float | None:
    # Time between ends, since trials overlap with several workers; capped by computing time, as there may be pauses.
    last = sorted(ended, key=lambda trial: trial.datetime_complete or datetime.min)[-11:]
    if len(last) == 1:
        return computed_seconds(last[0])
    seconds = []
    for earlier, later in pairwise(last):
        if earlier.datetime_complete and later.datetime_complete:
            gap = (later.datetime_complete - earlier.datetime_complete).total_seconds()
            seconds.append(min(gap, computed_seconds(later) or gap))
    return median(seconds) if seconds else None


def name_columns(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as columns of a table of trials; a name that is already taken gets the prefix ``params_``."""
    return {f"params_{name}" if name in OWN_COLUMNS else name: value for name, value in params.items()}


def trials_frame(study: optuna.Study) -> pd.DataFrame:
    """One line per trial, by number: state, objective, components, spread, parameters, seconds, failure."""
    parameters = list(study.user_attrs.get(CONTRACT, {}).get("space", {}))
    rows = []
    pareto, posterior = pareto_numbers(study), read_standing(study).posterior
    for trial in map(with_one_value, study.get_trials(deepcopy=False)):
        attributes = trial.user_attrs
        row: dict[str, Any] = {
            "number": trial.number,
            "state": trial.state.name,
            "value": trial.values[0] if trial.values else None,
            "is_default": bool(attributes.get("is_default", False)),
        }
        row |= name_columns({name: trial.params.get(name) for name in parameters or trial.params})
        for name in COMPONENTS:
            row[name] = attributes.get(name)
            row[f"{name}_std"] = attributes.get(f"{name}_std")
        row |= {name: attributes.get(name) for name in OTHER_ATTRIBUTES}
        if HALVED_BATCH_SIZE in attributes:
            row[HALVED_BATCH_SIZE] = attributes[HALVED_BATCH_SIZE]
        if REPLICATE_VALUES in attributes:
            row["n_runs"] = count_runs(trial)
            row["posterior_mean"] = posterior.get(trial.number)
        if len(study.directions) > 1:
            row["on_pareto_front"] = trial.number in pareto
        row[SECONDS_TOTAL] = computed_seconds(trial)
        rows.append(row)
    return pd.DataFrame(rows)


def computed_seconds(trial: FrozenTrial) -> float | None:
    """Computing time of a trial's rungs and runs; for a trial of an earlier release, the time from start to end."""
    seconds: float | None = trial.user_attrs.get(SECONDS_TOTAL)
    if seconds is None and trial.duration is not None:
        return trial.duration.total_seconds()
    return seconds


def write_results(folder: StudyFolder, study: optuna.Study) -> None:
    """Write best_params.json (when a trial is complete), all_trials.csv and top_20_trials.csv.

    A study with several objectives also gets pareto_front.csv. `write_best_params` may name another trial afterwards.
    """
    standing, frame = read_standing(study), trials_frame(study)
    write_csv(folder.path / "all_trials.csv", frame)
    # Row n is trial n.
    write_csv(folder.path / "top_20_trials.csv", frame.iloc[[trial.number for trial in standing.ranked[:20]]])
    if len(study.directions) > 1:
        write_csv(folder.path / "pareto_front.csv", frame[frame["number"].isin(pareto_numbers(study))])
    if standing.best is not None:
        write_best_params(folder, standing, standing.best, {})


def write_best_params(
    folder: StudyFolder, standing: Standing, chosen: FrozenTrial, further: Mapping[str, object]
) -> None:
    """Write best_params.json for the chosen trial: the guide's keys, then our own, then `further`."""
    write_json(
        folder.path / "best_params.json",
        {
            "best_value": chosen.values[0],
            "best_params": chosen.params,
            "n_trials": standing.n_ended,
            "best_trial_number": chosen.number,
            "study_name": folder.name,
            "components": {name: chosen.user_attrs.get(name) for name in COMPONENTS},
            "default_value": standing.default.values[0] if standing.default else None,
            **further,
        },
    )
