"""A long search under fire: workers killed all the time, the driver killed ten times, every trial finished once.

`CHITRANSFER_SOAK_TRIALS=1000` gives the full size; the figures are written to `soak.json` in the current folder then.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from pathlib import Path

import psutil
import pytest
from searching import SHORTEST, check_complete, go_on, kill, read_trials
from test_worker_faults import dask_workers_of

N_TRIALS = int(os.environ.get("CHITRANSFER_SOAK_TRIALS", "40"))
N_DRIVER_KILLS = 10 if N_TRIALS >= 1000 else 2
SECONDS_BETWEEN_WORKER_KILLS = 20.0 if N_TRIALS >= 1000 else 8.0


class Meter:
    """In the driver's process: a line a trial with the time spent asking and telling, and the memory held."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        from chitransfer.search import driver

        spent = {"seconds": 0.0}

        def timed(function):  # type: ignore[no-untyped-def]
            def call(*arguments, **more):  # type: ignore[no-untyped-def]
                started = time.perf_counter()
                try:
                    return function(*arguments, **more)
                finally:
                    spent["seconds"] += time.perf_counter() - started

            return call

        tell = timed(driver.SearchDriver._tell)

        def tell_and_note(self, trial, *arguments):  # type: ignore[no-untyped-def]
            tell(self, trial, *arguments)
            line = {
                "number": trial.number,
                "seconds": spent["seconds"],
                "pid": os.getpid(),
                "rss_mb": psutil.Process().memory_info().rss / 2**20,
            }
            spent["seconds"] = 0.0
            with path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")

        path = self.path
        driver.SearchDriver._ask = timed(driver.SearchDriver._ask)  # type: ignore[method-assign]
        driver.suggest_params = timed(driver.suggest_params)
        driver.SearchDriver._tell = tell_and_note  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_soak(tiny: dict[str, object], tmp_path: Path) -> None:
    overrides: dict[str, object] = {
        **tiny,
        **SHORTEST,
        "search.study_name": "soak",
        "search.n_trials": N_TRIALS,
        "search.workers": 4,
        "search.max_worker_deaths": 10,
        "training.num_epochs_pretrain": 1,
        "paths.results_dir": str(tmp_path / "results"),
    }
    folder = tmp_path / "results" / "hparam_search" / "soak"
    meter = Meter(tmp_path / "meter.jsonl")
    rng = random.Random(7)
    places = sorted(rng.sample(range(3, N_TRIALS - 2), N_DRIVER_KILLS))
    started = next_kill = time.monotonic()
    n_worker_kills, n_driver_kills = 0, 0
    process = go_on(overrides, folder, meter)
    while process.is_alive():
        time.sleep(0.25)
        if time.monotonic() - next_kill > SECONDS_BETWEEN_WORKER_KILLS:
            next_kill = time.monotonic()
            workers = dask_workers_of(process.pid or 0)
            if workers:
                rng.choice(workers).kill()
                n_worker_kills += 1
        if places and meter.path.exists() and len(meter.path.read_text().splitlines()) >= places[0]:
            places.pop(0)
            kill(process)
            n_driver_kills += 1
            process = go_on(overrides, folder, meter)
    assert process.exitcode == 0
    seconds = time.monotonic() - started
    check_complete(folder, N_TRIALS)
    lines = [json.loads(line) for line in meter.path.read_text().splitlines()]
    assert n_driver_kills == N_DRIVER_KILLS
    # A trial whose driver died between telling and noting has no line; none may have two.
    numbers = [line["number"] for line in lines]
    assert len(set(numbers)) == len(numbers)
    last = [line for line in lines if line["pid"] == lines[-1]["pid"]]
    # Trials are asked for in bursts, so only a mean says what one costs; at the end nothing more is asked.
    early = statistics.fmean(line["seconds"] for line in lines[5:25])
    late = statistics.fmean(line["seconds"] for line in lines[-24:-4])
    figures = {
        "trials": len(read_trials(folder / "study.db")),
        "workers_killed": n_worker_kills,
        "drivers_killed": n_driver_kills,
        "seconds": round(seconds, 1),
        "ask_and_tell_seconds_at_10": round(early, 4),
        f"ask_and_tell_seconds_at_{N_TRIALS}": round(late, 4),
        "last_driver_trials": len(last),
        "last_driver_rss_mb_first_and_last": [round(last[0]["rss_mb"], 1), round(last[-1]["rss_mb"], 1)],
        "largest_driver_rss_mb": round(max(line["rss_mb"] for line in lines), 1),
    }
    print(json.dumps(figures, indent=2))
    if N_TRIALS >= 1000:
        Path("soak.json").write_text(json.dumps(figures, indent=2) + "\n")
    assert last[-1]["rss_mb"] < last[0]["rss_mb"] * 1.3 + 20
