"""Folds of whole polymers: complete, balanced, fixed by the seed, blind to the order of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chitransfer.data.splits import assign_folds, hold_out_polymers
from chitransfer.errors import DataError


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[str], np.ndarray, int, int]:
    n_polymers = draw(st.integers(2, 60))
    n_kinds = draw(st.integers(1, 3))
    counts = draw(st.lists(st.integers(0, 40), min_size=n_polymers * n_kinds, max_size=n_polymers * n_kinds))
    polymers = [f"p{i:03d}" for i in draw(st.permutations(range(n_polymers)))]
    loads = np.array(counts, dtype=float).reshape(n_polymers, n_kinds)
    return polymers, loads, draw(st.integers(2, min(10, n_polymers))), draw(st.integers(0, 2**32 - 1))


@given(cases())
@settings(max_examples=200)
def test_every_fold_has_a_polymer_and_every_polymer_a_fold(case: tuple[list[str], np.ndarray, int, int]) -> None:
    polymers, loads, n_folds, seed = case
    before = loads.copy()
    folds = assign_folds(polymers, loads, n_folds, seed)
    assert folds.shape == (len(polymers),)
    assert set(folds) == set(range(n_folds))
    np.testing.assert_array_equal(loads, before)


@given(cases(), st.randoms())
@settings(max_examples=100)
def test_the_order_of_polymers_does_not_matter(case: tuple[list[str], np.ndarray, int, int], random: object) -> None:
    polymers, loads, n_folds, seed = case
    order = list(range(len(polymers)))
    random.shuffle(order)  # type: ignore[attr-defined]
    folds = assign_folds(polymers, loads, n_folds, seed)
    shuffled = assign_folds([polymers[i] for i in order], loads[order], n_folds, seed)
    assert dict(zip(polymers, folds, strict=True)) == dict(zip([polymers[i] for i in order], shuffled, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_every_kind_are_spread_evenly(seed: int, rng: np.random.Generator) -> None:
    loads = np.column_stack([rng.poisson(8, 100), rng.poisson(3, 100), rng.poisson(1, 100)]).astype(float)
    folds = assign_folds([str(i) for i in range(100)], loads, 5, seed)
    per_fold = np.array([loads[folds == fold].sum(axis=0) for fold in range(5)])
    assert (np.abs(per_fold / per_fold.mean(axis=0) - 1.0) < 0.25).all(), per_fold
    assert np.ptp(np.bincount(folds)) <= 8


@pytest.mark.parametrize("n_folds", [2, 3, 4])
@pytest.mark.parametrize("first_size", [0.8, 1.4, 2.0])
def test_a_first_fold_of_another_size_has_that_share_of_every_kind(n_folds: int, first_size: float) -> None:
    rng = np.random.default_rng(4)
    loads = np.column_stack([rng.poisson(8, 150), rng.poisson(3, 150)]).astype(float)
    # A polymer with a tenth of a kind's rows, as measured tables have.
    loads[0, 0] = 130.0
    share = first_size / (first_size + n_folds - 1)
    for seed in range(5):
        folds = assign_folds([str(i) for i in range(150)], loads, n_folds, seed, first_size)
        assert (folds == 0).mean() == pytest.approx(share, abs=0.05)
        assert loads[folds == 0].sum(axis=0) / loads.sum(axis=0) == pytest.approx([share] * 2, abs=0.05)
        others = [loads[folds == fold].sum(axis=0) for fold in range(1, n_folds)]
        assert (np.abs(others / np.mean(others, axis=0) - 1.0) < 0.25).all()


def test_seeds_differ_and_repeat() -> None:
    polymers, loads = [str(i) for i in range(40)], np.ones((40, 1))
    first = assign_folds(polymers, loads, 5, 1)
    np.testing.assert_array_equal(first, assign_folds(polymers, loads, 5, 1))
    assert (first != assign_folds(polymers, loads, 5, 2)).mean() > 0.5


def test_polymers_without_rows_are_spread_evenly() -> None:
    folds = assign_folds([str(i) for i in range(41)], np.zeros((41, 3)), 5, 0)
    assert sorted(np.bincount(folds)) == [8, 8, 8, 8, 9]


def test_fewer_polymers_than_folds() -> None:
    with pytest.raises(DataError, match=r"at least 5 polymers for 5 folds, got 4; lower cv\.n_cv_folds"):
        assign_folds(list("abcd"), np.ones((4, 1)), 5, 0)


@given(
    st.lists(st.sampled_from([f"p{i}" for i in range(30)]), min_size=2, max_size=200).filter(lambda p: len(set(p)) > 1),
    st.floats(0.001, 0.999),
    st.integers(0, 2**31),
)
def test_held_out_polymers_are_whole(polymers: list[str], fraction: float, seed: int) -> None:
    held_out = hold_out_polymers(polymers, fraction, seed)
    out = {polymer for polymer, is_out in zip(polymers, held_out, strict=True) if is_out}
    kept = {polymer for polymer, is_out in zip(polymers, held_out, strict=True) if not is_out}
    assert not out & kept
    n = len(set(polymers))
    assert len(out) == min(max(1, round(fraction * n)), n - 1)


def test_held_out_polymers_are_drawn_by_the_seed() -> None:
    polymers = [f"p{i:02d}" for i in range(40)]
    drawn = {tuple(hold_out_polymers(polymers, 0.25, seed)) for seed in (1, 2, 3, 1)}
    assert len(drawn) == 3
    ever = np.any([hold_out_polymers(polymers, 0.25, seed) for seed in range(60)], axis=0)
    assert ever.all()


def test_holding_out_needs_two_polymers() -> None:
    with pytest.raises(
        DataError, match=r"at least 2 polymers, got 1; add polymers .*paths\.dft_chi_csv.*training\.test_fraction"
    ):
        hold_out_polymers(["a", "a"], 0.1, 0)
