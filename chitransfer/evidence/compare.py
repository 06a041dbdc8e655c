"""Does the search help on polymers it never saw? Nested outer folds, both protocols, every row and column, a verdict.

``chitransfer compare`` calls `run_comparison`; `evidence.nested` runs an outer fold, `report` shows the table.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chitransfer.chemistry.stereo import merge_stereo_variants
from chitransfer.config import Config, changed_keys, dump_config, load_config
from chitransfer.console import format_seconds
from chitransfer.data.assemble import Dataset
from chitransfer.data.table_remarks import describe_left_out
from chitransfer.errors import StudyError
from chitransfer.evidence.nested import FULL_MODELS, PROTOCOLS, OuterFold, run_outer_fold
from chitransfer.evidence.outcomes import objective_of_draws, sum_by_polymer
from chitransfer.evidence.verdict import COMPARED, ROWS, describe_scores, reach_verdict
from chitransfer.files import write_atomically, write_csv, write_json
from chitransfer.interrupts import INTERRUPTS
from chitransfer.progress import Say
from chitransfer.provenance import write_provenance
from chitransfer.search.contract import NAMES, VARIANTS, make_contract
from chitransfer.search.lock import drive_alone
from chitransfer.search.objective import transfer_objective
from chitransfer.search.results import expect_runs
from chitransfer.search.study_folder import CONDITIONS, StudyFolder
from chitransfer.search.unread import refuse_rate_of_frozen_encoder
from chitransfer.seeds import derive_seed
from chitransfer.training.metrics import chi_metrics, solubility_metrics
from chitransfer.training.resampling import Estimate, draw_polymers
from chitransfer.training.settings import resolve_device
from chitransfer.training.tasks import resolve_positive_label

# What a row is compared with, if not the default configuration.
AGAINST = {"transfer_full": "default_full"}
# Constant within an outer fold. Pooled over folds it ranks by the training means, which are lower the higher the test
# polymers are: an artefact, so its rankings are not scored.
CONSTANT = "mean"
RANKINGS = ("exp_spearman", "sol_auc", "sol_pr_auc")
# A predicted change of χ smaller than this share of χ counts as rounding error.
SMALLEST_CHANGE = 1e-9
SMALLEST_RANGE_K = 10.0
LOW_CHI = 1.5
N_DRAWS = 2000
# Entries of `make_contract` that concern the tables.
DATA = {
    "stage1": "contents of the Stage 1 table",
    "chi": "contents of the table of measured χ",
    "solubility": "contents of the solubility table",
    VARIANTS: "which polymers count as one",
    NAMES: "the polymers' names, which are RDKit's",
}
# A stopped comparison may resume on another device, and with files elsewhere, whose contents are then checked.
FREE_KEYS = ("training.device", "training.num_threads")


@dataclass(frozen=True)
class Plan:
    """What a comparison consists of."""

    n_outer: int
    n_seeds: int
    protocols: tuple[str, ...]


def run_comparison(config: Config, dataset: Dataset, folder: Path, plan: Plan, say: Say) -> list[str]:
    """Run or resume a comparison and write its tables; returns the scores and the verdict as lines.

    For every protocol that is complete there, writes into `folder` ``table.csv`` (one line per protocol and row),
    ``differences.csv`` (from the default, with intervals), ``gaps.csv`` (raw and corrected estimates against the outer
    truth) and ``verdict.txt``.

    Raises
    ------
    StudyError
        There are fewer polymers than outer folds, or all polymers of a table would be tested in one fold; the folder
        holds a comparison under other conditions or of other tables, or another process is writing to it.
    ConfigError
        The device is not available on this machine, or the search would tune the encoder's learning rate in Stage 2 to
        no effect; nothing is written then.
    """
    resolve_device(config.training.device)
    _refuse_too_many_folds(dataset, plan.n_outer)
    folds = dataset.fold_of_polymers(plan.n_outer, derive_seed(config.seed, "outer folds"))
    _refuse_untrainable(dataset, folds)
    with drive_alone(StudyFolder(folder), "comparison is writing to this folder"):
        _keep_conditions(folder, config, dataset, plan, say)
        write_provenance(folder, dataset)
        for line in describe_left_out(dataset.tables):
            say(line)
        return _run(config, dataset, folder, plan, folds, say)


def _run(config: Config, dataset: Dataset, folder: Path, plan: Plan, folds: np.ndarray, say: Say) -> list[str]:
    outer = [
        OuterFold(
            folder / protocol.replace(" ", "_") / f"outer_{number}", protocol, number, np.flatnonzero(folds == number)
        )
        for protocol in PROTOCOLS
        for number in range(plan.n_outer)
    ]
    for fold in outer:
        if fold.done.is_file() and json.loads(fold.done.read_text(encoding="utf-8")) != _tested(dataset, fold):
            raise StudyError(
                f"{fold.done}: this fold would now test other polymers than before, because the tables or the release "
                "changed; choose another --name"
            )
    wanted = [fold for fold in outer if fold.protocol in plan.protocols]
    todo = [fold for fold in wanted if not fold.done.is_file()]
    if todo:
        # Two searches, one with a re-evaluation of its best trials, then the default and four choices of the searches.
        n_runs = 2 * config.search.n_trials + expect_runs(config.search) + 5 * plan.n_seeds
        say(
            f"{len(todo)} of {len(wanted)} outer folds to do, about {n_runs} Stage 1 runs and "
            f"{len(FULL_MODELS) * config.cv.n_cv_folds} full fine-tunings each; you can stop at any time; the same "
            "command continues"
        )
    started = time.monotonic()
    for position, fold in enumerate(todo):
        try:
            run_outer_fold(config, dataset, fold, plan.n_seeds, say)
        except INTERRUPTS:
            say("interrupted; the same command continues")
            raise
        write_json(fold.done, _tested(dataset, fold))
        n_left = len(todo) - position - 1
        left = format_seconds((time.monotonic() - started) / (position + 1) * n_left)
        remaining = f"; about {left} left" if n_left else ""
        say(f"{fold.protocol}, outer fold {fold.number + 1} of {plan.n_outer} done{remaining}")
    return summarise(config, dataset, folder, _complete(outer, say))


def _tested(dataset: Dataset, fold: OuterFold) -> dict[str, list[str]]:
    return {"test_polymers": [dataset.polymers[i] for i in fold.test]}


def _refuse_too_many_folds(dataset: Dataset, n_outer: int) -> None:
    """Refuse more outer folds than there are polymers to test; the message names the option."""
    n_polymers = len(dataset.measured_polymers())
    if n_polymers < n_outer:
        raise StudyError(
            f"--outer {n_outer} needs at least {n_outer} polymers with measured χ or a solubility label, got "
            f"{n_polymers}; lower --outer or add polymers"
        )


def _refuse_untrainable(dataset: Dataset, folds: np.ndarray) -> None:
    """Refuse a table whose polymers are all in one outer fold, which would leave nothing to learn from."""
    for key, rows in (("paths.exp_chi_csv", dataset.chi), ("paths.solubility_csv", dataset.solubility)):
        if rows is not None and len(np.unique(folds[rows.polymer])) == 1:
            n_polymers = len(np.unique(rows.polymer))
            raise StudyError(
                f"{rows.table.source}: all its polymers ({n_polymers}) would be tested in the same outer fold, which "
                f"leaves nothing to learn from; use a table with more polymers, or leave it out: --set {key}=null"
            )


def _complete(outer: Sequence[OuterFold], say: Say) -> list[OuterFold]:
    """The folds of all protocols that are complete, whichever command completed them."""
    complete = []
    for protocol in PROTOCOLS:
        own = [fold for fold in outer if fold.protocol == protocol]
        n_done = sum(fold.done.is_file() for fold in own)
        if n_done == len(own):
            complete += own
        elif n_done:
            say(f"{protocol}: {n_done} of {len(own)} outer folds are done; the tables show it once all are done")
    return complete


def _keep_conditions(folder: Path, config: Config, dataset: Dataset, plan: Plan, say: Say) -> None:
    path = folder / CONDITIONS
    conditions = {"n_outer": plan.n_outer, "n_seeds": plan.n_seeds, "data": make_contract(config, dataset)["data"]}
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if "data" not in known:
            say(
                "the release that began this comparison kept no checksums of its tables; they are assumed to be "
                "unchanged"
            )
        known = {"data": conditions["data"], **known}
        # A comparison from an earlier release has no checksum of the names.
        known["data"] = {NAMES: conditions["data"][NAMES], **known["data"]}
        changed = changed_keys(load_config(folder / "config.yaml"), config)
        differing = [key for key in changed if key not in FREE_KEYS and not key.startswith("paths.")]
        differing += [
            f"{n} {known[n]}, now {conditions[n]}" for n in ("n_outer", "n_seeds") if known[n] != conditions[n]
        ]
        differing += [what for key, what in DATA.items() if known["data"].get(key) != conditions["data"].get(key)]
        if differing:
            raise StudyError(
                f"{folder}: holds a comparison under other conditions ({', '.join(differing)}); choose another "
                "--name, or repeat the original command on the original tables to continue it"
            )
    else:
        refuse_rate_of_frozen_encoder(config)
    write_atomically(folder / "config.yaml", dump_config(config))
    write_json(path, conditions)


def summarise(config: Config, dataset: Dataset, folder: Path, outer: Sequence[OuterFold]) -> list[str]:
    """Pool the outer folds' test predictions into the tables and the verdict; returns both as lines."""
    label = resolve_positive_label(dataset.solubility, config.solubility.positive)
    rows, differences = [], []
    for protocol in dict.fromkeys(fold.protocol for fold in outer):
        own = [fold for fold in outer if fold.protocol == protocol]
        pooled = {row: pool_predictions(own, row) for row in ROWS}
        for row, frames in pooled.items():
            scores = score_pooled(frames, label, config)
            if row == CONSTANT:
                scores |= dict.fromkeys(RANKINGS, float("nan"))
            rows.append({"protocol": protocol, "row": row, "title": ROWS[row], **scores})
        differences += compare_to_default(pooled, label, config, protocol)
    table, difference = pd.DataFrame(rows), pd.DataFrame(differences)
    gaps = measure_gaps(config, outer, label)
    write_csv(folder / "table.csv", table)
    write_csv(folder / "differences.csv", difference)
    write_csv(folder / "gaps.csv", gaps)
    sentences = reach_verdict(table, difference, gaps)
    write_atomically(folder / "verdict.txt", "\n".join(sentences) + "\n")
    return [*describe_scores(table), *sentences]


