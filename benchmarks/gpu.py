"""`python -m benchmarks.gpu`: Stage 1 at full size on a GPU, packs of several sizes in every precision, and Stage 2."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from benchmarks.cases import N_FOLDS, N_REPEATS
from benchmarks.synthetic import (
    FULL_ROWS,
    GUIDE_HIDDEN,
    fold_masks,
    make_settings,
    make_shape,
    make_stage1,
    make_stage2,
    make_stage2_settings,
)
from chitransfer.model.network import TransferNetwork
from chitransfer.training.packed import PackedStage1, train_together
from chitransfer.training.stage1 import Stage1Data, Stage1Run
from chitransfer.training.stage2 import fit_members

PRECISIONS = ("fp32", "auto", "bf16")


def main() -> None:
    """Print the measurements as Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=FULL_ROWS)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 25, 50])
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    device = torch.device(arguments.device)
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else device, "torch", torch.__version__)
    if device.type == "cuda":
        _print_peaks(device)
    data = make_stage1(arguments.rows, device=arguments.device)
    _print_epochs(data, arguments.sizes)
    _print_accuracy(data)
    stage2 = make_stage2(data)
    chi, solubility = (fold_masks(len(task), N_FOLDS, N_REPEATS) for task in (stage2.chi, stage2.solubility))
    network = TransferNetwork(make_shape(data)).to(device).eval()
    seconds = _median(lambda: fit_members(network, stage2, chi, solubility, make_stage2_settings(), 0), device)
    print(f"quick Stage 2, {N_FOLDS * N_REPEATS} members × 20 epochs: {seconds:.3f} s", flush=True)


def _print_peaks(device: torch.device) -> None:
    size = 8192
    for name, dtype, precision in (
        ("fp32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bf16", torch.bfloat16, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = _median(lambda left=left, right=right: torch.mm(left, right), device)  # type: ignore[misc]
        print(f"product of {size} × {size} in {name}: {2 * size**3 / seconds / 1e12:.0f} TFLOP/s")
    torch.set_float32_matmul_precision("highest")


def _print_epochs(data: Stage1Data, sizes: Sequence[int]) -> None:
    device = data.train.tau.device
    alone = _runs(data, 1, "fp32")[0]
    seconds = _median(lambda: alone.train_to(alone.epoch + 1), device)
    print(f"\none run, steps launched one by one: {seconds:.3f} s an epoch\n")
    print(
        "| pack | precision | s per epoch | s per member and epoch | TFLOP/s | GPU memory, GB |\n"
        "|---|---|---|---|---|---|"
    )
    for size in sizes:
        for precision in PRECISIONS:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            runs = _runs(data, size, precision)
            pack = PackedStage1(runs, [10_000] * size)
            seconds = _median(pack.train_epoch, device)
            rate = sum(_operations(run) for run in runs) / seconds / 1e12
            memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
            print(
                f"| {size} | {precision} | {seconds:.3f} | {seconds / size:.4f} | {rate:.1f} | {memory:.1f} |",
                flush=True,
            )
            del pack, runs


def _print_accuracy(data: Stage1Data, n_seeds: int = 8, n_epochs: int = 20) -> None:
    print(f"\nvalidation MAE after {n_epochs} epochs, {n_seeds} seeds:")
    for precision in PRECISIONS:
        settings = replace(make_settings(n_epochs), precision=precision)
        runs = [Stage1Run(data, make_shape(data), settings, seed) for seed in range(n_seeds)]
        train_together(runs, [n_epochs] * n_seeds)
        errors = [run.best_mae for run in runs]
        print(f"{precision}: {np.mean(errors):.4f} ± {np.std(errors):.4f}", flush=True)


def _runs(data: Stage1Data, size: int, precision: str) -> list[Stage1Run]:
    """Members with the guide's encoders in turn."""
    names = list(GUIDE_HIDDEN)
    settings = replace(make_settings(10_000), precision=precision)
    return [Stage1Run(data, make_shape(data, names[number % len(names)]), settings, number) for number in range(size)]


def _operations(run: Stage1Run) -> float:
    """Operations per epoch: three products per layer, two for the first, which needs no input gradient."""
    layers = [module for module in run.trained.modules() if isinstance(module, nn.Linear)]
    # The solubility head is not trained in Stage 1.
    products = [layer.in_features * layer.out_features for layer in layers[:-2]]
    return 2.0 * len(run.data.train) * (3 * sum(products) - products[0])


def _median(work: Callable[[], object], device: torch.device, n_runs: int = 4) -> float:
    """Median seconds, after one run that is not counted."""
    seconds = []
    for _ in range(n_runs + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:]))


if __name__ == "__main__":
    main()
