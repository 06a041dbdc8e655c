"""One rung of one trial: train Stage 1 a little further, score it with quick Stage 2, return scores and state.

`TrialRunner` lives in a worker; `search.driver` sends it `RungTask`s and receives `RungResult`s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from chitransfer.config import Config, override_config
from chitransfer.data.assemble import Dataset
from chitransfer.errors import CheckpointError, TrainingError
from chitransfer.model.network import TransferNetwork
from chitransfer.model.tensor_file import MALFORMED, first_line
from chitransfer.processors import use_threads
from chitransfer.search.encoders import SavedEncoder, pack_encoders, pack_state, stage1_key, unpack_state
from chitransfer.search.memory import peak_memory_mb, reset_peak_memory
from chitransfer.search.objective import FIRST_FRESH, ReplicateResult, RungResult, RungTask, transfer_objective
from chitransfer.seeds import derive_seed
from chitransfer.shortage import is_out_of_memory
from chitransfer.training.crossval import cross_validate, make_folds
from chitransfer.training.packed import carry
from chitransfer.training.settings import (
    build_stage1_data,
    make_study_folds,
    network_shape,
    resolve_device,
    stage1_settings,
    stage2_settings,
)
from chitransfer.training.stage1 import Stage1Data, Stage1Run
from chitransfer.training.tasks import Stage2Data, resolve_positive_label

# Keys that decide whether batches are large enough for batch normalisation.
BATCH_KEYS = {"model.use_batchnorm", "training.batch_size_dft", "training.min_batches_per_epoch"}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkScores:
    """Quick Stage 2 results for a trial's networks: objective, components, their spread, and each seed's own.

    The spread is NaN where there is a single value.
    """

    value: float
    components: dict[str, float]
    spread: dict[str, float]
    replicates: tuple[ReplicateResult, ...]


def refuse_lone_pairs(config: Config, data: Stage1Data) -> None:
    """Refuse batches of one pair under batch normalisation if no trial can change that: all would fail.

    Raises
    ------
    TrainingError
        As `Stage1Settings.refuse_lone_pairs`.
    """
    if config.model.use_batchnorm and BATCH_KEYS.isdisjoint(p.key for p in config.search.space.values()):
        stage1_settings(config).refuse_lone_pairs(len(data.train))


class TrialRunner:
    """Holds a study's data on a device and runs rungs of its trials.

    Parameters
    ----------
    config
        The study's configuration, to which a trial applies its overrides.
    stop_requested
        Called after every epoch of both stages; if it returns True, the rung is given up (`Cancelled`).

    Raises
    ------
    TrainingError
        Every trial would have batches of one pair, which batch normalisation cannot handle.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        *,
        device: str | None = None,
        n_threads: int = 0,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        use_threads(n_threads)
        self.config, self.dataset = config, dataset
        self.device = resolve_device(device or config.training.device)
        self.positive_label = resolve_positive_label(dataset.solubility, config.solubility.positive)
        self.folds = make_study_folds(config, dataset)
        self.stage1_data = build_stage1_data(config, dataset, self.device)
        refuse_lone_pairs(config, self.stage1_data)
        self.stage2_data = Stage2Data.build(
            dataset,
            self.stage1_data.features,
            self.stage1_data.chi_scaler,
            positive_label=self.positive_label,
            T_ref=config.T_ref_K,
        )
        self._stop_requested = stop_requested
        # Runs of the last rungs by their states, so that continuing here needs no unpacking.
        self.n_kept = 1
        self._kept: list[tuple[bytes, list[Stage1Run]]] = []

    def run(self, task: RungTask) -> RungResult:
        """Advance a trial to `task.epoch`; a trial that cannot continue is returned with its reason instead of raising.

        Raises
        ------
        Cancelled
            A stop was requested during the rung.
        """
        started = time.perf_counter()
        reset_peak_memory(self.device)
        try:
            return self._run(task)
        except Exception as error:
            if not fails_trial(error):
                raise
            return describe_failure(task, error, time.perf_counter() - started)

    def _run(self, task: RungTask) -> RungResult:
        started, half = time.perf_counter(), None
        try:
            runs = self._train(task)
        except torch.OutOfMemoryError:
            half = override_config(self.config, task.overrides).training.batch_size_dft // 2
            if not self.config.search.halve_batch_when_out_of_memory or half < 1:
                raise
        if half is not None:
            # Outside the except block, so that the traceback no longer holds the failed attempt's tensors.
            logger.warning("trial %d: out of memory; retrying with training.batch_size_dft=%d", task.number, half)
            self.free_memory()
            task = replace(task, overrides={**task.overrides, "training.batch_size_dft": half})
            runs = self._train(task)
        return replace(self.score(task, runs, time.perf_counter() - started), halved_batch_size=half)

    def _train(self, task: RungTask) -> list[Stage1Run]:
        runs = self.start(task)
        carry(runs, task.epoch, self._heed_stop)
        return runs

    def free_memory(self) -> None:
        """Drop runs kept between rungs, which are then restored from bytes, and release unused memory."""
        self._kept = []
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _heed_stop(self) -> None:
        if self._stop_requested():
            raise Cancelled

    def start(self, task: RungTask) -> list[Stage1Run]:
        """Stage 1 of a trial as its last rung left it, one run per pretraining seed.

        Raises
        ------
        CheckpointError
            The state of the last rung is damaged or belongs to another trial.
        """
        config = override_config(self.config, task.overrides)
        for position, (state, runs) in enumerate(self._kept):
            if state is task.state:
                del self._kept[position]
                return runs
        states: list[dict[str, Any]] = [] if task.state is None else unpack_state(task.state)
        runs = []
        for position, replicate in enumerate(_pretrainings(config, task)):
            run = Stage1Run(
                self.stage1_data,
                network_shape(config, self.stage1_data.features.n_features),
                stage1_settings(config),
                derive_seed(config.seed, "pretrain", task.number, replicate),
            )
            if states:
                _go_on(run, states, position)
            runs.append(run)
        return runs

    def score(self, task: RungTask, runs: Sequence[Stage1Run], stage1_seconds: float) -> RungResult:
        """Quick Stage 2 on the trained runs from `start`.

        Raises
        ------
        Stage2MemoryError
            Memory ran out.
        TrainingError
            Stage 2 or the objective is not finite.
        Cancelled
            A stop was requested during scoring.
        """
        config = override_config(self.config, task.overrides)
        started = time.perf_counter()
        networks = [run.best_network() for run in runs]
        encoders = []
        for own, network, run in zip(_pretrainings(config, task), networks, runs, strict=True):
            seed = derive_seed(config.seed, "pretrain", task.number, own)
            key = stage1_key(config, self.dataset, seed)
            encoders.append(SavedEncoder(key, seed, network.state_dict(), run.best_mae, run.best_epoch, run.epoch))
        folds, first = self._folds_of(task.replicate), _pretrainings(config, task)[0]
        scores = self.score_networks(config, task.number, networks, encoders, folds, first)
        finished = all(run.finished for run in runs)
        state = b"" if finished else pack_state([run.state_dict() for run in runs])
        if not finished:
            self._kept = [*self._kept, (state, list(runs))][-self.n_kept :]
        return RungResult(
            number=task.number,
            epoch=max(run.epoch for run in runs),
            finished=finished,
            components=scores.components,
            spread=scores.spread,
            value=scores.value,
            replicates=tuple(replace(r, history=run.history) for r, run in zip(scores.replicates, runs, strict=True)),
            state=state,
            encoders=pack_encoders(encoders) if finished and task.replicate == 0 else b"",
            seconds={"stage1": stage1_seconds, "stage2": time.perf_counter() - started},
            peak_memory_mb=peak_memory_mb(self.device),
        )

    def score_networks(
        self,
        config: Config,
        number: int,
        networks: Sequence[TransferNetwork],
        encoders: Sequence[SavedEncoder],
        folds: np.ndarray,
        first: int = 0,
    ) -> NetworkScores:
        """Quick Stage 2 and the objective for networks from Stage 1.

        Parameters
        ----------
        config
            The trial's configuration.
        number, first
            Number of the trial and of its first pretraining here; they fix Stage 2's random choices.
        networks, encoders
            One per pretraining seed.
        folds
            From `make_folds`, (n_repeats, n_polymers).

        Raises
        ------
        Stage2MemoryError
            Memory ran out.
        TrainingError
            Stage 2 or the objective is not finite.
        Cancelled
            A stop was requested during scoring.
        """
        replicates = []
        for pretraining, (network, encoder) in enumerate(zip(networks, encoders, strict=True), start=first):
            shortage = ""
            try:
                out_of_fold, scores = cross_validate(
                    network,
                    self.stage2_data,
                    self.dataset,
                    folds,
                    stage2_settings(config, config.training.stage2_epochs),
                    derive_seed(config.seed, "quick stage2", number, pretraining),
                    lambda epoch: self._heed_stop(),
                )
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                logger.debug("trial %d: out of memory in Stage 2", number, exc_info=error)
                shortage = first_line(error)
            if shortage:
                # Outside the except block, so that keeping this error does not keep Stage 2's tensors.
                raise Stage2MemoryError(f"out of memory in Stage 2 ({shortage}); lower training.batch_size_exp")
            replicates.append(ReplicateResult(encoder.seed, encoder.best_epoch, scores, out_of_fold, []))
        of_all = {
            name: [value for replicate in replicates for value in replicate.scores.per_repeat[name]]
            for name in replicates[0].scores.per_repeat
        }
        of_all["stage1_mae"] = [encoder.mae for encoder in encoders]
        components = {name: float(np.mean(values)) for name, values in of_all.items()}
        spread = {name: float(np.std(values)) if len(values) > 1 else np.nan for name, values in of_all.items()}
        return NetworkScores(transfer_objective(components, config.objective), components, spread, tuple(replicates))

    def _folds_of(self, replicate: int) -> np.ndarray:
        if replicate < FIRST_FRESH:
            return self.folds
        seed = derive_seed(self.config.seed, "folds", replicate)
        return make_folds(self.dataset, self.config.cv.n_cv_folds, self.config.cv.n_cv_repeats, seed)


