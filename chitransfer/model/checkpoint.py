"""Model files: one file of tensors and plain values, checked before use; reading it executes nothing.

Written by `training.pretrain` and `training.finetune`; read by `training.finetune` and `predict`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chitransfer.chemistry.features import FEATURE_VERSION, FeatureRecipe
from chitransfer.errors import CheckpointError
from chitransfer.files import write_atomically
from chitransfer.model.calibration import ChiInterval, ProbabilityCalibration
from chitransfer.model.domain import ApplicabilityDomain
from chitransfer.model.members import FittedMembers
from chitransfer.model.network import NetworkShape, TransferNetwork
from chitransfer.model.scalers import ChiScaler, FeatureScaler
from chitransfer.model.tensor_file import MALFORMED, first_line, open_file, pack_content, read_content

PRETRAINED, MODEL, STATE = "Stage 1 network", "fine-tuned model", "interrupted Stage 1"
HINTS = {
    PRETRAINED: "; give a best_model.pt of `chitransfer pretrain`",
    MODEL: "; give a best_model.pt of `chitransfer finetune`",
}


@dataclass(frozen=True)
class Scales:
    """Everything that converts structures and χ to network inputs and back.

    Attributes
    ----------
    recipe
        How features are computed.
    polymer, solvent
        Scalers of the two parts of the features.
    chi
        Scaler of Stage 1's χ.
    T_ref
        Kelvin; the temperature at which χ(T) equals its first coefficient.
    """

    recipe: FeatureRecipe
    polymer: FeatureScaler
    solvent: FeatureScaler
    chi: ChiScaler
    T_ref: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "recipe": self.recipe.to_dict(),
            "polymer": vars(self.polymer),
            "solvent": vars(self.solvent),
            "chi": vars(self.chi),
            "T_ref": self.T_ref,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scales:
        """The inverse of `to_dict`."""
        polymer, solvent = (
            FeatureScaler(int(part["n_fingerprint"]), part["mean"].numpy(), part["scale"].numpy())
            for part in (values["polymer"], values["solvent"])
        )
        recipe = FeatureRecipe.from_dict(values["recipe"])
        return cls(recipe, polymer, solvent, ChiScaler(**values["chi"]), float(values["T_ref"]))


@dataclass(frozen=True)
class Pretrained:
    """The result of Stage 1: networks that differ in their seed, and how they were made.

    Attributes
    ----------
    validation_polymers, test_polymers
        Identities Stage 1 did not learn from; Stage 2 also leaves the test polymers out.
    provenance
        Versions, configuration (YAML text), SHA-256 of the tables, date.
    """

    scales: Scales
    networks: list[TransferNetwork]
    validation_polymers: tuple[str, ...]
    test_polymers: tuple[str, ...]
    provenance: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the checkpoint atomically."""
        content = {
            "scales": self.scales.to_dict(),
            "shape": self.networks[0].shape.to_dict(),
            "networks": [network.state_dict() for network in self.networks],
            "validation_polymers": list(self.validation_polymers),
            "test_polymers": list(self.test_polymers),
        }
        save_checkpoint(path, PRETRAINED, content, self.provenance)

    @classmethod
    def load(cls, path: Path) -> Pretrained:
        """Read a checkpoint of Stage 1; raises CheckpointError as `TrainedModel.load` does."""
        content, provenance = load_checkpoint(path, PRETRAINED)
        _refuse_other_features(path, content, provenance)
        try:
            shape = NetworkShape.from_dict(content["shape"])
            return cls(
                Scales.from_dict(content["scales"]),
                [_network(shape, state) for state in content["networks"]],
                tuple(content["validation_polymers"]),
                tuple(content["test_polymers"]),
                provenance,
            )
        except MALFORMED as error:
            raise CheckpointError(f"{path}: the file is incomplete or inconsistent ({first_line(error)})") from error


