"""Tanimoto similarity of fingerprints, used to decide whether polymers are alike.

Called by `model.domain` and `data.check`.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse


def tanimoto(left: np.ndarray | sparse.csr_array, right: np.ndarray | sparse.csr_array) -> np.ndarray:
    """Similarities |a∧b| / |a∨b| of bit vectors; two empty vectors have similarity 0.

    Parameters
    ----------
    left, right
        (n_left, n_bits) and (n_right, n_bits) of zeros and ones.

    Returns
    -------
    numpy.ndarray
        (n_left, n_right) float64 in 0 … 1.
    """
    # Counts below 2²⁴ are exact in float32.
    a, b = (sparse.csr_array(bits, dtype=np.float32) for bits in (left, right))
    shared = (a @ b.T).toarray()
    either = a.sum(axis=1)[:, None] + b.sum(axis=1)[None, :] - shared
    similarity: np.ndarray = np.divide(shared, either, out=np.zeros_like(shared), where=either > 0).astype(np.float64)
    return similarity
