"""The simple predictors of a comparison: the kernel, what they learn from, and what they do with one class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from chitransfer.evidence.baselines import (
    BASELINES,
    Prediction,
    TaskData,
    classify_by_chi,
    correct_affinely,
    gaussian_process,
    tanimoto_kernel,
)


def test_kernel_is_the_tanimoto_formula(rng: np.random.Generator) -> None:
    a, b = rng.integers(0, 4, (5, 9)), rng.integers(0, 4, (6, 9))
    kernel = tanimoto_kernel(a, b)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            assert kernel[i, j] == pytest.approx(np.minimum(x, y).sum() / np.maximum(x, y).sum())
    assert np.linalg.eigvalsh(tanimoto_kernel(a, a)).min() > -1e-9


def make_task(rng: np.random.Generator) -> TaskData:
    counts = rng.integers(0, 3, (40, 20)).astype(float)
    target = counts @ rng.normal(size=20)
    training = np.arange(40) < 30
    inverse = np.ones((40, 1))
    return TaskData(np.hstack([counts, inverse]), counts, np.zeros((40, 0)), counts[:, :4], target, training)


def test_gaussian_process_reads_training_rows_only(rng: np.random.Generator) -> None:
    task = make_task(rng)
    changed = np.where(task.training, task.target, 1e6)
    other = TaskData(task.features, task.polymer_counts, task.solvent_counts, task.descriptors, changed, task.training)
    assert np.array_equal(gaussian_process(task, 0).value, gaussian_process(other, 0).value)
    error = np.abs(gaussian_process(task, 0).value - task.target)[~task.training].mean()
    assert error < np.abs(task.target - task.target[task.training].mean())[~task.training].mean()


def test_affine_correction_recovers_a_line(rng: np.random.Generator) -> None:
    task = make_task(rng)
    assert correct_affinely((task.target - 0.3) / 2.0, task).value == pytest.approx(task.target)


@pytest.mark.parametrize("only", [0.0, 1.0])
@pytest.mark.parametrize(
    "predict",
    [*(predict for _, predict in BASELINES.values() if predict), lambda task, _: classify_by_chi(task.target, task)],
)
def test_classifiers_call_everything_by_the_only_class_they_saw(
    rng: np.random.Generator, predict: Callable[[TaskData, int], Prediction], only: float
) -> None:
    task = make_task(rng)
    found = predict(replace(task, target=np.where(task.training, only, 1.0 - only)), 0)
    assert np.array_equal(found.value, np.full(len(task.target), only))
    assert np.array_equal(found.value >= found.threshold, np.full(len(task.target), bool(only)))
