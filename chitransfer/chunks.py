"""Long lists of structures processed in chunks: in several processes, with progress, interruptible by Ctrl-C.

Called by `chemistry.identities`, `chemistry.features`, `data.compute` and `data.build`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from joblib import Parallel, delayed

from chitransfer.interrupts import restore_interrupts
from chitransfer.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")


def split_in_chunks(items: Sequence[Item], size: int) -> list[list[Item]]:
    """The items in lists of `size`; the last may be shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def call_each(work: Callable[..., Result], arguments: Sequence[tuple[Any, ...]], n_jobs: int) -> Iterator[Result]:
    """Results of `work` for each tuple of arguments, in order; a single call does not start a process."""
    tasks = (delayed(work)(*words) for words in arguments)
    for result in Parallel(n_jobs=n_jobs if len(arguments) > 1 else 1, return_as="generator")(tasks):
        # If this process did the work itself, RDKit may have replaced the handler.
        restore_interrupts()
        yield result


def map_in_chunks(
    work: Callable[[list[Item]], list[Result]],
    items: Sequence[Item],
    size: int,
    n_jobs: int,
    progress: Progress | None,
) -> list[Result]:
    """Results of `work`, which maps a list of items to a list of results, (n_items,); progress as (done, total)."""
    found: list[Result] = []
    for part in call_each(work, [(chunk,) for chunk in split_in_chunks(items, size)], n_jobs):
        found.extend(part)
        if progress is not None:
            progress(len(found), len(items))
    return found
