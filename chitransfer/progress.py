"""Types of the progress callbacks of long work; any layer may take them, `console` displays them."""

from __future__ import annotations

from collections.abc import Callable

# Called with (done, total) for a single task.
Progress = Callable[[int, int], None]
# Called with (what, done, total), for work with several tasks.
NamedProgress = Callable[[str, int, int], None]
# Called with a line for the user.
Say = Callable[[str], None]


def name_progress(progress: NamedProgress | None, what: str) -> Progress | None:
    """The (done, total) callback for one task; ``None`` if there is no one to report to."""
    return None if progress is None else lambda done, total: progress(what, done, total)
