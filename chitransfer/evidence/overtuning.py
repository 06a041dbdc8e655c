"""Over-tuning guard: what the best trial is worth once the luck of choosing it is taken off, and which trial to take.

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
from chitransfer.errors import StudyError
from chitransfer.evidence.outcomes import (
    PolymerSums,
    draw_polymers,
    fresh_replicates,
    measured_polymers,
    objective_of_draws,
    read_repeats,
    read_trial_sums,
)
from chitransfer.search.records import load_rung
from chitransfer.search.replicates import (
    estimate_components,
    load_replicates,
    posterior_of,
    replicate_folder,
    run_values,
)
from chitransfer.search.results import read_standing
from chitransfer.search.space import to_overrides
from chitransfer.search.study import StudyFolder
from chitransfer.sections import ObjectiveSettings
from chitransfer.seeds import derive_seed

N_DRAWS = 1000
SHOWN = ("exp_mae", "exp_r2", "sol_f1", "sol_recall", "sol_auc")


@dataclass(frozen=True)
class Estimate:
    """A number with the 2.5 % and 97.5 % points of its bootstrap over polymers."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: np.ndarray, value: float | None = None) -> Estimate:
        """From bootstrap draws; `value` defaults to their mean, and draws that are not defined are left out."""
        defined = draws[np.isfinite(draws)]
        if not len(defined):
            return cls(float("nan"), float("nan"), float("nan"))
        low, high = np.quantile(defined, [0.025, 0.975])
        return cls(float(defined.mean()) if value is None else value, float(low), float(high))

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Correction:
    """BBC-CV: the value of *choosing the best of these trials*, on polymers that had no say in the choice.

    Attributes
    ----------
    objective
        The corrected objective.
    gain
        Default configuration's objective minus the chosen trial's, on the same left-out polymers (positive: the search
        helped); ``None`` when the default was not tried.
    components
        Corrected metrics.
    chosen
        How often each trial was chosen, by place.
    """

    objective: Estimate
    gain: Estimate | None
    components: dict[str, Estimate]
    chosen: np.ndarray


@dataclass(frozen=True)
class FreshScore:
    """A trial run again on fresh pretraining seeds and folds."""

    number: int
    value: float
    runs: list[float]
    components: dict[str, float]
    is_default: bool


@dataclass(frozen=True)
class Examination:
    """Everything the guard found; written to ``overtuning.json``."""

    chosen_trial: int
    select: str
    best_trial: int
    best_value: float
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
    sentences: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def correct_for_selection(
    sums: Sequence[PolymerSums],
    stage1_mae: Sequence[float],
    weights: ObjectiveSettings,
    *,
    default: int | None = None,
    n_draws: int = N_DRAWS,
    random_state: int = 0,
) -> Correction:
    """Bootstrap bias corrected cross-validation over polymers (Tsamardinos et al. 2018, doi 10.1007/s10994-018-5714-4).

    Polymers are drawn with replacement; the trial with the lowest objective on the drawn ones is scored on those that
    were not drawn; the mean over draws is the corrected value, for R² the median.

    Parameters
    ----------
    sums, stage1_mae
        Of each trial, over the same polymers.
    default
        Place of the default configuration among the trials.
    """
    inside = draw_polymers(len(sums[0].polymers), n_draws, random_state)
    outside = (inside == 0).astype(float)
    scored_inside, scored_outside, components = [], [], []
    for own, mae in zip(sums, stage1_mae, strict=True):
        scored_inside.append(objective_of_draws(own.components(inside), mae, weights))
        parts = own.components(outside)
        scored_outside.append(objective_of_draws(parts, mae, weights))
        components.append(parts)
    objective_inside, objective_outside = np.stack(scored_inside), np.stack(scored_outside)  # (trial, draw)
    usable = np.isfinite(objective_inside).all(axis=0) & np.isfinite(objective_outside).all(axis=0)
    if not usable.any():
        raise StudyError(
            f"{len(sums[0].polymers)} polymers are too few to correct the best trial for luck: no resample of them "
            "defines every part of the objective"
        )
    choice = objective_inside[:, usable].argmin(axis=0)
    draws = np.arange(int(usable.sum()))
    corrected = objective_outside[:, usable][choice, draws]
    gain = None
    if default is not None:
        gain = Estimate.of(objective_outside[default, usable] - corrected)
    return Correction(
        objective=Estimate.of(corrected),
        gain=gain,
        components={
            name: _typical(name, np.stack([parts[name] for parts in components])[:, usable][choice, draws])
            for name in components[0]
        },
        chosen=np.bincount(choice, minlength=len(sums)) / len(draws),
    )


