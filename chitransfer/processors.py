"""The processors available to this process: how many, how many threads use them, and whether they are free.

Used by the commands, `training` and `search` wherever the user gives no number, and after every epoch.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

THREADS_OF_THIS_PROCESS = Path("/proc/self/task")
# How much of training is judged at a time; counting takes about a millisecond.
WINDOW_SECONDS = 30.0
# Threads waiting for a processor on average: about 0.7 beside one other busy process, 0.01 on an idle machine.
WAITING_THREADS = 0.3
logger = logging.getLogger("chitransfer")


def count_processors() -> int:
    """Processors this process may use, at least 1: a batch job or container may have fewer than the machine.

    Takes CPU affinity, a Linux control group's bandwidth limit and ``LOKY_MAX_CPU_COUNT`` into account.
    """
    # Imported here, so that a command's --help does not wait for it.
    from joblib import cpu_count

    return int(cpu_count())


def use_threads(n_threads: int) -> None:
    """Set PyTorch's number of threads in this process.

    Parameters
    ----------
    n_threads
        `training.num_threads`; 0: as many as PyTorch takes, but at most `count_processors`. PyTorch does not know of a
        container's limit, and threads beyond it wait for each other.
    """
    import torch

    current = torch.get_num_threads()
    wanted = n_threads or min(current, count_processors())
    # Setting the same number again would change how MKL chooses its own.
    if n_threads or wanted != current:
        torch.set_num_threads(wanted)


def seconds_waited() -> float:
    """Time in seconds that this process's living threads were ready to run but had no processor; 0 where unknown.

    From the second number of Linux's ``/proc/<pid>/task/<tid>/schedstat`` (nanoseconds, proc(5)).
    """
    waited = 0
    for thread in THREADS_OF_THIS_PROCESS.glob("*/schedstat"):
        try:
            waited += int(thread.read_text(encoding="ascii").split()[1])
        except (OSError, IndexError, ValueError):
            # The thread has ended, or this kernel does not count.
            continue
    return waited / 1e9


class ProcessorWatch:
    """Warns once if training waits for processors: threads that wait for each other then cost more than they bring."""

    def __init__(self) -> None:
        # When the current window began, and what had been waited until then; both in seconds.
        self._began: tuple[float, float] | None = None
        self.has_warned = False

    def look(self) -> None:
        """Call after every epoch."""
        now = time.monotonic()
        if self.has_warned or (self._began is not None and now - self._began[0] < WINDOW_SECONDS):
            return
        waited = seconds_waited()
        if self._began is not None:
            began, before = self._began
            self._judge((waited - before) / (now - began))
        self._began = now, waited

    def _judge(self, n_waiting: float) -> None:
        """Warn if on average at least `WAITING_THREADS` of several threads waited."""
        import torch

        n_threads = torch.get_num_threads()
        if n_threads == 1 or n_waiting < WAITING_THREADS:
            return
        self.has_warned = True
        logger.warning(
            "training waits for processors: other work, or a limit of this job, leaves fewer than its %d threads need, "
            "and each of them waits for the slowest. --set training.num_threads=%d, also when an interrupted run "
            "continues, is likely to be faster",
            n_threads,
            max(1, int(n_threads - n_waiting)),
        )


processor_watch = ProcessorWatch()
