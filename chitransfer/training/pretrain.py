"""Stage 1 in full: networks learn computed χ and are saved, with metrics on polymers they never saw; resumable.

Called by `chitransfer pretrain`; `training.finetune` starts from its checkpoint.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from chitransfer.config import Config, load_config
from chitransfer.counts import say_count
from chitransfer.data.assemble import Dataset
from chitransfer.data.table_remarks import describe_blank_cells, describe_builtin_beside_own, describe_left_out
from chitransfer.errors import CheckpointError, ConfigError, TrainingError
from chitransfer.files import write_csv, write_json
from chitransfer.interrupts import INTERRUPTS
from chitransfer.model.checkpoint import STATE, Pretrained, Scales, load_checkpoint, save_checkpoint
from chitransfer.model.network import TransferNetwork, inverse_temperature_line
from chitransfer.processors import use_threads
from chitransfer.progress import NamedProgress, Say
from chitransfer.seeds import derive_seed
from chitransfer.shortage import is_out_of_memory
from chitransfer.training.packed import carry
from chitransfer.training.run_folder import RunFolder, chi_scores, describe_provenance, describe_rows
from chitransfer.training.settings import (
    build_stage1_data,
    network_shape,
    read_dataset,
    resolve_device,
    stage1_settings,
)
from chitransfer.training.stage1 import Stage1Data, Stage1Run, predict_coefficients

SECONDS_BETWEEN_STATES = 30.0
# The keys that may change when an interrupted run is resumed, and which of the other keys have flags.
HEEDED = {"training.device", "training.num_threads"}
FLAGS = {"seed": "--seed", "paths.results_dir": "--results-dir"}


@dataclass(frozen=True)
class _Done:
    """A network whose training is finished, as `_train_networks` returns it and the state file stores it."""

    best: dict[str, torch.Tensor]
    final: dict[str, torch.Tensor]
    best_epoch: int
    best_mae: float
    history: list[dict[str, float]]


def choose_test_polymers(dataset: Dataset, fraction: float, seed: int) -> np.ndarray:
    """Polymers that neither stage learns from, as indices, sorted (n_test,) int64.

    Measured polymers: one fold of about that size, balanced in χ rows and labels because a few polymers may carry most
    rows; at least one polymer, but never the only one. Other polymers: a random share. A fraction of 0 gives none.
    """
    measured = dataset.measured_polymers()
    others = np.setdiff1d(np.arange(len(dataset.polymers)), measured)
    if fraction == 0.0:
        return np.zeros(0, dtype=np.int64)
    seed = derive_seed(seed, "test polymers")
    n_others = round((1.0 - fraction) / fraction)
    # Rounded, because for a fraction of 1/3 a fold a hair smaller than the others would be a different one.
    first_size = round(n_others * fraction / (1.0 - fraction), 6)
    if n_others >= len(measured):
        # Folds of a single polymer all have the same size.
        n_others, first_size = len(measured) - 1, 1.0
    chosen = np.random.default_rng(seed).permutation(others)[: round(fraction * len(others))]
    if n_others >= 1:
        folds = dataset.fold_of_polymers(1 + n_others, seed, first_size=first_size)
        chosen = np.concatenate([np.flatnonzero(folds == 0), chosen])
    return np.sort(chosen)


def load_run_config(folder: Path, overrides: Mapping[str, object]) -> Config:
    """The configuration an interrupted run started with, with the device and threads from the overrides, if given.

    Raises
    ------
    CheckpointError
        The folder does not belong to a run.
    ConfigError
        Some overrides would have no effect; the message names them as flags where there is one.
    """
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(f"{folder}: no config.yaml in it, so this is not a folder of `chitransfer pretrain`")
    useless = sorted(FLAGS.get(key, key) for key in overrides if key not in HEEDED)
    if useless:
        raise ConfigError(
            f"{folder}: an interrupted run continues with its own configuration; leave out {', '.join(useless)}. Only "
            "--device and training.num_threads may change"
        )
    return load_config(folder / "config.yaml", overrides)


def run_pretraining(config: Config, say: Say, progress: NamedProgress, resume: Path | None = None) -> RunFolder:
    """Train Stage 1 and write its folder.

    Parameters
    ----------
    config
        The configuration; when resuming, the one that `load_run_config` reads.
    resume
        The folder of an interrupted run.

    Raises
    ------
    ChitransferError
        Tables or the state file cannot be used, or a loss became NaN.
    """
    use_threads(config.training.num_threads)
    device = resolve_device(config.training.device)
    dataset = read_dataset(config, progress)
    tables = dataset.tables
    for line in (
        *describe_builtin_beside_own(tables),
        *describe_left_out(tables),
        *describe_blank_cells([dataset.stage1.table]),
    ):
        say(line)
    test = choose_test_polymers(dataset, config.training.test_fraction, config.seed)
    data = build_stage1_data(config, dataset, device, excluded_polymers=test)
    splits = _split_of_rows(dataset, data, test)
    folder = RunFolder.create(config.paths.results_dir, "dft_pretrain") if resume is None else RunFolder(resume)
    if resume is None:
        folder.write_start(config, dataset)
    say(
        f"Stage 1: {len(dataset.stage1)} rows of {dataset.stage1.table.source}; "
        + ", ".join(f"{name} {(splits == name).sum()}" for name in ("train", "validation", "test"))
        + f" rows (whole polymers); results in {folder.path}"
    )
    try:
        with folder.write_alone():
            done = _train_networks(config, dataset, data, folder, say, progress)
            tested = _write_results(config, dataset, data, folder, test, splits, done)["test"]
            folder.state.unlink(missing_ok=True)
    except (*INTERRUPTS, OSError):
        _say_how_to_go_on(folder, say)
        raise
    except Exception as error:
        if resume is None and not folder.state.is_file():
            folder.discard()
        elif is_out_of_memory(error):
            _say_how_to_go_on(folder, say)
        raise
    # The table of computed χ need not contain any of them.
    if tested["n_polymers"]:
        say(f"computed χ of {say_count(tested['n_polymers'], 'test polymer')}: MAE {tested['mae']:.4f}")
    say(f"Stage 1 is done: {folder.best_model}")
    return folder


def _say_how_to_go_on(folder: RunFolder, say: Say) -> None:
    say(f"interrupted; continue with: chitransfer pretrain --resume {shlex.quote(str(folder.path))}")


def _split_of_rows(dataset: Dataset, data: Stage1Data, test: np.ndarray) -> np.ndarray:
    splits = np.where(data.validation_rows, "validation", "train")
    splits[np.isin(dataset.stage1.polymer, test)] = "test"
    return splits


def _train_networks(
    config: Config, dataset: Dataset, data: Stage1Data, folder: RunFolder, say: Say, progress: NamedProgress
) -> list[_Done]:
    done, state = _read_state(folder, dataset)
    for number in range(len(done), config.training.n_networks):
        run = Stage1Run(
            data,
            network_shape(config, data.features.n_features),
            stage1_settings(config),
            derive_seed(config.seed, "full stage1", number),
        )
        if state is not None:
            run.load_state_dict(state)
            say(f"network {number + 1}: continuing after epoch {run.epoch}")
            state = None
        what = f"network {number + 1} of {config.training.n_networks}"
        saved = time.monotonic()

        def after_epoch(run: Stage1Run = run, what: str = what) -> None:
            nonlocal saved
            progress(what, run.epoch, config.training.num_epochs_pretrain)
            if time.monotonic() - saved > SECONDS_BETWEEN_STATES:
                _write_state(folder, dataset, done, run)
                saved = time.monotonic()

        carry([run], config.training.num_epochs_pretrain, after_epoch)
        progress(what, config.training.num_epochs_pretrain, config.training.num_epochs_pretrain)
        final = {name: tensor.detach().cpu().clone() for name, tensor in run.latest_network().state_dict().items()}
        best = {name: tensor.detach().cpu().clone() for name, tensor in run.best_network().state_dict().items()}
        done.append(_Done(best, final, run.best_epoch, run.best_mae, run.history))
        _write_state(folder, dataset, done, None)
        say(
            f"{what}: validation MAE {run.best_mae:.4f} at epoch {run.best_epoch} of {run.epoch}"
            + ("" if run.epoch == config.training.num_epochs_pretrain else " (stopped early)")
            + _why_last(run)
        )
    return done


def _why_last(run: Stage1Run) -> str:
    """Why the last epoch is kept regardless of validation, in brackets; empty where the best one is kept."""
    settings, n_polymers = run.settings, run.data.n_validation_polymers
    if not run.is_by_chance(run.epoch):
        return ""
    if n_polymers < settings.min_validation_polymers:
        return (
            f" (the last one is kept: {say_count(n_polymers, 'validation polymer')} are too few to choose the best "
            f"epoch; training.min_validation_polymers is {settings.min_validation_polymers})"
        )
    return f" (the last one is kept: training.min_epochs_pretrain is {settings.min_epochs})"


def _write_state(folder: RunFolder, dataset: Dataset, done: list[_Done], run: Stage1Run | None) -> None:
    content = {
        "dataset": dataset.digest(),
        "done": [vars(one) for one in done],
        "run": None if run is None else run.state_dict(),
    }
    save_checkpoint(folder.state, STATE, content, {})


def _read_state(folder: RunFolder, dataset: Dataset) -> tuple[list[_Done], dict[str, Any] | None]:
    if folder.best_model.is_file():
        raise TrainingError(f"{folder.path}: this run is finished; start a new one without --resume")
    if not folder.state.is_file():
        return [], None
    content, _ = load_checkpoint(folder.state, STATE)
    if content["dataset"] != dataset.digest():
        raise TrainingError(
            f"{folder.path}: the tables or the features changed since this run began, so it cannot continue; restore "
            "the tables or start a new run without --resume"
        )
    return [_Done(**one) for one in content["done"]], content["run"]


def _write_results(
    config: Config,
    dataset: Dataset,
    data: Stage1Data,
    folder: RunFolder,
    test: np.ndarray,
    splits: np.ndarray,
    done: list[_Done],
) -> dict[str, Any]:
    rows = dataset.stage1
    shape = network_shape(config, data.features.n_features)
    names = np.asarray(dataset.polymers, dtype=object)
    features = data.features
    scales = Scales(dataset.recipe, features.polymer_scaler, features.solvent_scaler, data.chi_scaler, config.T_ref_K)
    provenance = describe_provenance(
        config,
        dataset,
        best_epochs=[one.best_epoch for one in done],
        validation_mae=[one.best_mae for one in done],
        test_fraction=config.training.test_fraction,
    )
    scores: dict[str, Any] = {}
    history = pd.concat([pd.DataFrame(one.history).assign(network=k + 1) for k, one in enumerate(done)])
    write_csv(folder.path / "history.csv", history)
    for which, path in (("final", folder.final_model), ("best", folder.best_model)):
        networks = [_rebuild(TransferNetwork(shape), getattr(one, which)) for one in done]
        if which == "best":
            frame = _predict_rows(networks, data, dataset, splits)
            write_csv(folder.path / "predictions.csv", frame)
            scores = _score(frame, rows.polymer, done)
            write_json(folder.metrics, scores)
        Pretrained(
            scales,
            networks,
            tuple(names[np.unique(rows.polymer[splits == "validation"])]),
            tuple(names[test]),
            provenance,
        ).save(path)
    return scores


def _rebuild(network: TransferNetwork, weights: dict[str, torch.Tensor]) -> TransferNetwork:
    network.load_state_dict(weights)
    return network.eval()


def _predict_rows(
    networks: list[TransferNetwork], data: Stage1Data, dataset: Dataset, splits: np.ndarray
) -> pd.DataFrame:
    """Predictions for every Stage 1 row: χ as the mean over networks, and its A (K) and B."""
    rows, device = dataset.stage1, data.features.device
    pairs, row_of_pair = np.unique(np.column_stack([rows.structure, rows.solvent]), axis=0, return_inverse=True)
    structure, solvent = (torch.tensor(pairs[:, k], device=device) for k in (0, 1))
    coefficients = torch.stack(
        [predict_coefficients(network.to(device), data.features, structure, solvent).cpu() for network in networks]
    ).double()
    A, B = inverse_temperature_line(coefficients.mean(0), data.chi_scaler.mean, data.chi_scaler.scale, data.T_ref)
    A_rows, B_rows = A.numpy()[row_of_pair.ravel()], B.numpy()[row_of_pair.ravel()]
    for network in networks:
        network.cpu()
    return pd.DataFrame(
        {
            **describe_rows(rows),
            "split": splits,
            "chi_predicted": A_rows / rows.temperature + B_rows,
            "A_K": A_rows,
            "B": B_rows,
        }
    )


def _score(frame: pd.DataFrame, polymer: np.ndarray, done: list[_Done]) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for name in ("train", "validation", "test"):
        chosen = (frame["split"] == name).to_numpy()
        part = frame[chosen]
        scores[name] = {
            "n_polymers": len(np.unique(polymer[chosen])),
            **chi_scores(part["chi"].to_numpy(), part["chi_predicted"].to_numpy()),
        }
    scores["networks"] = [{"best_epoch": one.best_epoch, "validation_mae": one.best_mae} for one in done]
    return scores
