"""The guide's second pass: tuning Stage 2 hyperparameters on the kept Stage 1 encoder of one trial.

Called by `chitransfer search --second-pass`; a study of its own, in the first one's folder, driven like any other.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from chitransfer.config import Config, override_config
from chitransfer.console import show_progress
from chitransfer.data.assemble import Dataset
from chitransfer.data.table_remarks import describe_left_out
from chitransfer.errors import ConfigError, StudyError, TrainingError
from chitransfer.files import write_json
from chitransfer.provenance import write_provenance
from chitransfer.search.apply import read_complete_trial
from chitransfer.search.contract import make_contract, remark_on_scored_tables
from chitransfer.search.encoders import SavedEncoder, read_encoders, stage1_key
from chitransfer.search.lock import drive_alone
from chitransfer.search.memory import peak_memory_mb
from chitransfer.search.objective import (
    FIRST_FRESH,
    RungResult,
    RungTask,
    refuse_constant_objective,
    refuse_nothing_to_learn,
)
from chitransfer.search.reference import score_reference
from chitransfer.search.rescore import find_without_effect, score_encoders
from chitransfer.search.results import read_standing
from chitransfer.search.run import (
    EXIT_CODES,
    Draw,
    drive_until_stopped,
    log_to,
    open_study,
    say_and_log,
    say_how_to_go_on,
    write_what_there_is,
)
from chitransfer.search.runner import TrialRunner
from chitransfer.search.space import to_overrides
from chitransfer.search.storage import explain_storage_errors
from chitransfer.search.study import CONTRACT, read_searched_dataset, read_study, refuse_other_names
from chitransfer.search.study_folder import StudyFolder, load_study_config
from chitransfer.search.summary import Names, describe_nothing_to_do, describe_outcome, describe_reference
from chitransfer.search.unread import describe_unread_parameters, refuse_rate_of_frozen_encoder
from chitransfer.search.watch import SearchDisplay
from chitransfer.search.workers import InProcessWorkers, check_workers, wait_for_left_behind
from chitransfer.sections import SpaceParameter
from chitransfer.seeds import derive_seed
from chitransfer.training.crossval import make_folds
from chitransfer.training.metrics import mean_half_width
from chitransfer.training.settings import make_study_folds

# Fold shuffles that neither pass has used, for an unbiased final comparison.
N_FRESH_SHUFFLES = 5
logger = logging.getLogger(__name__)
# File with the objectives on these shuffles.
FRESH_FOLDS = "fresh_folds.json"
# Settings that are the same in every second pass.
FIXED: dict[str, object] = {
    "search.pruner": "none",
    "search.rungs": [],
    "search.replicates": 1,
    "search.select": "best",
    "search.reevaluate_top": 0,
    "search.objectives": [],
    "search.workers": 1,
    "search.devices": [],
    "search.scheduler": None,
    "search.storage": None,
    "search.halve_batch_when_out_of_memory": False,
}
# Its budget, by the key that the flag of a search sets.
BUDGET = {"search.n_trials": "second_pass.n_trials"}
# Keys it does not read.
UNUSED = {
    "search.study_name", "search.space", "search.pack", "search.reevaluate_seeds", "search.max_worker_deaths",
    "search.n_pretrain_seeds", "paths.results_dir",
}  # fmt: skip
UNUSED_SECTIONS = ("search.space.", "cluster.")
# Those of these keys that have flags in `chitransfer search`.
FLAGS = {"pruner", "workers", "devices", "scheduler", "storage", "study_name", "results_dir"}


class EncoderRunner(TrialRunner):
    """Runs trials that differ only in Stage 2: all start from the same Stage 1 encoders.

    Parameters
    ----------
    encoders, number
        Those of the first pass's trial.
    """

    def __init__(
        self, config: Config, dataset: Dataset, *, encoders: Sequence[SavedEncoder], number: int, **options: Any
    ) -> None:
        super().__init__(config, dataset, **options)
        self.encoders, self.number = encoders, number

    def _run(self, task: RungTask) -> RungResult:
        started = time.perf_counter()
        config = override_config(self.config, task.overrides)
        scores = score_encoders(self, config, self.number, self.encoders)
        return RungResult(
            number=task.number,
            epoch=max(encoder.n_epochs for encoder in self.encoders),
            finished=True,
            components=scores.components,
            spread=scores.spread,
            value=scores.value,
            replicates=scores.replicates,
            seconds={"stage2": time.perf_counter() - started},
            peak_memory_mb=peak_memory_mb(self.device),
        )


@dataclass(frozen=True)
class FreshScores:
    """Objectives of both passes' settings on shuffles and Stage 2 seeds not used to choose them, (n_shuffles,) each."""

    first: np.ndarray
    second: np.ndarray

    def describe(self) -> str:
        """One line: the second pass's gain on folds and seeds that selection could not exploit.

        If the 95 % interval of the mean gain (Student's t) contains 0, there is no difference. The polymers are those
        that both passes were chosen on.
        """
        gain = self.first - self.second
        half_width = mean_half_width(gain)
        line = (
            f"on {len(gain)} fold shuffles and seeds that neither pass has seen: first pass {self.first.mean():.4f}, "
            f"second pass {self.second.mean():.4f}, gain {gain.mean():.4f} ± {half_width:.4f} (95 %); "
        )
        if abs(gain.mean()) <= half_width:
            return line + "no difference was found between the two passes' Stage 2 settings"
        better = "second" if gain.mean() > 0 else "first"
        return line + f"the {better} pass's Stage 2 settings are the better choice on these polymers"


