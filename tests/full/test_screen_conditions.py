"""Conditions of screening and its order, on made-up predictions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from chitransfer.errors import ConfigError, DataError
from chitransfer.predict import IDENTITY
from chitransfer.screen import Conditions, screen_candidates

RunCommand = Callable[..., tuple[int, str, str]]

MADE_UP = pd.DataFrame(
    {
        "SMILES": ["*CC*", "*CCC*", "*CCCC*", "*CCO*", "*CCCO*"],
        IDENTITY: ["*CC*", "*CCC*", "*CCCC*", "*CCO*", ""],
        "solvent": "O",
        "chi": [0.5, 0.4, 0.9, 0.3, np.nan],
        "chi_low": [0.3, 0.3, 0.6, 0.1, np.nan],
        "chi_high": [0.7, 0.5, 1.2, 0.5, np.nan],
        "A_K": [1.0, 2.0, 3.0, 4.0, np.nan],
        "B": 0.0,
        "p_soluble": [0.8, 0.8, 0.9, 0.6, np.nan],
        "similarity": 1.0,
        "nearest_polymer": "*CC*",
        "in_domain": pd.array([True, True, True, False, None], dtype="boolean"),
        "chi_in_domain": pd.array([False, True, True, False, None], dtype="boolean"),
        "problem": ["", "", "", "", "no repeat unit"],
    }
)


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        (Conditions(), [0, 1, 2, 3]),
        (Conditions(max_chi=0.5), [0, 1, 3]),
        (Conditions(max_chi=0.5, certain=True), [1, 3]),
        (Conditions(min_chi=0.4), [0, 1, 2]),
        (Conditions(min_chi=0.4, certain=True), [2]),
        (Conditions(min_p_soluble=0.8), [0, 1, 2]),
        (Conditions(in_domain=True), [0, 1, 2]),
        (Conditions(in_domain=True, min_chi=0.0), [1, 2]),
        (Conditions(in_domain=True, max_chi=9.0), [1, 2]),
    ],
)
def test_conditions_hold_as_written(conditions: Conditions, kept: list[int]) -> None:
    assert conditions.select(MADE_UP, "p_soluble").index.tolist() == kept
    if conditions.in_domain:
        assert conditions.select(MADE_UP, "chi").index.tolist() == [1, 2]
        # As of a model of before there was a domain of χ.
        assert conditions.select(MADE_UP.drop(columns="chi_in_domain"), "chi").index.tolist() == [0, 1, 2]


def test_a_condition_on_the_whole_interval_is_told_as_such() -> None:
    bounds = {"max_chi": 0.5, "min_chi": 0.25}
    for certain, option, holding in ((False, "", [3, 4]), (True, " --certain", [2, 3])):
        holds = Conditions(**bounds, certain=certain).hold(MADE_UP, "p_soluble")
        assert list(holds) == [f"--max-chi 0.5{option}", f"--min-chi 0.25{option}"]
        assert [int(held.sum()) for held in holds.values()] == holding


@pytest.mark.parametrize(
    ("conditions", "rank_by"),
    [(Conditions(in_domain=True), "chi"), (Conditions(in_domain=True, max_chi=0.5), "p_soluble")],
)
def test_the_domain_of_chi_is_not_asked_of_a_model_without_measured_chi(conditions: Conditions, rank_by: Any) -> None:
    computed = MADE_UP.drop(columns=["chi_low", "chi_high", "chi_in_domain"])

    def choose(asked: Conditions, by: Any) -> Any:
        parts = iter([([[smiles] for smiles in computed["SMILES"]], computed)])
        return screen_candidates(parts, ["SMILES"], asked, rank_by=by, top=9)

    with pytest.raises(DataError, match=r"no measured χ, so the errors of its χ are unknown; leave --in-domain"):
        choose(conditions, rank_by)
    assert choose(Conditions(in_domain=True), "p_soluble").n_kept == 3


def test_a_whole_interval_is_not_asked_of_a_model_without_one() -> None:
    computed = MADE_UP.drop(columns=["chi_low", "chi_high", "chi_in_domain"])
    for asked, is_refused in ((Conditions(max_chi=9.0, certain=True), True), (Conditions(max_chi=9.0), False)):
        parts = iter([([[smiles] for smiles in computed["SMILES"]], computed)])
        with pytest.raises(DataError, match="no χ interval") if is_refused else contextlib.nullcontext():
            assert screen_candidates(parts, ["SMILES"], asked, rank_by="chi", top=9).n_kept == 4


def test_the_other_prediction_breaks_ties() -> None:
    tied = MADE_UP.assign(chi=[0.5, 0.4, 0.9, 0.4, np.nan])
    for rank_by, expected in (("p_soluble", [3, 2, 1, 4]), ("chi", [2, 4, 1, 3])):
        parts = iter([([[smiles] for smiles in tied["SMILES"]], tied)])
        best = screen_candidates(parts, ["SMILES"], Conditions(), rank_by=rank_by, top=9).best
        assert best["input_row"].tolist() == expected


def test_equal_predictions_keep_the_order_of_the_input() -> None:
    equal = MADE_UP.assign(chi=0.5, p_soluble=0.5)
    ways: list[tuple[Any, pd.DataFrame]] = [("p_soluble", equal), ("chi", equal)]
    for rank_by, frame in [*ways, ("chi", equal.drop(columns="p_soluble"))]:
        parts = iter([([[smiles] for smiles in frame["SMILES"]], frame)])
        found = screen_candidates(parts, ["SMILES"], Conditions(), rank_by=rank_by, top=9)
        assert found.best["input_row"].tolist() == found.best["rank"].tolist() == [1, 2, 3, 4]
        assert found.best.index.tolist() == [0, 1, 2, 3]
        assert found.reasons == ("  row 5: no repeat unit",)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"min_chi": 2.0, "max_chi": 1.0}, "--min-chi 2 lies above --max-chi 1"),
        ({"max_chi": np.nan}, "--max-chi nan: is not a number"),
        ({"min_chi": np.nan, "max_chi": 1.0}, "--min-chi nan: is not a number"),
        ({"min_p_soluble": np.nan}, "--min-p-soluble nan: a probability is a number from 0 to 1"),
        ({"min_p_soluble": 1.5}, "--min-p-soluble 1.5: a probability"),
        ({"certain": True, "min_p_soluble": 0.5}, "--certain is about conditions on χ, and there is none"),
    ],
)
def test_conditions_that_ask_nothing_or_the_impossible_are_refused(bounds: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Conditions(**bounds)


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--certain"], "ERROR: --certain is about"), (["--max-chi", "nan"], "ERROR: --max-chi nan: is not a number")],
)
def test_the_command_refuses_them_before_it_reads_anything(
    run_command: RunCommand, tmp_path: Path, options: list[str], message: str
) -> None:
    words = ["--model", tmp_path / "none.pt", "--input", tmp_path / "none.csv", "--output", tmp_path / "best.csv"]
    code, _, err = run_command("screen", *words, *options)
    assert code == 2
    assert message in err
