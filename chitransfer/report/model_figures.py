"""Figures of full training, drawn from its tables: functions `…_series` compute the numbers, the others draw them.

The commands call `draw_pretraining` and `draw_model` when training is done.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.counts import say_count
from chitransfer.report.drawing import (
    BEST,
    DEFAULT,
    TRIAL,
    TRIVIAL,
    legend_below,
    legend_over_grid,
    new_figure,
    own_look,
    plain_axes,
    save_figure,
    whole_numbers,
)
from chitransfer.training.model_report import CHI_FILE, CROSS_VALIDATION, SOLUBILITY_FILE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPLIT_COLOURS = {"train": TRIAL, "validation": DEFAULT, "test": BEST, CROSS_VALIDATION: TRIAL}
N_CURVES = 6


@dataclass(frozen=True)
class Reliability:
    """Mean predicted probability, observed share and number of rows, for bins with about equal numbers of rows."""

    predicted: np.ndarray
    observed: np.ndarray
    n_rows: np.ndarray

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends of Wilson's 95 % interval of each share, (n_bins,) each; works for a share of 0 too."""
        from scipy.stats import binomtest

        counts = np.rint(self.observed * self.n_rows).astype(int)
        tests = [binomtest(k, n) for k, n in zip(counts.tolist(), self.n_rows.tolist(), strict=True)]
        ends = np.array([test.proportion_ci(0.95, method="wilson") for test in tests])
        return ends[:, 0], ends[:, 1]


@dataclass(frozen=True)
class TemperatureCurve:
    """One polymer–solvent pair: measured points, the predicted line and the half-width of its interval."""

    title: str
    temperature: np.ndarray
    chi: np.ndarray
    A: float
    B: float
    half_width: float


def reliability_series(positive: np.ndarray, probability: np.ndarray, n_bins: int = 8) -> Reliability:
    """Reliability of probabilities; `positive` (n_rows,) bool, `probability` (n_rows,)."""
    parts = [part for part in np.array_split(np.argsort(probability, kind="stable"), n_bins) if len(part)]
    return Reliability(
        np.array([probability[part].mean() for part in parts]),
        np.array([positive[part].mean() for part in parts]),
        np.array([len(part) for part in parts]),
    )


def temperature_series(frame: pd.DataFrame) -> list[TemperatureCurve]:
    """The `N_CURVES` pairs measured at the most temperatures, each polymer at most once, from predictions_chi.csv."""
    # The same polymer may be written in several ways.
    frame = frame.assign(polymer=frame["SMILES"].map({text: polymer_identity(text) for text in set(frame["SMILES"])}))
    pairs = frame.groupby(["polymer", "solvent"], sort=False)
    n_temperatures = pairs["temp"].nunique().sort_values(ascending=False, kind="stable")
    curves: list[TemperatureCurve] = []
    shown: set[str] = set()
    for pair, n in n_temperatures.items():
        polymer, solvent = map(str, pair)  # type: ignore[call-overload]
        if polymer in shown or n < 2 or len(curves) == N_CURVES:
            continue
        shown.add(polymer)
        rows = pairs.get_group((polymer, solvent)).sort_values("temp")
        curves.append(
            TemperatureCurve(
                title=f"{rows['SMILES'].iloc[0]} in {solvent}",
                temperature=rows["temp"].to_numpy(),
                chi=rows["chi"].to_numpy(),
                A=float(rows["A_K"].mean()),
                B=float(rows["B"].mean()),
                half_width=float(rows["half_width_cv"].mean()),
            )
        )
    return curves


def temperature_title(report: dict[str, Any]) -> str:
    """Title of the χ(T) curves, with the coverage that holds for all of them; `report` is ``chi`` of metrics.json."""
    parts = [report[name] for name in ("interval_validation", "interval_test") if name in report]
    stated = min((part["stated_coverage"] for part in parts), default=None)
    interval = "" if stated is None else f", with {100 * stated:.0f} % interval,"
    return f"χ(T) by members that never saw the polymer{interval} and measured points"


