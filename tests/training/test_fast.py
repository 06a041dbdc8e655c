"""The hand-written Stage 1 step against autograd on the ordinary network, and its sparse inputs against dense ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import sparse
from small_training import STAGE1, stage1_mae
from torch import Tensor

from chitransfer.model.network import NetworkShape, TransferNetwork, chi_at
from chitransfer.model.scalers import ChiScaler, FeatureScaler
from chitransfer.training.fast import KeepMasks, SparseStep, multiplies_in_bf16
from chitransfer.training.flat import FlatAdamW, FlatParameters
from chitransfer.training.inputs import FeatureRows, FeatureTable, PairTable
from chitransfer.training.losses import chi_loss
from chitransfer.training.stage1 import Stage1Data, Stage1Run, Stage1Settings

N_STRUCTURES, N_BITS, N_DESCRIPTORS, N_SOLVENTS = 90, 64, 5, 7
SETTINGS = replace(
    STAGE1, weight_decay=1e-3, batch_size=16, early_stopping_patience=20, lr_schedule_patience=5, grad_clip_norm=0.5
)


def make_shape(
    n_features: int, *, dropout: float = 0.0, use_batchnorm: bool = False, hidden: tuple[int, ...] = (24, 12)
) -> NetworkShape:
    """A small network of the guide's kind."""
    return NetworkShape(n_features, hidden, 8, dropout, use_batchnorm, 6, dropout / 2, 6, 0.1)


@pytest.fixture
def data(rng: np.random.Generator) -> Stage1Data:
    """Random sparse counts and descriptors of pairs whose χ a network can learn, some temperatures missing."""

    def features(n: int) -> FeatureRows:
        counts = rng.integers(1, 4, (n, N_BITS)) / 3 * (rng.random((n, N_BITS)) < 0.08)
        counts[:, 3] = 1.0  # a bit that every structure has
        counts[:, 9] = 0.0  # and one that none has
        dense = np.hstack([counts, rng.standard_normal((n, N_DESCRIPTORS))]).astype(np.float32)
        return FeatureRows(sparse.csr_array(dense), torch.device("cpu"))

    none = FeatureScaler(N_BITS, np.zeros(N_DESCRIPTORS, np.float32), np.ones(N_DESCRIPTORS, np.float32))
    table = FeatureTable(features(N_STRUCTURES), features(N_SOLVENTS), none, none)
    weights = rng.standard_normal((table.n_features, 2)) * 0.3

    def pairs(structures: np.ndarray) -> PairTable:
        structure = torch.from_numpy(rng.permutation(np.repeat(structures, 2)))
        solvent = torch.from_numpy(rng.integers(0, N_SOLVENTS, len(structure)))
        tau = torch.from_numpy(rng.uniform(-1, 1, (len(structure), 3)).astype(np.float32))
        line = torch.from_numpy((table.gather(structure, solvent).numpy() @ weights).astype(np.float32))
        mask = torch.from_numpy((rng.random((len(structure), 3)) < 0.8).astype(np.float32))
        return PairTable(structure, solvent, tau, torch.tanh(chi_at(line.unsqueeze(-2), tau)), mask)

    return Stage1Data(
        features=table,
        chi_scaler=ChiScaler(0.4, 0.7),
        train=pairs(np.arange(70)),
        validation=pairs(np.arange(70, N_STRUCTURES)),
        validation_rows=np.zeros(0, dtype=bool),
        n_validation_polymers=1,
        T_ref=298.15,
    )


def dense_inputs(data: Stage1Data, pairs: PairTable) -> Tensor:
    """The inputs that sparse ones stand for."""
    return data.seen.gather(pairs.structure, pairs.solvent)


def test_sparse_inputs_hold_what_gather_gives(data: Stage1Data) -> None:
    inputs = data.sparse_train
    expected = dense_inputs(data, data.train)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(3))
    batches = list(inputs.batches(order, 16))
    assert [len(batch) for batch in batches] == [16] * 8 + [12]
    for batch, rows in zip(batches, order.split(16), strict=True):
        restored = batch.rows.times(torch.eye(expected.shape[1]))
        assert batch.columns is not None
        torch.testing.assert_close(batch.columns.times(torch.eye(len(batch))).t(), restored, rtol=0, atol=0)
        assert torch.all(restored[:, inputs.dense_columns] == 0)
        restored[:, inputs.dense_columns] = batch.dense
        torch.testing.assert_close(restored, expected[rows], rtol=0, atol=0)


