"""Tables that are not what one takes them for: a built-in one beside one's own, measured χ in the place of computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from chitransfer.config import Config
from chitransfer.data.assemble import Dataset, load_dataset
from chitransfer.data.check import check_tables
from chitransfer.data.compute import compute_table
from chitransfer.data.table_remarks import describe_builtin_beside_own
from chitransfer.data.tables import read_chi_table, read_solubility_table, read_stage1_table
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


def test_measured_chi_beside_computed_is_not_taken_for_stage_1(
    tables: Tables, tmp_path: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    output = tmp_path / "computed.csv"
    compute_table(tables.chi, output)
    code, _, err = run_command("data", "check", "--set", f"paths.dft_chi_csv={output}")
    assert code == 2
    assert f"{output}, line 1: contains both chi and chi_unifac" in err
    assert "rename chi_unifac to chi" in err
    # As the message says, and as a table of measurements the output stays good.
    frame = pd.read_csv(output)
    assert len(read_chi_table(str(output))) == len(frame)
    frame.rename(columns={"chi": "measured", "chi_unifac": "chi"}).to_csv(output, index=False)
    assert read_stage1_table(str(output)).rows["chi"].tolist() == frame["chi_unifac"].tolist()