def describe_fresh_folds(folder: StudyFolder) -> list[str]:
    """The second pass's result on fresh fold shuffles in one line; empty if there is no readable file."""
    path = folder.path / FRESH_FOLDS
    if not path.is_file():
        return []
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        fresh = FreshScores(np.array(values["first"], dtype=float), np.array(values["second"], dtype=float))
        return [fresh.describe()]
    except (ValueError, KeyError, TypeError):
        logger.warning("%s is damaged and left out", path)
        return []


def second_pass_config(config: Config, of_trial: Mapping[str, object]) -> Config:
    """The configuration of a second pass: the trial's own, with its own space and budget and without rungs."""
    return override_config(
        config,
        {
            **of_trial,
            "search.space": {name: p.model_dump() for name, p in config.second_pass.space.items()},
            "search.n_trials": config.second_pass.n_trials,
            **FIXED,
        },
    )


def refuse_without_effect(overrides: Mapping[str, object], space: Mapping[str, SpaceParameter]) -> None:
    """Refuse overrides that a second pass of a study with this search space would not use.

    Raises
    ------
    ConfigError
        There are some; the message names them, as flags where there is one.
    """
    useless = find_without_effect(overrides, space, UNUSED | FIXED.keys(), UNUSED_SECTIONS)
    if useless:
        last = {key: key.rpartition(".")[2] for key in useless}
        named = [f"--{last[key].replace('_', '-')}" if last[key] in FLAGS else key for key in useless]
        raise ConfigError(
            f"without effect in a second pass: {', '.join(named)}; leave it out. A second pass runs in this process, "
            "keeps its trials in the study's own folder, prunes no trial and tunes second_pass.space on the trial's "
            "own Stage 1"
        )


def refuse_tuned(overrides: Mapping[str, object], space: Mapping[str, SpaceParameter]) -> None:
    """Refuse overrides of what a second pass tunes: they would only affect its first trial, which stands for the first
    pass.

    Raises
    ------
    ConfigError
        There are some; the message names the first with its parameter.
    """
    tuned = {parameter.key: name for name, parameter in space.items()}
    for key in sorted(tuned.keys() & overrides.keys()):
        place = f"second_pass.space.{tuned[key]}"
        raise ConfigError(
            f"{key}: a second pass tunes it ({place}), and its first trial uses the first pass's value; leave it out, "
            f"or change the range or the choices of {place}"
        )


def run_second_pass(
    folder: StudyFolder,
    console: Console,
    *,
    trial: int | None = None,
    overrides: Mapping[str, object] | None = None,
    draw: Draw,
) -> int:
    """Tune Stage 2 on one trial's encoders; when run again, it resumes what is there with its own configuration.

    Parameters
    ----------
    folder
        Folder of the finished first pass, unchanged except for the new folder ``second_pass_NNNN`` in it.
    trial
        Number of the trial; default: the one best_params.json recommends.
    overrides
        Dotted configuration keys, applied to the study's configuration or, when resuming, the second pass's own;
        ``search.n_trials`` is its budget.
    draw
        As in `run_search`.

    Returns
    -------
    int
        The exit code, as for a search.

    Raises
    ------
    StudyError
        There is no such complete trial, its polymers had other names, or the overrides would change its Stage 1.
    ConfigError
        Some of the overrides would have no effect.
    CheckpointError
        The trial has no stored Stage 1 result.
    """
    prepared = _prepare(folder, console, trial, overrides or {})
    console.print(f"second pass on trial {prepared.number} of {folder.name}: {prepared.folder.path}")
    own = prepared.folder
    with log_to(own.log), drive_alone(own), explain_storage_errors(own.place):
        return _tune(prepared, console, draw)


@dataclass(frozen=True)
class _Prepared:
    """A second pass that can be started or resumed.

    Attributes
    ----------
    folder
        Its own folder.
    number, encoders
        Those of the first pass's trial.
    remarks
        Which tables differ from those of the first pass.
    """

    folder: StudyFolder
    number: int
    encoders: Sequence[SavedEncoder]
    config: Config
    dataset: Dataset
    remarks: Sequence[str]


