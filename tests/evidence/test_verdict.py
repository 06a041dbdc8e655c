"""The sentences of a comparison: they may say no, name what is compared, and call nothing closer in doubt."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from chitransfer.evidence.compare import (
    ROWS,
)
from chitransfer.evidence.verdict import describe_gaps, reach_verdict


@pytest.mark.parametrize(
    ("transfer", "scratch", "expected"),
    [
        ((-0.1, -0.2, -0.05), (0.2, 0.1, 0.3), ("search helped", "Stage 1 helps")),
        ((0.01, -0.1, 0.1), (0.0, -0.1, 0.1), ("did not help beyond doubt", "makes no difference")),
        ((0.2, 0.1, 0.3), (-0.2, -0.3, -0.1), ("made things worse", "Stage 1 hurts")),
    ],
)
def test_verdict_may_say_no(transfer: tuple[float, ...], scratch: tuple[float, ...], expected: tuple[str, str]) -> None:
    lines = [("transfer_best", transfer), ("no_stage1", scratch)]
    differences = pd.DataFrame([line_of_differences(row, "default", *values) for row, values in lines])
    table = pd.DataFrame([{"protocol": "p", "row": "default", "title": ROWS["default"], "exp_mae": 0.3}])
    gaps = pd.DataFrame({"protocol": ["p"], "fold": [0], "raw": [0.8], "corrected": [0.9], "truth": [0.95]})
    text = "\n".join(reach_verdict(table, differences, gaps))
    assert all(words in text for words in expected)


def line_of_differences(row: str, against: str, difference: float, low: float, high: float) -> dict[str, object]:
    """A line of differences.csv about the objective."""
    where = {"protocol": "p", "row": row, "against": against, "metric": "objective"}
    return {**where, "difference": difference, "low": low, "high": high}


def test_more_is_better_of_a_score_and_less_of_an_error() -> None:
    lines = [("transfer_best", (0.1, 0.05, 0.2)), ("no_stage1", (0.2, 0.1, 0.3))]
    differences = pd.DataFrame([line_of_differences(row, "default", *values) for row, values in lines])
    table = pd.DataFrame(
        {"protocol": "p", "row": ["default", "ridge"], "exp_mae": [0.3, 0.2], "sol_f1": [0.9, 0.8]}
    ).assign(title=lambda frame: frame["row"].map(ROWS))
    gaps = pd.DataFrame(columns=["protocol", "fold", "raw", "corrected", "truth"])
    text = "\n".join(reach_verdict(table, differences.assign(metric="sol_f1"), gaps))
    assert "the transfer-aware search helped (F1" in text
    assert "Stage 1 hurts" in text
    assert f"best χ MAE is 0.200, by {ROWS['ridge']} (default configuration 0.300)" in text
    assert f"best F1 is 0.900, by {ROWS['default']}" in text


def test_verdict_names_what_a_row_is_compared_with() -> None:
    differences = pd.DataFrame(
        [
            line_of_differences("default_full", "default", -0.2, -0.3, -0.1),
            line_of_differences("transfer_full", "default_full", 0.01, -0.1, 0.1),
            line_of_differences("transfer_best", "default", 0.0, 0.0, 0.0),
        ]
    )
    table = pd.DataFrame(
        [{"protocol": "p", "row": row, "title": ROWS[row], "exp_mae": 0.3} for row in ("default", "default_full")]
    )
    gaps = pd.DataFrame(columns=["protocol", "fold", "raw", "corrected", "truth"])
    chosen, first, second = reach_verdict(table, differences, gaps)[:3]
    assert chosen.startswith("p: the transfer-aware search chose the default configuration in every outer fold")
    assert "against the default configuration -0.2000" in first
    assert "against the default configuration, fine-tuned in full +0.0100" in second


@pytest.mark.parametrize(
    ("raw", "corrected", "expected"),
    [
        ([0.0, 0.1, 0.2, -0.1, 0.3], [0.01, 0.09, 0.21, -0.1, 0.28], "cannot be told apart from the raw best value"),
        ([-0.3, -0.2, -0.25, -0.3, -0.2], [0.01, 0.0, 0.02, 0.0, 0.01], "is closer to the outer truth than"),
        ([0.01, 0.0, 0.02, 0.0, 0.01], [0.3, 0.2, 0.25, 0.3, 0.2], "is farther from the outer truth than"),
        ([-0.3], [0.0], "cannot be told apart"),
    ],
)
def test_an_estimate_is_closer_only_beyond_doubt(raw: list[float], corrected: list[float], expected: str) -> None:
    gaps = pd.DataFrame({"protocol": "p", "raw": raw, "corrected": corrected, "truth": 0.0})
    (sentence,) = describe_gaps(gaps)
    assert expected in sentence
    assert f"mean absolute gap {np.mean(np.abs(corrected)):.4f} against {np.mean(np.abs(raw)):.4f}" in sentence
    assert f"off by {np.mean(corrected):+.4f}, the raw best value by {np.mean(raw):+.4f}" in sentence
