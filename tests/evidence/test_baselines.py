"""The simple predictors of a comparison: the kernel, what they learn from, and what they do with one class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from chitransfer.data.assemble import Dataset
from chitransfer.evidence.baselines import (
    BASELINES,
    PENALTIES,
    Prediction,
    TaskData,
    classify_by_chi,
    correct_affinely,
    descriptor_logistic,
    gaussian_process_chi,
    gaussian_process_solubility,
    ridge_chi,
    ridge_solubility,
    tanimoto_kernel,
)
from chitransfer.training import forest


def test_kernel_is_the_tanimoto_formula(rng: np.random.Generator) -> None:
    a, b = rng.integers(0, 4, (5, 9)), rng.integers(0, 4, (6, 9))
    kernel = tanimoto_kernel(a, b)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            assert kernel[i, j] == pytest.approx(np.minimum(x, y).sum() / np.maximum(x, y).sum())
    nothing = np.zeros((1, 9), dtype=int)
    assert np.array_equal(tanimoto_kernel(np.vstack([a, nothing]), nothing)[:, 0], [0.0] * 5 + [1.0])
    assert np.linalg.eigvalsh(tanimoto_kernel(a, a)).min() > -1e-9


def make_task(rng: np.random.Generator) -> TaskData:
    counts = rng.integers(0, 3, (40, 20)).astype(float)
    target = counts @ rng.normal(size=20)
    training = np.arange(40) < 30
    inverse = np.ones((40, 1))
    features, polymer = np.hstack([counts, inverse]), np.arange(40) // 2
    return TaskData(features, counts, np.zeros((40, 0)), counts[:, :4], polymer, target, training)


def test_a_task_holds_what_its_columns_are_called(tiny_dataset: Dataset) -> None:
    rows, bits = tiny_dataset.chi, tiny_dataset.recipe.fingerprint_bits
    assert rows is not None
    with_solvents = replace(tiny_dataset, solvent_features=sparse.csr_array(np.full((1, bits + 3), 7.0)))
    task = TaskData.build(with_solvents, rows, rows.value, np.ones(len(rows), dtype=bool))
    whole = tiny_dataset.polymer_features.toarray()[rows.structure]
    np.testing.assert_array_equal(task.polymer_counts, whole[:, :bits])
    np.testing.assert_array_equal(task.descriptors, whole[:, bits:])
    np.testing.assert_array_equal(task.solvent_counts, np.full((len(rows), bits), 7.0))
    assert task.descriptors.shape[1] == len(tiny_dataset.recipe.descriptors)
    np.testing.assert_allclose(task.features[:, -1], 298.15 / rows.temperature, rtol=1e-6)
    assert len(np.unique(task.features[:, -1])) > 1


@pytest.mark.parametrize("differs", ["solvent", "temperature"])
def test_gaussian_process_tells_solvents_and_temperatures_apart(rng: np.random.Generator, differs: str) -> None:
    solvent, inverse = rng.integers(0, 2, 40), rng.uniform(0.7, 1.1, 40)
    target = 3.0 * (solvent if differs == "solvent" else inverse)
    counts, own = np.ones((40, 5)), np.eye(2)[solvent]
    features = np.hstack([counts, own, (inverse if differs == "temperature" else np.ones(40))[:, None]])
    task = TaskData(features, counts, own, counts[:, :4], np.arange(40), target, np.arange(40) < 30)
    assert np.abs(gaussian_process_chi(task, 0).value - target).max() < 0.2 * np.ptp(target)


def test_gaussian_process_is_that_of_its_formula(rng: np.random.Generator) -> None:
    # Pairs that come several times, so that noise can be told from what pairs differ by.
    polymer, solvent = (rng.integers(0, 3, (3, 6))[rng.integers(0, 3, 40)] for _ in range(2))
    inverse, noise = rng.uniform(0.8, 1.2, 40), rng.normal(size=40)
    target = polymer[:, 0] + 2.0 * solvent[:, 0] + 3.0 * inverse + noise
    features = np.hstack([polymer, solvent, inverse[:, None]]).astype(float)
    train = np.arange(40) < 30
    task = TaskData(features, polymer, solvent, polymer, np.arange(40), target, train)

    def tanimoto(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.minimum(x, y).sum() / np.maximum(x, y).sum()) if x.any() or y.any() else 1.0

    kernel = np.array(
        [
            [
                tanimoto(polymer[i], polymer[j])
                * tanimoto(solvent[i], solvent[j])
                * np.exp(-0.5 * ((inverse[i] - inverse[j]) / 0.2) ** 2)
                for j in range(40)
            ]
            for i in range(40)
        ]
    )
    y = (target[train] - target[train].mean()) / target[train].std()
    covariances = {share: kernel[train][:, train] + share * np.eye(30) for share in (0.03, 0.1, 0.3, 1.0)}
    chosen = max(covariances.values(), key=lambda own: stats.multivariate_normal(cov=own).logpdf(y))
    assert chosen is not covariances[0.03]
    expected = target[train].mean() + target[train].std() * kernel[:, train] @ np.linalg.inv(chosen) @ y
    assert gaussian_process_chi(task, 0).value == pytest.approx(expected)


def test_gaussian_process_follows_what_has_no_noise(rng: np.random.Generator) -> None:
    task = make_task(rng)
    exact = np.abs(gaussian_process_chi(task, 0).value - task.target)[task.training].mean()
    noise = replace(task, target=rng.normal(size=40))
    smoothed = np.abs(gaussian_process_chi(noise, 0).value - noise.target)[task.training].mean()
    assert exact < 0.2 * task.target[task.training].std()
    assert smoothed > 0.3 * noise.target[task.training].std()


def test_chi_of_0_and_1_is_no_label() -> None:
    inverse = np.linspace(0.4, 1.6, 40)[:, None]
    counts, chi = np.ones((40, 5)), (inverse[:, 0] > 1.0).astype(float)
    features = np.hstack([counts, inverse])
    task = TaskData(features, counts, np.zeros((40, 0)), counts, np.arange(40), chi, np.ones(40, dtype=bool))
    found = gaussian_process_chi(task, 0)
    shifted = gaussian_process_chi(replace(task, target=2.0 * chi + 5.0), 0)
    assert found.value == pytest.approx((shifted.value - 5.0) / 2.0)
    # A smooth curve passes a step by on both sides, where a probability would be clipped.
    assert found.value.min() < -0.01
    assert found.value.max() > 1.01
    assert gaussian_process_solubility(task, 0).value == pytest.approx(found.value.clip(0.0, 1.0))


def test_gaussian_process_knows_something_of_new_polymers(rng: np.random.Generator) -> None:
    task = make_task(rng)
    error = np.abs(gaussian_process_chi(task, 0).value - task.target)[~task.training].mean()
    assert error < np.abs(task.target - task.target[task.training].mean())[~task.training].mean()


def test_ridge_finds_a_line(rng: np.random.Generator) -> None:
    task = make_task(rng)
    error = np.abs(ridge_chi(task, 0).value - task.target)[~task.training].mean()
    assert error < 0.2 * np.abs(task.target - task.target[task.training].mean())[~task.training].mean()


def test_the_penalty_of_ridge_is_chosen_by_whole_polymers(rng: np.random.Generator) -> None:
    # Features tell polymers apart and nothing else: rows of a known polymer are easy, new polymers are not.
    polymer = np.repeat(np.arange(60), 10)
    own, value = rng.normal(size=(60, 30))[polymer], rng.normal(size=60)[polymer]
    features = own + 0.05 * rng.normal(size=(600, 30))
    nothing = np.zeros((600, 0))
    task = TaskData(features, nothing, nothing, nothing, polymer, value, polymer < 40)
    test = ~task.training
    spread = np.abs(ridge_chi(task, 0).value - value[task.training].mean())[test].mean()
    by_rows = make_pipeline(StandardScaler(), RidgeCV(alphas=PENALTIES)).fit(features[~test], value[~test])
    assert spread < 0.25 * np.abs(by_rows.predict(features[test]) - value[~test].mean()).mean()


@pytest.mark.parametrize("polymer", [np.zeros(40, dtype=int), np.arange(40)])
def test_ridge_without_anything_to_choose_by_is_the_mean(rng: np.random.Generator, polymer: np.ndarray) -> None:
    task = make_task(rng)
    # One polymer; or polymers that all look the same.
    features = task.features if polymer[-1] == 0 else np.ones_like(task.features)
    found = ridge_chi(replace(task, polymer=polymer, features=features), 0).value
    assert found == pytest.approx(np.full(40, task.target[task.training].mean()))


def test_affine_correction_recovers_a_line(rng: np.random.Generator) -> None:
    task = make_task(rng)
    assert correct_affinely((task.target - 0.3) / 2.0, task).value == pytest.approx(task.target)
    stage1_chi = task.target + rng.normal(size=40)
    line = np.polyfit(stage1_chi[task.training], task.target[task.training], 1)
    assert correct_affinely(stage1_chi, task).value == pytest.approx(np.polyval(line, stage1_chi))


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_affine_correction_of_one_value_is_the_mean(rng: np.random.Generator, value: float) -> None:
    task = make_task(rng)
    found = correct_affinely(np.full(40, value), task).value
    assert found == pytest.approx(np.full(40, task.target[task.training].mean()))


CLASSIFIERS = [
    *(predict for _, predict in BASELINES.values() if predict),
    lambda task, _: classify_by_chi(task.features[:, 0], task),
]


@pytest.mark.parametrize(
    "predict",
    [
        *(predict for predict, _ in BASELINES.values() if predict),
        lambda task, _: correct_affinely(task.features[:, 0], task),
    ],
)
def test_predictors_of_chi_read_training_rows_only(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, predict: Callable[[TaskData, int], Prediction]
) -> None:
    monkeypatch.setattr(forest, "N_TREES", 10)
    task = make_task(rng)
    other = replace(task, target=np.where(task.training, task.target, task.target + 1e3))
    assert np.array_equal(predict(task, 0).value, predict(other, 0).value)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_four_descriptors_are_those_that_follow_the_labels(rng: np.random.Generator, sign: float) -> None:
    task, descriptors = make_task(rng), rng.normal(size=(40, 12)) * np.geomspace(1e-3, 1e3, 12)
    label = (sign * descriptors[:, 5] > 0).astype(float)
    # One that is the same for all follows nothing.
    descriptors[:, 11] = 0.1
    found = descriptor_logistic(replace(task, descriptors=descriptors, target=label), 0)
    assert (((found.value >= 0.5) == (label > 0.5))[~task.training]).mean() >= 0.8
    train = task.training
    strength = [abs(np.corrcoef(one, label[train])[0, 1]) for one in descriptors[train, :11].T]
    four = np.argsort(strength)[-4:]
    assert found.value == pytest.approx(logistic(descriptors[:, four], label, train, C=1.0), rel=1e-4)


def logistic(features: np.ndarray, label: np.ndarray, train: np.ndarray, C: float) -> np.ndarray:
    """Probabilities of scikit-learn's logistic regression on standardised features."""
    scaled = (features - features[train].mean(axis=0)) / features[train].std(axis=0)
    return LogisticRegression(C=C, max_iter=2000).fit(scaled[train], label[train]).predict_proba(scaled)[:, 1]


