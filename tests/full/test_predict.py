"""Predictions: the same chain however cut, rows in order with their reasons, and an oracle made of plain networks."""

from __future__ import annotations

import csv
import gzip
import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from chitransfer.chemistry.features import featurise_polymers, featurise_solvents
from chitransfer.data.pair_table import TableReader
from chitransfer.errors import DataError
from chitransfer.model.checkpoint import TrainedModel
from chitransfer.predict import IDENTITY, Predictor
from chitransfer.predict_table import predict_table, write_predictions

RunCommand = Callable[..., tuple[int, str, str]]
CUTS = ["*CCO*", "*OCC*", "*COC*", "*CCOCCO*"]


@pytest.mark.parametrize("which", ["trained", "trained_unfrozen"])
def test_every_member_alone_gives_the_same_mean(which: str, request: pytest.FixtureRequest) -> None:
    model = TrainedModel.load(request.getfixturevalue(which).model)
    smiles, solvent, T = "*CC(*)CCO", "CCO", 333.0
    scales = model.scales
    polymer = scales.polymer.transform(featurise_polymers([smiles], scales.recipe))
    medium = scales.solvent.transform(featurise_solvents([solvent], scales.recipe))
    inputs = torch.from_numpy(np.hstack([polymer, medium])).double()
    chi, logits = [], []
    for group in model.groups:
        for position in range(len(group)):
            with torch.no_grad():
                (h0, h1), logit = (part.squeeze(0) for part in group.member(position).double()(inputs))
            tau = 5.0 * (scales.T_ref / T - 1.0)
            chi.append(float(h0 + h1 * tau) * scales.chi.scale + scales.chi.mean)
            logits.append(float(logit))
    assert model.chi_interval is not None
    assert model.probability is not None
    row = Predictor(model).predict(smiles, temperature=T, solvent=solvent).iloc[0]
    assert row["chi"] == pytest.approx(np.mean(chi), abs=1e-6)
    assert row["A_K"] / T + row["B"] == pytest.approx(row["chi"], abs=1e-6)
    half = model.chi_interval.factor * (np.std(chi, ddof=1) + model.chi_interval.offset)
    assert (row["chi_low"], row["chi_high"]) == pytest.approx((np.mean(chi) - half, np.mean(chi) + half), abs=1e-6)
    z = model.probability.slope * np.mean(logits) + model.probability.intercept
    assert row["p_soluble"] == pytest.approx(1 / (1 + math.exp(-z)), abs=1e-6)
    assert row["soluble"] == int(row["p_soluble"] >= model.threshold)
    assert row["p_soluble_low"] <= row["p_soluble"] <= row["p_soluble_high"]


def test_four_cuts_of_a_chain_are_equal_to_the_last_digit(predictor: Predictor) -> None:
    together = predictor.predict(CUTS, temperature=[298.0, 350.0], solvent="CCO").drop(columns="SMILES")
    assert all(together.iloc[0].equals(together.iloc[k]) for k in range(1, 4))
    # In other company, in another process's batch size, alone: nothing may change.
    many = [f"*CC(*){'C' * n}O" for n in range(1, 40)]
    for cut in CUTS:
        alone = Predictor(predictor.model).predict([*many, cut], temperature=[298.0, 350.0], solvent="CCO")
        assert alone.iloc[-1].drop("SMILES").equals(together.iloc[0])


def test_rows_keep_their_order_and_say_what_is_wrong(predictor: Predictor) -> None:
    frame = predictor.predict(["*CCO*", "CCO", "*C(", "", "*CC(*)CO"])
    assert frame["SMILES"].tolist() == ["*CCO*", "CCO", "*C(", "", "*CC(*)CO"]
    assert [bool(reason) for reason in frame["problem"]] == [False, True, True, True, False]
    assert "two *" in frame["problem"][1]
    assert frame["chi"].notna().tolist() == [True, False, False, False, True]
    assert frame["in_domain"].isna().tolist() == [False, True, True, True, False]
    assert frame["temperature_K"].eq(298.15).all()


def test_wrong_solvents_and_temperatures_are_named(predictor: Predictor) -> None:
    assert "solvent" in predictor.predict("*CCO*", solvent="C(C").loc[0, "problem"]
    note = predictor.predict("*CCO*", solvent="CCCCCCO").loc[0, "domain_note"]
    assert "solvent not met in training" in note
    with pytest.raises(DataError, match="it looks like °C"):
        predictor.predict("*CCO*", temperature=25.0)
    with pytest.raises(DataError, match="1 polymers, 2 solvents"):
        predictor.predict("*CCO*", solvent=["O", "O"])


