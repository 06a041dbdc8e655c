"""Full training says what it makes of blank cells and of rows it cannot use, before it trains anything."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from chitransfer.config import Config, override_config
from chitransfer.training.finetune import run_finetuning
from chitransfer.training.pretrain import run_pretraining
from tests.full.conftest import silent

# The configuration with a table changed, and the beginning of what is to be said of it.
Change = Callable[[Config, str, Path], tuple[Config, str]]


class SaidError(Exception):
    """What is looked for was said."""


def end_at(begins: str) -> Callable[[str], None]:
    def say(line: str) -> None:
        if line.startswith(begins):
            raise SaidError(line)

    return say


def with_blank_solvents(config: Config, key: str, folder: Path) -> tuple[Config, str]:
    """Water left blank."""
    frame = pd.read_csv(getattr(config.paths, key))
    path = folder / f"{key}.csv"
    frame.assign(solvent=frame["solvent"].replace("O", "")).to_csv(path, index=False)
    changed = override_config(config, {f"paths.{key}": str(path), "paths.results_dir": str(folder / "results")})
    return changed, f"{(frame['solvent'] == 'O').sum()} of {len(frame)} usable rows of {path} have no solvent"


def with_bad_rows(config: Config, key: str, folder: Path) -> tuple[Config, str]:
    """Two rows more that are no repeat units."""
    header, *rows = Path(getattr(config.paths, key)).read_text(encoding="utf-8").splitlines()
    path = folder / f"{key}.csv"
    path.write_text("\n".join([header, *rows, *(row.replace("*", "") for row in rows[:2])]), encoding="utf-8")
    changes = {f"paths.{key}": str(path), "data.on_bad_rows": "skip", "paths.results_dir": str(folder / "results")}
    said = f"2 of {len(rows) + 2} rows of {path} cannot be used and are left out; rejected_rows.csv says why"
    return override_config(config, changes), said


@pytest.mark.parametrize("change", [with_blank_solvents, with_bad_rows])
def test_pretraining_says_it_of_computed_chi(trained: Any, tmp_path: Path, change: Change) -> None:
    config, said = change(trained.config, "dft_chi_csv", tmp_path)
    with pytest.raises(SaidError, match=re.escape(said)):
        run_pretraining(config, end_at(said), silent)


@pytest.mark.parametrize("change", [with_blank_solvents, with_bad_rows])
def test_fine_tuning_says_it_of_measured_chi(trained: Any, tmp_path: Path, change: Change) -> None:
    config, said = change(trained.config, "exp_chi_csv", tmp_path)
    with pytest.raises(SaidError, match=re.escape(said)):
        run_finetuning(config, [str(trained.pretraining / "checkpoints" / "best_model.pt")], end_at(said), silent)