def test_logistic_regression_is_scikit_learns(rng: np.random.Generator) -> None:
    task = make_task(rng)
    label = (task.target > np.median(task.target)).astype(float)
    known = replace(task, target=label)
    whole = logistic(task.polymer_counts, label, task.training, C=0.01)
    assert ridge_solubility(known, 0).value == pytest.approx(whole, rel=1e-4)
    chi = rng.normal(size=40) - task.target
    alone = logistic(chi[:, None], label, task.training, C=1.0)
    assert classify_by_chi(chi, known).value == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("predict", CLASSIFIERS)
def test_classifiers_read_training_rows_only(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, predict: Callable[[TaskData, int], Prediction]
) -> None:
    monkeypatch.setattr(forest, "N_TREES", 10)
    task = make_task(rng)
    label = (task.target > np.median(task.target)).astype(float)
    found = predict(replace(task, target=label), 0)
    other = predict(replace(task, target=np.where(task.training, label, 1.0 - label)), 0)
    assert np.array_equal(found.value, other.value)
    assert found.threshold == other.threshold


@pytest.mark.parametrize("predict", [BASELINES[name][1] for name in ("random_forest", "ridge", "gaussian_process")])
def test_thresholds_are_chosen_by_whole_polymers(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, predict: Callable[[TaskData, int], Prediction]
) -> None:
    # Features tell polymers apart and nothing else. By rows of known polymers a sharp cut looks best; of new polymers
    # nothing is known, and calling them all positive is.
    monkeypatch.setattr(forest, "N_TREES", 20)
    polymer = np.repeat(np.arange(60), 10)
    label = (rng.permutation(60) < 24).astype(float)[polymer]
    counts = np.abs(rng.normal(size=(60, 30)))[polymer]
    features = np.hstack([counts + 0.01 * rng.normal(size=(600, 30)), np.ones((600, 1))])
    task = TaskData(features, counts, np.zeros((600, 0)), counts[:, :4], polymer, label, polymer < 40)
    found = predict(task, 0)
    assert (found.value >= found.threshold)[~task.training].mean() > 0.9


@pytest.mark.parametrize("only", [0.0, 1.0])
@pytest.mark.parametrize("predict", CLASSIFIERS)
def test_classifiers_call_everything_by_the_only_class_they_saw(
    rng: np.random.Generator, predict: Callable[[TaskData, int], Prediction], only: float
) -> None:
    task = make_task(rng)
    found = predict(replace(task, target=np.where(task.training, only, 1.0 - only)), 0)
    assert np.array_equal(found.value, np.full(len(task.target), only))
    assert np.array_equal(found.value >= found.threshold, np.full(len(task.target), bool(only)))
