"""Stage 1 of many trials as one program: batched products over a member axis, narrow networks padded with zeros.

Called by `search.pack_workers`. A member is a `Stage1Run`, which after every epoch stands as if it had trained alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from chitransfer.errors import TrainingError
from chitransfer.model.network import TransferNetwork, chi_at
from chitransfer.training.fast import trained_parameters, without_subnormals
from chitransfer.training.loop import check_mean_loss
from chitransfer.training.losses import chi_loss
from chitransfer.training.stacked import AdamWColumns, MaskPool, StackedNorm, adamw_columns
from chitransfer.training.stage1 import Stage1Run


class PackedStage1:
    """Several Stage 1 runs, carried to an epoch each, an epoch of all of them at a time.

    Every member keeps its own batch order, learning rate, weight decay, dropout rates, clipping, schedule and early
    stopping. Its result does not depend on its companions, and without dropout it is that of training alone, up to
    rounding. With dropout the masks are others than when it trains alone: see `MaskPool`.

    Networks of equal depth, batch size, precision and use of batch normalisation are one program, padded to the widest
    of them; others are a program of their own.

    Parameters
    ----------
    runs
        Over the same `Stage1Data`; they are trained in place.
    last_epochs
        Stage 1 epochs each of them is to have done in all.

    Attributes
    ----------
    failures
        By position in `runs`, why a member's training broke off; the others go on.
    """

    def __init__(self, runs: Sequence[Stage1Run], last_epochs: Sequence[int]) -> None:
        self._runs = list(runs)
        self._going_on = {
            position
            for position, (run, last) in enumerate(zip(runs, last_epochs, strict=True))
            if not run.finished and run.epoch < last
        }
        self._last_epochs = list(last_epochs)
        self._programs: dict[tuple[int, ...], _Program] = {}
        self.failures: dict[int, TrainingError] = {}

    @property
    def going_on(self) -> frozenset[int]:
        """Positions of the members that have epochs left to train."""
        return frozenset(self._going_on)

    def leave_out(self, position: int) -> None:
        """Train a member no further; its run keeps what it has learned."""
        self._going_on.discard(position)

    def train_epoch(self) -> None:
        """One more epoch of every member that goes on."""
        kinds: dict[tuple[object, ...], list[int]] = {}
        for position in sorted(self._going_on):
            kinds.setdefault(_kind(self._runs[position]), []).append(position)
        wanted = [tuple(positions) for positions in kinds.values()]
        # A program whose members changed is made anew: whoever left costs nothing any more.
        self._programs = {positions: self._programs.get(positions) or self._make(positions) for positions in wanted}
        for positions, program in self._programs.items():
            with without_subnormals():
                mean_losses = program.train_epoch()
            for position, mean_loss in zip(positions, mean_losses, strict=True):
                self._end_epoch(position, mean_loss)

    def _make(self, positions: Sequence[int]) -> _Program:
        return _Program([self._runs[position] for position in positions])

    def _end_epoch(self, position: int, mean_loss: float) -> None:
        run = self._runs[position]
        try:
            check_mean_loss("Stage 1", run.epoch + 1, mean_loss)
            run.end_epoch(run.epoch + 1, mean_loss)
        except TrainingError as error:
            self.failures[position] = error
            self._going_on.discard(position)
            return
        if run.finished or run.epoch >= self._last_epochs[position]:
            self._going_on.discard(position)


def train_together(
    runs: Sequence[Stage1Run],
    last_epochs: Sequence[int],
    gave_up: Callable[[int], bool] = lambda position: False,
) -> dict[int, TrainingError]:
    """Train a pack to its end.

    Parameters
    ----------
    gave_up
        Asked after every epoch for every member that goes on, by position in `runs`; True leaves it out.

    Returns
    -------
    dict
        `PackedStage1.failures`.
    """
    pack = PackedStage1(runs, last_epochs)
    while pack.going_on:
        pack.train_epoch()
        for position in pack.going_on:
            if gave_up(position):
                pack.leave_out(position)
    return pack.failures


def _kind(run: Stage1Run) -> tuple[object, ...]:
    """What members must share to be one program."""
    shape = run.trained.shape
    return len(shape.hidden_dims), shape.use_batchnorm, run.batch_size, run.is_bf16


# ---------------------------------------------------------------------------------------------------------------------
# One program
# ---------------------------------------------------------------------------------------------------------------------


class _Program:
    """Members of one kind, side by side along the first axis of every tensor.

    A narrow network is padded with weights of zero. A padded unit then gives SiLU(0) = 0, so nothing flows from it,
    and no gradient reaches it or its weights: they stay zero without any mask.
    """

    def __init__(self, runs: Sequence[Stage1Run]) -> None:
        self._runs = list(runs)
        first = runs[0]
        self._data, self._batch_size, self._is_bf16 = first.data, first.batch_size, first.is_bf16
        self._modules = [*first.trained.encoder, *first.trained.heads.chi]
        self._n_encoder_modules = len(first.trained.encoder)
        own_shapes = [_flat_shapes(run.trained) for run in runs]
        shapes = [tuple(map(max, zip(*same, strict=True))) for same in zip(*own_shapes, strict=True)]
        self._places = [_places(own, shapes).to(first.device) for own in own_shapes]
        n_weights = sum(map(math.prod, shapes))
        self._values, self._gradients, self._mean, self._square = (
            torch.zeros(len(runs), n_weights, device=first.device) for _ in range(4)
        )
        self._steps = torch.zeros(len(runs), dtype=torch.float64)
        for member in range(len(runs)):
            self._read(member)
        self._parameters: list[Tensor] = []
        start = 0
        for shape in shapes:
            stop = start + math.prod(shape)
            self._parameters.append(self._values[:, start:stop].view(-1, *shape).requires_grad_(True))
            start = stop
        self._norms = {
            position: StackedNorm(_norms(runs, position))
            for position, module in enumerate(self._modules)
            if isinstance(module, nn.BatchNorm1d)
        }
        networks = [run.trained.shape for run in runs]
        self._encoder_masks = MaskPool(
            [shape.encoder_dropout for shape in networks],
            [max(shape.hidden_dims, default=0) for shape in networks],
            self._batch_size,
            first.device,
        )
        self._head_masks = MaskPool(
            [shape.chi_head_dropout for shape in networks],
            [shape.chi_head_hidden_dim for shape in networks],
            self._batch_size,
            first.device,
        )

    def train_epoch(self) -> list[float]:
        """One epoch of every member, written back to its run; returns their mean losses."""
        orders = torch.stack([run.draw_order() for run in self._runs]).to(self._values.device)
        batches = orders.split(self._batch_size, dim=1)
        self._refresh_masks()
        steps = self._steps + torch.arange(1, len(batches) + 1, dtype=torch.float64).unsqueeze(1)  # (step, member)
        groups = [run.optimizer.param_groups[0] for run in self._runs]
        columns = adamw_columns(groups, steps, self._values.device)
        largest_norm = torch.tensor([[run.settings.grad_clip_norm] for run in self._runs], device=self._values.device)
        total = torch.zeros(len(self._runs), device=self._values.device)
        for step, pairs in enumerate(batches):
            total += self._compute_gradients(pairs)
            self._clip(largest_norm)
            self._update(columns, step)
        self._steps += len(batches)
        for member in range(len(self._runs)):
            self._write_back(member)
        for norm in self._norms.values():
            norm.write_back(len(batches))
        return [float(loss) / len(batches) for loss in total.tolist()]

    def _refresh_masks(self) -> None:
        for member, run in enumerate(self._runs):
            if self._encoder_masks.rates[member] > 0 or self._head_masks.rates[member] > 0:
                generator = torch.Generator(self._values.device).manual_seed(run.draw_seed())
                self._encoder_masks.refresh(member, generator)
                self._head_masks.refresh(member, generator)
        self._encoder_masks.begin_epoch()
        self._head_masks.begin_epoch()

    def _compute_gradients(self, pairs: Tensor) -> Tensor:
        """Losses (member,) of one batch, given by position in the training table (member, batch); fills gradients."""
        train = self._data.train
        inputs = self._runs[0].gather(pairs)  # (member, batch, feature)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self._is_bf16):
            coefficients = self._forward(inputs)
        predicted = chi_at(coefficients.float().unsqueeze(-2), train.tau[pairs])  # (member, batch, temperature)
        losses = chi_loss(predicted, train.target[pairs], train.mask[pairs], dim=(-2, -1))
        # A sum over members: each one's gradient is that of its own loss.
        gradients = torch.autograd.grad(losses.sum(), self._parameters)
        torch.cat([gradient.reshape(len(self._runs), -1) for gradient in gradients], dim=1, out=self._gradients)
        return losses.detach()

    def _forward(self, hidden: Tensor) -> Tensor:
        parameters = iter(self._parameters)
        for position, module in enumerate(self._modules):
            if isinstance(module, nn.Linear):
                weight, bias = next(parameters), next(parameters)
                # `FlatParameters` stores the first layer with a row for every feature, the others as PyTorch does.
                by_input = weight if position == 0 else weight.transpose(1, 2)
                hidden = torch.baddbmm(bias.unsqueeze(1), hidden, by_input)  # (member, batch, width)
            elif isinstance(module, nn.BatchNorm1d):
                hidden = self._norms[position].normalise(hidden, next(parameters), next(parameters))
            elif isinstance(module, nn.Dropout):
                masks = self._encoder_masks if position < self._n_encoder_modules else self._head_masks
                hidden = masks.apply(hidden)
            else:
                hidden = functional.silu(hidden)
        return hidden

    @torch.no_grad()
    def _clip(self, largest_norm: Tensor) -> None:
        norm = torch.linalg.vector_norm(self._gradients, dim=1, keepdim=True)
        self._gradients.mul_((largest_norm / (norm + 1e-6)).clamp(max=1.0))

    @torch.no_grad()
    def _update(self, columns: AdamWColumns, step: int) -> None:
        """AdamW, as `torch.optim.AdamW` does it, with numbers of its own for every member."""
        first, second = columns.betas
        self._mean.lerp_(self._gradients, 1.0 - first)
        self._square.mul_(second).addcmul_(self._gradients, self._gradients, value=1.0 - second)
        change = self._square.sqrt().add_(columns.epsilon[step])
        torch.div(self._mean, change, out=change)
        self._values.mul_(columns.keep[step]).addcmul_(change, columns.minus_rate[step])

    @torch.no_grad()
    def _read(self, member: int) -> None:
        run, places = self._runs[member], self._places[member]
        self._values[member, places] = run.flat.values
        state = run.optimizer.state[run.flat.values]
        if state:
            self._mean[member, places] = state["exp_avg"]
            self._square[member, places] = state["exp_avg_sq"]
            self._steps[member] = float(state["step"])

    @torch.no_grad()
    def _write_back(self, member: int) -> None:
        run, places = self._runs[member], self._places[member]
        run.flat.values.copy_(self._values[member, places])
        run.optimizer.state[run.flat.values] = {
            "step": self._steps[member].float().to(places.device),
            "exp_avg": self._mean[member, places],
            "exp_avg_sq": self._square[member, places],
        }


def _flat_shapes(network: TransferNetwork) -> list[tuple[int, ...]]:
    """Shapes of the trained parameters as they lie in `FlatParameters`: the first layer's weight is transposed."""
    first, *others = (tuple(parameter.shape) for parameter in trained_parameters(network))
    return [first[::-1], *others]


def _norms(runs: Sequence[Stage1Run], position: int) -> list[nn.BatchNorm1d]:
    modules = [run.trained.encoder[position] for run in runs]
    return [module for module in modules if isinstance(module, nn.BatchNorm1d)]


def _places(own: Sequence[tuple[int, ...]], padded: Sequence[tuple[int, ...]]) -> Tensor:
    """Where the entries of a narrow flat vector lie in the padded one, (n_own,) int64."""
    places, start = [], 0
    for narrow, wide in zip(own, padded, strict=True):
        stop = start + math.prod(wide)
        grid = torch.arange(start, stop).view(wide)
        places.append(grid[tuple(slice(0, size) for size in narrow)].reshape(-1))
        start = stop
    return torch.cat(places)