@dataclass(frozen=True)
class TrainedModel:
    """The final model: members of every pretrained network, and everything their predictions need.

    Attributes
    ----------
    groups
        One per pretrained network.
    chi_interval, probability
        Calibrated on left-out polymers; ``None`` for a task without measured rows.
    positive_label
        The label (1 soluble, 0 insoluble) whose probability the networks give.
    threshold
        `probability >= threshold` calls the positive label.
    """

    scales: Scales
    groups: list[FittedMembers]
    chi_interval: ChiInterval | None
    probability: ProbabilityCalibration | None
    positive_label: int
    threshold: float
    domain: ApplicabilityDomain
    provenance: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the checkpoint atomically."""
        content = {
            "scales": self.scales.to_dict(),
            "shape": self.groups[0].network.shape.to_dict(),
            "groups": [
                {
                    "network": group.network.state_dict(),
                    "frozen": group.frozen,
                    "parameters": group.parameters,
                    "columns": group.columns,
                    "learned_chi": group.learned_chi,
                }
                for group in self.groups
            ],
            "chi_interval": None if self.chi_interval is None else self.chi_interval.to_dict(),
            "probability": None if self.probability is None else self.probability.to_dict(),
            "positive_label": self.positive_label,
            "threshold": self.threshold,
            "domain": self.domain.to_dict(),
        }
        save_checkpoint(path, MODEL, content, self.provenance)

    @classmethod
    def load(cls, path: Path) -> TrainedModel:
        """Read a fine-tuned model.

        Raises
        ------
        CheckpointError
            As in `load_checkpoint`; or another program version computes its features differently, with the difference.
        """
        content, provenance = load_checkpoint(path, MODEL)
        _refuse_other_features(path, content, provenance)
        try:
            shape = NetworkShape.from_dict(content["shape"])
            if not content["groups"]:
                raise ValueError("there are no networks in it")
            interval, probability = content["chi_interval"], content["probability"]
            model = cls(
                scales=Scales.from_dict(content["scales"]),
                groups=[_group(shape, group, interval is not None) for group in content["groups"]],
                chi_interval=None if interval is None else ChiInterval.from_dict(interval),
                probability=None if probability is None else ProbabilityCalibration.from_dict(probability),
                positive_label=int(content["positive_label"]),
                threshold=float(content["threshold"]),
                domain=ApplicabilityDomain.from_dict(content["domain"]),
                provenance=provenance,
            )
        except MALFORMED as error:
            raise CheckpointError(f"{path}: the file is incomplete or inconsistent ({first_line(error)})") from error
        return model


def check_recipe(path: Path, known: FeatureRecipe, wanted: FeatureRecipe) -> None:
    """Refuse a checkpoint whose features differ from those the data would get.

    Raises
    ------
    CheckpointError
        With every difference.
    """
    mine, theirs = wanted.to_dict(), known.to_dict()
    differences = [
        f"  {key}: the model has {theirs[key]!r}, here {mine[key]!r}" for key in mine if theirs[key] != mine[key]
    ]
    if differences:
        raise CheckpointError(
            f"{path}: was made from other features\n"
            + "\n".join(differences)
            + "\nSet the chem section as the model has it (with_solvent follows from the tables), or pretrain again."
        )


def save_checkpoint(path: Path, kind: str, content: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Write tensors and plain values atomically as one file with a checksum over all of it."""
    write_atomically(path, pack_content(kind, content, provenance))


def load_checkpoint(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Content and provenance of a file written by `save_checkpoint`, on the CPU; nothing in it is executed.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, cut short, not chitransfer's, of another kind, or of a newer format.
    """
    with open_file(path) as stream:
        return read_content(stream, path, kind, hint=HINTS.get(kind, ""))


def _refuse_other_features(path: Path, content: dict[str, Any], provenance: dict[str, Any]) -> None:
    version = content.get("scales", {}).get("recipe", {}).get("version")
    if version != FEATURE_VERSION:
        raise CheckpointError(
            f"{path}: its features are of version {version}, this chitransfer makes version {FEATURE_VERSION}; "
            f"use chitransfer {provenance.get('versions', {}).get('chitransfer', 'of its time')}, or train it again"
        )


def _network(shape: NetworkShape, state: dict[str, Tensor]) -> TransferNetwork:
    with torch.random.fork_rng(devices=[]):
        network = TransferNetwork(shape)
    network.load_state_dict(state)
    return network.eval()


def _group(shape: NetworkShape, values: dict[str, Any], has_interval: bool) -> FittedMembers:
    parameters = dict(values["parameters"])
    learned_chi = values.get("learned_chi")
    if learned_chi is None and not has_interval:
        # From a release that did not store it.
        learned_chi = torch.zeros(len(next(iter(parameters.values()))), dtype=torch.bool)
    group = FittedMembers(
        _network(shape, values["network"]), parameters, bool(values["frozen"]), values["columns"], learned_chi
    )
    own: nn.Module = group.network.heads if group.frozen else group.network
    names = {name for name, _ in own.named_parameters()}
    if set(group.parameters) != names:
        raise ValueError(f"the members' weights are {sorted(group.parameters)}, expected {sorted(names)}")
    # If a member can be extracted as a network, all weights have the right shapes.
    group.member(len(group) - 1)
    return group
