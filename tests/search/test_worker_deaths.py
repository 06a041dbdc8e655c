"""Which deaths of workers count against a rung; the deaths themselves are in tests/reliability."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from distributed.scheduler import KilledWorker

from chitransfer.search.dask_workers import DaskWorkers
from chitransfer.search.objective import RungTask


class Killed:
    """Dask's future of a rung whose worker died."""

    status = "error"

    def exception(self, timeout: float) -> KilledWorker:
        return KilledWorker("rung", None, 0)


def die(monkeypatch: pytest.MonkeyPatch, begins: list[bool]) -> tuple[str | None, int]:
    """Send a rung that may lose three workers to workers that all die.

    `begins` says of each whether it has begun the rung by then. Returns the failure of the rung, if it has ended, and
    how often it was sent.
    """
    remaining = list(begins)

    def send(self: Any, flight: Any) -> None:
        if remaining:
            flight.dask, flight.started = Killed(), time.monotonic() if remaining.pop(0) else None
        else:
            flight.dask = SimpleNamespace(status="pending")

    monkeypatch.setattr(DaskWorkers, "_send", send)
    workers = object.__new__(DaskWorkers)
    client = SimpleNamespace(status="running")
    vars(workers).update(_flights={}, _client=client, _max_deaths=3, _n_workers=1, _counted=time.monotonic())
    future = workers.submit(RungTask(1, {}, 4, None))
    for _ in begins:
        workers.wait([future], 0.0)
    return future.result().failure if future.done() else None, len(begins) - len(remaining)


def test_workers_that_die_of_a_rung_count(monkeypatch: pytest.MonkeyPatch) -> None:
    failure, n_sent = die(monkeypatch, [True] * 5)
    assert n_sent == 3
    assert "its worker died 3 times before Stage 1 epoch 4" in str(failure)


def test_workers_that_die_before_they_begin_it_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a machine with many of them goes down: each gets the rung of one that died a moment before."""
    assert die(monkeypatch, [True, False, False, False, True, False]) == (None, 6)


def test_a_rung_that_kills_every_worker_before_it_begins_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    failure, n_sent = die(monkeypatch, [False] * 50)
    assert n_sent == 30
    assert "its worker died 30 times" in str(failure)
