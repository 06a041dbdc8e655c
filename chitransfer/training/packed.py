"""Stage 1 of many trials as one program: batched products over a member axis, narrow networks padded with zeros.

Called by `search.pack_workers`. A member is a `Stage1Run`, whose state after every epoch is as if it trained alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from chitransfer.errors import TrainingError
from chitransfer.model.network import TransferNetwork, chi_at
from chitransfer.training.fast import rounded_products, without_subnormals
from chitransfer.training.flat import trained_parameters
from chitransfer.training.loop import check_mean_loss
from chitransfer.training.losses import chi_loss
from chitransfer.training.recorded import RecordedStep
from chitransfer.training.stacked import MaskPool, StackedNorm, adamw_columns
from chitransfer.training.stage1 import Stage1Run

# A program keeps computing finished members, whose results are unused, while more than this share is still training:
# rebuilding it for the others, and on a GPU recording its steps again, costs more.
KEPT_SHARE = 0.7


class PackedStage1:
    """Several Stage 1 runs, trained together one epoch at a time.

    Every member keeps its own batch order, learning rate, weight decay, dropout rates, clipping, schedule and early
    stopping. Its result does not depend on the other members and, without dropout, equals that of training alone up to
    rounding. With dropout the masks differ from those of training alone: see `MaskPool`.

    Networks of equal depth, batch size, precision and use of batch normalisation form one program, padded to the widest
    of them; different ones form programs of their own.

    Parameters
    ----------
    runs
        Share the same `Stage1Data`; they are trained in place.
    last_epochs
        Total number of Stage 1 epochs each run should reach.

    Attributes
    ----------
    failures
        By position in `runs`, the error that ended a member's training; the others continue.
    """

    def __init__(self, runs: Sequence[Stage1Run], last_epochs: Sequence[int]) -> None:
        self._runs = list(runs)
        self._going_on = {
            position
            for position, (run, last) in enumerate(zip(runs, last_epochs, strict=True))
            if not run.finished and run.epoch < last
        }
        self._last_epochs = list(last_epochs)
        self._programs: list[tuple[tuple[int, ...], _Program]] = []
        self.failures: dict[int, TrainingError] = {}

    @property
    def going_on(self) -> frozenset[int]:
        """Positions of the members that have epochs left to train."""
        return frozenset(self._going_on)

    def leave_out(self, position: int) -> None:
        """Stop training a member; its run keeps what it has learned."""
        self._going_on.discard(position)

    def train_epoch(self) -> None:
        """Train every remaining member for one more epoch."""
        kinds: dict[tuple[object, ...], list[int]] = {}
        for position in sorted(self._going_on):
            kinds.setdefault(_kind(self._runs[position]), []).append(position)
        self._programs = [self._program_of(positions) for positions in kinds.values()]
        mean_losses: dict[int, float] = {}
        with without_subnormals():
            for positions, program in self._programs:
                program.start_epoch([positions.index(p) for p in positions if p in self._going_on])
            for positions, program in self._programs:
                mean_losses |= {positions[member]: loss for member, loss in program.finish_epoch().items()}
        for position, mean_loss in mean_losses.items():
            self._end_epoch(position, mean_loss)

    def _program_of(self, wanted: Sequence[int]) -> tuple[tuple[int, ...], _Program]:
        for positions, program in self._programs:
            if set(wanted) <= set(positions) and len(wanted) > KEPT_SHARE * len(positions):
                return positions, program
        return tuple(wanted), _Program([self._runs[position] for position in wanted])

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
    """Train a pack until all its members have finished.

    Parameters
    ----------
    gave_up
        Called after every epoch for every remaining member, with its position in `runs`; True drops the member.

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


def carry(runs: Sequence[Stage1Run], last_epoch: int, after_epoch: Callable[[], None] = lambda: None) -> None:
    """Train the runs of one trial: together on a GPU, one after another on a CPU.

    Parameters
    ----------
    last_epoch
        Total number of Stage 1 epochs each run should reach.
    after_epoch
        Called after every epoch, which on a GPU is one of all runs; an exception it raises ends training.

    Raises
    ------
    TrainingError
        A loss or validation error became NaN or infinite.
    """
    if not trains_together(runs[0].device):
        for run in runs:
            while not run.finished and run.epoch < last_epoch:
                run.train_to(run.epoch + 1)
                after_epoch()
        return
    pack = PackedStage1(runs, [last_epoch] * len(runs))
    while pack.going_on:
        pack.train_epoch()
        for failure in pack.failures.values():
            raise failure
        after_epoch()


