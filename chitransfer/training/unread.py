"""Settings that fine-tuning does not read, reported where a command sets them.

Called by `chitransfer finetune` before it reads a table; `search.unread` does the same for a search.
"""

from __future__ import annotations

from collections.abc import Iterable

from chitransfer.config import Config

# Read only by a search, though one might expect otherwise: the length of quick Stage 2 and the weights of its scores.
OF_A_SEARCH = ("training.stage2_epochs", "objective")
# Read only by Stage 1.
OF_STAGE1 = tuple(
    f"training.{key}"
    for key in (
        "precision",
        "lr_pretrain",
        "weight_decay",
        "batch_size_dft",
        "min_batches_per_epoch",
        "num_epochs_pretrain",
        "min_epochs_pretrain",
        "validation_fraction",
        "min_validation_polymers",
        "early_stopping_patience",
        "lr_schedule_patience",
        "lr_schedule_factor",
    )
)
# Read by Stage 2 only when it fine-tunes the encoder.
OF_THE_ENCODER = ("training.lr_encoder", "training.lambda_dft")


def describe_without_effect(config: Config, overrides: Iterable[str]) -> list[str]:
    """One line each for overrides read only by a search, only by Stage 1, or only without a frozen encoder."""
    given = sorted(overrides)
    lines = []
    searched = [key for key in given if key in OF_A_SEARCH or key.startswith("objective.")]
    if searched:
        lines.append(
            f"warning: without effect in full training: {', '.join(searched)}; only a search uses that, fine-tuning "
            "runs for training.num_epochs_finetune epochs and weights its losses by training.lambda_exp and "
            "lambda_sol"
        )
    if of_stage1 := [key for key in given if key in OF_STAGE1]:
        lines.append(f"warning: without effect in Stage 2: {', '.join(of_stage1)}; only chitransfer pretrain uses that")
    of_the_encoder = [key for key in given if key in OF_THE_ENCODER]
    if of_the_encoder and config.training.freeze_encoder_stage2:
        lines.append(describe_without_effect_while_frozen(of_the_encoder))
    return lines


def describe_without_effect_while_frozen(keys: Iterable[str]) -> str:
    """A line about keys that are not read while the encoder is frozen."""
    return (
        f"warning: without effect while the encoder is frozen: {', '.join(keys)}; "
        "--set training.freeze_encoder_stage2=false fine-tunes it"
    )
