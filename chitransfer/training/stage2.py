"""Stage 2: heads (or the whole network) learn measured χ(T) and solubility, many cross-validation members at once.

`fit_members` trains; `training.crossval` scores trials with it and `training.finetune` makes final models with it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from chitransfer.data.assemble import Dataset, Rows
from chitransfer.errors import TrainingError
from chitransfer.model.members import FittedMembers, keep_columns
from chitransfer.model.network import Heads, TransferNetwork, chi_at, inverse_temperature
from chitransfer.model.scalers import ChiScaler
from chitransfer.training.inputs import FeatureTensors, Pairs, PairTable, used_columns
from chitransfer.training.loop import train_epochs
from chitransfer.training.losses import chi_loss, solubility_loss
from chitransfer.training.rehearsal import Rehearsal


@dataclass(frozen=True)
class Stage2Settings:
    """How Stage 2 is optimised, in plain numbers (see `configs/config.yaml` for their meaning)."""

    lr: float
    lr_encoder: float
    weight_decay: float
    batch_size: int
    n_epochs: int
    lambda_exp: float
    lambda_sol: float
    class_weight_pos: float
    freeze_encoder: bool
    grad_clip_norm: float
    lr_decay: bool = False
    lambda_dft: float = 0.0


@dataclass(frozen=True)
class TaskRows:
    """Rows of one Stage 2 task on the device: a pair by index, τ, and the target (n_rows,)."""

    structure: Tensor
    solvent: Tensor
    tau: Tensor
    target: Tensor

    def __len__(self) -> int:
        return int(self.target.shape[0])


@dataclass(frozen=True)
class Stage2Data:
    """Both Stage 2 tables on a device, on the scales of a Stage 1 run; an absent table has no rows.

    χ targets are standardised with Stage 1's scaler, so its χ head can go on where it stopped. The solubility target is
    1 for the positive class. `computed` holds Stage 1's rows where a full run goes on with them.
    """

    features: FeatureTensors
    chi_scaler: ChiScaler
    chi: TaskRows
    solubility: TaskRows
    positive_label: int
    T_ref: float
    computed: PairTable | None = None

    @classmethod
    def build(
        cls, dataset: Dataset, features: FeatureTensors, chi_scaler: ChiScaler, *, positive_label: int, T_ref: float
    ) -> Stage2Data:
        """Put the Stage 2 rows on the device of `features`."""
        chi, solubility = dataset.chi, dataset.solubility
        return cls(
            features=features,
            chi_scaler=chi_scaler,
            chi=_task_rows(chi, np.zeros(0) if chi is None else chi_scaler.transform(chi.value), T_ref, features),
            solubility=_task_rows(
                solubility, np.zeros(0) if solubility is None else solubility.value == positive_label, T_ref, features
            ),
            positive_label=positive_label,
            T_ref=T_ref,
        )


def _task_rows(rows: Rows | None, target: np.ndarray, T_ref: float, features: FeatureTensors) -> TaskRows:
    device = features.polymer.device
    temperature = torch.tensor([] if rows is None else rows.temperature, dtype=torch.float64)
    return TaskRows(
        structure=torch.tensor([] if rows is None else rows.structure, dtype=torch.int64, device=device),
        solvent=torch.tensor([] if rows is None else rows.solvent, dtype=torch.int64, device=device),
        tau=inverse_temperature(temperature, T_ref).float().to(device),
        target=torch.from_numpy(target.astype(np.float32)).to(device),
    )


def resolve_positive_label(rows: Rows | None, positive: str) -> int:
    """The label (1 soluble, 0 insoluble) that F1 and recall speak of; ``minority`` counts the table's rows."""
    if positive == "minority" and rows is not None:
        return 1 if float(np.mean(rows.value)) <= 0.5 else 0
    return 0 if positive == "insoluble" else 1


