"""One outer fold: what its models may know, and whose parameters stand behind each row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import create_trial

from chitransfer.config import Config, override_config
from chitransfer.data.assemble import Dataset
from chitransfer.evidence import nested
from chitransfer.evidence.nested import PROTOCOLS, OuterFold, choose_candidates, run_outer_fold
from chitransfer.search.space import HALVED_BATCH_SIZE
from chitransfer.training.tasks import resolve_positive_label
from tests.forests import few_trees


class Stop(Exception):  # noqa: N818 - what a test has seen enough by
    """Raised where the rest of an outer fold is of no interest."""


def make_tester(config: Config, dataset: Dataset, folder: Path, protocol: str) -> Any:
    fold = OuterFold(folder, protocol, 0, dataset.measured_polymers()[::3])
    return nested._Tester(config, dataset, fold, protocol == PROTOCOLS[1])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_new_chemistry_knows_no_computed_chi_of_test_polymers(
    shared_tiny_config: Config, tiny_dataset: Dataset, tmp_path: Path, protocol: str
) -> None:
    tester = make_tester(shared_tiny_config, tiny_dataset, tmp_path, protocol)
    rows = tiny_dataset.stage1
    tested = rows.structure[np.isin(rows.polymer, tester.fold.test)]
    assert len(tested)
    for pairs in (tester.stage1.train, tester._computed()):
        assert np.isin(tested, pairs.structure.numpy()).any() == (protocol == PROTOCOLS[0])
    assert not np.isin(tiny_dataset.chi.polymer[tester.train_chi], tester.fold.test).any()  # type: ignore[union-attr]


def test_of_new_chemistry_no_prediction_hears_any_chi_or_label(
    shared_tiny_config: Config, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    # Enough of quick Stage 2 that the best threshold is another one with the test rows.
    quick = {"training.stage2_epochs": 60, "training.lr_finetune": 0.01}
    config = override_config(shared_tiny_config, {**quick, "training.num_epochs_finetune": 2})
    test = tiny_dataset.measured_polymers()[::3]
    changed = {}
    for kind in ("stage1", "chi", "solubility"):
        rows = getattr(tiny_dataset, kind)
        other = 1.0 - rows.value if kind == "solubility" else rows.value + 7.0
        # The written values stay, so that what is predicted can be compared line by line.
        changed[kind] = replace(rows, value=np.where(np.isin(rows.polymer, test), other, rows.value))
    found = []
    for name, dataset in (("own", tiny_dataset), ("other", replace(tiny_dataset, **changed))):
        tester = make_tester(config, dataset, tmp_path / name, PROTOCOLS[1])
        with few_trees():
            tester.test_candidate("default", {}, 1, None)
            tester.test_full_model("default_full", {})
            tester.test_scratch(1)
            tester.test_baselines()
        found.append({path.name: path.read_text() for path in (tmp_path / name).rglob("*.csv")})
    assert found[0].keys() >= {"default_chi.csv", "default_full_solubility.csv", "stage1_corrected_solubility.csv"}
    assert found[0] == found[1]


def test_every_seed_pretrains_anew(shared_tiny_config: Config, tiny_dataset: Dataset, tmp_path: Path) -> None:
    tester = make_tester(shared_tiny_config, tiny_dataset, tmp_path, PROTOCOLS[0])
    (first, mae), (second, other) = (tester._pretrain(shared_tiny_config, seed) for seed in range(2))
    assert mae != other
    assert first is tester._pretrain(shared_tiny_config, 0)[0]
    assert first is not second


@pytest.mark.parametrize("is_scratch", [True, False])
def test_every_seed_starts_and_fine_tunes_anew(
    shared_tiny_config: Config, tiny_dataset: Dataset, tmp_path: Path, is_scratch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tester = make_tester(shared_tiny_config, tiny_dataset, tmp_path, PROTOCOLS[0])
    starts: list[bytes] = []
    seeds: list[int] = []
    fit = nested.fit_members

    def remember(network: Any, *words: Any) -> Any:
        starts.append(network.encoder.first.weight.detach().numpy().tobytes())
        seeds.append(words[-1])
        return fit(network, *words)

    monkeypatch.setattr(nested, "fit_members", remember)
    if is_scratch:
        tester.test_scratch(2)
    else:
        tester.test_candidate("default", {}, 2, None)
    assert len(set(starts)) == len(set(seeds)) == 2


def test_rows_train_what_they_are_called(
    shared_tiny_config: Config, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tester = make_tester(shared_tiny_config, tiny_dataset, tmp_path, PROTOCOLS[0])
    seen: list[Any] = []

    def remember(networks: Any, *words: Any) -> None:
        seen.extend([networks, words])
        raise Stop

    monkeypatch.setattr(nested, "fit_members", remember)
    monkeypatch.setattr(nested, "fit_ensemble", remember)
    with pytest.raises(Stop):
        tester.test_candidate("transfer_best", {"model.encoder_latent_dim": 4}, 1, None)
    assert seen[0].shape.latent_dim == 4
    with pytest.raises(Stop):
        tester.test_full_model("transfer_full", {"model.encoder_latent_dim": 4})
    (network,), (data, _, folds, settings, *_) = seen[2:4]
    assert network.shape.latent_dim == 4
    assert not settings.freeze_encoder
    assert data.computed is not None
    assert (folds[:, tester.fold.test] == -1).all()
    with pytest.raises(Stop):
        tester.test_scratch(1)
    scratch = seen[5][3]
    assert not scratch.freeze_encoder
    assert scratch.lr_encoder == scratch.lr


def test_a_solubility_head_that_was_not_trained_predicts_nothing(
    shared_tiny_config: Config, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    changes = {"training.lambda_sol": 0.0, "training.num_epochs_pretrain": 1, "training.num_epochs_finetune": 1}
    tester = make_tester(override_config(shared_tiny_config, changes), tiny_dataset, tmp_path, PROTOCOLS[0])
    tester.test_candidate("default", {}, 1, None)
    tester.test_full_model("default_full", {})
    for row in ("default", "default_full"):
        assert tester.fold.predictions(row, "chi").is_file()
        assert not tester.fold.predictions(row, "solubility").exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_both_searches_have_the_same_budget_and_only_one_is_random(
    shared_tiny_config: Config, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    seen: dict[str, Config] = {}
    test = tiny_dataset.measured_polymers()[::3]

    def remember(config: Config, inner: Dataset, folder: Any, *words: Any) -> None:
        seen[folder.path.name] = config
        assert not np.isin(inner.chi.polymer, test).any()  # type: ignore[union-attr]
        assert not np.isin(inner.solubility.polymer, test).any()  # type: ignore[union-attr]
        assert np.isin(inner.stage1.polymer, test).any() == (protocol == PROTOCOLS[0])
        if len(seen) == 2:
            raise Stop

    monkeypatch.setattr(nested, "search_inside", remember)
    with pytest.raises(Stop):
        run_outer_fold(shared_tiny_config, tiny_dataset, OuterFold(tmp_path, protocol, 0, test), 1, print)
    random, transfer = seen["random_search"], seen["transfer_search"]
    assert (random.search.sampler, transfer.search.sampler) == ("random", shared_tiny_config.search.sampler)
    assert random.search.n_trials == transfer.search.n_trials == shared_tiny_config.search.n_trials
    assert random.seed == transfer.seed
    seen.clear()
    with pytest.raises(Stop):
        run_outer_fold(shared_tiny_config, tiny_dataset, OuterFold(tmp_path, protocol, 1, test), 1, print)
    assert seen["random_search"].seed != random.seed, "each outer fold has its own luck"


def test_searches_call_the_class_positive_that_is_scored(
    shared_tiny_config: Config, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rarer class among the training polymers is the more frequent one of all."""
    rows = tiny_dataset.solubility
    assert rows is not None
    test = np.unique(rows.polymer)[:8]
    value = np.zeros(len(rows))
    value[np.flatnonzero(~np.isin(rows.polymer, test))[:10]] = 1.0
    dataset = replace(tiny_dataset, solubility=replace(rows, value=value))
    config = override_config(shared_tiny_config, {"solubility.positive": "minority"})
    assert resolve_positive_label(dataset.solubility, "minority") == 1
    labels: list[int] = []

    def remember(own: Config, inner: Dataset, *words: Any) -> None:
        assert resolve_positive_label(inner.solubility, "minority") == 0
        labels.append(resolve_positive_label(inner.solubility, own.solubility.positive))
        if len(labels) == 2:
            raise Stop

    monkeypatch.setattr(nested, "search_inside", remember)
    with pytest.raises(Stop):
        run_outer_fold(config, dataset, OuterFold(tmp_path, PROTOCOLS[0], 0, test), 1, print)
    assert labels == [1, 1]


