"""Random tables of the guide's size for the cases: sparse counts, descriptors and a χ that a network can learn."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from chitransfer.model.network import NetworkShape
from chitransfer.model.scalers import ChiScaler, FeatureScaler
from chitransfer.training.inputs import FeatureRows, FeatureTable, PairTable
from chitransfer.training.stage1 import Stage1Data, Stage1Settings
from chitransfer.training.tasks import Stage2Data, Stage2Settings, TaskRows

FULL_ROWS = 47_676
N_BITS, N_DESCRIPTORS, N_SET_BITS = 2048, 13, 40
GUIDE_HIDDEN = {"512_256": (512, 256), "1024_512_256": (1024, 512, 256), "256_128": (256, 128)}


def make_stage1(n_rows: int, seed: int = 0, device: str = "cpu") -> Stage1Data:
    """One row per polymer at one temperature; bit frequencies vary as for real polymers; 10 % validation."""
    rng = np.random.default_rng(seed)
    popularity = np.cumsum(1 / np.arange(1, N_BITS + 1) ** 0.9)
    bits = np.searchsorted(popularity, rng.random((n_rows, N_SET_BITS)) * popularity[-1])
    third = np.full(bits.size, 1 / 3, np.float32)
    counts = sparse.coo_array((third, (np.repeat(np.arange(n_rows), N_SET_BITS), bits.ravel())), (n_rows, N_BITS))
    descriptors = rng.standard_normal((n_rows, N_DESCRIPTORS)).astype(np.float32)
    features = sparse.csr_array(sparse.hstack([counts.tocsr(), descriptors], format="csr"))
    teacher = (rng.standard_normal((N_BITS + N_DESCRIPTORS, 8)) * 0.5).astype(np.float32)
    chi = np.tanh(features @ teacher) @ rng.standard_normal(8)
    chi = (chi - chi.mean()) / chi.std() + 0.2 * rng.standard_normal(n_rows)
    none = FeatureScaler(N_BITS, np.zeros(N_DESCRIPTORS, np.float32), np.ones(N_DESCRIPTORS, np.float32))
    empty = FeatureScaler(0, np.zeros(0, np.float32), np.ones(0, np.float32))
    there = torch.device(device)
    polymer = FeatureRows(features, there)
    table_of_features = FeatureTable(
        polymer, FeatureRows(sparse.csr_array((1, 0), dtype=np.float32), there), none, empty
    )

    def table(start: int, stop: int) -> PairTable:
        target = torch.from_numpy(chi[start:stop, None].astype(np.float32)).to(device)
        return PairTable(
            structure=torch.arange(start, stop, device=device),
            solvent=torch.zeros(stop - start, dtype=torch.int64, device=device),
            tau=torch.zeros_like(target),
            target=target,
            mask=torch.ones_like(target),
        )

    n_train = round(0.9 * n_rows)
    return Stage1Data(
        features=table_of_features,
        chi_scaler=ChiScaler(0.0, 1.0),
        train=table(0, n_train),
        validation=table(n_train, n_rows),
        validation_rows=np.zeros(0, dtype=bool),
        n_validation_polymers=n_rows - n_train,
        T_ref=298.15,
    )


def make_shape(data: Stage1Data, hidden: str = "512_256") -> NetworkShape:
    """The guide's default network, or another of its encoders."""
    return NetworkShape(data.features.n_features, GUIDE_HIDDEN[hidden], 128, 0.2, False, 64, 0.1, 64, 0.1)


def make_settings(n_epochs: int = 100) -> Stage1Settings:
    """The guide's Stage 1, without early stopping, so that the number of epochs is fixed."""
    return Stage1Settings(
        lr=1e-3,
        weight_decay=1e-4,
        batch_size=256,
        n_epochs=n_epochs,
        early_stopping_patience=n_epochs,
        lr_schedule_patience=5,
        lr_schedule_factor=0.5,
        grad_clip_norm=1.0,
        precision="auto",
    )


def make_stage2(data: Stage1Data, n_chi: int = 40, n_labels: int = 443, seed: int = 1) -> Stage2Data:
    """Stage 2 tables of the guide's size, on structures of the Stage 1 table."""
    rng = np.random.default_rng(seed)

    def rows(n: int, target: Tensor) -> TaskRows:
        structure = torch.from_numpy(rng.integers(0, len(data.features.polymer), n))
        parts = structure, torch.zeros(n, dtype=torch.int64), torch.zeros(n), target
        return TaskRows(*(part.to(data.train.tau.device) for part in parts))

    return Stage2Data(
        features=data.features,
        chi_scaler=data.chi_scaler,
        chi=rows(n_chi, torch.from_numpy(rng.standard_normal(n_chi).astype(np.float32))),
        solubility=rows(n_labels, torch.from_numpy((rng.random(n_labels) < 0.4).astype(np.float32))),
        positive_label=1,
        T_ref=298.15,
    )


def make_stage2_settings() -> Stage2Settings:
    """The guide's quick Stage 2."""
    return Stage2Settings(
        lr=1e-3,
        lr_encoder=1e-4,
        weight_decay=1e-4,
        batch_size=64,
        n_epochs=20,
        lambda_exp=3.0,
        lambda_sol=1.0,
        class_weight_pos=5.0,
        freeze_encoder=True,
        grad_clip_norm=1.0,
    )


def fold_masks(n_rows: int, n_folds: int, n_repeats: int) -> np.ndarray:
    """Training rows of every member, (n_repeats · n_folds, n_rows) bool."""
    rng = np.random.default_rng(7)
    folds = np.stack([rng.permutation(n_rows) % n_folds for _ in range(n_repeats)])
    return (folds[:, None, :] != np.arange(n_folds)[None, :, None]).reshape(-1, n_rows)
