"""Rescoring kept Stage 1 encoders with other folds, Stage 2 settings or objective weights, without pretraining.

Called by `chitransfer rescore`; `search.second_pass` scores single encoders with `score_encoders`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from chitransfer.config import Config, changed_keys, dump_config, load_config, override_config
from chitransfer.counts import first_lines
from chitransfer.data.table_remarks import describe_left_out
from chitransfer.errors import CheckpointError, ChitransferError, ConfigError, StudyError, TrainingError
from chitransfer.files import write_atomically, write_csv, write_json
from chitransfer.progress import NamedProgress
from chitransfer.provenance import write_provenance
from chitransfer.search.contract import remark_on_scored_tables
from chitransfer.search.encoders import SavedEncoder, read_encoders, stage1_key
from chitransfer.search.objective import refuse_constant_objective, refuse_nothing_to_learn
from chitransfer.search.reference import Reference, score_reference
from chitransfer.search.replicates import values_of_runs
from chitransfer.search.results import name_columns
from chitransfer.search.runner import NetworkScores, TrialRunner
from chitransfer.search.space import to_overrides
from chitransfer.search.study import CONTRACT, read_searched_dataset, read_study, refuse_other_names
from chitransfer.search.study_folder import StudyFolder, load_study_config
from chitransfer.search.summary import PERMUTED, describe_objective, describe_side_by_side
from chitransfer.search.unread import keeps_encoder_frozen
from chitransfer.sections import FULL_TRAINING_KEYS, ObjectiveSettings, SpaceParameter

# Determined anew on every machine; they do not affect what is measured.
PLACE_KEYS = ("paths.results_dir", "paths.cache_dir", "training.device", "training.num_threads", "search.n_trials")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rescored:
    """A study's complete trials under new conditions.

    Attributes
    ----------
    folder
        Where ``all_trials.csv``, ``top_20_trials.csv``, ``best_params.json``, ``reference.json``, ``config.yaml``,
        ``environment.json`` and, where rows were left out, ``rejected_rows.csv`` were written.
    trials
        One line per trial, best first: ``number``, ``value``, ``value_before``, ``rank_before``, ``is_default``,
        parameters, components. Where a trial ran several times (`search.replicates`), ``value_before`` and
        ``rank_before`` are those of its first run, whose encoders are scored.
    skipped
        Why trials were left out, by number.
    reference
        The reference predictors under the new conditions.
    weights
        The objective's weights.
    is_permuted
        The measured values were shuffled among polymers, so nothing can be better than the trivial predictor.
    is_of_first_runs
        Trials may have run several times.
    warnings
        Warnings about the tables and the objective.
    """

    folder: Path
    trials: pd.DataFrame
    skipped: dict[int, str]
    reference: Reference
    weights: ObjectiveSettings
    is_permuted: bool = False
    is_of_first_runs: bool = False
    warnings: Sequence[str] = ()

    def describe(self) -> list[str]:
        """Best trial, default configuration and references side by side, and the warnings."""
        best, *others = ({str(key): value for key, value in row.items()} for row in self.trials.to_dict("records"))
        columns = [(f"best (trial {best['number']})", best)]
        columns += [(f"default (trial {row['number']})", row) for row in (best, *others) if row["is_default"]]
        references = self.reference.columns(best, self.weights)
        table = describe_side_by_side([*((title, row, row["value"]) for title, row in columns), *references])
        if self.is_permuted:
            return [PERMUTED, *table, *self.warnings]
        beaten = [f"WARNING: {line}" for line in self.reference.beats(best, self.weights)]
        return [*table, *beaten, *self.warnings]

    def describe_skipped(self) -> list[str]:
        """Which trials were left out and why; if many, only the first."""
        lines = [f"trial {number} left out: {reason}" for number, reason in self.skipped.items()]
        return first_lines(lines, "trial")

    @property
    def rank_correlation(self) -> float:
        """Spearman's correlation of ``value_before`` and ``value``; NaN for fewer than three trials."""
        if len(self.trials) < 3:
            return float("nan")
        before, after = self.trials["value_before"].rank(), self.trials["value"].rank()
        return float(np.corrcoef(before, after)[0, 1])


