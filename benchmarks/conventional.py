"""Both stages as a competent user writes them: Dataset, DataLoader, autograd, AdamW; Stage 1 also in Lightning."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from chitransfer.model.network import NetworkShape, TransferNetwork, chi_at
from chitransfer.training.inputs import PairTable
from chitransfer.training.stage1 import Stage1Data, Stage1Settings
from chitransfer.training.tasks import Stage2Data, Stage2Settings

Item = tuple[Tensor, Tensor, Tensor]


class PolymerDataset(Dataset[Item]):
    """One polymer's features, τ and χ per item."""

    def __init__(self, data: Stage1Data, pairs: PairTable) -> None:
        self.features = data.features.polymer.gather(pairs.structure).numpy()
        self.tau, self.chi = pairs.tau[:, 0].numpy(), pairs.target[:, 0].numpy()

    def __len__(self) -> int:
        return len(self.chi)

    def __getitem__(self, position: int) -> Item:
        return (
            torch.from_numpy(self.features[position]),
            torch.tensor(self.tau[position]),
            torch.tensor(self.chi[position]),
        )


def _predict(network: TransferNetwork, features: Tensor, tau: Tensor) -> Tensor:
    return chi_at(network.heads.chi(network.encoder(features)), tau)


class ConventionalStage1:
    """Stage 1 with a loop over batches from a DataLoader.

    Attributes
    ----------
    network
        The network under training.
    """

    def __init__(self, data: Stage1Data, shape: NetworkShape, settings: Stage1Settings, seed: int) -> None:
        torch.manual_seed(seed)
        self.network = TransferNetwork(shape)
        self._trained = [*self.network.encoder.parameters(), *self.network.heads.chi.parameters()]
        self._optimizer = torch.optim.AdamW(self._trained, lr=settings.lr, weight_decay=settings.weight_decay)
        self._schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._optimizer, factor=settings.lr_schedule_factor, patience=settings.lr_schedule_patience
        )
        batch_size = settings.batch_size_for(len(data.train))
        self._loader = DataLoader(PolymerDataset(data, data.train), batch_size, shuffle=True)
        self._validation = DataLoader(PolymerDataset(data, data.validation), settings.batch_size)
        self._grad_clip_norm = settings.grad_clip_norm

    def epoch(self) -> float:
        """Train one more epoch; the validation MAE in standardised χ."""
        criterion = nn.MSELoss()
        self.network.train()
        running = 0.0
        for features, tau, chi in self._loader:
            self._optimizer.zero_grad()
            loss = criterion(_predict(self.network, features, tau), chi)
            loss.backward()
            nn.utils.clip_grad_norm_(self._trained, self._grad_clip_norm)
            self._optimizer.step()
            running += loss.item()
        self.network.eval()
        errors = []
        with torch.no_grad():
            for features, tau, chi in self._validation:
                errors.append((_predict(self.network, features, tau) - chi).abs())
        mae = float(torch.cat(errors).mean())
        self._schedule.step(mae)
        return mae


def lightning_epochs(
    data: Stage1Data, shape: NetworkShape, settings: Stage1Settings, n_epochs: int
) -> Callable[[], None]:
    """A function that fits `n_epochs` epochs with Lightning's defaults, without logging or checkpoints.

    Raises
    ------
    ImportError
        Lightning is not installed.
    """
    import logging

    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = TransferNetwork(shape)

        def training_step(self, batch: Item, number: int) -> Tensor:
            features, tau, chi = batch
            return nn.functional.mse_loss(_predict(self.network, features, tau), chi)

        def validation_step(self, batch: Item, number: int) -> None:
            features, tau, chi = batch
            self.log("mae", (_predict(self.network, features, tau) - chi).abs().mean(), on_epoch=True)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)

    loader = DataLoader(PolymerDataset(data, data.train), settings.batch_size, shuffle=True)
    validation = DataLoader(PolymerDataset(data, data.validation), settings.batch_size)

    def fit() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lightning.Trainer(
                max_epochs=n_epochs,
                accelerator="cpu",
                devices=1,
                gradient_clip_val=settings.grad_clip_norm,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
            ).fit(Module(), loader, validation)

    return fit


def plain_finetuning(
    network: TransferNetwork, data: Stage2Data, train_chi: np.ndarray, train_solubility: np.ndarray, s: Stage2Settings
) -> None:
    """Fine-tune whole networks, or only heads on a frozen encoder, one member after another, as usual in PyTorch.

    Parameters
    ----------
    train_chi, train_solubility
        Training rows of every member, (n_members, n_rows) bool.
    """
    weight = torch.tensor(s.class_weight_pos)
    latents: list[Tensor] = []
    if s.freeze_encoder:
        with torch.no_grad():
            for table in (data.chi, data.solubility):
                latents.append(network.encoder(data.features.gather(table.structure, table.solvent)))

    def outputs(member: TransferNetwork, number: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        table = (data.chi, data.solubility)[number]
        given = latents[number][rows] if latents else data.features.gather(table.structure[rows], table.solvent[rows])
        result: tuple[Tensor, Tensor] = (member.heads if latents else member)(given)
        return result

    for own_chi, own_solubility in zip(train_chi, train_solubility, strict=True):
        member = copy.deepcopy(network).train()
        groups = [{"params": member.heads.parameters(), "lr": s.lr}]
        if not s.freeze_encoder:
            groups.append({"params": member.encoder.parameters(), "lr": s.lr_encoder})
        optimizer = torch.optim.AdamW(groups, weight_decay=s.weight_decay)
        own = [np.flatnonzero(rows) for rows in (own_chi, own_solubility)]
        n_steps = -(-max(map(len, own)) // s.batch_size)
        for _ in range(s.n_epochs):
            orders = [torch.from_numpy(np.random.default_rng().permutation(rows)) for rows in own]
            for step in range(n_steps):
                of_chi, of_solubility = (order[step::n_steps] for order in orders)
                h, _ = outputs(member, 0, of_chi)
                _, logit = outputs(member, 1, of_solubility)
                loss = s.lambda_exp * functional.mse_loss(chi_at(h, data.chi.tau[of_chi]), data.chi.target[of_chi])
                loss = loss + s.lambda_sol * functional.binary_cross_entropy_with_logits(
                    logit, data.solubility.target[of_solubility], pos_weight=weight
                )
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(member.parameters(), s.grad_clip_norm)
                optimizer.step()
