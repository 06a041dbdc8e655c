"""One outer fold of a comparison: searches on its training polymers, then every candidate on its test polymers.

Called by `evidence.compare`. Completed work is on disk, so a comparison killed at any point resumes there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from scipy.special import expit

from chitransfer.config import Config, override_config
from chitransfer.data.assemble import Dataset, Rows
from chitransfer.data.subsets import without_polymers
from chitransfer.errors import StudyError
from chitransfer.evidence.baselines import BASELINES, Prediction, TaskData, classify_by_chi, correct_affinely
from chitransfer.evidence.overtuning import examine_study
from chitransfer.evidence.verdict import ROWS
from chitransfer.files import write_csv, write_json
from chitransfer.model.network import TransferNetwork, chi_at, inverse_temperature
from chitransfer.processors import use_threads
from chitransfer.progress import Say
from chitransfer.search.contract import make_contract
from chitransfer.search.driver import SearchDriver, stop_in_time
from chitransfer.search.reevaluate import reevaluate_top
from chitransfer.search.results import read_standing, write_results
from chitransfer.search.run import open_study
from chitransfer.search.space import settle_pruner, to_overrides
from chitransfer.search.study_folder import StudyFolder
from chitransfer.search.watch import TrialCounter
from chitransfer.search.workers import InProcessWorkers, wait_for_left_behind
from chitransfer.seeds import derive_seed
from chitransfer.training.crossval import choose_thresholds, make_folds
from chitransfer.training.finetune import calibrate_solubility, fit_ensemble
from chitransfer.training.inputs import PairTable, group_by_pair
from chitransfer.training.packed import carry
from chitransfer.training.settings import (
    build_stage1_data,
    network_shape,
    resolve_device,
    stage1_settings,
    stage2_settings,
)
from chitransfer.training.stage1 import Stage1Run, predict_coefficients
from chitransfer.training.stage2 import fit_members
from chitransfer.training.tasks import Stage2Data, Stage2Settings, resolve_positive_label

PROTOCOLS = ("known chemistry", "new chemistry")
SCRATCH_EPOCHS = 100
# Rows with a model as made by `chitransfer finetune`, and the rows whose parameters they use.
FULL_MODELS = {"default_full": "default", "transfer_full": "transfer_best"}


@dataclass(frozen=True)
class OuterFold:
    """One outer fold of one protocol: its files, and which polymers it tests.

    Attributes
    ----------
    test
        Indices into `Dataset.polymers`.
    """

    path: Path
    protocol: str
    number: int
    test: np.ndarray

    @property
    def transfer_study(self) -> StudyFolder:
        """The inner search by the transfer objective."""
        return StudyFolder(self.path / "transfer_search")

    @property
    def random_study(self) -> StudyFolder:
        """The inner random search with the same budget."""
        return StudyFolder(self.path / "random_search")

    @property
    def done(self) -> Path:
        """Written when the fold is complete."""
        return self.path / "done.json"

    def predictions(self, row: str, kind: str) -> Path:
        """Test predictions of one row of the table, for ``chi`` or ``solubility``."""
        return self.path / "predictions" / f"{row}_{kind}.csv"

    def stage1_mae(self, row: str) -> list[float]:
        """Stage 1 validation MAE of each Stage 1 run of a completed row."""
        found = json.loads((self.path / "predictions" / f"{row}.json").read_text(encoding="utf-8"))
        return [float(value) for value in found["stage1_mae"]]


def search_inside(config: Config, dataset: Dataset, folder: StudyFolder, say: Say, what: str) -> optuna.Study:
    """Run, resume or just open a whole search on a dataset in memory.

    Raises
    ------
    StudyError
        As in `open_study` and `SearchDriver.run`, or time ran out before any trial was complete.
    """
    optuna.logging.disable_default_handler()
    config = settle_pruner(config, dataset)
    study = open_study(folder, config, make_contract(config, dataset), is_new=not folder.database.exists())
    if (folder.path / "done.json").is_file() and read_standing(study).best is not None:
        return study
    workers = InProcessWorkers(config, dataset)
    try:
        watcher = TrialCounter(say, what, config.search.n_trials)
        stop_requested = stop_in_time(lambda: None, config.search.timeout_hours)
        reason = SearchDriver(config, dataset, study, folder, workers, watcher, stop_requested).run()
        if reason == "finished":
            reason = reevaluate_top(config, dataset, study, folder, workers, stop_requested)
    finally:
        workers.close()
    # This process itself trains next.
    wait_for_left_behind(config.search.trial_timeout_minutes)
    if read_standing(study).best is None:
        hours = f"{config.search.timeout_hours:g} h (search.timeout_hours)"
        raise StudyError(
            f"{what}: no trial was complete after {hours}. The same command continues for as long again; if a single "
            "trial takes longer than that, start with more hours under another --name"
        )
    n_trials = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
    if reason == "timeout":
        say(f"{what}: WARNING: ended by search.timeout_hours after {n_trials} of {config.search.n_trials} trials")
    write_results(folder, study)
    write_json(folder.path / "done.json", {"n_trials": n_trials, "reason": reason})
    return study


def run_outer_fold(config: Config, dataset: Dataset, fold: OuterFold, n_seeds: int, say: Say) -> None:
    """Search inside the training polymers and write every row's test predictions."""
    new_chemistry = fold.protocol == PROTOCOLS[1]
    inner = without_polymers(dataset, fold.test, from_stage1=new_chemistry)
    what = f"{fold.protocol}, outer fold {fold.number + 1}"
    # The rarer class may differ between all polymers and the training polymers: searches and scores must use the same
    # one.
    positive = "soluble" if resolve_positive_label(dataset.solubility, config.solubility.positive) else "insoluble"
    # Each outer fold has a search with its own seed, so that chance effects are independent.
    own = override_config(
        config, {"seed": derive_seed(config.seed, "outer", fold.number), "solubility.positive": positive}
    )
    study = search_inside(own, inner, fold.transfer_study, say, f"{what}, transfer search")
    random = override_config(own, {"search.sampler": "random", "search.reevaluate_top": 0})
    random_study = search_inside(random, inner, fold.random_study, say, f"{what}, random search")
    candidates = choose_candidates(own, study, random_study, fold, lambda line: say(f"{what}: {line}"))
    write_json(fold.path / "candidates.json", candidates)
    tester = _Tester(own, dataset, fold, new_chemistry)
    done: dict[str, str] = {}
    for row, overrides in candidates.items():
        same = done.setdefault(repr(sorted(overrides.items())), row)
        tester.test_candidate(row, overrides, n_seeds, None if same == row else same)
        say(f"{what}: {ROWS[row]} tested")
    for row in FULL_MODELS:
        tester.test_full_model(row, candidates[FULL_MODELS[row]])
        say(f"{what}: {ROWS[row]} tested")
    tester.test_scratch(n_seeds)
    tester.test_baselines()
    say(f"{what}: baselines tested")


