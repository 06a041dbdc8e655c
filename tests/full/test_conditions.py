"""Conditions of a screening that mean nothing are refused before anything is predicted."""

from __future__ import annotations

from typing import Any

import pytest

from chitransfer.errors import ConfigError
from chitransfer.screen import Conditions


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"certain": True}, "--certain is about the interval of χ"),
        ({"certain": True, "min_p_soluble": 0.5}, "add --max-chi or --min-chi"),
        ({"max_chi": float("nan")}, "--max-chi nan: is no number"),
        ({"min_chi": float("inf")}, "--min-chi inf: is no number"),
        ({"min_p_soluble": float("nan")}, "--min-p-soluble nan"),
    ],
)
def test_conditions_without_a_meaning_are_refused(words: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Conditions(**words)