@pytest.mark.parametrize("empty", [None, math.nan, np.float32("nan"), pd.NA, pd.NaT])
def test_empty_cells_of_pandas_are_empty_texts(predictor: Predictor, empty: Any) -> None:
    expected = predictor.predict(["*CCO*", ""], solvent=["", "O"])
    assert expected["solvent"].tolist() == ["O", "O"]
    pd.testing.assert_frame_equal(predictor.predict(["*CCO*", empty], solvent=[empty, "O"]), expected)
    column = pd.Series(["*CCO*", empty], dtype=object)
    pd.testing.assert_frame_equal(predictor.predict(column), predictor.predict(["*CCO*", ""]))
    pd.testing.assert_frame_equal(predictor.predict(empty), predictor.predict(""))
    pd.testing.assert_frame_equal(predictor.predict("*CCO*", solvent=empty), predictor.predict("*CCO*"))


def test_what_is_no_text_has_a_reason_and_no_prediction(predictor: Predictor) -> None:
    cells: Any = ["*CCO*", 7, ["*CCO*"], "*CCO*"]
    solvents: Any = ["O", "O", "O", b"O"]
    frame = predictor.predict(cells, solvent=solvents)
    assert frame["problem"].tolist() == [
        "",
        "the repeat unit must be text, got int",
        "the repeat unit must be text, got list",
        "the solvent must be text, got bytes",
    ]
    assert frame["SMILES"].tolist() == ["*CCO*", "", "", "*CCO*"]
    assert frame["chi"].notna().tolist() == [True, False, False, False]


@pytest.mark.parametrize("temperature", [[[300.0, 310.0]], np.zeros((2, 2)), [[300.0], [310.0, 320.0]], "warm", ["x"]])
def test_temperatures_are_one_number_or_a_list(predictor: Predictor, temperature: Any) -> None:
    with pytest.raises(DataError, match=r"temperatures (must be numbers|as one number or one list of them)"):
        predictor.predict("*CCO*", temperature=temperature)


def test_applicability_tells_the_known_from_the_strange(predictor: Predictor) -> None:
    frame = predictor.predict(["*CC(*)CCO", "*c1ccc(cc1)S(=O)(=O)c1ccc(*)cc1"], solvent="O")
    assert frame["similarity"][0] > frame["similarity"][1]
    assert frame["in_domain"].tolist() == [True, False]
    assert "unlike every measured polymer" in frame["domain_note"][1]
    known = predictor.model.domain.measured.polymers[0]
    assert predictor.predict(known)["similarity"][0] == 1.0
    with_chi = predictor.model.domain.chi
    assert with_chi is not None
    labelled_only = [one for one in predictor.model.domain.measured.polymers if one not in with_chi.polymers]
    strange = predictor.predict([*with_chi.polymers, *labelled_only])
    assert strange["in_domain"].all()
    assert strange["chi_in_domain"][: len(with_chi.polymers)].all()
    far = strange.loc[~strange["chi_in_domain"], "domain_note"]
    assert far.str.contains("unlike every polymer with measured χ").tolist() == [True] * max(1, len(far))
    warm = [predictor.predict(with_chi.polymers[0], temperature=T) for T in (289.0, 291.0, 349.0, 351.0)]
    assert ["temperature outside" in frame["domain_note"][0] for frame in warm] == [True, False, False, True]


def test_several_temperatures_lie_on_one_line(predictor: Predictor) -> None:
    row = predictor.predict("*CC(*)CCO", temperature=[300.0, 340.5]).iloc[0]
    for T in (300.0, 340.5):
        assert row[f"chi_{T:g}K"] == pytest.approx(row["A_K"] / T + row["B"], abs=1e-6)
        assert row[f"chi_{T:g}K_low"] < row[f"chi_{T:g}K"] < row[f"chi_{T:g}K_high"]


def test_temperatures_close_together_are_columns_of_their_own(predictor: Predictor, tmp_path: Path) -> None:
    close = [298.1501, 298.1502]
    frame = predictor.predict("*CC(*)CCO", temperature=close)
    assert [name for name in frame if name.endswith("1K") or name.endswith("2K")] == ["chi_298.1501K", "chi_298.1502K"]
    path = tmp_path / "in.csv"
    path.write_text("SMILES\n*CC(*)CCO\n")
    _, again = next(predict_table(predictor, TableReader.open(path), temperatures=close, solvent=None, n_jobs=1))
    pd.testing.assert_frame_equal(again.drop(columns=IDENTITY), frame)


