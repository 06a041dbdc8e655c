"""SIGKILL at random moments, resumed each time: the same study as one that was never killed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from chitransfer.cli import main
from chitransfer.config import dump_config, load_config

N_KILLS = 10
# What depends on the clock and the machine, not on the search.
MEASURED = ["seconds_stage1", "seconds_stage2", "seconds_total", "peak_memory_mb"]


def start(fork_server: Any, words: list[str]) -> Any:
    process = fork_server.Process(target=main, args=(words,))
    process.start()
    return process


def finish(process: Any) -> int:
    process.join(240)
    assert process.exitcode is not None, "the search hangs"
    return int(process.exitcode)


def tables_of(study: Path) -> dict[str, pd.DataFrame]:
    trials = pd.read_csv(study / "all_trials.csv")
    found = {"all_trials": trials.drop(columns=[name for name in MEASURED if name in trials])}
    for path in sorted(study.glob("trials/*/out_of_fold_*.csv")) + sorted(study.glob("trials/*/stage1_history.csv")):
        found[str(path.relative_to(study))] = pd.read_csv(path)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "settings",
    [{}, {"search.pruner": "median", "search.rungs": [2, 5]}],
    ids=["whole trials", "rungs"],
)
def test_killed_ten_times(
    tiny: dict[str, object], tmp_path: Path, fork_server: Any, settings: dict[str, object]
) -> None:
    overrides = {
        **tiny,
        "search.n_trials": 6,
        "search.n_startup_trials": 3,
        "training.num_epochs_pretrain": 12,
        "training.stage2_epochs": 10,
        **settings,
    }
    paths = {}
    for name in ("whole", "killed"):
        config = load_config(None, {**overrides, "search.study_name": name})
        paths[name] = tmp_path / f"{name}.yaml"
        paths[name].write_text(dump_config(config), encoding="utf-8")
    root = tmp_path / "results" / "hparam_search"

    began = time.monotonic()
    assert finish(start(fork_server, ["search", "--quiet", "--config", str(paths["whole"])])) == 0
    whole_seconds = time.monotonic() - began

    fresh = ["search", "--quiet", "--config", str(paths["killed"])]
    resumed = ["search", "--quiet", "--resume", str(root / "killed" / "study.db")]
    rng = np.random.default_rng(11)
    n_killed = 0
    for _ in range(N_KILLS):
        process = start(fork_server, resumed if (root / "killed" / "study.db").exists() else fresh)
        process.join(rng.uniform(0.05, 0.5) * whole_seconds)
        if process.exitcode is None:
            process.kill()
            n_killed += 1
        process.join(30)
        assert process.exitcode in {-9, 0}
    print(f"killed {n_killed} times")
    assert n_killed >= 3
    assert finish(start(fork_server, resumed if (root / "killed" / "study.db").exists() else fresh)) == 0

    expected, found = tables_of(root / "whole"), tables_of(root / "killed")
    assert len(expected["all_trials"]) == 6
    assert found.keys() == expected.keys()
    for name, frame in expected.items():
        pd.testing.assert_frame_equal(found[name], frame, check_exact=True, obj=name)
