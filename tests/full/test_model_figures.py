"""Figures of full training: their series against scikit-learn and the tables, and PNGs that are not blank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.calibration import calibration_curve

from chitransfer.report.model_figures import draw_model, draw_pretraining, reliability_series, temperature_series


def test_every_figure_is_drawn(trained: Any) -> None:
    draw_pretraining(trained.pretraining)
    draw_model(trained.finetuning)
    expected = {
        trained.pretraining: ["training_curves", "parity"],
        trained.finetuning: [
            "parity",
            "chi_of_temperature",
            "roc_and_precision_recall",
            "confusion_matrix",
            "reliability",
        ],
    }
    for folder, names in expected.items():
        assert {path.stem for path in (folder / "figures").iterdir()} == set(names)
        for name in names:
            image = Image.open(folder / "figures" / f"{name}.png").convert("RGB")
            assert len(image.getcolors(1 << 24) or []) > 20


def test_reliability_agrees_with_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    probability = generator.random(400)
    positive = generator.random(400) < probability**2
    series = reliability_series(positive, probability, n_bins=8)
    observed, predicted = calibration_curve(positive, probability, n_bins=8, strategy="quantile")
    assert np.allclose(series.predicted, predicted, atol=0.01)
    assert np.allclose(series.observed, observed, atol=0.03)
    assert series.n_rows.sum() == 400


def test_curves_are_the_pairs_with_most_temperatures(trained: Any) -> None:
    frame = pd.read_csv(trained.finetuning / "predictions_chi.csv")
    curves = temperature_series(frame)
    assert len(curves) == 6
    assert len({curve.title.split(" in ")[0] for curve in curves}) == 6
    for curve in curves:
        smiles, solvent = curve.title.split(" in ")
        rows = frame[(frame["SMILES"] == smiles) & (frame["solvent"] == solvent)].sort_values("temp")
        assert curve.temperature.tolist() == rows["temp"].tolist()
        line = curve.A / curve.temperature + curve.B
        predicted = rows["chi_cv"].fillna(rows["chi_model"])
        assert np.allclose(line, predicted, atol=1e-6)
