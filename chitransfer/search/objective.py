"""The transfer objective, and the messages between driver and workers: `RungTask`s out, `RungResult`s back.

No PyTorch here, so that the read-only `chitransfer status` and `apply` need not load it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from chitransfer.config import Config
from chitransfer.errors import ConfigError, TrainingError
from chitransfer.sections import ObjectiveSettings

if TYPE_CHECKING:
    from chitransfer.training.crossval import OutOfFold, Scores

# A score, or an array of scores.
Score = TypeVar("Score", float, np.ndarray)
# Runs of a trial numbered from here are re-evaluations: their seeds and folds are not used in the search.
FIRST_FRESH = 1000
# What a trial is scored by: Stage 1's loss, χ, solubility.
COMPONENTS = (
    "stage1_mae",
    "exp_mae",
    "exp_rmse",
    "exp_r2",
    "exp_spearman",
    "sol_f1",
    "sol_recall",
    "sol_precision",
    "sol_balanced_accuracy",
    "sol_mcc",
    "sol_auc",
    "sol_pr_auc",
    "sol_brier",
)
# Terms that enter the objective unchanged; the others enter as 1 − score.
ERRORS = ("exp_mae", "exp_rmse", "stage1_mae")


@dataclass(frozen=True)
class RungTask:
    """What a worker needs to advance a trial to its next rung.

    Attributes
    ----------
    number
        The trial's number; with the study seed it determines every random choice.
    overrides
        Configuration values the trial sets, by dotted key.
    epoch
        Stage 1 epoch up to which to train.
    state
        Bytes of the previous rung's `RungResult`, ``None`` for a fresh trial.
    replicate
        0 is the trial itself; others repeat it with another pretraining seed. All use the same folds; from
        `FIRST_FRESH` on the folds are different, but again shared by all trials.
    """

    number: int
    overrides: Mapping[str, object]
    epoch: int
    state: bytes | None
    replicate: int = 0


@dataclass(frozen=True)
class RungResult:
    """Scores and state of a trial at a rung, or why it failed.

    Attributes
    ----------
    epoch
        Stage 1 epochs done (fewer than asked when early stopping ended Stage 1).
    finished
        Stage 1 will not train further.
    components, spread
        Metrics by name, mean and standard deviation over repeats and pretraining seeds (NaN for a single value).
    value
        The transfer objective.
    replicates
        Per pretraining seed: scores, out-of-fold predictions, Stage 1 history.
    seconds
        Computing time by stage.
    peak_memory_mb
        Peak GPU memory during the rung and those packed with it; on a CPU the process's peak so far, NaN if unknown.
    state
        The state to continue from; plain tensors, loadable with ``weights_only``.
    encoders
        The Stage 1 results of a finished trial, from `search.encoders.pack_encoders`; empty before that and in repeats.
    halved_batch_size
        `training.batch_size_dft` from this rung on, if memory ran out with a larger one; else ``None``.
    failure
        The reason, empty when the rung succeeded.
    """

    number: int
    epoch: int
    finished: bool
    components: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    value: float = float("nan")
    replicates: tuple[ReplicateResult, ...] = ()
    state: bytes = b""
    encoders: bytes = b""
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: float = 0.0
    halved_batch_size: int | None = None
    failure: str = ""


@dataclass(frozen=True)
class ReplicateResult:
    """Results of one pretraining seed of a trial."""

    seed: int
    best_epoch: int
    scores: Scores
    out_of_fold: OutOfFold
    history: list[dict[str, float]]


def split_weighed(config: Config) -> tuple[list[str], list[str]]:
    """Scores with a weight in the objective: those whose table is given, and those whose table is missing."""
    weighed = [name for name, weight in config.objective.model_dump().items() if weight > 0]
    return _split_scored(config, weighed)


def refuse_objectives_without_table(config: Config) -> None:
    """Refuse to search for several objectives if one of them is a score of a missing table.

    Raises
    ------
    ConfigError
        One of `search.objectives` is such a score, so no trial could be completed.
    """
    if absent := _split_scored(config, config.search.objectives)[1]:
        raise ConfigError(
            f"search.objectives: no trial has {', '.join(absent)}, because the table is set to null (paths); set the "
            "table, or remove that objective"
        )


def refuse_constant_objective(config: Config) -> None:
    """Refuse an objective that weights only scores of missing tables.

    Raises
    ------
    ConfigError
        It does, so all trials would score 0.
    """
    scored, unscored = split_weighed(config)
    if not scored:
        raise ConfigError(
            f"objective: only {', '.join(unscored)} has a weight, but its table is set to null (paths), so every "
            "trial would score 0; set the table, or give a score of another table a weight"
        )


def refuse_choice_without_runs(config: Config) -> None:
    """Refuse to choose by fresh runs where there are none.

    Raises
    ------
    ConfigError
        `search.select` is ``reevaluated`` and `search.reevaluate_top` is 0.
    """
    if config.search.select == "reevaluated" and config.search.reevaluate_top == 0:
        raise ConfigError(
            "search.select: reevaluated chooses a trial by its fresh runs, but search.reevaluate_top: 0 gives none; "
            "set search.reevaluate_top to 1 or more, or search.select to best or one_se"
        )


def refuse_nothing_to_learn(config: Config) -> None:
    """Refuse to train if Stage 2 gives its only table no weight and no trial could change that.

    Raises
    ------
    ConfigError
        This is the case, so every trial would fail after its Stage 1.
    """
    training, paths = config.training, config.paths
    searched = {parameter.key for parameter in config.search.space.values()}
    tables = [
        ("lambda_exp", training.lambda_exp, paths.exp_chi_csv, "solubility_csv"),
        ("lambda_sol", training.lambda_sol, paths.solubility_csv, "exp_chi_csv"),
    ]
    given = [(key, weight, other) for key, weight, table, other in tables if table is not None]
    if len(given) != 1:
        return
    ((key, weight, other),) = given
    if weight == 0 and f"training.{key}" not in searched:
        raise ConfigError(
            f"training.{key}: is 0 and paths.{other} is null, so Stage 2 would have nothing to learn and every trial "
            f"would fail after its Stage 1; raise training.{key}, or set paths.{other}"
        )


def _split_scored(config: Config, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of scores: those whose table is given, and those whose table is missing."""
    paths = config.paths
    table_of = {"exp": paths.exp_chi_csv, "sol": paths.solubility_csv, "stage1": paths.dft_chi_csv}
    scored = [name for name in names if table_of[name.partition("_")[0]] is not None]
    return scored, [name for name in names if name not in scored]


def objective_terms(components: Mapping[str, Score], weights: ObjectiveSettings) -> dict[str, Score]:
    """The weighted terms of the transfer objective: errors unchanged, scores as 1 − score; absent tasks omitted."""
    terms: dict[str, Score] = {}
    for name, weight in weights.model_dump().items():
        if weight > 0 and name in components:
            terms[name] = weight * (components[name] if name in ERRORS else 1.0 - components[name])
    return terms


def transfer_objective(components: Mapping[str, float], weights: ObjectiveSettings) -> float:
    """1.5·exp_mae + 2·(1 − sol_f1) + 1.5·(1 − sol_recall) + 0.1·stage1_mae with the guide's weights; minimised.

    Raises
    ------
    TrainingError
        A weighted component is NaN or infinite.
    """
    terms = objective_terms(components, weights)
    bad = [name for name, value in terms.items() if not np.isfinite(value)]
    if bad:
        raise TrainingError(f"the objective is not finite because of {', '.join(bad)}")
    return float(sum(terms.values()))
