"""Noise-aware search: how noisy trials are, which of them deserve another run, and which is best after shrinkage.

`search.driver` races trials with it, `search.results` ranks trials by it, `evidence.overtuning` reports their noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr

from chitransfer.search.objective import FIRST_FRESH
from chitransfer.search.records import OBJECTIVE, SavedRung, load_rung
from chitransfer.search.space import HALVED_BATCH_SIZE

REPLICATE_VALUES = "replicate_values"
# Attribute with the number of failed further runs of a trial.
FAILED_RUNS = "failed_runs"
# A trial with a smaller chance of beating the incumbent does not deserve another run.
WORTHWHILE_CHANCE = 0.3


@dataclass(frozen=True)
class NoiseComponents:
    """Standard deviations of the objective, each in its own units.

    Attributes
    ----------
    between
        Between configurations, with the noise removed.
    within
        Between runs of one configuration (other pretraining seeds, same folds); ``None`` until a configuration has run
        twice.
    n_configurations, n_runs
        The numbers they were estimated from.
    """

    between: float
    within: float | None
    n_configurations: int
    n_runs: int

    def describe(self) -> str:
        """One line for the log and the summary."""
        if self.within is None:
            return (
                "noise of a trial: unknown, because each configuration ran once on these folds (see search.replicates)"
            )
        return (
            f"noise: configurations differ by {self.between:.4f} (standard deviation of the objective), runs of one "
            f"configuration by {self.within:.4f} ({self.n_configurations} configurations, {self.n_runs} runs)"
        )


@dataclass(frozen=True)
class Posterior:
    """Posterior of each configuration's true objective, (n_configurations,) each."""

    mean: np.ndarray
    std: np.ndarray


def estimate_components(values: Sequence[Sequence[float]]) -> NoiseComponents:
    """One-way analysis of variance with unequal group sizes (Searle, Casella & McCulloch, Variance Components, 1992).

    Parameters
    ----------
    values
        Objectives of all runs of each configuration, at least one run each.
    """
    groups = [np.asarray(group, dtype=float) for group in values if len(group)]
    sizes = np.array([len(group) for group in groups])
    n_runs, n_groups = int(sizes.sum()), len(groups)
    means = np.array([group.mean() for group in groups])
    freedom = n_runs - n_groups
    if freedom < 1 or n_groups < 2:
        return NoiseComponents(float(np.std(means)) if n_groups else 0.0, None, n_groups, n_runs)
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / freedom
    grand = float(np.concatenate(groups).mean())
    between_square = float((sizes * (means - grand) ** 2).sum()) / (n_groups - 1)
    effective = (n_runs - float((sizes**2).sum()) / n_runs) / (n_groups - 1)
    between = max(0.0, (between_square - within) / effective)
    return NoiseComponents(float(np.sqrt(between)), float(np.sqrt(within)), n_groups, n_runs)


def posterior_of(values: Sequence[Sequence[float]], components: NoiseComponents) -> Posterior:
    """Normal posterior of each configuration's objective: its mean shrunk towards the common mean (empirical Bayes).

    If the noise is unknown, nothing is shrunk. Configurations that do not differ (`between` 0) all get the common mean.
    """
    sizes = np.array([len(group) for group in values], dtype=float)
    means = np.array([float(np.mean(group)) for group in values])
    if components.within is None:
        return Posterior(means, np.zeros_like(means))
    noise, spread = components.within**2 / sizes, components.between**2
    share = spread / (spread + noise) if spread > 0 else np.zeros_like(means)
    # In the common mean, a configuration's weight depends on how precisely it is known.
    weight = 1.0 / (spread + noise) if spread + noise.min() > 0 else np.ones_like(means)
    centre = float(np.average(means, weights=weight))
    return Posterior(centre + share * (means - centre), np.sqrt(share * noise))


