"""Out-of-fold predictions of trials as sums per polymer, so that a resampling of polymers is scored by one product.

Read from a study's folder by `evidence.overtuning`; made from predictions in memory by `evidence.compare`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from chitransfer.chemistry.repeat_units import PolymerError
from chitransfer.chemistry.stereo import merge_stereo_variants
from chitransfer.errors import StudyError
from chitransfer.search.objective import FIRST_FRESH, objective_terms
from chitransfer.search.replicates import replicate_folder
from chitransfer.sections import ObjectiveSettings
from chitransfer.training.resampling import RankedRows

RUN_COLUMNS = ("pretrain_seed", "repeat")
NEEDED_COLUMNS = {
    "chi": ("polymer", "chi", "predicted_chi"),
    "solubility": ("polymer", "soluble", "probability_positive", "called_positive"),
}
# Measured χ enter relative to the table's mean: with squares of large numbers, R² would be dominated by rounding.
CHI_SUMS = ("n", "absolute", "square", "measured", "measured_square")
CALL_SUMS = ("true_positive", "false_positive", "false_negative", "true_negative")
# Relative to a sum of squares: a smaller difference is rounding error.
ROUNDING = 1e-12


@dataclass(frozen=True)
class PolymerSums:
    """Sums over one configuration's out-of-fold predictions, per polymer.

    Attributes
    ----------
    polymers
        Names of the polymers, the last axis of all arrays; polymers that differ only in stereo are merged, as in
        splits.
    chi
        `CHI_SUMS` of each repeat, (n_repeats, 5, n_polymers); ``None`` without a χ table.
    calls
        `CALL_SUMS` of each repeat, (n_repeats, 4, n_polymers); ``None`` without a solubility table.
    ranked
        The solubility rows of each repeat in order of probability; ``None`` without a solubility table.
    """

    polymers: tuple[str, ...]
    chi: np.ndarray | None
    calls: np.ndarray | None
    ranked: tuple[RankedRows, ...] | None = None

    def components(self, weights: np.ndarray, *, with_auc: bool = True) -> dict[str, np.ndarray]:
        """Metrics when polymer p counts `weights[:, p]` times, each (n_draws,): pooled, then averaged over repeats.

        A metric that a draw does not define (no positive row, a single class, no two different χ) is NaN for it.
        ``sol_auc``, which costs more than all others together, can be omitted.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {} if self.chi is None else _chi_components(np.moveaxis(self.chi @ weights.T, 1, 0))
            if self.calls is not None and self.ranked is not None:
                counts = np.moveaxis(self.calls @ weights.T, 1, 0)  # (sum, repeat, draw)
                found |= _call_components(counts)
                if with_auc:
                    won = np.stack([rows.count_wins(weights) for rows in self.ranked])  # (repeat, draw)
                    found["sol_auc"] = won / ((counts[0] + counts[2]) * (counts[1] + counts[3]))
        return {name: values.mean(axis=0) for name, values in found.items()}


def _chi_components(sums: np.ndarray) -> dict[str, np.ndarray]:
    n, absolute, square, measured, measured_square = sums
    return {
        "exp_mae": absolute / n,
        "exp_rmse": np.sqrt(square / n),
        "exp_r2": 1.0 - square / _squares_about_mean(n, measured, measured_square),
    }


