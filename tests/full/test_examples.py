"""The examples run as they stand, and the guide's three commands as printed."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chitransfer.config import dump_config, load_config
from tests.full.conftest import full_overrides


def run(project_root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the project's root."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    return subprocess.run(
        [sys.executable, *words], cwd=project_root, env=environment, capture_output=True, text=True, timeout=280
    )


@pytest.mark.slow
def test_the_example_runs(trained: Any, project_root: Path) -> None:
    done = run(project_root, "examples/predict_polymers.py", str(trained.model))
    assert done.returncode == 0, done.stderr
    assert "polystyrene" in done.stdout
    assert "two *" in done.stdout


def test_the_example_without_a_model_says_what_it_needs(project_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["predict_polymers.py", "none.pt"])
    with pytest.raises(SystemExit, match=r"^ERROR: none.pt: there is no such model file; give the one that"):
        runpy.run_path(str(project_root / "examples" / "predict_polymers.py"), run_name="__main__")


@pytest.mark.slow
def test_the_example_runs_in_a_notebook(trained: Any, project_root: Path) -> None:
    """A notebook's kernel has arguments of its own and runs the cells under the name ``__main__``."""
    text = (project_root / "examples" / "predict_polymers.py").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("MODEL = "))
    cells = text.replace(line, f"MODEL = {str(trained.model)!r}").split("# %%\n")
    kernel = "import sys, types; sys.modules['ipykernel'] = types.ModuleType('ipykernel')\n"
    kernel += "sys.argv = ['launcher', '-f', 'kernel.json']\n"
    done = run(project_root, "-c", kernel + f"for cell in {cells!r}: exec(cell, globals())")
    assert done.returncode == 0, done.stderr
    assert "polystyrene" in done.stdout


@pytest.mark.slow
def test_the_guides_commands_run_as_printed(project_root: Path, tmp_path: Path) -> None:
    overrides = full_overrides(tmp_path) | {"training.num_epochs_pretrain": 5, "training.num_epochs_finetune": 3}
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(load_config(None, overrides)), encoding="utf-8")
    pattern = f"{overrides['paths.results_dir']}/dft_pretrain_*/checkpoints/best_model.pt"
    first = run(project_root, "-m", "src.training.train_dft_pretrain", "--config", str(config))
    assert first.returncode == 0, first.stderr
    second = run(project_root, "-m", "src.training.train_multitask", "--config", str(config), "--pretrained", pattern)
    assert second.returncode == 0, second.stderr
    assert list(Path(str(overrides["paths.results_dir"])).glob("multitask_*/checkpoints/best_model.pt"))
