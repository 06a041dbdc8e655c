"""Figures of full training: their series against scikit-learn and the tables, and PNGs that are not blank."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, roc_auc_score

from chitransfer.files import write_json
from chitransfer.report import model_figures
from chitransfer.report.model_figures import (
    draw_model,
    draw_pretraining,
    reliability_series,
    temperature_series,
    temperature_title,
)
from chitransfer.training.model_report import chi_report


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
    series.observed[0] = 0.0
    low, high = series.interval()
    assert np.all((low <= series.observed) & (series.observed <= high))
    # Of a share of 0 in n rows Wilson's interval ends at z² / (n + z²).
    assert (low[0], high[0]) == pytest.approx((0.0, 1.96**2 / (series.n_rows[0] + 1.96**2)), abs=1e-4)


def test_figures_say_what_they_show(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr(model_figures, "save_figure", lambda figure, path: drawn.__setitem__(path.stem, figure))
    draw_model(trained.finetuning)
    left_out = pd.read_csv(trained.finetuning / "predictions_solubility.csv").query("split == 'cross-validation'")
    titles = [axes.get_title() for axes in drawn["roc_and_precision_recall"].axes]
    for title, score in zip(titles, (roc_auc_score, average_precision_score), strict=True):
        assert title.endswith(f" {score(left_out['positive'], left_out['logit_cv']):.3f}")
    assert drawn["confusion_matrix"].axes[0].get_title() == "Rows of polymers left out"
    (explained,) = drawn["reliability"].axes[0].get_legend_handles_labels()[1]
    assert (drawn["reliability"].axes[0].get_legend(), len(drawn["reliability"].legends)) == (None, 1), (
        "beside the bars"
    )
    assert explained == f"about {len(left_out) / 8:.0f} rows each,\nbars: 95 % interval of the share"
    history = pd.read_csv(trained.pretraining / "history.csv")
    history[history["epoch"] <= 3].assign(train_loss=[0.5, 0.1, 0.05] * 2).to_csv(tmp_path / "history.csv", index=False)
    shutil.copy(trained.pretraining / "predictions.csv", tmp_path)
    draw_pretraining(tmp_path)
    loss = drawn["training_curves"].axes[0]
    drawn["training_curves"].draw_without_rendering()
    assert [tick for tick in loss.get_xticks() if tick != round(tick)] == []
    assert {"0.05", "0.1", "0.2", "0.5"} <= {label.get_text() for label in loss.get_yticklabels()}


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


def test_the_title_states_the_coverage_that_holds_for_every_curve() -> None:
    report = {
        "stated_coverage": 0.9,
        "interval_validation": {"stated_coverage": 6 / 7},
        "interval_test": {"stated_coverage": 0.9},
    }
    assert ", with 86 % interval," in temperature_title(report)
    del report["interval_validation"]
    assert ", with 90 % interval," in temperature_title(report)
    assert "interval" not in temperature_title({})


def test_the_intervals_of_a_few_polymers_are_drawn_with_their_own_coverage(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.read_csv(trained.finetuning / "predictions_chi.csv")
    frame = frame[frame["SMILES"].isin(frame["SMILES"].unique()[:6])]
    frame.to_csv(tmp_path / "predictions_chi.csv", index=False)
    report = chi_report(frame, pd.factorize(frame["SMILES"])[0])
    write_json(tmp_path / "metrics.json", {"chi": report, "positive_label": 1})
    titles: list[str] = []
    monkeypatch.setattr(model_figures, "save_figure", lambda figure, _: titles.append(figure.get_suptitle()))
    draw_model(tmp_path)
    own = frame[frame["split"] == "cross-validation"]
    n = min(own.loc[own["fold_1"] != fold, "SMILES"].nunique() for fold in own["fold_1"].unique())
    assert f"with {100 * n / (n + 1):.0f} % interval" in titles[-1]


def test_a_polymer_written_in_two_ways_is_one_curve_with_all_its_points() -> None:
    rows = [("*CC(*)c1ccccc1", 300.0, 0.4), ("[*:1]CC([*:2])c1ccccc1", 320.0, 0.5), ("*CCO*", 300.0, 0.3)]
    frame = pd.DataFrame(rows, columns=["SMILES", "temp", "chi"]).assign(solvent="O", A_K=0.0, B=0.4, half_width_cv=0.1)
    (curve,) = temperature_series(frame)
    assert curve.chi.tolist() == [0.4, 0.5]
    assert temperature_series(frame.assign(temp=300.0)) == []


def test_without_two_temperatures_there_is_no_curve_to_draw(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("metrics.json", "predictions_chi.csv"):
        shutil.copy(trained.finetuning / name, tmp_path / name)
    chi = pd.read_csv(tmp_path / "predictions_chi.csv").assign(temp=300.0)
    chi.to_csv(tmp_path / "predictions_chi.csv", index=False)
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr(model_figures, "save_figure", lambda figure, path: drawn.__setitem__(path.stem, figure))
    draw_model(tmp_path)
    assert drawn.keys() == {"parity"}
    assert drawn["parity"].axes[-1].get_ylim() == (299.5, 300.5), "the scale of colours"
