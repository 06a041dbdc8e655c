"""Stage 2: heads or whole networks learn measured χ(T) and solubility, many cross-validation members at once.

`fit_members` trains; `training.crossval` scores trials with it and `training.finetune` makes final models with it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from chitransfer.errors import TrainingError
from chitransfer.model.members import ROWS_AT_A_TIME, FittedMembers, keep_columns
from chitransfer.model.network import TransferNetwork, chi_at
from chitransfer.training.heads import HeadRows, HeadStep
from chitransfer.training.inputs import used_columns
from chitransfer.training.loop import step_of
from chitransfer.training.losses import chi_loss, solubility_loss
from chitransfer.training.member import let_dropout_work, train_members, with_new_solubility_head
from chitransfer.training.recorded import RecordedStep
from chitransfer.training.rehearsal import Rehearsal
from chitransfer.training.tasks import Stage2Data, Stage2Settings, TaskRows
from chitransfer.training.unfrozen import fit_one_by_one

ENCODER = "encoder."


class _MemberTraining:
    """The state of `fit_members`, which the epoch loop calls back into."""

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
        # A feature that no row has gives its first-layer weights no gradient: these weights are left out, not copied.
        columns = None if self.frozen else used_columns(data.features, data.learned_from(settings))
        self.features = data.features if columns is None else data.features.keep(columns)
        trained = network if columns is None else keep_columns(network, columns)
        stacked = _stack_members(trained, self.n_members, self.frozen)
        self.members = FittedMembers(network, stacked, self.frozen, columns, train_chi.any(1))
        self.module = copy.deepcopy(trained.heads if self.frozen else trained)
        let_dropout_work(self.module)
        counts = {name: int(rows.sum(1).max()) if rows.numel() else 0 for name, rows in self.train_rows.items()}
        self._with_rows = [name for name, count in counts.items() if count]
        self._n_steps = max(1, math.ceil(max(counts.values()) / settings.batch_size))
        self.inputs = {name: self._inputs(task) for name, task in self.tasks.items()}
        self.rehearsal = None
        if (computed := data.rehearsed(settings)) is not None:
            self.rehearsal = Rehearsal(trained, computed, settings.batch_size, seed)
        named = dict(self.members.parameters)
        if self.rehearsal is not None:
            self.second_heads = {
                name: parameter.detach().expand(self.n_members, *parameter.shape).clone().requires_grad_(True)
                for name, parameter in self.rehearsal.head.named_parameters()
            }
            named |= {f"computed.{name}": stacked for name, stacked in self.second_heads.items()}
        self.trained = list(named.values())
        device = train_chi.device
        self._by_hand = None
        if self.frozen and device.type == "cpu":
            most = {name: math.ceil(count / self._n_steps) for name, count in counts.items()}
            self._by_hand = HeadStep(named, network.shape, settings, most["chi"], most["solubility"])
            self.members.parameters |= self._by_hand.parameters
            self.trained = list(self._by_hand.parameters.values())
            named = {"heads": self._by_hand.values}
        # On a GPU steps are recorded, and a recording only takes tensors on the device.
        is_cuda = device.type == "cuda"
        groups = {True: settings.lr_encoder, False: settings.lr}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": chosen, "lr": torch.tensor(lr, device=device) if is_cuda else lr}
                for is_encoder, lr in groups.items()
                if (chosen := [p for n, p in named.items() if n.startswith(ENCODER) == is_encoder])
            ],
            weight_decay=settings.weight_decay,
            fused=True,
            capturable=is_cuda,
        )
        self._recorded = RecordedStep(device)

    @torch.no_grad()
    def _inputs(self, task: TaskRows) -> Tensor | None:
        if not self.frozen or len(task) == 0:
            return None
        # Dense inputs for all rows of a large table at once would take gigabytes.
        parts = zip(task.structure.split(ROWS_AT_A_TIME), task.solvent.split(ROWS_AT_A_TIME), strict=True)
        return torch.cat([self.members.network.encoder(self.data.features.gather(s, v)) for s, v in parts])

    def batches(self, epoch: int) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """For each step and task: row indices (member, width) and which of them are real."""
        if self._by_hand is not None:
            self._by_hand.begin_epoch()
        n_steps = self._n_steps
        shuffled = {name: self._shuffle_rows(self.train_rows[name], n_steps) for name in self._with_rows}
        for step in range(n_steps):
            yield {name: (index[:, step::n_steps], real[:, step::n_steps]) for name, (index, real) in shuffled.items()}

    def _shuffle_rows(self, rows: Tensor, n_steps: int) -> tuple[Tensor, Tensor]:
        keys = torch.rand(rows.shape, generator=self._shuffle).to(rows.device) + (~rows).float() * 2.0
        counts = rows.sum(1, keepdim=True)
        width = min(rows.shape[1], math.ceil(int(counts.max()) / n_steps) * n_steps)
        index = keys.argsort(dim=1)[:, :width]  # (member, width)
        return index, torch.arange(width, device=rows.device) < counts

    def take_step(self, batch: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Update the weights with a batch; returns the sum of the members' losses."""
        if self.rehearsal is not None:
            # Rehearsal draws its pairs on the CPU, which cannot be recorded.
            return step_of(self._loss, self.optimizer, self._clip)(batch)
        return self._recorded.take(self._step, *(part for rows in batch.values() for part in rows))

    def _step(self, *parts: Tensor) -> Tensor:
        batch = dict(zip(self._with_rows, zip(parts[::2], parts[1::2], strict=True), strict=True))
        return step_of(self._loss, self.optimizer, self._clip)(batch)

    def _loss(self, batch: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Sum over members, so that each member's gradient is its own."""
        if self._by_hand is not None:
            return self._loss_by_hand(self._by_hand, batch)
        total = torch.zeros(self.n_members, device=self.data.chi.target.device)
        if "chi" in batch:
            index, real = batch["chi"]
            coefficients, _ = self._forward("chi", index)
            predicted = chi_at(coefficients, self.data.chi.tau[index])
            total = total + self.settings.lambda_exp * chi_loss(predicted, self.data.chi.target[index], real)
        if "solubility" in batch:
            index, real = batch["solubility"]
            _, logits = self._forward("solubility", index)
            label = self.data.solubility.target[index]
            total = total + self.settings.lambda_sol * solubility_loss(
                logits, label, real, self.settings.class_weight_pos
            )
        if self.rehearsal is not None:
            total = total + self.settings.lambda_dft * self._rehearse(self.rehearsal)
        return total.sum()

    def _loss_by_hand(self, heads: HeadStep, batch: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        latents, rows = [], {}
        for name, (index, real) in batch.items():
            task, inputs = self.tasks[name], self.inputs[name]
            if inputs is not None:
                latents.append(inputs[index])
            rows[name] = HeadRows(real, task.target[index], task.tau[index])
        return heads.loss_and_gradients(torch.cat(latents, dim=1), rows.get("chi"), rows.get("solubility"))

    def _rehearse(self, rehearsal: Rehearsal) -> Tensor:
        pairs = rehearsal.draw(1)[0]
        inputs = self.features.gather(rehearsal.computed.structure[pairs], rehearsal.computed.solvent[pairs])
        encoder = self.module.get_submodule("encoder")
        weights = {
            name.removeprefix(ENCODER): stacked
            for name, stacked in self.members.parameters.items()
            if name.startswith(ENCODER)
        }

        def one(own: dict[str, Tensor], head: dict[str, Tensor]) -> Tensor:
            coefficients: Tensor = functional_call(rehearsal.head, head, (functional_call(encoder, own, (inputs,)),))
            return coefficients

        coefficients = vmap(one, randomness="different")(weights, self.second_heads)  # (member, pair, 2)
        return rehearsal.loss(coefficients, pairs)

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

    def _clip(self) -> None:
        """Clip each member's gradient by its own norm, as in training it alone."""
        gradients = [p.grad for p in self.trained if p.grad is not None]
        squares = torch.stack([g.reshape(self.n_members, -1).square().sum(1) for g in gradients]).sum(0)
        factor = (self.settings.grad_clip_norm / (squares.sqrt() + 1e-6)).clamp(max=1.0)  # (member,)
        for gradient in gradients:
            gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))


