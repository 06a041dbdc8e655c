"""The guide's Key Insight, measured: does a better Stage 1 transfer better, and what helps one but hurts the other?

Called by `report.finish` for every search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial
from scipy.stats import spearmanr

from chitransfer.config import Config
from chitransfer.search.results import read_standing
from chitransfer.sections import ObjectiveSettings, parse_hidden_dims
from chitransfer.seeds import derive_seed

SMALLEST_STUDY = 5
N_DRAWS = 1000
# A rank correlation with a larger p value may be chance and is not given a direction.
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Effect:
    """Rank correlation of one searched parameter with both losses; negative: larger values lower the loss.

    A categorical parameter is ranked by its choices if they are numbers (layer widths by their product), else left out.
    """

    name: str
    on_stage1: float
    on_transfer: float
    p_stage1: float
    p_transfer: float


@dataclass(frozen=True)
class Insight:
    """How well Stage 1 validation MAE predicts the transfer term (the objective without its Stage 1 part).

    Attributes
    ----------
    correlation, low, high, p
        Spearman's ρ over trials with its bootstrap interval over trials and p-value.
    stage1_choice, transfer_choice
        Trials with the lowest Stage 1 MAE and the lowest objective.
    cost
        Objective of the first minus that of the second.
    rank
        Rank of the Stage 1 choice among all trials by the objective, from 1.
    misleading
        Stage 1 loss would have chosen another trial, and either that trial is not in the better quarter or ρ's interval
        is not above 0.
    """

    n_trials: int
    correlation: float
    low: float
    high: float
    p: float
    stage1_choice: int
    transfer_choice: int
    cost: float
    rank: int
    misleading: bool
    effects: list[Effect]
    sentences: list[str] = field(default_factory=list)

    def effects_frame(self) -> pd.DataFrame:
        """One line per parameter."""
        return pd.DataFrame(
            [vars(effect) for effect in self.effects],
            columns=["name", "on_stage1", "on_transfer", "p_stage1", "p_transfer"],
        )


def without_stage1_term(value: np.ndarray, stage1_mae: np.ndarray, weights: ObjectiveSettings) -> np.ndarray:
    """The objective without its Stage 1 term, which would correlate with itself; all arrays (n_trials,)."""
    return value - weights.stage1_mae * stage1_mae


def measure_insight(study: optuna.Study, config: Config) -> Insight | None:
    """Measured over the complete trials; ``None`` if there are fewer than five, or if a loss does not vary."""
    trials = sorted(read_standing(study).ranked, key=lambda trial: (trial.values[0], trial.number))
    if len(trials) < SMALLEST_STUDY:
        return None
    stage1 = np.array([float(trial.user_attrs["stage1_mae"]) for trial in trials])
    value = np.array([trial.values[0] for trial in trials])
    transfer = without_stage1_term(value, stage1, config.objective)
    if np.ptp(stage1) == 0 or np.ptp(transfer) == 0:
        return None
    result = spearmanr(stage1, transfer)
    low, high = _interval(stage1, transfer, derive_seed(config.seed, "insight"))
    by_stage1 = int(np.lexsort((value, stage1))[0])
    rank = by_stage1 + 1
    is_poor = rank > max(1, len(trials) // 4) or low <= 0
    insight = Insight(
        n_trials=len(trials),
        correlation=float(result.statistic),
        low=low,
        high=high,
        p=float(result.pvalue),
        stage1_choice=trials[by_stage1].number,
        transfer_choice=trials[0].number,
        cost=float(value[by_stage1] - value[0]),
        rank=rank,
        misleading=by_stage1 != 0 and is_poor,
        effects=_effects(trials, stage1, transfer),
    )
    insight.sentences.extend(_describe(insight))
    return insight


def _interval(a: np.ndarray, b: np.ndarray, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(N_DRAWS):
        own = rng.integers(0, len(a), len(a))
        if np.ptp(a[own]) > 0 and np.ptp(b[own]) > 0:
            draws.append(float(spearmanr(a[own], b[own]).statistic))
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _effects(trials: list[FrozenTrial], stage1: np.ndarray, transfer: np.ndarray) -> list[Effect]:
    effects = []
    for name, distribution in trials[0].distributions.items():
        position = _positions([trial.params.get(name) for trial in trials], distribution)
        if position is None or np.ptp(position) == 0:
            continue
        on_stage1, on_transfer = spearmanr(position, stage1), spearmanr(position, transfer)
        effects.append(
            Effect(
                name,
                float(on_stage1.statistic),
                float(on_transfer.statistic),
                float(on_stage1.pvalue),
                float(on_transfer.pvalue),
            )
        )
    return sorted(effects, key=lambda effect: -abs(effect.on_transfer))


def _positions(values: list[object], distribution: object) -> np.ndarray | None:
    sizes = [_size(value) for value in values]
    if any(size is None for size in sizes):
        return None
    if isinstance(distribution, CategoricalDistribution) and any(_size(c) is None for c in distribution.choices):
        return None
    return np.array(sizes, dtype=float)


def _size(value: object) -> float | None:
    if isinstance(value, bool | int | float):
        return float(value)
    widths = parse_hidden_dims(value)
    return float(math.prod(widths)) if isinstance(widths, list) else None


def _describe(insight: Insight) -> list[str]:
    strength = f"rank correlation {insight.correlation:+.2f} [{insight.low:+.2f}, {insight.high:+.2f}]"
    if insight.low > 0:
        relation = "a better Stage 1 goes with a better transfer"
    elif insight.high < 0:
        relation = "a better Stage 1 goes with a WORSE transfer"
    else:
        relation = "Stage 1 loss says nothing reliable about transfer"
    lines = [f"Key Insight: {relation} over these {insight.n_trials} trials ({strength})"]
    if insight.misleading:
        lines.append(
            f"WARNING: Stage 1 loss alone would have chosen trial {insight.stage1_choice}, only number {insight.rank} "
            f"of {insight.n_trials} by the objective ({insight.cost:+.4f} from the best)"
        )
    for effect in insight.effects:
        opposed = effect.on_stage1 * effect.on_transfer < 0
        if opposed and max(effect.p_stage1, effect.p_transfer) < SIGNIFICANT:
            helped, hurt = ("transfer", "Stage 1") if effect.on_transfer < 0 else ("Stage 1", "transfer")
            lines.append(
                f"larger {effect.name} helps {helped} and hurts {hurt} "
                f"(rank correlations {effect.on_stage1:+.2f} with Stage 1 MAE, {effect.on_transfer:+.2f} with transfer)"
            )
    return lines