def choose_candidates(
    config: Config, study: optuna.Study, random_study: optuna.Study, fold: OuterFold, say: Say
) -> dict[str, dict[str, object]]:
    """Configuration overrides of the rows chosen by a search, by dotted key; none for the default configuration.

    If the guard cannot correct the search for selection bias, as with a single polymer in a class, it chooses the best.
    """
    standing, by_chance = read_standing(study), read_standing(random_study)
    reevaluated = override_config(config, {"search.select": "reevaluated"})
    try:
        found = examine_study(study, fold.transfer_study, reevaluated)
    except StudyError as error:
        say(f"WARNING: {error}")
        found = None
    by_number = {trial.number: trial for trial in standing.ranked}
    best = standing.ranked[0]
    by_stage1 = min(standing.ranked, key=lambda trial: (trial.user_attrs["stage1_mae"], trial.number))
    if found is not None:
        write_json(fold.path / "overtuning.json", found.to_dict())
    chosen = {
        "stage1_best": by_stage1,
        "transfer_best": best,
        "transfer_noise_aware": best if found is None else by_number[found.chosen_trial],
        "random_best": by_chance.ranked[0],
    }
    space = config.search.space
    return {"default": {}} | {row: to_overrides(trial.params, space, trial.user_attrs) for row, trial in chosen.items()}