def _stack_members(network: TransferNetwork, n_members: int, frozen: bool) -> dict[str, Tensor]:
    members = [with_new_solubility_head(network) for _ in range(n_members)]
    copies: list[nn.Module] = [member.heads if frozen else member for member in members]
    stacked, _ = stack_module_state(copies)
    return {name: tensor.detach().requires_grad_(True) for name, tensor in stacked.items()}


def trains_one_by_one(settings: Stage2Settings, device: torch.device) -> bool:
    """Whether members train faster one after another than side by side."""
    return device.type == "cpu" and not settings.freeze_encoder


def fit_members(
    network: TransferNetwork,
    data: Stage2Data,
    train_chi: np.ndarray,
    train_solubility: np.ndarray,
    settings: Stage2Settings,
    seed: int,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> FittedMembers:
    """Fine-tune one member per row of the training masks: all at once, or whole networks on the CPU one by one.

    Every member starts from `network` (left unchanged) with a new solubility head. With a frozen encoder, latents are
    computed once, in eval mode, and only the heads train. A table whose loss has weight 0 is left out and does not
    lengthen the epochs.

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
    data = data.of_weight(settings)
    train_chi, train_solubility = train_chi[:, : len(data.chi)], train_solubility[:, : len(data.solubility)]
    if not train_chi.any() and not train_solubility.any():
        raise TrainingError(
            "Stage 2 has nothing to learn: the only table with rows has weight zero; "
            "raise training.lambda_exp or training.lambda_sol, or give both tables"
        )
    device = data.features.device
    own_rows = torch.from_numpy(train_chi).to(device), torch.from_numpy(train_solubility).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if trains_one_by_one(settings, device):
            return fit_one_by_one(network, data, *own_rows, settings, seed, after_epoch)
        training = _MemberTraining(network, data, *own_rows, settings, seed)
        train_members(training, settings, after_epoch)
    parameters = {name: tensor.detach() for name, tensor in training.members.parameters.items()}
    members = training.members
    return FittedMembers(members.network, parameters, members.frozen, members.columns, members.learned_chi)
