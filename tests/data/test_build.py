"""Building a Stage 1 table: the same bytes however it is run, resumed or not, and the built-in table remade in part."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from importlib import metadata, resources
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.chemistry.unifac import DEFAULT_TEMPERATURES, chi_of_smiles
from chitransfer.data import build
from chitransfer.data.build import build_table
from chitransfer.data.solvents import read_solvents
from chitransfer.errors import DataError

RunCommand = Callable[..., tuple[int, str, str]]
MONOMERS = """family,SMILES
vinyl,C=Cc1ccccc1
vinyl,C=CC(=O)O
vinyl,C=CP(C)C
vinyl,C=COC(C)=O
epoxide,C1CO1
diol,OCCO
diol,OCCCO
diol,CC(O)CO
diacid,O=C(O)CC(=O)O
diacid,O=C(O)c1ccc(C(=O)O)cc1
diamine,NCCN
lactone,O=C1CCCCCO1
hydroxy_acid,O=C(O)CCCCCO
"""
N_POLYMERS = 16


@pytest.fixture
def monomers(tmp_path: Path) -> Path:
    path = tmp_path / "monomers.csv"
    path.write_text(MONOMERS, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CHUNK", 4)
    monkeypatch.setattr(build, "BLOCK", 3)


def test_the_table_holds_the_models_values(tmp_path: Path, monomers: Path) -> None:
    output = tmp_path / "table.csv"
    summary = build_table(8, output, solvents=["O", "CCO"], temperatures=[290.0, 350.0], monomers=monomers)
    table = pd.read_csv(output)
    assert list(table.columns) == ["SMILES", "chi", "temp", "solvent", "method"]
    assert summary.n_polymers == table.SMILES.nunique() == 8
    assert summary.n_rows == len(table) == 8 * 2 * 2
    for row in table.itertuples():
        assert polymer_identity(row.SMILES) == row.SMILES
        assert row.chi == pytest.approx(chi_of_smiles(row.SMILES, row.solvent, [row.temp])[0], abs=5.1e-5)


def test_the_command_takes_a_monomer_list(tmp_path: Path, monomers: Path, run_command: RunCommand) -> None:
    build_table(6, tmp_path / "expected.csv", monomers=monomers)
    words = ["data", "build", "--n", 6, "--monomers", monomers, "--n-jobs", 1, "--output"]
    code, out, err = run_command(*words, tmp_path / "table.csv")
    assert code == 0, err
    assert out.startswith("6 polymers, 30 rows")
    assert (tmp_path / "table.csv").read_bytes() == (tmp_path / "expected.csv").read_bytes()
    code, _, err = run_command(*words, monomers)
    assert code == 2
    assert "is the file of --monomers" in err
    monomers.write_bytes("family,SMILES\nvinyl,C=Cé\n".encode("latin-1"))
    code, _, err = run_command(*words, tmp_path / "table.csv")
    assert code == 2
    assert "monomers.csv, line 2: not UTF-8 text" in err
    code, _, err = run_command(*words[:5], tmp_path / "none.csv", "--output", tmp_path / "table.csv")
    assert code == 2
    assert "none.csv: there is no such file" in err


def test_a_seed_below_zero_is_refused_as_an_option(tmp_path: Path, run_command: RunCommand) -> None:
    output = tmp_path / "table.csv"
    code, _, err = run_command("data", "build", "--n", 2, "--seed", -1, "--n-jobs", 1, "--output", output)
    assert code == 2
    assert "--seed" in err
    assert not output.exists()


def test_the_command_takes_the_solvents_of_tables(tmp_path: Path, monomers: Path, run_command: RunCommand) -> None:
    measured, labels, output = tmp_path / "measured.csv", tmp_path / "labels.csv", tmp_path / "table.csv"
    # Ethanol in two spellings, water as an empty cell, and a solvent that UNIFAC has no groups for.
    measured.write_text("SMILES,chi,Solvent\n*CC*,1,OCC\n*CC*,2,C(C)O\n*CC*,3,\n", encoding="utf-8")
    labels.write_text("SMILES,soluble,solvent\n*CC*,1,ClP(Cl)Cl\n*CC*,1,c1ccccc1\n", encoding="utf-8")
    words = ["data", "build", "--n", 3, "--monomers", monomers, "--n-jobs", 1, "--temperature", 300]
    words += ["--solvent", "CO", "--solvents-from", measured, "--solvents-from", labels]
    code, out, err = run_command(*words, "--output", output)
    assert code == 0, err
    assert f"WARNING: {labels}: ClP(Cl)Cl is left out: UNIFAC has no group with the element P" in out
    assert f"WARNING: 1 of 3 usable rows of {measured} has no solvent (line 4) and is taken to be in water" in out
    assert out.count("WARNING") == 2
    build_table(
        3, tmp_path / "expected.csv", solvents=["CO", "CCO", "O", "c1ccccc1"], temperatures=[300.0], monomers=monomers
    )
    assert output.read_bytes() == (tmp_path / "expected.csv").read_bytes()
    code, _, err = run_command(*words, "--output", labels)
    assert code == 2
    assert "is the file of --solvents-from" in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "SMILES,solvent\n*CC*,CCO\n*CC*,C1CC\n*CC*,acetone\n",
            r"(?s)table\.csv: 2 of 3 rows cannot be used\n  line 3: C1CC: the solvent is not a SMILES.*line 4: acetone",
        ),
        ("SMILES\n*CC*\n", r"table\.csv, line 1: missing column\(s\) solvent"),
        ("solvent\nP\n", r"table\.csv: UNIFAC has groups for none of its solvents"),
    ],
)
def test_a_table_without_usable_solvents_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        read_solvents(path)


def test_fewer_polymers_than_asked_for_is_said(
    tmp_path: Path, monomers: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary = build_table(100, tmp_path / "table.csv", monomers=monomers)
    assert summary.n_polymers == N_POLYMERS
    assert "fewer than the 100 asked for" in caplog.text
    # the lactone and the hydroxy acid give one polymer; the phosphine has no groups
    assert summary.n_duplicates == 1
    assert summary.without_groups == {"UNIFAC has no group with the element P": 1}
    assert sum(summary.polymer_classes.values()) == N_POLYMERS


def test_same_bytes_with_any_number_of_processes(tmp_path: Path, monomers: Path) -> None:
    one, two = tmp_path / "one.csv.gz", tmp_path / "TWO.CSV.GZ"
    build_table(N_POLYMERS, one, monomers=monomers, n_jobs=1)
    build_table(N_POLYMERS, two, monomers=monomers, n_jobs=2)
    assert one.read_bytes() == two.read_bytes()
    assert not list(tmp_path.glob("*.parts"))


def test_the_beginning_of_a_longer_table_is_the_shorter_one(tmp_path: Path, monomers: Path) -> None:
    build_table(6, tmp_path / "short.csv", monomers=monomers)
    build_table(12, tmp_path / "long.csv", monomers=monomers)
    assert (tmp_path / "long.csv").read_text().startswith((tmp_path / "short.csv").read_text())


def test_seeds_choose_other_polymers(tmp_path: Path, monomers: Path) -> None:
    build_table(5, tmp_path / "a.csv", monomers=monomers, seed=0)
    build_table(5, tmp_path / "b.csv", monomers=monomers, seed=1)
    assert (tmp_path / "a.csv").read_text() != (tmp_path / "b.csv").read_text()


def test_an_interrupted_build_goes_on_where_it_stopped(
    tmp_path: Path, monomers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.csv"
    build_table(2 * N_POLYMERS, whole, monomers=monomers)
    run, done = build.run_reaction, []

    def stops_after_nine(reaction: object) -> object:
        if len(done) == 9:
            raise KeyboardInterrupt
        done.append(reaction)
        return run(reaction)

    output = tmp_path / "table.csv"
    monkeypatch.setattr(build, "run_reaction", stops_after_nine)
    with pytest.raises(KeyboardInterrupt):
        build_table(2 * N_POLYMERS, output, monomers=monomers)
    assert not output.exists()
    parts = sorted((tmp_path / "table.csv.parts").iterdir())
    assert len(parts) == 2  # two whole chunks of four
    parts[0].write_bytes(b"damaged")

    again: list[object] = []
    monkeypatch.setattr(build, "run_reaction", lambda reaction: again.append(reaction) or run(reaction))
    summary = build_table(2 * N_POLYMERS, output, monomers=monomers)
    assert len(again) == summary.n_reactions - 4  # the whole part is used, the damaged one made again
    assert set(done[4:8]).isdisjoint(again)
    assert output.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "table.csv.parts").exists()


def test_parts_of_another_monomer_list_are_not_used(
    tmp_path: Path, monomers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "table.csv"
    monkeypatch.setattr(build, "_remove_parts", lambda *_: None)
    build_table(4, output, monomers=monomers)
    monomers.write_text(MONOMERS.replace("C=Cc1ccccc1", "C=CC#N"), encoding="utf-8")
    build_table(N_POLYMERS, output, monomers=monomers)
    text = output.read_text()
    assert "c1ccccc1" not in text.replace("c1ccc(", "")
    assert "C#N" in text


@pytest.mark.parametrize("change", ["seed", "software"])
def test_parts_of_another_build_are_not_used(
    tmp_path: Path, monomers: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(build, "_remove_parts", lambda *_: None)
    build_table(4, tmp_path / "table.csv", monomers=monomers)
    if change == "software":
        monkeypatch.setattr(build.metadata, "version", lambda name: "0.0")
    run, again = build.run_reaction, []
    monkeypatch.setattr(build, "run_reaction", lambda reaction: again.append(reaction) or run(reaction))
    seed = int(change == "seed")
    summary = build_table(4, tmp_path / "table.csv", monomers=monomers, seed=seed)
    assert len(again) >= summary.n_reactions
    build_table(4, tmp_path / "anew.csv", monomers=monomers, seed=seed)
    assert (tmp_path / "table.csv").read_bytes() == (tmp_path / "anew.csv").read_bytes()


def test_only_parts_of_its_own_are_removed(tmp_path: Path, monomers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, parts = tmp_path / "table.csv", tmp_path / "table.csv.parts"
    with monkeypatch.context() as kept:
        kept.setattr(build, "_remove_parts", lambda *_: None)
        build_table(4, output, monomers=monomers, seed=1)
    other = sorted(parts.iterdir())
    assert other
    mine = parts / "notes.txt"
    mine.write_text("the user's own", encoding="utf-8")
    with monkeypatch.context() as killed:
        killed.setattr(build, "_write_rows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_table(4, output, monomers=monomers)
    own = next(path for path in parts.iterdir() if path not in [*other, mine])
    (parts / f".{own.stem}-half.z").write_bytes(b"left by a killed process")
    build_table(4, output, monomers=monomers)
    assert sorted(parts.iterdir()) == sorted([*other, mine])
    mine.unlink()
    build_table(4, output, monomers=monomers, seed=1)
    assert not parts.exists()


def test_progress_reaches_the_end(tmp_path: Path, monomers: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_table(9, tmp_path / "t.csv", monomers=monomers, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (9, 9)
    assert seen == sorted(seen)


def test_provenance_names_everything_the_table_depends_on(tmp_path: Path, monomers: Path) -> None:
    output = tmp_path / "my.table.csv.gz"
    summary = build_table(5, output, solvents=["CCO", "OCC", "O"], temperatures=[300.0], seed=7, monomers=monomers)
    assert summary.provenance == tmp_path / "my.table.provenance.json"
    told = json.loads(summary.provenance.read_text())
    assert told["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert told["arguments"] == {"n": 5, "solvents": ["CCO", "O"], "temperatures_K": [300.0], "seed": 7}
    assert told["model"]["polymer_volume_fraction"] == 0.8
    assert told["model"]["parameters"] == {"CCO": "unifac-2.0", "O": "unifac-filled"}
    assert told["software"]["rdkit"] == metadata.version("rdkit")
    assert told["counts"]["rows"] == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n": 0}, "at least 1"),
        ({"temperatures": [25.0]}, "K"),
        ({"temperatures": []}, "at least one"),
        ({"temperatures": [300.0, 300.0]}, "differ"),
        ({"solvents": ["*CC*"]}, "whole molecule"),
        ({"solvents": ["P"]}, "element P"),
        ({"solvents": []}, "at least one solvent"),
        ({"output": Path("table.xlsx")}, "csv"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, monomers: Path, changes: dict, words: str) -> None:
    arguments = {"n": 2, "output": tmp_path / "t.csv", "monomers": monomers} | changes
    with pytest.raises(DataError, match=words):
        build_table(**arguments)


def test_monomers_without_any_polymer_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "monomers.csv"
    for monomers, words in (
        ("vinyl,C=CP(C)C\n", "no polymer with UNIFAC groups"),
        (
            "vinyl,C=CC=O\nlactam,O=C1CCCN1\n",
            "no polymerisation: 2 monomers take part in no polymerisation of their family: vinyl C=CC=O, lactam O=C1CC",
        ),
        ("diacid,O=C(O)CC(=O)O\n", r"1 monomer takes part in no polymerisation of its family: .* \(no partner"),
        ("cyclic_ether,CCO\n", r"no linear chain \(1 polymerisation tried\)"),
    ):
        path.write_text(f"family,SMILES\n{monomers}", encoding="utf-8")
        with pytest.raises(DataError, match=words):
            build_table(1, tmp_path / "t.csv", monomers=path)


def test_monomers_that_take_part_in_nothing_are_named(tmp_path: Path, monomers: Path, run_command: RunCommand) -> None:
    unused = ["C=CC=O", "OCCO", "C=CNC=O", "C=COC=O", "C=C(C)C=O", "C=Cc1ccccc1C=O"]
    with monomers.open("a", encoding="utf-8") as stream:
        stream.writelines(f"vinyl,{one}\n" for one in unused)
        stream.write("cyclic_ether,CCO\n")
    output = tmp_path / "table.csv"
    code, out, err = run_command("data", "build", "--n", 99, "--monomers", monomers, "--n-jobs", 1, "--output", output)
    assert code == 0, err
    assert (
        "WARNING: 7 monomers take part in no polymerisation of their family: vinyl C=CC=O, vinyl OCCO, vinyl C=CNC=O, "
        "vinyl C=COC=O, vinyl C=C(C)C=O, … (all of them in table.provenance.json)" in " ".join(out.split())
    )
    assert "  without a linear product: 1 of " in out
    told = json.loads((tmp_path / "table.provenance.json").read_text())
    assert told["monomers"]["unused"] == [*(f"vinyl {one}" for one in unused), "cyclic_ether CCO"]


# ---------------------------------------------------------------------------------------------------------------------
# The built-in table
# ---------------------------------------------------------------------------------------------------------------------


def _builtin(name: str) -> bytes:
    return resources.files("chitransfer.data").joinpath("builtin", name).read_bytes()


@pytest.fixture(scope="module")
def builtin_table() -> pd.DataFrame:
    return pd.read_csv(resources.files("chitransfer.data").joinpath("builtin", "computed_chi.csv.gz"))


def test_the_builtin_table_is_what_its_provenance_says(builtin_table: pd.DataFrame) -> None:
    told = json.loads(_builtin("computed_chi.provenance.json"))
    assert told["sha256"] == hashlib.sha256(_builtin("computed_chi.csv.gz")).hexdigest()
    assert builtin_table.SMILES.nunique() == told["counts"]["polymers"] >= 10_000
    assert len(builtin_table) == told["counts"]["rows"]
    assert sorted(builtin_table.temp.unique()) == list(DEFAULT_TEMPERATURES) == told["arguments"]["temperatures_K"]
    assert np.isfinite(builtin_table.chi).all()


def test_a_sample_of_the_builtin_table_is_computed_again(builtin_table: pd.DataFrame) -> None:
    for row in builtin_table.sample(150, random_state=0).itertuples():
        found = chi_of_smiles(row.SMILES, row.solvent, [row.temp])[0]
        assert found == pytest.approx(row.chi, abs=5.1e-5), row.SMILES


def test_the_beginning_of_the_builtin_table_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = json.loads(_builtin("computed_chi.provenance.json"))
    here = {name: metadata.version(name) for name in told["software"]}
    if any(here[name] != told["software"][name] for name in ("rdkit", "smipoly", "ugropy", "thermo")):
        pytest.skip("other versions of the libraries may write other SMILES")
    monkeypatch.setattr(build, "CHUNK", 100)
    arguments = told["arguments"]
    build_table(
        90,
        tmp_path / "t.csv",
        solvents=arguments["solvents"],
        temperatures=arguments["temperatures_K"],
        seed=arguments["seed"],
    )
    assert gzip.decompress(_builtin("computed_chi.csv.gz")).startswith((tmp_path / "t.csv").read_bytes())
