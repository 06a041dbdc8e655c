"""The guide's Key Insight, measured on made-up trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial
from scipy.stats import spearmanr

from chitransfer.config import load_config
from chitransfer.evidence.insight import Insight, measure_insight
from chitransfer.search.replicates import REPLICATE_VALUES
from chitransfer.search.results import read_standing


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals from fewer draws, which saves a second a test."""
    monkeypatch.setattr("chitransfer.evidence.insight.N_DRAWS", 200)


def study_of(stage1_mae: Sequence[float], values: Sequence[float], **searched: Any) -> optuna.Study:
    """Complete trials with these MAEs of Stage 1, objectives, and parameters by name: distribution and values."""
    study = optuna.create_study()
    for place, (mae, value) in enumerate(zip(stage1_mae, values, strict=True)):
        study.add_trial(
            create_trial(
                value=value,
                params={name: own[place] for name, (_, own) in searched.items()},
                distributions={name: distribution for name, (distribution, _) in searched.items()},
                user_attrs={"stage1_mae": mae},
            )
        )
    return study


def measure(study: optuna.Study, **weights: float) -> Insight:
    """The insight of a study under these weights of the objective."""
    config = load_config(None, {f"objective.{name}": weight for name, weight in weights.items()})
    insight = measure_insight(study, config)
    assert insight is not None
    return insight


@pytest.mark.parametrize(
    ("stage1_mae", "values"),
    [
        ((0.1, 0.2, 0.3, 0.4), (1.0, 1.1, 1.2, 1.3)),
        ((0.2, 0.2, 0.2, 0.2, 0.2), (1.0, 1.1, 1.2, 1.3, 1.4)),
        # Stage 1's own term is all of the objective.
        ((0.1, 0.2, 0.3, 0.4, 0.5), [0.1 * mae for mae in (0.1, 0.2, 0.3, 0.4, 0.5)]),
    ],
)
def test_few_trials_or_what_does_not_vary_give_none(stage1_mae: Sequence[float], values: Sequence[float]) -> None:
    assert measure_insight(study_of(stage1_mae, values), load_config(None)) is None


def test_five_trials_that_hardly_vary_give_one() -> None:
    measure(study_of((0.1, 0.1, 0.1, 0.1, 0.11), (1.0, 1.0, 1.0, 1.0, 1.01)))


def test_transfer_is_the_objective_without_its_stage_1_term() -> None:
    stage1_mae = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    insight = measure(study_of(stage1_mae, [2.0 + 9.0 * mae for mae in stage1_mae]), stage1_mae=10.0)
    assert insight.correlation == pytest.approx(-1.0)
    assert insight.high < 0
    assert "a better Stage 1 goes with a WORSE transfer" in insight.sentences[0]


def test_stage_1_loss_misleads_only_where_it_would_choose_another_trial() -> None:
    insight = measure(study_of((0.1, 0.5, 0.4, 0.3, 0.2), (1.0, 1.1, 1.3, 1.2, 1.4)))
    assert insight.low <= 0
    assert insight.stage1_choice == insight.transfer_choice == 0
    assert not insight.misleading
    assert len(insight.sentences) == 1


@pytest.mark.parametrize(
    ("stage1_mae", "choice", "is_misleading", "relation"),
    [
        ((8, 7, 6, 5, 4, 3, 2, 1), 7, True, "goes with a WORSE transfer"),
        # The second best of eight: that may be luck where Stage 1 says nothing else of the order.
        ((5, 1, 8, 2, 7, 3, 6, 4), 1, True, "says nothing reliable"),
        ((2, 1, 3, 4, 5, 6, 7, 8), 1, False, "goes with a better transfer"),
        # The third is not of the better quarter, however well the order of the others is told.
        ((2, 3, 1, 4, 5, 6, 7, 8), 2, True, "goes with a better transfer"),
    ],
)
def test_what_the_choice_by_stage_1_costs(
    stage1_mae: tuple[int, ...], choice: int, is_misleading: bool, relation: str
) -> None:
    # 16 · 16 weights are more than 100.
    widths = ["16_16"] * 4 + ["100"] * 4
    # What has no numbers has no order, and what all trials share has no effect.
    way = (CategoricalDistribution(("one", "other")), ["one", "other"] * 4)
    same = (FloatDistribution(0.0, 1.0), [0.5] * 8)
    searched = {"hidden": (CategoricalDistribution(("16_16", "100")), widths), "way": way, "same": same}
    insight = measure(study_of([mae / 1000 for mae in stage1_mae], range(1, 9), **searched))
    assert (insight.stage1_choice, insight.transfer_choice, insight.rank) == (choice, 0, choice + 1)
    assert insight.cost == choice
    assert insight.misleading == is_misleading
    assert relation in insight.sentences[0]
    assert [f"only number {choice + 1} of 8" in line for line in insight.sentences[1:2]] == [True] * is_misleading
    # Wide layers hurt both or, where Stage 1 is the other way round, help one.
    assert len(insight.sentences) == 1 + is_misleading + ("WORSE" in relation)
    (effect,) = insight.effects
    assert effect.on_transfer < -0.8
    sizes = [256] * 4 + [100] * 4
    expected = spearmanr(sizes, stage1_mae)
    assert (effect.on_stage1, effect.p_stage1) == pytest.approx((expected.statistic, expected.pvalue))
    assert list(insight.effects_frame().columns) == ["name", "on_stage1", "on_transfer", "p_stage1", "p_transfer"]


