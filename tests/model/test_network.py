"""The network and its scalers against formulas written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from chitransfer.model.network import (
    Encoder,
    NetworkShape,
    TransferNetwork,
    chi_at,
    inverse_temperature,
    inverse_temperature_line,
)
from chitransfer.model.scalers import LARGEST_SCALED_DESCRIPTOR, ChiScaler, FeatureScaler

SHAPE = NetworkShape(
    n_features=7,
    hidden_dims=(6, 5),
    latent_dim=4,
    encoder_dropout=0.3,
    use_batchnorm=False,
    chi_head_hidden_dim=3,
    chi_head_dropout=0.2,
    solubility_head_hidden_dim=3,
    solubility_head_dropout=0.2,
)
numbers = st.floats(-50, 50)


@given(h0=numbers, h1=numbers, mean=numbers, scale=st.floats(0.01, 10), T_ref=st.floats(200, 500))
def test_a_and_b_are_those_of_the_predicted_line(h0: float, h1: float, mean: float, scale: float, T_ref: float) -> None:
    """χ(T) = mean + scale·(h₀ + h₁·5·(T_ref/T − 1)) is A/T + B at every temperature."""
    coefficients = torch.tensor([h0, h1], dtype=torch.float64)
    A, B = inverse_temperature_line(coefficients, mean, scale, T_ref)
    for T in (250.0, 298.15, 333.0, 480.0):
        by_hand = mean + scale * (h0 + h1 * 5.0 * (T_ref / T - 1.0))
        assert float(A) / T + float(B) == pytest.approx(by_hand, rel=1e-9, abs=1e-9)
        tau = inverse_temperature(torch.tensor(T, dtype=torch.float64), T_ref)
        assert mean + scale * float(chi_at(coefficients, tau)) == pytest.approx(by_hand, rel=1e-9, abs=1e-9)


def test_at_the_reference_temperature_only_the_first_coefficient_counts() -> None:
    coefficients = torch.tensor([[0.7, 123.0], [-0.2, -50.0]])
    tau = inverse_temperature(torch.tensor([298.15, 298.15]), 298.15)
    torch.testing.assert_close(chi_at(coefficients, tau), torch.tensor([0.7, -0.2]))


def test_forward_is_the_written_out_formula() -> None:
    network = TransferNetwork(SHAPE).double().eval()
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    x = np.random.default_rng(0).normal(size=(9, 7))

    def dense(h: np.ndarray, name: str) -> np.ndarray:
        return h @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def silu(h: np.ndarray) -> np.ndarray:
        return h / (1.0 + np.exp(-h))

    h = silu(dense(x, "encoder.0"))
    h = silu(dense(h, "encoder.3"))
    z = dense(h, "encoder.6")
    coefficients = dense(silu(dense(z, "heads.chi.0")), "heads.chi.3")
    with_chi = np.hstack([z, coefficients[:, :1]])
    logit = dense(silu(dense(with_chi, "heads.solubility.0")), "heads.solubility.3")[:, 0]
    with torch.no_grad():
        found_coefficients, found_logit = network(torch.from_numpy(x))
    np.testing.assert_allclose(found_coefficients.numpy(), coefficients, rtol=1e-12)
    np.testing.assert_allclose(found_logit.numpy(), logit, rtol=1e-12)
    assert found_coefficients.shape == (9, 2)
    assert found_logit.shape == (9,)


def test_batchnorm_and_dropout_sit_after_each_hidden_layer() -> None:
    names = [type(layer).__name__ for layer in Encoder(7, [6, 5], 4, 0.3, use_batchnorm=True)]
    block = ["Linear", "BatchNorm1d", "SiLU", "Dropout"]
    assert names == [*block, *block, "Linear"]
    assert [layer.p for layer in Encoder(7, [6, 5], 4, 0.3, False) if isinstance(layer, torch.nn.Dropout)] == [0.3, 0.3]


def test_shape_survives_a_checkpoint() -> None:
    assert NetworkShape.from_dict(SHAPE.to_dict()) == SHAPE


class TestFeatureScaler:
    def test_descriptors_are_standardised_and_fingerprints_left_alone(self, rng: np.random.Generator) -> None:
        features = rng.normal(3.0, 10.0, size=(200, 6)).astype(np.float32)
        features[:, 5] = 7.0  # constant
        before = features.copy()
        stored = sparse.csr_array(features)
        scaler = FeatureScaler.fit(stored, 2, np.arange(len(features)))
        scaled = scaler.transform(features)
        np.testing.assert_array_equal(features, before)
        np.testing.assert_array_equal(scaled[:, :2], features[:, :2])
        wanted = (features[:, 2:5] - features[:, 2:5].mean(axis=0)) / features[:, 2:5].std(axis=0)
        np.testing.assert_allclose(scaled[:, 2:5], wanted, atol=1e-5)
        np.testing.assert_array_equal(scaled[:, 5], 0.0)
        assert scaled.dtype == np.float32
        np.testing.assert_array_equal(scaler.transform_sparse(stored).toarray(), scaled)
        np.testing.assert_array_equal(stored.toarray(), before)

    def test_a_row_weighs_as_often_as_it_is_named(self) -> None:
        features = sparse.csr_array([[1.0], [4.0], [100.0]])
        scaler = FeatureScaler.fit(features, 0, np.array([0, 1, 0]))
        np.testing.assert_allclose([scaler.mean[0], scaler.scale[0]], [2.0, np.std([1.0, 4.0, 1.0])])

    def test_runaway_descriptors_are_clipped(self) -> None:
        scaler = FeatureScaler.fit(sparse.csr_array([[0.0], [1.0]]), 0, np.arange(2))
        np.testing.assert_array_equal(
            scaler.transform(np.array([[1e9], [-1e9], [0.5]])),
            [[LARGEST_SCALED_DESCRIPTOR], [-LARGEST_SCALED_DESCRIPTOR], [0.0]],
        )

    def test_no_columns(self) -> None:
        empty = np.zeros((3, 0), dtype=np.float32)
        scaler = FeatureScaler.fit(sparse.csr_array(empty), 0, np.arange(3))
        assert scaler.transform(empty).shape == (3, 0)
        assert scaler.transform_sparse(sparse.csr_array(empty)).shape == (3, 0)


class TestChiScaler:
    @given(st.lists(st.floats(-20, 20), min_size=1, max_size=30))
    def test_inverse(self, values: list[float]) -> None:
        chi = np.array(values)
        scaler = ChiScaler.fit(chi)
        np.testing.assert_allclose(scaler.inverse(scaler.transform(chi)), chi, atol=2e-5)

    def test_mean_and_deviation(self, rng: np.random.Generator) -> None:
        chi = rng.normal(0.6, 0.4, 100)
        standardised = ChiScaler.fit(chi).transform(chi)
        np.testing.assert_allclose(standardised, (chi - chi.mean()) / chi.std(), rtol=1e-4, atol=1e-6)

    def test_constant_chi(self) -> None:
        assert ChiScaler.fit(np.array([0.5, 0.5])) == ChiScaler(0.5, 1.0)
