"""Model files: what is written comes back, and what is not ours is refused without being executed."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chitransfer.chemistry.features import FeatureRecipe
from chitransfer.errors import CheckpointError
from chitransfer.model import checkpoint, tensor_file
from chitransfer.model.calibration import ChiInterval, ProbabilityCalibration
from chitransfer.model.checkpoint import (
    MODEL,
    STATE,
    Pretrained,
    Scales,
    TrainedModel,
    load_checkpoint,
    save_checkpoint,
)
from chitransfer.model.domain import ApplicabilityDomain, Neighbours
from chitransfer.model.members import FittedMembers, keep_columns
from chitransfer.model.network import NetworkShape, TransferNetwork
from chitransfer.model.scalers import ChiScaler, FeatureScaler

RECIPE = FeatureRecipe(fingerprint_bits=16)
WIDTH = RECIPE.n_structure_features


def make_scales() -> Scales:
    """Scales of water alone with 16 fingerprint bits."""
    n = WIDTH - 16
    polymer = FeatureScaler(16, np.linspace(0, 1, n).astype(np.float32), np.full(n, 2.0, np.float32))
    nothing = FeatureScaler(0, np.zeros(0, np.float32), np.ones(0, np.float32))
    return Scales(RECIPE, polymer, nothing, ChiScaler(0.4, 0.7), 298.15)


def make_network() -> TransferNetwork:
    """A small network in eval mode."""
    torch.manual_seed(1)
    return TransferNetwork(NetworkShape(WIDTH, (6,), 4, 0.1, False, 5, 0.1, 5, 0.1)).eval()


def make_model(frozen: bool) -> TrainedModel:
    """A model of three members with everything a model can have."""
    network = make_network()
    columns = None if frozen else torch.tensor([0, 3, 7, WIDTH - 1])
    module = network.heads if frozen else keep_columns(network, columns)
    parameters = {
        name: torch.stack([value.detach() + 0.1 * k for k in range(3)]) for name, value in module.named_parameters()
    }
    return TrainedModel(
        scales=make_scales(),
        groups=[FittedMembers(network, parameters, frozen, columns)],
        chi_interval=ChiInterval(0.9, 2.0, 0.1, 1.0),
        probability=ProbabilityCalibration(0.9, 1.1, -0.2, np.array([1.0, 1.2]), np.array([0.0, 0.1])),
        positive_label=1,
        threshold=0.37,
        domain=ApplicabilityDomain(
            Neighbours(("*CCO*",), np.zeros((1, 2), np.uint8), 0.4), None, frozenset({"O"}), 280.0, 400.0
        ),
        provenance={"versions": {"chitransfer": "0"}},
    )


@pytest.mark.parametrize("frozen", [True, False])
def test_a_model_comes_back_as_it_was(tmp_path: Path, frozen: bool) -> None:
    model, path = make_model(frozen), tmp_path / "model.pt"
    model.save(path)
    loaded = TrainedModel.load(path)
    inputs = torch.rand(5, WIDTH)
    for mine, theirs in zip(loaded.groups[0].forward(inputs), model.groups[0].forward(inputs), strict=True):
        assert mine.equal(theirs)
    assert loaded.chi_interval == model.chi_interval
    assert loaded.probability is not None
    assert loaded.probability.slopes.tolist() == [1.0, 1.2]
    assert (loaded.threshold, loaded.positive_label) == (0.37, 1)
    assert loaded.scales.recipe == RECIPE
    assert loaded.scales.polymer.mean.tolist() == model.scales.polymer.mean.tolist()
    assert loaded.domain.measured.polymers == ("*CCO*",)
    assert loaded.provenance["versions"] == {"chitransfer": "0"}


@pytest.mark.parametrize("frozen", [True, False])
def test_members_together_equal_whole_networks(frozen: bool) -> None:
    group = make_model(frozen).groups[0]
    inputs = torch.rand(7, WIDTH) * (torch.rand(7, WIDTH) < 0.1)
    coefficients, logits = group.forward(inputs)
    for position in range(3):
        own = group.member(position)(inputs)
        assert torch.allclose(coefficients[position], own[0], atol=1e-6)
        assert torch.allclose(logits[position], own[1], atol=1e-6)
    assert not torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize("frozen", [True, False])
def test_members_that_learned_no_chi_have_that_of_stage_1(tmp_path: Path, frozen: bool) -> None:
    model, path, inputs = make_model(frozen), tmp_path / "model.pt", torch.rand(5, WIDTH)
    (group,) = model.groups
    own, logits = group.forward(inputs)
    of_stage1 = group.network(inputs)[0]
    assert not torch.allclose(own[1], of_stage1, atol=1e-3)
    group.learned_chi = torch.tensor([True, False, True])
    model.save(path)
    found = TrainedModel.load(path).groups[0].forward(inputs)
    assert torch.equal(found[0][[0, 2]], own[[0, 2]])
    assert torch.allclose(found[0][1], of_stage1, atol=1e-6)
    assert torch.equal(found[1], logits)
    # A model of a release that did not keep it.
    content, provenance = load_checkpoint(path, MODEL)
    del content["groups"][0]["learned_chi"]
    for interval, expected in ((content["chi_interval"], own), (None, of_stage1.expand_as(own))):
        save_checkpoint(path, MODEL, content | {"chi_interval": interval}, provenance)
        assert torch.allclose(TrainedModel.load(path).groups[0].forward(inputs)[0], expected, atol=1e-6)


def test_pretrained_comes_back(tmp_path: Path) -> None:
    network = make_network()
    Pretrained(make_scales(), [network], ("*CC*",), ("*CCO*",), {"a": 1}).save(tmp_path / "p.pt")
    loaded = Pretrained.load(tmp_path / "p.pt")
    inputs = torch.rand(3, WIDTH)
    assert loaded.networks[0](inputs)[0].equal(network(inputs)[0])
    assert (loaded.validation_polymers, loaded.test_polymers) == (("*CC*",), ("*CCO*",))


def test_saving_twice_gives_the_same_content(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        make_model(True).save(tmp_path / name)
    hashes = {torch.load(tmp_path / name, weights_only=True)["sha256"] for name in ("a.pt", "b.pt")}
    assert len(hashes) == 1


class Malice:
    """Pickles to a call."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


