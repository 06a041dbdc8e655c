"""Full training says how many rows it leaves out, before it trains anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chitransfer.config import Config, override_config
from chitransfer.training.finetune import run_finetuning
from chitransfer.training.pretrain import run_pretraining


class SaidError(Exception):
    """What is looked for was said."""


def end_when_said(line: str) -> None:
    if "left out" in line:
        raise SaidError(line)


def silent(*anything: object) -> None:
    """Swallow progress."""


def with_bad_rows(config: Config, key: str, folder: Path) -> tuple[Config, str]:
    """The configuration with two rows more in one table that are no repeat units, and what is to be said."""
    header, *rows = Path(getattr(config.paths, key)).read_text(encoding="utf-8").splitlines()
    path = folder / f"{key}.csv"
    path.write_text("\n".join([header, *rows, *(row.replace("*", "") for row in rows[:2])]), encoding="utf-8")
    changes = {f"paths.{key}": str(path), "data.on_bad_rows": "skip", "paths.results_dir": str(folder / "results")}
    said = rf"2 of {len(rows) + 2} rows of {path} cannot be used and are left out; rejected_rows\.csv says why"
    return override_config(config, changes), said


def test_pretraining_says_it_of_computed_chi(trained: Any, tmp_path: Path) -> None:
    config, said = with_bad_rows(trained.config, "dft_chi_csv", tmp_path)
    with pytest.raises(SaidError, match=said):
        run_pretraining(config, end_when_said, silent)


def test_fine_tuning_says_it_of_measured_chi(trained: Any, tmp_path: Path) -> None:
    config, said = with_bad_rows(trained.config, "exp_chi_csv", tmp_path)
    with pytest.raises(SaidError, match=said):
        run_finetuning(config, [str(trained.pretraining / "checkpoints" / "best_model.pt")], end_when_said, silent)