class _MemberTraining:
    """The state of `fit_members`: what the epoch loop calls back into."""

    def __init__(
        self,
        network: TransferNetwork,
        data: Stage2Data,
        train_chi: Tensor,
        train_solubility: Tensor,
        settings: Stage2Settings,
        seed: int,
    ) -> None:
        self.data, self.settings = data, settings
        self.train_rows = {"chi": train_chi, "solubility": train_solubility}
        self.tasks = {"chi": data.chi, "solubility": data.solubility}
        self.n_members = int(train_chi.shape[0])
        self.frozen = settings.freeze_encoder
        self._shuffle = torch.Generator().manual_seed(seed)
        network = copy.deepcopy(network).eval()
        computed = data.computed if settings.lambda_dft > 0 and not self.frozen else None
        # No gradient reaches the first-layer weights of a feature that no row has: they are left out, not copied.
        tables: list[Pairs] = [data.chi, data.solubility]
        if computed is not None:
            tables.append(computed)
        columns = None if self.frozen else used_columns(data.features, tables)
        self.features = data.features if columns is None else data.features.keep(columns)
        trained = network if columns is None else keep_columns(network, columns)
        stacked = _stack_members(trained, self.n_members, self.frozen)
        self.members = FittedMembers(network, stacked, self.frozen, columns)
        # What dropout acts on is put in training mode; batch statistics stay those of Stage 1.
        self.module = copy.deepcopy(trained.heads if self.frozen else trained)
        for part in self.module.modules():
            part.train(isinstance(part, nn.Dropout))
        self.inputs = {name: self._inputs(task) for name, task in self.tasks.items()}
        self.rehearsal = None
        if computed is not None:
            self.rehearsal = Rehearsal(trained, computed, self.features, self.n_members, settings.batch_size, seed)
        named = dict(self.members.parameters)
        if self.rehearsal is not None:
            named |= {f"computed.{name}": stacked for name, stacked in self.rehearsal.parameters.items()}
        self.trained = list(named.values())
        groups = {True: settings.lr_encoder, False: settings.lr}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": chosen, "lr": lr}
                for is_encoder, lr in groups.items()
                if (chosen := [p for n, p in named.items() if n.startswith("encoder.") == is_encoder])
            ],
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._initial_lr = [float(group["lr"]) for group in self.optimizer.param_groups]

    @torch.no_grad()
    def _inputs(self, task: TaskRows) -> Tensor | None:
        if not self.frozen or len(task) == 0:
            return None
        return self.members.network.encoder(self.data.features.gather(task.structure, task.solvent))

    def batches(self, epoch: int) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """Per step and task: row indices (member, width) and which of them are real."""
        largest = max(int(rows.sum(1).max()) if rows.numel() else 0 for rows in self.train_rows.values())
        n_steps = max(1, math.ceil(largest / self.settings.batch_size))
        shuffled = {name: self._shuffle_rows(rows, n_steps) for name, rows in self.train_rows.items() if rows.numel()}
        for step in range(n_steps):
            yield {name: (index[:, step::n_steps], real[:, step::n_steps]) for name, (index, real) in shuffled.items()}

    def _shuffle_rows(self, rows: Tensor, n_steps: int) -> tuple[Tensor, Tensor]:
        keys = torch.rand(rows.shape, generator=self._shuffle).to(rows.device) + (~rows).float() * 2.0
        counts = rows.sum(1, keepdim=True)
        width = min(rows.shape[1], math.ceil(int(counts.max()) / n_steps) * n_steps)
        index = keys.argsort(dim=1)[:, :width]  # (member, width)
        return index, torch.arange(width, device=rows.device) < counts

    def loss(self, batch: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Sum over members, so that each member's gradient is its own."""
        total = torch.zeros(self.n_members, device=self.data.chi.target.device)
        if "chi" in batch and self.settings.lambda_exp > 0:
            index, real = batch["chi"]
            coefficients, _ = self._forward("chi", index)
            predicted = chi_at(coefficients, self.data.chi.tau[index])
            total = total + self.settings.lambda_exp * chi_loss(predicted, self.data.chi.target[index], real)
        if "solubility" in batch and self.settings.lambda_sol > 0:
            index, real = batch["solubility"]
            _, logits = self._forward("solubility", index)
            label = self.data.solubility.target[index]
            total = total + self.settings.lambda_sol * solubility_loss(
                logits, label, real, self.settings.class_weight_pos
            )
        if self.rehearsal is not None:
            error = self.rehearsal.loss(self.module.get_submodule("encoder"), self.members.parameters)
            total = total + self.settings.lambda_dft * error
        return total.sum()

    def _forward(self, name: str, index: Tensor) -> tuple[Tensor, Tensor]:
        task, latents = self.tasks[name], self.inputs[name]
        inputs = (
            latents[index] if latents is not None else self.features.gather(task.structure[index], task.solvent[index])
        )  # (member, batch, …)

        def one(parameters: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
            result: tuple[Tensor, Tensor] = functional_call(self.module, parameters, (x,))
            return result

        result: tuple[Tensor, Tensor] = vmap(one, randomness="different")(self.members.parameters, inputs)
        return result

    def decay_rates(self, epoch: int) -> None:
        """Let the learning rates fall along half a cosine, if asked to."""
        if self.settings.lr_decay:
            factor = 0.5 * (1.0 + math.cos(math.pi * epoch / self.settings.n_epochs))
            for group, lr in zip(self.optimizer.param_groups, self._initial_lr, strict=True):
                group["lr"] = lr * factor

    def clip(self) -> None:
        """Clip each member's gradient by its own norm, as training it alone would."""
        gradients = [p.grad for p in self.trained if p.grad is not None]
        squares = torch.stack([g.reshape(self.n_members, -1).square().sum(1) for g in gradients]).sum(0)
        factor = (self.settings.grad_clip_norm / (squares.sqrt() + 1e-6)).clamp(max=1.0)  # (member,)
        for gradient in gradients:
            gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))


