"""Numbers with the noun they count, for messages to users; any layer may call it."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN_LINES = 5


def say_count(number: int, noun: str) -> str:
    """``1 row``, ``2 rows``; for nouns whose plural ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def first_lines(lines: Sequence[str], what: str) -> list[str]:
    """The first few of many lines, each about one `what`, and how many more there are.

    >>> first_lines([f"trial {number} failed" for number in range(9)], "trial")[-1]
    '… and 4 more trials'
    """
    n_more = len(lines) - SHOWN_LINES
    return [*lines[:SHOWN_LINES], *([f"… and {say_count(n_more, f'more {what}')}"] if n_more > 0 else [])]
