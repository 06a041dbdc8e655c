"""Settings that full training does not read: refused where a command asks for them.

Called by `chitransfer pretrain` and `finetune` before they read a table.
"""

from __future__ import annotations

from collections.abc import Iterable

from chitransfer.config import Config
from chitransfer.errors import ConfigError

# What a search alone reads, though one might think otherwise: the length of quick Stage 2, and its scores' weights.
OF_A_SEARCH = ("training.stage2_epochs", "objective")
# What Stage 2 reads only where it fine-tunes the encoder.
OF_THE_ENCODER = ("training.lr_encoder", "training.lambda_dft")


def refuse_without_effect(overrides: Iterable[str]) -> None:
    """Refuse overrides that neither stage of full training would heed.

    Raises
    ------
    ConfigError
        There are some; the message names them.
    """
    useless = sorted(key for key in overrides if key in OF_A_SEARCH or key.startswith("objective."))
    if useless:
        raise ConfigError(
            f"without effect in full training: {', '.join(useless)}; leave it out. It is of a search; fine-tuning "
            "runs training.num_epochs_finetune epochs and weighs its losses by training.lambda_exp and lambda_sol"
        )


def refuse_encoder_settings(config: Config, overrides: Iterable[str]) -> None:
    """Refuse overrides of the encoder's fine-tuning where it is frozen.

    Raises
    ------
    ConfigError
        There are some; the message names them.
    """
    useless = sorted(set(overrides).intersection(OF_THE_ENCODER))
    if useless and config.training.freeze_encoder_stage2:
        raise ConfigError(
            f"without effect while the encoder is frozen: {', '.join(useless)}; leave it out, or fine-tune the encoder "
            "by --set training.freeze_encoder_stage2=false"
        )
