"""Stage 2 in full: an ensemble over folds, repeats and pretrained networks learns measured χ(T) and solubility.

Called by `chitransfer finetune`; writes the model that `predict` and `screen` use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chitransfer.chemistry.identities import identify_polymers
from chitransfer.chemistry.stereo import without_stereo
from chitransfer.config import Config
from chitransfer.counts import say_count
from chitransfer.data.assemble import Dataset
from chitransfer.data.table_remarks import describe_blank_cells, describe_builtin_beside_own, describe_left_out
from chitransfer.errors import CheckpointError, DataError
from chitransfer.interrupts import INTERRUPTS
from chitransfer.model.calibration import ProbabilityCalibration
from chitransfer.model.checkpoint import Pretrained, TrainedModel, check_recipe
from chitransfer.model.domain import ApplicabilityDomain, Neighbours
from chitransfer.model.members import FittedMembers
from chitransfer.model.network import TransferNetwork
from chitransfer.processors import use_threads
from chitransfer.progress import NamedProgress, Say
from chitransfer.seeds import derive_seed
from chitransfer.training.conformal import fit_chi_interval, fit_probability
from chitransfer.training.crossval import fold_of_rows, training_masks
from chitransfer.training.forest import GROWING, leave_out
from chitransfer.training.handover import describe_other_table, hand_over
from chitransfer.training.inputs import FeatureTable, group_by_pair
from chitransfer.training.metrics import best_f1_threshold
from chitransfer.training.model_report import write_model_report
from chitransfer.training.out_of_fold import TaskPredictions, predict_chi, predict_logits
from chitransfer.training.run_folder import RunFolder, describe_provenance
from chitransfer.training.settings import make_study_folds, read_dataset, resolve_device, stage2_settings
from chitransfer.training.stage2 import fit_members
from chitransfer.training.tasks import Stage2Data, Stage2Settings, resolve_positive_label


@dataclass(frozen=True)
class Ensemble:
    """A fine-tuned ensemble and what it predicts for every measured row.

    Attributes
    ----------
    Members, one group per pretrained network.
        Members by pretrained network.
    folds
        Fold of every polymer, (n_repeats, n_polymers); −1 for polymers no member learned from.
    chi, logits
        χ at each row's temperature, and logits of the positive class; ``None`` without such a table. Logits are also
        ``None`` where solubility was not learned (its loss has weight 0).
    A
        A (K) in χ(T) = A/T + B for the χ rows.
    """

    groups: list[FittedMembers]
    folds: np.ndarray
    chi: TaskPredictions | None
    A: TaskPredictions | None
    logits: TaskPredictions | None


def locate_pretrained(patterns: Sequence[str]) -> tuple[Path, int]:
    """The newest file that the paths or glob patterns match, and the number of matching files.

    Raises
    ------
    CheckpointError
        A pattern matches nothing or is invalid.
    """
    found = {path for pattern in patterns for path in _matching_files(pattern)}
    return max(found, key=lambda one: (one.stat().st_mtime_ns, str(one))), len(found)


def _matching_files(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_file():
        return [path]
    root, parts = (Path(path.anchor), path.parts[1:]) if path.is_absolute() else (Path(), path.parts)
    try:
        found = [one for one in root.glob(str(Path(*parts))) if one.is_file()] if parts else []
    except ValueError as error:
        raise CheckpointError(
            f"{pattern}: not a pattern ({error}); ** stands for folders, as in 'results/**/best_model.pt'"
        ) from error
    if not found:
        raise CheckpointError(
            f"{pattern}: no such checkpoint; run `chitransfer pretrain` first, then give "
            "'results/dft_pretrain_*/checkpoints/best_model.pt'"
        )
    return found


def run_finetuning(config: Config, pretrained: Sequence[str], say: Say, progress: NamedProgress) -> RunFolder:
    """Fine-tune, calibrate, and write the model with everything measured on it.

    Parameters
    ----------
    pretrained
        Paths or glob patterns of Stage 1 checkpoints; the newest match is taken.

    Raises
    ------
    ChitransferError
        Configuration, tables or checkpoint cannot be used, or a loss became NaN.
    """
    path, n_found = locate_pretrained(pretrained)
    say(f"Stage 1 from {path}" + (f" (the newest of {n_found})" if n_found > 1 else ""))
    stage1, config, notes = hand_over(Pretrained.load(path), config)
    for note in notes:
        say(note)
    use_threads(config.training.num_threads)
    device = resolve_device(config.training.device)
    dataset = _read_tables(config, path, stage1, say, progress)
    learned = learnable_polymers(dataset, stage1.test_polymers)
    n_measured, n_folds = len(dataset.measured_polymers()), config.cv.n_cv_folds
    _refuse_too_few(len(learned), n_measured, n_folds)
    positive_label = resolve_positive_label(dataset.solubility, config.solubility.positive)
    data = place_rows(dataset, stage1, positive_label, device)
    folds = make_study_folds(config, dataset, learned)
    settings = stage2_settings(config, config.training.num_epochs_finetune, is_full=True)
    folder = RunFolder.create(config.paths.results_dir, "multitask")
    seed = derive_seed(config.seed, "full stage2")
    try:
        folder.write_start(config, dataset)
        say(
            f"Stage 2: {say_count(len(learned), 'polymer')} for training, {n_measured - len(learned)} kept for the "
            f"test; {say_count(len(stage1.networks), 'network')} × {say_count(len(folds), 'repeat')} × {n_folds} "
            f"folds, encoder {'frozen' if settings.freeze_encoder else 'fine-tuned'}; results in {folder.path}"
        )
        forest = None
        if config.cv.random_forest:
            say(GROWING)
            # As in a search: the first shuffle of the folds.
            forest = leave_out(dataset, folds[0], positive_label, derive_seed(config.seed, "random forest"))
        ensemble = fit_ensemble(stage1.networks, data, dataset, folds, settings, seed, progress)
        model = calibrate(
            ensemble,
            stage1,
            dataset,
            positive_label,
            derive_seed(config.seed, "calibration"),
            describe_provenance(config, dataset, pretrained=stage1.provenance),
        )
        model.save(folder.best_model)
    # Whatever the cause, running out of memory included: a folder without a model is useless.
    except BaseException as error:
        folder.discard()
        if isinstance(error, INTERRUPTS):
            say(
                f"interrupted; fine-tuning cannot be resumed: start it again ({folder.path} contained no model and "
                "was removed)"
            )
        raise
    for line in write_model_report(folder, dataset, model, ensemble.chi, ensemble.A, ensemble.logits, forest):
        say(line)
    # Measured polymers of both kinds lie in all folds; those with χ need not.
    if model.domain.chi is not None and model.domain.chi.smallest_similarity >= 1.0:
        say(
            "warning: `chi_in_domain` is true only for polymers of similarity 1 to one with measured χ: "
            "cross-validation says nothing about less similar ones"
        )
    say(f"Stage 2 is done: {folder.best_model}")
    return folder


def _read_tables(config: Config, path: Path, stage1: Pretrained, say: Say, progress: NamedProgress) -> Dataset:
    """The tables, without solubility where its loss has weight 0 beside χ; tells the user what matters about them.

    Raises
    ------
    DataError
        A table cannot be used.
    CheckpointError
        `stage1`, which was read from `path`, has other features.
    """
    dataset = read_dataset(config, progress)
    for describe in (describe_builtin_beside_own, describe_left_out, describe_blank_cells):
        for line in describe(dataset.tables):
            say(line)
    for line in describe_other_table(stage1, dataset.stage1.table):
        say(line)
    check_recipe(path, stage1.scales.recipe, dataset.recipe)
    if config.training.lambda_sol == 0 and dataset.solubility is not None and dataset.chi is not None:
        dataset = replace(dataset, solubility=None)
        say(
            "warning: training.lambda_sol is 0: the model does not learn solubility and gives no P(soluble); the "
            "solubility table is ignored"
        )
    if config.training.lambda_exp == 0 and dataset.chi is not None:
        say("warning: training.lambda_exp is 0: the model does not learn measured χ, which is only used to test it")
    return dataset


def _refuse_too_few(n_learned: int, n_measured: int, n_folds: int) -> None:
    """Refuse folds for which there are enough polymers only if the test polymers are counted."""
    if n_learned < n_folds <= n_measured:
        raise DataError(
            f"of {n_measured} measured polymers {n_measured - n_learned} are kept for the test, and "
            f"{n_learned} are too few for {n_folds} folds; lower cv.n_cv_folds, or training.test_fraction and "
            "pretrain again"
        )


def learnable_polymers(dataset: Dataset, test_polymers: tuple[str, ...]) -> np.ndarray:
    """Indices of the measured polymers that are not held out as test polymers, (n_learned,) int64.

    Raises
    ------
    DataError
        All are test polymers.
    CheckpointError
        RDKit no longer reads a test polymer.
    """
    measured = dataset.measured_polymers()
    learned = measured[~_are_kept(dataset, test_polymers)[measured]]
    if len(learned) == 0:
        raise DataError("every measured polymer is a test polymer; lower training.test_fraction and pretrain again")
    return learned


def _are_kept(dataset: Dataset, test_polymers: tuple[str, ...]) -> np.ndarray:
    """Whether a polymer, or one that differs from it only in stereo, is held out for the test, (n_polymers,) bool.

    Raises
    ------
    CheckpointError
        RDKit no longer reads a test polymer.
    """
    known = set(test_polymers).intersection(dataset.polymers)
    kept = {without_stereo(name) for name in known}
    # Names missing from the tables may be another RDKit version's spelling.
    foreign = sorted(set(test_polymers) - known)
    for name, found in zip(foreign, identify_polymers(foreign), strict=True):
        if found.key is None:
            raise CheckpointError(
                f"the test polymer {name} of the Stage 1 checkpoint cannot be read ({found.reason}), so it cannot be "
                "kept out of Stage 2; pretrain again"
            )
        kept.add(without_stereo(found.key))
    return np.array([without_stereo(name) in kept for name in dataset.polymers], dtype=bool)


def place_rows(dataset: Dataset, stage1: Pretrained, positive_label: int, device: torch.device) -> Stage2Data:
    """The Stage 2 rows on a device, scaled as in Stage 1's checkpoint, and the Stage 1 rows for rehearsal.

    Raises
    ------
    DataError
        Every computed χ belongs to a test polymer.
    """
    scales = stage1.scales
    features = FeatureTable.build(dataset, scales.polymer, scales.solvent, device)
    data = Stage2Data.build(dataset, features, scales.chi, positive_label=positive_label, T_ref=scales.T_ref)
    seen = ~_are_kept(dataset, stage1.test_polymers)[dataset.stage1.polymer]
    if not seen.any():
        raise DataError(
            f"{dataset.stage1.table.source}: every polymer is a test polymer of the Stage 1 checkpoint, so Stage 1 "
            "was not trained on this table; set paths.dft_chi_csv to the one it was trained on, or pretrain again"
        )
    return replace(data, computed=group_by_pair(dataset.stage1, seen, scales.chi, scales.T_ref, device))


def fit_ensemble(
    networks: Sequence[TransferNetwork],
    data: Stage2Data,
    dataset: Dataset,
    folds: np.ndarray,
    settings: Stage2Settings,
    seed: int,
    progress: NamedProgress,
) -> Ensemble:
    """Fine-tune every pretrained network under every fold of every repeat.

    Parameters
    ----------
    folds
        From `make_folds`, (n_repeats, n_polymers).
    seed
        Fixes new weights, batch order and dropout.
    """
    n_folds = int(folds.max()) + 1
    fold_of_chi, fold_of_solubility = (fold_of_rows(folds, rows) for rows in (dataset.chi, dataset.solubility))
    masks = [training_masks(fold, n_folds) for fold in (fold_of_chi, fold_of_solubility)]
    device = data.features.device
    groups = []
    n_networks = len(networks)
    for number, network in enumerate(networks):

        def count(epoch: int, number: int = number) -> None:
            progress("fine-tuning", number * settings.n_epochs + epoch, n_networks * settings.n_epochs)

        on_device = network.to(device)
        groups.append(
            fit_members(
                on_device, data, masks[0], masks[1], settings, derive_seed(seed, "network", number), after_epoch=count
            )
        )
    chi = A = logits = None
    if dataset.chi is not None:
        chi, A = (TaskPredictions(values, fold_of_chi, dataset.chi.polymer) for values in predict_chi(groups, data))
    # A head that was not trained predicts nothing.
    if dataset.solubility is not None and settings.lambda_sol > 0:
        logits = TaskPredictions(predict_logits(groups, data), fold_of_solubility, dataset.solubility.polymer)
    return Ensemble(groups, folds, chi, A, logits)


def calibrate(
    ensemble: Ensemble,
    stage1: Pretrained,
    dataset: Dataset,
    positive_label: int,
    seed: int,
    provenance: dict[str, Any],
) -> TrainedModel:
    """The ensemble with intervals, calibrated probability, threshold and applicability, all from left-out polymers."""
    interval = probability = None
    threshold = 0.5
    if ensemble.chi is not None and dataset.chi is not None and ensemble.chi.learned.any():
        own = ensemble.chi.learned
        residual = dataset.chi.value - ensemble.chi.left_out()
        interval = fit_chi_interval(residual[own], ensemble.chi.left_out_spread()[own], dataset.chi.polymer[own])
    if ensemble.logits is not None and dataset.solubility is not None:
        probability, threshold = calibrate_solubility(ensemble.logits, dataset.solubility.value == positive_label, seed)
    groups = [_to_cpu(group) for group in ensemble.groups]
    return TrainedModel(
        scales=stage1.scales,
        groups=groups,
        chi_interval=interval,
        probability=probability,
        positive_label=positive_label,
        threshold=threshold,
        domain=_fit_domain(dataset, ensemble.folds, stage1.test_polymers),
        provenance=provenance,
    )


def calibrate_solubility(
    logits: TaskPredictions, positive: np.ndarray, seed: int
) -> tuple[ProbabilityCalibration | None, float]:
    """Probability calibration and the best-F1 threshold, from members' predictions for polymers they left out.

    Parameters
    ----------
    positive
        (n_rows,) bool. Where the rows learned from are of one class, or always in one fold (the members that left it
        out saw no label), there is no calibration, and the threshold is 0.5.
    """
    own = logits.learned
    positive = positive[own]
    fold = logits.fold[:, own]
    if positive.all() or not positive.any() or (fold == fold[:, :1]).all():
        return None, 0.5
    logit = logits.left_out()[own]
    calibration = fit_probability(logit, positive, logits.polymer[own], seed)
    return calibration, best_f1_threshold(positive, calibration.probability(logit))


def _to_cpu(group: FittedMembers) -> FittedMembers:
    parameters = {name: stacked.cpu() for name, stacked in group.parameters.items()}
    columns, learned_chi = (None if one is None else one.cpu() for one in (group.columns, group.learned_chi))
    return FittedMembers(group.network.cpu(), parameters, group.frozen, columns, learned_chi)


def _fit_domain(dataset: Dataset, folds: np.ndarray, test_polymers: tuple[str, ...]) -> ApplicabilityDomain:
    structure = np.zeros(len(dataset.polymers), dtype=np.int64)
    solvents: set[str] = set()
    temperatures = np.zeros(0)
    learned = folds[0] >= 0
    in_stage1 = ~_are_kept(dataset, test_polymers)
    for rows, met in ((dataset.stage1, in_stage1), (dataset.chi, learned), (dataset.solubility, learned)):
        if rows is not None:
            structure[rows.polymer] = rows.structure
            solvents |= {dataset.solvents[one] for one in np.unique(rows.solvent[met[rows.polymer]])}
    if dataset.chi is not None:
        temperatures = dataset.chi.temperature[learned[dataset.chi.polymer]]

    def neighbours(polymers: np.ndarray) -> Neighbours:
        fingerprints = dataset.polymer_features[structure[polymers]][:, : dataset.recipe.fingerprint_bits].toarray()
        return Neighbours.fit([dataset.polymers[one] for one in polymers], fingerprints, folds[:, polymers])

    measured = np.flatnonzero(learned)
    with_chi = np.zeros(0, dtype=np.int64) if dataset.chi is None else np.intersect1d(measured, dataset.chi.polymer)
    return ApplicabilityDomain.fit(
        neighbours(measured), neighbours(with_chi) if len(with_chi) else None, sorted(solvents), temperatures
    )
