"""Peak memory of a rung, on a GPU or in this process.

Called by `search.runner`, `search.pack_workers` and `search.second_pass`.
"""

from __future__ import annotations

import sys

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Reset a GPU's peak memory; that of a process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """Peak GPU memory of this process since the last reset, or its peak memory since it started, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_process_memory_mb()


def peak_process_memory_mb() -> float:
    """The largest resident memory of this process so far; NaN on Windows, which does not report it this way."""
    try:
        import resource
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux kibibytes.
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
