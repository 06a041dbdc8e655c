"""The cases of `python -m benchmarks`: each compares the project with what one would write without it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.conventional import ConventionalStage1, lightning_epochs, plain_finetuning
from benchmarks.measure import Timing, as_timings, compare
from benchmarks.synthetic import (
    GUIDE_HIDDEN,
    fold_masks,
    make_settings,
    make_shape,
    make_stage1,
    make_stage2,
    make_stage2_settings,
)
from chitransfer.model.network import TransferNetwork
from chitransfer.training.stage1 import Stage1Data, Stage1Run
from chitransfer.training.stage2 import fit_members

N_FOLDS, N_REPEATS = 5, 3
N_WORKER_RUNS = 3


def _epochs(data: Stage1Data, hidden: str = "512_256", seed: int = 0) -> Callable[[], None]:
    run = Stage1Run(data, make_shape(data, hidden), make_settings(10_000), seed)
    return lambda: run.train_to(run.epoch + 1)


def stage1_epoch(n_rows: int) -> list[Timing]:
    """One epoch, validation included, against DataLoader and Lightning."""
    data = make_stage1(n_rows)
    variants: dict[str, Callable[[], object]] = {
        "Dataset, DataLoader, autograd": ConventionalStage1(data, make_shape(data), make_settings(), 0).epoch,
        "chitransfer": _epochs(data),
    }
    try:
        variants["PyTorch Lightning, one epoch of a fit"] = lightning_epochs(data, make_shape(data), make_settings(), 1)
    except ImportError:
        print("lightning is not installed: that variant is not measured")
    return compare(f"Stage 1 epoch, {n_rows} rows", variants, n_runs=2)


def stage1_accuracy(n_rows: int) -> list[Timing]:
    """Validation MAE after the same number of epochs, three seeds, for the conventional loop and ours."""
    data = make_stage1(min(n_rows, 12_000))
    errors: dict[str, list[float]] = {"conventional": [], "chitransfer": []}

    def conventional() -> None:
        run = ConventionalStage1(data, make_shape(data), make_settings(), len(errors["conventional"]))
        errors["conventional"].append(min(run.epoch() for _ in range(15)))

    def ours() -> None:
        run = Stage1Run(data, make_shape(data), make_settings(15), len(errors["chitransfer"]))
        run.train_to(15)
        errors["chitransfer"].append(run.best_mae)

    timings = compare("Stage 1, 15 epochs of 12000 rows", {"conventional": conventional, "chitransfer": ours}, n_runs=3)
    return [
        Timing(
            **{**vars(t), "note": f"validation MAE {np.mean(errors[t.variant]):.4f} ± {np.std(errors[t.variant]):.4f}"}
        )
        for t in timings
    ]


def _ways_of_stage2(data: Stage1Data) -> dict[str, Callable[[], object]]:
    """5 folds × 3 repeats × 20 epochs on 40 + 443 rows: a plain PyTorch loop over folds, and all members at once."""
    stage2 = make_stage2(data)
    network = TransferNetwork(make_shape(data)).eval()
    chi, solubility = (fold_masks(len(task), N_FOLDS, N_REPEATS) for task in (stage2.chi, stage2.solubility))

    settings = make_stage2_settings()
    return {
        "plain PyTorch, a loop over folds": lambda: plain_finetuning(network, stage2, chi, solubility, settings),
        "chitransfer, all folds at once": lambda: fit_members(network, stage2, chi, solubility, settings, 0),
    }


def quick_stage2(n_rows: int) -> list[Timing]:
    """A whole quick Stage 2, both ways."""
    return compare("Quick Stage 2, 15 members", _ways_of_stage2(make_stage1(2_000)), n_runs=5)


def whole_network_stage2(n_rows: int) -> list[Timing]:
    """Four epochs of fine-tuning 15 whole networks on 1,000 + 440 rows: plain PyTorch, side by side, one by one."""
    data = make_stage1(2_000)
    stage2 = make_stage2(data, n_chi=1_000)
    network = TransferNetwork(make_shape(data)).eval()
    chi, solubility = (fold_masks(len(task), N_FOLDS, N_REPEATS) for task in (stage2.chi, stage2.solubility))
    settings = replace(make_stage2_settings(), freeze_encoder=False, n_epochs=4)

    def side_by_side() -> None:
        with patch("chitransfer.training.stage2.trains_one_by_one", lambda *_: False):
            fit_members(network, stage2, chi, solubility, settings, 0)

    return compare(
        "Fine-tuning of 15 whole networks, 4 epochs",
        {
            "plain PyTorch, a loop over members": lambda: plain_finetuning(network, stage2, chi, solubility, settings),
            "stacked, side by side": side_by_side,
            "chitransfer, one by one": lambda: fit_members(network, stage2, chi, solubility, settings, 0),
        },
        n_runs=3,
    )


def features(n_rows: int) -> list[Timing]:
    """Periodic features of the built-in table's repeat units against plain RDKit ones and the cache."""
    from rdkit import Chem
    from rdkit.Chem import Descriptors, rdFingerprintGenerator

    from chitransfer.chemistry.features import FeatureCache
    from chitransfer.chemistry.vectors import FeatureRecipe
    from chitransfer.config import load_config
    from chitransfer.training.settings import read_dataset

    smiles = list(read_dataset(load_config(None)).polymers[:1000])
    recipe = FeatureRecipe()
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    names = ("MolWt", "MolLogP", "TPSA", "NumHDonors", "NumHAcceptors", "NumRotatableBonds", "RingCount", "MolMR")

    def plain() -> None:
        for text in smiles:
            molecule = Chem.MolFromSmiles(text.replace("*", "C"))
            generator.GetCountFingerprintAsNumPy(molecule)
            [getattr(Descriptors, name)(molecule) for name in names]

    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder))
        cache.polymer_features(smiles, recipe, are_identities=True)
        return compare(
            "Features of 1000 repeat units, one process",
            {
                "plain RDKit on one unit": plain,
                "chitransfer, endless chain": lambda: FeatureCache(None).polymer_features(
                    smiles, recipe, are_identities=True
                ),
                "chitransfer, from the cache": lambda: cache.polymer_features(smiles, recipe, are_identities=True),
            },
        )


