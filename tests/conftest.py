"""Fixtures shared by the tests: the real tables where they are at hand, small tables of our own elsewhere."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import settings

from tests.forests import few_trees

# A busy machine is no error: how long an example takes decides nothing.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parents[1]
STEMS = ("C", "CC", "CCC", "CCCC", "CCCCC", "c1ccccc1")
ENDS = ("", "O", "N", "C#N", "Cl", "OC")
# Folders none of whose files takes long.
SHORT_TESTS = frozenset({"chemistry", "data", "fuzz", "model", "report", "training"})


def pytest_configure() -> None:
    """Hear Ctrl-C where the tests were started in the background, which leaves it ignored: processes inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders with long tests first, so that no process is left alone with one of them at the end."""
    items.sort(key=lambda item: item.path.parent.name in SHORT_TESTS)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real tables beside the project."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real tables are not beside the project")
    return folder


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The project's root folder."""
    return ROOT


# ---------------------------------------------------------------------------------------------------------------------
# Small tables whose χ follows a formula: learnable, and read in well under a second
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tables:
    """Paths of the three tables, and what they hold."""

    stage1: Path
    chi: Path
    solubility: Path

    def overrides(self) -> dict[str, object]:
        """The paths as configuration keys."""
        return {
            "paths.dft_chi_csv": str(self.stage1),
            "paths.exp_chi_csv": str(self.chi),
            "paths.solubility_csv": str(self.solubility),
        }


def vinyl_polymers() -> list[tuple[str, int, int]]:
    """36 vinyl polymers as (SMILES, carbons, heteroatoms) of the side group."""
    polymers = []
    for stem in STEMS:
        for end in ENDS:
            group = stem + end
            carbons = sum(letter in "Cc" for letter in group.replace("Cl", ""))
            polymers.append((f"*CC(*){group}", carbons, sum(letter in "ON" for letter in group) + group.count("Cl")))
    return polymers


def chi_formula(carbons: int, heteroatoms: int, temperature: float) -> float:
    """χ(T) = A/T + B of the small tables: carbons raise it, heteroatoms lower it."""
    return (60.0 * carbons - 90.0 * heteroatoms) / temperature + 0.3 + 0.1 * carbons


def write_tables(folder: Path) -> Tables:
    """Write the small tables: 36 polymers at 3 temperatures, 15 measured χ rows of 12 polymers, 24 labels."""
    folder.mkdir(parents=True, exist_ok=True)
    polymers = vinyl_polymers()
    stage1 = [
        {"SMILES": smiles, "chi": chi_formula(c, h, T), "temp": T}
        for smiles, c, h in polymers
        for T in (298.15, 330.0, 360.0)
    ]
    chi = [
        {"SMILES": smiles, "chi": chi_formula(c, h, 310.0) + 0.05 * (-1) ** i, "temp": 310.0}
        for i, (smiles, c, h) in enumerate(polymers[::3])
    ]
    chi += [{**row, "chi": float(row["chi"]) + 0.02, "temp": 340.0} for row in chi[:3]]
    labels = [
        {"SMILES": smiles, "soluble": int(3 * h >= c) if i % 7 else 1 - int(3 * h >= c)}
        for i, (smiles, c, h) in enumerate(polymers)
        if i % 3
    ]
    tables = Tables(folder / "computed.csv", folder / "measured.csv", folder / "soluble.csv")
    for path, rows in ((tables.stage1, stage1), (tables.chi, chi), (tables.solubility, labels)):
        pd.DataFrame(rows).to_csv(path, index=False)
    return tables


TINY_SPACE = {
    "latent_dim": {"key": "model.encoder_latent_dim", "type": "categorical", "choices": [4, 8]},
    "encoder_hidden": {"key": "model.encoder_hidden_dims", "type": "categorical", "choices": ["16", "16_8"]},
    "encoder_dropout": {"key": "model.encoder_dropout", "type": "float", "low": 0.0, "high": 0.3},
    "lr_pretrain": {"key": "training.lr_pretrain", "type": "log", "low": 1e-3, "high": 1e-2},
}


def tiny_overrides(tables: Tables, folder: Path) -> dict[str, object]:
    """Overrides that make a search of a few trials take a second or two."""
    return {
        **tables.overrides(),
        "paths.results_dir": str(folder / "results"),
        "paths.cache_dir": str(folder / "cache"),
        "chem.fingerprint_bits": 64,
        "model.encoder_latent_dim": 8,
        "model.encoder_hidden_dims": [16],
        "model.chi_head_hidden_dim": 8,
        "model.solubility_head_hidden_dim": 8,
        "training.device": "cpu",
        "training.num_threads": 1,
        "training.num_epochs_pretrain": 4,
        "training.batch_size_dft": 16,
        "training.stage2_epochs": 3,
        "search.pruner": "none",
        "cv.n_cv_folds": 3,
        "cv.n_cv_repeats": 2,
        "cv.random_forest": False,
        "search.n_trials": 3,
        "search.n_startup_trials": 2,
        "search.space": {name: dict(parameter) for name, parameter in TINY_SPACE.items()},
    }


