"""Is a search with the fast Stage 1 as good as with a conventional loop? Whole searches of several seeds, side by side.

`python -m benchmarks.search_quality` searches twice for every seed on part of the built-in tables: same space, sampler,
folds and quick Stage 2; only Stage 1 differs.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import optuna
import torch

from benchmarks.conventional import ConventionalStage1
from chitransfer.config import Config, load_config, override_config
from chitransfer.data.assemble import Dataset
from chitransfer.data.subsets import keep_rows
from chitransfer.model.network import NetworkShape, TransferNetwork
from chitransfer.search.objective import RungTask
from chitransfer.search.runner import TrialRunner
from chitransfer.search.space import default_params, make_sampler, suggest_params, to_overrides
from chitransfer.seeds import derive_seed
from chitransfer.training.settings import network_shape, read_dataset, stage1_settings
from chitransfer.training.stage1 import Stage1Data, Stage1Run, Stage1Settings


class ConventionalRun:
    """A conventional Stage 1 with the interface that `TrialRunner` and `carry` need of a `Stage1Run`."""

    def __init__(self, data: Stage1Data, shape: NetworkShape, settings: Stage1Settings, seed: int) -> None:
        self._run, self._settings, self._scale = (
            ConventionalStage1(data, shape, settings, seed),
            settings,
            data.chi_scaler.scale,
        )
        self.device = data.features.device
        self.epoch, self.best_epoch, self.best_mae = 0, 0, float("inf")
        self.history: list[dict[str, float]] = []
        self._best = self._run.network

    @property
    def finished(self) -> bool:
        """True when all epochs are done or validation has stopped improving."""
        is_stale = self.epoch - self.best_epoch >= self._settings.early_stopping_patience
        return self.epoch >= self._settings.n_epochs or is_stale

    def train_to(self, epoch: int) -> None:
        """Train until a total of `epoch` epochs is reached, or early stopping."""
        while not self.finished and self.epoch < epoch:
            mae = self._run.epoch() * self._scale
            self.epoch += 1
            if mae < self.best_mae:
                self.best_mae, self.best_epoch, self._best = mae, self.epoch, copy.deepcopy(self._run.network)

    def best_network(self) -> TransferNetwork:
        """The network with the weights of the best epoch."""
        return self._best.eval()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: these runs are never resumed."""
        return {}


class ConventionalRunner(TrialRunner):
    """A `TrialRunner` whose Stage 1 is conventional."""

    def start(self, task: RungTask) -> list[Stage1Run]:
        """One conventional run."""
        config = override_config(self.config, task.overrides)
        shape = network_shape(config, self.stage1_data.features.n_features)
        run = ConventionalRun(
            self.stage1_data, shape, stage1_settings(config), derive_seed(config.seed, "pretrain", task.number, 0)
        )
        return [cast(Stage1Run, run)]


def one_temperature(dataset: Dataset, n_polymers: int) -> Dataset:
    """The dataset with computed χ of `n_polymers` polymers, at the most frequent temperature."""
    rows = dataset.stage1
    temperatures, counts = np.unique(rows.temperature, return_counts=True)
    chosen = np.flatnonzero(rows.temperature == temperatures[np.argmax(counts)])
    _, first = np.unique(rows.polymer[chosen], return_index=True)
    drawn = np.random.default_rng(0).permutation(chosen[first])[:n_polymers]
    kept = np.zeros(len(rows), dtype=bool)
    kept[drawn] = True
    return replace(dataset, stage1=keep_rows(rows, kept))


def search(runner: TrialRunner, config: Config, n_trials: int) -> list[float]:
    """Objective of every trial of a search; trial 0 is the default configuration.

    Raises
    ------
    SystemExit
        A trial failed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    study.enqueue_trial(default_params(config)[0])
    for number in range(n_trials):
        study.sampler = make_sampler(config.search, config.seed, number)
        trial = study.ask()
        params = suggest_params(study, trial, config.search, config.seed)
        overrides = to_overrides(params, config.search.space)
        result = runner.run(RungTask(number, overrides, config.training.num_epochs_pretrain, None))
        if result.failure:
            raise SystemExit(f"trial {number} failed: {result.failure}")
        study.tell(trial, result.value)
    return [float(trial.value or np.nan) for trial in study.trials]


def describe(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Search both ways and print a line for every seed."""
    parser = argparse.ArgumentParser(description="Best objectives by either Stage 1; see docs/performance.md.")
    parser.add_argument("--seeds", type=int, default=5, help="searches of either kind (%(default)s)")
    parser.add_argument("--trials", type=int, default=15, help="of each search (%(default)s)")
    parser.add_argument("--epochs", type=int, default=30, help="of Stage 1 (%(default)s)")
    parser.add_argument("--polymers", type=int, default=4000, help="of Stage 1 (%(default)s)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    fixed = {
        "training.num_epochs_pretrain": chosen.epochs,
        "training.early_stopping_patience": 20,
        "training.lr_schedule_patience": 5,
        "training.precision": "fp32",
    }
    dataset = one_temperature(read_dataset(load_config(None, fixed)), chosen.polymers)
    print("| seed | conventional: default, best | chitransfer: default, best | seconds: conventional, chitransfer |")
    print("|---|---|---|---|", flush=True)
    best: dict[str, list[float]] = {"conventional": [], "chitransfer": []}
    for seed in range(chosen.seeds):
        config = load_config(None, {**fixed, "seed": seed})
        cells, seconds = [], []
        for kind, make in (("conventional", ConventionalRunner), ("chitransfer", TrialRunner)):
            started = time.perf_counter()
            values = search(make(config, dataset, n_threads=1), config, chosen.trials)
            seconds.append(time.perf_counter() - started)
            best[kind].append(min(values))
            cells.append(f"{values[0]:.4f}, {min(values):.4f}")
        print(f"| {seed} | {cells[0]} | {cells[1]} | {seconds[0]:.0f}, {seconds[1]:.0f} |", flush=True)
    print("\nbest objective: " + ", ".join(f"{kind} {describe(values)}" for kind, values in best.items()))


if __name__ == "__main__":
    main()