def fails_trial(error: BaseException) -> bool:
    """Whether an error should fail only its own trial: numerical divergence, or lack of memory."""
    return isinstance(error, TrainingError | ArithmeticError) or is_out_of_memory(error)


def describe_failure(task: RungTask, error: BaseException, seconds: float) -> RungResult:
    """The result of a rung that failed after so many seconds, with an error for which `fails_trial` is true."""
    logger.debug("trial %d failed", task.number, exc_info=error)
    # Our own errors say in one line what to do, however long.
    reason = str(error) if isinstance(error, TrainingError) else first_line(error)
    if is_out_of_memory(error):
        # `TrialRunner` retries with a smaller batch only if CUDA memory runs out.
        is_cuda = isinstance(error, torch.OutOfMemoryError)
        or_halve = ", or set search.halve_batch_when_out_of_memory" if is_cuda else ""
        reason = f"out of memory ({reason}); lower training.batch_size_dft{or_halve}"
    return RungResult(number=task.number, epoch=0, finished=True, seconds={"failed": seconds}, failure=reason)


def _pretrainings(config: Config, task: RungTask) -> range:
    """Numbers of a task's pretraining seeds; further runs of a trial continue the count."""
    n_seeds = config.search.n_pretrain_seeds
    return range(task.replicate * n_seeds, (task.replicate + 1) * n_seeds)


class Stage2MemoryError(TrainingError):
    """Memory ran out in Stage 2, where a smaller Stage 1 batch would not help."""


class Cancelled(Exception):  # noqa: N818 - not an error: the user asked for it
    """A rung was given up because the search is stopping."""


def _go_on(run: Stage1Run, states: list[dict[str, Any]], replicate: int) -> None:
    try:
        run.load_state_dict(states[replicate])
    except MALFORMED as error:
        raise CheckpointError(f"the state of its last rung does not fit ({type(error).__name__}: {error})") from error