def _typical(name: str, draws: np.ndarray) -> Estimate:
    """The mean of the draws; of R² the median, because polymers that hardly differ in χ make it as low as you like."""
    defined = draws[np.isfinite(draws)]
    if name == "exp_r2" and len(defined):
        return Estimate.of(draws, float(np.median(defined)))
    return Estimate.of(draws)


def paired_standard_errors(
    sums: Sequence[PolymerSums],
    stage1_mae: Sequence[float],
    weights: ObjectiveSettings,
    reference: int,
    random_state: int,
    n_draws: int = N_DRAWS,
) -> np.ndarray:
    """Bootstrap standard error, over polymers, of each trial's objective minus the reference trial's, (n_trials,)."""
    drawn = draw_polymers(len(sums[0].polymers), n_draws, random_state)
    values = np.stack(
        [objective_of_draws(s.components(drawn), mae, weights) for s, mae in zip(sums, stage1_mae, strict=True)]
    )
    return np.nanstd(values - values[reference], axis=1)


def examine_study(study: optuna.Study, folder: StudyFolder, config: Config) -> Examination | None:
    """Correct, compare and choose; ``None`` while fewer than two trials are complete.

    Raises
    ------
    StudyError
        Out-of-fold files are missing, or there are too few polymers to resample.
    """
    standing = read_standing(study)
    trials = sorted(standing.ranked, key=lambda trial: trial.number)
    if len(trials) < 2 or standing.best is None:
        return None
    polymers = measured_polymers(folder.trial(trials[0].number))
    label = positive_label(folder, trials[0].number, config)
    sums = [
        read_trial_sums(folder.trial(t.number), polymers, label, True, 1 + len(load_replicates(folder.trial(t.number))))
        for t in trials
    ]
    stage1_mae = [float(t.user_attrs["stage1_mae"]) for t in trials]
    numbers = [t.number for t in trials]
    default = None if standing.default is None else numbers.index(standing.default.number)
    correction = correct_for_selection(
        sums, stage1_mae, config.objective, default=default, random_state=derive_seed(config.seed, "bbc")
    )
    runs = run_values(study)
    components = estimate_components([runs[number] for number in numbers])
    posterior = posterior_of([runs[number] for number in numbers], components)
    best = numbers[int(np.argmin(posterior.mean))] if config.search.replicates > 1 else standing.best.number
    errors = paired_standard_errors(
        sums, stage1_mae, config.objective, numbers.index(best), derive_seed(config.seed, "one se")
    )
    candidates = _within_one_error(trials, errors, numbers.index(best))
    simplest = min(candidates, key=lambda t: (count_weights(config, t), t.values[0], t.number))
    fresh = read_fresh_scores(trials, folder)
    chosen = {"best": best, "one_se": simplest.number, "reevaluated": fresh[0].number if fresh else best}[
        config.search.select
    ]
    found = Examination(
        chosen_trial=chosen,
        select=config.search.select,
        best_trial=best,
        best_value=float(trials[numbers.index(best)].values[0]),
        corrected=correction.objective,
        corrected_gain=correction.gain,
        corrected_components={k: v for k, v in correction.components.items() if np.isfinite(v.value)},
        times_chosen={n: float(s) for n, s in zip(numbers, correction.chosen, strict=True) if s > 0},
        posterior={n: float(m) for n, m in zip(numbers, posterior.mean, strict=True)},
        one_se_trial=simplest.number,
        one_se_candidates=[t.number for t in candidates],
        fresh=fresh,
        noise={**asdict(components), "text": components.describe()},
        n_polymers=len(polymers),
        n_trials=len(trials),
        n_draws=N_DRAWS,
        control=config.search.control,
    )
    found.sentences.extend(describe_examination(found, config))
    return found


def _within_one_error(trials: list[FrozenTrial], errors: np.ndarray, best: int) -> list[FrozenTrial]:
    values = np.array([t.values[0] for t in trials])
    return [t for t, value, error in zip(trials, values, errors, strict=True) if value - values[best] <= error]


