"""What Dask runs in every worker process that `clusters.LocalWorkers` starts, restarted ones included."""

from __future__ import annotations

import signal

from chitransfer.interrupts import hangup_signals


def dask_setup(worker: object) -> None:
    """Be deaf to what a terminal sends to its every process: the driver hears it and ends the workers."""
    for number in (signal.SIGINT, *hangup_signals()):
        signal.signal(number, signal.SIG_IGN)
