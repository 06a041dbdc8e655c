"""The most memory a rung takes, of a GPU or of this process.

Called by `search.runner`, `search.pack_workers` and `search.second_pass`.
"""

from __future__ import annotations

import sys

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Let the peak of a GPU be that of what comes now; a process's own cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """The most that this process has had of a GPU since the last reset, or of memory since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_process_memory_mb()


def peak_process_memory_mb() -> float:
    """The largest resident memory of this process so far; NaN on Windows, which does not tell it this way."""
    try:
        import resource
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux kibibytes.
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
