"""Model files: one file of tensors and plain values that executes nothing when read and is checked before use.

Written by `training.pretrain` and `training.finetune`; read by `training.finetune` and `predict`.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chitransfer.chemistry.features import FEATURE_VERSION, FeatureRecipe
from chitransfer.errors import CheckpointError
from chitransfer.files import replace_atomically
from chitransfer.model.calibration import ChiInterval, ProbabilityCalibration
from chitransfer.model.domain import ApplicabilityDomain
from chitransfer.model.members import FittedMembers
from chitransfer.model.network import NetworkShape, TransferNetwork
from chitransfer.model.scalers import ChiScaler, FeatureScaler

MAGIC = "chitransfer model"
FORMAT_VERSION = 1
PRETRAINED, MODEL, STATE = "Stage 1 network", "fine-tuned model", "interrupted Stage 1"
ZIP_START = b"PK\x03\x04"
# What torch.load and the rebuilding of a model raise when a file is not what it seems.
BROKEN = (
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    EOFError,
    OSError,
    UnicodeDecodeError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class Scales:
    """What turns structures and χ into what a network reads and back.

    Attributes
    ----------
    recipe
        How features are made.
    polymer, solvent
        Scalers of either part of the features.
    chi
        Of Stage 1's χ.
    T_ref
        Kelvin; the temperature at which χ(T) has its first coefficient.
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
    """What Stage 1 leaves behind: networks that differ in their seed, and how they were made.

    Attributes
    ----------
    validation_polymers, test_polymers
        Identities Stage 1 did not learn from; Stage 2 keeps the test polymers out as well.
    provenance
        Versions, configuration (YAML text), SHA-256 of the tables, date.
    """

    scales: Scales
    networks: list[TransferNetwork]
    validation_polymers: tuple[str, ...]
    test_polymers: tuple[str, ...]
    provenance: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the checkpoint, atomically."""
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
        """Read a checkpoint of Stage 1; raises CheckpointError as `load_checkpoint` does."""
        content, provenance = load_checkpoint(path, PRETRAINED)
        try:
            shape = NetworkShape.from_dict(content["shape"])
            return cls(
                Scales.from_dict(content["scales"]),
                [_network(shape, state) for state in content["networks"]],
                tuple(content["validation_polymers"]),
                tuple(content["test_polymers"]),
                provenance,
            )
        except BROKEN as error:
            raise CheckpointError(f"{path}: the file is incomplete or inconsistent ({_first_line(error)})") from error


@dataclass(frozen=True)
class TrainedModel:
    """A model people use: members of every pretrained network, and everything their predictions need.

    Attributes
    ----------
    groups
        One a pretrained network.
    chi_interval, probability
        Calibrated on polymers left out; ``None`` for a task that had no measured rows.
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
        """Write the checkpoint, atomically."""
        content = {
            "scales": self.scales.to_dict(),
            "shape": self.groups[0].network.shape.to_dict(),
            "groups": [
                {
                    "network": group.network.state_dict(),
                    "frozen": group.frozen,
                    "parameters": group.parameters,
                    "columns": group.columns,
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
            As `load_checkpoint`; or its features are made by another version of the program, with the difference.
        """
        content, provenance = load_checkpoint(path, MODEL)
        version = content.get("scales", {}).get("recipe", {}).get("version")
        if version != FEATURE_VERSION:
            raise CheckpointError(
                f"{path}: its features are of version {version}, this chitransfer makes version {FEATURE_VERSION}; "
                f"use chitransfer {provenance.get('versions', {}).get('chitransfer', 'of its time')}, or train it again"
            )
        try:
            shape = NetworkShape.from_dict(content["shape"])
            if not content["groups"]:
                raise ValueError("there are no networks in it")
            interval, probability = content["chi_interval"], content["probability"]
            model = cls(
                scales=Scales.from_dict(content["scales"]),
                groups=[_group(shape, group) for group in content["groups"]],
                chi_interval=None if interval is None else ChiInterval.from_dict(interval),
                probability=None if probability is None else ProbabilityCalibration.from_dict(probability),
                positive_label=int(content["positive_label"]),
                threshold=float(content["threshold"]),
                domain=ApplicabilityDomain.from_dict(content["domain"]),
                provenance=provenance,
            )
        except BROKEN as error:
            raise CheckpointError(f"{path}: the file is incomplete or inconsistent ({_first_line(error)})") from error
        return model


def check_recipe(path: Path, known: FeatureRecipe, wanted: FeatureRecipe) -> None:
    """Refuse a checkpoint whose features are not the ones the data would be given.

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
    """Write tensors and plain values as one file with a checksum over all of it, atomically."""
    plain = {"content": _plain(content), "provenance": _plain(provenance)}
    whole = {"magic": MAGIC, "format_version": FORMAT_VERSION, "kind": kind, "sha256": _digest(plain), **plain}
    replace_atomically(path, lambda temporary: torch.save(whole, temporary))


def load_checkpoint(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Content and provenance of a file written by `save_checkpoint`, on the CPU; nothing in it is executed.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, cut short, not chitransfer's, of another kind, or of a newer format.
    """
    whole = _read(path)
    if not isinstance(whole, dict) or whole.get("magic") != MAGIC:
        raise CheckpointError(f"{path}: not a chitransfer model file")
    version = whole.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: written in format {version!r}, this chitransfer reads up to {FORMAT_VERSION}; "
            "install a newer chitransfer"
        )
    if whole.get("kind") != kind:
        hint = {
            PRETRAINED: "; give a best_model.pt of `chitransfer pretrain`",
            MODEL: "; give a best_model.pt of `chitransfer finetune`",
        }.get(kind, "")
        raise CheckpointError(f"{path}: holds a {whole.get('kind')}, needed is a {kind}{hint}")
    content, provenance = whole.get("content"), whole.get("provenance")
    if not isinstance(content, dict) or not isinstance(provenance, dict):
        raise CheckpointError(f"{path}: the file is incomplete")
    if _digest({"content": content, "provenance": provenance}) != whole.get("sha256"):
        raise CheckpointError(f"{path}: the file is damaged (its checksum does not fit); get it again")
    return content, provenance


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such model file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); give the .pt file itself") from error
    if start != ZIP_START:
        raise CheckpointError(f"{path}: not a chitransfer model file")
    if not _has_directory(path):
        raise CheckpointError(f"{path}: the file is cut short or damaged; get it again")
    try:
        with warnings.catch_warnings():
            # What PyTorch warns of in foreign files ends in an error below.
            warnings.simplefilter("ignore")
            return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: not a chitransfer model file (it asks for code to be run)") from error
    except BROKEN as error:
        raise CheckpointError(f"{path}: the file is damaged ({_first_line(error)}); get it again") from error


def _has_directory(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        # Some versions of Python raise for a damaged ZIP64 end record.
        return False


def _network(shape: NetworkShape, state: dict[str, Tensor]) -> TransferNetwork:
    with torch.random.fork_rng(devices=[]):
        network = TransferNetwork(shape)
    network.load_state_dict(state)
    return network.eval()


def _group(shape: NetworkShape, values: dict[str, Any]) -> FittedMembers:
    group = FittedMembers(
        _network(shape, values["network"]), dict(values["parameters"]), bool(values["frozen"]), values["columns"]
    )
    own: nn.Module = group.network.heads if group.frozen else group.network
    names = {name for name, _ in own.named_parameters()}
    if set(group.parameters) != names:
        raise ValueError(f"the members' weights are {sorted(group.parameters)}, expected {sorted(names)}")
    # A member that can be taken out as a network has every weight in its right shape.
    group.member(len(group) - 1)
    return group


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key if isinstance(key, int) else str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value).copy())
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().clone()
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values, not {type(value).__name__}")


def _digest(value: Any) -> str:
    digest = hashlib.sha256()
    for part in _bytes(value):
        digest.update(part)
    return digest.hexdigest()


def _bytes(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        yield b"{"
        for key, inner in value.items():
            yield repr(key).encode()
            yield from _bytes(inner)
        yield b"}"
    elif isinstance(value, list):
        yield b"["
        for inner in value:
            yield from _bytes(inner)
        yield b"]"
    elif isinstance(value, Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield value.contiguous().view(-1).numpy().tobytes()
    else:
        yield repr(value).encode()


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
