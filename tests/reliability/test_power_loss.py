"""Power lost between any two writes: at each of them in turn the process ends, and the study goes on from there."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from searching import SHORTEST, check_complete, comparable, go_on, read_trials

DARK = 77
N_PARTS = 8


def cut_power(fails_at: int, report: Path) -> None:
    """In the search's process: end it, with nothing cleaned up, in place of the given write.

    A write is a file moved into place or a database commit; until then a new file has a temporary name no reader opens.
    """
    import sqlalchemy

    n_writes = 0
    replace = Path.replace

    def draw(*_: object) -> None:
        nonlocal n_writes
        if n_writes == fails_at:
            os._exit(DARK)
        n_writes += 1
        if fails_at < 0:
            report.write_text(str(n_writes))

    def replace_if_powered(path: Path, target: Any) -> Path:
        draw()
        return replace(path, target)

    Path.replace = replace_if_powered  # type: ignore[method-assign,assignment]
    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", draw)


class Experiment:
    """A whole search, and searches whose power is cut."""

    def __init__(self, tiny: dict[str, object], folder: Path) -> None:
        self.folder = folder
        # Two trials of two rungs each, as small as they get: every kind of write is among them.
        self.overrides: dict[str, object] = {
            **tiny,
            **SHORTEST,
            "search.study_name": "dark",
            "search.n_trials": 2,
            "search.rungs": [1],
            "training.num_epochs_pretrain": 2,
        }
        report = folder / "n_writes"
        # Writes to the feature cache come in the first run alone: they are not counted.
        assert self.search(folder / "first", None, report) == 0
        assert self.search(folder / "whole", -1, report) == 0
        self.n_writes = int(report.read_text())
        self.expected = comparable(read_trials(self.study(folder / "whole") / "study.db"))

    @staticmethod
    def study(root: Path) -> Path:
        return root / "hparam_search" / "dark"

    def search(self, root: Path, fails_at: int | None, report: Path) -> int:
        overrides = {**self.overrides, "paths.results_dir": str(root)}
        prepare = None if fails_at is None else partial(cut_power, fails_at, report)
        process = go_on(overrides, self.study(root), prepare)
        process.join(120)
        return int(process.exitcode if process.exitcode is not None else -1)

    def lose_power_at(self, place: int) -> None:
        root = self.folder / f"lost{place}"
        assert self.search(root, place, root) == DARK
        assert self.search(root, None, root) == 0
        assert comparable(read_trials(self.study(root) / "study.db")) == self.expected, f"lost at write {place}"
        check_complete(self.study(root), 2)


def test_power_lost_at_some_writes(tiny: dict[str, object], tmp_path: Path) -> None:
    experiment = Experiment(tiny, tmp_path)
    assert experiment.n_writes > 40
    for place in (1, experiment.n_writes // 2):
        experiment.lose_power_at(place)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(N_PARTS))
def test_power_lost_at_every_write(tiny: dict[str, object], tmp_path: Path, part: int) -> None:
    experiment = Experiment(tiny, tmp_path)
    places = range(part * experiment.n_writes // N_PARTS, (part + 1) * experiment.n_writes // N_PARTS)
    for place in places:
        experiment.lose_power_at(place)
    print(f"power lost at each of the writes {places.start} to {places.stop - 1} of {experiment.n_writes}")