def deserves_another_run(own: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Whether a configuration may still beat the best of the others (the incumbent).

    The noise is pooled over all configurations. While it is unknown, either before the first configuration has run
    twice or if its second run failed, a configuration runs again so that it becomes known.
    """
    if not others:
        return True
    groups = [list(own), *others]
    components = estimate_components(groups)
    if components.within is None:
        return True
    posterior = posterior_of(groups, components)
    incumbent = 1 + int(np.argmin(posterior.mean[1:]))
    spread = float(np.hypot(posterior.std[0], posterior.std[incumbent]))
    gain = float(posterior.mean[incumbent] - posterior.mean[0])
    chance = float(ndtr(gain / spread)) if spread > 0 else float(gain >= 0)
    return chance >= WORTHWHILE_CHANCE


def replicate_folder(trial_folder: Path, replicate: int) -> Path:
    """The folder of a further run of a trial; run 0 uses the trial's own folder."""
    return trial_folder if replicate == 0 else trial_folder / f"replicate_{replicate:04d}"


def load_replicates(trial_folder: Path) -> list[SavedRung]:
    """The finished runs of a trial beyond the first, in order and without gaps."""
    found: list[SavedRung] = []
    for replicate in range(1, FIRST_FRESH):
        saved = load_rung(replicate_folder(trial_folder, replicate))
        if saved is None:
            break
        found.append(saved)
    return found


def run_values(study: optuna.Study) -> dict[int, list[float]]:
    """Objectives of all runs of every complete trial, by trial number; in a plain search one run each."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {trial.number: values_of_runs(trial) for trial in complete}


def values_of_runs(trial: FrozenTrial) -> list[float]:
    """Objectives of all runs of a complete trial."""
    own = trial.user_attrs.get(REPLICATE_VALUES)
    return list(own) if own else [trial.user_attrs.get(OBJECTIVE, trial.values[0])]


def count_runs(trial: FrozenTrial) -> int:
    """How many runs of the budget an ended trial used, failed runs included."""
    return len(trial.user_attrs.get(REPLICATE_VALUES, [0])) + int(trial.user_attrs.get(FAILED_RUNS, 0))


def posterior_means(values: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """Posterior mean of every trial's objective by trial number, best first.

    Ties, as where configurations do not differ, are ordered by the mean of the trial's own runs, then by number. In a
    plain search there is nothing to shrink, and the order is that of the objective.
    """
    runs = list(values.values())
    means = posterior_of(runs, estimate_components(runs)).mean
    ranked = sorted((float(mean), float(np.mean(own)), n) for mean, own, n in zip(means, runs, values, strict=True))
    return {number: mean for mean, _, number in ranked}


def pool_runs(runs: Sequence[SavedRung]) -> tuple[float, dict[str, Any]]:
    """The value and attributes of a trial from all its runs: numbers averaged, seconds summed.

    The spread of a component (``…_std``) is over all repeats of all runs.
    """
    if len(runs) == 1:
        return runs[0].value, {**runs[0].attributes, REPLICATE_VALUES: [runs[0].value]}
    attributes: dict[str, Any] = dict(runs[0].attributes)
    for name, first in runs[0].attributes.items():
        numbers: list[Any] = [run.attributes.get(name) for run in runs]
        if name.endswith("_std"):
            means: list[Any] = [run.attributes.get(name.removesuffix("_std")) for run in runs]
            # A run with one repeat has no spread of its own.
            own = [number or 0.0 for number in numbers]
            attributes[name] = None if None in means else float(np.sqrt(np.mean(np.square(own)) + np.var(means)))
        elif name == HALVED_BATCH_SIZE or not isinstance(first, int | float) or None in numbers:
            # Keep the batch size of the first run, whose Stage 1 is kept.
            continue
        elif name.startswith("seconds_"):
            attributes[name] = float(np.sum(numbers))
        elif name in {"peak_memory_mb", "stage1_epochs"}:
            attributes[name] = max(numbers)
        else:
            attributes[name] = float(np.mean(numbers))
    values = [run.value for run in runs]
    attributes[REPLICATE_VALUES] = values
    return float(np.mean(values)), attributes