def _stack_members(network: TransferNetwork, n_members: int, frozen: bool) -> dict[str, Tensor]:
    copies: list[nn.Module] = []
    for _ in range(n_members):
        member = copy.deepcopy(network)
        member.heads.solubility = Heads(network.shape).solubility.to(next(network.parameters()).device)
        copies.append(member.heads if frozen else member)
    stacked, _ = stack_module_state(copies)
    return {name: tensor.detach().requires_grad_(True) for name, tensor in stacked.items()}


def fit_members(
    network: TransferNetwork,
    data: Stage2Data,
    train_chi: np.ndarray,
    train_solubility: np.ndarray,
    settings: Stage2Settings,
    seed: int,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> FittedMembers:
    """Fine-tune one member per row of the training masks, all at once.

    Every member starts from `network` (not changed) with a new solubility head. With a frozen encoder latents are
    computed once, in eval mode, and only the heads train.

    Parameters
    ----------
    train_chi, train_solubility
        True for the rows a member may learn from, (n_members, n_chi_rows) and (n_members, n_solubility_rows) bool.
    seed
        Fixes new weights, batch order and dropout.
    after_epoch
        Called with the number of epochs done.

    Raises
    ------
    TrainingError
        The loss became NaN or infinite.
    """
    learns_chi = settings.lambda_exp > 0 and bool(train_chi.any())
    if not learns_chi and not (settings.lambda_sol > 0 and bool(train_solubility.any())):
        raise TrainingError(
            "Stage 2 has nothing to learn: the only table with rows has weight zero; "
            "raise training.lambda_exp or training.lambda_sol, or give both tables"
        )
    device = data.features.polymer.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        training = _MemberTraining(
            network,
            data,
            torch.from_numpy(train_chi).to(device),
            torch.from_numpy(train_solubility).to(device),
            settings,
            seed,
        )

        def end_epoch(epoch: int, mean_loss: float) -> bool:
            training.decay_rates(epoch)
            after_epoch(epoch)
            return False

        train_epochs(
            first_epoch=1,
            last_epoch=settings.n_epochs,
            batches=training.batches,
            compute_loss=training.loss,
            optimizer=training.optimizer,
            clip_gradients=training.clip,
            end_epoch=end_epoch,
            what="Stage 2",
        )
    parameters = {name: tensor.detach() for name, tensor in training.members.parameters.items()}
    members = training.members
    return FittedMembers(members.network, parameters, members.frozen, members.columns)
