"""How many processors there are for this process.

Used by the commands, `training.settings` and `search.clusters` wherever the user gives no number.
"""

from __future__ import annotations


def count_processors() -> int:
    """Processors this process may use, at least 1: a batch job or container may have fewer than the machine.

    CPU affinity, the bandwidth limit of a Linux control group and ``LOKY_MAX_CPU_COUNT`` count.
    """
    # Imported when asked for: a command's --help must not wait for it.
    from joblib import cpu_count

    return int(cpu_count())
