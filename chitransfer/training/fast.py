"""Training steps on the CPU: sparse first layer, cheap dropout, hand-written gradients in one flat buffer.

Called by `training.stage1` and `training.unfrozen`; they train the ordinary network, whose parameters become views of
the buffer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from chitransfer.model.network import TransferNetwork
from chitransfer.training.sparse import SparseBatch, SparseInputs

# Size of a pool of dropout masks, in multiples of the largest mask.
MASK_POOL = 8

# As named by `torch.cpu.get_capabilities`.
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")


@dataclass(frozen=True)
class _Layer:
    """A linear layer and what follows it; only hidden layers are followed by SiLU, batch norm and dropout."""

    linear: nn.Linear
    is_hidden: bool
    norm: nn.BatchNorm1d | None
    dropout: float


@dataclass(frozen=True)
class _Trace:
    """What the backward pass needs of a layer.

    Attributes
    ----------
    entered, weight
        The factors of the product: input and weights, as bfloat16 copies where the product is in bfloat16.
    sums
        Output of the linear layer, before batch norm.
    slope
        Derivative of SiLU and dropout by their input; ``None`` after a layer that is not hidden.
    statistics
        Mean and inverse standard deviation of the batch where batch norm is in training mode, else empty.
    """

    entered: Tensor
    weight: Tensor
    sums: Tensor
    slope: Tensor | None
    statistics: tuple[Tensor, Tensor] | None


class SparseLayers:
    """Linear layers and what lies between them, forward and backward, for sparse inputs on the CPU.

    Gradients overwrite the ``grad`` of the layers' parameters; they are not accumulated. Dropout is always active and
    draws from PyTorch's global generator; batch norm follows its module's mode.

    Parameters
    ----------
    parts
        The layers; their parameters must be views made by `FlatParameters`.
    dense_columns
        Positions of the inputs kept dense, (n_dense,) int64.
    batch_size
        The largest number of pairs in a batch.
    n_bf16
        Number of layers, counted from the first, that multiply in bfloat16; the first itself stays float32, and so do
        sums and weights.
    """

    def __init__(self, parts: Sequence[nn.Sequential], dense_columns: Tensor, batch_size: int, n_bf16: int = 0) -> None:
        self._dense_columns = dense_columns
        self._layers = [layer for part in parts for layer in _read_layers(part)]
        self._n_bf16 = n_bf16
        sizes: dict[float, int] = {}
        for layer in self._layers:
            if layer.dropout > 0:
                sizes[layer.dropout] = max(sizes.get(layer.dropout, 0), batch_size * layer.linear.out_features)
        self._masks = KeepMasks(sizes)
        self._traces: list[_Trace] = []

    def begin_epoch(self) -> None:
        """Draw new random numbers for dropout; must be called before the first batch of every epoch."""
        self._masks.refresh()

    @torch.no_grad()
    def forward(self, batch: SparseBatch) -> Tensor:
        """Outputs of the last layer, (n_pairs, width); keeps what `backward` needs."""
        self._traces = []
        hidden = batch.dense
        for number, layer in enumerate(self._layers):
            entered, weight = hidden, layer.linear.weight
            if number == 0:
                sums = first_layer(batch, layer.linear, self._dense_columns)
            elif number < self._n_bf16:
                # Cast once, for this product and the two of the backward pass.
                entered, weight = hidden.bfloat16(), weight.bfloat16()
                sums = functional.linear(entered, weight, layer.linear.bias.bfloat16()).float()
            else:
                sums = torch.addmm(layer.linear.bias, hidden, weight.t())
            hidden, slope, statistics = sums, None, None
            if layer.is_hidden:
                if layer.norm is not None:
                    hidden, statistics = _batch_norm(sums, layer.norm)
                hidden, slope = silu(hidden)
                if layer.dropout > 0:
                    kept = self._masks.draw(hidden.shape, layer.dropout)
                    hidden.mul_(kept)
                    slope.mul_(kept)
            self._traces.append(_Trace(entered, weight, sums, slope, statistics))
        return hidden

    @torch.no_grad()
    def backward(self, gradient: Tensor, batch: SparseBatch) -> None:
        """Gradients of the parameters from those of the outputs of the last `forward`, which had the same batch."""
        for number in range(len(self._layers) - 1, -1, -1):
            layer, trace = self._layers[number], self._traces[number]
            weight, bias = layer.linear.weight, layer.linear.bias
            if trace.slope is not None:
                gradient = gradient.mul_(trace.slope)
                if layer.norm is not None and trace.statistics is not None:
                    gradient = _batch_norm_backward(gradient, trace.sums, trace.statistics, layer.norm)
            if layer.norm is not None and layer.norm.training:
                gradient_of(bias).zero_()  # See `Encoder.idle_biases`.
            else:
                torch.sum(gradient, dim=0, out=gradient_of(bias))
            if number == 0:
                # Not copied into the gradient vector: it is larger than all others together and read only twice. The
                # previous one is freed first, so that its memory, possibly still in cache, is reused.
                weight.grad = None
                weight.grad = first_layer_gradient(batch, gradient, self._dense_columns)
                return
            if number < self._n_bf16:
                gradient = gradient.bfloat16()
                gradient_of(weight).copy_(torch.mm(gradient.t(), trace.entered))
                gradient = torch.mm(gradient, trace.weight).float()
            else:
                torch.mm(gradient.t(), trace.entered, out=gradient_of(weight))
                gradient = torch.mm(gradient, trace.weight)


class SparseStep:
    """Loss and gradients of Stage 1's batches for a network on the CPU.

    Parameters
    ----------
    network
        Its parameters must be views made by `FlatParameters.of`.
    dense_columns, batch_size
        As in `SparseLayers`.
    is_bf16
        Multiply in bfloat16 in the encoder. The χ head stays float32, since bfloat16 would round its outputs to three
        digits.
    """

    def __init__(
        self, network: TransferNetwork, dense_columns: Tensor, batch_size: int, *, is_bf16: bool = False
    ) -> None:
        n_bf16 = sum(isinstance(module, nn.Linear) for module in network.encoder) if is_bf16 else 0
        self._layers = SparseLayers([network.encoder, network.heads.chi], dense_columns, batch_size, n_bf16)

    def begin_epoch(self) -> None:
        """Draw new random numbers for dropout; must be called before the first batch of every epoch."""
        self._layers.begin_epoch()

    @torch.no_grad()
    def loss_and_gradients(self, batch: SparseBatch, tau: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error over the rows in `mask`; leaves its gradients in the parameters' ``grad``.

        Parameters
        ----------
        tau, target, mask
            (n_pairs, n_temperatures) float32, as in `PairTable`.
        """
        coefficients = self._layers.forward(batch)
        error = torch.addcmul(coefficients[:, :1], coefficients[:, 1:], tau).sub_(target).mul_(mask)
        n_rows = mask.sum().clamp(min=1.0)
        loss = error.square().sum() / n_rows
        error *= 2.0 / n_rows
        self._layers.backward(torch.stack([error.sum(1), (error * tau).sum(1)], dim=1), batch)
        return loss


