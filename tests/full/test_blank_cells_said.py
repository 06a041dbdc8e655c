"""Full training says which rows it takes to be in water because their cell is blank, before it trains anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from chitransfer.config import Config, override_config
from chitransfer.training.finetune import run_finetuning
from chitransfer.training.pretrain import run_pretraining


class SaidError(Exception):
    """What is looked for was said."""


def end_when_said(line: str) -> None:
    if "have no solvent" in line:
        raise SaidError(line)


def silent(*anything: object) -> None:
    """Swallow progress."""


def with_blank_solvents(config: Config, key: str, folder: Path) -> tuple[Config, str]:
    """The configuration with water left blank in one table, and the beginning of what is to be said."""
    frame = pd.read_csv(getattr(config.paths, key))
    path = folder / f"{key}.csv"
    frame.assign(solvent=frame["solvent"].replace("O", "")).to_csv(path, index=False)
    changed = override_config(config, {f"paths.{key}": str(path), "paths.results_dir": str(folder / "results")})
    return changed, f"{(frame['solvent'] == 'O').sum()} of {len(frame)} rows of {path} have no solvent"


def test_pretraining_says_it_of_computed_chi(trained: Any, tmp_path: Path) -> None:
    config, said = with_blank_solvents(trained.config, "dft_chi_csv", tmp_path)
    with pytest.raises(SaidError, match=said):
        run_pretraining(config, end_when_said, silent)


def test_fine_tuning_says_it_of_measured_chi(trained: Any, tmp_path: Path) -> None:
    config, said = with_blank_solvents(trained.config, "exp_chi_csv", tmp_path)
    with pytest.raises(SaidError, match=said):
        run_finetuning(config, [str(trained.pretraining / "checkpoints" / "best_model.pt")], end_when_said, silent)
