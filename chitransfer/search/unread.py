"""Settings and searched parameters that no trial reads: reported, or refused if nothing is left to search.

Called by `chitransfer search`, `search.run`, `search.second_pass` and `search.space`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from chitransfer.config import Config
from chitransfer.data.splits import count_held_out
from chitransfer.errors import ConfigError
from chitransfer.sections import FULL_TRAINING_KEYS
from chitransfer.training.unread import describe_without_effect_while_frozen

if TYPE_CHECKING:
    from chitransfer.data.assemble import Dataset

# For each key of `paths` that names a Stage 2 table, the keys read only with that table.
KEYS_OF_TABLES = {
    "exp_chi_csv": ("training.lambda_exp",),
    "solubility_csv": (
        "training.lambda_sol",
        "training.class_weight_pos",
        "model.solubility_head_hidden_dim",
        "model.solubility_head_dropout",
    ),
}
# Read by Stage 1 only if it is judged by its validation MAE (`stage1.Stage1Run.is_by_chance`).
OF_THE_VALIDATION_MAE = (
    "training.min_epochs_pretrain",
    "training.early_stopping_patience",
    "training.lr_schedule_patience",
    "training.lr_schedule_factor",
)


def keeps_encoder_frozen(config: Config) -> bool:
    """Whether no trial fine-tunes the encoder, so that none reads `training.lr_encoder`."""
    searched = {parameter.key for parameter in config.search.space.values()}
    return config.training.freeze_encoder_stage2 and "training.freeze_encoder_stage2" not in searched


def refuse_rate_of_frozen_encoder(config: Config, section: str = "search") -> None:
    """Refuse to search the encoder's learning rate in Stage 2 if no trial reads it.

    Parameters
    ----------
    section
        Configuration section of the search space, for the message.

    Raises
    ------
    ConfigError
        The search space has `training.lr_encoder`, and all encoders stay frozen.
    """
    names = [name for name, parameter in config.search.space.items() if parameter.key == "training.lr_encoder"]
    if names and keeps_encoder_frozen(config):
        raise ConfigError(
            f"{section}.space.{names[0]}.key: no trial uses training.lr_encoder while training.freeze_encoder_stage2 "
            "is true, so all its values would score the same; leave it out, or also search "
            "training.freeze_encoder_stage2, or set it to false"
        )


def describe_unread(config: Config, overrides: Iterable[str]) -> list[str]:
    """A line on overrides read only by full training, and one on those unused while the encoder is frozen."""
    given = sorted(overrides)
    lines = []
    if of_full_training := [key for key in given if key in FULL_TRAINING_KEYS]:
        lines.append(
            f"warning: without effect in a search: {', '.join(of_full_training)}; only full training (pretrain, "
            "finetune) uses that, quick Stage 2 runs for training.stage2_epochs epochs"
        )
    if "training.lr_encoder" in given and keeps_encoder_frozen(config):
        lines.append(describe_without_effect_while_frozen(["training.lr_encoder"]))
    return [*lines, *describe_unread_parameters(config)]


def describe_unread_parameters(config: Config, section: str = "search") -> list[str]:
    """A line on searched parameters of a Stage 2 table that is missing: all their values score the same.

    Parameters
    ----------
    section
        Configuration section of the search space, for the message.
    """
    lines = []
    for name, parameter in config.search.space.items():
        for path, keys in KEYS_OF_TABLES.items():
            if parameter.key in keys and getattr(config.paths, path) is None:
                lines.append(
                    f"warning: {section}.space.{name}: no trial uses {parameter.key} while paths.{path} is null, so "
                    "all its values score the same"
                )
    return lines


def is_judged_by_held_out(config: Config, dataset: Dataset) -> bool:
    """Whether Stage 1 holds out enough polymers for validation (`training.min_validation_polymers`)."""
    return _count_held_out(config, dataset) >= config.training.min_validation_polymers


def describe_unread_in_stage1(config: Config, dataset: Dataset) -> list[str]:
    """A line on each searched parameter that Stage 1 ignores because it holds out too few polymers."""
    searched = {name: parameter.key for name, parameter in config.search.space.items()}
    if is_judged_by_held_out(config, dataset) or "training.min_validation_polymers" in searched.values():
        return []
    return [
        f"warning: search.space.{name}: no trial uses {key} while Stage 1 holds out fewer polymers "
        f"({_count_held_out(config, dataset)}) than training.min_validation_polymers "
        f"({config.training.min_validation_polymers}), so all its values score the same"
        for name, key in searched.items()
        if key in OF_THE_VALIDATION_MAE
    ]


def _count_held_out(config: Config, dataset: Dataset) -> int:
    return count_held_out(len(np.unique(dataset.stage1.polymer)), config.training.validation_fraction)