def pool_predictions(outer: Sequence[OuterFold], row: str) -> dict[str, pd.DataFrame]:
    """Test predictions of a row over all outer folds, by kind; empty if the row does not predict that kind."""
    found = {}
    for kind in ("chi", "solubility"):
        paths = [fold.predictions(row, kind) for fold in outer if fold.predictions(row, kind).is_file()]
        if paths:
            found[kind] = pd.concat([pd.read_csv(path) for path in paths], ignore_index=True)
    return found


def score_pooled(frames: Mapping[str, pd.DataFrame], label: int, config: Config) -> dict[str, float]:
    """Every column of the table: metrics of the pooled predictions of each seed, averaged over seeds."""
    per_seed: dict[str, list[float]] = {}
    for kind, frame in frames.items():
        for _, own in frame.groupby("seed"):
            for name, value in (_score_chi(own) if kind == "chi" else _score_solubility(own, label)).items():
                per_seed.setdefault(name, []).append(value)
    scores = {name: float(np.mean(values)) for name, values in per_seed.items()}
    weights = config.objective.model_copy(update={"stage1_mae": 0.0})
    parts = {name for name, weight in weights.model_dump().items() if weight > 0}
    if parts and parts <= scores.keys() and all(np.isfinite(scores[name]) for name in parts):
        scores = {"objective": transfer_objective(scores, weights), **scores}
    return scores


