"""The sentences of a comparison: they may say no, name what is compared, and call nothing closer in doubt."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from chitransfer.evidence.compare import ROWS
from chitransfer.evidence.verdict import describe_gaps, describe_scores, reach_verdict


@pytest.mark.parametrize(
    ("transfer", "scratch", "expected"),
    [
        ((-0.1, -0.2, -0.05), (0.2, 0.1, 0.3), ("search helped", "Stage 1 helps")),
        ((0.01, -0.1, 0.1), (0.0, -0.1, 0.1), ("did not help significantly", "these data show no effect")),
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


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ((0.2, 0.1, 0.3), "Stage 1 helps (without it the objective changes by +0.2000, +0.1000 to +0.3000); better "
            "without it: ROC-AUC +0.1000, +0.0500 to +0.2000"),
        ((0.0, -0.1, 0.1), "; better without it: ROC-AUC +0.1000, +0.0500 to +0.2000; worse without it: "
            "recall -0.1000, -0.2000 to -0.0500"),
        ((-0.2, -0.3, -0.1), "-0.3000 to -0.1000); worse without it: recall -0.1000, -0.2000 to -0.0500"),
    ],
)  # fmt: skip
def test_scores_that_speak_against_the_verdict_on_stage_1_are_told(
    objective: tuple[float, float, float], expected: str
) -> None:
    lines = [
        line_of_differences("no_stage1", "default", *objective),
        line_of_differences("no_stage1", "default", 0.1, 0.05, 0.2) | {"metric": "sol_auc"},
        line_of_differences("no_stage1", "default", -0.1, -0.2, -0.05) | {"metric": "sol_recall"},
        line_of_differences("no_stage1", "default", -0.1, -0.2, 0.05) | {"metric": "exp_mae"},
    ]
    table = pd.DataFrame([{"protocol": "p", "row": "default", "title": ROWS["default"], "exp_mae": 0.3}])
    gaps = pd.DataFrame(columns=["protocol", "fold", "raw", "corrected", "truth"])
    said = reach_verdict(table, pd.DataFrame(lines), gaps)[0]
    assert said.endswith(expected)


def test_a_random_search_that_is_the_transfer_search_is_called_so() -> None:
    table = pd.DataFrame(
        {"protocol": "p", "row": ["default", "transfer_best", "random_best"], "exp_mae": [0.3, 0.2, 0.2]}
    ).assign(title=lambda frame: frame["row"].map(ROWS), sol_auc=[0.5, np.nan, np.nan])
    differences = pd.DataFrame(
        [line_of_differences(row, "default", -0.1, -0.2, -0.05) for row in ("transfer_best", "random_best")]
    )
    gaps = pd.DataFrame(columns=["protocol", "fold", "raw", "corrected", "truth"])
    assert "drawn at random, so short searches are identical" in reach_verdict(table, differences, gaps)[1]
    other = table.assign(exp_mae=[0.3, 0.2, 0.21])
    assert "random search helped" in reach_verdict(other, differences, gaps)[1]


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
    assert "(objective minus that of the default configuration: -0.2000, " in first
    assert "minus that of the default configuration, fine-tuned in full: +0.0100" in second


@pytest.mark.parametrize(
    ("raw", "corrected", "expected"),
    [
        ([0.0, 0.1, 0.2, -0.1, 0.3], [0.01, 0.09, 0.21, -0.1, 0.28], "is neither closer to nor farther"),
        ([-0.3, -0.2, -0.25, -0.3, -0.2], [0.01, 0.0, 0.02, 0.0, 0.01], "is closer to the test scores"),
        ([0.01, 0.0, 0.02, 0.0, 0.01], [0.3, 0.2, 0.25, 0.3, 0.2], "is farther from the test scores"),
        ([-0.3], [0.0], "is neither closer to nor farther from"),
    ],
)
def test_an_estimate_is_closer_only_beyond_doubt(raw: list[float], corrected: list[float], expected: str) -> None:
    truth = 0.9 + 0.1 * np.arange(len(raw))
    gaps = pd.DataFrame({"protocol": "p", "raw": truth + raw, "corrected": truth + corrected, "truth": truth})
    # Another protocol, and an outer fold whose truth is not known, have no part in it.
    unknown = pd.DataFrame({"protocol": ["p", "q"], "raw": 9.0, "corrected": 9.0, "truth": np.nan})
    (sentence,) = describe_gaps(pd.concat([gaps, unknown]))
    assert f"over {len(raw)} outer fold{'s' if len(raw) > 1 else ''};" in sentence
    assert expected in sentence
    assert f"mean absolute gap {np.mean(np.abs(corrected)):.4f} against {np.mean(np.abs(raw)):.4f}" in sentence
    assert f"off by {np.mean(corrected):+.4f}, the raw best value by {np.mean(raw):+.4f}" in sentence


def test_scores_are_told_as_a_table_of_what_was_predicted() -> None:
    rows = [("default", 0.9, 0.31, np.nan), ("ridge", np.nan, 0.4, np.nan), ("default", 1.1, 0.5, np.nan)]
    table = pd.DataFrame(rows, columns=["row", "objective", "exp_mae", "sol_auc"]).assign(
        protocol=["known", "known", "new"], title=lambda frame: frame["row"].map(ROWS)
    )
    lines = [line.split() for line in describe_scores(table)]
    assert lines[0] == ["known,", "test", "polymers", "objective", "↓", "χ", "MAE", "↓"], "nothing has a ROC-AUC"
    assert lines[1][-2:] == ["0.900", "0.310"]
    assert lines[2][-2:] == ["–", "0.400"]
    assert [line[-2:] for line in lines[5:6]] == [["1.100", "0.500"]]
    # Columns stand under their names.
    assert len({len(line) for line in describe_scores(table) if line}) == 1
