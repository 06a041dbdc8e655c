"""Network inputs of pairs with their zeros left out, and an epoch's batches of them, forward and transposed.

Built by `training.stage1` and `training.unfrozen` on the CPU; multiplied by `training.fast`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from chitransfer.training.inputs import FeatureTensors, Pairs

# Where a product by a dense column costs as much as one by its stored values; measured, see docs/performance.md.
DENSE_SHARE = 0.2


@dataclass(frozen=True)
class SparseBatch:
    """Inputs of some pairs; a column is either in `rows` and `columns` or in `dense`.

    Attributes
    ----------
    rows
        CSR, (n_pairs, n_features) float32: what multiplies the first layer's weights.
    columns
        The same transposed, CSR of (n_features, n_pairs): what carries gradients back to them; ``None`` for scoring.
    dense
        Columns that are mostly non-zero, (n_pairs, n_dense) float32.
    """

    rows: Tensor
    columns: Tensor | None
    dense: Tensor

    def __len__(self) -> int:
        return int(self.rows.shape[0])


class SparseInputs:
    """Inputs of every pair of a table on the CPU, without their zeros.

    Parameters
    ----------
    features, pairs, columns
        The pair's inputs are ``features.gather(pairs.structure, pairs.solvent)[:, columns]``.
    dense_columns
        Positions of the columns to keep dense; default: those non-zero in more than a fifth of the pairs.
    """

    def __init__(
        self, features: FeatureTensors, pairs: Pairs, columns: Tensor, dense_columns: np.ndarray | None = None
    ) -> None:
        structure, solvent = pairs.structure.numpy(), pairs.solvent.numpy()
        polymer = sparse.csr_matrix(features.polymer.numpy())
        blocks = [polymer[structure]]
        if features.solvent.shape[1]:
            blocks.append(sparse.csr_matrix(features.solvent.numpy())[solvent])
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
        announce_sparse_csr()

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
                rows=_csr(part.indptr, part.indices, part.data, part.shape),
                columns=None,
                dense=self.dense[start : start + batch_size],
            )

    def batches(self, order: Tensor, batch_size: int) -> Iterator[SparseBatch]:
        """The pairs in the given order (n,) int64, ``batch_size`` at a time."""
        return self.runs(order, np.minimum(np.arange(0, len(order) + batch_size, batch_size), len(order)))

    def runs(self, order: Tensor, bounds: np.ndarray) -> Iterator[SparseBatch]:
        """The pairs in the given order, cut into batches; all transposes are worked out in one pass.

        Parameters
        ----------
        order
            Positions of pairs, (n,) int64.
        bounds
            Where a batch begins and the one before ends, rising from 0 to n, (n_batches + 1,) int64.
        """
        n_features = self._rows.shape[1]
        rows = self._rows[order.numpy()]
        dense = self.dense[order]
        n, n_batches = len(order), len(bounds) - 1
        # A batch's transpose is a run of rows of the transpose of one matrix that has its own columns for every batch.
        batch_of_value = np.repeat(np.arange(n_batches, dtype=np.int32), np.diff(rows.indptr[bounds]))
        wide = sparse.csr_matrix(
            (rows.data, rows.indices.astype(np.int32) + batch_of_value * np.int32(n_features), rows.indptr),
            shape=(n, n_batches * n_features),
        ).tocsc()
        for batch in range(n_batches):
            start, stop = int(bounds[batch]), int(bounds[batch + 1])
            low, high = rows.indptr[start], rows.indptr[stop]
            pointers = wide.indptr[batch * n_features : (batch + 1) * n_features + 1]
            yield SparseBatch(
                rows=_csr(
                    rows.indptr[start : stop + 1] - low,
                    rows.indices[low:high],
                    rows.data[low:high],
                    (stop - start, n_features),
                ),
                columns=_csr(
                    pointers - low, wide.indices[low:high] - start, wide.data[low:high], (n_features, stop - start)
                ),
                dense=dense[start:stop],
            )


@cache
def announce_sparse_csr() -> None:
    """Let PyTorch say once, unheard, that its CSR tensors are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        _csr(np.zeros(2, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32), (1, 1))


def _csr(pointers: np.ndarray, positions: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> Tensor:
    # 32-bit indices are what MKL takes; others would be converted at every product.
    return torch.sparse_csr_tensor(
        torch.from_numpy(pointers.astype(np.int32, copy=False)),
        torch.from_numpy(positions.astype(np.int32, copy=False)),
        torch.from_numpy(values),
        shape,
    )
