"""What runs on a graphics card, on a pretended one: the same results as on the CPU, and no tensor left on the host."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pretended_card import pretended_card

from chitransfer.training.recorded import N_FREE_CALLS, RecordedStep

RunCommand = Callable[..., tuple[int, str, str]]

# Dropout draws other numbers on a card; without it, results are the same up to rounding.
WITHOUT_DROPOUT = [
    "model.encoder_dropout=0",
    "model.chi_head_dropout=0",
    "model.solubility_head_dropout=0",
    "search.space={lr_pretrain: {key: training.lr_pretrain, type: log, low: 1.0e-3, high: 1.0e-2}}",
]


@pytest.fixture
def card() -> Iterator[torch.device]:
    with pretended_card():
        yield torch.device("cuda")


def test_tensors_of_card_and_host_do_not_mix(card: torch.device) -> None:
    on_card = torch.arange(6.0).to(card)
    with pytest.raises(RuntimeError, match="same device"):
        on_card + torch.ones(6)
    with pytest.raises(TypeError, match="numpy"):
        on_card.numpy()
    assert (on_card[torch.tensor([1, 5])] * 2).cpu().tolist() == [2.0, 10.0]


def test_a_recorded_step_is_repeated_without_python(card: torch.device) -> None:
    weights = torch.zeros(3, device=card)
    calls: list[int] = []

    def step(change: torch.Tensor) -> torch.Tensor:
        calls.append(len(calls))
        weights.add_(change)
        return weights.sum() + len(calls)  # A number that Python works out stays what it was when recorded.

    recorded = RecordedStep(card)
    results = [float(recorded.take(step, torch.full((3,), float(number), device=card))) for number in range(8)]
    assert weights.tolist() == [sum(range(8))] * 3
    n_calls = N_FREE_CALLS + 1
    assert len(calls) == n_calls
    sums = [3.0 * sum(range(number + 1)) for number in range(8)]
    assert results == [total + min(number + 1, n_calls) for number, total in enumerate(sums)]


@pytest.mark.parametrize("place", ["card", "host"])
def test_nothing_passes_between_card_and_host_while_a_step_is_recorded(card: torch.device, place: str) -> None:
    values, of_host = torch.arange(3.0).to(card), torch.tensor([2, 0])

    def step(change: torch.Tensor) -> torch.Tensor:
        return change * float(values.sum()) if place == "card" else change + values[of_host].sum()

    recorded, change = RecordedStep(card), torch.ones(3, device=card)
    for _ in range(N_FREE_CALLS):
        recorded.take(step, change)
    with pytest.raises(RuntimeError, match="capturing"):
        recorded.take(step, change)


def settings_of(tiny: dict[str, Any], device: str, *more: str) -> list[object]:
    kept = {key: value for key, value in tiny.items() if key not in ("search.space", "training.device")}
    pairs = [f"{key}={json.dumps(value)}" for key, value in kept.items()]
    # A processor with bfloat16 instructions would use them by default, a card does not.
    where = [f"training.device={device}", f"training.precision={'fp32' if device == 'cpu' else 'auto'}"]
    return [word for pair in [*pairs, *WITHOUT_DROPOUT, *where, *more] for word in ("--set", pair)]


@pytest.mark.slow
def test_a_search_finds_what_it_finds_on_the_cpu(tiny: dict[str, Any], tmp_path: Path, run_command: RunCommand) -> None:
    scores = {}
    for device in ("cpu", "cuda"):
        words = [*settings_of(tiny, device, "search.n_trials=4"), "--study-name", device, "--sampler", "random"]
        with pretended_card() if device == "cuda" else nullcontext():
            code, _, err = run_command("search", *words)
        assert code == 0, err
        table = pd.read_csv(tmp_path / "results" / "hparam_search" / device / "all_trials.csv").sort_values("number")
        scores[device] = table[["value", "exp_mae", "sol_brier", "stage1_mae"]].to_numpy()
    assert scores["cuda"] == pytest.approx(scores["cpu"], rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("freezes", ["true", "false"])
def test_full_training_predicts_what_it_predicts_on_the_cpu(
    tiny: dict[str, Any], tmp_path: Path, run_command: RunCommand, freezes: str
) -> None:
    predicted = {}
    for device in ("cpu", "cuda"):
        folder = tmp_path / device
        more = [f"paths.results_dir={folder}", "training.n_networks=2", "training.num_epochs_finetune=3"]
        own = {key: value for key, value in tiny.items() if key != "training.stage2_epochs"}
        words = settings_of(own, device, *more, f"training.freeze_encoder_stage2={freezes}")
        output = folder / "predicted.csv"
        with pretended_card() if device == "cuda" else nullcontext():
            run_command("pretrain", *words)
            run_command("finetune", "--pretrained", f"{folder}/dft_pretrain_*/checkpoints/best_model.pt", *words)
            (model,) = folder.glob("multitask_*/checkpoints/best_model.pt")
            given = ["--model", model, "--input", tiny["paths.solubility_csv"], "--output", output]
            code, _, err = run_command("predict", *given)
        assert code == 0, err
        predicted[device] = pd.read_csv(output).select_dtypes("number")
    assert predicted["cuda"].to_numpy() == pytest.approx(predicted["cpu"].to_numpy(), rel=5e-3, abs=5e-3, nan_ok=True)
