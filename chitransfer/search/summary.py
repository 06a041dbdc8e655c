"""A search in words: what goes in, what came out, what to beware of, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna

from chitransfer.config import Config
from chitransfer.counts import say_count
from chitransfer.data.assemble import Dataset, Rows
from chitransfer.search.driver import StopReason
from chitransfer.search.results import (
    TITLES,
    Standing,
    beaten_by_trivial,
    read_standing,
    trivial_objective,
)
from chitransfer.search.space import rung_epochs
from chitransfer.search.study import StudyFolder
from chitransfer.search.watch import describe_components, format_seconds
from chitransfer.training.tasks import resolve_positive_label

SHOWN = ("exp_mae", "exp_r2", "sol_f1", "sol_recall", "sol_auc", "stage1_mae")


def describe_data(dataset: Dataset, config: Config) -> list[str]:
    """One line a table, then what a user should know before waiting."""
    lines = [_describe_rows("Stage 1, computed χ", dataset.stage1, dataset)]
    temperatures = len(np.unique(dataset.stage1.temperature.round(2)))
    if temperatures == 1:
        lines.append(
            "  Stage 1 has one temperature, so it teaches χ but not how χ changes with temperature "
            "(A and B cannot be told apart)"
        )
    if dataset.chi is not None:
        lines.append(_describe_rows("Stage 2, measured χ", dataset.chi, dataset))
    if dataset.solubility is not None:
        share = float(np.mean(dataset.solubility.value))
        lines.append(_describe_rows("Stage 2, solubility", dataset.solubility, dataset) + f", {share:.0%} soluble")
        positive = resolve_positive_label(dataset.solubility, config.solubility.positive)
        lines.append(f"  F1 and recall speak of the {'soluble' if positive else 'insoluble'} class")
    for what, rows in (("measured χ", dataset.chi), ("solubility", dataset.solubility)):
        n_polymers = config.cv.n_cv_folds if rows is None else len(np.unique(rows.polymer))
        if n_polymers < config.cv.n_cv_folds:
            lines.append(
                f"  {what} is scored in at most {n_polymers} of {config.cv.n_cv_folds} folds (cv.n_cv_folds), having "
                "no more polymers"
            )
    if dataset.n_stereo_variants:
        lines.append(
            f"  {say_count(dataset.n_stereo_variants, 'polymer')} with a stereo variant in the tables: features leave "
            "stereochemistry out, so variants count as one polymer"
        )
    return lines


def describe_pruning(config: Config) -> list[str]:
    """Where hopeless trials end, in a line; nothing when all are carried through."""
    *early, _ = rung_epochs(config.search, config.training.num_epochs_pretrain)
    if config.search.pruner == "none" or not early:
        return []
    at = " or ".join(map(str, early))
    return [f"hopeless trials end at Stage 1 epoch {at} (search.pruner: none carries all through)"]


def _describe_rows(title: str, rows: Rows, dataset: Dataset) -> str:
    table = rows.table
    n_solvents = len(np.unique(rows.solvent))
    solvents = f"in {n_solvents} solvents" if n_solvents > 1 else f"in {dataset.solvents[int(rows.solvent[0])]}"
    repeated = f", {say_count(table.n_repeated, 'repeated measurement')}" if table.n_repeated else ""
    rejected = f", {say_count(len(table.rejected), 'row')} left out" if len(table.rejected) else ""
    water = " (water)" if solvents == "in O" else ""
    polymers = say_count(len(np.unique(rows.polymer)), "polymer")
    return f"{title}: {say_count(len(rows), 'row')}, {polymers} {solvents}{water}{repeated}{rejected} ({table.source})"


def describe_outcome(
    study: optuna.Study, folder: StudyFolder, config: Config, reference: Mapping[str, float], reason: StopReason
) -> list[str]:
    """What the search found beside the default and the trivial predictor, warnings, and the next command."""
    standing = read_standing(study)
    lines = [_describe_end(standing, config, reason), *_describe_best(standing, config, reference)]
    if standing.best is not None:
        warnings = beaten_by_trivial(standing.best.user_attrs, reference, config.objective)
        lines += [f"WARNING: {sentence}" for sentence in warnings]
    lines.append(f"results: {folder.path}")
    if reason != "finished":
        lines.append(f"resume with: {folder.resume_command}")
    return lines


def _describe_end(standing: Standing, config: Config, reason: StopReason) -> str:
    states = ", ".join(f"{n} {name.lower()}" for name, n in standing.counts.items()) or "no trial"
    said = {
        "finished": f"search finished: {states}",
        "timeout": f"search stopped after {config.search.timeout_hours:g} h: {states}",
        "interrupt": f"search interrupted: {states}",
        "terminate": f"search terminated: {states}",
    }
    return said[reason]


def _describe_best(standing: Standing, config: Config, reference: Mapping[str, float]) -> list[str]:
    best, default = standing.best, standing.default
    if best is None:
        return ["no trial is complete yet"]
    columns: list[tuple[str, Mapping[str, Any], float | None]] = [
        (f"best (trial {best.number})", best.user_attrs, best.values[0])
    ]
    if default is not None:
        columns.append((f"default (trial {default.number})", default.user_attrs, default.values[0]))
    stage1_mae = float(best.user_attrs["stage1_mae"])
    columns.append(("trivial predictor", reference, trivial_objective(reference, stage1_mae, config.objective)))
    lines = ["", *describe_side_by_side(columns)]
    parameters = ", ".join(f"{name}={_short(value)}" for name, value in best.params.items())
    lines += ["", f"best parameters: {parameters}"]
    if default is not None and best.number == default.number:
        lines.append("no trial did better than the default configuration")
    return lines


def describe_side_by_side(columns: Sequence[tuple[str, Mapping[str, Any], float | None]]) -> list[str]:
    """A table of objective and components, a column for each (title, components, objective)."""
    width = max(len(title) for title in TITLES.values()) + 2
    lines = [" " * width + "".join(f"{title:>20}" for title, _, _ in columns)]
    rows = [("objective (lower is better)", [value for _, _, value in columns])]
    rows += [(TITLES[name], [components.get(name) for _, components, _ in columns]) for name in SHOWN]
    for title, values in rows:
        if any(value is not None for value in values):
            cells = "".join(f"{'–' if value is None else f'{value:.4f}':>20}" for value in values)
            lines.append(f"{title:<{width}}{cells}")
    return lines


def describe_status(study: optuna.Study, folder: StudyFolder, n_trials: int | None) -> list[str]:
    """Counts by state, the best five, pace and time left of a running or finished study.

    Parameters
    ----------
    n_trials
        The budget; ``None``: not known, so neither is the time left.
    """
    standing = read_standing(study)
    ended = sum(standing.counts.get(name, 0) for name in ("COMPLETE", "PRUNED", "FAIL"))
    states = ", ".join(f"{n} {name.lower()}" for name, n in standing.counts.items()) or "none yet"
    lines = [f"study {folder.name}: {ended}{f' of {n_trials}' if n_trials else ''} trials ended ({states})"]
    if standing.seconds_per_trial is not None:
        pace = f"pace: {format_seconds(standing.seconds_per_trial)} a trial"
        left = max(0, (n_trials or 0) - ended)
        lines.append(pace + (f", about {format_seconds(standing.seconds_per_trial * left)} left" if left else ""))
    for place, trial in enumerate(standing.ranked[:5], start=1):
        note = " (default configuration)" if trial.user_attrs.get("is_default") else ""
        lines.append(
            f"{place}. trial {trial.number}: {trial.values[0]:.4f}{note}; {describe_components(trial.user_attrs)}"
        )
    return lines


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
