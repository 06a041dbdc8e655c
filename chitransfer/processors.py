"""The number of processors available to this process.

Used by the commands, `training.settings` and `search.clusters` where the user gives no number.
"""

from __future__ import annotations


def count_processors() -> int:
    """Processors this process may use, at least 1: a batch job or container may have fewer than the machine.

    Takes CPU affinity, a Linux control group's bandwidth limit and ``LOKY_MAX_CPU_COUNT`` into account.
    """
    # Imported here, so that a command's --help does not wait for it.
    from joblib import cpu_count

    return int(cpu_count())