@own_look()
def draw_pretraining(folder: Path) -> None:
    """Draw the training curves and parity plot of a Stage 1 folder into its ``figures/``."""
    history = pd.read_csv(folder / "history.csv")
    predictions = pd.read_csv(folder / "predictions.csv")
    save_figure(_draw_history(history), folder / "figures" / "training_curves.png")
    save_figure(
        _draw_parity(predictions, dict.fromkeys(("train", "validation", "test"), "chi_predicted"), "Stage 1 χ"),
        folder / "figures" / "parity.png",
    )


@own_look()
def draw_model(folder: Path) -> None:
    """Draw every figure of a Stage 2 folder for which its tables have rows into its ``figures/``."""
    figures = folder / "figures"
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    if (folder / CHI_FILE).is_file():
        chi = pd.read_csv(folder / CHI_FILE)
        columns = {CROSS_VALIDATION: "chi_cv", "test": "chi_model"}
        save_figure(_draw_parity(chi, columns, "χ of polymers left out"), figures / "parity.png")
        if curves := temperature_series(chi):
            save_figure(
                _draw_temperatures(curves, temperature_title(metrics["chi"])), figures / "chi_of_temperature.png"
            )
    if (folder / SOLUBILITY_FILE).is_file():
        solubility = pd.read_csv(folder / SOLUBILITY_FILE)
        left_out = solubility[solubility["split"] == CROSS_VALIDATION]
        if len(left_out):
            _draw_solubility(left_out, "soluble" if metrics["positive_label"] == 1 else "insoluble", figures)


def _draw_solubility(left_out: pd.DataFrame, name: str, figures: Path) -> None:
    positive = left_out["positive"].to_numpy() == 1
    probability, called = left_out["p_cv"].to_numpy(), left_out["called_positive"].to_numpy() == 1
    # Each fold's probabilities are calibrated separately, so rows are ranked by the common logits.
    ranking = left_out["logit_cv"].to_numpy()
    save_figure(_draw_ranking(positive, ranking, name), figures / "roc_and_precision_recall.png")
    save_figure(_draw_confusion(positive, called, name), figures / "confusion_matrix.png")
    save_figure(_draw_reliability(reliability_series(positive, probability), name), figures / "reliability.png")


def _draw_history(history: pd.DataFrame) -> Figure:
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = new_figure(8, 4)
    left, right = figure.subplots(1, 2)
    for number, rows in history.groupby("network"):
        plain_axes(left).plot(rows["epoch"], rows["train_loss"], lw=1.4, label=f"network {number}")
        plain_axes(right).plot(rows["epoch"], rows["validation_mae"], lw=1.4)
    left.set(xlabel="epoch", ylabel="training loss (standardised χ)", yscale="log")
    right.set(xlabel="epoch", ylabel="validation MAE of χ")
    for axes in (left, right):
        axes.xaxis.set_major_locator(whole_numbers())
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    legend_over_grid(left)
    return figure


def _draw_parity(frame: pd.DataFrame, columns: dict[str, str], title: str) -> Figure:
    figure = new_figure(11, 5)
    by_split, by_temperature = figure.subplots(1, 2)
    measured, predicted, temperatures = [], [], []
    for split, column in columns.items():
        rows = frame[frame["split"] == split]
        if len(rows) == 0:
            continue
        error = float(np.abs(rows["chi"] - rows[column]).mean())
        label = f"{split}: {say_count(len(rows), 'row')}, MAE {error:.3f}"
        by_split.scatter(rows["chi"], rows[column], s=10, alpha=0.5, color=SPLIT_COLOURS[split], label=label)
        measured.append(rows["chi"].to_numpy())
        predicted.append(rows[column].to_numpy())
        temperatures.append(rows["temp"].to_numpy())
    x, y, heat = (np.concatenate(parts) for parts in (measured, predicted, temperatures))
    # This keeps the colour scale narrow even for a single temperature.
    ends_K = {"vmin": heat.min() - 0.5, "vmax": heat.max() + 0.5}
    dots = by_temperature.scatter(x, y, s=10, alpha=0.7, c=heat, cmap="viridis", **ends_K)
    figure.colorbar(dots, ax=by_temperature, label="temperature / K")
    ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
    for axes in (by_split, by_temperature):
        plain_axes(axes).plot(ends, ends, color=TRIVIAL, lw=1, ls="--")
        axes.set(xlabel="χ in the table", ylabel="χ predicted")
    legend_over_grid(by_split)
    figure.suptitle(title)
    return figure


