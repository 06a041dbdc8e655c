"""A comparison in words, which may say that the search did not help or that Stage 1 hurts; and its rows' names.

Called by `evidence.compare`; `evidence.nested` and `report.html` use the names.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from chitransfer.counts import say_count
from chitransfer.training.metrics import mean_half_width

ROWS = {
    "default": "default configuration",
    "stage1_best": "best by Stage 1 loss alone",
    "transfer_best": "best by the transfer objective",
    "transfer_noise_aware": "best by the transfer objective, by fresh runs",
    "random_best": "random search, same budget",
    "default_full": "default configuration, fine-tuned in full",
    "transfer_full": "best by the transfer objective, fine-tuned in full",
    "no_stage1": "no Stage 1 (same network from scratch)",
    "random_forest": "random forest",
    "ridge": "ridge (χ), ridge logistic (solubility)",
    "gaussian_process": "Gaussian process, Tanimoto kernel",
    "descriptor_logistic": "logistic regression on four descriptors",
    "stage1_corrected": "Stage 1 prediction, affine-corrected",
    "mean": "training mean",
}
NAMES = {
    "objective": "objective",
    "exp_mae": "χ MAE",
    "exp_mae_low_chi": "χ MAE (χ<1.5)",
    "exp_rmse": "χ RMSE",
    "exp_r2": "χ R²",
    "exp_spearman": "χ Spearman",
    "slope_sign": "sign dχ/dT",
    "sol_f1": "F1",
    "sol_recall": "recall",
    "sol_precision": "precision",
    "sol_balanced_accuracy": "bal. acc.",
    "sol_auc": "ROC-AUC",
    "sol_pr_auc": "PR-AUC",
    "sol_brier": "Brier",
}
# Scores by which candidates are compared, in display order.
COMPARED = ("objective", "exp_mae", "sol_f1", "sol_recall", "sol_auc")
LOWER_IS_BETTER = {"objective", "exp_mae", "exp_mae_low_chi", "exp_rmse", "sol_brier"}


def describe_scores(table: pd.DataFrame) -> list[str]:
    """The scores by which candidates are compared, one table per protocol; a dash where nothing is predicted."""
    metrics = [name for name in COMPARED if name in table and table[name].notna().any()]
    columns = [f"{NAMES[name]} {'↓' if name in LOWER_IS_BETTER else '↑'}" for name in metrics]
    width = max(len(title) for title in table["title"])
    lines = []
    for protocol, own in table.groupby("protocol", sort=False):
        lines.append(f"{f'{protocol}, test polymers':<{width}}" + "".join(f"{name:>13}" for name in columns))
        for title, *scores in own[["title", *metrics]].itertuples(index=False, name=None):
            cells = ["–" if np.isnan(score) else f"{score:.3f}" for score in scores]
            lines.append(f"{title:<{width}}" + "".join(f"{cell:>13}" for cell in cells))
        lines.append("")
    return lines


def reach_verdict(table: pd.DataFrame, differences: pd.DataFrame, gaps: pd.DataFrame) -> list[str]:
    """The findings of the comparison, one sentence each, for every protocol."""
    sentences = []
    titles = {str(row): str(title) for row, title in zip(table["row"], table["title"], strict=True)}
    for protocol in table["protocol"].unique():
        own = table[table["protocol"] == protocol].set_index("row")
        shown = differences[differences["protocol"] == protocol]
        metric = "objective" if "objective" in set(shown["metric"]) else str(shown["metric"].iloc[0])
        for row, what in (
            ("transfer_best", "the transfer-aware search"),
            ("transfer_noise_aware", "its choice by fresh runs of the best trials"),
            ("stage1_best", "tuning Stage 1 for its own loss"),
            ("random_best", "random search"),
            ("default_full", "fine-tuning the default configuration in full"),
            ("transfer_full", "with both models fine-tuned in full, the transfer-aware search"),
        ):
            if row == "random_best" and _is_transfer_search(own):
                sentences.append(
                    f"{protocol}: random search chose the same configurations as the transfer-aware search, with the "
                    "same scores; the first search.n_startup_trials trials of a search are drawn at random, so short "
                    "searches are identical"
                )
                continue
            sentences += _judge_difference(shown, row, metric, protocol, what, titles)
        sentences += _judge_scratch(shown, metric, protocol)
        sentences += _name_winners(own, protocol, titles)
    return [
        *sentences,
        *describe_gaps(gaps),
        "intervals cover the choice of polymers, not of seeds and searches; a comparison with another --seed shows "
        "how much those matter",
    ]


def _is_transfer_search(own: pd.DataFrame) -> bool:
    """Whether the random search and the transfer-aware one agree in every score."""
    if not {"random_best", "transfer_best"} <= set(own.index):
        return False
    scores = own[[name for name in NAMES if name in own]].T
    return scores["random_best"].equals(scores["transfer_best"])


def _line(shown: pd.DataFrame, row: str, metric: str) -> tuple[float, float, float] | None:
    found = shown[(shown["row"] == row) & (shown["metric"] == metric)]
    if found.empty:
        return None
    return float(found["difference"].iloc[0]), float(found["low"].iloc[0]), float(found["high"].iloc[0])


def _as_error(line: tuple[float, float, float], metric: str) -> tuple[float, float, float]:
    """A difference with its interval, with its sign such that lower is better."""
    return line if metric in LOWER_IS_BETTER else (-line[0], -line[2], -line[1])


def _judge_difference(
    shown: pd.DataFrame, row: str, metric: str, protocol: str, what: str, titles: Mapping[str, str]
) -> list[str]:
    line = _line(shown, row, metric)
    if line is None:
        return []
    against = titles[str(shown.loc[shown["row"] == row, "against"].iloc[0])]
    if line == (0.0, 0.0, 0.0) and (
        shown.loc[shown["row"] == row, ["difference", "low", "high"]].fillna(0.0) == 0.0
    ).all(axis=None):
        return [f"{protocol}: {what} chose the {against} in every outer fold, so no score differs"]
    _, low, high = _as_error(line, metric)
    if high < 0:
        verdict = f"{what} helped"
    elif low > 0:
        verdict = f"{what} made things worse"
    else:
        verdict = f"{what} did not help significantly"
    return [
        f"{protocol}: {verdict} ({NAMES[metric]} minus that of the {against}: {line[0]:+.4f}, "
        f"95 % interval {line[1]:+.4f} to {line[2]:+.4f})"
    ]


def _judge_scratch(shown: pd.DataFrame, metric: str, protocol: str) -> list[str]:
    line = _line(shown, "no_stage1", metric)
    if line is None:
        return []
    _, low, high = _as_error(line, metric)
    if low > 0:
        verdict = "Stage 1 helps"
    elif high < 0:
        verdict = "Stage 1 hurts: the same network from scratch does better"
    else:
        verdict = "these data show no effect of Stage 1"
    return [
        f"{protocol}: {verdict} (without it the {NAMES[metric]} changes by {line[0]:+.4f}, "
        f"{line[1]:+.4f} to {line[2]:+.4f}){_tell_others(shown, metric, low > 0, high < 0)}"
    ]


def _tell_others(shown: pd.DataFrame, metric: str, is_worse: bool, is_better: bool) -> str:
    """Other scores that, without Stage 1, clearly change in a different direction from `metric`."""
    better: list[str] = []
    worse: list[str] = []
    for other in NAMES:
        line = None if other == metric else _line(shown, "no_stage1", other)
        if line is None:
            continue
        _, low, high = _as_error(line, other)
        told = f"{NAMES[other]} {line[0]:+.4f}, {line[1]:+.4f} to {line[2]:+.4f}"
        if high < 0 and not is_better:
            better.append(told)
        elif low > 0 and not is_worse:
            worse.append(told)
    return "".join(
        f"; {word} without it: {'; '.join(scores)}" for word, scores in (("better", better), ("worse", worse)) if scores
    )


def _name_winners(own: pd.DataFrame, protocol: str, titles: Mapping[str, str]) -> list[str]:
    sentences = []
    for metric in ("exp_mae", "sol_f1", "sol_auc"):
        if metric in own and own[metric].notna().any():
            values = own[metric].dropna()
            winner = str(values.idxmin() if metric in LOWER_IS_BETTER else values.idxmax())
            sentences.append(
                f"{protocol}: best {NAMES[metric]} is {values[winner]:.3f}, by {titles[winner]} "
                f"(default configuration {values.get('default', float('nan')):.3f})"
            )
    return sentences


def describe_gaps(gaps: pd.DataFrame) -> list[str]:
    """How far the raw best value and the corrected one are from the outer truth, by protocol.

    One is called closer only if the mean absolute gaps differ by more than the paired 95 % interval over outer folds
    (Student's t); the mean gap gives the direction of the error.
    """
    sentences = []
    for protocol in gaps["protocol"].unique():
        own = gaps[(gaps["protocol"] == protocol) & np.isfinite(gaps["truth"])]
        if own.empty:
            continue
        raw, corrected = own["raw"] - own["truth"], own["corrected"] - own["truth"]
        nearer = (raw.abs() - corrected.abs()).to_numpy()
        half_width = mean_half_width(nearer)
        difference = float(nearer.mean())
        if abs(difference) <= half_width:
            verdict = "is neither closer to nor farther from the test scores of the outer folds than the raw best value"
        else:
            place = "closer to" if difference > 0 else "farther from"
            verdict = f"is {place} the test scores of the outer folds than the raw best value"
        uncertainty = f", difference {difference:+.4f} ± {half_width:.4f}" if np.isfinite(half_width) else ""
        sentences.append(
            f"{protocol}: the corrected estimate {verdict}: mean absolute gap {corrected.abs().mean():.4f} against "
            f"{raw.abs().mean():.4f}{uncertainty}, over {say_count(len(own), 'outer fold')}; on average it is off by "
            f"{corrected.mean():+.4f}, the raw best value by {raw.mean():+.4f}"
        )
    return sentences
