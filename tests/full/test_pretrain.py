"""Stage 1 in full: files, metrics that follow from the predictions, resuming, and polymers that stay unseen."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from chitransfer.config import load_config, parse_set_options
from chitransfer.data.assemble import Dataset
from chitransfer.errors import CheckpointError, TrainingError
from chitransfer.model.checkpoint import Pretrained
from chitransfer.seeds import derive_seed
from chitransfer.training import pretrain
from chitransfer.training.pretrain import choose_test_polymers, load_run_config, run_pretraining
from chitransfer.training.settings import read_dataset
from tests.full.conftest import silent

MakeOverrides = Callable[[], dict[str, object]]


def test_metrics_follow_from_the_predictions_beside_them(trained: Any) -> None:
    frame = pd.read_csv(trained.pretraining / "predictions.csv")
    metrics = json.loads((trained.pretraining / "metrics.json").read_text())
    for split in ("train", "validation", "test"):
        rows = frame[frame["split"] == split]
        assert metrics[split]["n_rows"] == len(rows) > 0
        assert metrics[split]["mae"] == pytest.approx(mean_absolute_error(rows["chi"], rows["chi_predicted"]))
        assert metrics[split]["rmse"] == pytest.approx(root_mean_squared_error(rows["chi"], rows["chi_predicted"]))
        assert metrics[split]["r2"] == pytest.approx(r2_score(rows["chi"], rows["chi_predicted"]))
    assert metrics["train"]["r2"] > 0.9


def test_predictions_lie_on_their_own_line(trained: Any) -> None:
    frame = pd.read_csv(trained.pretraining / "predictions.csv")
    assert np.allclose(frame["chi_predicted"], frame["A_K"] / frame["temp"] + frame["B"], atol=1e-9)


def test_no_polymer_is_in_two_splits(trained: Any) -> None:
    frame = pd.read_csv(trained.pretraining / "predictions.csv")
    assert (frame.groupby("SMILES")["split"].nunique() == 1).all()
    checkpoint = Pretrained.load(trained.pretraining / "checkpoints" / "best_model.pt")
    assert not set(checkpoint.test_polymers) & set(checkpoint.validation_polymers)
    assert checkpoint.test_polymers


def test_folder_holds_what_the_guide_names(trained: Any) -> None:
    assert trained.pretraining.name.startswith("dft_pretrain_")
    names = {str(path.relative_to(trained.pretraining)) for path in trained.pretraining.rglob("*") if path.is_file()}
    assert {"checkpoints/best_model.pt", "checkpoints/final_model.pt", "config.yaml", "environment.json"} <= names
    assert "checkpoints/state.pt" not in names
    assert load_config(trained.pretraining / "config.yaml") == trained.config


def test_no_password_is_written(make_overrides: MakeOverrides, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["pretrain", "--set", "search.storage=postgresql://ann:s3cret@db/chi?password=s3cret&sslmode=require"]
    monkeypatch.setattr("sys.argv", ["chitransfer", *words])
    overrides = make_overrides() | {"training.num_epochs_pretrain": 1}
    folder = run_pretraining(load_config(None, overrides | parse_set_options(words[2:])), silent, silent).path
    for path in folder.rglob("*"):
        assert not path.is_file() or b"s3cret" not in path.read_bytes(), path
    environment = json.loads((folder / "environment.json").read_text())
    masked = "search.storage=postgresql://ann:***@db/chi?password=***&sslmode=require"
    assert environment["command"] == ["chitransfer", "pretrain", "--set", masked]
    assert {"chitransfer", "python", "packages", "n_cpus"} <= environment.keys()


def test_interrupted_run_goes_on_to_the_same_weights(
    make_overrides: MakeOverrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = make_overrides() | {"training.num_epochs_pretrain": 6, "model.encoder_dropout": 0.2}
    config = load_config(None, overrides)
    whole = run_pretraining(config, silent, silent)
    monkeypatch.setattr(pretrain, "SECONDS_BETWEEN_STATES", 0.0)
    calls = []

    def interrupt(what: str, done: int, total: int) -> None:
        calls.append((what, done))
        # In the second network, after some epochs were kept.
        if what == "network 2 of 2" and done == 4:
            raise KeyboardInterrupt

    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_pretraining(config, said.append, interrupt)
    folder = Path(said[-1].split("--resume ")[1])
    assert (folder / "checkpoints" / "state.pt").is_file()
    resumed = run_pretraining(load_run_config(folder, {}), said.append, silent, resume=folder)
    test = json.loads(resumed.metrics.read_text())["test"]
    assert f"computed χ of {test['n_polymers']} test polymers: MAE {test['mae']:.4f}" in said
    mine, theirs = Pretrained.load(resumed.best_model), Pretrained.load(whole.best_model)
    for left, right in zip(mine.networks, theirs.networks, strict=True):
        for name, tensor in left.state_dict().items():
            assert tensor.equal(right.state_dict()[name]), name
    assert resumed.metrics.read_text() == whole.metrics.read_text()


@pytest.mark.parametrize(
    ("least", "n_polymers", "expected"),
    [
        (50, 10**6, r" \(the last one is kept: \d+ validation polymers are too few to choose the best epoch; "),
        (50, 1, r" \(the last one is kept: training\.min_epochs_pretrain is 50\)"),
        (1, 1, r"validation MAE [\d.]+ at epoch \d of 3$"),
    ],
)
def test_a_last_epoch_is_not_called_the_best_without_saying_why(
    make_overrides: MakeOverrides, least: int, n_polymers: int, expected: str
) -> None:
    overrides = make_overrides() | {
        "training.num_epochs_pretrain": 3,
        "training.min_epochs_pretrain": least,
        "training.min_validation_polymers": n_polymers,
    }
    said: list[str] = []
    run_pretraining(load_config(None, overrides), said.append, silent)
    assert re.search(expected, next(line for line in said if line.startswith("network 1 of")))


def test_two_processes_do_not_train_into_one_folder(make_overrides: MakeOverrides) -> None:
    overrides = make_overrides() | {"training.num_epochs_pretrain": 2}
    folders: list[Path] = []
    results = Path(str(overrides["paths.results_dir"]))

    def resume_beside(what: str, done: int, total: int) -> None:
        if what.startswith("network") and not folders:
            folders.extend(results.glob("dft_pretrain_*"))
            with pytest.raises(CheckpointError, match=f"{folders[0].name}: another process is training in this folder"):
                run_pretraining(load_run_config(folders[0], {}), silent, silent, resume=folders[0])

    folder = run_pretraining(load_config(None, overrides), silent, resume_beside)
    assert folders == [folder.path]
    assert not list(folder.path.glob("*.lock"))


def test_a_file_system_without_locks_is_named_and_nothing_is_left(
    make_overrides: MakeOverrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*words: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    overrides = make_overrides()
    with pytest.raises(CheckpointError, match=r"its file system has no file locks .*paths\.results_dir"):
        run_pretraining(load_config(None, overrides), silent, silent)
    assert not list(Path(str(overrides["paths.results_dir"])).glob("dft_pretrain_*"))


@pytest.mark.parametrize("n_computed", [0, 1])
def test_only_test_polymers_with_computed_chi_are_counted(
    make_overrides: MakeOverrides, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, n_computed: int
) -> None:
    overrides = make_overrides() | {"training.num_epochs_pretrain": 1}
    left_out = pd.read_csv(str(overrides["paths.exp_chi_csv"]))["SMILES"].unique()[:2]
    computed = pd.read_csv(str(overrides["paths.dft_chi_csv"]))
    computed[~computed["SMILES"].isin(left_out)].to_csv(tmp_path / "computed.csv", index=False)
    overrides["paths.dft_chi_csv"] = str(tmp_path / "computed.csv")

    def choose(dataset: Dataset, *words: object) -> np.ndarray:
        computed = np.unique(dataset.stage1.polymer)
        others = np.setdiff1d(np.arange(len(dataset.polymers)), computed)
        assert len(others) == len(left_out)
        return np.sort(np.concatenate([computed[:n_computed], others]))

    monkeypatch.setattr(pretrain, "choose_test_polymers", choose)
    said: list[str] = []
    run_pretraining(load_config(None, overrides), said.append, silent)
    assert [line[:30] for line in said if "test polymer" in line] == ["computed χ of 1 test polymer: "] * n_computed


def test_finished_run_is_not_resumed(trained: Any) -> None:
    with pytest.raises(TrainingError, match="finished"):
        run_pretraining(trained.config, silent, silent, resume=trained.pretraining)


def test_changed_table_is_not_resumed(make_overrides: MakeOverrides, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = make_overrides() | {"training.num_epochs_pretrain": 6}
    monkeypatch.setattr(pretrain, "SECONDS_BETWEEN_STATES", 0.0)

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("network 1") and done == 3:
            raise KeyboardInterrupt

    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_pretraining(load_config(None, overrides), said.append, interrupt)
    table = Path(str(overrides["paths.dft_chi_csv"]))
    table.write_text(table.read_text().replace("*CC(*)CO,O,298.15", "*CC(*)CO,O,299.15"))
    folder = Path(said[-1].split("--resume ")[1])
    with pytest.raises(TrainingError, match="tables or the features changed"):
        run_pretraining(load_run_config(folder, {}), silent, silent, resume=folder)


def test_resuming_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.yaml"):
        load_run_config(tmp_path, {})


def test_a_resumed_run_keeps_its_device_unless_another_is_given(trained: Any) -> None:
    assert trained.config.training.device == "cpu"
    assert load_run_config(trained.pretraining, {}) == trained.config
    assert load_run_config(trained.pretraining, {"training.device": "auto"}).training.device == "auto"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--seed", 7, "--results-dir", "elsewhere", "--device", "cpu"], "leave out --results-dir, --seed."),
        (["--set", "training.lr_pretrain=0.1", "--set", "training.num_threads=1"], "leave out training.lr_pretrain."),
        (["--config", "configs/config.yaml"], "leave out --config"),
    ],
)
def test_what_a_resumed_run_would_not_heed_is_refused(
    trained: Any, run_command: Callable[..., tuple[int, str, str]], words: list[object], named: str
) -> None:
    code, _, error = run_command("pretrain", "--resume", trained.pretraining, *words)
    assert code == 2
    assert f"an interrupted run continues with its own configuration; {named}" in " ".join(error.split())


@pytest.mark.parametrize("fraction", [0.15, 0.28, 0.35, 0.4, 0.45])
def test_the_share_of_test_polymers_is_the_one_asked_for(tiny_dataset: Dataset, fraction: float) -> None:
    measured = tiny_dataset.measured_polymers()
    for seed in range(5):
        chosen = np.intersect1d(choose_test_polymers(tiny_dataset, fraction, seed), measured)
        assert abs(len(chosen) - fraction * len(measured)) <= 1.5


@pytest.mark.parametrize("n_folds", [2, 3, 4, 5, 10, 1000])
def test_one_of_n_is_one_of_n_equal_folds(tiny_dataset: Dataset, n_folds: int) -> None:
    measured = tiny_dataset.measured_polymers()
    folds = tiny_dataset.fold_of_polymers(min(n_folds, len(measured)), derive_seed(7, "test polymers"))
    chosen = choose_test_polymers(tiny_dataset, 1.0 / n_folds, 7)
    assert np.intersect1d(chosen, measured).tolist() == np.flatnonzero(folds == 0).tolist()


def test_test_polymers_are_a_share_and_depend_on_the_seed(trained: Any) -> None:
    dataset = read_dataset(trained.config)
    chosen = choose_test_polymers(dataset, 0.2, 1)
    assert 4 <= len(chosen) <= 12
    assert len(choose_test_polymers(dataset, 0.0, 1)) == 0
    assert chosen.tolist() == choose_test_polymers(dataset, 0.2, 1).tolist()
    assert any(chosen.tolist() != choose_test_polymers(dataset, 0.2, seed).tolist() for seed in (2, 3))
