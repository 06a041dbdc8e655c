"""Turn facts about the tables into warnings a user can act on.

Called by `data.check`; `report.check_page` shows the similarity below which a polymer counts as far.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from chitransfer.counts import say_count
from chitransfer.data.check_facts import SHOWN, CheckReport, CoverageFacts, TableFacts
from chitransfer.data.rejected_rows import shorten
from chitransfer.data.splits import LEAST_STAGE1_POLYMERS
from chitransfer.data.tables import USUAL_CHI

ENOUGH_SPAN_K = 20.0
FAR = 0.3
FEW_STAGE1_POLYMERS = 500
FEW_PER_FOLD = 3
DOMINANT_SHARE = 0.3
LOPSIDED_SHARE = 0.65
FEW_OF_A_CLASS = 20
POOR_RANKING = 0.3
NAMES = {"stage1": "Stage 1", "chi": "Experimental χ", "solubility": "Solubility"}


def find_warnings(report: CheckReport, n_folds: int, positive_label: int) -> Iterator[str]:
    """Warnings in plain words about tables that a search accepts; each names the consequence and a remedy.

    Parameters
    ----------
    n_folds, positive_label
        Number of cross-validation folds; the label, 1 (soluble) or 0, to which F1 and recall refer.
    """
    yield from _about_pretraining(report)
    for facts in report.tables:
        yield from _about_table(facts, n_folds if report.n_measured >= n_folds else None)
    yield from _about_contradictions(report)
    yield from _about_stereo(report)
    yield from _about_isotopes(report)
    yield from _about_temperatures(report)
    for coverage in report.coverage:
        yield from _about_coverage(coverage)
    yield from _about_labels(report, positive_label)
    yield from _about_noise(report)
    yield from _about_agreement(report)


def find_obstacles(report: CheckReport, n_folds: int) -> Iterator[str]:
    """The most serious warnings: reasons why a search would not start, each with a remedy."""
    for facts in report.tables:
        if facts.settings_to_skip:
            yield (
                f"{_tell_rejected(facts)}. A search stops there; correct them, or leave such rows out with "
                f"{' and '.join(facts.settings_to_skip)}."
            )
    if report.n_stage1 < LEAST_STAGE1_POLYMERS:
        yield (
            f"Stage 1 has {say_count(report.n_stage1, 'polymer')}, stereo variants counted as one. A search holds out "
            f"a share of them for validation, needs at least {LEAST_STAGE1_POLYMERS} and refuses to start: add some to "
            "paths.dft_chi_csv; `chitransfer data build` makes thousands in minutes."
        )
    n_rows = {facts.kind: facts.n_rows for facts in report.tables}
    if n_rows.get("solubility") == 0:
        yield (
            "Solubility: no label is left, because every one is contradicted by another label of the same polymer "
            "and solvent. Correct them, or set paths.solubility_csv to null to use χ only."
        )
    if report.soluble_share in (0.0, 1.0):
        yield (
            f"Solubility: every label is {'soluble' if report.soluble_share else 'insoluble'}. A search needs both "
            "classes and refuses to start: add polymers of the other class, or set paths.solubility_csv to null to "
            "use χ only."
        )
    if report.n_measured < n_folds:
        remedy = "Lower cv.n_cv_folds." if report.n_measured > 1 else "Add measured polymers."
        yield (
            f"Stage 2 has {say_count(report.n_measured, 'polymer')} in all, too few for {n_folds} folds: a search "
            f"refuses to start. {remedy}"
        )


def _tell_rejected(facts: TableFacts) -> str:
    shown = "; ".join(f"line {line}: {shorten(value)}: {reason}" for line, value, reason in facts.rejected)
    more = "; …" if facts.n_rejected > len(facts.rejected) else ""
    return f"{NAMES[facts.kind]}, {facts.source}: {say_count(facts.n_rejected, 'row')} cannot be used ({shown}{more})"


def _about_pretraining(report: CheckReport) -> Iterator[str]:
    if LEAST_STAGE1_POLYMERS <= report.n_stage1 < FEW_STAGE1_POLYMERS:
        yield (
            f"Stage 1: only {say_count(report.n_stage1, 'polymer')}. Pretraining has little to learn from; "
            "`chitransfer data build` makes thousands in minutes."
        )


def _about_table(facts: TableFacts, n_folds: int | None) -> Iterator[str]:
    name = NAMES[facts.kind]
    if facts.n_rejected and not facts.settings_to_skip:
        yield f"{_tell_rejected(facts)}. A search leaves them out."
    if n_folds is not None and facts.kind != "stage1" and 0 < facts.n_without_stereo < FEW_PER_FOLD * n_folds:
        few = (
            f"fewer than {FEW_PER_FOLD} to score per fold"
            if facts.n_without_stereo >= n_folds
            else "folds without any to score"
        )
        yield (
            f"{name}: {say_count(facts.n_without_stereo, 'polymer')} in {n_folds} folds: {few}, and scores will "
            "depend on the shuffle. Use fewer folds (cv.n_cv_folds) and more repeats (cv.n_cv_repeats)."
        )
    low, _, high = facts.value_range or (0.0, 0.0, 1.0)
    if low == high and facts.n_rows > 1:
        follows = "pretraining has nothing to learn from" if facts.kind == "stage1" else "its R² is not defined"
        yield f"{name}, {facts.source}: χ is {low:g} in every row, so {follows}; is it the right column?"
    share, polymer = facts.largest_share or (0.0, "")
    if share > DOMINANT_SHARE and facts.n_polymers > 1:
        # Stage 1 has no folds.
        follows = (
            "whether it is held out for validation decides the validation error"
            if facts.kind == "stage1"
            else "its fold decides the score"
        )
        yield f"{name}: {share:.0%} of the rows are one polymer, {polymer}; {follows}."
    if facts.n_duplicates:
        lines = ", ".join(map(str, facts.duplicate_lines)) + (", …" if facts.n_duplicates > SHOWN else "")
        yield (
            f"{name}, {facts.source}: exact copies of earlier rows, {facts.n_duplicates} (line {lines}), also count "
            "in training and in scores; remove them if they are the same measurement."
        )
    if facts.odd_chi:
        shown = "; ".join(f"line {line}: χ {chi:g}" for line, chi in facts.odd_chi[:SHOWN])
        more = "; …" if len(facts.odd_chi) > SHOWN else ""
        low, high = USUAL_CHI
        yield (
            f"{name}, {facts.source}: χ rarely lies outside {low:g} to {high:g}, but does in "
            f"{say_count(len(facts.odd_chi), 'row')} ({shown}{more}). A few such rows dominate every error; check "
            "them."
        )


def _about_contradictions(report: CheckReport) -> Iterator[str]:
    if report.contradictions:
        yield (
            f"Solubility labels that another label or a measured χ contradicts: {len(report.contradictions)}; "
            f"first: {report.contradictions[0]}"
        )


def _about_temperatures(report: CheckReport) -> Iterator[str]:
    stage1, chi = report.stage1_temperatures, report.chi_temperatures
    if stage1.n_several == 0:
        yield (
            "Stage 1 has one temperature for every polymer and solvent: A and B of χ(T) = A/T + B cannot be "
            "separated, and predictions away from that temperature are guesses. Add temperatures."
        )
    elif stage1.n_several < 0.5 * stage1.n_pairs:
        yield (
            f"Stage 1 has several temperatures for {stage1.n_several} of {stage1.n_pairs} polymer-solvent pairs only; "
            "A and B are determined by those alone."
        )
    if stage1.n_several and stage1.median_span < ENOUGH_SPAN_K:
        yield (
            f"Stage 1 temperatures span {stage1.median_span:.0f} K per pair (median): too little to separate A and B "
            "well; 50 K or more is better."
        )
    if chi is not None and chi.n_several == 0:
        yield (
            "Experimental χ has one temperature per polymer and solvent: its temperature dependence comes from "
            "Stage 1 alone."
        )
    ranges = {facts.kind: facts.temperature_range for facts in report.tables}
    computed, measured = ranges.get("stage1"), ranges.get("chi")
    if (
        computed
        and measured
        and (measured[0] < computed[0] - ENOUGH_SPAN_K or measured[2] > computed[2] + ENOUGH_SPAN_K)
    ):
        yield (
            f"Measured temperatures ({measured[0]:.0f} to {measured[2]:.0f} K) reach beyond those of Stage 1 "
            f"({computed[0]:.0f} to {computed[2]:.0f} K)."
        )


def _about_stereo(report: CheckReport) -> Iterator[str]:
    if report.stereo_variants:
        yield (
            f"{say_count(len(report.stereo_variants), 'polymer')} with a stereo variant in the tables (such as "
            f"{min(report.stereo_variants)}). The features ignore stereochemistry, so models predict the same values "
            "for both; every split keeps them together."
        )


def _about_isotopes(report: CheckReport) -> Iterator[str]:
    if report.n_labelled:
        yield (
            f"{say_count(report.n_labelled, 'row')} of polymers written with isotopes, such as [2H]. Isotopes are "
            "ignored: a deuterated chain counts as the ordinary one in features, repeats and splits."
        )


def _about_coverage(coverage: CoverageFacts) -> Iterator[str]:
    name = NAMES[coverage.kind]
    far = int((np.asarray(coverage.similarity) < FAR).sum())
    if far > 0.1 * coverage.n_polymers:
        polymer, similarity = coverage.farthest[0]
        yield (
            f"{name}: {far} of {coverage.n_polymers} polymers have no similar polymer in Stage 1 (similarity below "
            f"{FAR:g}; least: {polymer}, {similarity:.2f}). Stage 1 may not help for these."
        )
    if coverage.n_in_stage1 > 0.5 * coverage.n_polymers:
        yield (
            f"{name}: {coverage.n_in_stage1} of {coverage.n_polymers} polymers are also in Stage 1. Cross-validation "
            "leaves out their measured rows, not their computed ones: scores hold for polymers whose χ you compute "
            "first, not for new chemistry."
        )
    if coverage.n_solvents_unseen:
        yield (
            f"{name}: {say_count(coverage.n_solvents_unseen, 'solvent')} not in Stage 1 "
            f"({coverage.share_rows_unseen:.0%} of the rows)."
        )


def _about_labels(report: CheckReport, positive_label: int) -> Iterator[str]:
    share = report.soluble_share
    n_rows = next((facts.n_rows for facts in report.tables if facts.kind == "solubility"), None)
    if share is None or n_rows is None or share in (0.0, 1.0):
        return
    smaller = min(share, 1 - share)
    positive, negative = ("soluble", "insoluble") if positive_label else ("insoluble", "soluble")
    positive_share = share if positive_label else 1 - share
    if positive_share > LOPSIDED_SHARE:
        yield (
            f"Solubility: {share:.0%} are soluble, so calling everything {positive} has F1 "
            f"{2 * positive_share / (1 + positive_share):.2f} and recall 1. Set solubility.positive to {negative}, or "
            "give sol_auc a weight in the objective."
        )
    elif positive_share < 1 - LOPSIDED_SHARE:
        yield (
            f"Solubility: {share:.0%} are soluble. Calling everything {negative} is right {1 - positive_share:.0%} of "
            "the time; look at sol_auc and sol_balanced_accuracy too."
        )
    if smaller * n_rows < FEW_OF_A_CLASS:
        yield (
            f"Solubility: {say_count(round(smaller * n_rows), 'row')} of the rarer class; F1 and recall will be coarse "
            "and noisy. More repeats help (cv.n_cv_repeats), more rows help more."
        )


def _about_noise(report: CheckReport) -> Iterator[str]:
    noise = report.noise
    if noise is None:
        return
    if noise.standard_deviation is not None and noise.mae is not None:
        yield (
            f"Experimental χ: repeated measurements differ by {noise.standard_deviation:.2f} (standard deviation, "
            f"{noise.n_groups} sets); no model can be expected below an MAE of about {noise.mae:.2f}."
        )
        return
    residual = None if report.chi_temperatures is None else report.chi_temperatures.residual
    scatter = (
        ""
        if residual is None
        else f" Rows scatter by {residual:.2f} around their own A/T + B, an upper bound of it under this model."
    )
    yield (
        "Experimental χ: no two rows measure the same thing with different results, so the noise floor is not known."
        f"{scatter}"
    )


def _about_agreement(report: CheckReport) -> Iterator[str]:
    agreement = report.agreement
    if agreement is not None and agreement.spearman is not None and agreement.spearman < POOR_RANKING:
        yield (
            f"Stage 1 ranks the {agreement.n_pairs} measured rows it shares poorly (Spearman "
            f"{agreement.spearman:.2f}), so it may not help. Another method or solvent model may."
        )
