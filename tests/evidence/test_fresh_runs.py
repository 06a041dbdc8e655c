"""Trials run again are compared by the fresh runs they have in common, whose folds are the same for all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from chitransfer.evidence.fresh import FreshScore, measure_difference_noise, read_fresh_scores
from chitransfer.files import write_json
from chitransfer.search.replicates import replicate_folder
from chitransfer.search.study_folder import StudyFolder


def write_runs(folder: Path, runs: Mapping[int, Mapping[int, float]]) -> list[Any]:
    """Leave a study with the fresh runs of its trials, and trials that never ran again; returns its trials."""
    for trial, own in runs.items():
        for number, value in own.items():
            scores = {"epoch": 1, "finished": True, "value": value, "attributes": {"exp_mae": value / 2}}
            write_json(replicate_folder(StudyFolder(folder).trial(trial), number) / "scores.json", scores)
    return [SimpleNamespace(number=trial, user_attrs={"is_default": trial == 0}) for trial in range(9)]


@pytest.mark.parametrize(
    ("runs", "means", "left_out"),
    [
        # Seed 1001 has the harder folds; trial 0 was not run there.
        ({0: {1000: 0.5}, 3: {1000: 0.4, 1001: 0.8}, 5: {1000: 0.45, 1001: 0.7}}, {3: 0.4, 5: 0.45, 0: 0.5}, []),
        ({0: {1001: 0.9}, 3: {1000: 0.4, 1001: 0.8}}, {3: 0.8, 0: 0.9}, []),
        ({0: {1001: 0.8, 1000: 0.6}, 3: {1000: 0.4, 1001: 0.8}}, {3: 0.6, 0: 0.7}, []),
        ({0: {1001: 0.9}, 3: {1000: 0.4}, 5: {1000: 0.3, 1001: 0.5}, 6: {1001: 0.7}}, {5: 0.5, 6: 0.7, 0: 0.9}, [3]),
        ({0: {1001: 0.1}, 3: {1000: 0.4}}, {3: 0.4}, [0]),
        ({}, {}, []),
    ],
)
def test_trials_are_ranked_by_the_runs_they_share(
    tmp_path: Path, runs: dict[int, dict[int, float]], means: dict[int, float], left_out: list[int]
) -> None:
    scores, others = read_fresh_scores(write_runs(tmp_path, runs), StudyFolder(tmp_path))
    assert {score.number: score.value for score in scores} == pytest.approx(means)
    assert [score.number for score in scores] == list(means)
    assert others == left_out
    for score in scores:
        assert score.runs == runs[score.number]
        assert score.components == pytest.approx({"exp_mae": score.value / 2})
        assert score.is_default == (score.number == 0)


def test_a_component_that_a_run_lacks_is_left_out(tmp_path: Path) -> None:
    trials = write_runs(tmp_path, {3: {1000: 0.4, 1001: 0.8}})
    lacking = {"epoch": 1, "finished": True, "value": 0.6, "attributes": {"exp_mae": None}}
    write_json(replicate_folder(StudyFolder(tmp_path).trial(3), 1001) / "scores.json", lacking)
    (score,), _ = read_fresh_scores(trials, StudyFolder(tmp_path))
    assert (score.value, score.components) == (0.5, {})


def test_noise_pairs_runs_by_their_number(rng: np.random.Generator) -> None:
    """Folds shift all trials alike, so that only what is left of the difference is noise."""
    folds = dict(enumerate(rng.normal(0.0, 5.0, 6), start=1000))
    default = {number: folds[number] + noise for number, noise in zip(folds, rng.normal(size=6), strict=True)}
    runs = [{n: folds[n] + rng.normal() for n in kept} for kept in ((1000, 1001, 1002, 1003), (1005, 1002, 1004))]
    scores = [FreshScore(number, 0.0, own, {}, False) for number, own in enumerate(runs, start=1)]
    alone = FreshScore(3, 0.0, {1004: 100.0}, {}, False)
    found = measure_difference_noise([*scores, alone, FreshScore(0, 0.0, default, {}, True)])
    variances = [np.var([own[n] - default[n] for n in own], ddof=1) for own in runs]
    assert found.deviation == pytest.approx(np.sqrt((3 * variances[0] + 2 * variances[1]) / 5))


def test_degrees_of_freedom_of_trials_with_different_runs(rng: np.random.Generator) -> None:
    """By Satterthwaite: twice the squared mean of the variance over its own variance, here drawn."""
    kept = {0: range(1000, 1005), 1: range(1000, 1005), 2: range(1000, 1003), 3: range(1003, 1005)}
    drawn = [
        measure_difference_noise(
            [
                FreshScore(n, 0.0, dict(zip(own, rng.normal(size=5), strict=False)), {}, n == 0)
                for n, own in kept.items()
            ]
        )
        for _ in range(4000)
    ]
    variances = np.array([found.deviation for found in drawn]) ** 2
    assert drawn[0].freedom == pytest.approx(2 * variances.mean() ** 2 / variances.var(), rel=0.1)