def test_foreign_files_are_refused_and_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    cases: list[tuple[Any, str]] = [
        (lambda: path.write_bytes(b""), "not a chitransfer model file"),
        (lambda: path.write_text("hello"), "not a chitransfer model file"),
        (lambda: path.write_bytes(pickle.dumps({"magic": tensor_file.MAGIC})), "not a chitransfer model file"),
        (lambda: torch.save({"weights": torch.ones(3)}, path), "not a chitransfer model file"),
        (lambda: torch.save([1, 2], path), "not a chitransfer model file"),
        (lambda: torch.save({"magic": tensor_file.MAGIC, "x": Malice()}, path), "asks for code to be run"),
        (lambda: path.unlink(), "no such model file"),
    ]
    for make, message in cases:
        make()
        with pytest.raises(CheckpointError, match=message):
            TrainedModel.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("holiday.jpg", b"x")
    with pytest.raises(CheckpointError):
        TrainedModel.load(path)
    with pytest.raises(CheckpointError, match=r"the \.pt file itself"):
        TrainedModel.load(tmp_path)


def test_damage_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    make_model(False).save(path)
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CheckpointError, match=r"cut short|damaged"):
            TrainedModel.load(path)
    # The end record that says on how many disks the archive is.
    end = whole.rfind(b"PK\x06\x07")
    assert end > 0
    path.write_bytes(whole[: end + 4] + bytes([7]) + whole[end + 5 :])
    with pytest.raises(CheckpointError, match=r"cut short|damaged"):
        TrainedModel.load(path)
    # A bit inside a weight, which the archive's reader may not look at.
    values = make_model(False).groups[0].parameters["encoder.0.weight"].numpy().tobytes()
    place = whole.find(values[:64])
    assert place > 0
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(CheckpointError, match="damaged"):
        TrainedModel.load(path)


def rewrite(path: Path, change: dict[str, Any]) -> None:
    """Change top-level entries of a checkpoint."""
    torch.save(torch.load(path, weights_only=True) | change, path)


def test_newer_format_other_kind_and_other_features_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.pt"
    make_model(True).save(path)
    with pytest.raises(CheckpointError, match="holds a fine-tuned model, needed is a Stage 1 network"):
        Pretrained.load(path)
    rewrite(path, {"format_version": 99})
    with pytest.raises(CheckpointError, match="written in format 99, this chitransfer reads up to 1"):
        TrainedModel.load(path)
    make_model(True).save(path)
    Pretrained(make_scales(), [make_network()], (), (), {"versions": {"chitransfer": "0"}}).save(tmp_path / "p.pt")
    monkeypatch.setattr(checkpoint, "FEATURE_VERSION", 7)
    loads: list[tuple[Path, Callable[[Path], object]]] = [
        (path, TrainedModel.load),
        (tmp_path / "p.pt", Pretrained.load),
    ]
    for file, load in loads:
        told = f"{file}: its features are of version 1, this chitransfer makes version 7; use chitransfer 0, or train"
        with pytest.raises(CheckpointError, match=re.escape(told)):
            load(file)


def test_an_inconsistent_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    make_model(False).save(path)
    content, provenance = load_checkpoint(path, MODEL)
    for spoil in (
        lambda c: c.pop("domain"),
        lambda c: c["shape"].update(latent_dim=9),
        lambda c: c["groups"][0]["parameters"].pop("encoder.0.weight"),
        lambda c: c["groups"][0].update(columns=torch.tensor([0, 10_000])),
        lambda c: c.update(groups=[]),
    ):
        make_model(False).save(path)
        content, provenance = load_checkpoint(path, MODEL)
        spoil(content)
        save_checkpoint(path, MODEL, content, provenance)
        with pytest.raises(CheckpointError, match="incomplete or inconsistent"):
            TrainedModel.load(path)


def test_only_plain_values_are_written(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "s.pt", STATE, {"a": (1, [np.float64(2.5)]), 3: None}, {})
    assert load_checkpoint(tmp_path / "s.pt", STATE)[0] == {"a": [1, [2.5]], 3: None}
    with pytest.raises(TypeError, match="plain values"):
        save_checkpoint(tmp_path / "s.pt", STATE, {"a": object()}, {})
