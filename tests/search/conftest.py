"""A driver on made-up trials: the whole search machinery without any training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from chitransfer.config import Config, override_config
from chitransfer.data.assemble import Dataset
from chitransfer.search.driver import SearchDriver, stop_in_time
from chitransfer.search.objective import ReplicateResult, RungResult, RungTask
from chitransfer.search.space import make_pruner
from chitransfer.search.study_folder import StudyFolder
from chitransfer.training.crossval import OutOfFold, Scores


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def made_up_value(task: RungTask) -> float:
    """A smooth objective of the tiny space; better with every epoch."""
    params = task.overrides
    rate = np.log10(float(params["training.lr_pretrain"]))  # type: ignore[arg-type]
    dropout = float(params["model.encoder_dropout"])  # type: ignore[arg-type]
    width = {"16": 0.1, "16_8": 0.0}[str(params["model.encoder_hidden_dims"])]
    return float((rate + 2.3) ** 2 + (dropout - 0.1) ** 2 + width + 1.0 / task.epoch)


@dataclass
class MadeUpWorkers:
    """Workers that answer at once, as many at a time as asked."""

    dataset: Dataset
    capacity: int = 1
    value: Callable[[RungTask], float] = made_up_value
    failure: Callable[[RungTask], str] = lambda task: ""
    before: Callable[[RungTask], None] = lambda task: None
    tasks: list[RungTask] = field(default_factory=list)
    most_at_once: int = 0
    waiting: list[tuple[Future[RungResult], RungTask]] = field(default_factory=list)

    def submit(self, task: RungTask) -> Future[RungResult]:
        self.before(task)
        self.tasks.append(task)
        future: Future[RungResult] = Future()
        self.waiting.append((future, task))
        self.most_at_once = max(self.most_at_once, len(self.waiting))
        return future

    def wait(self, futures: Collection[Future[RungResult]], timeout: float) -> set[Future[RungResult]]:
        future, task = self.waiting.pop(0)
        future.set_result(self.answer(task))
        assert future in futures
        return {future}

    def running_seconds(self, future: Future[RungResult]) -> float | None:
        return 0.0

    def abandon(self, future: Future[RungResult]) -> None:
        raise AssertionError("no trial here takes long")

    def close(self) -> None:
        self.waiting.clear()

    def answer(self, task: RungTask) -> RungResult:
        reason = self.failure(task)
        if reason:
            return RungResult(number=task.number, epoch=0, finished=True, failure=reason)
        assert self.dataset.chi is not None
        assert self.dataset.solubility is not None
        n_chi, n_labels = len(self.dataset.chi), len(self.dataset.solubility)
        scores = Scores(mean={}, std={}, per_repeat={"exp_mae": [0.5]}, per_fold={})
        out_of_fold = OutOfFold(
            fold_of_chi=np.zeros((1, n_chi), dtype=np.int64),
            fold_of_solubility=np.zeros((1, n_labels), dtype=np.int64),
            chi=np.zeros((1, n_chi)),
            probability=np.zeros((1, n_labels)),
            threshold=np.full((1, 1), 0.5),
        )
        history = [{"epoch": 1, "train_loss": 1.0, "validation_mae": 1.0, "lr": 0.1}]
        replicate = ReplicateResult(seed=1, best_epoch=1, scores=scores, out_of_fold=out_of_fold, history=history)
        return RungResult(
            number=task.number,
            epoch=task.epoch,
            finished=False,
            components={"exp_mae": 0.5, "stage1_mae": 0.1},
            value=self.value(task),
            replicates=(replicate,),
            state=f"state of trial {task.number} at epoch {task.epoch}".encode(),
            seconds={"stage1": 0.0, "stage2": 0.0},
        )


class SilentWatcher:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.ended: list[int] = []

    def trial_started(self, number: int) -> None:
        self.started.append(number)

    def trial_ended(self, trial: Any, n_runs: int) -> None:
        self.ended.append(trial.number)


class AttributesOneByOne:
    """In place of the table, which a study in memory does not have."""

    def __init__(self, address: str) -> None:
        pass

    def write(self, trial: optuna.Trial, attributes: Mapping[str, Any]) -> None:
        for name, value in attributes.items():
            trial.set_user_attr(name, value)


class MadeUpSearch:
    """A study in memory that several drivers, one after another, go on with."""

    def __init__(self, config: Config, dataset: Dataset, folder: Path) -> None:
        self.config, self.dataset = config, dataset
        self.folder = StudyFolder(folder)
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.storage = optuna.storages.InMemoryStorage()
        optuna.create_study(study_name="made_up", storage=self.storage)
        self.workers = MadeUpWorkers(dataset)
        self.watcher = SilentWatcher()
        self.stop: Callable[[], Any] = lambda: None

    @property
    def study(self) -> optuna.Study:
        """The study as a newly started process sees it."""
        pruner = make_pruner(self.config.search, self.config.training.num_epochs_pretrain)
        return optuna.load_study(study_name="made_up", storage=self.storage, pruner=pruner)

    def drive(self, **overrides: object) -> str:
        """Run a driver of its own; overrides are dotted keys with ``__`` for dots."""
        self.config = override_config(self.config, {k.replace("__", "."): v for k, v in overrides.items()})
        self.workers.close()
        stop = stop_in_time(self.stop, self.config.search.timeout_hours)
        return SearchDriver(self.config, self.dataset, self.study, self.folder, self.workers, self.watcher, stop).run()

    def trials(self) -> list[tuple[Any, ...]]:
        """What must not depend on when a search was killed."""
        return [
            (t.number, t.state.name, t.params, t.values, t.intermediate_values, t.user_attrs.get("failure_reason"))
            for t in self.study.get_trials()
        ]


@pytest.fixture
def made_up_search(
    tiny_config: Config, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., MadeUpSearch]:
    """Make a search on made-up trials; overrides are dotted keys with ``__`` for dots."""
    optuna.logging.disable_default_handler()
    # No power is cut here, and waiting for the disk is most of what these searches would do.
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr("chitransfer.search.driver.AttributeTable", AttributesOneByOne)
    count = iter(range(10_000))

    def make(**overrides: object) -> MadeUpSearch:
        changes = {k.replace("__", "."): v for k, v in overrides.items()}
        return MadeUpSearch(override_config(tiny_config, changes), tiny_dataset, tmp_path / f"search{next(count)}")

    return make


@pytest.fixture
def killed() -> type[BaseException]:
    """What stands for SIGKILL."""
    return Killed