@pytest.fixture(scope="session")
def polymers() -> list[tuple[str, int, int]]:
    """The polymers of the small tables: SMILES, carbons and heteroatoms of the side group."""
    return vinyl_polymers()


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    """The small tables, in this test's own folder."""
    return write_tables(tmp_path / "tables")


@pytest.fixture
def tiny(tables: Tables, tmp_path: Path) -> dict[str, object]:
    """Overrides of a search of seconds on the small tables, results in this test's own folder."""
    return tiny_overrides(tables, tmp_path)


@pytest.fixture
def tiny_config(tiny: dict[str, object]) -> Any:
    """The same as a resolved configuration."""
    from chitransfer.config import load_config

    return load_config(None, tiny)


@pytest.fixture
def tiny_yaml(tiny: dict[str, object], tmp_path: Path) -> Path:
    """The same as a file for ``--config``."""
    from chitransfer.config import dump_config, load_config

    path = tmp_path / "tiny.yaml"
    path.write_text(dump_config(load_config(None, tiny)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def shared_tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny configuration in a folder of the whole session, for tests that only read."""
    from chitransfer.config import load_config

    folder = tmp_path_factory.mktemp("tiny")
    return load_config(None, tiny_overrides(write_tables(folder / "tables"), folder))


@pytest.fixture(scope="session")
def tiny_dataset(shared_tiny_config: Any) -> Any:
    """The small tables as a `Dataset`; tests must not change it."""
    from chitransfer.training.settings import read_dataset

    dataset = read_dataset(shared_tiny_config)
    for features in (dataset.polymer_features, dataset.solvent_features):
        features.data.flags.writeable = False
    for rows in (dataset.stage1, dataset.chi, dataset.solubility):
        for array in (rows.structure, rows.solvent, rows.polymer, rows.temperature, rows.value):
            array.flags.writeable = False
    return dataset


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `chitransfer` in this process: exit code, standard output, standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        from chitransfer.cli import main

        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run


@dataclass(frozen=True)
class FinishedSearch:
    """A search of six trials that ran to its end through the command line; tests must not change its folder."""

    folder: Any
    config: Any
    config_path: Path
    printed: str


@pytest.fixture(scope="session")
def finished_search(tmp_path_factory: pytest.TempPathFactory) -> FinishedSearch:
    """One whole search for all tests that look at what a search leaves behind."""
    import contextlib
    import io

    from chitransfer.cli import main
    from chitransfer.config import dump_config, load_config
    from chitransfer.search.study_folder import StudyFolder

    root = tmp_path_factory.mktemp("finished")
    further = {"search.n_trials": 6, "search.study_name": "done", "cv.random_forest": True}
    config = load_config(None, {**tiny_overrides(write_tables(root / "tables"), root), **further})
    path = root / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    printed = io.StringIO()
    with few_trees(), contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as stop:
        main(["search", "--config", str(path)])
    assert stop.value.code == 0
    folder = StudyFolder((root / "results" / "hparam_search" / "done").resolve())
    return FinishedSearch(folder, config, path, printed.getvalue())


@pytest.fixture(scope="session")
def make_search() -> Callable[..., tuple[int, Any]]:
    """Run a whole search in this process without figures; returns the exit code and the study's folder."""

    def search(overrides: Mapping[str, object], *, resume: Any = None, draw: Any = None) -> tuple[int, Any]:
        from chitransfer.config import load_config
        from chitransfer.console import make_console
        from chitransfer.search.run import run_search
        from chitransfer.search.study_folder import StudyFolder

        config = load_config(None, overrides)
        draw = draw or (lambda study, reference, folder: None)
        with few_trees():
            code = run_search(config, make_console(quiet=True), resume=resume, draw=draw)
        if resume is not None:
            return code, resume
        root = Path(config.paths.results_dir) / "hparam_search"
        (database,) = root.glob("*/study.db")
        return code, StudyFolder(database.parent.resolve())

    return search


@pytest.fixture
def copy_study(tmp_path: Path) -> Callable[[Any], Any]:
    """Copy a study into this test's own folder, which may then do to it what it likes; returns the copy."""

    def copy(study: Any) -> Any:
        target = tmp_path / "results" / "hparam_search" / study.path.name
        return type(study)(Path(shutil.copytree(study.path, target)).resolve())

    return copy


@pytest.fixture(scope="session")
def fork_server() -> Any:
    """Processes that start in a moment, the slow imports being made once; for what must be killed or signalled."""
    from forking import CONTEXT

    return CONTEXT


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(20250119)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations `run_search` was called with, instead of running it."""
    seen: list[Any] = []

    def remember(config: Any, console: object, **options: object) -> int:
        seen.append(config)
        return 0

    monkeypatch.setattr("chitransfer.search.run.run_search", remember)
    return seen
