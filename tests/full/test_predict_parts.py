"""Predictions whose parts are missing, fail or come in several batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from chitransfer import predict
from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.errors import DataError
from chitransfer.model.calibration import ChiInterval
from chitransfer.predict import Predictor

UNITS = [f"*CC(*){'C' * n}{end}" for n in range(1, 5) for end in ("", "O")]


def test_batches_of_pairs_are_put_together_in_order(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Predictor(predictor.model).predict(UNITS, solvent=["O", "CCO"] * 4)
    monkeypatch.setattr("chitransfer.predict.PAIRS_AT_ONCE", 3)
    pd.testing.assert_frame_equal(Predictor(predictor.model).predict(UNITS, solvent=["O", "CCO"] * 4), whole)


@pytest.mark.parametrize("what", ["polymers", "solvents"])
def test_a_structure_without_features_costs_its_own_rows_alone(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    solvents = ["O", "O", "CCO", "O"]
    expected = Predictor(predictor.model).predict(UNITS[:4], solvent=solvents)
    whole = getattr(predict, f"featurise_{what}")
    lost = polymer_identity(UNITS[2]) if what == "polymers" else "CCO"

    def featurise(texts: list[str], *words: Any, **options: Any) -> np.ndarray:
        if lost in texts:
            raise DataError("not finite")
        result: np.ndarray = whole(texts, *words, **options)
        return result

    monkeypatch.setattr(predict, f"featurise_{what}", featurise)
    found = Predictor(predictor.model).predict(UNITS[:4], solvent=solvents)
    assert found["problem"].tolist() == ["", "", "not finite", ""]
    pd.testing.assert_frame_equal(found.drop(index=2), expected.drop(index=2), check_dtype=False)
    assert found.loc[2, ["chi", "p_soluble", "similarity"]].isna().all()


def test_a_model_without_an_interval_or_a_domain_of_chi_leaves_their_columns_out(predictor: Predictor) -> None:
    model = predictor.model
    bare = Predictor(replace(model, chi_interval=None, domain=replace(model.domain, chi=None)))
    whole, found = predictor.predict(UNITS), bare.predict(UNITS)
    assert set(whole) - set(found) == {"chi_low", "chi_high", "chi_in_domain"}
    pd.testing.assert_series_equal(found["chi"], whole["chi"])
    assert found["in_domain"].tolist() == whole["in_domain"].tolist()


@pytest.mark.parametrize(("coverage", "is_told"), [(0.9, False), (2 / 3, True)])
def test_an_interval_that_promises_less_than_90_percent_says_so(
    predictor: Predictor,
    run_command: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    coverage: float,
    is_told: bool,
) -> None:
    model = replace(predictor.model, chi_interval=ChiInterval(coverage, 2.0, 0.1, 1.0))
    model.save(tmp_path / "model.pt")
    (tmp_path / "in.csv").write_text("SMILES\n*CCO*\n", encoding="utf-8")
    table = ("--input", tmp_path / "in.csv", "--output", tmp_path / "out.csv", "--n_jobs", 1)
    for words in (("predict", "*CCO*"), ("predict", *table), ("screen", *table)):
        code, out, err = run_command(words[0], "--model", tmp_path / "model.pt", *words[1:])
        assert code == 0
        assert ("warning: χ intervals promise 67%, not 90%: too few polymers with measured χ" in out + err) == is_told
    assert bool(Predictor(model).interval_note) == is_told