def whole_search(n_rows: int) -> list[Timing]:
    """Seconds for a search of 50 trials of 100 epochs, computed from epochs of each encoder and a quick Stage 2."""
    data = make_stage1(n_rows)
    totals = {"conventional": np.zeros(2), "chitransfer": np.zeros(2)}
    for hidden in GUIDE_HIDDEN:
        timed = compare(
            hidden,
            {
                "conventional": ConventionalStage1(data, make_shape(data, hidden), make_settings(), 0).epoch,
                "chitransfer": _epochs(data, hidden),
            },
            n_runs=2,
        )
        for t in timed:
            totals[t.variant] += 50 * 100 / len(GUIDE_HIDDEN) * np.array([t.wall, t.cpu])
    for name, t in zip(totals, compare("stage 2", _ways_of_stage2(data), n_runs=1), strict=True):
        totals[name] += 50 * np.array([t.wall, t.cpu])
    return as_timings(
        f"Search of 50 trials × 100 epochs, {n_rows} rows, no pruning, one process (extrapolated)",
        {name: (float(wall), float(cpu)) for name, (wall, cpu) in totals.items()},
        2,
        {name: f"{wall / 3600:.1f} h on the clock, {cpu / 3600:.1f} CPU hours" for name, (wall, cpu) in totals.items()},
    )


def growth(n_rows: int) -> list[Timing]:
    """Stage 1 epoch by number of rows, from a tenth to ten times; ratios are relative to the smallest table."""
    sizes = (n_rows // 10, n_rows, 10 * n_rows)
    return compare("Stage 1 epoch by rows", {f"{size} rows": _epochs(make_stage1(size)) for size in sizes})


_WORKER = """
import sys, time, torch
n_rows, n_threads = map(int, sys.argv[1:])
torch.set_num_threads(n_threads)
from benchmarks.cases import _epochs
from benchmarks.synthetic import make_stage1
epoch = _epochs(make_stage1(n_rows))
epoch()
print('ready', flush=True)
sys.stdin.readline()
started = time.process_time()
for _ in range(6):
    epoch()
print(time.process_time() - started, flush=True)
"""


def _train_beside_each_other(n_processes: int, n_threads: int, n_rows: int) -> tuple[float, float]:
    """Wall and processor seconds for six epochs; the time the processes take together is divided among them."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _WORKER, str(n_rows), str(n_threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        for _ in range(n_processes)
    ]
    for process in processes:
        if process.stdout is not None:
            process.stdout.readline()
    started = time.perf_counter()
    for process in processes:
        if process.stdin is not None:
            process.stdin.write("go\n")
            process.stdin.flush()
    cpu = sum(float(process.communicate()[0]) for process in processes)
    return (time.perf_counter() - started) / n_processes, cpu / n_processes


def workers(n_rows: int) -> list[Timing]:
    """Seconds per six epochs of one process with one thread, of two such at a time, and of one with two threads."""
    n_rows = min(n_rows, 9_000)
    ways = {"1 worker of one thread": (1, 1), "2 workers of one thread": (2, 1), "1 worker of two threads": (1, 2)}
    runs = [[_train_beside_each_other(*way, n_rows) for way in ways.values()] for _ in range(N_WORKER_RUNS)]
    medians = dict(zip(ways, np.median(runs, axis=0).tolist(), strict=True))
    return as_timings(f"Seconds per 6 epochs of {n_rows} rows, by workers", medians, N_WORKER_RUNS)


def start_of_help(n_rows: int) -> list[Timing]:
    """`chitransfer --help` against starting Python alone."""
    return compare(
        "Start",
        {
            "python -c pass": lambda: subprocess.run([sys.executable, "-c", "pass"], check=True),
            "chitransfer --help": lambda: subprocess.run(
                [sys.executable, "-m", "chitransfer", "--help"], check=True, stdout=subprocess.DEVNULL
            ),
        },
        n_runs=5,
    )


def precision(n_rows: int) -> list[Timing]:
    """Stage 1 epoch in float32, and in bfloat16 after the first layer, which pays only if the processor supports it."""
    data = make_stage1(min(n_rows, 9_000))
    variants: dict[str, Callable[[], object]] = {}
    for name in ("fp32", "bf16"):
        settings = make_settings(10_000)
        run = Stage1Run(data, make_shape(data), type(settings)(**{**vars(settings), "precision": name}), 0)
        variants[name] = lambda run=run: run.train_to(run.epoch + 1)  # type: ignore[misc]
    return compare("Stage 1 epoch by precision", variants)


CASES: dict[str, Callable[[int], list[Timing]]] = {
    "stage1": stage1_epoch,
    "accuracy": stage1_accuracy,
    "stage2": quick_stage2,
    "finetune": whole_network_stage2,
    "features": features,
    "search": whole_search,
    "growth": growth,
    "workers": workers,
    "start": start_of_help,
    "precision": precision,
}


def run_case(name: str, n_rows: int, n_threads: int) -> list[Timing]:
    """Run one case with a fixed number of threads."""
    torch.set_num_threads(n_threads)
    return CASES[name](n_rows)
