"""Temperatures in kelvin: read them from cells, check them, and format them for names.

Called by `data.tables`, `data.compute`, `data.build`, `predict` and `predict_table`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chitransfer.data.csv_text import read_number
from chitransfer.errors import DataError

DEFAULT_TEMPERATURE_K = 298.15
COLDEST_K, HOTTEST_K = 150.0, 1000.0
ABSOLUTE_ZERO_C = -273.15


def read_kelvin(text: str, what: str = "temp") -> float:
    """Read a temperature, 150 … 1000 K, from a cell; raises a ValueError that calls it `what` if there is none."""
    value = read_number(text, what)
    if looks_like_celsius(value):
        raise ValueError(f"{what} must be in kelvin; below {COLDEST_K:g} it looks like °C: add 273.15")
    if value < COLDEST_K:
        raise ValueError(f"{what} is below absolute zero, in °C, too")
    if value > HOTTEST_K:
        raise ValueError(f"{what} must be in kelvin and at most {HOTTEST_K:g}")
    return value


def looks_like_celsius(value: float) -> bool:
    """Whether a number is too cold for a polymer in kelvin but above absolute zero in °C."""
    return ABSOLUTE_ZERO_C < value < COLDEST_K


def check_temperatures(temperatures: Sequence[float] | np.ndarray) -> np.ndarray:
    """Temperatures in kelvin as an array (n,).

    Raises
    ------
    DataError
        The list is empty, or a temperature lies outside 150 … 1000 K.
    """
    if len(temperatures) == 0:
        raise DataError("give at least one temperature, in kelvin")
    values = np.array(temperatures, dtype=np.float64)
    for value in values:
        if not COLDEST_K <= value <= HOTTEST_K:
            hint = "; it looks like °C: add 273.15" if looks_like_celsius(value) else ""
            raise DataError(
                f"temperatures must be in kelvin, {COLDEST_K:g} to {HOTTEST_K:g} K, got {name_temperature(value)}{hint}"
            )
    return values


def name_temperature(kelvin: float) -> str:
    """A temperature as used in column names and messages, without the K: 298.15, 300; distinct values differ."""
    return f"{kelvin:.10g}"
