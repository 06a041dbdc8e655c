"""Temperatures in kelvin: the limits themselves are allowed, and nothing beyond them."""

from __future__ import annotations

import numpy as np
import pytest

from chitransfer.data.temperatures import check_temperatures, name_temperature, read_kelvin
from chitransfer.errors import DataError


@pytest.mark.parametrize("kelvin", [150.0, 298.15, 1000.0])
def test_the_limits_belong_to_the_range(kelvin: float) -> None:
    assert read_kelvin(str(kelvin)) == kelvin
    assert check_temperatures([kelvin]).tolist() == [kelvin]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("149.9", "below 150 it looks like °C: add 273.15"),
        ("-273", "below 150 it looks like °C: add 273.15"),
        ("-273.15", "below absolute zero, in °C, too"),
        ("1000.1", "at most 1000"),
        ("inf", "a finite number"),
    ],
)
def test_what_lies_beyond_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_kelvin(text)
    with pytest.raises(DataError, match="must be in kelvin, 150 to 1000 K, got"):
        check_temperatures(np.array([300.0, float(text)]))


def test_temperatures_that_differ_have_names_that_differ() -> None:
    assert [name_temperature(kelvin) for kelvin in (298.15, 300.0, 298.15001)] == ["298.15", "300", "298.15001"]
