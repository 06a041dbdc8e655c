"""Numbers with the word they count, for sentences to users; every layer may call it."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN_LINES = 5


def say_count(number: int, noun: str) -> str:
    """``1 row``, ``2 rows``; nouns whose plural ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def first_lines(lines: Sequence[str], what: str) -> list[str]:
    """Lines that each tell of one `what`: of many the first few, and how many more there are.

    >>> first_lines([f"trial {number} failed" for number in range(9)], "trial")[-1]
    '… and 4 more trials'
    """
    n_more = len(lines) - SHOWN_LINES
    return [*lines[:SHOWN_LINES], *([f"… and {say_count(n_more, f'more {what}')}"] if n_more > 0 else [])]
