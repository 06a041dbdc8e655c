"""The over-tuning guard: sums per polymer against scikit-learn, the correction against simulated truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.errors import StudyError
from chitransfer.evidence.correction import correct_for_selection, paired_standard_errors
from chitransfer.evidence.outcomes import (
    PolymerSums,
    fresh_replicates,
    measured_polymers,
    objective_of_draws,
    read_trial_sums,
    sum_by_polymer,
)
from chitransfer.sections import ObjectiveSettings
from chitransfer.training import resampling
from chitransfer.training.resampling import Estimate, draw_polymers

CHI_ONLY = ObjectiveSettings(exp_mae=1.0, sol_f1=0.0, sol_recall=0.0, stage1_mae=0.0)


def make_frames(rng: np.random.Generator, n_polymers: int = 12) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A χ and a solubility table of predictions, several rows a polymer."""
    polymer = rng.integers(0, n_polymers, 80).astype(str)
    chi = pd.DataFrame({"polymer": polymer, "chi": rng.normal(size=80), "predicted_chi": rng.normal(size=80)})
    p = rng.random(80).round(1)
    soluble = (rng.random(80) < 0.3 + 0.5 * p).astype(int)
    called = (p > 0.5).astype(int)
    frame = {"polymer": polymer, "soluble": soluble, "probability_positive": p, "called_positive": called}
    return chi, pd.DataFrame(frame)


