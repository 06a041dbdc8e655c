"""Describe the unusable rows of a table: one by one, or grouped by reason if many share it.

Called by `data.tables`, `data.monomers` and `data.solvents`.
"""

from __future__ import annotations

from collections.abc import Sequence

SHOWN_ROWS = 20
# A reason shared by more rows than this is given once for all of them.
_FEW = 5
# Longer values are cut, so that the reason after them stays visible.
SHOWN_CHARACTERS = 200


def shorten(value: str) -> str:
    """Shorten a long table value to its beginning, for use in a message."""
    return value if len(value) <= SHOWN_CHARACTERS else f"{value[:SHOWN_CHARACTERS]}…"


def describe_rejected(name: str, rejected: Sequence[tuple[int, str, str]], n_rows: int) -> str:
    """Describe rejected rows (file line, value, reason) of a table of `n_rows`: one line per row or per reason."""
    of_reason: dict[str, list[tuple[int, str]]] = {}
    for line, value, reason in rejected:
        of_reason.setdefault(reason, []).append((line, value))
    told: list[tuple[int, str]] = []
    for line, value, reason in rejected:
        rows = of_reason[reason]
        if len(rows) <= _FEW:
            told.append((1, f"  line {line}: {shorten(value)}: {reason}"))
        elif line == rows[0][0]:
            lines = ", ".join(str(line) for line, _ in rows[:_FEW])
            values = list(dict.fromkeys(shorten(value) for _, value in rows))
            shown = ", ".join(values[:_FEW]) + (", …" if len(values) > _FEW else "")
            told.append((len(rows), f"  {len(rows)} rows (lines {lines}, …): {shown}: {reason}"))
    shown_lines = [text for _, text in told[:SHOWN_ROWS]]
    n_more = sum(count for count, _ in told[SHOWN_ROWS:])
    shown_lines += [f"  … and {n_more} more"] if n_more else []
    return f"{name}: {len(rejected)} of {n_rows} rows cannot be used\n" + "\n".join(shown_lines)
