"""Over-tuning guard: the best trial's value after correction for selection bias, and which trial to recommend.

`examine_study` is called at the end of every search and by ``chitransfer report``; it reads only what is on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from chitransfer.config import Config, override_config
from chitransfer.counts import first_lines, say_count
from chitransfer.errors import StudyError
from chitransfer.evidence.correction import N_DRAWS, correct_for_selection, paired_standard_errors
from chitransfer.evidence.fresh import FreshScore, find_shared_runs, measure_difference_noise, read_fresh_scores
from chitransfer.evidence.outcomes import PolymerSums, measured_polymers, read_repeats, read_trial_sums
from chitransfer.search.replicates import estimate_components, load_replicates, values_of_runs
from chitransfer.search.results import read_standing
from chitransfer.search.space import to_overrides
from chitransfer.search.study_folder import StudyFolder
from chitransfer.seeds import derive_seed
from chitransfer.training.resampling import Estimate
from chitransfer.training.tasks import choose_positive_label

# Of the standard deviation of a difference: with fewer degrees of freedom Student's t is above 4.3.
ENOUGH_FREEDOM = 2.0


@dataclass(frozen=True)
class Examination:
    """Everything the guard found; written to ``overtuning.json``.

    `left_out` has the trials whose out-of-fold predictions are lost, and why; `n_trials` excludes them.
    `fresh_left_out` has those that no fresh run allows to be compared with `fresh`.
    """

    chosen_trial: int
    select: str
    best_trial: int
    best_value: float
    default_trial: int | None
    corrected: Estimate
    corrected_gain: Estimate | None
    corrected_components: dict[str, Estimate]
    times_chosen: dict[int, float]
    posterior: dict[int, float]
    one_se_trial: int
    one_se_candidates: list[int]
    fresh: list[FreshScore]
    noise: dict[str, Any]
    n_polymers: int
    n_trials: int
    n_draws: int
    control: str
    left_out: dict[int, str] = field(default_factory=dict)
    fresh_left_out: list[int] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def examine_study(study: optuna.Study, folder: StudyFolder, config: Config) -> Examination | None:
    """Correct, compare and choose; ``None`` if fewer than two trials are complete.

    A trial whose out-of-fold files are missing or damaged is left out.

    Raises
    ------
    StudyError
        The best trial's files, or those of all others, are missing or damaged, or there are too few polymers to
        resample.
    """
    standing = read_standing(study)
    complete = sorted(standing.ranked, key=lambda trial: trial.number)
    if len(complete) < 2 or standing.best is None:
        return None
    sums_of, left_out = _read_sums(complete, folder, config)
    best = standing.best.number
    if best in left_out or len(sums_of) < 2:
        raise StudyError(left_out.get(best) or next(iter(left_out.values())))
    trials, sums = [trial for trial in complete if trial.number in sums_of], list(sums_of.values())
    stage1_mae = [float(t.user_attrs["stage1_mae"]) for t in trials]
    numbers = [t.number for t in trials]
    default = None
    if standing.default is not None and standing.default.number in sums_of:
        default = numbers.index(standing.default.number)
    correction = correct_for_selection(
        sums, stage1_mae, config.objective, default=default, random_state=derive_seed(config.seed, "bbc")
    )
    runs = {trial.number: values_of_runs(trial) for trial in complete}
    components = estimate_components(list(runs.values()))
    errors = paired_standard_errors(
        sums, stage1_mae, config.objective, numbers.index(best), derive_seed(config.seed, "one se")
    )
    candidates = _within_one_error(trials, errors, numbers.index(best))
    simplest = min(candidates, key=lambda t: (count_weights(config, t), t.values[0], t.number))
    fresh, fresh_left_out = read_fresh_scores(complete, folder)
    difference_noise = measure_difference_noise(fresh)
    gain = correction.gain
    if gain is not None and default is not None and difference_noise.half_width is not None:
        n_runs = min(len(runs[best]), len(runs[numbers[default]]))
        gain = gain.widened(difference_noise.half_width / np.sqrt(n_runs))
    chosen = {"best": best, "one_se": simplest.number, "reevaluated": fresh[0].number if fresh else best}[
        config.search.select
    ]
    found = Examination(
        chosen_trial=chosen,
        select=config.search.select,
        best_trial=best,
        best_value=float(trials[numbers.index(best)].values[0]),
        default_trial=None if default is None else numbers[default],
        corrected=correction.objective,
        corrected_gain=gain,
        corrected_components={k: v for k, v in correction.components.items() if np.isfinite(v.value)},
        times_chosen={n: float(s) for n, s in zip(numbers, correction.chosen, strict=True) if s > 0},
        posterior={number: standing.posterior[number] for number in numbers},
        one_se_trial=simplest.number,
        one_se_candidates=[t.number for t in candidates],
        fresh=fresh,
        noise={**asdict(components), "text": components.describe(), "difference": asdict(difference_noise)},
        n_polymers=len(sums[0].polymers),
        n_trials=len(trials),
        n_draws=N_DRAWS,
        control=config.search.control,
        left_out=left_out,
        fresh_left_out=fresh_left_out,
    )
    found.sentences.extend(describe_examination(found))
    return found


def _read_sums(
    trials: Sequence[FrozenTrial], folder: StudyFolder, config: Config
) -> tuple[dict[int, PolymerSums], dict[int, str]]:
    """By trial number, the sums of its out-of-fold predictions, or why there are none."""
    scored = trials[0].user_attrs
    kinds = [kind for kind, name in (("chi", "exp_mae"), ("solubility", "sol_f1")) if scored.get(name) is not None]
    found: dict[int, PolymerSums] = {}
    left_out: dict[int, str] = {}
    polymers: tuple[str, ...] = ()
    label = 1
    for trial in trials:
        path = folder.trial(trial.number)
        try:
            if not found:
                polymers, label = measured_polymers(path), positive_label(folder, trial.number, config)
            found[trial.number] = read_trial_sums(path, kinds, polymers, label, 1 + len(load_replicates(path)))
        except StudyError as error:
            left_out[trial.number] = str(error)
    return found, left_out


def _within_one_error(trials: list[FrozenTrial], errors: np.ndarray, best: int) -> list[FrozenTrial]:
    values = np.array([t.values[0] for t in trials])
    return [t for t, value, error in zip(trials, values, errors, strict=True) if value - values[best] <= error]


def count_weights(config: Config, trial: FrozenTrial) -> int:
    """Number of weights in a trial's network, with inputs as wide as the fingerprint: the measure of "simplest"."""
    own = override_config(config, to_overrides(trial.params, config.search.space))
    model = own.model
    widths = [own.chem.fingerprint_bits, *model.encoder_hidden_dims, model.encoder_latent_dim]
    heads = model.encoder_latent_dim * (model.chi_head_hidden_dim + model.solubility_head_hidden_dim)
    return sum(a * b for a, b in pairwise(widths)) + heads


