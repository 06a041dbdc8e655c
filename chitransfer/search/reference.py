"""References for the trials, on the same folds: a random forest and a trivial predictor.

Computed and stored by `search.run` and `search.rescore`, shown by `search.summary` and `report`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chitransfer.config import Config
from chitransfer.errors import TrainingError
from chitransfer.files import write_json
from chitransfer.search.objective import ERRORS, transfer_objective
from chitransfer.search.results import TITLES
from chitransfer.sections import ObjectiveSettings
from chitransfer.seeds import derive_seed

if TYPE_CHECKING:
    import numpy as np

    from chitransfer.data.assemble import Dataset

# A title, scores by name, and the objective.
Column = tuple[str, Mapping[str, Any], float | None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """Scores by name on the folds of a study's trials; empty where unknown.

    Attributes
    ----------
    trivial
        Of the trivial predictor, means over the fold shuffles.
    forest
        Of a random forest on the same features, on the first shuffle.
    forest_key
        Hash of what the forest was trained on (`forest_key`), where it was stored.
    """

    trivial: Mapping[str, float] = field(default_factory=dict)
    forest: Mapping[str, float] = field(default_factory=dict)
    forest_key: str = field(default="", compare=False)

    def columns(self, best: Mapping[str, Any], weights: ObjectiveSettings) -> list[Column]:
        """The known scores as columns for a table beside the best trial, whose components are `best`."""
        known = [("random forest", self.forest), ("trivial predictor", self.trivial)]
        return [(title, scores, borrowed_objective(scores, best, weights)) for title, scores in known if scores]

    def beats(self, best: Mapping[str, Any], weights: ObjectiveSettings, name: str = "best") -> list[str]:
        """One sentence each where a reference is not worse than the best trial, whose components are `best`."""
        return [
            *beaten_by_trivial(best, self.trivial, weights, name),
            *beaten_by_forest(best, self.forest, weights, name),
        ]


def score_reference(
    path: Path,
    config: Config,
    dataset: Dataset,
    folds: np.ndarray,
    say: Callable[[str], object],
    known: Sequence[Path] = (),
) -> Reference:
    """Score both on a study's folds and store the result in its ``reference.json``.

    Parameters
    ----------
    path
        The file. If it or one of `known` has a forest for the same rows and folds, that one is used.
    folds
        From `make_folds`, (n_repeats, n_polymers).
    say
        Called before a forest is trained, which takes a while.
    known
        Files of other studies on the same tables.
    """
    # Imported here because they load PyTorch, which reading a study does not need.
    from chitransfer.training.forest import GROWING, score_random_forest
    from chitransfer.training.tasks import resolve_positive_label
    from chitransfer.training.trivial import score_trivial_predictor

    positive = resolve_positive_label(dataset.solubility, config.solubility.positive)
    trivial = score_trivial_predictor(dataset, folds, positive)
    kept: dict[str, Any] = {"trivial_predictor": {"mean": trivial.mean, "std": trivial.std}}
    forest: Mapping[str, float] = {}
    if config.cv.random_forest:
        seed = derive_seed(config.seed, "random forest")
        key = forest_key(dataset, folds[0], positive, seed)
        candidates = (read_reference(one) for one in (path, *known) if one.exists())
        forest = next((one.forest for one in candidates if one.forest_key == key), {})
        if not forest:
            say(GROWING)
            forest = score_random_forest(dataset, folds[0], positive, seed)
        kept |= {"random_forest": dict(forest), "random_forest_key": key}
    write_json(path, kept)
    return Reference(trivial.mean, forest)


def forest_key(dataset: Dataset, fold: np.ndarray, positive_label: int, seed: int) -> str:
    """SHA-256 of what a forest's scores depend on: features, measured rows, folds (n_polymers,), class and seed."""
    from chitransfer.training.forest import N_TREES

    parts = [repr((dataset.recipe, positive_label, seed, N_TREES)), dataset.names_digest()]
    digest = hashlib.sha256("\n".join(parts).encode())
    for rows in (dataset.chi, dataset.solubility):
        if rows is not None:
            solvents = "\n".join(dataset.solvents[one] for one in rows.solvent)
            digest.update(solvents.encode())
            for values in (fold[rows.polymer], rows.polymer, rows.structure, rows.temperature, rows.value):
                digest.update(values.tobytes())
    return digest.hexdigest()