def test_candidates_are_the_best_by_what_their_row_says(
    shared_tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = []
    for values in ([1.0, 0.6, 0.8], [0.9, 0.7, 0.8]):
        study = optuna.create_study()
        for number, (value, stage1_mae) in enumerate(zip(values, (0.3, 0.2, 0.1), strict=True)):
            params = {"encoder_dropout": round(number / 10 + len(studies), 1)}
            space = {"encoder_dropout": optuna.distributions.FloatDistribution(0.0, 2.0)}
            # The second ran out of memory and took a smaller batch.
            attributes = {"stage1_mae": stage1_mae} | ({HALVED_BATCH_SIZE: 8} if number == 1 else {})
            study.add_trial(create_trial(value=value, params=params, distributions=space, user_attrs=attributes))
        studies.append(study)

    def examine(study: optuna.Study, folder: Any, config: Config) -> Any:
        assert study is studies[0]
        assert config.search.select == "reevaluated"
        return SimpleNamespace(chosen_trial=0, to_dict=dict)

    monkeypatch.setattr(nested, "examine_study", examine)
    config = override_config(shared_tiny_config, {"search.select": "best"})
    fold = OuterFold(tmp_path, PROTOCOLS[0], 0, np.zeros(1, dtype=int))
    chosen = choose_candidates(config, *studies, fold, print)
    dropout, halved = "model.encoder_dropout", {"training.batch_size_dft": 8}
    assert chosen == {
        "default": {},
        "stage1_best": {dropout: 0.2},
        "transfer_best": {dropout: 0.1, **halved},
        "transfer_noise_aware": {dropout: 0.0},
        "random_best": {dropout: 1.1, **halved},
    }