def _score_chi(frame: pd.DataFrame) -> dict[str, float]:
    measured, predicted = frame["chi"].to_numpy(), frame["predicted_chi"].to_numpy()
    scores = chi_metrics(measured, predicted)
    low = measured < LOW_CHI
    scores["exp_mae_low_chi"] = float(np.abs(measured - predicted)[low].mean()) if low.any() else float("nan")
    scores["slope_sign"] = share_of_right_slopes(frame)
    return scores


def _score_solubility(frame: pd.DataFrame, label: int) -> dict[str, float]:
    positive = frame["soluble"].to_numpy() == label
    return solubility_metrics(
        positive, frame["probability_positive"].to_numpy(), frame["called_positive"].to_numpy() == 1, absent=np.nan
    )


def share_of_right_slopes(frame: pd.DataFrame) -> float:
    """Share of polymer–solvent pairs, measured over at least `SMALLEST_RANGE_K`, whose dχ/dT has the right sign.

    Slopes are least-squares lines through the pair's own temperatures. A flat prediction counts as wrong; NaN if no
    pair has such a range or if every prediction is flat, as for a constant predictor.
    """
    signs = []
    for _, own in frame.groupby(["polymer", "solvent"]):
        temperature = own["temp"].to_numpy(dtype=float)
        if np.ptp(temperature) >= SMALLEST_RANGE_K:
            signs.append([_sign_of_slope(temperature, own[name].to_numpy(float)) for name in ("chi", "predicted_chi")])
    measured, predicted = np.array(signs).reshape(-1, 2).T
    if not measured.any() or not predicted.any():
        return float("nan")
    return float(np.mean((measured == predicted)[measured != 0]))