def find_without_effect(
    overrides: Iterable[str], space: Mapping[str, SpaceParameter], unread: Collection[str], sections: tuple[str, ...]
) -> list[str]:
    """Overrides that rescored trials would not use, sorted.

    These are overrides of searched parameters, which each trial sets itself, of full training, and of the named keys.

    Parameters
    ----------
    unread, sections
        Dotted keys, and prefixes of dotted keys.
    """
    own = {parameter.key for parameter in space.values()} | FULL_TRAINING_KEYS
    return sorted(key for key in overrides if key in own or key in unread or key.startswith(sections))


def score_encoders(
    runner: TrialRunner,
    config: Config,
    number: int,
    encoders: Sequence[SavedEncoder],
    folds: np.ndarray | None = None,
    first: int = 0,
) -> NetworkScores:
    """Score a trial's encoders with quick Stage 2.

    Parameters
    ----------
    runner
        Provides tables, features and folds.
    config
        The trial's configuration.
    number, first
        Number of the trial and of its first pretraining; they fix Stage 2's random choices, by default as in the
        search.
    folds
        From `make_folds`; default: the runner's.

    Raises
    ------
    TrainingError
        Stage 2 diverged, or the objective is not finite.
    CheckpointError
        The encoders do not fit the configuration.
    """
    n_features = runner.stage1_data.features.n_features
    networks = [encoder.build(config, n_features).to(runner.device) for encoder in encoders]
    return runner.score_networks(config, number, networks, encoders, runner.folds if folds is None else folds, first)


def rescore_study(
    folder: StudyFolder,
    overrides: Mapping[str, object],
    *,
    progress: NamedProgress | None = None,
) -> Rescored:
    """Rescore every complete trial of a study; the study itself is not changed.

    A trial that cannot be scored under these conditions is left out, with its reason.

    Parameters
    ----------
    overrides
        Dotted configuration keys to change: in ``cv``, ``objective``, ``solubility``, the Stage 2 part of ``training``,
        or the measured tables.
    progress
        Called with ("rescore", done, total).

    Raises
    ------
    ConfigError
        Some of the overrides would have no effect, or would make the objective the same for all trials; the message
        names them.
    StudyError
        The study is a second pass or has no complete trial, its polymers had other names, or a change would alter
        Stage 1 of all; the message names it.
    TrainingError
        Stage 2 diverges, or runs out of memory, for every trial.
    CheckpointError
        No complete trial has a readable Stage 1 result.
    """
    if folder.first_pass is not None:
        raise StudyError(
            f"{folder.path}: a second pass keeps no Stage 1 results of its own, so its trials cannot be rescored; "
            f"rescore those of its study, {folder.first_pass[0]}"
        )
    config = load_study_config(folder, overrides)
    _refuse_without_effect(overrides, config)
    refuse_constant_objective(config)
    refuse_nothing_to_learn(config)
    study = read_study(folder)
    trials = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    if not trials:
        raise StudyError(f"{folder.path}: no trial is complete yet, so there is nothing to rescore")
    dataset = read_searched_dataset(config)
    refuse_other_names(study, folder.place, config, dataset)
    runner = TrialRunner(config, dataset, n_threads=config.training.num_threads)
    frame, errors = _score_trials(runner, folder, trials, progress)
    target = folder.path / "rescored" / f"{datetime.now():%Y%m%d_%H%M%S_%f}"
    _write(target, frame, config, folder, {t.number: t.params for t in trials})
    write_provenance(target, dataset)
    reference = score_reference(
        target / "reference.json", config, dataset, runner.folds, logger.info, [folder.reference]
    )
    skipped = {number: str(error) for number, error in errors.items()}
    is_permuted, is_of_first_runs = config.search.control == "permute", config.search.replicates > 1
    others = remark_on_scored_tables(study.user_attrs.get(CONTRACT, {}), dataset)
    warnings = [*others, *describe_left_out(dataset.tables), *describe_objective(config)]
    return Rescored(target, frame, skipped, reference, config.objective, is_permuted, is_of_first_runs, warnings)