def test_scoring_takes_the_pairs_in_their_own_order(data: Stage1Data) -> None:
    inputs, expected = data.sparse_validation, data.seen.gather(data.validation.structure, data.validation.solvent)
    batches = list(inputs.in_order(16))
    assert [len(batch) for batch in batches] == [16, 16, 8]
    for batch, wanted in zip(batches, expected.split(16), strict=True):
        restored = batch.rows.times(torch.eye(expected.shape[1]))
        restored[:, inputs.dense_columns] = batch.dense
        torch.testing.assert_close(restored, wanted, rtol=0, atol=0)


def test_columns_are_dense_where_most_pairs_have_a_value(data: Stage1Data) -> None:
    share = (dense_inputs(data, data.train) != 0).float().mean(0)
    assert data.sparse_train.dense_columns.tolist() == torch.nonzero(share > 0.2).ravel().tolist()
    assert data.sparse_validation.dense_columns.tolist() == data.sparse_train.dense_columns.tolist()


class _SameMasks(torch.nn.Module):
    """Stands in for a dropout layer: multiplies by masks noted while the hand-written step ran."""

    def __init__(self, masks: list[Tensor]) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, x: Tensor) -> Tensor:
        """x, masked and scaled as dropout does."""
        return x * self.masks.pop(0)


