"""A search in words: its input, its outcome, warnings, and what to do next.

Called by `search.run`, `search.second_pass`, `search.rescore` and `chitransfer status`; `report` uses the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from chitransfer.config import Config
from chitransfer.console import format_seconds
from chitransfer.counts import say_count
from chitransfer.search.lock import find_driver
from chitransfer.search.objective import split_weighed
from chitransfer.search.reference import Column, Reference
from chitransfer.search.results import (
    TITLES,
    Standing,
    describe_counts,
    expect_runs,
    explain_recommended,
    fresh_runs,
    has_lowest_objective,
    missing_runs,
    pareto_numbers,
    read_recommended,
    read_standing,
)
from chitransfer.search.space import (
    REDUCTION_FACTOR,
    deciding_rungs,
    default_params,
    most_epochs,
    to_distribution,
    trial_rungs,
)
from chitransfer.search.study_folder import StudyFolder
from chitransfer.search.watch import describe_components
from chitransfer.sections import SearchSettings

if TYPE_CHECKING:
    from chitransfer.data.assemble import Dataset, Rows
    from chitransfer.search.driver import StopReason

PERMUTED = (
    "control: measured values are shuffled among polymers (search.control: permute); expect no score above chance"
)
# Samplers that ignore pruned trials; tpe uses them, random and qmc use no trials at all.
LEARN_FROM_COMPLETE = ("gp", "cmaes", "nsga2")
# Samplers that draw parameters at random unless all complete trials had them as they are now; cmaes leaves that to tpe.
LEARN_FROM_ONE_SPACE = ("gp", "nsga2")
SHOWN = ("exp_mae", "exp_r2", "sol_f1", "sol_recall", "sol_auc", "stage1_mae")


@dataclass(frozen=True)
class Names:
    """Names for a search and its trial 0.

    Attributes
    ----------
    search
        The search itself.
    default, column
        The configuration it began with, in a sentence and as a column heading.
    """

    search: str = "search"
    default: str = "default configuration"
    column: str = "default"

    @classmethod
    def of(cls, folder: StudyFolder) -> Names:
        """The names for the study in a folder."""
        if folder.first_pass is None:
            return cls()
        return cls("second pass", "first pass's Stage 2 settings", "first pass")


def describe_first_pass(folder: StudyFolder) -> list[str]:
    """For a second pass, a line naming its first pass; needed wherever a default configuration is mentioned."""
    if folder.first_pass is None:
        return []
    study, number = folder.first_pass
    return [
        f"second pass on the Stage 1 of trial {number} of {study.name}: here the default configuration means the first "
        "pass's Stage 2 settings"
    ]


def describe_data(dataset: Dataset, config: Config) -> list[str]:
    """One line per table, then what a user should know before waiting."""
    # Imported here because they load RDKit and PyTorch, which `chitransfer status` does not need.
    from chitransfer.data.table_remarks import describe_blank_cells, describe_builtin_beside_own
    from chitransfer.training.tasks import resolve_positive_label

    lines = [_describe_rows("Stage 1, computed χ", dataset.stage1, dataset)]
    temperatures = len(np.unique(dataset.stage1.temperature.round(2)))
    if temperatures == 1:
        lines.append(
            "  Stage 1 has only one temperature, so the model learns χ but not how χ changes with temperature (A and "
            "B cannot be separated)"
        )
    if np.ptp(dataset.stage1.value) == 0:
        lines.append(f"  Stage 1's χ is {dataset.stage1.value[0]:g} in every row, so there is nothing to learn from it")
    if dataset.chi is not None:
        lines.append(_describe_rows("Stage 2, measured χ", dataset.chi, dataset))
    if dataset.solubility is not None:
        share = float(np.mean(dataset.solubility.value))
        lines.append(_describe_rows("Stage 2, solubility", dataset.solubility, dataset) + f", {share:.0%} soluble")
        positive = resolve_positive_label(dataset.solubility, config.solubility.positive)
        lines.append(f"  positive class of F1 and recall: {'soluble' if positive else 'insoluble'}")
    about_tables = describe_builtin_beside_own(dataset.tables) + describe_blank_cells(dataset.tables)
    lines += [f"  {line}" for line in about_tables]
    for what, rows in (("measured χ", dataset.chi), ("solubility", dataset.solubility)):
        if rows is not None:
            lines += _describe_limits(what, rows, dataset.stage1, config)
    if dataset.n_stereo_variants:
        lines.append(
            f"  {say_count(dataset.n_stereo_variants, 'polymer')} with a stereo variant in the tables: the features "
            "ignore stereochemistry, so variants count as one polymer"
        )
    return lines


def _describe_limits(what: str, rows: Rows, stage1: Rows, config: Config) -> list[str]:
    lines = []
    n_polymers = len(np.unique(rows.polymer))
    if n_polymers < config.cv.n_cv_folds:
        lines.append(
            f"  {what} is scored in at most {n_polymers} of {config.cv.n_cv_folds} folds (cv.n_cv_folds), because it "
            "has no more polymers"
        )
    new = np.setdiff1d(rows.solvent, stage1.solvent)
    if len(new):
        n_rows = int(np.isin(rows.solvent, new).sum())
        lines.append(
            f"  {say_count(n_rows, 'row')} of {what} in {say_count(len(new), 'solvent')} without computed χ in Stage 1"
        )
    return lines


def describe_budget(config: Config) -> list[str]:
    """What the budget counts if trials run again, where trials are pruned, and what conflicts with the pruner."""
    lines = []
    if config.search.replicates > 1:
        lines.append(
            f"the budget of {config.search.n_trials} counts runs: a promising trial runs up to "
            f"{config.search.replicates} times (search.replicates)"
        )
    if config.search.pruner == "none":
        return lines
    *early, last = trial_rungs(config, {"training.num_epochs_pretrain": most_epochs(config)})
    if not early:
        return [
            *lines,
            f"search.pruner {config.search.pruner}: no rung before Stage 1 epoch {last} (search.rungs, "
            "training.num_epochs_pretrain), so no trial is pruned",
        ]
    deciding = deciding_rungs(config.search, early)
    at = " or ".join(map(str, deciding))
    lines.append(f"unpromising trials are pruned at Stage 1 epoch {at} (search.pruner: none trains all to the end)")
    if len(deciding) < len(early):
        others = ", ".join(str(epoch) for epoch in early if epoch not in deciding)
        lines.append(
            f"search.rungs: {config.search.pruner} waits for {REDUCTION_FACTOR} times the epochs, so scoring at "
            f"{others} only costs time"
        )
    if config.search.sampler in LEARN_FROM_COMPLETE:
        lines.append(
            f"search.sampler {config.search.sampler} learns from complete trials only, and pruning leaves few of "
            "them: with search.pruner none all trials are complete"
        )
    return lines


def describe_extension(study: optuna.Study, config: Config) -> list[str]:
    """A line if the sampler does not learn about parameters that ``--allow-extended-space`` changed or added."""
    if config.search.sampler not in LEARN_FROM_ONE_SPACE:
        return []
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    changed = [
        name
        for name, parameter in config.search.space.items()
        if any(trial.distributions.get(name) != to_distribution(parameter) for trial in complete)
    ]
    if not changed:
        return []
    return [
        f"search.sampler {config.search.sampler} draws {', '.join(changed)} at random, since --allow-extended-space "
        "changed its range or added it: --sampler tpe also learns from it"
    ]


def describe_objective(config: Config) -> list[str]:
    """A warning if the objective weights scores of a task that Stage 2 does not learn, or none that it learns."""
    training, paths = config.training, config.paths
    searched = {parameter.key for parameter in config.search.space.values()}
    lines = []
    for key, weight, table, prefix, what, told in (
        ("lambda_exp", training.lambda_exp, paths.exp_chi_csv, "exp_", "measured χ", "its score is Stage 1's"),
        ("lambda_sol", training.lambda_sol, paths.solubility_csv, "sol_", "solubility", "its score is that of chance"),
    ):
        weighed = [f"objective.{n}" for n, own in config.objective.model_dump().items() if own and n.startswith(prefix)]
        if weighed and weight == 0 and table is not None and f"training.{key}" not in searched:
            lines.append(
                f"WARNING: training.{key} is 0, so Stage 2 does not learn {what} and {told}, yet it counts in the "
                f"objective; raise training.{key}, or set {', '.join(weighed)} to 0"
            )
    scored, unscored = split_weighed(config)
    if unscored and scored == ["stage1_mae"]:
        lines.append(
            f"WARNING: the objective contains {', '.join(unscored)}, but the table is set to null (paths), so trials "
            "are judged by Stage 1's own MAE alone; set the table, or give a score of another table a weight"
        )
    return lines


def describe_reference(config: Config, names: Names) -> list[str]:
    """Lines on an unusual basis for judging trials: permuted labels, no default, a task that is not learned."""
    lines = [PERMUTED] if config.search.control == "permute" else []
    lines += describe_objective(config)
    _, outside = default_params(config)
    if outside and config.search.enqueue_default:
        lines.append(
            f"WARNING: the search space does not contain the {names.default} ({', '.join(outside)}), so the "
            f"{names.search} has no such trial to compare with"
        )
    return lines


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
    study: optuna.Study, folder: StudyFolder, config: Config, reference: Reference, reason: StopReason
) -> list[str]:
    """The outcome beside the default and the trivial predictor, warnings, and the next command."""
    standing = read_standing(study)
    names = Names.of(folder)
    lines = [_describe_end(standing, config, reason, names)]
    if standing.ranked:
        recommended = read_recommended(folder, standing)
        lines += [*_describe_recommended(recommended, standing, config, reference, names), *_describe_front(study)]
        name = _name_recommended(recommended, standing)
        warnings = reference.beats(recommended.user_attrs, config.objective, name)
        # Nothing can be learned from permuted labels, so there it is as expected.
        lines += [f"WARNING: {sentence}" for sentence in warnings if config.search.control != "permute"]
    else:
        lines.append("no trial is complete yet")
    lines.append(f"results: {folder.path}")
    if reason != "finished":
        lines.append(f"resume with: {folder.resume_command}")
    return lines


def describe_nothing_to_do(study: optuna.Study, config: Config) -> str:
    """Why a resumed search has done nothing, and how to make it continue."""
    standing = read_standing(study)
    ended = say_count(standing.n_ended, "trial")
    if config.search.replicates > 1:
        ended = f"{say_count(standing.n_runs, 'run')} of {ended}"
    total = f"the total is {config.search.n_trials}"
    return f"nothing was left to do: {ended} ended, {total}; a larger total (--n-trials) adds trials"


def _describe_end(standing: Standing, config: Config, reason: StopReason, names: Names) -> str:
    states = describe_counts(standing.counts, "interrupted") or "no trial"
    said = {
        "finished": "finished",
        "timeout": f"stopped after {config.search.timeout_hours:g} h",
        "interrupt": "interrupted",
        "terminate": "terminated",
    }
    return f"{names.search} {said[reason]}: {states}"


def _describe_recommended(
    recommended: FrozenTrial, standing: Standing, config: Config, reference: Reference, names: Names
) -> list[str]:
    default = standing.default
    name = _name_recommended(recommended, standing)
    columns: list[Column] = [(f"{name} (trial {recommended.number})", recommended.user_attrs, recommended.values[0])]
    if default is not None:
        columns.append((f"{names.column} (trial {default.number})", default.user_attrs, default.values[0]))
    lines = ["", *describe_side_by_side([*columns, *reference.columns(recommended.user_attrs, config.objective)])]
    parameters = ", ".join(f"{name}={_short(value)}" for name, value in recommended.params.items())
    lines += ["", f"{name} parameters: {parameters}"]
    if default is not None and recommended.number == default.number and name == "best":
        lines.append(f"no trial did better than the {names.default}")
    return lines


def _name_recommended(recommended: FrozenTrial, standing: Standing) -> str:
    return "best" if has_lowest_objective(recommended, standing.ranked) else "chosen"


def _describe_front(study: optuna.Study) -> list[str]:
    """The Pareto front of a study with several objectives."""
    numbers = pareto_numbers(study)
    if not numbers:
        return []
    trials = f"trials {', '.join(map(str, sorted(numbers)))}" if len(numbers) > 1 else f"trial {numbers[0]}"
    return [f"Pareto front of the objectives asked for (search.objectives): {trials}; see pareto_front.csv"]


def describe_side_by_side(columns: Sequence[Column]) -> list[str]:
    """A table of objective and components, with one column per (title, components, objective)."""
    width = max(len(title) for title in TITLES.values()) + 2
    column = max(20, 2 + max(len(title) for title, _, _ in columns))
    lines = [" " * width + "".join(f"{title:>{column}}" for title, _, _ in columns)]
    rows = [("objective (lower is better)", [value for _, _, value in columns])]
    rows += [(TITLES[name], [components.get(name) for _, components, _ in columns]) for name in SHOWN]
    # NaN is a score that is undefined, such as R² where only one value was measured.
    rows = [(title, [value if value is not None and isfinite(value) else None for value in row]) for title, row in rows]
    for title, values in rows:
        if any(value is not None for value in values):
            cells = "".join(f"{'–' if value is None else f'{value:.4f}':>{column}}" for value in values)
            lines.append(f"{title:<{width}}{cells}")
    return lines


def describe_status(study: optuna.Study, folder: StudyFolder, search: SearchSettings | None) -> list[str]:
    """Counts by state, pace, time left, the five best and the recommended trial of a running or finished study.

    Parameters
    ----------
    search
        The study's settings; ``None``: unknown, and so is the budget.
    """
    driver, standing, names = find_driver(folder), read_standing(study), Names.of(folder)
    states = describe_counts(standing.counts, "interrupted" if driver is None else "running") or "none yet"
    n_counted = standing.n_runs
    counts_runs = n_counted != standing.n_ended if search is None else search.replicates > 1
    counted = say_count(n_counted, "run" if counts_runs else "trial")
    if search and n_counted <= search.n_trials:
        counted = f"{n_counted} of {say_count(search.n_trials, 'run' if counts_runs else 'trial')}"
    of_trials = f", of {say_count(standing.n_ended, 'trial')}" if counts_runs else ""
    lines = [f"study {folder.name}: {counted} ended{of_trials} ({states})"]
    if search is not None and search.control == "permute":
        lines.append(PERMUTED)
    if driver is not None:
        lines.append(f"{'a search' if folder.comparison is None else 'its comparison'} is running ({driver})")
    elif standing.counts.get("RUNNING"):
        lines.append(f"no search is running; resume with: {folder.resume_command}")
    if standing.seconds_per_trial is not None:
        pace = f"pace: {format_seconds(standing.seconds_per_trial)} a trial"
        n_left = max(0, search.n_trials - standing.n_runs) if search else 0
        if search and n_left:
            runs = n_left + expect_runs(search)
            seconds = standing.seconds_per_trial * runs / standing.n_runs * standing.n_ended
            pace += f", about {format_seconds(seconds)} left"
        lines.append(pace)
    lines += _describe_fresh_runs(standing, folder, search, is_running=driver is not None)
    for place, trial in enumerate(standing.ranked[:5], start=1):
        note = f" ({names.default})" if trial.user_attrs.get("is_default") else ""
        lines.append(
            f"{place}. trial {trial.number}: {trial.values[0]:.4f}{note}; {describe_components(trial.user_attrs)}"
        )
    if standing.ranked:
        select = search.select if search else "best"
        lines += [*explain_recommended(standing, read_recommended(folder, standing), select), *_describe_front(study)]
    return lines


def _describe_fresh_runs(
    standing: Standing, folder: StudyFolder, search: SearchSettings | None, *, is_running: bool
) -> list[str]:
    """A line while the runs with fresh seeds and folds after the last trial are incomplete."""
    if search is None or standing.n_runs < search.n_trials or standing.counts.get("RUNNING"):
        return []
    runs = fresh_runs(standing, search)
    n_missing = len(missing_runs(runs, folder))
    if not n_missing:
        return []
    line = f"{len(runs) - n_missing} of {say_count(len(runs), 'run')} on fresh seeds and folds done"
    # A comparison continues without failed runs.
    can_go_on = not is_running and folder.comparison is None
    return [f"{line}; to run the others, resume with: {folder.resume_command}" if can_go_on else line]


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
