"""Parts of a dataset, and measured values dealt out to other polymers: who takes whose, and by what chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from chitransfer.data.assemble import Dataset, Rows
from chitransfer.data.subsets import keep_rows, permute_labels
from chitransfer.data.tables import Table

IN_CHI, IN_SOLUBILITY, N_ROWS = set(range(12)), set(range(7, 21)), 3


def rows_of(kind: str, polymers: set[int]) -> Rows:
    """Rows whose value says of which polymer they are, and by its tenth which of its rows."""
    polymer = np.repeat(sorted(polymers), N_ROWS)
    value = polymer + 0.1 * np.tile(np.arange(N_ROWS), len(polymers))
    frame = pd.DataFrame({"soluble" if kind == "solubility" else "chi": value})
    table = Table(kind, "made here", frame, pd.DataFrame(), "", 0)
    return Rows(polymer, polymer % 2, polymer + 100, 300.0 + np.arange(len(value)), value, table)


@pytest.fixture
def overlapping(tiny_dataset: Dataset) -> Dataset:
    """Some polymers have χ and labels, others one of them; three rows each."""
    chi, solubility = rows_of("chi", IN_CHI), rows_of("solubility", IN_SOLUBILITY)
    return replace(
        tiny_dataset,
        chi=replace(chi, polymer=chi.structure),
        solubility=replace(solubility, polymer=solubility.structure),
    )


def taken(dataset: Dataset, seed: int) -> tuple[dict[int, float], dict[int, float]]:
    """The one value that each polymer's rows took, of χ and of the labels."""
    permuted = permute_labels(dataset, seed)
    found = []
    for rows in (permuted.chi, permuted.solubility):
        assert rows is not None
        pairs = set(zip(rows.polymer.tolist(), rows.value.tolist(), strict=True))
        found.append(dict(pairs))
        assert len(found[-1]) == len(pairs)
    return found[0], found[1]


@pytest.mark.parametrize("seed", range(3))
def test_polymers_of_both_tables_change_places_among_themselves(overlapping: Dataset, seed: int) -> None:
    chi, labels = ({polymer: int(value) for polymer, value in own.items()} for own in taken(overlapping, seed))
    both = IN_CHI & IN_SOLUBILITY
    assert all(chi[polymer] == labels[polymer] for polymer in both)
    for group, donors in ((both, chi), (IN_CHI - both, chi), (IN_SOLUBILITY - both, labels)):
        assert {donors[polymer] for polymer in group} == group
        assert all(donors[polymer] != polymer for polymer in group)


def test_the_seed_decides_whose_value_and_which_of_its_rows(overlapping: Dataset) -> None:
    assert taken(overlapping, 4) == taken(overlapping, 4)
    dealt = [taken(overlapping, seed)[0] for seed in range(8)]
    assert len({tuple(int(values[polymer]) for polymer in sorted(IN_CHI)) for values in dealt}) > 1
    assert {round(value % 1.0, 1) for values in dealt for value in values.values()} == {0.0, 0.1, 0.2}


def test_kept_rows_are_the_chosen_ones_in_every_column() -> None:
    rows = rows_of("chi", IN_CHI)
    chosen = rows.temperature % 5 == 0
    kept = keep_rows(rows, chosen)
    for name in ("structure", "solvent", "polymer", "temperature", "value"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(rows, name)[chosen])
    assert kept.table.rows["chi"].tolist() == rows.value[chosen].tolist()
    assert kept.table.rows.index.tolist() == list(range(len(kept)))