def _prepare(folder: StudyFolder, console: Console, trial: int | None, overrides: Mapping[str, object]) -> _Prepared:
    """Choose the trial, and refuse what could not work before anything is written."""
    chosen = read_complete_trial(folder, trial)
    number = chosen.number
    own = folder.second_pass(number)
    changes = {BUDGET.get(key, key): value for key, value in overrides.items()}
    space = load_study_config(folder, {}).search.space
    refuse_without_effect(changes, space)
    encoders = read_encoders(folder.trial(number))
    goes_on = own.database.is_file() and own.config.is_file()
    base = load_study_config(own if goes_on else folder, changes)
    refuse_tuned(changes, base.second_pass.space)
    config = second_pass_config(base, to_overrides(chosen.params, space, chosen.user_attrs))
    check_workers(config)
    refuse_constant_objective(config)
    refuse_rate_of_frozen_encoder(config, "second_pass")
    refuse_nothing_to_learn(config)
    with show_progress(console) as progress:
        dataset = read_searched_dataset(config, progress)
    study = read_study(folder)
    refuse_other_names(study, folder.place, config, dataset)
    if any(stage1_key(config, dataset, encoder.seed) != encoder.key for encoder in encoders):
        raise StudyError(
            f"{folder.path}: trial {number} was pretrained under other conditions; leave all settings of Stage 1 as "
            "they were (chem, model, the Stage 1 part of training, the computed table, seed). The release that "
            "created the study also matters if polymers differ only in stereochemistry or memory ran out"
        )
    remarks = remark_on_scored_tables(study.user_attrs.get(CONTRACT, {}), dataset)
    return _Prepared(own, number, encoders, config, dataset, remarks)


def _tune(prepared: _Prepared, console: Console, draw: Draw) -> int:
    """Drive the study and report the outcome."""
    own, config, dataset = prepared.folder, prepared.config, prepared.dataset
    unread = describe_unread_parameters(config, "second_pass")
    about = [*describe_left_out(dataset.tables), *unread, *describe_reference(config, Names.of(own))]
    say_and_log(console, [*prepared.remarks, *about])
    contract = {**make_contract(config, dataset), "stage1": [encoder.key for encoder in prepared.encoders]}
    study = open_study(own, config, contract, is_new=not own.database.is_file())
    write_provenance(own.path, dataset)
    first_passes = [] if own.first_pass is None else [StudyFolder(own.first_pass[0]).reference]
    folds, say = make_study_folds(config, dataset), lambda line: say_and_log(console, [line])
    with say_how_to_go_on(console, own):
        reference = score_reference(own.reference, config, dataset, folds, say, first_passes)
    runner = functools.partial(EncoderRunner, encoders=prepared.encoders, number=prepared.number)
    workers = InProcessWorkers(config, dataset, make_runner=runner)
    # The stored comparison concerns the best trial so far, which may change.
    (own.path / FRESH_FOLDS).unlink(missing_ok=True)
    try:
        with closing(workers):
            display = SearchDisplay(console, config.search, read_standing(study), default=Names.of(own).default)
            reason = drive_until_stopped(config, dataset, study, own, workers, display)
    finally:
        write_what_there_is(own, study)
    if reason == "finished" and display.n_ended == 0:
        say_and_log(console, [describe_nothing_to_do(study, config)])
    say_and_log(console, describe_outcome(study, own, config, reference, reason))
    best = read_standing(study).best
    if reason == "finished" and best is not None and not best.user_attrs.get("is_default"):
        wait_for_left_behind(config.search.trial_timeout_minutes)
        _keep_fresh_scores(prepared, workers.runner, best.params, console)
    if best is not None:
        with say_how_to_go_on(console, own):
            lines = draw(study, reference, own) or []
        say_and_log(console, lines)
    return EXIT_CODES[reason]


def _keep_fresh_scores(prepared: _Prepared, runner: TrialRunner, params: Mapping[str, Any], console: Console) -> None:
    """Write the scores of both passes on fresh folds; if they cannot be computed, only warn."""
    own = prepared.folder
    say_and_log(
        console,
        [(f"scoring both passes' settings on {N_FRESH_SHUFFLES} fold shuffles and seeds that neither pass has seen")],
    )
    try:
        with say_how_to_go_on(console, own):
            fresh = compare_on_fresh_folds(runner, prepared.config, prepared.number, prepared.encoders, params)
    except TrainingError as error:
        say_and_log(console, [f"WARNING: the two passes could not be compared on them: {error}"])
    else:
        write_json(own.path / FRESH_FOLDS, {"first": fresh.first.tolist(), "second": fresh.second.tolist()})


def compare_on_fresh_folds(
    runner: TrialRunner,
    config: Config,
    number: int,
    encoders: Sequence[SavedEncoder],
    params: Mapping[str, Any],
) -> FreshScores:
    """Score the first pass's Stage 2 settings and the second's on shuffles not used to choose them."""
    best = override_config(config, to_overrides(params, config.search.space))
    first, second = [], []
    for shuffle in range(N_FRESH_SHUFFLES):
        seed = derive_seed(config.seed, "second pass folds", number, shuffle)
        folds = make_folds(runner.dataset, config.cv.n_cv_folds, 1, seed)
        pretraining = (FIRST_FRESH + shuffle) * len(encoders)
        first.append(score_encoders(runner, config, number, encoders, folds, pretraining).value)
        second.append(score_encoders(runner, best, number, encoders, folds, pretraining).value)
    return FreshScores(np.array(first), np.array(second))