def positive_label(folder: StudyFolder, number: int, config: Config) -> int:
    """The label to which F1 and recall refer in a study, from the solubility rows of a trial's out-of-fold file."""
    frames = read_repeats(folder.trial(number), "solubility")
    return choose_positive_label(frames[0]["soluble"].to_numpy() if frames else None, config.solubility.positive)


def describe_examination(found: Examination) -> list[str]:
    """The guard's findings as sentences, the most important first."""
    # A draw is scored on the third of the polymers it leaves out, perhaps the easier ones; few-row polymers count
    # equally.
    is_better = found.corrected.value < found.best_value
    lines = [
        f"the best of {found.n_trials} trials has objective {found.best_value:.4f}; corrected for selection bias "
        f"(it was chosen on these polymers): {found.corrected.value:.4f} (95 % interval {found.corrected.low:.3f} to "
        f"{found.corrected.high:.3f} over {found.n_polymers} polymers)"
        + (
            ", lower only because bootstrap draws weight polymers differently: no selection bias is visible here"
            if is_better
            else ""
        )
        + "; not corrected for its random seed"
    ]
    left_out = [f"trial {number} is left out of this: {reason}" for number, reason in found.left_out.items()]
    lines += first_lines(left_out, "trial")
    if found.corrected_gain is not None:
        lines.append(_describe_gain(found, found.corrected_gain))
    if found.fresh:
        lines.append(_describe_fresh(found))
    elif found.select == "reevaluated":
        lines.append(
            "search.select: reevaluated chooses by runs on fresh seeds and folds, but no trial has any, so the best "
            "trial is chosen; `search --resume` runs those that failed or are missing (search.reevaluate_top)"
        )
    if found.noise["within"] is not None:
        lines.append(str(found.noise["text"]))
    if found.one_se_trial != found.best_trial:
        lines.append(
            f"{len(found.one_se_candidates)} trials are within one standard error of the best; the smallest network "
            f"of them is trial {found.one_se_trial} (search.select: one_se chooses it)"
        )
    if found.control == "permute":
        lines.append(describe_control(found.corrected_components))
    return lines


