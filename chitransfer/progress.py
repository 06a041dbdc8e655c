"""What long work calls as it goes on; every layer may take it, `console` shows it."""

from __future__ import annotations

from collections.abc import Callable

# Called with (done, total) of one piece of work.
Progress = Callable[[int, int], None]
# Called with (what, done, total), for work of several pieces.
NamedProgress = Callable[[str, int, int], None]
# Called with a line for the user.
Say = Callable[[str], None]


def name_progress(progress: NamedProgress | None, what: str) -> Progress | None:
    """What to call with (done, total) of one piece of work; ``None`` where nobody is told."""
    return None if progress is None else lambda done, total: progress(what, done, total)
