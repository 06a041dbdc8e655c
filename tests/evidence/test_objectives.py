"""Studies with several objectives."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from chitransfer.config import load_config
from chitransfer.errors import ConfigError
from chitransfer.report.finish import finish_study
from chitransfer.search.study import read_study
from chitransfer.search.summary import describe_status
from tests.pages import read_page


def test_several_objectives_give_a_pareto_front(
    tiny: dict[str, object], make_search: Callable[..., tuple[int, Any]]
) -> None:
    names = ["exp_mae", "sol_f1", "sol_recall"]
    _, folder = make_search({**tiny, "search.n_trials": 6, "search.objectives": names}, draw=finish_study)
    trials = pd.read_csv(folder.path / "all_trials.csv")
    front = set(pd.read_csv(folder.path / "pareto_front.csv")["number"])
    signed = trials[names].to_numpy() * np.array([1, -1, -1])
    for number, own in zip(trials["number"], signed, strict=True):
        beaten = any((other <= own).all() and (other < own).any() for other in signed)
        assert (number in front) == (not beaten)
    assert (folder.figures / "pareto_front.png").stat().st_size > 1000
    assert set(read_page(folder.path)["pareto"]) == front
    (said,) = [line for line in describe_status(read_study(folder), folder, None) if line.startswith("Pareto front")]
    assert {int(number) for number in re.findall(r"\b\d+\b", said)} == front
    (log,) = (folder.path.parent / "logs").iterdir()
    assert said in log.read_text(encoding="utf-8")


@pytest.mark.parametrize("wrong", [["exp_mae"], ["exp_mae", "exp_mae"]])
def test_objectives_must_be_two_or_more(wrong: list[str]) -> None:
    with pytest.raises(ConfigError, match="two or more different names"):
        load_config(None, {"search.objectives": wrong})