def test_the_lowest_objective_is_the_choice_also_where_another_is_recommended() -> None:
    """A trial of one run is believed less than one of five."""
    study = optuna.create_study()
    runs = [[1.0], [1.1, 0.93, 1.07, 0.96, 0.99], [1.1, 1.2], [1.15, 1.1], [1.2, 1.05]]
    for mae, own in zip((0.1, 0.2, 0.3, 0.4, 0.5), runs, strict=True):
        value = sum(own) / len(own)
        study.add_trial(create_trial(value=value, user_attrs={"stage1_mae": mae, REPLICATE_VALUES: own}))
    best = read_standing(study).best
    assert best is not None
    assert best.number == 1
    insight = measure(study)
    assert (insight.transfer_choice, insight.cost) == (0, 0.0)


@pytest.mark.parametrize(("order", "is_told"), [(range(8), True), ((2, 0, 5, 1, 7, 3, 4, 6), False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_direction_is_told_only_where_it_is_hardly_chance(order: Sequence[int], is_told: bool, sign: int) -> None:
    dropout = (FloatDistribution(-1.0, 1.0), [sign * rank / 10 for rank in order])
    stage1_mae, values = [0.1 + 0.01 * place for place in range(8)], [1.0 - 0.1 * place for place in range(8)]
    insight = measure(study_of(stage1_mae, values, encoder_dropout=dropout))
    (effect,) = insight.effects
    assert sign * effect.on_stage1 > 0.5 > -0.5 > sign * effect.on_transfer
    helped, hurt = ("transfer", "Stage 1")[::sign]
    said = f"larger encoder_dropout helps {helped} and hurts {hurt}" in "\n".join(insight.sentences)
    assert said == is_told


def test_the_strongest_effect_on_transfer_comes_first() -> None:
    """Numbers, switches and choices of numbers; one that only some trials have is left out."""
    values = [float(place) for place in range(8)]
    searched = {
        "weak": (IntDistribution(0, 9), [3, 0, 1, 2, 4, 7, 5, 6]),
        "strong": (FloatDistribution(0.0, 9.0), [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]),
        "switch": (CategoricalDistribution((True, False)), [True, False] * 4),
    }
    study = study_of([0.1, 0.3, 0.2, 0.5, 0.4, 0.8, 0.7, 0.6], values, **searched)
    first = study.get_trials()[0]
    distributions = {**first.distributions, "new": FloatDistribution(0.0, 1.0)}
    params = {**first.params, "new": 0.5}
    attributes = {"stage1_mae": 0.05}
    study.add_trial(create_trial(value=-1.0, params=params, distributions=distributions, user_attrs=attributes))
    assert [effect.name for effect in measure(study).effects] == ["strong", "weak", "switch"]


def test_both_directions_must_be_more_than_chance() -> None:
    """What surely helps transfer and perhaps hurts Stage 1."""
    dropout = (FloatDistribution(0.0, 9.0), [float(rank) for rank in range(8)])
    stage1_mae, values = (0.3, 0.1, 0.4, 0.2, 0.7, 0.5, 0.35, 0.6), [8.0 - place for place in range(8)]
    insight = measure(study_of(stage1_mae, values, encoder_dropout=dropout))
    (effect,) = insight.effects
    assert effect.p_transfer < 0.05 < effect.p_stage1
    assert effect.on_stage1 > 0.3
    assert not any("helps" in line for line in insight.sentences)