def read_reference(path: Path) -> Reference:
    """What `score_reference` stored; empty if the file is missing, damaged, or of a version without a forest."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        trivial, forest = values["trivial_predictor"]["mean"], values.get("random_forest", {})
        return Reference(_known(trivial), _known(forest), values.get("random_forest_key", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        logger.warning("%s is missing or damaged; there are no reference predictors to compare with", path)
        return Reference()


def _known(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None}


def borrowed_objective(
    scores: Mapping[str, float], best: Mapping[str, Any], weights: ObjectiveSettings
) -> float | None:
    """The objective of a predictor without Stage 1, using the Stage 1 MAE of the trial it is compared with.

    ``None`` if it lacks a term of the trial's objective; `best` holds the trial's components.
    """
    components = {**scores, "stage1_mae": best["stage1_mae"]}
    if not components.keys() >= set(_weighed_parts(best, weights)):
        return None
    try:
        return transfer_objective(components, weights)
    except TrainingError:
        return None


def _weighed_parts(best: Mapping[str, Any], weights: ObjectiveSettings) -> list[str]:
    """The weighted terms of a trial's objective; `best` holds its components."""
    return [part for part, weight in weights.model_dump().items() if weight > 0 and best.get(part) is not None]


def _compare(
    best: Mapping[str, Any], other: Mapping[str, float], weights: ObjectiveSettings
) -> tuple[list[str], str, float, float | None]:
    """The weighted terms common to a trial and another predictor, the name of their objective, and both values.

    The other's value is ``None`` where they have no term in common.
    """
    parts = [part for part in _weighed_parts(best, weights) if part != "stage1_mae"]
    shared = [part for part in parts if part in other]
    compared = {part: best[part] for part in (*shared, "stage1_mae")}
    borrowed = borrowed_objective({part: other[part] for part in shared}, compared, weights)
    without = ", ".join(TITLES[part] for part in parts if part not in other)
    name = f"objective without {without}" if without else "objective"
    return shared, name, transfer_objective(compared, weights), borrowed if shared else None


def beaten_by_forest(
    best: Mapping[str, Any], forest: Mapping[str, float], weights: ObjectiveSettings, name: str = "best"
) -> list[str]:
    """A sentence if a random forest has the lower objective, with its weighted terms.

    `best` holds the trial's components; `name` is what to call it.
    """
    shared, objective, own, other = _compare(best, forest, weights)
    if other is None or own <= other:
        return []
    compared = ", ".join(f"{TITLES[part]} {forest[part]:.3f} against {best[part]:.3f}" for part in shared)
    return [
        f"a random forest on the same features does better than the {name} trial: {objective} {other:.4f} against "
        f"{own:.4f} ({compared}). A search scores quick Stage 2, by default on frozen encoders; a network fine-tuned "
        "in full (training.freeze_encoder_stage2: false) may still be better"
    ]


def beaten_by_trivial(
    best: Mapping[str, Any], reference: Mapping[str, float], weights: ObjectiveSettings, name: str = "best"
) -> list[str]:
    """One sentence each where the best trial is no better than the trivial predictor: the objective, then its terms.

    `best` holds the trial's components; `name` is what to call it. Scores in which the trivial predictor is perfect,
    such as the recall of calling everything positive, cannot be improved and are skipped.
    """
    sentences = []
    _, objective, own, without = _compare(best, reference, weights)
    if without is not None and own >= without:
        sentences.append(
            f"the {name} trial does not beat the trivial predictor: {objective} {own:.4f} against {without:.4f}; other "
            "parts of the objective (sol_auc, sol_balanced_accuracy, sol_mcc) or the other solubility.positive may "
            "be more informative"
        )
    for name, weight in weights.model_dump().items():
        mine, trivial = best.get(name), reference.get(name)
        if weight <= 0 or mine is None or trivial is None or (name not in ERRORS and trivial >= 1.0):
            continue
        worse = mine >= trivial if name in ERRORS else mine <= trivial
        if worse:
            sentences.append(
                f"{TITLES[name]}: {mine:.3f} is no better than the trivial predictor's {trivial:.3f}, so this part of "
                "the objective rewards a model that learns nothing"
            )
    return sentences
