"""The page and the figure of ``chitransfer data check``: facts first, warnings last, where they are easiest to see.

Called by the command; everything shown is in `data.check.CheckReport`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chitransfer.counts import say_count
from chitransfer.data.check_facts import SHOWN, CheckReport, TableFacts, TemperatureFacts
from chitransfer.data.check_warnings import FAR
from chitransfer.report.drawing import BLUE, GREY, ORANGE, RED, new_figure, own_look, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {"stage1": "Stage 1 (computed χ)", "chi": "experimental χ", "solubility": "solubility"}
SIMILAR = 0.5
COLOURS = {"stage1": GREY, "chi": BLUE, "solubility": ORANGE}


def describe_check(report: CheckReport) -> str:
    """One page of text about the tables, ending with the warnings."""
    polymers = [_count_polymers(facts) for facts in report.tables]
    width = max(10, *(len(text) + 2 for text in polymers))
    lines = ["", f"{'':26}{'rows':>9}{'polymers':>{width}}{'solvents':>10}{'repeats':>9}  range"]
    for facts, n_polymers in zip(report.tables, polymers, strict=True):
        lines.append(
            f"{TITLES[facts.kind]:26}{facts.n_rows:>9,}{n_polymers:>{width}}{facts.n_solvents:>10,}"
            f"{facts.n_repeats:>9,}  {_ranges(facts.value_range, facts.temperature_range, report.soluble_share)}"
        )
    as_one = " (stereo variants count as one)" if report.stereo_variants else ""
    pairs = [f"{pair.replace('+', ' and ')} {count:,}" for pair, count in report.shared_polymers.items()]
    lines += ["", *([f"Polymers in two tables{as_one}: {', '.join(pairs)}"] if pairs else [])]
    lines.append(f"Temperatures of Stage 1: {_temperatures(report.stage1_temperatures)}")
    if report.chi_temperatures is not None:
        lines.append(f"Temperatures of experimental χ: {_temperatures(report.chi_temperatures)}")
    for coverage in report.coverage:
        similarity = np.asarray(coverage.similarity)
        lines.append(
            f"Similarity of {TITLES[coverage.kind]} polymers to the nearest of Stage 1 (Tanimoto): median "
            f"{np.median(similarity):.2f}, {(similarity >= SIMILAR).mean():.0%} at {SIMILAR:g} or more, "
            f"{(similarity < FAR).mean():.0%} below {FAR:g}"
        )
        far = [f"{polymer} ({value:.2f})" for polymer, value in coverage.farthest if value < SIMILAR]
        if far:
            lines.append("  least similar: " + ", ".join(far))
    if report.agreement is not None and report.agreement.spearman is not None:
        lines.append(
            f"Stage 1 against {report.agreement.n_pairs:,} measured rows it shares "
            f"({say_count(report.agreement.n_polymers, 'polymer')}): Spearman {report.agreement.spearman:.2f}"
        )
    lines += [f"  {contradiction}" for contradiction in report.contradictions[:SHOWN]]
    if len(report.contradictions) > SHOWN:
        lines.append(f"  … and {say_count(len(report.contradictions) - SHOWN, 'more contradicted label')}")
    lines += ["", "Warnings" if report.warnings else "No warnings."]
    lines += [f"  {number}. {warning}" for number, warning in enumerate(report.warnings, start=1)]
    return "\n".join(lines) + "\n"


def _count_polymers(facts: TableFacts) -> str:
    merged = (
        "" if facts.n_without_stereo == facts.n_polymers else f" ({facts.n_without_stereo:,} without stereochemistry)"
    )
    return f"{facts.n_polymers:,}{merged}"


def _ranges(
    value: tuple[float, float, float] | None,
    temperature: tuple[float, float, float] | None,
    soluble_share: float | None,
) -> str:
    if value is None or temperature is None:
        return f"{soluble_share:.0%} soluble" if soluble_share is not None else ""
    return f"χ {value[0]:.2f} to {value[2]:.2f} (median {value[1]:.2f}), {temperature[0]:.0f} to {temperature[2]:.0f} K"


def _temperatures(facts: TemperatureFacts) -> str:
    text = f"{facts.n_several:,} of {facts.n_pairs:,} polymer-solvent pairs have several"
    if facts.n_several:
        text += f", spanning {facts.median_span:.0f} K (median)"
    if facts.residual is not None:
        text += f"; rows scatter {facts.residual:.3f} around their pair's A/T + B"
    return text


@own_look()
def draw_check(report: CheckReport, path: Path) -> None:
    """Four panels: χ of both tables, similarity to Stage 1, Stage 1 against measurement, labels.

    Parameters
    ----------
    path
        A file ending in ``.png``, ``.svg`` or ``.pdf``.
    """
    figure = new_figure(10, 7.5)
    panels = figure.subplots(2, 2)
    _draw_rows(panels[0, 0], report)
    _draw_similarity(panels[0, 1], report)
    _draw_agreement(panels[1, 0], report)
    _draw_labels(panels[1, 1], report)
    save_figure(figure, path)


def _draw_rows(axes: Axes, report: CheckReport) -> None:
    names = [TITLES[facts.kind] for facts in report.tables]
    position = np.arange(len(names))
    left = 0.8
    # The y axis is inverted, so the most negative offset is on top.
    bars = (("rows", -0.27), ("polymers", 0.0), ("solvents", 0.27))
    for what, shift in bars:
        counts = [getattr(facts, f"n_{what}") for facts in report.tables]
        axes.barh(position + shift, counts, height=0.25, label=what)
        for place, count in zip(position + shift, counts, strict=True):
            # A logarithmic axis has no place for 0.
            axes.text(max(count, left), place, f" {count:,}", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(left=left, right=20 * max(facts.n_rows for facts in report.tables))
    axes.set_yticks(position, names)
    axes.invert_yaxis()
    axes.set_xlabel("count")
    axes.set_title("What is there")
    axes.legend(fontsize=8)


def _draw_similarity(axes: Axes, report: CheckReport) -> None:
    for coverage in report.coverage:
        values = np.sort(np.asarray(coverage.similarity))
        axes.step(
            values,
            np.arange(1, len(values) + 1) / len(values),
            where="post",
            color=COLOURS[coverage.kind],
            label=f"{TITLES[coverage.kind]}, {say_count(coverage.n_polymers, 'polymer')}",
        )
    axes.axvspan(0, FAR, color=RED, alpha=0.1, label="nothing alike")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("Tanimoto similarity to the nearest Stage 1 polymer")
    axes.set_ylabel("share of polymers at or below")
    axes.set_title("Does Stage 1 know this chemistry?")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False)


def _draw_agreement(axes: Axes, report: CheckReport) -> None:
    axes.set_title("Stage 1 against measurement")
    axes.set_xlabel("computed χ")
    axes.set_ylabel("measured χ")
    agreement = report.agreement
    if agreement is None or not agreement.n_pairs:
        has_measured = any(facts.kind == "chi" for facts in report.tables)
        missing = "no polymer and solvent in both tables" if has_measured else "no table of measured χ"
        axes.text(0.5, 0.5, missing, ha="center", transform=axes.transAxes)
        return
    axes.scatter(agreement.computed, agreement.measured, s=8, alpha=0.5, color=COLOURS["chi"])
    low, high = min(agreement.measured), max(agreement.measured)
    axes.plot([low, high], [low, high], color=COLOURS["stage1"], linewidth=1, label="equal")
    axes.axhline(0.5, color=RED, linewidth=0.8, linestyle=":", label="χ = 0.5")
    spearman = "" if agreement.spearman is None else f", Spearman {agreement.spearman:.2f}"
    axes.set_title(f"Stage 1 against measurement ({agreement.n_pairs:,} rows{spearman})", fontsize=10)
    axes.legend(fontsize=8)


def _draw_labels(axes: Axes, report: CheckReport) -> None:
    axes.set_title("Solubility labels")
    n_rows = next((facts.n_rows for facts in report.tables if facts.kind == "solubility"), None)
    if report.soluble_share is None or n_rows is None:
        missing = "no solubility table" if n_rows is None else "no label that is not contradicted"
        axes.text(0.5, 0.5, missing, ha="center", transform=axes.transAxes)
        return
    counts = [round(report.soluble_share * n_rows), round((1 - report.soluble_share) * n_rows)]
    axes.bar(["soluble", "insoluble"], counts, color=[COLOURS["chi"], COLOURS["solubility"]])
    for place, count in enumerate(counts):
        axes.text(place, count, f"{count:,} ({count / n_rows:.0%})", ha="center", va="bottom")
    axes.set_ylim(top=1.15 * max(counts))
    axes.set_ylabel("rows")
