"""The search space, and samplers whose suggestions depend on (study seed, trial number) and finished trials alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from chitransfer.config import Config, load_config, override_config
from chitransfer.search.space import (
    HALVED_BATCH_SIZE,
    default_params,
    make_pruner,
    make_sampler,
    rung_epochs,
    settle_pruner,
    suggest_params,
    to_distribution,
    to_overrides,
    trial_rungs,
)
from chitransfer.search.summary import describe_budget, describe_extension
from chitransfer.sections import SpaceParameter

SAMPLERS = ("tpe", "random", "cmaes", "gp", "qmc", "nsga2")


@pytest.mark.parametrize("rungs", [[10, 20, 40, 95, 180], [10, 100, 200], [10, 40, 50, 89, 91], [11, 33]])
@pytest.mark.parametrize("pruner", ["asha", "hyperband"])
def test_rungs_at_which_a_pruner_decides_nothing_are_told(pruner: str, rungs: list[int]) -> None:
    config = load_config(None, {"search.pruner": pruner, "search.rungs": rungs, "training.num_epochs_pretrain": 300})
    study = optuna.create_study(pruner=make_pruner(config.search, 300), sampler=optuna.samplers.RandomSampler(seed=0))
    values, pruned_at = np.random.default_rng(1), set()
    for _ in range(300):
        trial = study.ask()
        for epoch in rungs:
            trial.report(values.random(), epoch)
            if trial.should_prune():
                pruned_at.add(epoch)
                break
        study.tell(trial, values.random())
    first, *others = describe_budget(config)
    assert f"at Stage 1 epoch {' or '.join(map(str, sorted(pruned_at)))} (" in first
    untouched = [epoch for epoch in rungs if epoch not in pruned_at]
    told = f"search.rungs: {pruner} waits for 3 times the epochs, so scoring at {', '.join(map(str, untouched))} only"
    assert [line.startswith(told) for line in others] == [True] * bool(untouched)


class TestDistributions:
    @pytest.mark.parametrize(
        ("parameter", "expected"),
        [
            (
                {"key": "model.encoder_latent_dim", "type": "categorical", "choices": [4, 8]},
                CategoricalDistribution([4, 8]),
            ),
            ({"key": "model.encoder_latent_dim", "type": "int", "low": 4, "high": 64}, IntDistribution(4, 64)),
            (
                {"key": "model.encoder_latent_dim", "type": "int", "low": 4, "high": 64, "step": 20},
                IntDistribution(4, 64, step=20),
            ),
            ({"key": "model.encoder_dropout", "type": "float", "low": 0.1, "high": 0.5}, FloatDistribution(0.1, 0.5)),
            (
                {"key": "model.encoder_dropout", "type": "float", "low": 0.1, "high": 0.5, "step": 0.1},
                FloatDistribution(0.1, 0.5, step=0.1),
            ),
            (
                {"key": "training.lr_pretrain", "type": "log", "low": 1e-4, "high": 1e-2},
                FloatDistribution(1e-4, 1e-2, log=True),
            ),
        ],
    )
    def test_optunas_own(self, parameter: dict[str, Any], expected: object) -> None:
        assert to_distribution(SpaceParameter(**parameter)) == expected

    def test_overrides_set_the_keys(self, tiny_config: Config) -> None:
        params = {"latent_dim": 4, "encoder_hidden": "16_8", "encoder_dropout": 0.25, "lr_pretrain": 2e-3}
        changed = override_config(tiny_config, to_overrides(params, tiny_config.search.space))
        assert changed.model.encoder_latent_dim == 4
        assert changed.model.encoder_hidden_dims == [16, 8]
        assert changed.model.encoder_dropout == 0.25
        assert changed.training.lr_pretrain == 2e-3
        halved = to_overrides(params, tiny_config.search.space, {HALVED_BATCH_SIZE: 5})
        assert override_config(tiny_config, halved).training.batch_size_dft == 5


class TestDefault:
    def test_the_guides_configuration_is_a_point_of_the_guides_space(self) -> None:
        params, outside = default_params(load_config(None))
        assert outside == []
        assert params == {
            "latent_dim": 128,
            "encoder_hidden": "512_256",
            "encoder_dropout": 0.2,
            "chi_head_dropout": 0.1,
            "lr_pretrain": 1e-3,
            "weight_decay": 1e-4,
        }

    def test_what_lies_outside_is_named(self) -> None:
        config = load_config(None, {"model.encoder_latent_dim": 100, "model.encoder_dropout": 0.5})
        params, outside = default_params(config)
        assert outside == ["model.encoder_latent_dim = 100", "model.encoder_dropout = 0.5"]
        assert "latent_dim" not in params
        assert "weight_decay" in params


class TestRungs:
    @pytest.mark.parametrize(
        ("overrides", "epochs", "expected"),
        [
            ({}, 100, [100]),
            ({"search.pruner": "median"}, 90, [10, 30, 90]),
            ({"search.pruner": "asha"}, 2, [1, 2]),
            ({"search.pruner": "asha"}, 1, [1]),
            ({"search.rungs": [5, 20, 100, 400]}, 100, [5, 20, 100]),
        ],
    )
    def test_epochs(self, overrides: dict[str, object], epochs: int, expected: list[int]) -> None:
        assert rung_epochs(load_config(None, overrides).search, epochs) == expected

    @pytest.mark.parametrize(
        ("overrides", "own", "expected"),
        [
            ({"search.pruner": "none"}, 200, [200]),
            ({"search.pruner": "median"}, 90, [10, 30, 90]),
            ({"search.pruner": "median"}, 270, [10, 30, 270]),
            ({"search.pruner": "median"}, 20, [10, 20]),
            ({"search.rungs": [5, 20, 150]}, 200, [5, 20, 150, 200]),
            ({"search.rungs": [5, 20, 150]}, 4, [4]),
        ],
    )
    def test_a_trial_with_epochs_of_its_own_is_judged_where_others_are(
        self, overrides: dict[str, object], own: int, expected: list[int]
    ) -> None:
        config = load_config(None, {"training.num_epochs_pretrain": 90, **overrides})
        assert trial_rungs(config, {"training.num_epochs_pretrain": own}) == expected
        assert trial_rungs(config, {})[-1] == 90

    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            ({"training.min_validation_polymers": 3}, "median"),
            # Of the 36 computed polymers a tenth is held out.
            ({"training.min_validation_polymers": 4}, "median"),
            ({"training.min_validation_polymers": 5}, "none"),
            ({"training.min_validation_polymers": 3, "search.objectives": ["exp_mae", "sol_f1"]}, "none"),
            ({"training.min_validation_polymers": 50, "search.pruner": "asha"}, "asha"),
        ],
    )
    def test_auto_prunes_where_stage_1_can_be_judged(
        self, tiny: dict[str, object], tiny_dataset: Any, overrides: dict[str, object], expected: str
    ) -> None:
        config = load_config(None, {**tiny, "search.pruner": "auto", **overrides})
        assert settle_pruner(config, tiny_dataset).search.pruner == expected

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("none", optuna.pruners.NopPruner),
            ("median", optuna.pruners.MedianPruner),
            ("asha", optuna.pruners.SuccessiveHalvingPruner),
            ("hyperband", optuna.pruners.HyperbandPruner),
        ],
    )
    def test_pruners(self, name: str, kind: type) -> None:
        assert isinstance(make_pruner(load_config(None, {"search.pruner": name}).search, 90), kind)

    @pytest.mark.parametrize("name", ["asha", "hyperband"])
    def test_halving_begins_at_the_first_rung(self, name: str) -> None:
        """Twelve trials that come in from bad to good: none is judged before epoch 10, and not all go on beyond it."""
        pruner = make_pruner(load_config(None, {"search.pruner": name}).search, 90)
        study = optuna.create_study(study_name="halving", pruner=pruner)
        gave_up = []
        for value in range(12):
            trial = study.ask({"x": FloatDistribution(0.0, 1.0)})
            for epoch in (3, 10):
                trial.report(float(value), epoch)
                gave_up += [epoch] if trial.should_prune() else []
            study.tell(trial, float(value))
        assert set(gave_up) == {10}

    def test_hyperband_knows_the_last_epoch(self) -> None:
        """Brackets begin at 10, 30 and 90 epochs of 90."""
        pruner = make_pruner(load_config(None, {"search.pruner": "hyperband"}).search, 90)
        study = optuna.create_study(study_name="brackets", pruner=pruner)
        trial = study.ask()
        trial.report(0.0, 10)
        trial.should_prune()
        assert isinstance(pruner, optuna.pruners.HyperbandPruner)
        assert [one._min_resource * 3**one._min_early_stopping_rate for one in pruner._pruners] == [10, 30, 90]

    def test_hyperband_prunes_alike_whatever_the_study_is_called(self) -> None:
        gave_up: dict[str, list[int]] = {"first": [], "second": []}
        for name, numbers in gave_up.items():
            pruner = make_pruner(load_config(None, {"search.pruner": "hyperband"}).search, 90)
            study = optuna.create_study(study_name=name, pruner=pruner)
            for number in range(12):
                trial = study.ask()
                trial.report(float(number), 10)
                numbers += [number] if trial.should_prune() else []
        assert gave_up["first"] == gave_up["second"] != []

    def test_the_median_judges_from_the_sixth_trial_on(self) -> None:
        pruner = make_pruner(load_config(None, {"search.pruner": "median"}).search, 90)
        study = optuna.create_study(pruner=pruner)
        is_bad = []
        for value in range(7):
            trial = study.ask()
            trial.report(float(value), 10)
            is_bad.append(trial.should_prune())
            study.tell(trial, float(value))
        assert is_bad == [False] * 5 + [True] * 2


class TestSamplers:
    def test_samplers_are_told_what_the_search_is_like(self) -> None:
        """Random trials first, as many as configured; parameters drawn together; trials beside each other; noise."""
        search = load_config(None, {"search.n_startup_trials": 4}).search
        told = {name: vars(make_sampler(search.model_copy(update={"sampler": name}), 1, 0)) for name in SAMPLERS}
        assert [told[name]["_n_startup_trials"] for name in ("tpe", "gp", "cmaes")] == [4, 4, 4]
        assert (told["tpe"]["_multivariate"], told["tpe"]["_constant_liar"]) == (True, True)
        assert told["gp"]["_deterministic"] is False
        assert told["nsga2"]["_population_size"] == 8
        later = vars(make_sampler(search.model_copy(update={"sampler": "qmc"}), 1, 5))
        assert later["_seed"] == told["qmc"]["_seed"], "all trials take points of one sequence"

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_suggestions_lie_in_the_space_and_differ(self, made_up_search: Callable[..., Any], sampler: str) -> None:
        search = made_up_search(search__sampler=sampler, search__n_trials=9, search__n_startup_trials=3)
        assert search.drive() == "finished"
        space = search.config.search.space
        seen = set()
        for trial in search.study.get_trials():
            assert list(trial.params) == list(space)
            for name, value in trial.params.items():
                distribution = to_distribution(space[name])
                assert distribution._contains(distribution.to_internal_repr(value))
            seen.add(tuple(trial.params.values()))
        assert len(seen) == 9

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_the_study_seed_decides(self, made_up_search: Callable[..., Any], sampler: str) -> None:
        def trials(seed: int) -> Any:
            search = made_up_search(search__sampler=sampler, search__n_trials=6, search__n_startup_trials=3, seed=seed)
            search.drive()
            return search.trials()

        first = trials(1)
        assert first == trials(1)
        assert first != trials(2)

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_stopped_after_every_trial_and_resumed(self, made_up_search: Callable[..., Any], sampler: str) -> None:
        whole = made_up_search(search__sampler=sampler, search__n_trials=7, search__n_startup_trials=3)
        whole.drive()
        parts = made_up_search(search__sampler=sampler, search__n_trials=1, search__n_startup_trials=3)
        for n_trials in range(1, 8):
            assert parts.drive(search__n_trials=n_trials) == "finished"
        assert parts.trials() == whole.trials()

    def test_points_of_the_sequence_lie_in_an_extended_space(self, made_up_search: Callable[..., Any]) -> None:
        """Wider ranges are drawn from as a whole, a parameter that joins gets points of the sequence, too."""
        search = made_up_search(search__sampler="qmc", search__n_trials=4, search__enqueue_default=False)
        search.drive()
        before = search.trials()
        joined = {"key": "model.chi_head_dropout", "type": "float", "low": 0.0, "high": 0.4}
        wider = {"search__space__encoder_dropout__high": 0.9, "search__space__chi_head_dropout": joined}
        search.drive(search__n_trials=20, **wider)
        assert search.trials()[:4] == before
        later = [trial.params for trial in search.study.get_trials()][4:]
        old = before[0][2].keys()
        assert all(params.keys() == {*old, "chi_head_dropout"} for params in later)
        dropouts = sorted(params["encoder_dropout"] for params in later)
        # Sixteen points in a row of the sequence: about as many in each half.
        assert dropouts[-1] > 0.8
        for name, middle in (("encoder_dropout", 0.45), ("chi_head_dropout", 0.2)):
            assert 7 <= sum(params[name] > middle for params in later) <= 9

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_what_is_drawn_at_random_in_an_extended_space_is_told(
        self, made_up_search: Callable[..., Any], sampler: str
    ) -> None:
        search = made_up_search(search__sampler=sampler, search__n_trials=4, search__n_startup_trials=3)
        search.drive()
        assert describe_extension(search.study, search.config) == []
        joined = {"key": "model.chi_head_dropout", "type": "float", "low": 0.0, "high": 0.4}
        wider = {"search.space.encoder_dropout.high": 0.9, "search.space.chi_head_dropout": joined}
        told = describe_extension(search.study, override_config(search.config, wider))
        assert len(told) == (sampler in ("gp", "nsga2"))
        for line in told:
            assert line.startswith(f"search.sampler {sampler} draws encoder_dropout, chi_head_dropout at random, since")

    def test_tpe_comes_to_good_values(self, made_up_search: Callable[..., Any]) -> None:
        """Fifty trials of TPE on a smooth objective end far better than the first ten random ones."""
        search = made_up_search(search__n_trials=50, search__n_startup_trials=10)
        search.drive()
        values = [trial.values[0] for trial in search.study.get_trials()]
        assert min(values[10:]) < min(values[:10])
        assert sorted(values[30:])[10] < sorted(values[:10])[5]

    def test_parameters_drawn_alone_are_not_all_the_same_number(self, tiny_config: Config) -> None:
        """Each parameter has a seed of its own; one seed for all would tie them to each other."""
        study = optuna.create_study()
        config = load_config(None, {"search.sampler": "random"})
        params = suggest_params(study, study.ask(), config.search, 7)
        dropout = (params["encoder_dropout"] - 0.15) / 0.2
        head = (params["chi_head_dropout"] - 0.05) / 0.2
        assert abs(dropout - head) > 1e-6

    def test_samplers_of_two_trials_differ(self, tiny_config: Config) -> None:
        def draw(number: int) -> float:
            study = optuna.create_study(sampler=make_sampler(tiny_config.search, 42, number))
            return study.ask().suggest_float("x", 0, 1)

        assert draw(0) == draw(0)
        assert draw(0) != draw(1)
