"""What Dask runs in every worker process that `clusters.LocalWorkers` starts, restarted ones included."""

from __future__ import annotations

import signal


def dask_setup(worker: object) -> None:
    """Be deaf to Ctrl-C, which a terminal sends to its every process: the driver hears it and ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
