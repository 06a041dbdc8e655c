"""What the over-tuning guard says of its findings, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest

from chitransfer.evidence.fresh import DifferenceNoise, FreshScore, measure_difference_noise
from chitransfer.evidence.overtuning import Examination, _describe_fresh, _within_one_error, describe_examination
from chitransfer.search.objective import FIRST_FRESH
from chitransfer.training.resampling import Estimate


def make_examination(gain: Estimate, fresh: list[FreshScore], default: int = 0) -> Examination:
    """A guard's findings of which only the gain and the fresh runs are of interest; trial 1 is the best."""
    one = Estimate(0.9, 0.8, 1.0)
    noise = {"within": None, "difference": asdict(measure_difference_noise(fresh))}
    return Examination(
        1, "best", 1, 0.8, default, one, gain, {}, {}, {}, 1, [1], fresh, noise, 40, 20, 1000, "none"
    )  # fmt: skip


def score_fresh(number: int, runs: Sequence[float], is_default: bool = False) -> FreshScore:
    """A trial's runs on fresh seeds and folds, the first ones."""
    by_number = dict(enumerate(map(float, runs), start=FIRST_FRESH))
    return FreshScore(number, float(np.mean(runs)), by_number, {}, is_default)


def fresh_scores(best: list[float], default: list[float]) -> list[FreshScore]:
    """Trial 1 and the default configuration, trial 0, on fresh seeds and folds."""
    return [score_fresh(1, best), score_fresh(0, default, is_default=True)]


@pytest.mark.parametrize(
    ("gain", "fresh", "expected"),
    [
        (Estimate(0.05, 0.02, 0.08), [], "polymers alone); the search helped"),
        (Estimate(0.05, 0.02, 0.08), fresh_scores([0.8, 0.82], [0.9, 0.91]), "seeds and folds); the search helped"),
        (Estimate(0.05, 0.02, 0.08), fresh_scores([0.9, 0.92], [0.9, 0.91]), "the default is as good"),
        (Estimate(-0.05, -0.08, -0.02), fresh_scores([0.9, 0.92], [0.9, 0.91]), "use the default configuration"),
        (Estimate(-0.05, -0.08, -0.02), fresh_scores([0.8, 0.82], [0.9, 0.91]), "the best trial is better"),
        (Estimate(0.05, -0.02, 0.08), [], "too close to tell on these data"),
    ],
)
def test_gain_is_not_called_one_where_fresh_runs_speak_against_it(
    gain: Estimate, fresh: list[FreshScore], expected: str
) -> None:
    text = "\n".join(describe_examination(make_examination(gain, fresh)))
    assert expected in text
    assert text.count("the search helped") == ("the search helped" in expected)


def test_nothing_is_said_of_a_gain_over_the_best_trial_itself() -> None:
    found = make_examination(Estimate(-0.05, -0.08, -0.02), [], default=1)
    (sentence,) = [line for line in describe_examination(found) if "gain" in line]
    assert sentence.startswith("the best trial is the default configuration")
    assert "-0.0500 (95 % interval -0.080 to -0.020" in sentence
    assert "hurt" not in sentence


def test_a_corrected_value_better_than_the_raw_one_is_explained() -> None:
    found = make_examination(Estimate(0.05, 0.02, 0.08), [])
    assert "draws weigh" not in describe_examination(found)[0]
    better = replace(found, corrected=Estimate(0.79, 0.7, 0.9))
    assert (
        "polymers), lower only because bootstrap draws weight polymers differently: no selection bias"
        in describe_examination(better)[0]
    )


def test_of_many_lost_trials_the_first_are_named() -> None:
    found = replace(make_examination(Estimate(0.05, 0.02, 0.08), []), left_out=dict.fromkeys(range(900), "missing"))
    told = [line for line in describe_examination(found) if "trial" in line][1:7]
    assert told[4:] == ["trial 4 is left out of this: missing", "… and 895 more trials"]


def test_a_mean_outside_its_interval_is_explained() -> None:
    for default in (0, 1):
        found = make_examination(Estimate(-0.0009, -0.0002, 0.0), [], default)
        (sentence,) = [line for line in describe_examination(found) if "gain" in line]
        assert sentence.endswith("because a few draws are far from all others")
        inside = make_examination(Estimate(-0.0001, -0.0002, 0.0), [], default)
        assert "outside its interval" not in "\n".join(describe_examination(inside))


@pytest.mark.parametrize("select", ["best", "reevaluated"])
@pytest.mark.parametrize("fresh", [[], fresh_scores([0.8, 0.82], [0.9, 0.91])])
def test_a_choice_by_fresh_runs_that_are_not_there_is_told(select: str, fresh: list[FreshScore]) -> None:
    found = replace(make_examination(Estimate(0.05, 0.02, 0.08), fresh), select=select)
    told = [line for line in describe_examination(found) if "so the best trial is chosen" in line]
    assert len(told) == (select == "reevaluated" and not fresh)
    assert all(line.startswith("search.select: reevaluated chooses by runs on fresh seeds and folds") for line in told)


