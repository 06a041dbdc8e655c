"""Parts and shuffles of a dataset: some rows of its tables, or measured values dealt out again.

Called by `search.study` (the permuted-label control) and by `evidence.nested` (outer folds).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from chitransfer.data.assemble import Dataset, Rows


def permute_labels(dataset: Dataset, random_state: int) -> Dataset:
    """The dataset with measured values dealt out to other polymers at random; Stage 1 stays as it is.

    Every polymer takes, for all its rows of a table, the value of one row, drawn at random, of another polymer.
    Polymers that are in both tables change places among themselves, so that a polymer's χ and its label still belong
    together; one that has none to change places with keeps its own values.

    Nothing can be learned of a polymer from other polymers' values of this kind, but everything from its own, so a
    score above chance means that rows of one polymer were on both sides of a split, in one table or across the two, or
    that the fit saw what it was tested on. A score at chance excludes these leaks as far as the score's interval is
    narrow. It excludes no leak that lies in what the true values have in common: polymers that are alike on both
    sides, or a Stage 1 table that was made with the measurements.
    """
    rng = np.random.default_rng(random_state)
    donor = _draw_donors(dataset, rng)
    return replace(
        dataset, chi=_dealt_out(dataset.chi, donor, rng), solubility=_dealt_out(dataset.solubility, donor, rng)
    )


def _draw_donors(dataset: Dataset, rng: np.random.Generator) -> np.ndarray:
    """Whose values each polymer takes, (n_polymers,) int64: one random cycle through polymers of the same tables."""
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
    """The chosen rows (n_rows,) bool, in their order; indices into the dataset's structures stay valid."""
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
    """The dataset without some polymers' measured rows, and without their computed rows if `from_stage1`.

    Parameters
    ----------
    polymers
        Indices into `Dataset.polymers`.
    """

    def rest(rows: Rows | None) -> Rows | None:
        return None if rows is None else keep_rows(rows, ~np.isin(rows.polymer, polymers))

    stage1 = keep_rows(dataset.stage1, ~np.isin(dataset.stage1.polymer, polymers)) if from_stage1 else dataset.stage1
    return replace(dataset, stage1=stage1, chi=rest(dataset.chi), solubility=rest(dataset.solubility))
