"""What a comparison's folder may be gone on with: the same conditions and tables, one process, any protocols."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from chitransfer.config import Config, override_config
from chitransfer.data.assemble import Dataset
from chitransfer.errors import ConfigError, StudyError
from chitransfer.evidence import compare
from chitransfer.evidence.compare import Plan, run_comparison
from chitransfer.evidence.nested import PROTOCOLS, OuterFold
from chitransfer.files import write_csv
from chitransfer.search.lock import drive_alone
from chitransfer.search.study_folder import StudyFolder

KNOWN, NEW = PROTOCOLS


def pretend_outer_fold(config: Config, dataset: Dataset, fold: OuterFold, *_: object) -> None:
    """Predictions of two rows of the table, out of thin air."""
    assert dataset.chi is not None
    rows = dataset.chi.table.rows.assign(seed=0)
    own = rows[rows["polymer"].isin([dataset.polymers[i] for i in fold.test])]
    for row, error in (("default", 0.1), ("ridge", 0.3)):
        write_csv(fold.predictions(row, "chi"), own.assign(predicted_chi=own["chi"] + error))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a comparison, whose folds take no time here, says."""
    monkeypatch.setattr(compare, "run_outer_fold", pretend_outer_fold)
    return []


@pytest.fixture
def run(said: list[str], shared_tiny_config: Config, tiny_dataset: Dataset, tmp_path: Path) -> Any:
    """Run a comparison of two outer folds; protocols of its table."""

    def run_it(*protocols: str, dataset: Dataset = tiny_dataset, **changes: object) -> list[str]:
        config = override_config(shared_tiny_config, {key.replace("__", "."): value for key, value in changes.items()})
        run_comparison(config, dataset, tmp_path, Plan(2, 1, protocols), said.append)
        return list(pd.read_csv(tmp_path / "table.csv")["protocol"].unique())

    return run_it