class _Tester:
    """Trains on everything but the test polymers and writes the predictions for the test polymers."""

    def __init__(self, config: Config, dataset: Dataset, fold: OuterFold, new_chemistry: bool) -> None:
        self.config, self.dataset, self.fold, self._new_chemistry = config, dataset, fold, new_chemistry
        self.label = resolve_positive_label(dataset.solubility, config.solubility.positive)
        self.stage1 = build_stage1_data(
            config, dataset, resolve_device(config.training.device), fold.test if new_chemistry else None
        )
        self.stage2 = Stage2Data.build(
            dataset,
            self.stage1.features,
            self.stage1.chi_scaler,
            positive_label=self.label,
            T_ref=config.T_ref_K,
        )
        self.train_chi = self._training(dataset.chi)
        self.train_solubility = self._training(dataset.solubility)
        self._pretrained: dict[str, tuple[TransferNetwork, float]] = {}
        use_threads(config.training.num_threads)

    def _training(self, rows: Rows | None) -> np.ndarray:
        return np.zeros(0, dtype=bool) if rows is None else ~np.isin(rows.polymer, self.fold.test)

    def test_candidate(self, row: str, overrides: dict[str, object], n_seeds: int, same: str | None) -> None:
        """Stage 1 and quick Stage 2 with the given settings, or a copy of a row with the same ones."""
        if self._is_done(row):
            return
        if same is not None:
            for kind in ("chi", "solubility"):
                if self.fold.predictions(same, kind).is_file():
                    write_csv(self.fold.predictions(row, kind), pd.read_csv(self.fold.predictions(same, kind)))
            self._finish(row, self.fold.stage1_mae(same))
            return
        config = override_config(self.config, overrides)
        settings = stage2_settings(config, config.training.stage2_epochs)
        self._write(row, [self._fine_tune(*self._pretrain(config, seed), settings, seed) for seed in range(n_seeds)])

    def _pretrain(self, config: Config, seed: int) -> tuple[TransferNetwork, float]:
        """Stage 1's network and its validation MAE; trained once for all rows with the same parameters."""
        shape, settings = network_shape(config, self.stage1.features.n_features), stage1_settings(config)
        known = self._pretrained.get(key := repr((shape, settings, seed)))
        if known is None:
            run = Stage1Run(self.stage1, shape, settings, derive_seed(self.config.seed, "outer test", seed))
            carry([run], config.training.num_epochs_pretrain)
            known = self._pretrained[key] = run.best_network(), run.best_mae
        return known

    def test_full_model(self, row: str, overrides: dict[str, object]) -> None:
        """The model `chitransfer finetune` makes from one Stage 1: a whole network for every fold of training polymers.

        Probability and threshold come from the members that did not learn from a polymer, as in the model itself.
        """
        if self._is_done(row):
            return
        config = override_config(self.config, {**overrides, "training.freeze_encoder_stage2": False})
        network, stage1_mae = self._pretrain(config, 0)
        learned = np.setdiff1d(self.dataset.measured_polymers(), self.fold.test)
        folds = make_folds(
            self.dataset, config.cv.n_cv_folds, 1, derive_seed(self.config.seed, "outer full folds"), learned
        )
        ensemble = fit_ensemble(
            [network],
            replace(self.stage2, computed=self._computed()),
            self.dataset,
            folds,
            stage2_settings(config, config.training.num_epochs_finetune, is_full=True),
            derive_seed(self.config.seed, "outer full stage2"),
            lambda what, done, total: None,
        )
        found: dict[str, Any] = {"stage1_mae": stage1_mae}
        if ensemble.chi is not None:
            found["chi"] = Prediction(ensemble.chi.left_out())
        if ensemble.logits is not None and self.dataset.solubility is not None:
            positive = self.dataset.solubility.value == self.label
            seed = derive_seed(self.config.seed, "outer calibration")
            calibration, threshold = calibrate_solubility(ensemble.logits, positive, seed)
            logit = ensemble.logits.left_out()
            probability = expit(logit) if calibration is None else calibration.probability(logit)
            found["solubility"] = Prediction(probability, threshold)
        self._write(row, [found])

    def _computed(self) -> PairTable:
        """The computed χ that whole networks rehearse: all that Stage 1 may use."""
        rows = self.dataset.stage1
        seen = ~np.isin(rows.polymer, self.fold.test) if self._new_chemistry else np.ones(len(rows), dtype=bool)
        device = self.stage1.features.device
        return group_by_pair(rows, seen, self.stage1.chi_scaler, self.config.T_ref_K, device)

    def test_scratch(self, n_seeds: int) -> None:
        """The default network without Stage 1, trained entirely at the heads' learning rate."""
        if self._is_done("no_stage1"):
            return
        quick = stage2_settings(self.config, max(SCRATCH_EPOCHS, self.config.training.stage2_epochs))
        settings = replace(quick, freeze_encoder=False, lr_encoder=quick.lr)
        frames = []
        for seed in range(n_seeds):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(self.config.seed, "scratch", seed))
                network = TransferNetwork(network_shape(self.config, self.stage1.features.n_features))
            network = network.to(self.stage1.features.device)
            frames.append(self._fine_tune(network, float("nan"), settings, seed))
        self._write("no_stage1", frames)

    def _fine_tune(
        self, network: TransferNetwork, stage1_mae: float, settings: Stage2Settings, seed: int
    ) -> dict[str, Any]:
        members = fit_members(
            network,
            self.stage2,
            self.train_chi[None],
            self.train_solubility[None],
            settings,
            derive_seed(self.config.seed, "outer stage2", seed),
        )
        found: dict[str, Any] = {"stage1_mae": stage1_mae}
        if self.dataset.chi is not None:
            task = self.stage2.chi
            coefficients, _ = members.predict(self.stage2.features, task.structure, task.solvent)
            standardised = chi_at(coefficients, task.tau)[0].cpu().numpy()
            found["chi"] = Prediction(self.stage2.chi_scaler.inverse(standardised))
        # A head that was not trained predicts nothing.
        if self.dataset.solubility is not None and settings.lambda_sol > 0:
            task = self.stage2.solubility
            _, logits = members.predict(self.stage2.features, task.structure, task.solvent)
            probability = torch.sigmoid(logits.double())[0].cpu().numpy()
            positive = task.target.cpu().numpy() > 0.5
            threshold = choose_thresholds(positive, probability[None], self.train_solubility[None])[0]
            found["solubility"] = Prediction(probability, float(threshold))
        return found

    def test_baselines(self) -> None:
        """The simple predictors, and Stage 1's own χ (default configuration) with a linear correction."""
        tasks = self._tasks()
        for row, (predict_chi, predict_solubility) in BASELINES.items():
            if self._is_done(row):
                continue
            found: dict[str, Any] = {}
            if predict_chi is not None and "chi" in tasks:
                found["chi"] = predict_chi(tasks["chi"], self.config.seed)
            if predict_solubility is not None and "solubility" in tasks:
                found["solubility"] = predict_solubility(tasks["solubility"], self.config.seed)
            self._write(row, [found])
        if not self._is_done("stage1_corrected"):
            network, _ = self._pretrain(self.config, 0)
            found = {}
            for kind, rows in (("chi", self.dataset.chi), ("solubility", self.dataset.solubility)):
                if rows is not None:
                    correct = correct_affinely if kind == "chi" else classify_by_chi
                    found[kind] = correct(self._stage1_chi(network, rows), tasks[kind])
            self._write("stage1_corrected", [found])

    def _tasks(self) -> dict[str, TaskData]:
        tasks = {}
        if self.dataset.chi is not None:
            tasks["chi"] = TaskData.build(self.dataset, self.dataset.chi, self.dataset.chi.value, self.train_chi)
        if self.dataset.solubility is not None:
            rows = self.dataset.solubility
            target = (rows.value == self.label).astype(float)
            tasks["solubility"] = TaskData.build(self.dataset, rows, target, self.train_solubility)
        return tasks

    def _stage1_chi(self, network: TransferNetwork, rows: Rows) -> np.ndarray:
        device = self.stage1.features.device
        structure, solvent = torch.tensor(rows.structure, device=device), torch.tensor(rows.solvent, device=device)
        tau = inverse_temperature(torch.tensor(rows.temperature), self.config.T_ref_K).float().to(device)
        coefficients = predict_coefficients(network, self.stage1.features, structure, solvent)
        return self.stage1.chi_scaler.inverse(chi_at(coefficients, tau).cpu().numpy())

    def _is_done(self, row: str) -> bool:
        return (self.fold.path / "predictions" / f"{row}.json").is_file()

    def _write(self, row: str, found: list[dict[str, Any]]) -> None:
        for kind, rows, training in (
            ("chi", self.dataset.chi, self.train_chi),
            ("solubility", self.dataset.solubility, self.train_solubility),
        ):
            frames = [
                _test_frame(rows, ~training, one[kind], kind).assign(seed=seed)
                for seed, one in enumerate(found)
                if rows is not None and kind in one
            ]
            if frames:
                write_csv(self.fold.predictions(row, kind), pd.concat(frames, ignore_index=True))
        self._finish(row, [one["stage1_mae"] for one in found if "stage1_mae" in one])

    def _finish(self, row: str, stage1_mae: list[float]) -> None:
        """Write the small file that marks a row as complete, last of all."""
        write_json(self.fold.path / "predictions" / f"{row}.json", {"stage1_mae": stage1_mae})


def _test_frame(rows: Rows, test: np.ndarray, prediction: Prediction, kind: str) -> pd.DataFrame:
    own = rows.table.rows[test].reset_index(drop=True)
    value = prediction.value[test]
    if kind == "chi":
        return own.assign(predicted_chi=value)
    return own.assign(
        probability_positive=value,
        threshold=prediction.threshold,
        called_positive=(value >= prediction.threshold).astype(int),
    )
