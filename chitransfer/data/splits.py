"""Grouped splits: a polymer's rows, in the χ and solubility tables together, are never on both sides.

Called by `data.assemble` (folds), `training.stage1` (hold-out set) and `search.space` (size of the hold-out set).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chitransfer.errors import DataError

# One polymer to train on and one to hold out.
LEAST_STAGE1_POLYMERS = 2


def assign_folds(
    polymers: Sequence[str], loads: np.ndarray, n_folds: int, random_state: int, first_size: float = 1.0
) -> np.ndarray:
    """Assign whole polymers to folds of about equal load; the first fold may have a different size.

    Polymers are taken in random order and each goes to the fold that keeps the loads most balanced, so every shuffle
    gives different folds.

    Parameters
    ----------
    polymers
        Distinct polymer identities, (n_polymers,).
    loads
        Number of rows of each kind per polymer, (n_polymers, n_kinds): χ rows, soluble rows, insoluble rows.
    n_folds
        At least 2 and at most n_polymers.
    random_state
        Seed of the shuffle.
    first_size
        Load of fold 0 relative to each other fold, above 0.

    Returns
    -------
    numpy.ndarray
        The fold of each polymer, (n_polymers,) int64 in 0 … n_folds − 1.

    Raises
    ------
    DataError
        There are fewer polymers than folds.
    """
    n_polymers = len(polymers)
    if n_polymers < n_folds:
        raise DataError(
            f"cross-validation over whole polymers needs at least {n_folds} polymers for {n_folds} folds, got "
            f"{n_polymers}; lower cv.n_cv_folds or add polymers"
        )
    # Sorting by identity first makes the folds independent of the row order in the files.
    order = np.random.default_rng(random_state).permutation(n_polymers)
    order = np.argsort(np.asarray(polymers, dtype=object))[order]
    totals = loads.sum(axis=0)
    shares = loads[:, totals > 0] / totals[totals > 0]  # (polymer, kind)
    shares = np.hstack([shares, np.full((n_polymers, 1), 1.0 / n_polymers)])
    filled = np.zeros((n_folds, shares.shape[1]))  # (fold, kind)
    folds = np.empty(n_polymers, dtype=np.int64)
    counts = np.zeros(n_folds, dtype=np.int64)
    size = np.ones(n_folds)
    size[0] = first_size
    for position, polymer in enumerate(order):
        # Adding shares s to a fold with shares f raises Σ f·f/size by (2 f·s + s·s)/size. The cost is half of that,
        # minus the constant s·s/2; for folds of size 1 its last term is 0 and the smallest f·s wins.
        own = shares[polymer]
        cost = filled @ own / size + 0.5 * (own @ own) * (1.0 / size - 1.0)
        if n_polymers - position <= int((counts == 0).sum()):
            cost = np.where(counts == 0, cost, np.inf)
        best = int(np.argmin(cost))
        folds[polymer] = best
        filled[best] += shares[polymer]
        counts[best] += 1
    return folds


def hold_out_polymers(polymers: Sequence[str], fraction: float, random_state: int) -> np.ndarray:
    """Choose a random fraction of distinct polymers, at least one and never all.

    Returns
    -------
    numpy.ndarray
        True for held-out rows, (n_rows,); `polymers` may contain repeats, and all rows of a polymer are on one side.

    Raises
    ------
    DataError
        There are fewer than `LEAST_STAGE1_POLYMERS` distinct polymers.
    """
    distinct, inverse = np.unique(np.asarray(polymers, dtype=object), return_inverse=True)
    if len(distinct) < LEAST_STAGE1_POLYMERS:
        raise DataError(
            "Stage 1 holds out a share of its polymers for validation, so it needs at least "
            f"{LEAST_STAGE1_POLYMERS} polymers, got {len(distinct)}; add polymers to the computed table "
            "(paths.dft_chi_csv), or, in full training, lower training.test_fraction, which takes polymers from it"
        )
    chosen = np.zeros(len(distinct), dtype=bool)
    n_out = count_held_out(len(distinct), fraction)
    chosen[np.random.default_rng(random_state).permutation(len(distinct))[:n_out]] = True
    return chosen[inverse]


def count_held_out(n_polymers: int, fraction: float) -> int:
    """Number of polymers that `hold_out_polymers` chooses from at least two distinct ones."""
    return min(max(1, round(fraction * n_polymers)), n_polymers - 1)
