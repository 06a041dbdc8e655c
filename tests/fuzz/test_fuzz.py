"""Odd input at the four entry points: whatever comes, the answer is a result or one of the package's own errors.

`CHITRANSFER_FUZZ_EXAMPLES=25000` gives the full size for each of them; the test command runs a few hundred.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.chemistry.repeat_units import PolymerError
from chitransfer.config import Config, dump_config, load_config, parse_set_options
from chitransfer.data.tables import read_chi_table, read_solubility_table, read_stage1_table
from chitransfer.errors import CheckpointError, ChitransferError, ConfigError, DataError
from chitransfer.model.checkpoint import Pretrained, TrainedModel
from chitransfer.search.encoders import SavedEncoder, pack_encoders, pack_state, read_encoders, unpack_state
from chitransfer.search.records import ENCODERS_FILE

N_EXAMPLES = int(os.environ.get("CHITRANSFER_FUZZ_EXAMPLES", "150"))
pytestmark = [pytest.mark.timeout(3600)]
fuzz = settings(
    max_examples=N_EXAMPLES,
    # A hang is a failure; a busy machine is not.
    deadline=20_000,
    suppress_health_check=list(HealthCheck),
    derandomize=N_EXAMPLES < 1000,
    database=None,
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------

CELLS = st.one_of(
    st.sampled_from(
        ["*CC*", "*CC(*)C", "*CCO*", "CCO", "O", "c1ccccc1", "**", "*", "", " ", "nan", "inf", "-1e999", "298.15", "25"]
    ),
    st.sampled_from(["0", "1", "2", "true", "yes", "0.45", "1,5", "=1+1", '"', '"x', "\0", "\ufeff", "*" * 50]),
    st.floats().map(str),
    st.text(max_size=12),
)
NAMES = st.sampled_from(["SMILES", "smiles", "chi", "CHI ", "temp", "solvent", "soluble", "Temp", "", "chi"])
SEPARATORS = st.sampled_from([",", ";", "\t", "|"])


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    separator = draw(SEPARATORS)
    names = draw(st.one_of(st.just(["SMILES", "chi", "temp", "solvent"]), st.lists(NAMES, max_size=6)))
    if draw(st.booleans()):
        names = [*names, "soluble"]
    rows = draw(st.lists(st.lists(CELLS, min_size=len(names), max_size=len(names)), max_size=5))
    lines = [separator.join(row) for row in [names, *rows]]
    encoding = draw(st.sampled_from(["utf-8", "utf-16", "utf-8-sig", "latin-1"]))
    return draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines).encode(encoding, errors="replace")


@fuzz
@given(
    content=st.one_of(tables(), st.binary(max_size=200)),
    read=st.sampled_from([read_stage1_table, read_chi_table, read_solubility_table]),
    on_bad_rows=st.sampled_from(["error", "skip"]),
    name=st.sampled_from(["t.csv", "t.csv.gz", "t.txt"]),
)
def test_tables(content: bytes, read: Any, on_bad_rows: str, name: str, scratch: Path) -> None:
    path = scratch / name
    path.write_bytes(content)
    try:
        table = read(str(path), on_bad_rows=on_bad_rows, cache_folder=scratch, n_jobs=1)
    except DataError:
        return
    else:
        assert len(table) > 0


# ---------------------------------------------------------------------------------------------------------------------
# Configuration
# ---------------------------------------------------------------------------------------------------------------------

SECTIONS = {name: value for name, value in Config().model_dump().items() if isinstance(value, dict)}
DOTTED = [f"{name}.{key}" for name, section in SECTIONS.items() for key in section]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=10),
    st.sampled_from(["512_256", "1_", "_", "auto", "cuda:0", "postgresql://a:b@c/d", "tcp://x:1", "../up", "1:2:3"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)
YAML_BITS = st.sampled_from(
    [
        "a: 1\n",
        "seed: &a 1\n",
        "search: *a\n",
        "? [1]: 2\n",
        "!!python/object/apply:os.system ['true']\n",
        "---\n",
        "search:\n  space:\n",
        "  x: {key: model.use_batchnorm, type: categorical, choices: [true]}\n",
        "\t",
        "model: {",
        "<<: *a\n",
        "training:\n  lr_pretrain: .nan\n",
        "a: !!binary x\n",
        "2001-01-01: 1\n",
        "%YAML 3\n",
        "- 1\n",
        "seed: 1_0\n",
        "seed: 0o7\n",
        "paths: !!set {a}\n",
        "x: !!timestamp 99\n",
        "\x00",
        "'",
        "|\n",
        "...\n",
    ]
)


@fuzz
@given(
    content=st.one_of(
        st.lists(YAML_BITS, max_size=6).map("".join).map(str.encode),
        st.lists(st.one_of(YAML_BITS, st.text(max_size=8)), max_size=5).map("".join).map(lambda t: t.encode()),
        st.binary(max_size=80),
    ),
    overrides=st.dictionaries(st.one_of(st.sampled_from(DOTTED), st.text(max_size=8)), VALUES, max_size=3),
)
def test_configurations(content: bytes, overrides: dict[str, Any], scratch: Path) -> None:
    path = scratch / "config.yaml"
    path.write_bytes(content)
    for given_overrides in ({}, overrides):
        try:
            config = load_config(path, given_overrides)
        except ConfigError:
            continue
        else:
            path.write_text(dump_config(config), encoding="utf-8")
            assert load_config(path).model_dump(exclude={"search": {"storage"}}) == config.model_dump(
                exclude={"search": {"storage"}}
            )


@fuzz
@given(
    st.lists(st.one_of(st.text(max_size=12), st.tuples(st.sampled_from(DOTTED), YAML_BITS).map("=".join)), max_size=3)
)
def test_set_options(options: list[str]) -> None:
    with suppress(ConfigError):
        load_config(None, parse_set_options(options))


# ---------------------------------------------------------------------------------------------------------------------
# SMILES
# ---------------------------------------------------------------------------------------------------------------------

TOKENS = st.sampled_from(
    [
        "*",
        "[*]",
        "[*:1]",
        "[1*]",
        "[2H]",
        "C",
        "c",
        "N",
        "n",
        "O",
        "[nH]",
        "[N+]",
        "[O-]",
        "Cl",
        "Br",
        "S",
        "[Si]",
        "P",
        "=",
        "#",
        "$",
        "/",
        "\\",
        "(",
        ")",
        "1",
        "2",
        "%10",
        "%",
        ".",
        ":",
        "-",
        "@",
        "[C@H]",
        "[C@@]",
        "c1ccccc1",
        "[U]",
        "C(=O)",
        "[",
        "]",
        "~",
        ">",
        "[*-]",
        "[#0]",
        "[C:99]",
        "|$R1$|",
        " ",
        "[999*]",
        "*=*",
        "**",
        "C1CC1",
        "[H]",
        "F",
    ]
)


@fuzz
@given(st.one_of(st.lists(TOKENS, max_size=14).map("".join), st.text(max_size=20)))
def test_repeat_units(smiles: str) -> None:
    try:
        key = polymer_identity(smiles)
    except PolymerError:
        return
    else:
        assert polymer_identity(key) == key


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------------------------------


class Trap:
    """Does harm when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (os.mkdir, (str(Path(os.environ["CHITRANSFER_TRAP"])),))


