"""Formulas of the user's guide, written again by hand."""

from __future__ import annotations


def guide_objective(exp_mae: float, sol_f1: float, sol_recall: float, stage1_mae: float) -> float:
    """The formula as the guide writes it."""
    return 1.5 * exp_mae + 2.0 * (1 - sol_f1) + 1.5 * (1 - sol_recall) + 0.1 * stage1_mae
