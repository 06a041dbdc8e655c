"""Run by Dask in every worker process that `clusters.LocalWorkers` starts, restarted ones included."""

from __future__ import annotations

import signal

from chitransfer.interrupts import hangup_signals


def dask_setup(worker: object) -> None:
    """Ignore the signals a terminal sends to all its processes: the driver handles them and stops the workers."""
    for number in (signal.SIGINT, *hangup_signals()):
        signal.signal(number, signal.SIG_IGN)
