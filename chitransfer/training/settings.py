"""From the configuration to the plain parameters of the training code.

No code below this module sees a `Config`; at its level `pretrain`, `finetune`, `run_folder` and `handover` do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from chitransfer.chemistry.features import default_cache_folder
from chitransfer.config import Config
from chitransfer.data.assemble import Dataset, load_dataset
from chitransfer.data.check import check_tables
from chitransfer.data.check_facts import CheckReport
from chitransfer.data.tables import read_chi_table, read_solubility_table, read_stage1_table
from chitransfer.errors import ConfigError
from chitransfer.model.network import NetworkShape
from chitransfer.processors import count_processors
from chitransfer.progress import NamedProgress, name_progress
from chitransfer.seeds import derive_seed
from chitransfer.training.crossval import make_folds
from chitransfer.training.stage1 import Stage1Data, Stage1Settings
from chitransfer.training.tasks import Stage2Settings, choose_positive_label


def read_dataset(config: Config, progress: NamedProgress | None = None) -> Dataset:
    """Load the three tables of a configuration; raises DataError as `load_dataset` does."""
    return load_dataset(
        config.paths.dft_chi_csv,
        config.paths.exp_chi_csv,
        config.paths.solubility_csv,
        representation=config.chem.representation,
        fingerprint_bits=config.chem.fingerprint_bits,
        fingerprint_radius=config.chem.fingerprint_radius,
        on_bad_rows=config.data.on_bad_rows,
        on_contradictory_labels=config.data.on_contradictory_labels,
        cache_folder=None if config.paths.cache_dir is None else Path(config.paths.cache_dir),
        n_jobs=count_processors(),
        progress=progress,
    )


def resolve_device(name: str) -> torch.device:
    """The device that a configuration asks for; ``auto`` takes CUDA if available.

    Raises
    ------
    ConfigError
        The configuration asks for a CUDA device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"training.device: {name} is not on this machine ({torch.cuda.device_count()} CUDA device(s) found); "
            "use cpu or auto"
        )
    return device


def make_study_folds(config: Config, dataset: Dataset, among: np.ndarray | None = None) -> np.ndarray:
    """The folds shared by all trials of a study and by full training, as returned by `make_folds`."""
    return make_folds(dataset, config.cv.n_cv_folds, config.cv.n_cv_repeats, derive_seed(config.seed, "folds"), among)


def build_stage1_data(
    config: Config, dataset: Dataset, device: torch.device, excluded_polymers: np.ndarray | None = None
) -> Stage1Data:
    """Stage 1's rows with the validation polymers that all runs of a configuration share; see `Stage1Data.build`."""
    return Stage1Data.build(
        dataset,
        validation_fraction=config.training.validation_fraction,
        random_state=derive_seed(config.seed, "stage1 validation"),
        T_ref=config.T_ref_K,
        device=device,
        excluded_polymers=excluded_polymers,
    )


def network_shape(config: Config, n_features: int) -> NetworkShape:
    """Sizes and dropouts of `config.model` for inputs of width `n_features`."""
    model = config.model
    return NetworkShape(
        n_features=n_features,
        hidden_dims=tuple(model.encoder_hidden_dims),
        latent_dim=model.encoder_latent_dim,
        encoder_dropout=model.encoder_dropout,
        use_batchnorm=model.use_batchnorm,
        chi_head_hidden_dim=model.chi_head_hidden_dim,
        chi_head_dropout=model.chi_head_dropout,
        solubility_head_hidden_dim=model.solubility_head_hidden_dim,
        solubility_head_dropout=model.solubility_head_dropout,
    )


def stage1_settings(config: Config) -> Stage1Settings:
    """The Stage 1 part of `config.training`."""
    training = config.training
    return Stage1Settings(
        lr=training.lr_pretrain,
        weight_decay=training.weight_decay,
        batch_size=training.batch_size_dft,
        min_batches_per_epoch=training.min_batches_per_epoch,
        min_validation_polymers=training.min_validation_polymers,
        n_epochs=training.num_epochs_pretrain,
        early_stopping_patience=training.early_stopping_patience,
        lr_schedule_patience=training.lr_schedule_patience,
        lr_schedule_factor=training.lr_schedule_factor,
        grad_clip_norm=training.grad_clip_norm,
        precision=training.precision,
        min_epochs=training.min_epochs_pretrain,
    )


def stage2_settings(config: Config, n_epochs: int, *, is_full: bool = False) -> Stage2Settings:
    """The Stage 2 part of `config.training`, for a quick or a full run of `n_epochs`.

    Decaying learning rates and the rehearsal of computed χ belong to full runs; quick runs must stay comparable.
    """
    training = config.training
    return Stage2Settings(
        lr=training.lr_finetune,
        lr_encoder=training.lr_encoder,
        weight_decay=training.weight_decay_finetune,
        batch_size=training.batch_size_exp,
        n_epochs=n_epochs,
        lambda_exp=training.lambda_exp,
        lambda_sol=training.lambda_sol,
        class_weight_pos=training.class_weight_pos,
        freeze_encoder=training.freeze_encoder_stage2,
        grad_clip_norm=training.grad_clip_norm,
        lr_decay=is_full and training.lr_decay_finetune,
        lambda_dft=training.lambda_dft if is_full else 0.0,
    )


def check_configured_tables(config: Config, progress: NamedProgress) -> CheckReport:
    """Check the tables of a configuration before training; bad rows and contradictions are reported together.

    Raises
    ------
    DataError
        A table cannot be read at all.
    """
    cache_folder = default_cache_folder() if config.paths.cache_dir is None else Path(config.paths.cache_dir)
    n_jobs = count_processors()
    paths, bad_rows, settle = config.paths, config.data.on_bad_rows, config.data.on_contradictory_labels
    chi = solubility = None
    stage1 = read_stage1_table(
        paths.dft_chi_csv,
        on_bad_rows="skip",
        cache_folder=cache_folder,
        n_jobs=n_jobs,
        progress=name_progress(progress, "Stage 1 table"),
    )
    if paths.exp_chi_csv is not None:
        chi = read_chi_table(paths.exp_chi_csv, on_bad_rows="skip", cache_folder=cache_folder, n_jobs=n_jobs)
    if paths.solubility_csv is not None:
        solubility = read_solubility_table(
            paths.solubility_csv,
            on_contradictory_labels="drop" if settle == "error" else settle,
            on_bad_rows="skip",
            cache_folder=cache_folder,
            n_jobs=n_jobs,
        )
    # If all labels contradict each other, the table has no rows left.
    labels = solubility.rows["soluble"].to_numpy() if solubility is not None and len(solubility) else None
    return check_tables(
        stage1,
        chi,
        solubility,
        n_folds=config.cv.n_cv_folds,
        positive_label=choose_positive_label(labels, config.solubility.positive),
        on_bad_rows=bad_rows,
        on_contradictory_labels=settle,
        cache_folder=cache_folder,
        n_jobs=n_jobs,
        progress=progress,
    )
