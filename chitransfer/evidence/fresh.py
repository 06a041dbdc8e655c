"""Re-evaluations of the best trials and the default on fresh seeds and folds: reading, ranking, and their noise.

Runs of the same number use the same folds in all trials, and some fold shuffles are harder than others for all of them;
so trials are compared on the run numbers they all have. Called by `evidence.overtuning`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial
from scipy.stats import t as student

from chitransfer.evidence.outcomes import fresh_replicates
from chitransfer.search.records import load_rung
from chitransfer.search.replicates import replicate_folder
from chitransfer.search.study_folder import StudyFolder

SHOWN = ("exp_mae", "exp_r2", "sol_f1", "sol_recall", "sol_auc")


@dataclass(frozen=True)
class FreshScore:
    """A trial that was run again on fresh pretraining seeds and folds.

    Attributes
    ----------
    value, components
        Means over the runs that all compared trials have in common.
    runs
        Objective of every run of the trial by run number, in order.
    """

    number: int
    value: float
    runs: dict[int, float]
    components: dict[str, float]
    is_default: bool


@dataclass(frozen=True)
class DifferenceNoise:
    """How much the difference between a trial and the default configuration varies with seeds and folds.

    Attributes
    ----------
    deviation
        Standard deviation of the difference of objectives in one run, pooled over trials; ``None`` until a trial and
        the default have run twice on the same fresh seeds and folds.
    freedom
        Its degrees of freedom, not necessarily an integer.
    """

    deviation: float | None
    freedom: float

    @property
    def half_width(self) -> float | None:
        """Half-width of a 95 % interval of the difference in one run (Student's t)."""
        return None if self.deviation is None else self.deviation * float(student.ppf(0.975, self.freedom))


def read_fresh_scores(trials: Sequence[FrozenTrial], folder: StudyFolder) -> tuple[list[FreshScore], list[int]]:
    """Trials that were run again on fresh seeds and folds, best mean first, and those that cannot be compared.

    After a stop or a failed run, trials have different runs. If no run is common to all, those with the most frequent
    run are compared; the numbers of the others are returned second.
    """
    saved = {}
    for trial in trials:
        path = folder.trial(trial.number)
        found = {number: load_rung(replicate_folder(path, number)) for number in fresh_replicates(path)}
        runs = {number: rung for number, rung in found.items() if rung is not None}
        if runs:
            saved[trial.number] = runs
    if not saved:
        return [], []
    shared = find_shared_runs(saved.values())
    if not shared:
        counts = Counter(number for runs in saved.values() for number in runs)
        commonest = min(counts, key=lambda number: (-counts[number], number))
        shared = find_shared_runs(runs for runs in saved.values() if commonest in runs)
    scores = []
    for trial in trials:
        runs = saved.get(trial.number, {})
        compared = [runs[number] for number in shared if number in runs]
        if len(compared) == len(shared):
            names = [n for n in SHOWN if all(run.attributes.get(n) is not None for run in compared)]
            scores.append(
                FreshScore(
                    number=trial.number,
                    value=float(np.mean([run.value for run in compared])),
                    runs={number: run.value for number, run in runs.items()},
                    components={n: float(np.mean([run.attributes[n] for run in compared])) for n in names},
                    is_default=bool(trial.user_attrs.get("is_default")),
                )
            )
    left_out = sorted(saved.keys() - {score.number for score in scores})
    return sorted(scores, key=lambda score: (score.value, score.number)), left_out


def find_shared_runs(runs: Iterable[Mapping[int, object]]) -> list[int]:
    """The run numbers (keys of each mapping) that all trials have, in order; empty without trials."""
    numbers = [set(own) for own in runs]
    return sorted(set.intersection(*numbers)) if numbers else []


def measure_difference_noise(fresh: Sequence[FreshScore]) -> DifferenceNoise:
    """From the fresh runs that a trial and the default have in common; trials with fewer than two are ignored.

    All differences of a run share the default's value, so two of them correlate by ½, and k trials of r runs have fewer
    than k (r − 1) degrees of freedom: 4 k (r − 1) / (k + 3) if all runs vary equally, by Satterthwaite (Biometrics
    Bulletin 2, 1946, 110). In general, with C_i the matrix that centres the r_i runs of trial i, it is (Σ (r_i − 1))² /
    Σ_ij c_ij tr(C_i C_j), where c_ij is 1 for i = j and ¼ otherwise.
    """
    default = next((score.runs for score in fresh if score.is_default), {})
    squares, centrings = 0.0, []
    for score in fresh:
        both = np.array([number in score.runs for number in default])
        if score.is_default or both.sum() < 2:
            continue
        differences = np.array([score.runs[n] - value for n, value in default.items() if n in score.runs])
        squares += float(((differences - differences.mean()) ** 2).sum())
        centrings.append(np.diag(both.astype(float)) - np.outer(both, both) / both.sum())
    if not centrings:
        return DifferenceNoise(None, 0.0)
    shares = np.array(centrings).reshape(len(centrings), -1)
    overlap = shares @ shares.T  # tr(C_i C_j), (trial, trial)
    n_free = float(np.trace(overlap))
    return DifferenceNoise(float(np.sqrt(squares / n_free)), n_free**2 / (0.75 * n_free + 0.25 * float(overlap.sum())))
