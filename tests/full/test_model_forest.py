"""The random forest beside a fine-tuned model: its metrics follow from its predictions."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest
from sklearn.metrics import f1_score, mean_absolute_error, roc_auc_score


def test_the_random_forest_is_scored_on_the_same_rows(trained: Any) -> None:
    chi, solubility = (pd.read_csv(trained.finetuning / f"predictions_{kind}.csv") for kind in ("chi", "solubility"))
    metrics = json.loads((trained.finetuning / "metrics.json").read_text())
    for name, split in (("validation", "cross-validation"), ("test", "test")):
        own, labels = chi[chi["split"] == split], solubility[solubility["split"] == split]
        forest = metrics["chi"]["random_forest"][name]
        assert forest["mae"] == pytest.approx(mean_absolute_error(own["chi"], own["chi_forest"]))
        assert forest["n_rows"] == len(own)
        forest = metrics["solubility"]["random_forest"][name]
        assert forest["auc"] == pytest.approx(roc_auc_score(labels["positive"], labels["p_forest"]))
        assert forest["f1"] == pytest.approx(f1_score(labels["positive"], labels["forest_called_positive"]))
    # It learned: on polymers left out it is better than their mean.
    assert metrics["chi"]["random_forest"]["validation"]["r2"] > 0.2
    for kind, score, shown in (("chi", "mae", "validation_mean_of_repeats"), ("solubility", "auc", "validation")):
        own, forest = metrics[kind][shown][score], metrics[kind]["random_forest"]["validation"][score]
        assert metrics[kind][f"{score}_less_forest"]["value"] == pytest.approx(own - forest)