def _sign_of_slope(temperature: np.ndarray, chi: np.ndarray) -> float:
    centred = temperature - temperature.mean()
    product = float(centred @ chi)
    smallest = SMALLEST_CHANGE * float(np.abs(centred).sum() * np.abs(chi).max())
    return float(np.sign(product)) if abs(product) > smallest else 0.0


def compare_to_default(
    pooled: Mapping[str, Mapping[str, pd.DataFrame]], label: int, config: Config, protocol: str
) -> list[dict[str, Any]]:
    """Every row minus the default configuration, or what `AGAINST` names, with paired 95 % bootstrap intervals."""
    everything = [frame for frames in pooled.values() for frame in frames.values()]
    polymers = sorted({name for frame in everything for name in frame["polymer"]})
    n_distinct = len(set(merge_stereo_variants(polymers).values()))
    weights = np.vstack([np.ones(n_distinct), draw_polymers(n_distinct, N_DRAWS, derive_seed(config.seed, "compare"))])
    own_weights = config.objective.model_copy(update={"stage1_mae": 0.0})
    needed = {name for name, weight in own_weights.model_dump().items() if weight > 0}
    values: dict[str, dict[str, np.ndarray]] = {}
    for row, frames in pooled.items():
        seeds = {kind: [own for _, own in frame.groupby("seed")] for kind, frame in frames.items()}
        if not seeds:
            continue
        sums = sum_by_polymer(polymers, seeds.get("chi", []), seeds.get("solubility", []), label)
        values[row] = sums.components(weights)
        if needed and needed <= values[row].keys():
            values[row]["objective"] = objective_of_draws(values[row], 0.0, own_weights)
    lines = []
    for row, own in values.items():
        against = AGAINST.get(row, "default")
        if row == against or against not in values:
            continue
        for name in COMPARED:
            if name in own and name in values[against] and not (row == CONSTANT and name in RANKINGS):
                difference = own[name] - values[against][name]
                estimate = Estimate.of(difference[1:], float(difference[0]))
                lines.append(
                    {
                        "protocol": protocol,
                        "row": row,
                        "against": against,
                        "metric": name,
                        "difference": estimate.value,
                        "low": estimate.low,
                        "high": estimate.high,
                    }
                )
    return lines


def measure_gaps(config: Config, outer: Sequence[OuterFold], label: int) -> pd.DataFrame:
    """Raw best value, corrected value and outer truth of the inner transfer search, one line per protocol and fold.

    The truth is the transfer objective of the chosen configuration on the fold's test polymers.
    """
    lines = []
    for fold in outer:
        guard = fold.path / "overtuning.json"
        if not guard.is_file():
            continue
        found = json.loads(guard.read_text(encoding="utf-8"))
        scores = score_pooled(pool_predictions([fold], "transfer_best"), label, config)
        mae = float(np.mean(fold.stage1_mae("transfer_best")))
        truth = scores.get("objective", float("nan")) + config.objective.stage1_mae * mae
        lines.append(
            {
                "protocol": fold.protocol,
                "fold": fold.number,
                "raw": found["best_value"],
                "corrected": found["corrected"]["value"],
                "truth": truth,
            }
        )
    return pd.DataFrame(lines, columns=["protocol", "fold", "raw", "corrected", "truth"])
