"""Runs of trials: which of them share seeds and folds, so that luck is what it is called, and what is scored."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest
import torch

from chitransfer.config import Config, override_config
from chitransfer.data.assemble import Dataset
from chitransfer.model.tensor_file import read_records
from chitransfer.search import encoders, runner
from chitransfer.search.objective import FIRST_FRESH, RungTask
from chitransfer.training import stage1


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


def test_the_network_of_the_best_epoch_is_scored_and_kept(
    shared_tiny_config: Config, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every later validation errs more, so that the last epoch is not the best.
    validations, validate = itertools.count(), stage1._mae
    monkeypatch.setattr(stage1, "_mae", lambda *of: validate(*of) + next(validations))
    changes = {"training.min_epochs_pretrain": 0, "training.min_validation_polymers": 1}
    config = override_config(shared_tiny_config, {**changes, "search.n_pretrain_seeds": 2, "training.stage2_epochs": 1})
    own = runner.TrialRunner(config, tiny_dataset, n_threads=1)
    task = RungTask(0, {}, 4, None)
    runs, scored = own.start(task), []
    score = runner.cross_validate

    def note(network: Any, *rest: Any) -> Any:
        scored.append(network)
        return score(network, *rest)

    monkeypatch.setattr(own, "start", lambda task: runs)
    monkeypatch.setattr(runner, "cross_validate", note)
    result = own.run(task)
    for run, network, encoder in zip(runs, scored, unpack(result.encoders), strict=True):
        assert run.best_epoch < run.epoch
        best, latest = (one.encoder.first.weight for one in (run.best_network(), run.latest_network()))
        for weight in (network.encoder.first.weight, encoder["weights"]["encoder.0.weight"]):
            assert torch.equal(weight, best)
            assert not torch.equal(weight, latest)
        assert encoder["mae"] == run.best_mae == min(epoch["validation_mae"] for epoch in run.history)
    assert runs[0].best_mae != runs[1].best_mae
    assert result.components["stage1_mae"] == pytest.approx((runs[0].best_mae + runs[1].best_mae) / 2)


def unpack(packed: bytes) -> list[dict[str, Any]]:
    """What `pack_encoders` packed."""
    return read_records(io.BytesIO(packed), "the encoders", encoders.KIND, encoders.REMEDY)