def _describe_gain(found: Examination, gain: Estimate) -> str:
    difference = found.noise["difference"]
    sources = "polymers, seeds and folds" if difference["deviation"] is not None else "polymers alone"
    numbers = f"{gain.value:+.4f} (95 % interval {gain.low:+.3f} to {gain.high:+.3f}, over {sources})"
    remark = ""
    if 0 < difference["freedom"] < ENOUGH_FREEDOM:
        remark = (
            "; the interval is wide because there are few runs on fresh seeds and folds (search.reevaluate_top, "
            "search.reevaluate_seeds)"
        )
    if not gain.low <= gain.value <= gain.high:
        remark += "; this mean lies outside its interval, because a few draws are far from all others"
    if found.best_trial == found.default_trial:
        share = found.times_chosen.get(found.best_trial, 0.0)
        return (
            "the best trial is the default configuration: there is nothing to gain over it. Choosing the best of "
            f"these trials on other polymers chooses it in {share:.0%} of the draws and would have gained {numbers}"
            + remark
        )
    best, default = _fresh_pair(found)
    fresh_gain = None if best is None or default is None else default.value - best.value
    if gain.low > 0:
        verdict = "the search helped"
        if fresh_gain is not None and fresh_gain <= 0:
            verdict = "too close to tell: on fresh seeds and folds the default is as good"
    elif gain.high < 0:
        verdict = "the search hurt: use the default configuration"
        if fresh_gain is not None and fresh_gain > 0:
            verdict = "too close to tell: on fresh seeds and folds the best trial is better"
    else:
        verdict = "too close to tell on these data"
    return f"corrected gain over the default configuration: {numbers}; {verdict}{remark}"


def _fresh_pair(found: Examination) -> tuple[FreshScore | None, FreshScore | None]:
    """Fresh runs of the best trial and of the default configuration."""
    best = next((score for score in found.fresh if score.number == found.best_trial), None)
    return best, next((score for score in found.fresh if score.is_default), None)


def _describe_fresh(found: Examination) -> str:
    best, default = _fresh_pair(found)
    runs = [score.runs for score in found.fresh]
    shared = find_shared_runs(runs)
    leader = found.fresh[0] if len(found.fresh) > 1 else None
    read = []
    if best is not None:
        has = "ranks first, too, with" if best is leader else "has"
        also = ", which is the default configuration," if best is default else ""
        read.append(f"the best trial of the search ({best.number}){also} {has} objective {best.value:.4f}")
    if default is not None and default is not best:
        read.append(f"the default configuration {'' if read else 'has objective '}{default.value:.4f}")
    if not read:
        read.append(f"trial {found.fresh[0].number} has objective {found.fresh[0].value:.4f}")
    first = f"trial {leader.number} ranks first; " if leader is not None and best is not leader else ""
    notes = ""
    if any(len(own) > len(shared) for own in runs):
        notes += "; runs that not all of these trials have are not counted, because their folds differ"
    if found.fresh_left_out:
        notes += f"; left out, because it ran on other folds only: trial {', '.join(map(str, found.fresh_left_out))}"
    return f"on fresh seeds and folds ({say_count(len(shared), 'run')} each) {first}{', '.join(read)}{notes}"


def describe_control(components: Mapping[str, Estimate]) -> str:
    """The result of a search on permuted labels: R² must not be above 0, nor AUC above 0.5.

    A leak is detected if the interval lies above chance, so one smaller than the interval's lower half-width is missed;
    the sentence says how small.
    """
    shown, hidden, leaks, blind = [], [], False, []
    for name, title, chance in (("exp_r2", "χ R²", 0.0), ("sol_auc", "ROC-AUC", 0.5)):
        estimate = components.get(name)
        if estimate is not None:
            leaks |= estimate.low > chance
            shown.append(f"corrected {title} {estimate}")
            # The range between chance and a perfect score is no larger than this.
            if estimate.value - estimate.low >= 1.0 - chance:
                blind.append(title)
            else:
                hidden.append(f"{estimate.value - estimate.low:.2f} of {title}")
    if leaks:
        verdict = "ABOVE CHANCE: the labels leak somewhere; do not trust any result"
    elif not hidden:
        verdict = "too few polymers to see any leak"
    else:
        verdict = f"no sign of a leak; one of less than {' and '.join(hidden)} would go unnoticed"
        verdict += "".join(f"; too few polymers to see any leak by {title}" for title in blind)
    return f"permuted-label control: {', '.join(shown)}: {verdict}"