def trains_together(device: torch.device) -> bool:
    """Whether the device trains even a single run faster as a program of recorded steps."""
    return device.type == "cuda"


def _kind(run: Stage1Run) -> tuple[object, ...]:
    """The properties that all members of one program must share."""
    shape = run.trained.shape
    return len(shape.hidden_dims), shape.use_batchnorm, run.batch_size, run.settings.precision


# ---------------------------------------------------------------------------------------------------------------------
# One program
# ---------------------------------------------------------------------------------------------------------------------


class _Program:
    """Members of one kind, side by side along the first axis of every tensor.

    A narrow network is padded with zero weights. A padded unit outputs SiLU(0) = 0, so it contributes nothing, and no
    gradient reaches it or its weights: they stay zero without any mask.
    """

    def __init__(self, runs: Sequence[Stage1Run]) -> None:
        self._runs = list(runs)
        first = runs[0]
        self._data, self._batch_size, self._is_bf16 = first.data, first.batch_size, first.is_bf16
        self._modules = [*first.trained.encoder, *first.trained.heads.chi]
        self._n_encoder_modules = len(first.trained.encoder)
        self._precision = first.settings.precision
        self._members = list(range(len(runs)))
        self._n_steps, self._total = 0, torch.zeros(len(runs), device=first.device)
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
        self._idle: list[Tensor] = []
        start = 0
        for parameter, shape in zip(trained_parameters(first.trained), shapes, strict=True):
            stop = start + math.prod(shape)
            self._parameters.append(self._values[:, start:stop].view(-1, *shape).requires_grad_(True))
            if any(parameter is bias for bias in first.trained.encoder.idle_biases):
                self._idle.append(self._gradients[:, start:stop])
            start = stop
        self._norms = {
            module: StackedNorm(_norms(runs, position))
            for position, module in enumerate(self._modules)
            if isinstance(module, nn.BatchNorm1d)
        }
        networks = [run.trained.shape for run in runs]
        self._largest_norm = torch.tensor([[run.settings.grad_clip_norm] for run in runs], device=first.device)
        self._betas: tuple[float, float] = first.optimizer.param_groups[0]["betas"]
        self._recorded = RecordedStep(first.device)
        self._n_masks = tuple(
            sum(isinstance(module, nn.Dropout) for module in part)
            for part in (first.trained.encoder, first.trained.heads.chi)
        )
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

    def start_epoch(self, members: Sequence[int]) -> None:
        """Start an epoch for some of the members; on a GPU, programs then run concurrently."""
        self._members = list(members)
        with self._recorded.in_its_stream(), rounded_products(self._precision, self._values.device):
            self._total = self._launch()

    def finish_epoch(self) -> dict[int, float]:
        """Mean losses of the members in the epoch just started, after writing the epoch back to their runs."""
        with self._recorded.in_its_stream():
            for member in self._members:
                self._write_back(member)
                for norm in self._norms.values():
                    norm.write_back(member, self._n_steps)
            losses: list[float] = self._total.tolist()
        return {member: losses[member] / self._n_steps for member in self._members}

    def _launch(self) -> Tensor:
        device = self._values.device
        drawn = {member: self._runs[member].draw_order() for member in self._members}
        unused = next(iter(drawn.values()))
        orders = torch.stack([drawn.get(member, unused) for member in range(len(self._runs))])
        batches = orders.to(device).split(self._batch_size, dim=1)
        self._refresh_masks()
        steps = self._steps + torch.arange(1, len(batches) + 1, dtype=torch.float64).unsqueeze(1)  # (step, member)
        columns = adamw_columns([run.optimizer.param_groups[0] for run in self._runs], steps).to(device)
        starts = [
            masks.starts(len(batches) * n_masks).view(len(batches), n_masks)
            for masks, n_masks in zip((self._encoder_masks, self._head_masks), self._n_masks, strict=True)
        ]
        mask_starts = torch.cat(starts, dim=1).to(device)
        total = torch.zeros(len(self._runs), device=device)
        for step, pairs in enumerate(batches):
            total += self._recorded.take(self._take_step, pairs, columns[step], mask_starts[step])
        self._n_steps = len(batches)
        self._steps += self._n_steps
        return total

    def _refresh_masks(self) -> None:
        for member in self._members:
            run = self._runs[member]
            if self._encoder_masks.rates[member] > 0 or self._head_masks.rates[member] > 0:
                generator = torch.Generator(self._values.device).manual_seed(run.draw_seed())
                self._encoder_masks.refresh(member, generator)
                self._head_masks.refresh(member, generator)

    def _take_step(self, pairs: Tensor, columns: Tensor, mask_starts: Tensor) -> Tensor:
        """Change the weights by one batch; returns losses (member,).

        Parameters
        ----------
        pairs
            Positions in the training table, (member, batch).
        columns
            One step of `adamw_columns`, (3, member, 1).
        mask_starts
            Of the masks of the encoder's layers and then the head's, (n_masks,).
        """
        losses = self._compute_gradients(pairs, mask_starts)
        self._clip()
        self._update(columns)
        return losses

    def _compute_gradients(self, pairs: Tensor, mask_starts: Tensor) -> Tensor:
        train = self._data.train
        inputs = self._runs[0].gather(pairs)  # (member, batch, feature)
        coefficients = self._forward(inputs, mask_starts)
        predicted = chi_at(coefficients.unsqueeze(-2), train.tau[pairs])  # (member, batch, temperature)
        losses = chi_loss(predicted, train.target[pairs], train.mask[pairs], dim=(-2, -1))
        # Summed over members, so that each member's gradient is that of its own loss.
        gradients = torch.autograd.grad(losses.sum(), self._parameters)
        torch.cat([gradient.reshape(len(self._runs), -1) for gradient in gradients], dim=1, out=self._gradients)
        for of_bias in self._idle:
            of_bias.zero_()
        return losses.detach()

    def _forward(self, inputs: Tensor, mask_starts: Tensor) -> Tensor:
        parameters, starts = iter(self._parameters), iter(mask_starts)
        encoder, head = self._modules[: self._n_encoder_modules], self._modules[self._n_encoder_modules :]
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self._is_bf16, cache_enabled=False):
            latents = self._apply(encoder, self._encoder_masks, inputs, parameters, starts)
        # bfloat16 would round the head's outputs to three digits.
        return self._apply(head, self._head_masks, latents.float(), parameters, starts)

    def _apply(
        self,
        modules: Sequence[nn.Module],
        masks: MaskPool,
        hidden: Tensor,
        parameters: Iterator[Tensor],
        starts: Iterator[Tensor],
    ) -> Tensor:
        for module in modules:
            if isinstance(module, nn.Linear):
                weight, bias = next(parameters), next(parameters)
                # `FlatParameters` stores the first layer with one row per feature, the others as PyTorch does.
                by_input = weight if module is self._modules[0] else weight.transpose(1, 2)
                hidden = torch.baddbmm(bias.unsqueeze(1), hidden, by_input)  # (member, batch, width)
            elif isinstance(module, nn.BatchNorm1d):
                hidden = self._norms[module].normalise(hidden, next(parameters), next(parameters))
            elif isinstance(module, nn.Dropout):
                hidden = masks.apply(hidden, next(starts))
            else:
                hidden = functional.silu(hidden)
        return hidden

    @torch.no_grad()
    def _clip(self) -> None:
        norm = torch.linalg.vector_norm(self._gradients, dim=1, keepdim=True)
        self._gradients.mul_((self._largest_norm / (norm + 1e-6)).clamp(max=1.0))

    @torch.no_grad()
    def _update(self, columns: Tensor) -> None:
        """AdamW as in `torch.optim.AdamW`, with each member's own hyperparameters."""
        first, second = self._betas
        keep, minus_rate, epsilon = columns
        self._mean.lerp_(self._gradients, 1.0 - first)
        self._square.mul_(second).addcmul_(self._gradients, self._gradients, value=1.0 - second)
        change = self._square.sqrt().add_(epsilon)
        torch.div(self._mean, change, out=change)
        self._values.mul_(keep).addcmul_(change, minus_rate)

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
    """Shapes of the trained parameters as stored in `FlatParameters`: the first layer's weight is transposed."""
    first, *others = (tuple(parameter.shape) for parameter in trained_parameters(network))
    return [first[::-1], *others]


def _norms(runs: Sequence[Stage1Run], position: int) -> list[nn.BatchNorm1d]:
    modules = [run.trained.encoder[position] for run in runs]
    return [module for module in modules if isinstance(module, nn.BatchNorm1d)]


def _places(own: Sequence[tuple[int, ...]], padded: Sequence[tuple[int, ...]]) -> Tensor:
    """Positions of the entries of a narrow flat vector in the padded one, (n_own,) int64."""
    places, start = [], 0
    for narrow, wide in zip(own, padded, strict=True):
        stop = start + math.prod(wide)
        grid = torch.arange(start, stop).view(wide)
        places.append(grid[tuple(slice(0, size) for size in narrow)].reshape(-1))
        start = stop
    return torch.cat(places)
