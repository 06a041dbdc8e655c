"""The style that all figures share (colours, axes, legends), and how a figure is saved.

Used by `report.figures`, `report.insight_figures`, `report.model_figures` and `report.check_page`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from chitransfer.files import replace_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

BLUE, RED, ORANGE, GREY, PURPLE = "#4c78a8", "#d1495b", "#f2a541", "#7a7a7a", "#7b5ea7"
# Colours of a search: its trials, the best, the default configuration, and the two reference predictors.
TRIAL, BEST, DEFAULT, TRIVIAL, FOREST = BLUE, RED, ORANGE, GREY, PURPLE


@contextmanager
def own_look() -> Iterator[None]:
    """Use Matplotlib's defaults: a user's matplotlibrc may require something that is not installed, such as LaTeX."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure atomically and without a display, in the format given by the file ending."""
    replace_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150))


def new_figure(width: float, height: float) -> Figure:
    """A figure that needs no window system; width and height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain_axes(axes: Axes) -> Axes:
    """Remove the top and right spines and draw a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    return axes


def whole_numbers() -> MaxNLocator:
    """A locator that puts ticks only at integers (trials, epochs), even if there is just one."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True, min_n_ticks=1)


def legend_over_grid(axes: Axes) -> None:
    """A legend inside the axes, with a background so that grid lines do not run through its text."""
    axes.legend(fontsize=9, loc="best", framealpha=0.85, edgecolor="none")


def legend_below(figure: Figure, axes: Axes) -> None:
    """A legend below the axes, where its markers cannot be mistaken for data."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
