"""Fine-tuning where the loss of a task has weight 0: what is not learned is not given out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.config import override_config
from chitransfer.model.checkpoint import TrainedModel
from chitransfer.training.finetune import run_finetuning


@pytest.mark.parametrize(
    ("weight", "is_told"), [("lambda_sol", "gives no P(soluble)"), ("lambda_exp", "no measured χ")]
)
def test_what_is_not_learned_is_not_given_out(trained: Any, tmp_path: Path, weight: str, is_told: str) -> None:
    changes = {"paths.results_dir": str(tmp_path), f"training.{weight}": 0.0, "training.num_epochs_finetune": 1}
    said: list[str] = []
    checkpoint = str(trained.pretraining / "checkpoints" / "best_model.pt")
    folder = run_finetuning(override_config(trained.config, changes), [checkpoint], said.append, lambda *anything: None)
    (warning,) = [line for line in said if line.startswith(f"warning: training.{weight} is 0: ")]
    assert is_told in warning
    model = TrainedModel.load(folder.best_model)
    assert (model.probability is None) == (weight == "lambda_sol")
    assert (folder.path / "predictions_solubility.csv").exists() == (weight == "lambda_exp")
    assert model.chi_interval is not None
    learned = pd.read_csv(folder.path / "predictions_chi.csv")["SMILES"].map(polymer_identity)
    assert (set(model.domain.measured.polymers) <= set(learned)) == (weight == "lambda_sol")
