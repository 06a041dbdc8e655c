"""Running out of memory: how PyTorch and Python report it, and what a user can do about it.

Used by `search.runner`, by the commands that train, and by `cli` for all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from chitransfer.errors import TrainingError

# PyTorch has no specific exception for CPU memory, nor for allocations by CUDA's libraries.
_WORDS = ("DefaultCPUAllocator", "bad_alloc", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: of the machine, of the process's limit or of a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def describe_shortage(error: BaseException, remedy: str = "close other programs") -> str:
    """That memory ran out, the first line of the original message, and the remedy, in one sentence."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"memory ran out ({said}); allow the process more of it (ulimit -v, the job's limit), or {remedy}"


@contextmanager
def explain_shortage(remedy: str) -> Iterator[None]:
    """Turn running out of memory into a TrainingError that names the remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(describe_shortage(error, remedy)) from error
