"""Runs of trials: which of them share seeds and folds, so that what is called luck is luck."""

from __future__ import annotations

from typing import Any

import pytest

from chitransfer.config import Config, override_config
from chitransfer.data.assemble import Dataset
from chitransfer.search import runner
from chitransfer.search.objective import FIRST_FRESH, RungTask


def test_no_two_runs_share_a_seed_and_fresh_ones_no_folds_with_the_search(
    shared_tiny_config: Config, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = override_config(shared_tiny_config, {"search.n_pretrain_seeds": 2, "training.stage2_epochs": 1})
    pretraining: list[int] = []
    fine_tuning: list[tuple[bytes, int]] = []
    train, score = runner.Stage1Run, runner.cross_validate

    def note_training(*words: Any) -> Any:
        pretraining.append(words[-1])
        return train(*words)

    def note_scoring(network: Any, data: Any, dataset: Any, folds: Any, settings: Any, seed: int, *rest: Any) -> Any:
        fine_tuning.append((folds.tobytes(), seed))
        return score(network, data, dataset, folds, settings, seed, *rest)

    monkeypatch.setattr(runner, "Stage1Run", note_training)
    monkeypatch.setattr(runner, "cross_validate", note_scoring)
    own = runner.TrialRunner(config, tiny_dataset, n_threads=1)
    runs = [(0, 0), (0, 1), (0, FIRST_FRESH), (0, FIRST_FRESH + 1), (1, 0), (1, FIRST_FRESH)]
    for number, replicate in runs:
        assert not own.run(RungTask(number, {}, 1, None, replicate)).failure
    assert len(set(pretraining)) == len(pretraining) == 2 * len(runs)
    assert len({seed for _, seed in fine_tuning}) == len(fine_tuning) == 2 * len(runs)
    folds = [folds for folds, _ in fine_tuning]
    assert folds[::2] == folds[1::2]
    of_search, again, fresh, other, of_another, fresh_of_another = folds[::2]
    assert of_search == again == of_another
    assert fresh == fresh_of_another
    assert len({of_search, fresh, other}) == 3
