"""Settings that fine-tuning does not read: told where a command asks for them.

Called by `chitransfer finetune` before it reads a table.
"""

from __future__ import annotations

from collections.abc import Iterable

from chitransfer.config import Config

# What a search alone reads, though one might think otherwise: the length of quick Stage 2, and its scores' weights.
OF_A_SEARCH = ("training.stage2_epochs", "objective")
# What Stage 2 reads only where it fine-tunes the encoder.
OF_THE_ENCODER = ("training.lr_encoder", "training.lambda_dft")


def describe_without_effect(config: Config, overrides: Iterable[str]) -> list[str]:
    """A line on overrides that only a search heeds, and one on those that a frozen encoder has no use for."""
    given = sorted(overrides)
    lines = []
    searched = [key for key in given if key in OF_A_SEARCH or key.startswith("objective.")]
    if searched:
        lines.append(
            f"warning: without effect in full training: {', '.join(searched)}; that is of a search, fine-tuning runs "
            "training.num_epochs_finetune epochs and weighs its losses by training.lambda_exp and lambda_sol"
        )
    of_the_encoder = [key for key in given if key in OF_THE_ENCODER]
    if of_the_encoder and config.training.freeze_encoder_stage2:
        lines.append(
            f"warning: without effect while the encoder is frozen: {', '.join(of_the_encoder)}; "
            "--set training.freeze_encoder_stage2=false fine-tunes it"
        )
    return lines
