"""From Stage 1 to full Stage 2: what the checkpoint fixes and what the configuration may still choose.

Called by `training.finetune`.
"""

from __future__ import annotations

from dataclasses import replace

from chitransfer.config import Config, override_config
from chitransfer.counts import say_count
from chitransfer.data.tables import Table
from chitransfer.model.checkpoint import Pretrained
from chitransfer.model.network import NetworkShape, TransferNetwork
from chitransfer.training.settings import network_shape

# Keys of `model` in the configuration, by attribute of the network shape.
FIXED_BY_STAGE1 = {
    "hidden_dims": "encoder_hidden_dims",
    "latent_dim": "encoder_latent_dim",
    "use_batchnorm": "use_batchnorm",
    "chi_head_hidden_dim": "chi_head_hidden_dim",
}
FREE_IN_STAGE2 = ("encoder_dropout", "chi_head_dropout", "solubility_head_dropout", "solubility_head_hidden_dim")


def hand_over(stage1: Pretrained, config: Config) -> tuple[Pretrained, Config, list[str]]:
    """Reconcile the checkpoint with the configuration of Stage 2.

    Dropouts and the solubility head, which Stage 1 does not train, follow the configuration. All other sizes, T_ref,
    the number of networks and the share of test polymers follow the checkpoint.

    Returns
    -------
    tuple
        The checkpoint with its networks in the requested shape, the configuration as used, and one sentence for every
        difference found.
    """
    shape = stage1.networks[0].shape
    wanted = network_shape(config, shape.n_features)
    notes, used = [], {}
    for name, key in FIXED_BY_STAGE1.items():
        own, asked = getattr(shape, name), getattr(wanted, name)
        used[f"model.{key}"] = list(own) if isinstance(own, tuple) else own
        if own != asked:
            notes.append(_describe(f"model.{key}", own, asked))
    used["T_ref_K"] = stage1.scales.T_ref
    if stage1.scales.T_ref != config.T_ref_K:
        notes.append(_describe("T_ref_K", stage1.scales.T_ref, config.T_ref_K))
    # A checkpoint of an earlier release does not record its share.
    test_fraction = stage1.provenance.get("test_fraction", config.training.test_fraction)
    for name, own in (("n_networks", len(stage1.networks)), ("test_fraction", test_fraction)):
        used[f"training.{name}"] = own
        if own != (asked := getattr(config.training, name)):
            notes.append(_describe(f"training.{name}", own, asked))
    free = {name: getattr(wanted, name) for name in FREE_IN_STAGE2}
    notes += [
        f"model.{name}: {value}, as configured; Stage 1 was trained with {getattr(shape, name)}"
        for name, value in free.items()
        if value != getattr(shape, name)
    ]
    networks = [_with_shape(network, replace(shape, **free)) for network in stage1.networks]
    return replace(stage1, networks=networks), override_config(config, used), notes


def describe_other_table(stage1: Pretrained, computed: Table) -> list[str]:
    """A warning if the computed χ comes from another file than Stage 1 learned from; none where that is unknown."""
    learned = stage1.provenance.get("tables", {}).get(computed.kind)
    if learned is None or learned["sha256"] == computed.digest:
        return []
    return [
        f"warning: Stage 1 was trained on {learned['source']} ({say_count(learned['rows'], 'row')}), but "
        f"paths.dft_chi_csv is now {computed.source} ({say_count(len(computed), 'row')}): the solvents of the latter "
        "count as seen in training, and its computed χ is rehearsed while the encoder is fine-tuned; set the former "
        "unless this is intended"
    ]


def _describe(key: str, own: object, asked: object) -> str:
    return f"{key}: {_spell(own)}, as Stage 1 was trained, not {_spell(asked)} as configured"


def _spell(value: object) -> str:
    return "_".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _with_shape(network: TransferNetwork, shape: NetworkShape) -> TransferNetwork:
    """The weights that Stage 1 trained, in a network of the given shape."""
    if network.shape == shape:
        return network
    changed = TransferNetwork(shape)
    changed.encoder.load_state_dict(network.encoder.state_dict())
    changed.heads.chi.load_state_dict(network.heads.chi.state_dict())
    return changed.eval()
