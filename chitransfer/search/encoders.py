"""What is kept of a trial's Stage 1: results, named by the hash of what determines them, and intermediate states.

Packed by `search.runner`, written by `search.records`; `search.rescore` and `search.second_pass` read the results.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from chitransfer.config import Config
from chitransfer.data.assemble import Dataset
from chitransfer.errors import CheckpointError
from chitransfer.model.network import TransferNetwork
from chitransfer.model.tensor_file import MALFORMED, first_line, open_file, pack_records, read_records
from chitransfer.search.records import ENCODERS_FILE
from chitransfer.training.settings import network_shape, stage1_settings

KIND = "trial's Stage 1 result"
STATE = "state of a rung"
REMEDY = "restore the file or run the search again"
# The solubility head takes no part in Stage 1: Stage 2 gives it new weights, of the size configured then.
STAGE2_SHAPE_KEYS = ("solubility_head_hidden_dim", "solubility_head_dropout")


@dataclass(frozen=True)
class SavedEncoder:
    """Encoder and χ head of one pretraining seed at their best validation epoch.

    Attributes
    ----------
    key
        `stage1_key` of the run that produced them.
    weights
        By parameter name, on the CPU.
    mae
        Validation MAE of computed χ, in χ's own units.
    """

    key: str
    seed: int
    weights: dict[str, Tensor]
    mae: float
    best_epoch: int
    n_epochs: int

    def build(self, config: Config, n_features: int) -> TransferNetwork:
        """The network in eval mode; sizes and dropouts come from `config`, the solubility head is new.

        Raises
        ------
        CheckpointError
            The sizes in the configuration do not match the weights.
        """
        network = TransferNetwork(network_shape(config, n_features))
        own = {name for name in network.state_dict() if not name.startswith("heads.solubility.")}
        try:
            network.load_state_dict(self.weights, strict=False)
        except RuntimeError as error:
            raise CheckpointError(f"the kept Stage 1 weights do not fit the network ({error})") from error
        if own != set(self.weights):
            raise CheckpointError(
                f"the kept Stage 1 weights do not fit the network: {', '.join(sorted(own ^ set(self.weights)))}"
            )
        return network.eval()


def stage1_key(config: Config, dataset: Dataset, seed: int) -> str:
    """Hash of what determines a Stage 1 result: table, features, split settings, network, optimisation, seed.

    `config` is the trial's: the study's with its overrides. The polymers' names determine which are drawn for
    validation, but are left out because they differ between RDKit versions; `study.refuse_other_names` compares them.
    """
    shape = network_shape(config, dataset.recipe.n_features).to_dict()
    what = {
        "table": dataset.stage1.table.digest,
        "recipe": dataset.recipe.digest(),
        "control": config.search.control,
        "split": [config.seed, config.training.validation_fraction],
        "T_ref_K": config.T_ref_K,
        "shape": {name: value for name, value in shape.items() if name not in STAGE2_SHAPE_KEYS},
        "settings": asdict(stage1_settings(config)),
        "seed": seed,
        # Only where there are any: without this entry the key equals that of an earlier release, which did not merge
        # them.
        **({"stereo_variants": dataset.n_stereo_variants} if dataset.n_stereo_variants else {}),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def pack_encoders(encoders: Sequence[SavedEncoder]) -> bytes:
    """A trial's encoders as bytes, without the solubility head, which Stage 1 did not change."""
    return pack_records(
        KIND,
        [
            {
                **vars(encoder),
                "weights": {
                    name: tensor for name, tensor in encoder.weights.items() if not name.startswith("heads.solubility.")
                },
            }
            for encoder in encoders
        ],
    )


def read_encoders(folder: Path) -> list[SavedEncoder]:
    """The encoders kept in a trial's folder, also from earlier releases; executes nothing it reads.

    Raises
    ------
    CheckpointError
        There are none, or the file is damaged.
    """
    path = folder / ENCODERS_FILE
    if not path.exists():
        raise CheckpointError(
            f"{path}: missing, so this trial cannot be rescored without pretraining; only complete trials keep this "
            "file, pruned or failed ones do not"
        )
    with open_file(path) as stream:
        records = read_records(stream, path, KIND, REMEDY)
    try:
        return [_encoder(record) for record in records]
    except MALFORMED as error:
        raise CheckpointError(
            f"{path}: the file is incomplete or inconsistent ({first_line(error)}); {REMEDY}"
        ) from error


def _encoder(record: dict[str, Any]) -> SavedEncoder:
    weights = record["weights"]
    if not all(isinstance(tensor, Tensor) and bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise ValueError("some weights are not finite")
    return SavedEncoder(
        key=str(record["key"]),
        seed=int(record["seed"]),
        weights=weights,
        mae=float(record["mae"]),
        best_epoch=int(record["best_epoch"]),
        n_epochs=int(record["n_epochs"]),
    )


def pack_state(states: list[dict[str, Any]]) -> bytes:
    """Stage 1 states of all pretraining seeds of a trial as bytes."""
    return pack_records(STATE, states)


def unpack_state(state: bytes) -> list[dict[str, Any]]:
    """The inverse of `pack_state`, also for states from earlier releases; executes nothing it reads.

    Raises
    ------
    CheckpointError
        The bytes are damaged, or hold anything but tensors and plain values.
    """
    return read_records(io.BytesIO(state), "the state of its last rung", STATE, "no other trial needs it")
