"""Fine-tuning where a loss has weight 0, so that what is not learned is not given out, or no computed row is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.config import override_config
from chitransfer.errors import DataError
from chitransfer.model.checkpoint import Pretrained, TrainedModel
from chitransfer.training.finetune import run_finetuning


@pytest.mark.parametrize(
    ("weight", "is_told"), [("lambda_sol", "gives no P(soluble)"), ("lambda_exp", "not learn measured χ")]
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


def test_computed_rows_of_test_polymers_alone_are_refused(trained: Any, tmp_path: Path) -> None:
    path = tmp_path / "computed.csv"
    checkpoint = trained.pretraining / "checkpoints" / "best_model.pt"
    rows = pd.read_csv(trained.config.paths.dft_chi_csv)
    rows[rows["SMILES"].map(polymer_identity).isin(Pretrained.load(checkpoint).test_polymers)].to_csv(path, index=False)
    config = override_config(trained.config, {"paths.dft_chi_csv": str(path), "paths.results_dir": str(tmp_path)})
    with pytest.raises(DataError, match=r"every polymer is a test polymer .*set paths\.dft_chi_csv to the one"):
        run_finetuning(config, [str(checkpoint)], lambda line: None, lambda *anything: None)


def test_folds_that_the_test_polymers_leave_too_few_polymers_for_are_refused(trained: Any, tmp_path: Path) -> None:
    checkpoint = trained.pretraining / "checkpoints" / "best_model.pt"
    path = tmp_path / "measured.csv"
    rows = pd.read_csv(trained.config.paths.exp_chi_csv)
    is_kept = rows["SMILES"].map(polymer_identity).isin(Pretrained.load(checkpoint).test_polymers)
    some = [*rows.loc[is_kept, "SMILES"].unique()[:1], *rows.loc[~is_kept, "SMILES"].unique()[:2]]
    rows[rows["SMILES"].isin(some)].to_csv(path, index=False)
    changes = {"paths.exp_chi_csv": str(path), "paths.solubility_csv": None, "paths.results_dir": str(tmp_path)}
    with pytest.raises(DataError, match=r"of 3 measured polymers 1 are kept for the test, and 2 are too few for 3"):
        run_finetuning(
            override_config(trained.config, changes), [str(checkpoint)], lambda line: None, lambda *anything: None
        )