STATES = [{"weights": {"a": torch.zeros(3, 4)}, "epoch": 1, "history": [{"epoch": 1.0}]}]
ENCODER = SavedEncoder(
    "0f" * 32, 7, {"encoder.0.weight": torch.ones(3, 4), "heads.chi.0.bias": torch.ones(2)}, 0.25, 3, 4
)


def as_earlier_releases_wrote(records: list[dict[str, Any]]) -> bytes:
    """A bare list without a checksum."""
    stream = io.BytesIO()
    torch.save(records, stream)
    return stream.getvalue()


def damaged(*wholes: bytes) -> st.SearchStrategy[bytes]:
    """One of the files with a few bytes changed, cut or doubled."""

    @st.composite
    def spoil(draw: st.DrawFn) -> bytes:
        content = bytearray(draw(st.sampled_from(wholes)))
        for _ in range(draw(st.integers(1, 6))):
            where = draw(st.integers(0, len(content) - 1))
            kind = draw(st.integers(0, 2))
            if kind == 0:
                content[where] = draw(st.integers(0, 255))
            elif kind == 1:
                del content[where : where + draw(st.integers(1, 40))]
            else:
                content[where:where] = content[where : where + draw(st.integers(1, 40))]
            if not content:
                break
        return bytes(content)

    return spoil()


@fuzz
@given(content=st.one_of(damaged(pack_state(STATES), as_earlier_releases_wrote(STATES)), st.binary(max_size=120)))
def test_checkpoints(content: bytes, scratch: Path) -> None:
    with suppress(CheckpointError):
        assert isinstance(unpack_state(content), list)
    path = scratch / "model.pt"
    path.write_bytes(content)
    for load in (Pretrained.load, TrainedModel.load):
        with pytest.raises(CheckpointError):
            load(path)


@fuzz
@given(content=st.one_of(damaged(pack_encoders([ENCODER])), st.binary(max_size=120)))
def test_encoders(content: bytes, scratch: Path) -> None:
    """What is changed is refused; a change that does not reach the content (a date in the archive) does no harm."""
    (scratch / ENCODERS_FILE).write_bytes(content)
    with suppress(CheckpointError):
        (encoder,) = read_encoders(scratch)
        assert str(encoder) == str(ENCODER)


@fuzz
@given(content=damaged(as_earlier_releases_wrote([vars(ENCODER)])))
def test_encoders_of_earlier_releases(content: bytes, scratch: Path) -> None:
    (scratch / ENCODERS_FILE).write_bytes(content)
    with suppress(CheckpointError):
        assert all(isinstance(encoder, SavedEncoder) for encoder in read_encoders(scratch))


@pytest.mark.parametrize("wrap", ["pickle", "torch", "zip"])
def test_checkpoints_execute_nothing(wrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = tmp_path / "sprung"
    monkeypatch.setenv("CHITRANSFER_TRAP", str(trap))
    stream = io.BytesIO()
    if wrap == "pickle":
        pickle.dump([{"weights": Trap()}], stream)
    elif wrap == "torch":
        torch.save([{"weights": Trap()}], stream)
    else:
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Trap()))
            archive.writestr("archive/version", "3")
    path = tmp_path / "model.pt"
    path.write_bytes(stream.getvalue())
    for load in (
        lambda: unpack_state(stream.getvalue()),
        lambda: Pretrained.load(path),
        lambda: TrainedModel.load(path),
    ):
        with pytest.raises(ChitransferError):
            load()
    assert not trap.exists()


def test_yaml_executes_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    path = tmp_path / "config.yaml"
    path.write_text(f"seed: !!python/object/apply:os.mkdir ['{trap}']\n")
    with pytest.raises(ConfigError):
        load_config(path)
    with pytest.raises(ConfigError):
        load_config(None, parse_set_options([f"seed=!!python/object/apply:os.mkdir ['{trap}']"]))
    assert not trap.exists()
