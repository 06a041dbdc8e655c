"""The feature cache against interruption, damage and changed recipes; features computed by several processes."""

from __future__ import annotations

import logging
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rdkit

from chitransfer.chemistry import features as features_module
from chitransfer.chemistry import identities as identities_module
from chitransfer.chemistry.features import FeatureCache, FeatureRecipe, default_cache_folder, featurise_polymers
from chitransfer.chemistry.identities import identify_polymers
from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.errors import DataError

SMILES = [f"*CC(*)C{'C' * n}O" for n in range(10)]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Structures computed since the last `clear`, with chunks of four."""
    seen: list[str] = []
    for name in ("identity_vector", "polymer_vector"):
        make = getattr(features_module, name)

        def make_and_note(smiles: str, recipe: FeatureRecipe, make: Callable[..., np.ndarray] = make) -> np.ndarray:
            seen.append(smiles)
            return make(smiles, recipe)

        monkeypatch.setattr(features_module, name, make_and_note)
    monkeypatch.setattr(features_module, "CHUNK", 4)
    return seen


def chunk_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("features-*"))


def test_each_structure_is_computed_once(tmp_path: Path, computed: list[str]) -> None:
    recipe = FeatureRecipe()
    smiles = [*SMILES, "*C(CO)C*", *SMILES]
    first, index = FeatureCache(tmp_path).polymer_features(smiles, recipe)
    assert sorted(computed) == sorted({polymer_identity(text) for text in SMILES})
    assert first.shape[0] == len(SMILES)
    assert index.tolist()[:10] == index.tolist()[11:]
    assert index[10] == index[0]
    computed.clear()
    again, same = FeatureCache(tmp_path).polymer_features(smiles, recipe)
    assert computed == []
    assert (again != first).nnz == 0
    np.testing.assert_array_equal(same, index)
    np.testing.assert_array_equal(first[index].toarray(), featurise_polymers(smiles, recipe))


def test_the_order_of_the_inputs_does_not_matter(tmp_path: Path, computed: list[str]) -> None:
    recipe = FeatureRecipe(fingerprint_bits=256)
    FeatureCache(tmp_path).polymer_features(SMILES, recipe)
    computed.clear()
    shuffled = random.Random(0).sample(SMILES, len(SMILES))
    features, index = FeatureCache(tmp_path).polymer_features(shuffled, recipe)
    assert computed == []
    np.testing.assert_array_equal(features[index].toarray(), featurise_polymers(shuffled, recipe))


def test_identities_are_taken_at_their_word(tmp_path: Path, computed: list[str]) -> None:
    keys = [polymer_identity(text) for text in SMILES]
    cache = FeatureCache(tmp_path)
    known, index = cache.polymer_features(SMILES, FeatureRecipe())
    computed.clear()
    same, also = cache.polymer_features(keys, FeatureRecipe(), are_identities=True)
    assert computed == []
    assert (known[index] != same[also]).nnz == 0


@pytest.mark.parametrize(
    "change",
    [
        {"representation": "repeat_unit"},
        {"fingerprint_bits": 512},
        {"fingerprint_radius": 1},
        {"descriptors": ("TPSA",)},
    ],
)
def test_another_recipe_is_computed_anew(tmp_path: Path, computed: list[str], change: dict[str, object]) -> None:
    cache = FeatureCache(tmp_path)
    cache.polymer_features(SMILES, FeatureRecipe())
    computed.clear()
    recipe = FeatureRecipe(**change)  # type: ignore[arg-type]
    features, index = cache.polymer_features(SMILES, recipe)
    assert len(computed) == len(SMILES)
    np.testing.assert_array_equal(
        features[index].toarray(), FeatureCache(None).polymer_features(SMILES, recipe)[0][index].toarray()
    )


def test_another_rdkit_is_computed_anew(tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    FeatureCache(tmp_path).polymer_features(SMILES, FeatureRecipe())
    computed.clear()
    monkeypatch.setattr(rdkit, "__version__", "2000.01.1")
    FeatureCache(tmp_path).polymer_features(SMILES, FeatureRecipe())
    assert len(computed) == len(SMILES)


def test_another_rdkit_names_polymers_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def name_as(text: str) -> list[str | None]:
        monkeypatch.setattr(identities_module, "polymer_identity", lambda smiles: text)
        return [found.key for found in identify_polymers(SMILES[:3], cache_folder=tmp_path)]

    monkeypatch.setattr(identities_module, "CHUNK", 2)
    assert name_as("old") == ["old"] * 3
    assert name_as("new") == ["old"] * 3
    monkeypatch.setattr(rdkit, "__version__", "2000.01.1")
    assert name_as("new") == ["new"] * 3


def test_names_are_remembered_for_their_own_structures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities_module, "CHUNK", 2)
    for smiles in (SMILES[:4], SMILES[4:8], SMILES[3::-1]):
        keys = [found.key for found in identify_polymers(smiles, cache_folder=tmp_path)]
        assert keys == [polymer_identity(text) for text in smiles]
    assert len(list(tmp_path.glob("identities-*"))) == 2


def test_names_that_cannot_be_read_are_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(identities_module, "CHUNK", 2)
    found = identify_polymers(SMILES[:3], cache_folder=tmp_path)
    (path,) = tmp_path.glob("identities-*")
    path.unlink()
    path.mkdir()
    assert identify_polymers(SMILES[:3], cache_folder=tmp_path) == found
    assert f"{path} cannot be read (" in caplog.text
    assert "damaged" not in caplog.text


def test_a_whole_chunk_is_packed_without_loss(rng: np.random.Generator) -> None:
    recipe = FeatureRecipe(fingerprint_bits=2048, descriptors=("MolWt",))
    features = np.zeros((features_module.CHUNK, recipe.n_structure_features), dtype=np.float32)
    row, column = rng.integers(0, len(features), 2000), rng.integers(0, recipe.fingerprint_bits, 2000)
    features[row, column] = rng.integers(1, 900, 2000) / 3
    features[:, -1] = rng.normal(size=len(features))
    packed = features_module._pack(features, recipe.fingerprint_bits)
    np.testing.assert_array_equal(features_module._unpack(packed, recipe).toarray(), features)


def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = features_module.identity_vector

    def make_until_stopped(smiles: str, recipe: FeatureRecipe) -> np.ndarray:
        if len(computed) == 6:
            raise KeyboardInterrupt
        return make(smiles, recipe)

    with monkeypatch.context() as patch:
        patch.setattr(features_module, "identity_vector", make_until_stopped)
        with pytest.raises(KeyboardInterrupt):
            FeatureCache(tmp_path).polymer_features(SMILES, FeatureRecipe())
    assert len(chunk_files(tmp_path)) == 1
    assert list(tmp_path.glob(".*")) == []
    computed.clear()
    steps: list[tuple[int, int]] = []
    features, index = FeatureCache(tmp_path).polymer_features(
        SMILES, FeatureRecipe(), progress=lambda done, total: steps.append((done, total))
    )
    assert len(computed) == len(SMILES) - 4
    assert steps == [(4, 10), (8, 10), (10, 10)]
    np.testing.assert_array_equal(features[index].toarray(), featurise_polymers(SMILES, FeatureRecipe()))


def damage_by_cutting(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def damage_by_flipping(path: Path, _: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def damage_by_emptying(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def damage_by_swapping(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def damage_by_planting(path: Path, _: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return os.mkdir, (str(path.parent / "executed"),)

    path.write_bytes(pickle.dumps(Trap()))


def damage_by_planting_an_array(path: Path, _: Path) -> None:
    np.savez(path.with_suffix(".npz"), row=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    path.write_bytes(path.with_suffix(".npz").read_bytes())
    path.with_suffix(".npz").unlink()


def damage_by_a_folder(path: Path, _: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        damage_by_cutting,
        damage_by_flipping,
        damage_by_emptying,
        damage_by_swapping,
        damage_by_planting,
        damage_by_planting_an_array,
        damage_by_a_folder,
    ],
)
def test_a_damaged_or_foreign_file_is_made_again(
    tmp_path: Path, computed: list[str], caplog: pytest.LogCaptureFixture, damage: Callable[[Path, Path], None]
) -> None:
    recipe = FeatureRecipe()
    # Two chunks of one size: only the checksum tells them apart.
    smiles = SMILES[:8]
    known, index = FeatureCache(tmp_path).polymer_features(smiles, recipe)
    damaged, other, *_ = chunk_files(tmp_path)
    damage(damaged, other)
    computed.clear()
    with caplog.at_level(logging.WARNING):
        again, same = FeatureCache(tmp_path).polymer_features(smiles, recipe)
    assert str(damaged) in caplog.text
    assert 0 < len(computed) <= 4
    assert (again != known).nnz == 0
    np.testing.assert_array_equal(same, index)
    assert not (tmp_path / "executed").exists()
    if damage is not damage_by_a_folder:
        caplog.clear()
        computed.clear()
        FeatureCache(tmp_path).polymer_features(smiles, recipe)
        assert (computed, caplog.text) == ([], "")


def test_a_folder_that_cannot_be_written_costs_a_warning_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        features, index = FeatureCache(blocked / "cache").polymer_features(SMILES, FeatureRecipe())
    assert "cannot be written" in caplog.text
    np.testing.assert_array_equal(features[index].toarray(), featurise_polymers(SMILES, FeatureRecipe()))


def test_no_folder_remembers_nothing(computed: list[str]) -> None:
    for _ in range(2):
        FeatureCache(None).polymer_features(SMILES, FeatureRecipe())
    assert len(computed) == 2 * len(SMILES)


def test_progress_reaches_the_total() -> None:
    steps: list[tuple[int, int]] = []
    featurise_polymers(SMILES, FeatureRecipe(), progress=lambda done, total: steps.append((done, total)))
    assert steps == [(10, 10)]


@pytest.mark.slow
def test_processes_give_the_same_numbers_and_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "CHUNK", 4)
    recipe = FeatureRecipe(fingerprint_bits=256)
    alone = featurise_polymers(SMILES, recipe)
    np.testing.assert_array_equal(featurise_polymers(SMILES, recipe, n_jobs=2), alone)
    features, index = FeatureCache(tmp_path).polymer_features(SMILES, recipe, n_jobs=2)
    np.testing.assert_array_equal(features[index].toarray(), alone)
    with pytest.raises(DataError, match="CCO: a repeat unit needs exactly two"):
        featurise_polymers([*SMILES, "CCO"], recipe, n_jobs=2)


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHITRANSFER_CACHE", str(tmp_path / "mine"))
    assert default_cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("CHITRANSFER_CACHE")
    assert default_cache_folder().name == "chitransfer"
    assert not (tmp_path / "mine").exists()


def test_without_a_home_features_are_kept_among_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a container whose user has a number alone."""
    pwd = pytest.importorskip("pwd")

    def find_nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", find_nobody)
    for name in ("CHITRANSFER_CACHE", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert default_cache_folder() == tmp_path / "chitransfer"
    assert "CHITRANSFER_CACHE" in caplog.text
