"""`report.html`: everything about a study on one self-contained page, which opens from disk and can be mailed.

`write_report` is called by `report.finish`; `report_contents` gives the numbers and the scripts in ``page/`` draw them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial
from sklearn.metrics import roc_curve

from chitransfer.config import Config
from chitransfer.errors import StudyError
from chitransfer.evidence.insight import Insight, without_stage1_term
from chitransfer.evidence.outcomes import read_repeats
from chitransfer.evidence.overtuning import Examination, positive_label
from chitransfer.evidence.verdict import LOWER_IS_BETTER, NAMES
from chitransfer.files import plain_numbers, write_atomically
from chitransfer.report.figures import (
    HistorySeries,
    history_series,
    importance_series,
    parameter_series,
    searched_parameters,
)
from chitransfer.report.insight_figures import TRANSFER
from chitransfer.search.reference import Reference
from chitransfer.search.results import (
    COMPONENTS,
    TITLES,
    Standing,
    describe_counts,
    pareto_numbers,
    read_recommended,
    read_standing,
    trials_frame,
)
from chitransfer.search.study import CONTRACT
from chitransfer.search.study_folder import StudyFolder
from chitransfer.search.summary import Names
from chitransfer.sections import ObjectiveSettings

MOST_ROC_POINTS = 400
# Scripts of the page, in order: later ones use definitions from earlier ones.
SCRIPTS = ("parts.js", "study.js", "evidence.js")
# Largest number of trials for fANOVA: its time grows quadratically, to hours for ten thousand trials.
MOST_FANOVA_TRIALS = 500
logger = logging.getLogger(__name__)


def write_report(
    study: optuna.Study,
    reference: Reference,
    folder: StudyFolder,
    config: Config,
    found: Examination | None,
    insight: Insight | None,
    sentences: Sequence[str] = (),
    comparison: Path | None = None,
) -> Path:
    """Write ``report.html`` for a study with at least one complete trial; returns its path."""
    contents = report_contents(study, reference, folder, config, found, insight, sentences, comparison)
    # "</" would end the script element, even inside quotes.
    data = json.dumps(plain_numbers(contents), allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    page = _read_part("page.html").replace("__STYLE__", _read_part("page.css"))
    page = page.replace("__SCRIPT__", "".join(map(_read_part, SCRIPTS)))
    page = page.replace("__TITLE__", escape(f"{folder.name} · chitransfer")).replace("__DATA__", data)
    path = folder.path / "report.html"
    write_atomically(path, page)
    return path


def _read_part(name: str) -> str:
    return resources.files("chitransfer.report").joinpath("page", name).read_text(encoding="utf-8")


def report_contents(
    study: optuna.Study,
    reference: Reference,
    folder: StudyFolder,
    config: Config,
    found: Examination | None,
    insight: Insight | None,
    sentences: Sequence[str] = (),
    comparison: Path | None = None,
) -> dict[str, Any]:
    """Everything the page shows, as plain values that are read from the study's files or computed from them.

    `sentences` are the remarks on the study from `report.finish`.

    Raises
    ------
    StudyError
        No trial is complete.
    """
    standing = read_standing(study)
    trials = sorted(standing.ranked, key=lambda trial: trial.number)
    chosen = read_recommended(folder, standing)
    history = history_series(study, reference, chosen)
    names = Names.of(folder)
    return {
        "name": folder.name,
        "subtitle": _subtitle(folder),
        "names": asdict(names),
        "counts": standing.counts,
        "chosen": chosen.number,
        "default": None if standing.default is None else standing.default.number,
        "trivial": history.trivial,
        "forest": history.forest,
        "summary": [_summarise(standing, chosen, names), *sentences],
        "scores": _score_table(chosen, standing.default, reference, history),
        "parameters": _parameter_table(chosen, standing.default, config),
        "trials": _trials(study, config.objective),
        "axes": [asdict(parameter_series(trials, name)) for name in searched_parameters(trials)],
        "importances": importances(study),
        "components": {name: TITLES[name] for name in COMPONENTS},
        "out_of_fold": _out_of_fold(folder, chosen.number, config),
        "guard": None if found is None else {**found.to_dict(), "posterior": None},
        "insight": None if insight is None else asdict(insight),
        "comparison": None if comparison is None else read_comparison(comparison),
        "transfer_title": TRANSFER,
        "objectives": config.search.objectives,
        "pareto": pareto_numbers(study),
        "environment": describe_origin(folder),
        "sources": {
            "computed χ": config.paths.dft_chi_csv,
            "measured χ": config.paths.exp_chi_csv,
            "solubility": config.paths.solubility_csv,
        },
    }


def _subtitle(folder: StudyFolder) -> str:
    if folder.first_pass is None:
        return "Stage 1 hyperparameters judged by how well they transfer to Stage 2"
    study, number = folder.first_pass
    return f"Second pass: Stage 2 settings tuned on the Stage 1 of trial {number} of {study.name}"


def _summarise(standing: Standing, chosen: FrozenTrial, names: Names) -> str:
    default = standing.default
    states = describe_counts(standing.counts, "unfinished")
    line = f"{states}; trial {chosen.number} is chosen, with objective {chosen.values[0]:.4f}"
    if default is not None and default.number != chosen.number:
        line += f" against {default.values[0]:.4f} of the {names.default}"
    return line


def _score_table(
    chosen: FrozenTrial, default: FrozenTrial | None, reference: Reference, history: HistorySeries
) -> list[dict[str, Any]]:
    rows = [
        {
            "title": "transfer objective",
            "chosen": chosen.values[0],
            "default": None if default is None else default.values[0],
            "forest": history.forest,
            "trivial": history.trivial,
        }
    ]
    for name in COMPONENTS:
        value = chosen.user_attrs.get(name)
        if value is not None:
            rows.append(
                {
                    "title": TITLES[name],
                    "chosen": value,
                    "spread": chosen.user_attrs.get(f"{name}_std"),
                    "default": None if default is None else default.user_attrs.get(name),
                    "forest": reference.forest.get(name),
                    "trivial": reference.trivial.get(name),
                }
            )
    return rows


def _parameter_table(chosen: FrozenTrial, default: FrozenTrial | None, config: Config) -> list[dict[str, Any]]:
    rows = []
    for name, parameter in config.search.space.items():
        section, key = parameter.key.split(".")
        own = None if default is None else default.params.get(name)
        usual = getattr(getattr(config, section), key) if own is None else own
        rows.append({"name": name, "key": parameter.key, "chosen": chosen.params.get(name), "default": usual})
    return rows


def _trials(study: optuna.Study, weights: ObjectiveSettings) -> list[dict[str, Any]]:
    frame = trials_frame(study)
    value, stage1 = (frame[name].to_numpy(dtype=float) for name in ("value", "stage1_mae"))
    frame["transfer"] = without_stage1_term(value, stage1, weights)
    parameters = study.user_attrs.get(CONTRACT, {}).get("space", {})
    drawn = {trial.number: trial.params for trial in study.get_trials(deepcopy=False)}
    rows = []
    for row in frame.to_dict("records"):
        rows.append(
            {
                "number": row["number"],
                "state": row["state"],
                "value": row["value"],
                "transfer": row["transfer"],
                "is_default": row["is_default"],
                "params": {name: drawn[row["number"]].get(name) for name in parameters},
                "components": {name: row[name] for name in COMPONENTS},
                "seconds": row["seconds_total"],
                "reason": row["failure_reason"],
            }
        )
    return rows


def importances(study: optuna.Study) -> dict[str, dict[str, float]]:
    """PED-ANOVA and fANOVA importances by method; a method that cannot be applied to these trials is left out."""
    n_trials = len(read_standing(study).ranked)
    part = f" ({MOST_FANOVA_TRIALS} of {n_trials} trials)" if n_trials > MOST_FANOVA_TRIALS else ""
    found = {
        "PED-ANOVA": importance_series(study, PedAnovaImportanceEvaluator()),
        f"fANOVA{part}": importance_series(study, FanovaImportanceEvaluator(seed=0), MOST_FANOVA_TRIALS),
    }
    return {method: shares for method, shares in found.items() if shares}


def _out_of_fold(folder: StudyFolder, number: int, config: Config) -> dict[str, Any]:
    """Parity points (mean over repeats) and one ROC curve per repeat of the chosen trial; damaged files are skipped."""
    path = folder.trial(number)
    found: dict[str, Any] = {}
    repeats = _readable_repeats(path, "chi")
    if repeats:
        first = repeats[0]
        predicted = np.mean([frame["predicted_chi"].to_numpy() for frame in repeats], axis=0)
        found["chi"] = {
            "measured": first["chi"].tolist(),
            "predicted": [round(float(value), 5) for value in predicted],
            "label": [
                f"{polymer} in {solvent}, {temperature:.0f} K"
                for polymer, solvent, temperature in zip(first["SMILES"], first["solvent"], first["temp"], strict=True)
            ],
        }
    repeats = _readable_repeats(path, "solubility")
    if repeats:
        label = positive_label(folder, number, config)
        curves = []
        for frame in repeats:
            false, true, _ = roc_curve(frame["soluble"] == label, frame["probability_positive"])
            thin = np.unique(np.linspace(0, len(false) - 1, MOST_ROC_POINTS).astype(int))
            curves.append(np.column_stack([false[thin], true[thin]]).round(5).tolist())
        found["roc"] = {"curves": curves, "positive": "soluble" if label else "insoluble"}
    return found


def _readable_repeats(path: Path, kind: str) -> list[pd.DataFrame]:
    try:
        return read_repeats(path, kind)
    except StudyError as error:
        logger.warning("%s; the report leaves it out", error)
        return []


def read_comparison(folder: Path) -> dict[str, Any]:
    """The tables and the verdict of a comparison."""
    table, differences = pd.read_csv(folder / "table.csv"), pd.read_csv(folder / "differences.csv")
    columns = [name for name in NAMES if name in table and table[name].notna().any()]
    return {
        "columns": {name: NAMES[name] for name in columns},
        "lower": [name for name in columns if name in LOWER_IS_BETTER],
        "rows": table[["protocol", "row", "title", *columns]].to_dict("records"),
        "differences": differences.to_dict("records"),
        "verdict": (folder / "verdict.txt").read_text(encoding="utf-8").splitlines(),
    }


def describe_origin(folder: StudyFolder) -> dict[str, str]:
    """Versions, machine and the commands of all runs of a study, under readable names; empty if unknown."""
    path = folder.path / "environment.json"
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    if not isinstance(values, dict):
        return {}
    packages = values.pop("packages", {})
    runs = [*values.pop("earlier_runs", []), {name: values.pop(name, None) for name in ("started", "command")}]
    shown = {
        name.replace("_", " "): ", ".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in values.items()
    }
    shown["packages"] = ", ".join(f"{name} {number}" for name, number in packages.items())
    # Replace the program's path, which depends on the machine, and keep the arguments.
    for run in runs:
        title = "command" if len(runs) == 1 else f"command of {run['started'] or 'an earlier release'}"
        shown[title] = " ".join(["chitransfer", *map(str, (run["command"] or [])[1:])])
    return {name: value for name, value in shown.items() if value}
