"""Memory that runs out is known as that, however it is said, and a command that meets it has one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chitransfer import cli
from chitransfer.config import load_config
from chitransfer.errors import TrainingError
from chitransfer.shortage import explain_shortage, is_out_of_memory
from chitransfer.training import pretrain
from tests.shortages import cpu_shortage

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (cpu_shortage(), True),
        (MemoryError(), True),
        (torch.OutOfMemoryError("the card is full"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator"), False),
    ],
)
def test_memory_that_runs_out_is_known_however_it_is_said(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^a mistake$"), explain_shortage("rest"):
        raise RuntimeError("a mistake")
    with pytest.raises(TrainingError, match=r"rest$"), explain_shortage("rest"):
        raise MemoryError


def test_any_command_says_it_in_one_sentence(run_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*words: object, **named: object) -> None:
        raise cpu_shortage()

    monkeypatch.setattr(cli, "app", run_out)
    code, _, error = run_command("predict")
    assert code == 2
    assert error.startswith("ERROR: memory ran out (")
    assert "DefaultCPUAllocator" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "where", "remedy"),
    [
        (["pretrain"], "pretrain.run_pretraining", "lower training.batch_size_dft"),
        (["finetune", "--pretrained=model.pt"], "finetune.run_finetuning", "lower training.batch_size_exp"),
    ],
)
def test_full_training_names_its_batch(
    run_command: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], where: str, remedy: str
) -> None:
    def run_out(*words: object) -> None:
        raise cpu_shortage()

    monkeypatch.setattr(f"chitransfer.training.{where}", run_out)
    code, _, error = run_command(*words)
    assert code == 2
    assert error.startswith("ERROR: memory ran out (")
    assert error.endswith(f"{remedy}\n")


def test_a_pretraining_short_of_memory_says_how_to_go_on(
    tiny: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(what: str, done: int, total: int) -> None:
        if what.startswith("network") and done == 2:
            raise cpu_shortage()

    monkeypatch.setattr(pretrain, "SECONDS_BETWEEN_STATES", 0.0)
    said: list[Any] = []
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        pretrain.run_pretraining(load_config(None, tiny), said.append, run_out)
    (folder,) = Path(str(tiny["paths.results_dir"])).glob("dft_pretrain_*")
    assert said[-1] == f"interrupted; continue with: chitransfer pretrain --resume {folder}"