def _squares_about_mean(n: np.ndarray, total: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Σ(χ − mean)² of every draw from its n, Σχ and Σχ²; NaN where only rounding is left, as for equal χ."""
    rest = square - total**2 / n
    return np.where(rest > ROUNDING * square, rest, np.nan)


def _call_components(counts: np.ndarray) -> dict[str, np.ndarray]:
    tp, fp, fn, tn = counts
    # As in scikit-learn with zero_division=0: a class never predicted has precision 0, hence F1 0. Without rows of the
    # class, neither recall nor F1 is defined.
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return {
        "sol_f1": np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan),
        "sol_recall": tp / (tp + fn),
        "sol_precision": np.where(tp + fp > 0, tp / np.maximum(tp + fp, 1e-12), 0.0),
        "sol_balanced_accuracy": 0.5 * (tp / (tp + fn) + tn / (tn + fp)),
        "sol_mcc": np.where(product > 0, (tp * tn - fp * fn) / np.sqrt(np.maximum(product, 1e-12)), 0.0),
    }


def objective_of_draws(
    components: Mapping[str, np.ndarray], stage1_mae: float, weights: ObjectiveSettings
) -> np.ndarray:
    """The transfer objective of every draw, (n_draws,); NaN where a weighted component is not defined."""
    n_draws = len(next(iter(components.values())))
    terms = objective_terms({**components, "stage1_mae": np.full(n_draws, stage1_mae)}, weights)
    return sum(terms.values(), np.zeros(n_draws))


def sum_by_polymer(
    polymers: Sequence[str],
    chi: Sequence[pd.DataFrame],
    solubility: Sequence[pd.DataFrame],
    positive_label: int,
) -> PolymerSums:
    """Sums of predictions given as frames, one per repeat.

    Parameters
    ----------
    polymers
        All polymer identities in the frames; those that differ only in stereo are merged.
    chi
        Columns ``polymer``, ``chi``, ``predicted_chi``.
    solubility
        Columns ``polymer``, ``soluble``, ``probability_positive``, ``called_positive``.

    Raises
    ------
    StudyError
        The frames contain other polymers, or a name is not a polymer.
    """
    try:
        names = merge_stereo_variants(polymers)
    except PolymerError as error:
        raise StudyError(f"the out-of-fold predictions of the trials are damaged ({error})") from error
    place_of_name = {name: index for index, name in enumerate(dict.fromkeys(names[one] for one in polymers))}
    place = {polymer: place_of_name[name] for polymer, name in names.items()}
    n = len(place_of_name)
    return PolymerSums(
        tuple(place_of_name),
        np.stack([_sum_chi(frame, place, n) for frame in chi]) if chi else None,
        np.stack([_sum_calls(frame, place, n, positive_label) for frame in solubility]) if solubility else None,
        tuple(_rank_rows(frame, place, positive_label) for frame in solubility) if solubility else None,
    )


def _places(frame: pd.DataFrame, place: Mapping[str, int]) -> np.ndarray:
    if not frame["polymer"].isin(place.keys()).all():
        raise StudyError("the out-of-fold predictions of the trials belong to different polymers; a file was truncated")
    return frame["polymer"].map(place).to_numpy()


def _sum_chi(frame: pd.DataFrame, place: Mapping[str, int], n_polymers: int) -> np.ndarray:
    at = _places(frame, place)
    measured = frame["chi"].to_numpy(dtype=float)
    error = frame["predicted_chi"].to_numpy(dtype=float) - measured
    centred = measured - measured.mean()
    terms = (np.ones(len(at)), np.abs(error), error**2, centred, centred**2)
    return np.stack([np.bincount(at, weights=term, minlength=n_polymers) for term in terms])


def _sum_calls(frame: pd.DataFrame, place: Mapping[str, int], n_polymers: int, positive_label: int) -> np.ndarray:
    at = _places(frame, place)
    positive = frame["soluble"].to_numpy() == positive_label
    called = frame["called_positive"].to_numpy() == 1
    terms = (positive & called, ~positive & called, positive & ~called, ~positive & ~called)
    return np.stack([np.bincount(at, weights=term.astype(float), minlength=n_polymers) for term in terms])


def _rank_rows(frame: pd.DataFrame, place: Mapping[str, int], positive_label: int) -> RankedRows:
    positive = frame["soluble"].to_numpy() == positive_label
    return RankedRows.of(_places(frame, place), positive, frame["probability_positive"].to_numpy(dtype=float))


def read_trial_sums(
    folder: Path, kinds: Sequence[str], polymers: Sequence[str], positive_label: int, n_replicates: int = 1
) -> PolymerSums:
    """Sums of a finished trial's out-of-fold files, all runs combined; `folder` is ``trials/NNNN``.

    `kinds` are the tables it was scored on: ``chi``, ``solubility`` or both.

    Raises
    ------
    StudyError
        The files are missing or damaged.
    """
    frames: dict[str, list[pd.DataFrame]] = {"chi": [], "solubility": []}
    for replicate in range(n_replicates):
        own = replicate_folder(folder, replicate)
        for kind in kinds:
            found = read_repeats(own, kind)
            if not found:
                raise StudyError(f"{own}: the out-of-fold predictions ({kind}) are missing")
            frames[kind] += found
    return sum_by_polymer(polymers, frames["chi"], frames["solubility"], positive_label)


def read_repeats(folder: Path, kind: str) -> list[pd.DataFrame]:
    """The out-of-fold table of one kind (``chi`` or ``solubility``), one frame for each repeat of each seed.

    Raises
    ------
    StudyError
        The file is damaged: truncated, not a table, or lacking a required column, value or number.
    """
    path = folder / f"out_of_fold_{kind}.csv"
    if not path.is_file():
        return []
    try:
        table = pd.read_csv(path, dtype={"polymer": str})
        name, *numbers = NEEDED_COLUMNS[kind]
        values = table[[*RUN_COLUMNS, *numbers]].to_numpy(dtype=float)
        is_whole = np.isfinite(values).all() and table[name].notna().all()
        frames = [frame for _, frame in table.groupby(list(RUN_COLUMNS), sort=True)]
    except (KeyError, ValueError, OSError) as error:
        raise StudyError(f"{path}: damaged out-of-fold predictions ({error})") from error
    if not is_whole or len({len(frame) for frame in frames}) != 1:
        raise StudyError(f"{path}: damaged out-of-fold predictions (rows or values are missing)")
    return frames


def measured_polymers(folder: Path) -> tuple[str, ...]:
    """Every polymer identity in a trial's out-of-fold files, sorted."""
    names: set[str] = set()
    for kind in ("chi", "solubility"):
        for frame in read_repeats(folder, kind)[:1]:
            names |= set(frame["polymer"])
    return tuple(sorted(names))


def fresh_replicates(trial_folder: Path) -> list[int]:
    """Numbers of a trial's re-evaluations on fresh folds and seeds, in order."""
    found = (int(path.name.removeprefix("replicate_")) for path in trial_folder.glob("replicate_*"))
    return sorted(number for number in found if number >= FIRST_FRESH)