def _draw_temperatures(curves: list[TemperatureCurve], title: str) -> Figure:
    n_columns = min(3, len(curves))
    n_rows = -(-len(curves) // n_columns)
    # A single curve still needs room for the title.
    figure = new_figure(max(8.4, 4.2 * n_columns), 3.2 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes, curve in zip(grid, curves, strict=False):
        _draw_one_curve(plain_axes(axes), curve)
    for axes in grid[len(curves) :]:
        axes.set_visible(False)
    figure.suptitle(title)
    return figure


def _draw_one_curve(axes: Axes, curve: TemperatureCurve) -> None:
    reach = np.linspace(curve.temperature.min() - 5, curve.temperature.max() + 5, 50)
    line = curve.A / reach + curve.B
    axes.plot(reach, line, color=TRIAL, lw=1.8)
    if np.isfinite(curve.half_width):
        axes.fill_between(reach, line - curve.half_width, line + curve.half_width, color=TRIAL, alpha=0.18, lw=0)
    axes.scatter(curve.temperature, curve.chi, color=BEST, s=22, zorder=3)
    axes.set_title(curve.title, fontsize=9)
    axes.set(xlabel="T / K", ylabel="χ")


def _draw_ranking(positive: np.ndarray, ranking: np.ndarray, name: str) -> Figure:
    figure = new_figure(9, 4.2)
    left, right = figure.subplots(1, 2)
    scores = ("", "")
    if positive.any() and not positive.all():
        false, true, _ = roc_curve(positive, ranking)
        precision, recall, _ = precision_recall_curve(positive, ranking)
        left.plot(false, true, color=TRIAL, lw=1.8)
        right.plot(recall, precision, color=TRIAL, lw=1.8)
        scores = (
            f"\nROC-AUC {roc_auc_score(positive, ranking):.3f}",
            f"\naverage precision {average_precision_score(positive, ranking):.3f}",
        )
    plain_axes(left).plot([0, 1], [0, 1], color=TRIVIAL, lw=1, ls="--")
    plain_axes(right).axhline(positive.mean(), color=TRIVIAL, lw=1, ls="--")
    left.set(xlabel="false positive rate", ylabel="true positive rate", title=f"ROC ({name}){scores[0]}")
    right.set(xlabel="recall", ylabel="precision", title=f"precision–recall ({name}){scores[1]}", ylim=(0, 1.02))
    return figure


def _draw_confusion(positive: np.ndarray, called: np.ndarray, name: str) -> Figure:
    counts = np.array(
        [[np.sum((positive == row) & (called == column)) for column in (False, True)] for row in (False, True)]
    )
    figure = new_figure(4.4, 4)
    axes = figure.subplots()
    axes.imshow(counts, cmap="Blues")
    for row in range(2):
        for column in range(2):
            dark = counts[row, column] > counts.max() / 2
            axes.text(
                column, row, counts[row, column], ha="center", va="center", color="w" if dark else "k", fontsize=14
            )
    axes.set_xticks([0, 1], [f"not {name}", name])
    axes.set_yticks([0, 1], [f"not {name}", name], rotation=90, va="center")
    axes.set(xlabel="called", ylabel="measured", title="Rows of polymers left out")
    return figure


def _draw_reliability(series: Reliability, name: str) -> Figure:
    figure = new_figure(4.8, 4.7)
    axes = plain_axes(figure.subplots())
    axes.plot([0, 1], [0, 1], color=TRIVIAL, lw=1, ls="--")
    low, high = series.interval()
    error = (series.observed - low, high - series.observed)
    label = f"about {say_count(round(series.n_rows.mean()), 'row')} each,\nbars: 95 % interval of the share"
    axes.errorbar(series.predicted, series.observed, yerr=error, fmt="o-", color=TRIAL, capsize=3, label=label)
    # Error bars may be anywhere in the axes, so the legend goes below them.
    legend_below(figure, axes)
    axes.set(
        xlabel=f"predicted P({name})",
        ylabel=f"share that is {name}",
        title="Reliability on polymers left out",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    return figure
