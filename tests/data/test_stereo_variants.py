"""Polymers that differ only in stereo look the same to a model: no split may have one on either side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rdkit import Chem

from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.chemistry.stereo import merge_stereo_variants, without_stereo
from chitransfer.config import Config, load_config
from chitransfer.data.assemble import Dataset, load_dataset
from chitransfer.data.check import check_tables
from chitransfer.errors import CheckpointError
from chitransfer.report.check_page import describe_check
from chitransfer.search.contract import find_differences, make_contract
from chitransfer.search.summary import describe_data
from chitransfer.training.finetune import learnable_polymers
from chitransfer.training.stage1 import Stage1Data
from tests.conftest import Tables, vinyl_polymers

CIS, TRANS, FLAT = "*C/C=C\\C*", "*C/C=C/C*", "*CC=CC*"
PLLA, PDLA = "*O[C@@H](C)C(*)=O", "*O[C@H](C)C(*)=O"


@pytest.fixture
def dataset(tables: Tables, tmp_path: Path) -> Dataset:
    """The small tables with cis- and trans-polybutadiene measured, and the flat form computed."""
    for path, rows in (
        (tables.stage1, [{"SMILES": FLAT, "chi": 0.7, "temp": T} for T in (298.15, 330.0)]),
        (tables.chi, [{"SMILES": unit, "chi": 0.4, "temp": 300.0} for unit in (CIS, TRANS)]),
        (tables.solubility, [{"SMILES": unit, "soluble": 0} for unit in (PLLA, PDLA)]),
    ):
        pd.concat([pd.read_csv(path), pd.DataFrame(rows)]).to_csv(path, index=False)
    return load_dataset(
        str(tables.stage1), str(tables.chi), str(tables.solubility), fingerprint_bits=64, cache_folder=tmp_path / "kept"
    )


@pytest.mark.parametrize(("left", "right"), [(CIS, TRANS), (CIS, FLAT), (PLLA, PDLA)])
def test_variants_share_the_identity_without_stereo(left: str, right: str) -> None:
    assert polymer_identity(left) != polymer_identity(right)
    assert without_stereo(polymer_identity(left)) == without_stereo(polymer_identity(right))


def test_only_variants_of_one_another_are_renamed() -> None:
    cis, trans, plla, plain = (polymer_identity(unit) for unit in (CIS, TRANS, PLLA, "*CCO*"))
    names = merge_stereo_variants([cis, trans, plla, plain])
    assert names[cis] == names[trans] == polymer_identity(FLAT)
    assert (names[plla], names[plain]) == (plla, plain)


def test_variants_are_in_the_same_fold_whatever_the_shuffle(dataset: Dataset) -> None:
    assert dataset.chi is not None
    assert dataset.solubility is not None
    assert dataset.n_stereo_variants == 4
    for rows, units in ((dataset.chi, (CIS, TRANS)), (dataset.solubility, (PLLA, PDLA))):
        identities = [polymer_identity(unit) for unit in units]
        of_variants = rows.table.rows["polymer"].isin(identities).to_numpy()
        for seed in range(20):
            assert len(set(dataset.fold_of_polymers(3, seed)[rows.polymer[of_variants]])) == 1


def test_a_search_says_that_variants_count_as_one(dataset: Dataset) -> None:
    """Its numbers of polymers are lower than those of ``data check``, which counts what the tables name."""
    (line,) = [line for line in describe_data(dataset, Config()) if "stereochemistry" in line]
    assert line.strip().startswith("4 polymers with a stereo variant")


def test_data_check_tells_both_numbers_where_they_differ(dataset: Dataset, tmp_path: Path) -> None:
    assert dataset.chi is not None
    report = check_tables(*dataset.tables, cache_folder=tmp_path / "kept")
    page = describe_check(report)
    for facts, rows in zip(report.tables, (dataset.stage1, dataset.chi, dataset.solubility), strict=True):
        assert rows is not None
        assert facts.n_without_stereo == len(np.unique(rows.polymer))
    n_polymers = len(np.unique(dataset.chi.polymer))
    assert f" {n_polymers + 1} ({n_polymers} without stereochemistry) " in page
    assert page.count("without stereochemistry") == 2, "of Stage 1 there is one number"


def test_no_two_polymers_of_a_dataset_have_the_same_features(dataset: Dataset) -> None:
    dense = dataset.polymer_features.toarray()
    polymer_of: dict[bytes, set[int]] = {}
    for rows in (dataset.stage1, dataset.chi, dataset.solubility):
        assert rows is not None
        for structure, polymer in zip(rows.structure, rows.polymer, strict=True):
            polymer_of.setdefault(dense[structure].tobytes(), set()).add(int(polymer))
    assert all(len(polymers) == 1 for polymers in polymer_of.values())


def test_stage1_without_a_measured_polymer_is_without_its_flat_form(dataset: Dataset) -> None:
    assert dataset.chi is not None
    cis = dataset.chi.polymer[dataset.chi.table.rows["polymer"].to_numpy() == polymer_identity(CIS)]
    data = Stage1Data.build(
        dataset,
        validation_fraction=0.1,
        random_state=0,
        T_ref=298.15,
        device=torch.device("cpu"),
        excluded_polymers=np.unique(cis),
    )
    flat = dataset.stage1.structure[dataset.stage1.table.rows["polymer"].to_numpy() == polymer_identity(FLAT)][0]
    assert flat not in data.train.structure
    assert flat not in data.validation.structure


def test_fine_tuning_keeps_variants_of_a_checkpoints_test_polymers_out(dataset: Dataset) -> None:
    flat = dataset.polymers.index(polymer_identity(FLAT))
    plain = vinyl_polymers()[0][0]
    assert flat in learnable_polymers(dataset, (polymer_identity(plain),))
    assert flat not in learnable_polymers(dataset, (polymer_identity(TRANS),))


def test_fine_tuning_keeps_test_polymers_out_that_another_rdkit_has_named(dataset: Dataset) -> None:
    name = polymer_identity(vinyl_polymers()[1][0])
    assert dataset.polymers.index(name) in dataset.measured_polymers()
    other = Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(name), 1, randomSeed=1)[0]
    assert other != name
    assert learnable_polymers(dataset, (other,)).tolist() == learnable_polymers(dataset, (name,)).tolist()
    with pytest.raises(CheckpointError, match=r"test polymer \*CC\(\* of .* cannot be read \(.*pretrain again"):
        learnable_polymers(dataset, ("*CC(*",))


def test_data_check_says_so(dataset: Dataset, tables: Tables, run_command: Callable[..., tuple[int, str, str]]) -> None:
    words = [word for key, value in tables.overrides().items() for word in ("--set", f"{key}={value}")]
    code, out, _ = run_command("data", "check", *words)
    assert code == 0
    assert "4 polymers with a stereo variant in the tables" in " ".join(out.split())


def test_data_check_says_that_variants_alone_are_too_few_for_stage_1_as_a_search_does(
    dataset: Dataset, tables: Tables, tmp_path: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    stage1 = tmp_path / "computed.csv"
    stage1.write_text(f"SMILES,chi\n{TRANS},0.5\n{CIS},0.4\n", encoding="utf-8")
    paths = tables.overrides() | {"paths.dft_chi_csv": str(stage1)}
    paths |= {f"paths.{key}": str(tmp_path) for key in ("results_dir", "cache_dir")}
    words = [word for key, value in paths.items() for word in ("--set", f"{key}={value}")]
    code, out, err = run_command("data", "check", *words)
    assert code == 2
    assert err.endswith("a search would not start with these tables; see warning 1\n")
    assert "1. Stage 1 has 1 polymer, stereo variants counted as one." in " ".join(out.split())
    code, out, err = run_command("search", *words)
    assert code == 2
    assert "training a random forest" not in out, "what takes long comes after every refusal"
    assert "needs at least 2 polymers, got 1" in err


def test_a_study_that_split_variants_does_not_go_on(
    dataset: Dataset, tiny: dict[str, object], make_search: Callable[..., tuple[int, object]]
) -> None:
    now = make_contract(load_config(None, tiny), dataset)
    earlier = {**now, "data": {key: value for key, value in now["data"].items() if key != "stereo_variants"}}
    (difference,) = find_differences(earlier, now)
    assert difference.startswith("data.stereo_variants: 4 polymers of the tables differ")
    assert find_differences(now, now) == []
