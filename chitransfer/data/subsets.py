"""Subsets and permutations of a dataset: some rows of its tables, or permuted measured values.

Called by `search.study` (the permuted-label control) and by `evidence.nested` (outer folds).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from chitransfer.data.assemble import Dataset, Rows


def permute_labels(dataset: Dataset, random_state: int) -> Dataset:
    """The dataset with measured values permuted at random between polymers; Stage 1 is unchanged.

    In each table, every polymer gets the value of one random row of another polymer, for all of its rows. Polymers that
    are in both tables are permuted among themselves, so that a polymer's χ and label still belong together; a polymer
    with no partner keeps its own values.

    After this, other polymers' values say nothing about a polymer, while its own values say everything. A score above
    chance therefore means that rows of one polymer were on both sides of a split, within one table or across both, or
    that the fit saw its test data. A score at chance rules out such leaks to within the width of its interval. It does
    not rule out leaks through similarities of the true values: similar polymers on both sides, or a Stage 1 table that
    was made with the measurements.
    """
    rng = np.random.default_rng(random_state)
    donor = _draw_donors(dataset, rng)
    return replace(
        dataset, chi=_dealt_out(dataset.chi, donor, rng), solubility=_dealt_out(dataset.solubility, donor, rng)
    )


def _draw_donors(dataset: Dataset, rng: np.random.Generator) -> np.ndarray:
    """Index of the polymer whose values each polymer gets, (n_polymers,) int64.

    The permutation is one random cycle through the polymers that are in the same tables.
    """
    donor = np.arange(len(dataset.polymers))
    in_chi, in_solubility = (
        np.isin(donor, [] if rows is None else rows.polymer) for rows in (dataset.chi, dataset.solubility)
    )
    for group in (in_chi & in_solubility, in_chi & ~in_solubility, ~in_chi & in_solubility):
        order = rng.permutation(np.flatnonzero(group))
        donor[order] = np.roll(order, 1)
    return donor


def _dealt_out(rows: Rows | None, donor: np.ndarray, rng: np.random.Generator) -> Rows | None:
    if rows is None:
        return None
    order = rng.permutation(len(rows))
    polymers, first = np.unique(rows.polymer[order], return_index=True)
    drawn_row = order[first]  # (n_polymers of the table,)
    value = rows.value[drawn_row[np.searchsorted(polymers, donor[rows.polymer])]]
    column = "soluble" if rows.table.kind == "solubility" else "chi"
    frame = rows.table.rows.assign(**{column: value.astype(int) if column == "soluble" else value})
    return replace(rows, value=value, table=replace(rows.table, rows=frame))


def keep_rows(rows: Rows, chosen: np.ndarray) -> Rows:
    """The rows where `chosen`, (n_rows,) bool, in their order; indices into the dataset's structures stay valid."""
    table = replace(rows.table, rows=rows.table.rows[chosen].reset_index(drop=True))
    return replace(
        rows,
        structure=rows.structure[chosen],
        solvent=rows.solvent[chosen],
        polymer=rows.polymer[chosen],
        temperature=rows.temperature[chosen],
        value=rows.value[chosen],
        table=table,
    )


def without_polymers(dataset: Dataset, polymers: np.ndarray, *, from_stage1: bool) -> Dataset:
    """The dataset without some polymers' measured rows and, if `from_stage1`, without their computed rows.

    Parameters
    ----------
    polymers
        Indices into `Dataset.polymers`.
    """

    def rest(rows: Rows | None) -> Rows | None:
        return None if rows is None else keep_rows(rows, ~np.isin(rows.polymer, polymers))

    stage1 = keep_rows(dataset.stage1, ~np.isin(dataset.stage1.polymer, polymers)) if from_stage1 else dataset.stage1
    return replace(dataset, stage1=stage1, chi=rest(dataset.chi), solubility=rest(dataset.solubility))