@pytest.mark.parametrize("number", ["3_00", "٣٠٠", "1e999", "nan"])
def test_temperatures_are_read_as_in_the_other_tables(predictor: Predictor, tmp_path: Path, number: str) -> None:
    path = tmp_path / "in.csv"
    path.write_text(f"SMILES,temp\n*CCO*,{number}\n", encoding="utf-8")
    _, frame = next(predict_table(predictor, TableReader.open(path), temperatures=None, solvent=None, n_jobs=1))
    assert frame["problem"][0].startswith(f"temp '{number}' ")
    assert frame["temperature_K"].isna().all()


@pytest.mark.parametrize("kind", [int, np.float32, np.int64, np.array])
def test_one_temperature_may_be_any_number(predictor: Predictor, kind: Callable[[int], Any]) -> None:
    pd.testing.assert_frame_equal(
        predictor.predict("*CCO*", temperature=kind(300)), predictor.predict("*CCO*", temperature=300.0)
    )


def test_rows_are_read_by_the_models_recipe(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """In water alone other solvents are refused; without rings of units a unit is what was written."""
    changes = {"with_solvent": False, "representation": "repeat_unit"}
    recipe = type(predictor.model.scales.recipe)(**{**vars(predictor.model.scales.recipe), **changes})
    monkeypatch.setitem(vars(predictor.model.scales), "recipe", recipe)
    rows = predictor._read_rows(["*OCC*", "*CCO*"], ["O", "CCO"], 1)
    assert (rows[0].problem, rows[0].structure) == ("", "*OCC*")
    assert "trained on water" in rows[1].problem


def write_table(path: Path, n: int) -> list[str]:
    """A table with bad rows, extra columns, its own temperatures and a column named as a prediction."""
    texts = []
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "smiles", "Temp", "solvent", "chi", "remark"])
        for k in range(n):
            smiles = ["*CC(*)" + "C" * (k % 9 + 1) + "O", "not a polymer", "*OCC*"][0 if k % 10 else 1 + k // 10 % 2]
            texts.append(smiles)
            writer.writerow([k, smiles, "" if k % 4 else 310 + k % 7, ["O", "CCO"][k % 2], 0.5, f'said "{k}", so'])
    return texts


def test_tables_come_back_row_by_row(predictor: Predictor, tmp_path: Path) -> None:
    path, output = tmp_path / "in.csv", tmp_path / "deep" / "out.csv"
    texts = write_table(path, 57)
    reader = TableReader.open(path)
    parts = predict_table(predictor, reader, temperatures=None, solvent=None, n_jobs=1, chunk_rows=10)
    assert write_predictions(reader, parts, output) == (57, texts.count("not a polymer"))
    frame = pd.read_csv(output, keep_default_na=False)
    assert frame["id"].tolist() == list(range(57))
    assert frame["smiles"].tolist() == texts
    assert frame["chi"].eq(0.5).all()
    assert frame["remark"][3] == 'said "3", so'
    frame = pd.read_csv(output)
    good = frame["smiles"] != "not a polymer"
    assert frame["chi_predicted"].notna().eq(good).all()
    assert frame["problem"].isna().eq(good).all()
    assert frame["temperature_K"].tolist() == [298.15 if k % 4 else 310 + k % 7 for k in range(57)]
    for k in (3, 4, 21):
        alone = predictor.predict(texts[k], temperature=frame["temperature_K"][k], solvent=frame["solvent"][k])
        assert frame["chi_predicted"][k] == alone["chi"][0]
        assert frame["p_soluble"][k] == alone["p_soluble"][0]


def test_the_output_names_the_solvent_and_temperature_that_flags_set(predictor: Predictor, tmp_path: Path) -> None:
    path, output = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_text("SMILES,solvent,temp\n*CCO*,O,310\n*CC(*)CO,,\n")
    reader = TableReader.open(path)
    write_predictions(reader, predict_table(predictor, reader, temperatures=[350.0], solvent="OCC", n_jobs=1), output)
    frame = pd.read_csv(output, keep_default_na=False)
    assert frame[["solvent", "temp"]].astype(str).values.tolist() == [["O", "310"], ["", ""]]
    assert frame["solvent_predicted"].tolist() == ["CCO", "CCO"]
    assert frame["temperature_K"].tolist() == [350.0, 350.0]
    assert frame["chi"][0] == predictor.predict("*CCO*", temperature=350.0, solvent="CCO")["chi"][0]
    predict_file(predictor, path, output)
    assert pd.read_csv(output)["solvent_predicted"].tolist() == ["O", "O"]


def test_a_table_of_predictions_can_be_predicted_again(predictor: Predictor, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.csv" for number in range(4)]
    paths[0].write_text("SMILES,note\n*CCO*,a\n*CC(*)CO,b\n")
    reader = TableReader.open(paths[0])
    write_predictions(reader, predict_table(predictor, reader, temperatures=[350.0], solvent="CCO", n_jobs=1), paths[1])
    for source, output in pairwise(paths[1:]):
        assert predict_file(predictor, source, output) == (2, 0)
    header = paths[3].read_text().splitlines()[0].split(",")
    assert len(set(header)) == len(header)
    frame = pd.read_csv(paths[3])
    for name in ("solvent", "temperature_K", "chi", "chi_low", "p_soluble", "soluble", "in_domain"):
        assert frame[name].equals(frame[f"{name}_predicted"])
        assert frame[name].equals(frame[f"{name}_predicted_2"])
    assert frame["temperature_K"].tolist() == [350.0, 350.0]
    assert frame["solvent"].tolist() == ["CCO", "CCO"]


def test_blank_rows_keep_their_place(predictor: Predictor, tmp_path: Path) -> None:
    path, output = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_text("\nid,SMILES,temp\n1,*CCO*,310\n,,\n , ,,\n\n4,*CC(*)CO,\n,,\n\n \n")
    assert predict_file(predictor, path, output) == (5, 3)
    frame = pd.read_csv(output, keep_default_na=False)
    assert frame["problem"].tolist() == ["", "the row is empty", "the row is empty", "", "the row is empty"]
    assert frame["id"].astype(str).str.strip().tolist() == ["1", "", "", "4", ""]
    for name in ("chi", "solvent", "temperature_K"):
        assert frame[name].astype(str).ne("").tolist() == [True, False, False, True, False]


def test_flags_set_nothing_beside_a_row_that_cannot_be_used(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("SMILES,note\n*CCO*,a\n,\n*CCO*\nno polymer,b\n")
    _, frame = next(predict_table(predictor, TableReader.open(path), temperatures=[350.0], solvent="CCO", n_jobs=1))
    assert frame["solvent"].tolist() == ["CCO", "", "", "CCO"]
    assert frame["temperature_K"].fillna(0.0).tolist() == [350.0, 0.0, 0.0, 350.0]
    assert frame["problem"].ne("").tolist() == [False, True, True, True]


def test_cells_that_are_passed_on_are_no_formulas(predictor: Predictor, tmp_path: Path) -> None:
    path, output = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_text("SMILES,=A1,note\n*CC(*)O,-1.5,@SUM(A1)\n", encoding="utf-8")
    predict_file(predictor, path, output)
    lines = output.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("SMILES,'=A1,note,")
    assert lines[1].startswith("*CC(*)O,-1.5,'@SUM(A1),")


def test_an_empty_line_is_an_empty_cell_of_the_only_column(predictor: Predictor, tmp_path: Path) -> None:
    path, output = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_text('SMILES\n*CCO*\n\n \n*CC(*)CO\n""\n\n\n')
    assert predict_file(predictor, path, output) == (5, 3)
    assert pd.read_csv(output, keep_default_na=False)["SMILES"].tolist() == ["*CCO*", "", "", "*CC(*)CO", ""]


def test_crooked_tables_do_not_stop_the_run(predictor: Predictor, tmp_path: Path) -> None:
    path, output = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_text("SMILES,temp,note\n*CCO*,25,a\n*CCO*,310,b,c\n\n*CCO*,x,d\n*CCO*,320,e\n")
    assert predict_file(predictor, path, output) == (4, 3)
    frame = pd.read_csv(output)
    assert "kelvin" in frame["problem"][0]
    assert "4 cells where the header names 3" in frame["problem"][1]
    assert "'x'" in frame["problem"][2]
    assert frame["chi"].notna().tolist() == [False, False, False, True]
    for name in ("in_domain", "chi_in_domain"):
        assert frame[name].notna().tolist() == [False, False, False, True]


def predict_file(predictor: Predictor, path: Path, output: Path) -> tuple[int, int]:
    """A whole table in one go."""
    reader = TableReader.open(path)
    return write_predictions(
        reader, predict_table(predictor, reader, temperatures=None, solvent=None, n_jobs=1), output
    )


def test_other_readers_of_the_process_keep_their_longest_cell(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text(f"SMILES,note\n*CCO*,{'x' * 200_000}\n*CC*,\n", encoding="utf-8")
    before = csv.field_size_limit(1000)
    try:
        chunks = TableReader.open(path).chunks(1)
        assert len(next(chunks)[0][1]) == 200_000
        assert csv.field_size_limit() == 1000
        assert next(chunks) == [["*CC*", ""]]
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize("name", ["out.csv.gz", "OUT.CSV.GZ"])
def test_a_name_in_gz_is_compressed(predictor: Predictor, tmp_path: Path, name: str) -> None:
    path, plain, packed = tmp_path / "in.csv", tmp_path / "out.csv", tmp_path / name
    write_table(path, 5)
    predict_file(predictor, path, plain)
    predict_file(predictor, path, packed)
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b'SMILES,temp\n*CCO*,300\n"*CC*,310\n*CCN*,320\n', "line 3: a quote"),
        (b"SMILES,temp,Temp\n*CCO*,300,310\n", "the column temp occurs 2 times"),
        (b"polymer,temp\n*CCO*,300\n", r"missing column\(s\) SMILES"),
        (b"SMILES\n", "no rows"),
        (b"SMILES\n*CC*\n\xff\xfe*CCO*\n", "line 3: not UTF-8 text"),
    ],
)
def test_unusable_tables_say_why(predictor: Predictor, tmp_path: Path, content: bytes, message: str) -> None:
    path, output = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        predict_file(predictor, path, output)
    assert not output.exists()


@pytest.mark.parametrize(
    ("column", "flags"), [("Temperature (K)", {"temperatures": [350.0]}), ("solvent_smiles", {"solvent": "CCO"})]
)
def test_misnamed_columns_are_refused_unless_a_flag_settles_them(
    predictor: Predictor, tmp_path: Path, column: str, flags: dict[str, Any]
) -> None:
    path = tmp_path / "in.csv"
    path.write_text(f"SMILES,{column}\n*CCO*,350\n")
    neither: dict[str, Any] = {"temperatures": None, "solvent": None}
    with pytest.raises(DataError, match=re.escape(f"{path}, line 1: there is no column") + f".*{re.escape(column)}"):
        next(predict_table(predictor, TableReader.open(path), n_jobs=1, **neither))
    _, frame = next(predict_table(predictor, TableReader.open(path), n_jobs=1, **neither | flags))
    assert frame["problem"].tolist() == [""]


@pytest.mark.parametrize(("positive_label", "word"), [(1, "or more"), (0, "above")])
def test_the_label_rule_is_the_label(predictor: Predictor, positive_label: int, word: str) -> None:
    smiles = [f"*CC(*){'C' * n}{end}" for n in range(1, 9) for end in ("", "O", "N")]
    values = {name: getattr(predictor.model, name) for name in predictor.model.__dataclass_fields__}
    plain = predictor.predict(smiles)
    values["threshold"] = round(float(plain["p_soluble"].median()), 3)
    other = Predictor(type(predictor.model)(**values | {"positive_label": positive_label}))
    frame = other.predict(smiles)
    (limit,) = re.findall(r"[0-9.]+(?= or more$|$)", other.label_rule)
    assert word in other.label_rule
    assert frame["soluble"].tolist() == (frame["p_soluble"] >= float(limit)).astype(int).tolist()
    assert frame["soluble"].nunique() == 2
    own, mirrored = ([f"p_soluble{end}" for end in ("", *ends)] for ends in (("_low", "_high"), ("_high", "_low")))
    np.testing.assert_allclose(frame[own], plain[own] if positive_label else 1.0 - plain[mirrored], atol=1e-7)
    assert Predictor(type(predictor.model)(**values | {"probability": None})).label_rule == ""


def test_the_threshold_stands_beside_the_label(
    trained: Any, predictor: Predictor, run_command: RunCommand, tmp_path: Path
) -> None:
    rule = f"1 where p_soluble is {predictor.model.threshold:.4g} or more, the model's threshold"
    _, out, _ = run_command("predict", "--model", trained.model, "*CC(*)CO")
    assert f"soluble  {predictor.predict('*CC(*)CO')['soluble'][0]}  ({rule})\n" in out
    path = tmp_path / "in.csv"
    path.write_text("SMILES\n*CC(*)CO\n")
    for command in ("predict", "screen"):
        words = ["--model", trained.model, "--input", path, "--output", tmp_path / "out.csv", "--n-jobs", 1]
        _, out, _ = run_command(command, *words)
        assert f"; soluble is {rule}" in " ".join(out.split())


def test_memory_stays_bounded(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chitransfer.predict.REMEMBERED", 25)
    remembering = Predictor(predictor.model)
    for start in range(0, 40, 10):
        names = [f"*CC(*){'C' * n}O" for n in range(start, start + 20)]
        # Half of them are known from the call before.
        found, expected = (one.predict(names, 300.0) for one in (remembering, Predictor(predictor.model)))
        pd.testing.assert_frame_equal(found, expected)
        assert len(remembering._known_features) == 20
