"""Network inputs of pairs without their zeros, and an epoch's batches of them, forward and transposed.

Built by `training.stage1` and `training.unfrozen` on the CPU; `training.fast` multiplies them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from chitransfer.training.inputs import FeatureTable, Pairs

# Share of non-zeros at which a dense column's product costs as much as a sparse one's; see docs/performance.md.
DENSE_SHARE = 0.2


@dataclass(frozen=True)
class SparseRows:
    """Rows of a matrix without their zeros, in the format of an embedding bag.

    Attributes
    ----------
    columns, values
        Column indices, (n_values,) int32, row by row, and values, (n_values,) float32, of the stored entries.
    starts
        Position of each row's first value, (n_rows,) int32.
    """

    columns: Tensor
    values: Tensor
    starts: Tensor

    @classmethod
    def of(cls, columns: np.ndarray, values: np.ndarray, starts: np.ndarray) -> SparseRows:
        """The same from arrays; those that already have the right type are not copied."""
        return cls(
            torch.from_numpy(columns.astype(np.int32, copy=False)),
            torch.from_numpy(values),
            torch.from_numpy(starts.astype(np.int32, copy=False)),
        )

    def times(self, table: Tensor) -> Tensor:
        """The product with a dense matrix (n_columns, width) float32 with contiguous rows: (n_rows, width).

        Takes half the time of PyTorch's product with a CSR matrix.
        """
        return functional.embedding_bag(self.columns, table, self.starts, mode="sum", per_sample_weights=self.values)


@dataclass(frozen=True)
class SparseBatch:
    """Inputs of some pairs; every column is either in `rows` and `columns` or in `dense`.

    Attributes
    ----------
    rows
        One row per pair and one column per feature: the factor of the first layer's weights.
    columns
        The transpose of `rows`, for the gradient of those weights; ``None`` for scoring.
    dense
        Columns that are mostly non-zero, (n_pairs, n_dense) float32.
    """

    rows: SparseRows
    columns: SparseRows | None
    dense: Tensor

    def __len__(self) -> int:
        return len(self.dense)


class SparseInputs:
    """Inputs of every pair of a table on the CPU, without their zeros.

    Parameters
    ----------
    features, pairs, columns
        The inputs are ``features.gather(pairs.structure, pairs.solvent)[:, columns]``.
    dense_columns
        Positions of the columns kept dense; default: those non-zero in more than a fifth of the pairs.
    """

    def __init__(
        self, features: FeatureTable, pairs: Pairs, columns: Tensor, dense_columns: np.ndarray | None = None
    ) -> None:
        structure, solvent = pairs.structure.numpy(), pairs.solvent.numpy()
        blocks = [features.polymer.stored[structure], features.solvent.stored[solvent]]
        everything = sparse.hstack(blocks, format="csr", dtype=np.float32)[:, columns.numpy()]
        n_columns = everything.shape[1]
        if dense_columns is None:
            share = np.bincount(everything.indices, minlength=n_columns) / max(1, len(structure))
            dense_columns = np.flatnonzero(share > DENSE_SHARE)
        is_dense = np.zeros(n_columns, dtype=bool)
        is_dense[dense_columns] = True
        self.dense_columns = torch.from_numpy(dense_columns)
        self.dense = torch.from_numpy(everything[:, dense_columns].toarray())
        everything.data[is_dense[everything.indices]] = 0.0
        everything.eliminate_zeros()
        everything.sort_indices()
        self._rows = everything

    @property
    def shape(self) -> tuple[int, int]:
        """(n_pairs, n_features)."""
        n_pairs, n_features = self._rows.shape
        return int(n_pairs), int(n_features)

    def in_order(self, batch_size: int) -> Iterator[SparseBatch]:
        """All pairs in their own order, for scoring."""
        for start in range(0, self.shape[0], batch_size):
            part = self._rows[start : start + batch_size]
            yield SparseBatch(
                rows=SparseRows.of(part.indices, part.data, part.indptr[:-1]),
                columns=None,
                dense=self.dense[start : start + batch_size],
            )

    def batches(self, order: Tensor, batch_size: int) -> Iterator[SparseBatch]:
        """The pairs in the given order (n,) int64, ``batch_size`` at a time."""
        return self.runs(order, np.minimum(np.arange(0, len(order) + batch_size, batch_size), len(order)))

    def runs(self, order: Tensor, bounds: np.ndarray) -> Iterator[SparseBatch]:
        """The pairs in the given order, cut into batches; all transposes are computed in one pass.

        Parameters
        ----------
        order
            Positions of pairs, (n,) int64.
        bounds
            Batch boundaries, increasing from 0 to n, (n_batches + 1,) int64.
        """
        n_features = self._rows.shape[1]
        rows = self._rows[order.numpy()]
        dense = self.dense[order]
        n, n_batches = len(order), len(bounds) - 1
        # A batch's transpose is a run of rows in the transpose of one matrix that has separate columns for every batch.
        batch_of_value = np.repeat(np.arange(n_batches, dtype=np.int32), np.diff(rows.indptr[bounds]))
        wide = sparse.csr_matrix(
            (rows.data, rows.indices.astype(np.int32) + batch_of_value * np.int32(n_features), rows.indptr),
            shape=(n, n_batches * n_features),
        ).tocsc()
        for batch in range(n_batches):
            start, stop = int(bounds[batch]), int(bounds[batch + 1])
            low, high = rows.indptr[start], rows.indptr[stop]
            of_features = wide.indptr[batch * n_features : (batch + 1) * n_features]
            yield SparseBatch(
                rows=SparseRows.of(rows.indices[low:high], rows.data[low:high], rows.indptr[start:stop] - low),
                columns=SparseRows.of(wide.indices[low:high] - start, wide.data[low:high], of_features - low),
                dense=dense[start:stop],
            )
