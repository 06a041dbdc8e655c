"""Memory that runs out: how PyTorch and Python say it, and what a user can do about it.

Used by `search.runner`, by the commands that train, and by `cli` for all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from chitransfer.errors import TrainingError

# PyTorch has no exception of its own for the memory of the CPU, nor for what CUDA's libraries allocate.
_WORDS = ("DefaultCPUAllocator", "bad_alloc", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the machine, of the process's limit or of a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def describe_shortage(error: BaseException, remedy: str = "close other programs") -> str:
    """That memory ran out, the first line of how it was said, and the remedy, in one sentence."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"memory ran out ({said}); allow the process more of it (ulimit -v, the job's limit), or {remedy}"


@contextmanager
def explain_shortage(remedy: str) -> Iterator[None]:
    """Turn memory that runs out into a TrainingError that names the remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(describe_shortage(error, remedy)) from error
