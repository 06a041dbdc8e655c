"""A model trained in full on the small tables, once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chitransfer.config import Config, load_config, override_config
from chitransfer.predict import Predictor
from chitransfer.training.finetune import run_finetuning
from chitransfer.training.pretrain import run_pretraining
from tests.conftest import vinyl_polymers
from tests.forests import few_trees

SOLVENTS = ("O", "CCO")


@dataclass(frozen=True)
class Trained:
    """Folders of both stages and the configuration they were trained with."""

    config: Config
    pretraining: Path
    finetuning: Path

    @property
    def model(self) -> Path:
        """The checkpoint people use."""
        return self.finetuning / "checkpoints" / "best_model.pt"


def write_solvent_tables(folder: Path) -> dict[str, object]:
    """Three tables in two solvents; χ = A/T + B by a formula, a label by its sign. Returns configuration keys."""
    folder.mkdir(parents=True)
    stage1, chi, labels = [], [], []
    for number, (smiles, carbons, hetero) in enumerate(vinyl_polymers()):
        for place, solvent in enumerate(SOLVENTS):
            A, B = 60.0 * carbons - 90.0 * hetero - 40.0 * place, 0.3 + 0.1 * carbons
            stage1 += [
                {"SMILES": smiles, "solvent": solvent, "temp": T, "chi": A / T + B} for T in (298.15, 330.0, 360.0)
            ]
            wiggle = 0.08 * np.sin(7.0 * number + place)
            if number % 2:
                chi += [
                    {"SMILES": smiles, "solvent": solvent, "temp": T, "chi": A / T + B + wiggle} for T in (300.0, 340.0)
                ]
            labels.append({"SMILES": smiles, "solvent": solvent, "soluble": int(A / 298.15 + B + 3 * wiggle < 0.6)})
    names = {"paths.dft_chi_csv": stage1, "paths.exp_chi_csv": chi, "paths.solubility_csv": labels}
    overrides: dict[str, object] = {}
    for key, rows in names.items():
        path = folder / f"{key.split('.')[1]}.csv"
        pd.DataFrame(rows).to_csv(path, index=False)
        overrides[key] = str(path)
    return overrides


def full_overrides(folder: Path) -> dict[str, object]:
    """Configuration keys of a full training of seconds on tables written to `folder`."""
    return {
        **write_solvent_tables(folder / "tables"),
        "paths.results_dir": str(folder / "results"),
        "paths.cache_dir": str(folder / "cache"),
        "chem.fingerprint_bits": 128,
        "model.encoder_latent_dim": 8,
        "model.encoder_hidden_dims": [24],
        "model.chi_head_hidden_dim": 8,
        "model.solubility_head_hidden_dim": 8,
        "model.encoder_dropout": 0.0,
        "training.device": "cpu",
        "training.num_threads": 1,
        "training.n_networks": 2,
        "training.num_epochs_pretrain": 60,
        "training.batch_size_dft": 16,
        "training.lr_pretrain": 5e-3,
        "training.num_epochs_finetune": 15,
        "cv.n_cv_folds": 3,
        "cv.n_cv_repeats": 2,
        "cv.random_forest": False,
    }


def silent(*anything: object) -> None:
    """Swallow messages and progress."""


def train(config: Config, random_forest: bool = False) -> Trained:
    """Both stages in full, the second one beside a random forest if asked for."""
    pretraining = run_pretraining(config, silent, silent)
    compared = override_config(config, {"cv.random_forest": random_forest})
    finetuning = run_finetuning(compared, [str(pretraining.best_model)], silent, silent)
    return Trained(config, pretraining.path, finetuning.path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Frozen encoder, tables in two solvents, compared with a random forest."""
    overrides = full_overrides(tmp_path_factory.mktemp("frozen"))
    with few_trees():
        return train(load_config(None, overrides), random_forest=True)


@pytest.fixture(scope="session")
def trained_unfrozen(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Everything fine-tuned, with computed χ kept in mind."""
    overrides = full_overrides(tmp_path_factory.mktemp("unfrozen"))
    return train(load_config(None, {**overrides, "training.freeze_encoder_stage2": False, "training.lambda_dft": 1.0}))


@pytest.fixture(scope="session")
def predictor(trained: Trained) -> Predictor:
    """The frozen model, loaded from its file."""
    return Predictor.load(trained.model)


@pytest.fixture
def make_overrides(tmp_path: Path) -> Callable[[], dict[str, object]]:
    """`full_overrides` in this test's own folder."""
    return lambda: full_overrides(tmp_path)
