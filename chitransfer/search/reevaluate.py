"""Running the top trials and the default configuration again, on fresh pretraining seeds and fresh folds.

Called by `search.run` when a search has finished; `evidence.overtuning` reads what it leaves behind.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import optuna

from chitransfer.config import Config
from chitransfer.data.assemble import Dataset
from chitransfer.search.driver import POLL_SECONDS, StopReason
from chitransfer.search.objective import FIRST_FRESH, RungResult, RungTask
from chitransfer.search.records import load_rung, save_rung
from chitransfer.search.replicates import (
    estimate_components,
    posterior_of,
    replicate_folder,
    run_values,
)
from chitransfer.search.results import read_standing
from chitransfer.search.space import to_overrides
from chitransfer.search.study import StudyFolder
from chitransfer.search.workers import Workers

logger = logging.getLogger(__name__)


def choose_trials(study: optuna.Study, top: int) -> list[int]:
    """The best trials, at most `top` and at most a quarter of the complete ones, and the default configuration's.

    Where trials ran several times, the best are those of the lowest posterior mean, as in `evidence.overtuning`.
    """
    standing = read_standing(study)
    if top == 0 or len(standing.ranked) < 2:
        return []
    values = run_values(study)
    runs = [values[trial.number] for trial in standing.ranked]
    order = np.argsort(posterior_of(runs, estimate_components(runs)).mean, kind="stable")
    numbers = [standing.ranked[place].number for place in order[: min(top, -(-len(runs) // 4))]]
    if standing.default is not None and standing.default.number not in numbers:
        numbers.append(standing.default.number)
    return numbers


def reevaluate_top(
    config: Config,
    dataset: Dataset,
    study: optuna.Study,
    folder: StudyFolder,
    workers: Workers,
    stop_requested: Callable[[], StopReason | None],
) -> StopReason:
    """Run each chosen trial `search.reevaluate_seeds` times more; runs already on disk are kept.

    A run that fails is left out with a line in the log. Returns why it ended.
    """
    by_number = {trial.number: trial for trial in read_standing(study).ranked}
    tasks = [
        RungTask(
            number=number,
            overrides=to_overrides(by_number[number].params, config.search.space),
            epoch=config.training.num_epochs_pretrain,
            state=None,
            replicate=FIRST_FRESH + seed,
        )
        for number in choose_trials(study, config.search.reevaluate_top)
        for seed in range(config.search.reevaluate_seeds)
        if load_rung(replicate_folder(folder.trial(number), FIRST_FRESH + seed)) is None
    ]
    running: dict[Future[RungResult], RungTask] = {}
    while tasks or running:
        while tasks and len(running) < workers.capacity:
            task = tasks.pop(0)
            running[workers.submit(task)] = task
        for future in workers.wait(list(running), POLL_SECONDS):
            task, result = running.pop(future), future.result()
            if result.failure:
                logger.warning("trial %d on fresh seeds and folds FAILED: %s", task.number, result.failure)
                continue
            save_rung(
                replicate_folder(folder.trial(task.number), task.replicate),
                result,
                by_number[task.number].params,
                dataset,
            )
            logger.info("trial %d on fresh seeds and folds: objective %.4f", task.number, result.value)
        reason = stop_requested()
        if reason is not None:
            return reason
    return "finished"