def test_fresh_runs_of_the_default_alone_are_compared_with_nothing() -> None:
    _, default = fresh_scores([0.8, 0.8], [0.9, 0.91])
    (sentence,) = [
        line for line in describe_examination(make_examination(Estimate(0, -1, 1), [default], 0)) if "fresh" in line
    ]
    assert sentence.endswith("(2 runs each) the default configuration has objective 0.9050")
    best = replace(default, number=1)
    (sentence,) = [
        line for line in describe_examination(make_examination(Estimate(0, -1, 1), [best], 1)) if "fresh" in line
    ]
    assert sentence.endswith("of the search (1), which is the default configuration, has objective 0.9050")


def test_fresh_runs_say_which_trial_comes_first() -> None:
    best, default = fresh_scores([0.8, 0.82], [0.9, 0.91])
    for order, expected in (
        ([best, default], "the best trial of the search (1) ranks first, too, with objective 0.8100, the default"),
        ([default, best], "trial 0 ranks first; the best trial of the search (1) has objective 0.8100"),
    ):
        found = make_examination(Estimate(0, -1, 1), order, default.number)
        (sentence,) = [line for line in describe_examination(found) if line.startswith("on fresh")]
        assert f"each) {expected}" in sentence


def test_an_interval_by_hardly_any_fresh_runs_says_so() -> None:
    few = make_examination(Estimate(0.05, -0.5, 0.6), fresh_scores([0.8, 0.82], [0.9, 0.91]))
    assert "there are few runs on fresh seeds" in "\n".join(describe_examination(few))
    more = [score_fresh(n, [0.8, 0.82]) for n in (1, 2, 3)]
    enough = make_examination(Estimate(0.05, -0.5, 0.6), [*more, score_fresh(0, [0.9, 0.91], is_default=True)])
    assert "there are few runs" not in "\n".join(describe_examination(enough))


def test_noise_of_a_difference_is_pooled_over_trials(rng: np.random.Generator) -> None:
    folds = rng.normal(1.0, 0.1, 400)
    default = folds + rng.normal(0.0, 0.02, 400)
    runs = [folds + level + rng.normal(0.0, 0.02, 400) for level in rng.normal(0.0, 0.2, 3)]
    fresh = [score_fresh(n, own) for n, own in enumerate(runs, start=1)]
    stopped = score_fresh(999, [5.0])
    found = measure_difference_noise([*fresh, stopped, score_fresh(0, default, is_default=True)])
    assert found.freedom == pytest.approx(2 * 399)
    assert found.deviation == pytest.approx(0.02 * np.sqrt(2), rel=0.1)
    assert found.half_width == pytest.approx(1.96 * found.deviation, rel=0.01)
    assert measure_difference_noise(fresh_scores([0.8], [0.9])) == DifferenceNoise(None, 0)
    assert measure_difference_noise(fresh).half_width is None


def test_the_half_width_holds_although_all_differences_share_the_defaults_runs(rng: np.random.Generator) -> None:
    held = []
    for runs in rng.normal(0.0, 1.0, (8000, 6, 2)):
        scores = [score_fresh(n, own, is_default=n == 0) for n, own in enumerate(runs)]
        half_width = measure_difference_noise(scores).half_width
        assert half_width is not None
        held.append(abs(rng.normal(0.0, np.sqrt(2.0))) <= half_width)
    # As if the five differences were independent it would be 0.932.
    assert np.mean(held) > 0.942


@pytest.mark.parametrize(
    ("counts", "said", "is_said_of_others"),
    [((2, 2), "(2 runs each)", False), ((1, 2), "(1 run each)", True), ((1,), "(1 run each)", False)],
)
def test_runs_on_fresh_seeds_are_counted_for_every_trial(
    counts: tuple[int, ...], said: str, is_said_of_others: bool
) -> None:
    fresh = [score_fresh(number, [0.5] * count) for number, count in enumerate(counts)]
    found = make_examination(Estimate(0, -1, 1), fresh)
    assert said in _describe_fresh(found)
    assert ("not all of these trials have" in _describe_fresh(found)) == is_said_of_others
    assert "left out" not in _describe_fresh(found)
    assert _describe_fresh(replace(found, fresh_left_out=[7, 9])).endswith(
        "left out, because it ran on other folds only: trial 7, 9"
    )


def test_fresh_runs_of_other_trials_than_best_and_default_are_told() -> None:
    found = make_examination(Estimate(0, -1, 1), [score_fresh(7, [0.5])])
    assert _describe_fresh(found) == "on fresh seeds and folds (1 run each) trial 7 has objective 0.5000"


def test_within_one_standard_error_is_no_more_than_one() -> None:
    trials = [SimpleNamespace(values=[value]) for value in (1.1, 1.0, 1.2, 1.0)]
    errors = np.array([0.11, 0.0, 0.15, 0.0])
    found = _within_one_error(trials, errors, 1)  # type: ignore[arg-type]
    assert found == [trials[0], trials[1], trials[3]]