def multiplies_in_bf16(precision: str, device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16; with ``auto``, if the processor has instructions for it.

    These are AMX or AVX512_BF16; without them bfloat16 takes up to ten times as long as float32 on a CPU. For ``auto``
    on CUDA see `rounded_products`.
    """
    if precision != "auto":
        return precision == "bf16"
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and any(capabilities.get(name, False) for name in BF16_INSTRUCTIONS)


@contextmanager
def rounded_products(precision: str, device: torch.device) -> Iterator[None]:
    """Let a GPU round factors to TF32 (10 fraction bits) if `precision` is ``auto``."""
    if device.type != "cuda" or precision != "auto":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def without_subnormals() -> Iterator[None]:
    """Flush numbers below 1e-38 to zero: AdamW's moments of inactive units decay to subnormals, which are slow."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def first_layer(batch: SparseBatch, linear: nn.Linear, dense_columns: Tensor) -> Tensor:
    """The first linear layer on sparse inputs, (n_pairs, width); its weight must be stored transposed.

    Parameters
    ----------
    dense_columns
        Positions of the columns of ``batch.dense``, (n_dense,) int64.
    """
    by_feature = linear.weight.t()  # (n_features, width), contiguous
    sums, of_dense = batch.rows.times(by_feature), by_feature[dense_columns]
    return torch.addmm(sums, batch.dense, of_dense, out=sums).add_(linear.bias)


def first_layer_gradient(batch: SparseBatch, gradient: Tensor, dense_columns: Tensor) -> Tensor:
    """Gradient of the first layer's weight, (width, n_features) and stored transposed.

    Parameters
    ----------
    gradient
        Gradient of the layer's outputs, (n_pairs, width).

    Raises
    ------
    ValueError
        The batch is for scoring only and has no transpose.
    """
    if batch.columns is None:
        raise ValueError("a batch for scoring has no transpose; take it from SparseInputs.batches")
    by_feature = batch.columns.times(gradient)
    by_feature[dense_columns] = torch.mm(batch.dense.t(), gradient)
    return by_feature.t()


@torch.no_grad()
def predict_sparse(network: TransferNetwork, inputs: SparseInputs, *, is_bf16: bool, batch_size: int = 1024) -> Tensor:
    """As `stage1.predict_coefficients`, for a network whose first layer is stored transposed."""
    network.eval()
    parts = []
    for batch in inputs.in_order(batch_size):
        hidden = first_layer(batch, network.encoder.first, inputs.dense_columns)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            for layer in list(network.encoder)[1:]:
                hidden = layer(hidden)
        parts.append(network.heads.chi(hidden.float()))
    return torch.cat(parts)


class KeepMasks:
    """Dropout masks cut from a pool of random numbers, one pool per rate; call `refresh` every epoch.

    Numbers within a mask are independent; two masks of an epoch share numbers only by chance and at other positions.
    PyTorch's own masks take twenty times as long on a CPU, longer than the layer they belong to.

    Parameters
    ----------
    The largest mask that will be drawn, for every dropout rate above zero.
    """

    def __init__(self, sizes: Mapping[float, int]) -> None:
        self._pools = {rate: torch.empty(MASK_POOL * size) for rate, size in sizes.items()}

    def refresh(self) -> None:
        """Draw the pools anew from PyTorch's global generator; p holds to within 2⁻¹⁶."""
        for rate, pool in self._pools.items():
            words = torch.empty((pool.numel() + 3) // 4, dtype=torch.int64)
            words.random_(torch.iinfo(torch.int64).min, None)
            # The largest value kept, not the first one dropped, which at rate 0 would not fit an int16.
            largest = max(round((1.0 - rate) * 2**16) - 1 - 2**15, -(2**15))
            torch.le(words.view(torch.int16)[: pool.numel()], largest, out=pool)
            pool.mul_(1.0 / (1.0 - rate))

    def draw(self, shape: torch.Size, rate: float) -> Tensor:
        """1 / (1 − `rate`) with probability 1 − `rate`, else 0; a view of the pool, not to be changed."""
        pool, n = self._pools[rate], shape.numel()
        start = int(torch.randint(pool.numel() - n + 1, ()))
        return pool[start : start + n].view(shape)


def _read_layers(modules: nn.Sequential) -> list[_Layer]:
    layers: list[_Layer] = []
    for module in modules:
        if isinstance(module, nn.Linear):
            layers.append(_Layer(module, False, None, 0.0))
        elif isinstance(module, nn.BatchNorm1d):
            layers[-1] = replace(layers[-1], norm=module)
        elif isinstance(module, nn.SiLU):
            layers[-1] = replace(layers[-1], is_hidden=True)
        elif isinstance(module, nn.Dropout):
            layers[-1] = replace(layers[-1], dropout=module.p)
        else:
            raise TypeError(f"no backward pass is written for {type(module).__name__}")
    return layers


def silu(x: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU and its derivative; both need σ(x), the expensive part, which is computed once."""
    gate = torch.sigmoid(x)
    value = x * gate
    return value, torch.addcmul(gate, gate, x - value)


def gradient_of(parameter: Tensor) -> Tensor:
    """The buffer that a parameter's gradient is written to; ValueError where there is none."""
    if parameter.grad is None:
        raise ValueError("a parameter has no place for its gradient; FlatParameters and HeadStep make them")
    return parameter.grad


def _batch_norm(sums: Tensor, norm: nn.BatchNorm1d) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Batch norm as in `nn.BatchNorm1d` and, in training mode, the batch's mean and inverse standard deviation."""
    momentum = 0.1 if norm.momentum is None else norm.momentum
    normed, mean, inverse_deviation = torch.native_batch_norm(
        sums, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.training, momentum, norm.eps
    )
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return normed, (mean, inverse_deviation)


def _batch_norm_backward(
    gradient: Tensor, sums: Tensor, statistics: tuple[Tensor, Tensor], norm: nn.BatchNorm1d
) -> Tensor:
    inputs: Tensor
    inputs, weight, bias = torch.ops.aten.native_batch_norm_backward(
        gradient,
        sums,
        norm.weight,
        norm.running_mean,
        norm.running_var,
        *statistics,
        norm.training,
        norm.eps,
        [True] * 3,
    )
    gradient_of(norm.weight).copy_(weight)
    gradient_of(norm.bias).copy_(bias)
    return inputs
