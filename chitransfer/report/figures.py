"""The four figures of a study: functions `…_series` compute the numbers, the others draw them.

`draw_study` is called at the end of a search and by `chitransfer report`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.importance import BaseImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from chitransfer.counts import say_count
from chitransfer.report.drawing import (
    BEST,
    DEFAULT,
    FOREST,
    TRIAL,
    TRIVIAL,
    legend_below,
    new_figure,
    own_look,
    plain_axes,
    save_figure,
    whole_numbers,
)
from chitransfer.search.reference import Reference, borrowed_objective
from chitransfer.search.results import (
    has_lowest_objective,
    read_recommended,
    read_standing,
    with_one_value,
)
from chitransfer.search.study import CONTRACT
from chitransfer.search.study_folder import StudyFolder
from chitransfer.search.summary import Names
from chitransfer.sections import ObjectiveSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OBJECTIVE = "transfer objective (lower is better)"
# The trials highlighted in a figure, each with its colour and legend label.
Marked = list[tuple[FrozenTrial, str, str]]


@dataclass(frozen=True)
class HistorySeries:
    """Objective by trial number, its running minimum, trials without an objective, and reference values."""

    number: np.ndarray
    value: np.ndarray
    running_best: np.ndarray
    pruned: list[int]
    failed: list[int]
    default: tuple[int, float] | None
    trivial: float | None
    forest: float | None


@dataclass(frozen=True)
class ParameterSeries:
    """One searched parameter over the complete trials: axis positions, and ticks with their labels.

    The position is NaN for trials that ran before ``--allow-extended-space`` added the parameter.
    """

    name: str
    position: np.ndarray
    ticks: list[float]
    labels: list[str]
    is_log: bool


def history_series(study: optuna.Study, reference: Reference, recommended: FrozenTrial) -> HistorySeries:
    """The optimisation history of the finished trials, in order of number.

    The objectives of the trivial predictor and the random forest use the Stage 1 MAE of the recommended trial.
    """
    standing = read_standing(study)
    trials = sorted(standing.ranked, key=lambda trial: trial.number)
    value = np.array([trial.values[0] for trial in trials])
    default = standing.default
    weights = study.user_attrs.get(CONTRACT, {}).get("objective")
    trivial = forest = None
    if weights is not None:
        trivial, forest = (
            borrowed_objective(scores, recommended.user_attrs, ObjectiveSettings(**weights)) if scores else None
            for scores in (reference.trivial, reference.forest)
        )
    pruned, failed = (
        [trial.number for trial in study.get_trials(deepcopy=False, states=(state,))]
        for state in (TrialState.PRUNED, TrialState.FAIL)
    )
    return HistorySeries(
        number=np.array([trial.number for trial in trials]),
        pruned=pruned,
        failed=failed,
        value=value,
        running_best=np.minimum.accumulate(value) if len(value) else value,
        default=None if default is None else (default.number, default.values[0]),
        trivial=trivial,
        forest=forest,
    )


def importance_series(
    study: optuna.Study, evaluator: BaseImportanceEvaluator | None = None, most: int | None = None
) -> dict[str, float]:
    """Parameter importances, most important first; empty if they cannot be estimated from the trials.

    Parameters
    ----------
    evaluator
        How to estimate them; Optuna's default if ``None``.
    most
        Maximum number of trials to use, evenly spread over the study; ``None`` uses all.
    """
    trials = read_standing(study).ranked
    if most is not None and len(trials) > most:
        by_number = sorted(trials, key=lambda trial: trial.number)
        trials = [by_number[place] for place in np.linspace(0, len(trials) - 1, most).astype(int)]
    if len(trials) < 4 or len({trial.values[0] for trial in trials}) < 2:
        return {}
    # Parameters added during the study are missing from some trials, so they are left out.
    common = [name for name in trials[0].params if all(name in trial.params for trial in trials)]
    names = [name for name in common if len({str(trial.params[name]) for trial in trials}) > 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            alike = _of_one_range(study, trials, names)
            found = get_param_importances(alike, evaluator=evaluator, params=names, target=_objective) if names else {}
        except (RuntimeError, ValueError):
            return {}
    if not any(np.isfinite(share) and share > 0 for share in found.values()):
        return {}
    return {name: float(share) for name, share in sorted(found.items(), key=lambda item: -item[1])}


def _objective(trial: FrozenTrial) -> float:
    return float(with_one_value(trial).values[0])


def _of_one_range(study: optuna.Study, trials: list[FrozenTrial], names: list[str]) -> optuna.Study:
    """A study with just these complete trials and one range per parameter: the study itself if it fits, or a copy.

    If ranges were widened, the copy uses the widest for all trials, because Optuna compares only equal ranges.
    """
    distributions = {name: covering_distribution(trials, name) for name in names}
    are_all = len(trials) == len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if are_all and all(trial.distributions[name] == one for name, one in distributions.items() for trial in trials):
        return study
    optuna.logging.disable_default_handler()
    alike = optuna.create_study()
    for trial in trials:
        params = {name: trial.params[name] for name in names}
        alike.add_trial(create_trial(params=params, distributions=distributions, value=trial.values[0]))
    return alike


def searched_parameters(trials: Sequence[FrozenTrial]) -> list[str]:
    """All parameters that occur in the trials, those of the oldest trial first; `trials` are in order of number."""
    return list(dict.fromkeys(name for trial in trials for name in trial.params))


def covering_distribution(trials: Sequence[FrozenTrial], name: str) -> Any:
    """The distribution of a parameter, with the widest range if ``--allow-extended-space`` widened it."""
    found: list[Any] = [trial.distributions[name] for trial in trials if name in trial.distributions]
    first = found[0]
    if all(one == first for one in found):
        return first
    # Choices never change, so this is a numeric range; its step is dropped because it may not fit the wider range.
    return type(first)(min(one.low for one in found), max(one.high for one in found), log=first.log)


def parameter_series(trials: Sequence[FrozenTrial], name: str) -> ParameterSeries:
    """Axis positions of one parameter: numbers as they are (log scale if searched so), choices in their given order."""
    distribution = covering_distribution(trials, name)
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
        places = [float(choices.index(t.params[name])) if name in t.params else float("nan") for t in trials]
        return ParameterSeries(
            name, np.array(places), list(map(float, range(len(choices)))), [str(choice) for choice in choices], False
        )
    low, high, is_log = float(distribution.low), float(distribution.high), bool(distribution.log)
    ticks = np.geomspace(low, high, 3) if is_log else np.linspace(low, high, 3)
    values = np.array([trial.params.get(name, np.nan) for trial in trials], dtype=float)
    return ParameterSeries(name, values, ticks.tolist(), [f"{tick:.3g}" for tick in ticks], is_log)


def marked_trials(
    trials: Sequence[FrozenTrial], recommended: FrozenTrial, default: FrozenTrial | None, names: Names
) -> Marked:
    """The recommended trial and the default trial; a single entry if they are the same.

    The recommended trial is called the best if none of `trials` has a lower objective.
    """
    name = "best trial" if has_lowest_objective(recommended, trials) else "recommended trial"
    if default is None:
        return [(recommended, BEST, name)]
    if recommended.number == default.number:
        return [(recommended, BEST, f"{name}, the {names.default}")]
    return [(default, DEFAULT, names.default), (recommended, BEST, name)]


@own_look()
def draw_study(study: optuna.Study, reference: Reference, folder: StudyFolder) -> None:
    """Write the four PNGs of a study with at least one complete trial into its ``figures/``.

    Parameters
    ----------
    reference
        Reference scores that the trials are compared with.
    """
    standing = read_standing(study)
    trials = sorted(standing.ranked, key=lambda trial: trial.number)
    recommended = read_recommended(folder, standing)
    marked = marked_trials(trials, recommended, standing.default, Names.of(folder))
    drawings: dict[str, Callable[[], Figure]] = {
        "optimization_history.png": lambda: _draw_history(history_series(study, reference, recommended), marked),
        "param_importances.png": lambda: _draw_importances(
            importance_series(study, PedAnovaImportanceEvaluator()), "PED-ANOVA", len(trials)
        ),
        "parallel_coordinate.png": lambda: _draw_parallel(trials, marked),
        "slice_plot.png": lambda: _draw_slices(trials, marked),
    }
    for name, draw in drawings.items():
        save_figure(draw(), folder.figures / name)


def _draw_history(series: HistorySeries, marked: Marked) -> Figure:
    figure = new_figure(8, 4.8)
    axes = plain_axes(figure.subplots())
    axes.plot(series.number, series.value, ls="", marker="o", ms=5.5, color=TRIAL, alpha=0.75, label="trial")
    last = max([*series.number, *series.pruned, *series.failed])
    best = np.append(series.running_best, series.running_best[-1])
    axes.step(np.append(series.number, last), best, where="post", color=BEST, lw=2, label="best so far")
    for numbers, marker, what in ((series.pruned, "|", "pruned"), (series.failed, "x", "failed")):
        if numbers:
            # Drawn at the bottom of the axes, independent of the objective's range.
            at_foot: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ls": "", "marker": marker, "ms": 8}
            axes.plot(numbers, [0.02] * len(numbers), **at_foot, color=TRIVIAL, label=f"{what} ({len(numbers)})")
    for special, color, label in marked:
        value = special.values[0]
        is_default = series.default is not None and special.number == series.default[0]
        if is_default:
            axes.axhline(value, color=color, lw=1.2, ls="--")
        # The line style also appears in the legend entry.
        style: dict[str, Any] = {"color": color, "lw": 1.2, "ls": "--" if is_default else "", "marker": "D", "ms": 8}
        axes.plot([special.number], [value], **style, mec="k", zorder=4, label=f"{label} {value:.3f}")
    for value, what, color, dash in (
        (series.trivial, "trivial predictor", TRIVIAL, ":"),
        (series.forest, "random forest", FOREST, "-."),
    ):
        if value is not None:
            axes.axhline(value, color=color, lw=1.2, ls=dash, label=f"{what} {value:.3f}")
    axes.xaxis.set_major_locator(whole_numbers())
    axes.set(xlabel="trial", ylabel=OBJECTIVE, title="Optimization history")
    legend_below(figure, axes)
    return figure


def _draw_importances(importances: Mapping[str, float], method: str, n_trials: int) -> Figure:
    figure = new_figure(7, 0.5 * max(len(importances), 3) + 1.4)
    axes = plain_axes(figure.subplots())
    axes.set(
        title=f"Which hyperparameters matter, by {method} ({say_count(n_trials, 'trial')})",
        xlabel="share of importance for the objective",
    )
    if not importances:
        axes.text(0.5, 0.5, "not enough different trials to tell", ha="center", transform=axes.transAxes)
        axes.set_yticks([])
        return figure
    names = list(importances)[::-1]
    bars = axes.barh(names, [importances[name] for name in names], color=TRIAL)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlim(0, max(importances.values()) * 1.15 or 1)
    return figure


def _draw_parallel(trials: list[FrozenTrial], marked: Marked) -> Figure:
    series = [parameter_series(trials, name) for name in searched_parameters(trials)]
    values = np.array([trial.values[0] for trial in trials])
    columns = [_to_unit(values, float(values.min()), float(values.max()))]
    columns += [_unit_positions(one) for one in series]
    heights = np.column_stack(columns)  # (trial, axis)
    figure = new_figure(max(8.0, 1.7 * len(columns)), 5)
    axes = figure.subplots()
    from matplotlib import colormaps

    for trial, line in sorted(zip(trials, heights, strict=True), key=lambda pair: -pair[0].values[0]):
        # The end of the colour map is yellow, which is hard to see on white.
        shade = colormaps["viridis"](0.65 * float(line[0]))
        axes.plot(range(len(columns)), line, color=shade, lw=1.0, alpha=0.55)
        for special, color, label in marked:
            if trial.number == special.number:
                axes.plot(range(len(columns)), line, color=color, lw=2.8, zorder=5, label=label)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "boxstyle": "square,pad=0.15"}
    on_white: dict[str, Any] = {"fontsize": 8, "zorder": 6, "bbox": box}
    for place, one in enumerate(series, start=1):
        axes.axvline(place, color="k", lw=0.8)
        for tick, label in zip(_unit_ticks(one), one.labels, strict=True):
            axes.text(place + 0.04, tick, label, va="center", **on_white)
    axes.axvline(0, color="k", lw=0.8)
    for height, value in ((0.0, values.min()), (1.0, values.max())):
        axes.text(-0.04, height, f"{value:.3f}", ha="right", va="center", **on_white)
    axes.set_xticks(range(len(columns)), ["objective", *(one.name for one in series)], fontsize=9)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlim(-0.35, len(columns) - 0.55)
    axes.set_ylim(-0.05, 1.05)
    axes.set_title("Parallel coordinates (dark lines: low objective)")
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2)
    return figure


def _draw_slices(trials: list[FrozenTrial], marked: Marked) -> Figure:
    names = searched_parameters(trials)
    n_columns = min(3, len(names))
    n_rows = -(-len(names) // n_columns)
    # A single column still needs room for the legend and the colour bar.
    figure = new_figure(max(7.0, 4.0 * n_columns), max(4.0, 3.2 * n_rows))
    grid = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False).ravel()
    values = np.array([trial.values[0] for trial in trials])
    numbers = np.array([trial.number for trial in trials])
    dot_style: dict[str, Any] = {"cmap": "Blues", "s": 28, "edgecolor": "#33507a", "linewidth": 0.5}
    dots: Any = None
    for axes, name in zip(grid, names, strict=False):
        plain_axes(axes)
        series = parameter_series(trials, name)
        # All panels share one colour scale, even those without the oldest trials.
        dots = axes.scatter(series.position, values, c=numbers, vmin=numbers.min(), vmax=numbers.max(), **dot_style)
        for special, color, label in marked:
            at = numbers == special.number
            axes.scatter(series.position[at], values[at], marker="D", s=70, color=color, edgecolor="k", label=label)
        if series.is_log:
            axes.set_xscale("log")
        # Labels of categorical choices are wide and would touch those of the next panel.
        is_choice = isinstance(covering_distribution(trials, name), CategoricalDistribution)
        axes.set(xlabel=name, xlim=_whole_range(series, 0.2 if is_choice else 0.06))
        axes.set_xticks(series.ticks, series.labels)
        # For less than a decade, Matplotlib would label minor ticks on top of each other.
        axes.minorticks_off()
    for axes in grid[::n_columns]:
        axes.set_ylabel("objective")
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    figure.colorbar(dots, ax=grid.tolist(), label="trial", shrink=0.8, ticks=whole_numbers())
    legend_below(figure, grid[0])
    figure.suptitle("Objective against each hyperparameter")
    return figure


def _whole_range(series: ParameterSeries, margin: float) -> tuple[float, float]:
    """Axis limits that show the whole searched range, tried or not; `margin` is a fraction of the range."""
    ticks = np.log(series.ticks) if series.is_log else np.array(series.ticks)
    room = margin * (float(np.ptp(ticks)) or 1.0)
    low, high = float(ticks.min()) - room, float(ticks.max()) + room
    return (float(np.exp(low)), float(np.exp(high))) if series.is_log else (low, high)


def _to_unit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return (values - low) / (high - low) if high > low else np.full(len(values), 0.5)


def _unit_positions(series: ParameterSeries) -> np.ndarray:
    position, ticks = series.position, np.array(series.ticks)
    if series.is_log:
        position, ticks = np.log(position), np.log(ticks)
    return _to_unit(position, float(ticks.min()), float(ticks.max()))


def _unit_ticks(series: ParameterSeries) -> np.ndarray:
    return _unit_positions(ParameterSeries(series.name, np.array(series.ticks), series.ticks, [], series.is_log))
