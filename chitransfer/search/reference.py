"""What trials are compared with, on the same folds: a random forest and a predictor that learned nothing.

Scored and kept by `search.run` and `search.rescore`, shown by `search.summary` and `report`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
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

# A title, scores by their names, and the objective.
Column = tuple[str, Mapping[str, Any], float | None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """Scores on the folds of a study's trials, by their names; empty where not known.

    Attributes
    ----------
    trivial
        Of the predictor that learned nothing, means over the fold shuffles.
    forest
        Of a random forest on the same features, on the first shuffle.
    """

    trivial: Mapping[str, float] = field(default_factory=dict)
    forest: Mapping[str, float] = field(default_factory=dict)

    def columns(self, stage1_mae: float, weights: ObjectiveSettings) -> list[Column]:
        """What is known, as columns of a table; with the Stage 1 MAE given, as neither has one of its own."""
        known = [("random forest", self.forest), ("trivial predictor", self.trivial)]
        return [(title, scores, borrowed_objective(scores, stage1_mae, weights)) for title, scores in known if scores]

    def beats(self, best: Mapping[str, Any], weights: ObjectiveSettings, name: str = "best") -> list[str]:
        """Where they are not worse than the best trial, a sentence each; `best` holds its components."""
        return [
            *beaten_by_trivial(best, self.trivial, weights, name),
            *beaten_by_forest(best, self.forest, weights, name),
        ]


def score_reference(path: Path, config: Config, dataset: Dataset, folds: np.ndarray) -> Reference:
    """Score both on a study's folds (n_repeats, n_polymers), and keep that in its ``reference.json``.

    The forest takes the longest and is taken from the file where that has it: the tables and folds of a study do not
    change.
    """
    # Here, since they import PyTorch: who only reads a study does without.
    from chitransfer.training.forest import score_random_forest
    from chitransfer.training.tasks import resolve_positive_label
    from chitransfer.training.trivial import score_trivial_predictor

    positive = resolve_positive_label(dataset.solubility, config.solubility.positive)
    trivial = score_trivial_predictor(dataset, folds, positive)
    forest: Mapping[str, float] = {}
    if config.cv.random_forest:
        forest = (read_reference(path).forest if path.exists() else {}) or score_random_forest(
            dataset, folds[0], positive, derive_seed(config.seed, "random forest")
        )
    kept = {"trivial_predictor": {"mean": trivial.mean, "std": trivial.std}}
    write_json(path, kept | ({"random_forest": dict(forest)} if forest else {}))
    return Reference(trivial.mean, forest)


def read_reference(path: Path) -> Reference:
    """What `score_reference` kept; nothing where the file is missing or damaged, or of a version without a forest."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        trivial, forest = values["trivial_predictor"]["mean"], values.get("random_forest", {})
        return Reference(_known(trivial), _known(forest))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        logger.warning("%s is missing or damaged; there are no predictors to compare with", path)
        return Reference()


def _known(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None}


def borrowed_objective(scores: Mapping[str, float], stage1_mae: float, weights: ObjectiveSettings) -> float | None:
    """The objective of a predictor without Stage 1, with the Stage 1 MAE given; ``None`` where a part is missing."""
    try:
        return transfer_objective({**scores, "stage1_mae": stage1_mae}, weights)
    except TrainingError:
        return None


def beaten_by_forest(
    best: Mapping[str, Any], forest: Mapping[str, float], weights: ObjectiveSettings, name: str = "best"
) -> list[str]:
    """A sentence where a random forest has the lower objective, with the parts that have a weight.

    `best` holds the trial's components, `name` says what to call it.
    """
    parts = {part: weight for part, weight in weights.model_dump().items() if weight > 0}
    shared = [part for part in parts if best.get(part) is not None and part in forest]
    own = transfer_objective({part: best[part] for part in (*shared, "stage1_mae")}, weights)
    other = borrowed_objective({part: forest[part] for part in shared}, best["stage1_mae"], weights)
    if not shared or other is None or own <= other:
        return []
    compared = ", ".join(f"{TITLES[part]} {forest[part]:.3f} against {best[part]:.3f}" for part in shared)
    return [
        f"a random forest on the same features does better than the {name} trial: objective {other:.4f} against "
        f"{own:.4f} ({compared}). A search scores heads on frozen encoders; a network fine-tuned in full "
        "(training.freeze_encoder_stage2: false) may still be better"
    ]


def beaten_by_trivial(
    best: Mapping[str, Any], reference: Mapping[str, float], weights: ObjectiveSettings, name: str = "best"
) -> list[str]:
    """Where the best trial is not better than the trivial predictor, a sentence each: the objective, then its parts.

    `best` holds the trial's components, `name` says what to call it. A score that the trivial predictor has in full,
    as the recall of calling everything positive, cannot be bettered and says nothing.
    """
    sentences = []
    shared = [name for name in weights.model_dump() if best.get(name) is not None and name in reference]
    own = transfer_objective({name: best[name] for name in (*shared, "stage1_mae")}, weights)
    without = borrowed_objective({name: reference[name] for name in shared}, best["stage1_mae"], weights)
    if shared and without is not None and own >= without:
        sentences.append(
            f"the {name} trial does not beat the trivial predictor: objective {own:.4f} against {without:.4f}; other "
            "parts of the objective (sol_auc, sol_balanced_accuracy, sol_mcc) or the other solubility.positive may say "
            "more"
        )
    for name, weight in weights.model_dump().items():
        mine, trivial = best.get(name), reference.get(name)
        if weight <= 0 or mine is None or trivial is None or (name not in ERRORS and trivial >= 1.0):
            continue
        worse = mine >= trivial if name in ERRORS else mine <= trivial
        if worse:
            sentences.append(
                f"{TITLES[name]}: {mine:.3f} is no better than the trivial predictor's {trivial:.3f}, "
                "so this part of the objective rewards doing nothing here"
            )
    return sentences