@pytest.mark.parametrize("use_batchnorm", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("hidden", [(24,), (24, 12), (32, 24, 12)])
def test_loss_and_gradients_equal_autograd(
    data: Stage1Data, monkeypatch: pytest.MonkeyPatch, use_batchnorm: bool, dropout: float, hidden: tuple[int, ...]
) -> None:
    torch.manual_seed(1)
    shape = make_shape(data.seen.n_features, dropout=dropout, use_batchnorm=use_batchnorm, hidden=hidden)
    network = TransferNetwork(shape)
    reference = copy.deepcopy(network).train()
    FlatParameters.of(network)
    step = SparseStep(network, data.sparse_train.dense_columns, 32)
    step.begin_epoch()
    masks: list[Tensor] = []
    draw: Callable[..., Tensor] = KeepMasks.draw

    def remember(self: KeepMasks, shape: torch.Size, rate: float) -> Tensor:
        masks.append(draw(self, shape, rate).clone())
        return masks[-1]

    monkeypatch.setattr(KeepMasks, "draw", remember)
    rows = torch.arange(5, 37)
    (batch,) = data.sparse_train.batches(rows, 32)
    train = data.train
    loss = step.loss_and_gradients(batch, train.tau[rows], train.target[rows], train.mask[rows])
    if dropout:
        for part in (reference.encoder, reference.heads.chi):
            for place, layer in enumerate(part):
                if isinstance(layer, torch.nn.Dropout):
                    part[place] = _SameMasks(masks)
    coefficients = reference.heads.chi(reference.encoder(dense_inputs(data, train)[rows]))
    expected = chi_loss(
        chi_at(coefficients.unsqueeze(-2), train.tau[rows]), train.target[rows], train.mask[rows], (0, 1)
    )
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for (name, own), theirs in zip(network.named_parameters(), reference.parameters(), strict=True):
        if not name.startswith("heads.solubility"):
            assert own.grad is not None
            torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    for (name, own), theirs in zip(network.named_buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_flat_parameters_are_the_networks_own(data: Stage1Data) -> None:
    network = TransferNetwork(make_shape(data.features.n_features))
    before = copy.deepcopy(network.state_dict())
    flat = FlatParameters.of(network)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    with torch.no_grad():
        flat.values.zero_()
    zeroed = {name for name, tensor in network.named_parameters() if not tensor.any()}
    assert zeroed == {name for name, _ in network.named_parameters() if not name.startswith("heads.solubility")}


@pytest.mark.parametrize("largest_norm", [0.1, 100.0])
def test_clipping_is_pytorchs(data: Stage1Data, largest_norm: float) -> None:
    network = TransferNetwork(make_shape(data.features.n_features))
    flat = FlatParameters.of(network)
    flat.gradients.copy_(torch.randn(flat.gradients.shape, generator=torch.Generator().manual_seed(0)))
    reference = torch.nn.Parameter(torch.zeros_like(flat.values))
    reference.grad = flat.gradients.clone()
    torch.nn.utils.clip_grad_norm_([reference], largest_norm)
    flat.clip(largest_norm)
    torch.testing.assert_close(flat.gradients, reference.grad)


@pytest.mark.parametrize("first_lies_apart", [False, True])
def test_steps_are_pytorchs(data: Stage1Data, first_lies_apart: bool) -> None:
    """Two groups, the first of them cut where the first layer ends."""
    network = TransferNetwork(make_shape(data.features.n_features))
    flat, first = FlatParameters.of(network), network.encoder.first.weight
    n_encoder = sum(parameter.numel() for parameter in network.encoder.parameters())
    parts = [flat.part(slice(n_encoder)), flat.part(slice(n_encoder, None))]
    rates = [1e-2, 1e-3]
    own = FlatAdamW(flat, [{"params": [p], "lr": r} for p, r in zip(parts, rates, strict=True)], weight_decay=0.1)
    references = [torch.nn.Parameter(part.clone()) for part in parts]
    theirs = torch.optim.AdamW(
        [{"params": [p], "lr": r} for p, r in zip(references, rates, strict=True)], weight_decay=0.1, fused=True
    )
    generator = torch.Generator().manual_seed(0)
    for place in range(4):
        gradients = torch.randn(flat.values.shape, generator=generator)
        references[0].grad, references[1].grad = gradients.split([n_encoder, len(gradients) - n_encoder])
        flat.gradients.copy_(gradients)
        if first_lies_apart:
            flat.gradients[: first.numel()] = torch.nan
            first.grad = gradients[: first.numel()].clone().view(first.shape[1], first.shape[0]).t()
        torch.nn.utils.clip_grad_norm_(references, 5.0)
        flat.clip(5.0)
        own.step()
        theirs.step()
        if place == 1:
            own.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for mine, reference in zip(parts, references, strict=True):
        torch.testing.assert_close(mine, reference.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.35, 0.9])
def test_masks_keep_the_right_share_in_every_column(rate: float) -> None:
    torch.manual_seed(0)
    masks = KeepMasks({rate: 512 * 16})
    kept = []
    for _ in range(20):
        masks.refresh()
        kept.append(masks.draw(torch.Size((512, 16)), rate).clone())
    drawn = torch.cat(kept) * (1 - rate)
    torch.testing.assert_close(drawn.unique(), torch.tensor([0.0, 1.0]))
    deviation = (rate * (1 - rate) / len(drawn)) ** 0.5
    assert torch.all((drawn.mean(0) - (1 - rate)).abs() < 5 * deviation)
    # Neighbours are independent: the correlation of n pairs spreads by 1/√n.
    correlation = float(torch.corrcoef(torch.stack([drawn[:, :-1].ravel(), drawn[:, 1:].ravel()]))[0, 1])
    assert abs(correlation) < 5 / drawn.numel() ** 0.5


def test_masks_of_one_epoch_are_cut_at_different_places() -> None:
    torch.manual_seed(0)
    masks = KeepMasks({0.5: 40 * 16})
    masks.refresh()
    drawn = torch.stack([masks.draw(torch.Size((40, 16)), 0.5).clone() for _ in range(10)])
    assert len(drawn.unique(dim=0)) == 10
    masks.refresh()
    assert not any(torch.equal(mask, masks.draw(torch.Size((40, 16)), 0.5)) for mask in drawn)


@pytest.mark.parametrize("rate", [1e-6, 7e-6, 2**-17, 8e-6, 1e-5, 3e-5, 0.5, 1 - 2**-16, 1 - 1e-6])
def test_masks_of_extreme_rates_keep_the_right_share_too(rate: float) -> None:
    """Sixteen bits tell rates apart to within 2⁻¹⁶; below 2⁻¹⁷ nothing is dropped, and least of all everything."""
    torch.manual_seed(0)
    n = 2**20
    masks = KeepMasks({rate: n})
    masks.refresh()
    dropped = float((masks.draw(torch.Size((n,)), rate) == 0).float().mean())
    assert dropped == pytest.approx(rate, abs=2**-16 + 5 * (rate * (1 - rate) / n) ** 0.5)
    assert (dropped == 0.0) or rate >= 2**-17


def train_plainly(data: Stage1Data, shape: NetworkShape, settings: Stage1Settings, seed: int) -> list[float]:
    """Stage 1 as one would write it with autograd and `torch.nn.utils`; validation MAE of every epoch."""
    torch.manual_seed(seed)
    network = TransferNetwork(shape)
    # Nothing is learned about what no training pair has, so it must not say anything either.
    unknown = data.features.gather(data.train.structure, data.train.solvent).eq(0).all(0)
    with torch.no_grad():
        network.encoder.first.weight[:, unknown] = 0.0
    trained = [*network.encoder.parameters(), *network.heads.chi.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay)
    shuffle = torch.Generator().manual_seed(seed)
    train, errors = data.train, []
    for _ in range(settings.n_epochs):
        network.train()
        for rows in torch.randperm(len(train), generator=shuffle).split(settings.batch_size):
            inputs = data.features.gather(train.structure[rows], train.solvent[rows])
            coefficients = network.heads.chi(network.encoder(inputs))
            predicted = chi_at(coefficients.unsqueeze(-2), train.tau[rows])
            optimizer.zero_grad()
            chi_loss(predicted, train.target[rows], train.mask[rows], dim=(-2, -1)).backward()
            for linear, norm in pairwise(network.encoder):
                if isinstance(norm, torch.nn.BatchNorm1d):
                    # In exact arithmetic it is zero; of its rounding AdamW makes whole steps.
                    assert linear.bias.grad.abs().max() < 1e-6
                    linear.bias.grad.zero_()
            torch.nn.utils.clip_grad_norm_(trained, settings.grad_clip_norm)
            optimizer.step()
        errors.append(stage1_mae(network, data, data.validation))
    return errors


@pytest.mark.parametrize("is_sparse", [True, False])
@pytest.mark.parametrize("use_batchnorm", [False, True])
def test_training_equals_the_plain_loop(data: Stage1Data, use_batchnorm: bool, is_sparse: bool) -> None:
    """The step by autograd on dense inputs is a GPU's where none is recorded; packed training is held against it."""
    shape = make_shape(data.features.n_features, use_batchnorm=use_batchnorm)
    run = Stage1Run(data, shape, SETTINGS, seed=5)
    if not is_sparse:
        run._sparse_step = None
    run.train_to(SETTINGS.n_epochs)
    own = [row["validation_mae"] for row in run.history]
    plain = train_plainly(data, shape, SETTINGS, seed=5)
    # Where an input is the same all over a batch, batch norm leaves its weight no gradient but rounding, too.
    np.testing.assert_allclose(own, plain, rtol=5e-3 if use_batchnorm else 1e-4)
    assert own[-1] < 0.8 * own[0]
    assert stage1_mae(run.best_network(), data, data.validation) == pytest.approx(run.best_mae, rel=1e-5)


def test_precision_bf16_stays_close_to_fp32(data: Stage1Data) -> None:
    shape = make_shape(data.features.n_features, dropout=0.1)
    errors = {}
    for precision in ("fp32", "bf16"):
        run = Stage1Run(data, shape, replace(SETTINGS, precision=precision), seed=5)
        run.train_to(SETTINGS.n_epochs)
        errors[precision] = run.best_mae
    assert errors["bf16"] != errors["fp32"]
    assert errors["bf16"] == pytest.approx(errors["fp32"], rel=0.02)


@pytest.mark.parametrize(("instructions", "expected"), [("amx_bf16", True), ("avx512_bf16", True), ("avx2", False)])
def test_auto_multiplies_in_bf16_where_the_processor_can(
    monkeypatch: pytest.MonkeyPatch, instructions: str, expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instructions: True}, raising=False)
    assert multiplies_in_bf16("auto", torch.device("cpu")) is expected
    assert not multiplies_in_bf16("auto", torch.device("cuda"))
    assert multiplies_in_bf16("bf16", torch.device("cpu"))
    assert not multiplies_in_bf16("fp32", torch.device("cpu"))


