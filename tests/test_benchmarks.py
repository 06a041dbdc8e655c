"""The benchmarks still run, and compare what they say they do."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import cases
from benchmarks.cases import run_case
from benchmarks.measure import as_markdown, write_results
from benchmarks.search_quality import ConventionalRunner, one_temperature, search
from chitransfer.config import load_config
from chitransfer.data.assemble import Dataset
from chitransfer.search.runner import TrialRunner


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_case_is_timed_side_by_side(tmp_path: Path) -> None:
    n_threads = torch.get_num_threads()
    try:
        timings = run_case("stage1", 400, 1)
    finally:
        torch.set_num_threads(n_threads)
    reference, *others = timings
    assert "chitransfer" in [timing.variant for timing in others]
    assert all(timing.wall > 0 and timing.cpu > 0 for timing in timings)
    assert reference.ratio_wall == 1
    assert all(timing.ratio_wall == pytest.approx(reference.wall / timing.wall) for timing in others)
    path = write_results(tmp_path, timings, 1)
    assert json.loads(path.read_text(encoding="utf-8"))
    table = as_markdown(path)
    assert all(timing.variant in table for timing in timings)


def test_processors_of_one_name_have_a_file_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = set()
    for known in ({}, {"avx2": True}, {"avx2": True, "avx512_f": True, "avx512_bf16": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known, raising=False)
        paths.add(write_results(tmp_path, [], 1).name)
    assert len(paths) == 3
    assert sum("avx2" in name for name in paths) == sum("avx512_bf16" in name for name in paths) == 1


@pytest.mark.slow
def test_workers_are_told_apart_by_what_they_cost_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "N_WORKER_RUNS", 1)
    timings = cases.workers(2_000)
    expected = ["1 worker of one thread", "2 workers of one thread", "1 worker of two threads"]
    assert [timing.variant for timing in timings] == expected
    for timing in timings:
        assert 0 < timing.cpu != timing.wall
        assert timing.ratio_cpu == pytest.approx(timings[0].cpu / timing.cpu)


@pytest.mark.parametrize("make", [ConventionalRunner, TrialRunner])
def test_a_search_of_one_trial_and_one_epoch_by_either_stage_1(
    tiny_dataset: Dataset, tiny: dict[str, object], make: type[TrialRunner]
) -> None:
    dataset = one_temperature(tiny_dataset, 30)
    assert len(dataset.stage1) == len(np.unique(dataset.stage1.polymer)) == 30
    config = load_config(None, tiny | {"training.num_epochs_pretrain": 1})
    (value,) = search(make(config, dataset), config, 1)
    assert np.isfinite(value)


@pytest.mark.parametrize("name", ["gpu", "noise_aware", "rungs", "search_quality", "unifac_choices"])
def test_what_documents_name_can_be_started(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 0
    assert "usage" in capsys.readouterr().out
