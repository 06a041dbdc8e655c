"""Numbers with the word they count, for sentences to users; every layer may call it."""

from __future__ import annotations


def say_count(number: int, noun: str) -> str:
    """``1 row``, ``2 rows``; nouns whose plural ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
