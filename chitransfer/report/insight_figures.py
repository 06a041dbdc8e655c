"""Two more figures of a study: Stage 1 loss against transfer, and the Pareto front if there are several objectives.

Called by `report.finish`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import optuna

from chitransfer.evidence.insight import Insight, without_stage1_term
from chitransfer.report.drawing import BEST, TRIAL, legend_below, new_figure, own_look, plain_axes, save_figure
from chitransfer.report.figures import marked_trials
from chitransfer.search.objective import ERRORS
from chitransfer.search.results import TITLES, pareto_numbers, read_recommended, read_standing
from chitransfer.search.study import CONTRACT
from chitransfer.search.study_folder import StudyFolder
from chitransfer.search.summary import Names
from chitransfer.sections import ObjectiveSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRANSFER = "objective without its Stage 1 term (lower is better)"


@own_look()
def draw_insight(study: optuna.Study, insight: Insight | None, folder: StudyFolder, weights: ObjectiveSettings) -> None:
    """Write ``stage1_vs_transfer.png`` for a first pass, and ``pareto_front.png`` if there are several objectives."""
    # In a second pass all trials share their Stage 1.
    if folder.first_pass is None:
        save_figure(_draw_scatter(study, insight, folder, weights), folder.figures / "stage1_vs_transfer.png")
    names = study.user_attrs.get(CONTRACT, {}).get("search", {}).get("objectives") or []
    if names:
        _draw_pareto(study, names, folder)


def _draw_scatter(
    study: optuna.Study, insight: Insight | None, folder: StudyFolder, weights: ObjectiveSettings
) -> Figure:
    standing = read_standing(study)
    stage1 = np.array([float(trial.user_attrs["stage1_mae"]) for trial in standing.ranked])
    transfer = without_stage1_term(np.array([trial.values[0] for trial in standing.ranked]), stage1, weights)
    numbers = np.array([trial.number for trial in standing.ranked])
    figure = new_figure(6.5, 5.3)
    axes = plain_axes(figure.subplots())
    axes.scatter(stage1, transfer, s=28, color=TRIAL, alpha=0.75, label="trial")
    recommended = read_recommended(folder, standing)
    for special, color, label in marked_trials(standing.ranked, recommended, standing.default, Names.of(folder)):
        at = numbers == special.number
        axes.scatter(stage1[at], transfer[at], marker="D", s=70, color=color, ec="k", label=label)
    title = "Stage 1 loss against transfer"
    if insight is not None:
        title += f"\nrank correlation {insight.correlation:+.2f} [{insight.low:+.2f}, {insight.high:+.2f}]"
    axes.set(xlabel=TITLES["stage1_mae"], ylabel=TRANSFER, title=title)
    legend_below(figure, axes)
    return figure


def _with_direction(name: str) -> str:
    return f"{TITLES[name]} ({'lower' if name in ERRORS else 'higher'} is better)"


def _draw_pareto(study: optuna.Study, names: list[str], folder: StudyFolder) -> None:
    standing = read_standing(study)
    trials = standing.ranked
    marked = marked_trials(trials, read_recommended(folder, standing), standing.default, Names.of(folder))
    front = set(pareto_numbers(study))
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    figure = new_figure(5 * len(pairs), 4.5)
    for axes, (a, b) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        plain_axes(axes)
        for chosen, color, label in ((False, TRIAL, "trial"), (True, BEST, "Pareto front")):
            own = [trial for trial in trials if (trial.number in front) == chosen]
            axes.scatter(
                [t.user_attrs[a] for t in own],
                [t.user_attrs[b] for t in own],
                s=34,
                color=color,
                alpha=0.8,
                label=label,
            )
        for special, color, label in marked:
            at = special.user_attrs[a], special.user_attrs[b]
            axes.scatter(*at, marker="D", s=70, facecolor="none", edgecolor=color, linewidth=2, zorder=4, label=label)
        axes.set(xlabel=_with_direction(a), ylabel=_with_direction(b))
    legend_below(figure, axes)
    figure.suptitle("Pareto front")
    save_figure(figure, folder.figures / "pareto_front.png")