def _refuse_without_effect(overrides: Mapping[str, object], config: Config) -> None:
    # The control is part of the labels, so a change of it is reported as one of Stage 1.
    unread = {"paths.results_dir"} | ({"training.lr_encoder"} if keeps_encoder_frozen(config) else set())
    useless = find_without_effect(
        overrides.keys() - {"search.control"}, config.search.space, unread, ("search.", "second_pass.", "cluster.")
    )
    if useless:
        raise ConfigError(
            f"without effect when trials are rescored: {', '.join(useless)}; leave it out. Each trial keeps its "
            "searched parameters (search.space). Of the others, folds (cv), objective, solubility, measured tables "
            "and Stage 2's part of training can be changed, and training.lr_encoder if "
            "training.freeze_encoder_stage2 is false"
        )


def _score_trials(
    runner: TrialRunner,
    folder: StudyFolder,
    trials: Sequence[FrozenTrial],
    progress: NamedProgress | None,
) -> tuple[pd.DataFrame, dict[int, ChitransferError]]:
    """The table of `Rescored`, and why trials are missing from it, by number; raises if it would be empty."""
    config, dataset = runner.config, runner.dataset
    # Values of the run whose encoders are kept.
    before = {t.number: values_of_runs(t)[0] for t in trials}
    order = sorted(before, key=lambda number: (before[number], number))
    rows: list[dict[str, Any]] = []
    errors: dict[int, ChitransferError] = {}
    for done, trial in enumerate(trials):
        try:
            own = override_config(config, to_overrides(trial.params, config.search.space, trial.user_attrs))
            encoders = read_encoders(folder.trial(trial.number))
            if any(stage1_key(own, dataset, encoder.seed) != encoder.key for encoder in encoders):
                raise StudyError(_refusal(folder, trial.number, config))
            scores = score_encoders(runner, own, trial.number, encoders)
        except (CheckpointError, ConfigError, StudyError, TrainingError) as error:
            errors[trial.number] = error
            # The caller reports it (`Rescored.skipped`).
            logger.info("trial %d is left out: %s", trial.number, error)
            continue
        rows.append(
            {
                "number": trial.number,
                "value": scores.value,
                "value_before": before[trial.number],
                "rank_before": order.index(trial.number) + 1,
                "is_default": bool(trial.user_attrs.get("is_default", False)),
                **name_columns(trial.params),
                **scores.components,
                **{f"{name}_std": deviation for name, deviation in scores.spread.items()},
            }
        )
        if progress is not None:
            progress("rescore", done + 1, len(trials))
    if not rows:
        none_kept = CheckpointError(f"{folder.path}: no trial kept its Stage 1 result; {next(iter(errors.values()))}")
        raise next((one for one in errors.values() if not isinstance(one, CheckpointError)), none_kept)
    return pd.DataFrame(rows).sort_values(["value", "number"], kind="stable", ignore_index=True), errors


def _write(
    target: Path, frame: pd.DataFrame, config: Config, folder: StudyFolder, params: Mapping[int, Mapping[str, Any]]
) -> None:
    write_atomically(target / "config.yaml", dump_config(config))
    write_csv(target / "all_trials.csv", frame.sort_values("number"))
    write_csv(target / "top_20_trials.csv", frame.head(20))
    number = int(frame["number"].iloc[0])
    write_json(
        target / "best_params.json",
        {
            "best_value": float(frame["value"].iloc[0]),
            "best_params": dict(params[number]),
            "n_trials": len(frame),
            "best_trial_number": number,
            "study_name": folder.name,
        },
    )


def _refusal(folder: StudyFolder, number: int, config: Config) -> str:
    changed = [key for key in changed_keys(load_config(folder.config), config) if key not in PLACE_KEYS]
    what = ", ".join(changed) or (
        "the Stage 1 table or its features, the release that created the study, or, if only this trial is affected, "
        "a batch size that such a release halved when memory ran out"
    )
    return (
        f"{folder.path}: trial {number} was pretrained under other conditions, so its Stage 1 result cannot be "
        f"rescored under these (changed: {what}). Leave all settings of Stage 1 as they were (chem, model, the Stage "
        "1 part of training, the computed table, seed), or start a new search"
    )
