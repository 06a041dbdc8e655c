"""Tables that are not what one takes them for: a built-in one beside one's own, measured χ in the place of computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from chitransfer.config import Config
from chitransfer.data.assemble import Dataset, load_dataset
from chitransfer.data.check import check_tables
from chitransfer.data.tables import (
    describe_builtin_beside_own,
    read_chi_table,
    read_solubility_table,
    read_stage1_table,
)
from chitransfer.search.summary import describe_data
from tests.conftest import Tables

LABELS, CHI = "builtin:water_solubility", "builtin:experimental_chi"
SAID = f"paths.solubility_csv is {LABELS} (153 rows), the built-in table, beside tables of your own; null leaves it out"


@pytest.fixture
def mixed(tables: Tables, tmp_path: Path) -> Dataset:
    """Computed and measured χ of the user's own beside the built-in labels."""
    return load_dataset(
        str(tables.stage1), str(tables.chi), LABELS, fingerprint_bits=64, cache_folder=tmp_path / "kept"
    )


def test_a_search_says_that_a_table_is_the_built_in_one(mixed: Dataset) -> None:
    assert f"  {SAID}" in describe_data(mixed, Config())


def test_data_check_warns_of_it(mixed: Dataset, tmp_path: Path) -> None:
    report = check_tables(*mixed.tables, cache_folder=tmp_path / "kept")
    assert f"{SAID}." in report.warnings


def test_tables_of_one_kind_are_no_surprise(tables: Tables) -> None:
    own = [read_stage1_table(str(tables.stage1)), read_chi_table(str(tables.chi))]
    assert describe_builtin_beside_own([*own, read_solubility_table(str(tables.solubility))]) == []
    chi, labels = read_chi_table(CHI), read_solubility_table(LABELS)
    assert describe_builtin_beside_own([chi, labels]) == []
    assert [line.split(" ")[0] for line in describe_builtin_beside_own([own[0], chi, labels])] == [
        "paths.exp_chi_csv",
        "paths.solubility_csv",
    ]


def test_the_only_table_of_stage_2_cannot_be_left_out(tables: Tables) -> None:
    (line,) = describe_builtin_beside_own([read_stage1_table(str(tables.stage1)), read_solubility_table(LABELS)])
    assert line.endswith("; name one of your own")