def count_weights(config: Config, trial: FrozenTrial) -> int:
    """Weights of a trial's network with inputs as wide as the fingerprint: what "simplest" means."""
    own = override_config(config, to_overrides(trial.params, config.search.space))
    model = own.model
    widths = [own.chem.fingerprint_bits, *model.encoder_hidden_dims, model.encoder_latent_dim]
    heads = model.encoder_latent_dim * (model.chi_head_hidden_dim + model.solubility_head_hidden_dim)
    return sum(a * b for a, b in pairwise(widths)) + heads


def positive_label(folder: StudyFolder, number: int, config: Config) -> int:
    """The label F1 and recall speak of in a study, as `training.stage2.resolve_positive_label` chose it."""
    if config.solubility.positive == "minority":
        frames = read_repeats(folder.trial(number), "solubility")
        return 1 if not frames or float(frames[0]["soluble"].mean()) <= 0.5 else 0
    return 0 if config.solubility.positive == "insoluble" else 1


def read_fresh_scores(trials: Sequence[FrozenTrial], folder: StudyFolder) -> list[FreshScore]:
    """Trials that were run again on fresh seeds and folds, the best mean first."""
    scores = []
    for trial in trials:
        path = folder.trial(trial.number)
        saved = [load_rung(replicate_folder(path, number)) for number in fresh_replicates(path)]
        runs = [rung for rung in saved if rung is not None]
        if runs:
            names = [name for name in SHOWN if runs[0].attributes.get(name) is not None]
            scores.append(
                FreshScore(
                    number=trial.number,
                    value=float(np.mean([run.value for run in runs])),
                    runs=[run.value for run in runs],
                    components={n: float(np.mean([run.attributes[n] for run in runs])) for n in names},
                    is_default=bool(trial.user_attrs.get("is_default")),
                )
            )
    return sorted(scores, key=lambda score: (score.value, score.number))


def describe_examination(found: Examination, config: Config) -> list[str]:
    """The guard's findings as sentences, the most important first."""
    lines = [
        f"the best of {found.n_trials} trials reads {found.best_value:.4f}; corrected for the luck of choosing it, "
        f"expect {found.corrected.value:.4f} (95 % interval {found.corrected.low:.3f} to {found.corrected.high:.3f} "
        f"over {found.n_polymers} polymers)"
    ]
    gain = found.corrected_gain
    if gain is not None:
        if gain.low > 0:
            verdict = "the search helped"
        elif gain.high < 0:
            verdict = "the search hurt: take the default configuration"
        else:
            verdict = "too close to tell on these data"
        lines.append(
            f"corrected gain over the default configuration: {gain.value:+.4f} "
            f"({gain.low:+.3f} to {gain.high:+.3f}); {verdict}"
        )
    if found.fresh:
        lines.append(_describe_fresh(found))
    if found.noise["within"] is not None:
        lines.append(str(found.noise["text"]))
    if found.one_se_trial != found.best_trial:
        lines.append(
            f"{len(found.one_se_candidates)} trials are within one standard error of the best; the smallest network of "
            f"them is trial {found.one_se_trial} (search.select: one_se takes it)"
        )
    if found.chosen_trial != found.best_trial:
        lines.append(f"best_params.json names trial {found.chosen_trial}, by search.select: {found.select}")
    if found.control == "permute":
        lines.append(describe_control(found.corrected_components))
    return lines


def _describe_fresh(found: Examination) -> str:
    by_number = {score.number: score for score in found.fresh}
    best, default = by_number.get(found.best_trial), next((s for s in found.fresh if s.is_default), None)
    counts = sorted({len(score.runs) for score in found.fresh})
    n_runs = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) + (" run" if counts[-1] == 1 else " runs")
    text = f"on fresh seeds and folds ({n_runs} each) trial {found.fresh[0].number} comes first"
    if best is not None:
        text += f"; the best trial ({best.number}) reads {best.value:.4f} there"
    if default is not None:
        text += f", the default configuration {default.value:.4f}"
    return text


def describe_control(components: Mapping[str, Estimate]) -> str:
    """Whether a search on permuted labels sits at chance, as it must: R² not above 0, AUC at 0.5."""
    checks = []
    at_chance = True
    if (r2 := components.get("exp_r2")) is not None:
        at_chance &= r2.low <= 0
        checks.append(f"corrected χ R² {r2}")
    if (auc := components.get("sol_auc")) is not None:
        at_chance &= auc.low <= 0.5
        checks.append(f"corrected ROC-AUC {auc}")
    verdict = "at chance, as it must be" if at_chance else "ABOVE CHANCE: something leaks the labels; trust no result"
    return f"permuted-label control: {', '.join(checks)}: {verdict}"