def test_stereo_variants_are_drawn_as_one_polymer(rng: np.random.Generator) -> None:
    """Features leave stereochemistry out: drawn by themselves, one could choose the trial and the other score it."""
    cis, trans, flat = (polymer_identity(unit) for unit in ("*C/C=C\\C*", "*C/C=C/C*", "*CC=CC*"))
    chi, solubility = make_frames(rng)
    others = [str(number) for number in range(2, 12)]
    found = {}
    for names in ((cis, trans), (flat, flat)):
        frames = [[frame.replace({"polymer": {"0": names[0], "1": names[1]}})] for frame in (chi, solubility)]
        found[names] = sum_by_polymer([*dict.fromkeys(names), *others], *frames, 1)
    apart, together = found.values()
    assert apart.polymers == together.polymers == (flat, *others)
    weights = draw_polymers(11, 5, 1)
    expected = together.components(weights)
    for name, values in apart.components(weights).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_an_auc_is_counted_only_where_it_is_needed(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs more than all the rest: of the trials' objectives where they weigh it, and of those chosen."""
    asked: list[bool] = []
    components = PolymerSums.components

    def noted(self: PolymerSums, weights: np.ndarray, *, with_auc: bool = True) -> dict[str, np.ndarray]:
        asked.append(with_auc)
        return components(self, weights, with_auc=with_auc)

    monkeypatch.setattr(PolymerSums, "components", noted)
    trials = []
    for worse in (0.0, 5.0, 5.0):
        chi, solubility = make_frames(rng)
        chi["predicted_chi"] = chi["chi"] + worse
        trials.append(sum_by_polymer([str(number) for number in range(12)], [chi], [solubility], 1))
    found = correct_for_selection(trials, [0.0] * 3, CHI_ONLY, n_draws=20)
    assert asked == 6 * [False] + [True]
    assert np.isfinite(found.components["sol_auc"].value)
    asked.clear()
    weighed = CHI_ONLY.model_copy(update={"sol_auc": 1.0})
    paired_standard_errors(trials, [0.0] * 3, weighed, 0, 1, n_draws=20)
    assert asked == 3 * [True]
    plain = trials[0].components(np.ones((1, 12)), with_auc=False)
    assert plain.keys() == trials[0].components(np.ones((1, 12))).keys() - {"sol_auc"}


def test_a_damaged_name_of_a_polymer_is_said_to_be_damaged(rng: np.random.Generator) -> None:
    chi, _ = make_frames(rng)
    with pytest.raises(StudyError, match="damaged"):
        sum_by_polymer(["*C/C=C", *map(str, range(12))], [chi], [], 1)


def test_rows_of_other_polymers_are_refused(rng: np.random.Generator) -> None:
    chi, solubility = make_frames(rng)
    for frames in ([[chi], []], [[], [solubility]]):
        with pytest.raises(StudyError, match="belong to different polymers"):
            sum_by_polymer([str(i) for i in range(11)], *frames, 1)


def test_a_draw_without_a_positive_row_has_no_f1(rng: np.random.Generator) -> None:
    """A 0 there would be taken into the corrected F1, and into an objective that weighs F1 alone."""
    chi, solubility = make_frames(rng)
    solubility["soluble"] = (solubility["polymer"] == "3").astype(int)
    found = sum_by_polymer([str(i) for i in range(12)], [chi], [solubility], 1).components(1.0 - np.eye(12))
    for name in ("sol_f1", "sol_recall"):
        assert np.flatnonzero(np.isnan(found[name])).tolist() == [3], name


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("called_positive", ["some", "none", "all", "the right ones"])
def test_components_equal_scikit_learn_on_the_drawn_rows(
    rng: np.random.Generator, label: int, called_positive: str
) -> None:
    chi, solubility = make_frames(rng)
    right = (solubility["soluble"] == label).astype(int)
    calls = {"none": 0, "all": 1, "the right ones": right, "some": solubility["called_positive"]}
    solubility["called_positive"] = calls[called_positive]
    # The last one is in neither table.
    polymers = [str(i) for i in range(13)]
    sums = sum_by_polymer(polymers, [chi], [solubility], label)
    weights = draw_polymers(13, 5, 1)
    found = sums.components(weights)
    for draw, counts in enumerate(weights):
        times = {name: int(count) for name, count in zip(polymers, counts, strict=True)}
        c = chi.loc[chi.index.repeat(chi["polymer"].map(times))]
        s = solubility.loc[solubility.index.repeat(solubility["polymer"].map(times))]
        positive, called = s["soluble"] == label, s["called_positive"] == 1
        expected = {
            "exp_mae": sk.mean_absolute_error(c["chi"], c["predicted_chi"]),
            "exp_rmse": sk.root_mean_squared_error(c["chi"], c["predicted_chi"]),
            "exp_r2": sk.r2_score(c["chi"], c["predicted_chi"]),
            "sol_f1": sk.f1_score(positive, called, zero_division=0.0),
            "sol_recall": sk.recall_score(positive, called, zero_division=0.0),
            "sol_precision": sk.precision_score(positive, called, zero_division=0.0),
            "sol_balanced_accuracy": sk.balanced_accuracy_score(positive, called),
            "sol_mcc": sk.matthews_corrcoef(positive, called),
            "sol_auc": sk.roc_auc_score(positive, s["probability_positive"]),
        }
        for name, value in expected.items():
            assert found[name][draw] == pytest.approx(value, abs=1e-9), name


def test_auc_keeps_rows_not_pairs_of_polymers(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A (polymer, polymer) table of every repeat of every trial is gigabytes for thousands of polymers."""
    n = 2000
    frame = pd.DataFrame(
        {
            "polymer": np.arange(n).astype(str),
            "soluble": np.arange(n) % 2,
            "probability_positive": rng.random(n).round(2),
            "called_positive": 1,
        }
    )
    sums = sum_by_polymer([str(i) for i in range(n)], [], [frame, frame], 1)
    assert sums.calls is not None
    assert sums.ranked is not None
    kept = [sums.calls, *(array for rows in sums.ranked for array in vars(rows).values())]
    assert sum(array.nbytes for array in kept) < 1e6
    weights = draw_polymers(n, 7, 0)
    p, positive = frame["probability_positive"].to_numpy(), frame["soluble"].to_numpy() == 1
    above, below = p[positive][:, None], p[~positive][None, :]
    wins = (above > below) + 0.5 * (above == below)  # (positive row, negative row)
    won = np.einsum("di,ij,dj->d", weights[:, positive], wins, weights[:, ~positive], optimize=True)
    assert np.array_equal(sums.ranked[0].count_wins(weights), won)
    monkeypatch.setattr(resampling, "MOST_RANKED", 2 * n)
    assert np.array_equal(sums.ranked[0].count_wins(weights), won)


def test_repeats_are_pooled_first_and_averaged_then(rng: np.random.Generator) -> None:
    first, second = make_frames(rng)[0], make_frames(rng)[0]
    polymers = sorted({*first["polymer"], *second["polymer"]})
    both = sum_by_polymer(polymers, [first, second], [], 1).components(np.ones((1, len(polymers))))
    each = [np.abs(frame["chi"] - frame["predicted_chi"]).mean() for frame in (first, second)]
    assert both["exp_mae"][0] == pytest.approx(np.mean(each))


def test_all_runs_of_a_trial_count_but_those_on_fresh_folds(rng: np.random.Generator, tmp_path: Path) -> None:
    polymers = [str(i) for i in range(12)]
    frames: list[pd.DataFrame] = []
    for folder, seed in (("", 7), ("replicate_0001", 8), ("replicate_1001", 9), ("replicate_1000", 9)):
        own = [make_frames(rng)[0].assign(pretrain_seed=seed, repeat=repeat) for repeat in range(2)]
        frames += own if seed < 9 else []
        (tmp_path / folder).mkdir(exist_ok=True)
        pd.concat(own).to_csv(tmp_path / folder / "out_of_fold_chi.csv", index=False)
    for n_runs in (1, 2):
        found = read_trial_sums(tmp_path, ["chi"], polymers, 1, n_runs)
        expected = sum_by_polymer(polymers, frames[: 2 * n_runs], [], 1)
        assert found.calls is None
        np.testing.assert_allclose(found.chi, expected.chi, rtol=1e-9)  # type: ignore[arg-type]
    assert measured_polymers(tmp_path) == tuple(sorted(polymers))
    assert fresh_replicates(tmp_path) == [1000, 1001]
    with pytest.raises(StudyError, match=r"\(solubility\) are missing"):
        read_trial_sums(tmp_path, ["chi", "solubility"], polymers, 1)


def test_objective_of_draws_is_the_guides_formula() -> None:
    parts = {"exp_mae": np.array([0.4]), "sol_f1": np.array([0.7]), "sol_recall": np.array([0.9])}
    value = objective_of_draws(parts, 0.2, ObjectiveSettings())
    assert value[0] == pytest.approx(1.5 * 0.4 + 2.0 * 0.3 + 1.5 * 0.1 + 0.1 * 0.2)
    chi_alone = objective_of_draws({"exp_mae": np.array([0.4])}, 0.2, ObjectiveSettings())
    assert chi_alone[0] == pytest.approx(1.5 * 0.4 + 0.1 * 0.2), "without a table of labels"


def noise_trials(rng: np.random.Generator, n_trials: int, n_polymers: int, level: np.ndarray) -> list[PolymerSums]:
    """Trials whose per-polymer absolute errors are `level` plus noise."""
    trials = [trial_of_errors(np.abs(rng.normal(mean, 0.2, n_polymers))) for mean in level]
    assert len(trials) == n_trials
    return trials


def trial_of_errors(absolute: np.ndarray) -> PolymerSums:
    """A trial whose absolute errors of χ are these, one row a polymer, (n_polymers,)."""
    ones = np.ones(len(absolute))
    chi = np.stack([ones, absolute, absolute**2, ones, ones])[None]
    return PolymerSums(tuple(map(str, range(len(absolute)))), chi, None)


def test_correction_takes_off_the_luck_of_choosing_among_equals(rng: np.random.Generator) -> None:
    raw_gaps, gaps = [], []
    for repeat in range(30):
        trials = noise_trials(rng, 40, 40, np.full(40, 1.0))
        raw = min(float(t.components(np.ones((1, 40)))["exp_mae"][0]) for t in trials)
        corrected = correct_for_selection(trials, [0.0] * 40, CHI_ONLY, n_draws=200, random_state=repeat)
        raw_gaps.append(raw - 1.0)
        gaps.append(corrected.objective.value - 1.0)
    # The best of forty equals reads about two standard errors (0.2/√40) too low; the corrected one must not.
    assert np.mean(raw_gaps) < -0.05
    assert abs(np.mean(gaps)) < 0.02
    assert np.mean(np.abs(gaps)) < 0.5 * np.mean(np.abs(raw_gaps))


def test_correction_leaves_a_clear_winner_alone(rng: np.random.Generator) -> None:
    level = np.full(10, 2.0)
    level[3] = 1.0
    trials = noise_trials(rng, 10, 60, level)
    found = correct_for_selection(trials, [0.0] * 10, CHI_ONLY, default=0)
    raw = float(trials[3].components(np.ones((1, 60)))["exp_mae"][0])
    assert found.chosen[3] == 1.0
    assert found.objective.value == pytest.approx(raw, abs=0.02)
    assert found.gain is not None
    assert found.gain.low > 0.8


def test_the_corrected_objective_has_its_stage_1_term(rng: np.random.Generator) -> None:
    trials, weights = noise_trials(rng, 3, 30, np.ones(3)), CHI_ONLY.model_copy(update={"stage1_mae": 0.5})
    without, found = (correct_for_selection(trials, [mae] * 3, weights, n_draws=50) for mae in (0.0, 2.0))
    assert found.objective.value == pytest.approx(without.objective.value + 1.0)
    assert correct_for_selection(trials, [2.0, 0.0, 2.0], weights, n_draws=50).chosen.tolist() == [0.0, 1.0, 0.0]


def test_no_gain_is_inside_the_interval_where_the_default_is_mostly_chosen(rng: np.random.Generator) -> None:
    trials = noise_trials(rng, 5, 40, np.array([1.0, 1.03, 1.03, 1.03, 1.03]))
    found = correct_for_selection(trials, [0.0] * 5, CHI_ONLY, default=0)
    assert 0.5 < found.chosen[0] < 1.0
    assert found.gain is not None
    assert found.gain.low < found.gain.value < 0.0 == found.gain.high


def test_no_gain_is_inside_the_interval_where_the_default_is_sometimes_chosen() -> None:
    # The other trial wins by three polymers, which one draw in 23 is without: (37/40)⁴⁰.
    default, other = np.ones(40), np.where(np.arange(40) < 3, 0.0, 1.01)
    found = correct_for_selection([trial_of_errors(default), trial_of_errors(other)], [0.0] * 2, CHI_ONLY, default=0)
    assert 0.025 < found.chosen[0] < 0.065
    assert found.gain is not None
    assert found.gain.low == 0.0 < found.gain.value < found.gain.high


@pytest.mark.parametrize(("winner", "widest"), [(0.0, 1.7), (1.0, 1.15)])
def test_interval_is_as_wide_as_the_corrected_value_scatters(
    rng: np.random.Generator, winner: float, widest: float
) -> None:
    """Over tables drawn anew the interval must hold the truth at least as often as it says, with and without a winner.

    The truth is 1 and a gain of `winner`. Percentiles of the draws themselves are a third too wide with a winner, and
    twice as wide as they need to be where all trials are equal.
    """
    level = np.full(10, 1.0 + winner)
    level[3] = 1.0
    found = [
        correct_for_selection(noise_trials(rng, 10, 40, level), [0.0] * 10, CHI_ONLY, default=0, n_draws=200)
        for _ in range(200)
    ]
    objectives, gains = [one.objective for one in found], [one.gain for one in found if one.gain is not None]
    for estimates, truth in ((objectives, 1.0), (gains, winner)):
        held = np.mean([one.low <= truth <= one.high for one in estimates])
        half_width = np.mean([one.high - one.low for one in estimates]) / 2
        assert 0.91 <= held <= 1.0
        assert 0.85 < half_width / (1.96 * np.std([one.value for one in estimates])) < widest


def test_independent_errors_add_in_quadrature() -> None:
    wide = Estimate(1.0, 0.7, 1.3).widened(0.4)
    assert (wide.value, wide.low, wide.high) == pytest.approx((1.0, 0.5, 1.5))


def test_a_draw_of_equal_chi_does_not_decide_the_corrected_r2(rng: np.random.Generator) -> None:
    """One polymer differs from eleven that are nearly alike: left out of a draw, R² there is hugely negative."""
    chi = pd.DataFrame({"polymer": [f"p{i}" for i in range(12)], "chi": 0.5 + 1e-3 * rng.standard_normal(12)})
    chi.loc[:3, "chi"] = [2.0, 3.0, 4.0, 5.0]
    trials = [
        sum_by_polymer(
            list(chi["polymer"]), [chi.assign(predicted_chi=chi["chi"] + 0.1 * rng.standard_normal(12))], [], 1
        )
        for _ in range(4)
    ]
    corrected = correct_for_selection(trials, [0.0] * 4, CHI_ONLY, random_state=1)
    assert corrected.components["exp_r2"].low < -10.0
    assert 0.9 < corrected.components["exp_r2"].value < 1.0
    r2_alone = CHI_ONLY.model_copy(update={"exp_mae": 0.0, "exp_r2": 1.0})
    corrected = correct_for_selection(trials, [0.0] * 4, r2_alone, default=0, random_state=1)
    assert corrected.objective.high > 10.0
    assert 0.0 < corrected.objective.value < 0.1
    assert corrected.gain is not None
    assert abs(corrected.gain.value) < 0.1


@pytest.mark.parametrize("level", [0.3, 1e4])
def test_r2_of_a_draw_of_equal_chi_is_not_defined(rng: np.random.Generator, level: float) -> None:
    """As under the control, where a polymer's rows take one value: rounding made such an R² ±1e16."""
    polymer = np.repeat([f"p{i}" for i in range(6)], 7)
    chi = pd.DataFrame({"polymer": polymer, "chi": np.repeat(level + np.array([0.1, 0.1, 0.1, 0.1, 0.4, 0.7]), 7)})
    frames = [chi.assign(predicted_chi=chi["chi"] + rng.standard_normal(42)) for _ in range(3)]
    trials = [sum_by_polymer([f"p{i}" for i in range(6)], [frame], [], 1) for frame in frames]
    weights = draw_polymers(6, 1000, 1)
    r2 = trials[0].components(weights)["exp_r2"]
    differs = [len(set(chi["chi"].to_numpy()[::7][counts > 0])) > 1 for counts in weights]
    assert (np.isfinite(r2) == differs).all()
    assert not all(differs)
    whole = trials[0].components(np.ones((1, 6)))["exp_r2"][0]
    assert whole == pytest.approx(sk.r2_score(chi["chi"], frames[0]["predicted_chi"]))
    for weighed in (CHI_ONLY, CHI_ONLY.model_copy(update={"exp_mae": 0.0, "exp_r2": 1.0})):
        found = correct_for_selection(trials, [0.0] * 3, weighed).components["exp_r2"]
        assert -1e4 < found.low < found.value < found.high < 1.0


def test_paired_error_of_the_reference_is_zero_and_shrinks_with_polymers(rng: np.random.Generator) -> None:
    errors = [
        paired_standard_errors(noise_trials(rng, 2, n, np.ones(2)), [0.0, 0.0], CHI_ONLY, 0, 1) for n in (20, 320)
    ]
    assert errors[0][0] == 0.0
    # Standard error of a difference of means: 0.2·√2/√n.
    assert errors[0][1] == pytest.approx(0.2 * np.sqrt(2 / 20), rel=0.5)
    assert errors[1][1] < 0.5 * errors[0][1]


def test_too_few_polymers_are_said_to_be_too_few(rng: np.random.Generator) -> None:
    trials = noise_trials(rng, 2, 1, np.ones(2))
    with pytest.raises(StudyError, match="1 polymers are too few"):
        correct_for_selection(trials, [0.0, 0.0], CHI_ONLY)
