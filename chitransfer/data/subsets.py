"""Parts and shuffles of a dataset: some rows of its tables, or measured values dealt out again.

Called by `search.run` (the permuted-label control) and by `evidence.compare` (outer folds).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from chitransfer.data.assemble import Dataset, Rows


def permute_labels(dataset: Dataset, random_state: int) -> Dataset:
    """The dataset with measured χ and solubility labels dealt out to other rows at random; Stage 1 stays as it is.

    Nothing can be learned from such labels, so whatever scores above chance on them has seen what it should not.
    """
    rng = np.random.default_rng(random_state)
    return replace(dataset, chi=_permuted(dataset.chi, rng), solubility=_permuted(dataset.solubility, rng))


def _permuted(rows: Rows | None, rng: np.random.Generator) -> Rows | None:
    if rows is None:
        return None
    value = rng.permutation(rows.value)
    column = "soluble" if rows.table.kind == "solubility" else "chi"
    return _with_value(rows, value, column)


def _with_value(rows: Rows, value: np.ndarray, column: str) -> Rows:
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