@pytest.mark.parametrize("use_batchnorm", [False, True])
def test_a_resumed_run_is_bit_identical(data: Stage1Data, use_batchnorm: bool) -> None:
    shape = make_shape(data.features.n_features, dropout=0.2, use_batchnorm=use_batchnorm)
    whole = Stage1Run(data, shape, SETTINGS, seed=2)
    whole.train_to(6)
    first = Stage1Run(data, shape, SETTINGS, seed=2)
    first.train_to(3)
    resumed = Stage1Run(data, shape, SETTINGS, seed=99)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed.train_to(6)
    assert resumed.history == whole.history
    for name, tensor in whole.best_network().state_dict().items():
        assert torch.equal(tensor, resumed.best_network().state_dict()[name]), name


def test_features_are_chosen_by_training_pairs_only(data: Stage1Data) -> None:
    run = Stage1Run(data, make_shape(data.features.n_features), SETTINGS, seed=1)
    run.train_to(2)
    used, validated = (
        data.features.gather(table.structure, table.solvent).ne(0).any(0) for table in (data.train, data.validation)
    )
    assert torch.any(validated & ~used), "no feature would tell whether the validation pairs were looked at"
    for network in (run.latest_network(), run.best_network()):
        weight = network.encoder.first.weight
        assert weight.shape[1] == data.features.n_features
        assert not weight[:, ~used].any()
        assert weight[:, used].any(0).all()