def test_a_rate_that_no_trial_reads_is_refused_as_in_a_search(
    said: list[str], shared_tiny_config: Config, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    rate = {"key": "training.lr_encoder", "type": "log", "low": 1e-5, "high": 1e-3}
    config = override_config(shared_tiny_config, {"search.space": {"rate": rate}})
    with pytest.raises(ConfigError, match=r"no trial uses training\.lr_encoder"):
        run_comparison(config, tiny_dataset, tmp_path / "new", Plan(2, 1, PROTOCOLS), said.append)
    assert not (tmp_path / "new").exists()


def test_more_outer_folds_than_polymers_are_refused_by_their_option(
    said: list[str], shared_tiny_config: Config, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(StudyError, match=r"--outer 100 needs at least 100 polymers .*, got 36; lower --outer or"):
        run_comparison(shared_tiny_config, tiny_dataset, tmp_path / "new", Plan(100, 1, PROTOCOLS), said.append)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["stage1", "chi", "solubility"])
def test_a_table_that_changed_is_refused(run: Any, tiny_dataset: Dataset, kind: str) -> None:
    run(KNOWN)
    rows = getattr(tiny_dataset, kind)
    changed = replace(tiny_dataset, **{kind: replace(rows, table=replace(rows.table, digest="0" * 64))})
    what = {"stage1": "the Stage 1 table", "chi": "the table of measured χ", "solubility": "the solubility table"}[kind]
    with pytest.raises(StudyError, match=rf"other conditions \(contents of {what}\); choose another --name"):
        run(KNOWN, dataset=changed)
    assert run(KNOWN) == [KNOWN]


def test_it_goes_on_elsewhere(run: Any) -> None:
    """On another machine: other threads and device, and the same tables in another folder."""
    run(KNOWN)
    assert run(NEW, training__num_threads=3, training__device="auto", paths__dft_chi_csv="moved.csv") == [KNOWN, NEW]
    with pytest.raises(StudyError, match=r"other conditions \(training\.lr_pretrain\); choose another --name"):
        run(KNOWN, training__lr_pretrain=0.5)


def test_polymers_of_other_names_are_refused(run: Any, tiny_dataset: Dataset) -> None:
    run(KNOWN)
    changed = replace(tiny_dataset, polymers=(*tiny_dataset.polymers[:-1], "as another RDKit has it"))
    with pytest.raises(StudyError, match=r"other conditions \(the polymers' names, which are RDKit's\)"):
        run(KNOWN, dataset=changed)


def test_a_comparison_of_an_earlier_release_goes_on(run: Any, said: list[str], tmp_path: Path) -> None:
    """It kept no checksums; from now on there are some."""
    run(KNOWN)
    path = tmp_path / "conditions.json"
    conditions = json.loads(path.read_text())
    path.write_text(json.dumps({name: conditions[name] for name in ("n_outer", "n_seeds")}))
    assert run(KNOWN, NEW) == [KNOWN, NEW]
    assert sum("kept no checksums" in line for line in said) == 1
    assert json.loads(path.read_text()) == conditions


def test_folds_that_tested_other_polymers_are_refused(run: Any, tmp_path: Path) -> None:
    """As those of a release that split otherwise: some polymers would be tested twice and others never."""
    run(KNOWN)
    done = tmp_path / "known_chemistry" / "outer_1" / "done.json"
    done.write_text(json.dumps({"test_polymers": json.loads(done.read_text())["test_polymers"][1:]}))
    with pytest.raises(StudyError, match=r"outer_1.done\.json: this fold would now test other polymers"):
        run(KNOWN)


def test_tables_have_every_protocol_that_is_complete(run: Any, said: list[str], tmp_path: Path) -> None:
    assert run(KNOWN) == [KNOWN]
    assert run(NEW) == [KNOWN, NEW]
    assert set(pd.read_csv(tmp_path / "differences.csv")["protocol"]) == {KNOWN, NEW}
    (tmp_path / "known_chemistry" / "outer_0" / "done.json").unlink()
    assert run(NEW) == [NEW]
    assert said[-1] == f"{KNOWN}: 1 of 2 outer folds are done; the tables show it once all are done"
    assert run(KNOWN) == [KNOWN, NEW]


def test_a_second_comparison_in_the_folder_is_refused(run: Any, tmp_path: Path) -> None:
    with (
        drive_alone(StudyFolder(tmp_path)),
        pytest.raises(StudyError, match=r"another comparison is writing to this folder \(host .*pid .*stop it first"),
    ):
        run(KNOWN)
    assert run(KNOWN) == [KNOWN]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["search.control=permute"], "search.control: permute is for a search"),
        (["search.workers=4", "cluster.cores=2"], "without effect in a comparison: cluster.cores, search.workers;"),
        (
            ["search.storage=postgresql://u@h/db"],
            "without effect in a comparison: search.storage; leave it out (its folder is named by --name)",
        ),
        (
            ["training.n_networks=3"],
            "training.n_networks; leave it out (full fine-tuning trains one network here)",
        ),
        (["cv.random_forest=false"], "cv.random_forest; leave it out (the table always has a random forest)"),
    ],
)
def test_what_a_comparison_would_not_heed_is_refused(run_command: Any, words: list[str], named: str) -> None:
    code, _, error = run_command("compare", *(part for word in words for part in ("--set", word)))
    assert code == 2
    assert named in " ".join(error.split())


def test_what_would_make_a_search_faster_is_named(
    run_command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(*_: object) -> None:
        raise StudyError("far enough")

    monkeypatch.setattr("chitransfer.training.settings.read_dataset", stop)
    path = tmp_path / "config.yaml"
    path.write_text("search:\n  workers: 4\n  pack: 1\n", encoding="utf-8")
    _, out, error = run_command("compare", "--config", path)
    assert "without effect here: search.workers, search.pack; the searches of a comparison" in " ".join(out.split())
    assert "far enough" in error
    path.write_text("search:\n  control: permute\n", encoding="utf-8")
    assert "set it to none" in run_command("compare", "--config", path)[2]
    assert "without effect" not in run_command("compare")[1]
    _, out, _ = run_command("compare", "--set", "training.lambda_sol=0.0")
    assert out.startswith("WARNING: training.lambda_sol is 0")


def test_rows_left_out_are_counted_and_listed(run: Any, said: list[str], tiny_dataset: Dataset, tmp_path: Path) -> None:
    run(KNOWN)
    assert not any("left out" in line for line in said)
    assert not (tmp_path / "rejected_rows.csv").exists()
    assert tiny_dataset.chi is not None
    table = tiny_dataset.chi.table
    rejected = pd.DataFrame({"line": [9], "value": ["CC"], "reason": ["no *"]})
    run(KNOWN, dataset=replace(tiny_dataset, chi=replace(tiny_dataset.chi, table=replace(table, rejected=rejected))))
    assert (
        f"1 of {len(table) + 1} rows of {table.source} cannot be used and is left out; rejected_rows.csv says why"
        in said
    )
    assert pd.read_csv(tmp_path / "rejected_rows.csv")["line"].tolist() == [9]
