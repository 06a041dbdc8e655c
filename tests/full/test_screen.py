"""Screening: conditions, ranking, repeats, and the picture."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from chitransfer.data.pair_table import TableReader
from chitransfer.errors import DataError
from chitransfer.predict import Predictor
from chitransfer.predict_table import predict_table, write_predictions
from chitransfer.screen import (
    Conditions,
    Screening,
    draw_structures,
    picture_legend,
    screen_candidates,
    write_screening,
)
from tests.drawing import needs_drawing

RunCommand = Callable[..., tuple[int, str, str]]


@pytest.fixture
def candidates(tmp_path: Path) -> Path:
    """40 polymers, one of them cut twice, one that is none."""
    path = tmp_path / "candidates.csv"
    names = [f"*CC(*){'C' * (n % 8 + 1)}{('', 'O', 'N', 'Cl', 'OC')[n // 8]}" for n in range(40)]
    pd.DataFrame({"name": range(43), "SMILES": [*names, "*C(CO)C*", "nothing", "*CC(*)CO"]}).to_csv(path, index=False)
    return path


def screen(predictor: Predictor, path: Path, conditions: Conditions, **options: Any) -> Screening:
    """Screen a table in chunks of seven."""
    reader = TableReader.open(path)
    parts = predict_table(predictor, reader, temperatures=None, solvent=None, n_jobs=1, chunk_rows=7)
    return screen_candidates(parts, reader.header, conditions, **{"rank_by": "p_soluble", "top": 10} | options)


def test_the_best_of_a_stream_are_the_best_of_all(predictor: Predictor, candidates: Path) -> None:
    table = pd.read_csv(candidates)
    everything = predictor.predict(table["SMILES"].tolist())
    found = screen(predictor, candidates, Conditions())
    assert (found.n_rows, found.n_usable, found.n_kept) == (43, 42, 42)
    expected = everything[everything["problem"] == ""].drop_duplicates(["A_K", "B", "p_soluble"])
    expected = expected.sort_values(["p_soluble", "chi"], ascending=[False, True]).head(10)
    assert found.best["SMILES"].tolist() == expected["SMILES"].tolist()
    assert found.best["rank"].tolist() == list(range(1, 11))
    assert (found.best["input_row"] - 1 == found.best["name"].astype(int)).all()
    by_chi = screen(predictor, candidates, Conditions(), rank_by="chi").best
    assert by_chi["chi"].is_monotonic_increasing


def test_conditions_hold_for_every_candidate_kept(predictor: Predictor, candidates: Path) -> None:
    middle = float(predictor.predict(pd.read_csv(candidates)["SMILES"].tolist())["chi"].median())
    loose = screen(predictor, candidates, Conditions(max_chi=middle, in_domain=True), top=100)
    assert 0 < loose.n_kept < 42
    assert (loose.best["chi"] <= middle).all()
    assert loose.best["chi_in_domain"].all()
    strict = screen(predictor, candidates, Conditions(max_chi=middle, certain=True), top=100)
    assert (strict.best["chi_high"] <= middle).all()
    assert strict.n_kept < screen(predictor, candidates, Conditions(max_chi=middle)).n_kept
    some = screen(predictor, candidates, Conditions(min_p_soluble=0.5), top=100)
    assert (some.best["p_soluble"] >= 0.5).all()
    assert screen(predictor, candidates, Conditions(max_chi=-1e9)).best.empty


def test_progress_counts_the_candidates(predictor: Predictor, candidates: Path) -> None:
    told: list[tuple[str, int, int]] = []
    parts = predict_table(
        predictor, TableReader.open(candidates), temperatures=None, solvent=None, n_jobs=1, chunk_rows=20,
        progress=lambda *words: told.append(words),
    )  # fmt: skip
    assert [len(rows) for rows, _ in parts] == [20, 20, 3]
    assert told == [("predicting", done, 43) for done in (20, 40, 43, 43)]


def test_a_polymer_cut_twice_is_one_candidate(predictor: Predictor, candidates: Path) -> None:
    best = screen(predictor, candidates, Conditions(), top=100).best
    assert "*CC(*)CO" in set(best["SMILES"])
    assert "*C(CO)C*" not in set(best["SMILES"])
    assert best["SMILES"].tolist().count("*CC(*)CO") == 1


def test_isomers_are_candidates_of_their_own(predictor: Predictor, tmp_path: Path) -> None:
    """Nylon 6,6 and 5,7 have the same features, so the same predictions."""
    path = tmp_path / "in.csv"
    nylons = ["*NCCCCCCNC(=O)CCCCC(*)=O", "*NCCCCCNC(=O)CCCCCC(*)=O"]
    path.write_text("\n".join(["SMILES", *nylons, "*C(=O)CCCCCCC(=O)NCCCCN*"]))
    best = screen(predictor, path, Conditions()).best
    assert best["chi"].nunique() < 3, "no longer an example"
    assert len(best) == 3


def test_a_polymer_is_kept_once_in_a_solvent_at_its_best_row(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    rows = [f"{unit},{T},{solvent}" for solvent in ("O", "CCO") for unit in ("*CCO*", "*OCC*") for T in (280, 350, 300)]
    stereo = ["*C[C@H](*)CO,300,O", "*C[C@@H](*)CO,310,O", "*CC(*)CO,290,O"]
    path.write_text("\n".join(["SMILES,temp,solvent", *rows, *stereo]))
    everything = next(predict_table(predictor, TableReader.open(path), temperatures=None, solvent=None, n_jobs=1))[
        1
    ].assign(polymer=["PEO"] * len(rows) + ["other"] * len(stereo))
    expected = everything.loc[everything.groupby(["polymer", "solvent"])["chi"].idxmin()].sort_values("chi")
    best = screen(predictor, path, Conditions(), rank_by="chi").best
    assert best["input_row"].tolist() == (expected.index + 1).tolist()
    assert best["temperature_K"].tolist() == expected["temperature_K"].tolist()
    limit = everything["chi"].nsmallest(2).iloc[-1]
    within = screen(predictor, path, Conditions(min_chi=limit), rank_by="chi").best
    assert len(within) == 3
    assert within["chi"].min() == limit


def test_a_model_without_solubility_ranks_by_chi_alone(predictor: Predictor, candidates: Path) -> None:
    values = {name: getattr(predictor.model, name) for name in predictor.model.__dataclass_fields__}
    without = Predictor(type(predictor.model)(**{**values, "probability": None}))
    with pytest.raises(DataError, match="not learned solubility"):
        screen(without, candidates, Conditions())
    assert len(screen(without, candidates, Conditions(), rank_by="chi").best) == 10


@needs_drawing
def test_command_writes_table_and_picture(
    trained: Any, candidates: Path, run_command: RunCommand, tmp_path: Path
) -> None:
    output = tmp_path / "best.csv"
    code, out, err = run_command(
        "screen", "--model", trained.model, "--input", candidates, "--output", output, "--top", 6, "--max-chi", 5,
        "--n-jobs", 1,
    )  # fmt: skip
    assert code == 0, err
    assert "43 candidates" in out
    assert f"the best 6 are in {output}, drawn in " in " ".join(out.split())
    assert "more than once" not in out
    assert len(pd.read_csv(output)) == 6
    image = Image.open(tmp_path / "best.png")
    assert image.width == 4 * 320
    assert len(image.convert("L").getcolors() or []) > 1
    _, out, _ = run_command(
        "screen", "--model", trained.model, "--input", candidates, "--output", output, "--top", 100, "--n-jobs", 1
    )
    repeats = "; a polymer that is among them more than once in the same solvent counts once, at its best row; "
    assert f"42 within the conditions{repeats}the best 40 are in {output}, the first 24 drawn in " in " ".join(
        out.split()
    )
    code, _, err = run_command(
        "screen", "--model", trained.model, "--input", candidates, "--output", output, "--rank-by", "beauty"
    )
    assert code == 2
    assert "'beauty'" in err


def test_candidates_that_are_all_refused_end_with_their_reasons(
    trained: Any, run_command: RunCommand, tmp_path: Path
) -> None:
    path, output = tmp_path / "in.csv", tmp_path / "best.csv"
    path.write_text("SMILES,solvent\nCCO,O\nCC,O\n*CCO*,CCO.O\n")
    code, _, err = run_command("screen", "--model", trained.model, "--input", path, "--output", output, "--n-jobs", 1)
    assert code == 2
    assert "nothing can be predicted of 3 candidates\n  2 rows, first 1: " in err
    assert "\n  row 3: solvent CCO.O: the solvent is more than one molecule" in err
    assert not output.exists()


def test_the_command_tells_what_became_of_the_others(trained: Any, run_command: RunCommand, tmp_path: Path) -> None:
    path, output = tmp_path / "in.csv", tmp_path / "best.csv"
    path.write_text("SMILES,solvent\n*CCO*,O\nCCO,O\n*CC(*)O,O\n,\n")
    words = ["screen", "--model", trained.model, "--input", path, "--output", output, "--n-jobs", 1]
    code, out, _ = run_command(*words, "--max-chi", "-1000", "--min-p-soluble", "0")
    assert code == 0
    assert "4 candidates, 2 with a prediction, 0 within the conditions" in out
    assert "  --max-chi -1000: 0 candidates\n  --min-p-soluble 0: 2 candidates\n" in out
    assert "without a prediction:\n  row 2: " in out
    assert "\n  row 4: the row is empty" in out
    code, out, _ = run_command(*words)
    assert "by itself" not in out
    assert "row 2: " in out


def test_reasons_are_not_kept_for_every_row() -> None:
    n_rows = 5000
    problems = pd.DataFrame(
        {"problem": [f"solvent {n}: unreadable" for n in range(n_rows)], "in_domain": False, "chi": 0.0}
    )
    rows = [["*CCO*"]] * n_rows
    with pytest.raises(DataError, match=r"(?s)  4000 rows, first 1001: for other reasons\n.*  … and 991 other"):
        screen_candidates(iter([(rows, problems)]), ["SMILES"], Conditions(), rank_by="chi", top=3)


@needs_drawing
def test_an_empty_ranking_stands_beside_no_earlier_picture(
    trained: Any, candidates: Path, run_command: RunCommand, tmp_path: Path
) -> None:
    output, picture = tmp_path / "BEST.CSV.GZ", tmp_path / "BEST.png"
    words = ["screen", "--model", trained.model, "--input", candidates, "--output", output, "--n-jobs", 1]
    assert run_command(*words)[0] == 0
    assert picture.exists()
    for _ in range(2):
        code, out, _ = run_command(*words, "--max-chi", -1000)
        assert code == 0
        assert f"{output} has no row, and there is no picture" in " ".join(out.split())
        assert pd.read_csv(output, compression="gzip").empty
        assert not picture.exists()


def test_numbers_of_the_candidates_pass_through(predictor: Predictor, tmp_path: Path) -> None:
    path, output = tmp_path / "in.csv", tmp_path / "best.csv"
    path.write_text("SMILES,logP\n*CCO*,-1.3\n")
    write_screening(screen(predictor, path, Conditions()), output, None)
    assert pd.read_csv(output)["logP"].tolist() == [-1.3]


def test_a_measured_chi_stays_beside_the_predicted_one(predictor: Predictor, tmp_path: Path) -> None:
    path, output = tmp_path / "in.csv", tmp_path / "best.csv"
    path.write_text("SMILES,chi,problem,rank\n*CCO*,7.5,smells,a\n*CC(*)O,8.5,none,b\n")
    write_screening(screen(predictor, path, Conditions(), rank_by="chi"), output, None)
    best = pd.read_csv(output).sort_values("input_row")
    assert best["chi_2"].tolist() == [7.5, 8.5]
    assert best["problem_2"].tolist() == ["smells", "none"]
    assert best["rank_2"].tolist() == ["a", "b"]
    predicted = predictor.predict(["*CCO*", "*CC(*)O"])["chi"]
    assert best["chi"].tolist() == pytest.approx(predicted.tolist())


def test_a_ranking_can_be_ranked_and_predicted_again(predictor: Predictor, candidates: Path, tmp_path: Path) -> None:
    path, first, second, again = (tmp_path / name for name in ("in.csv", "first.csv", "second.csv", "again.csv"))
    table = pd.read_csv(candidates).assign(Temp=310.0, solvent="OCC", rank="by hand")
    table.to_csv(path, index=False)
    reader = TableReader.open(path)
    parts = predict_table(predictor, reader, temperatures=[350.0], solvent=None, n_jobs=1)
    write_screening(screen_candidates(parts, reader.header, Conditions(), rank_by="chi", top=5), first, None)
    write_screening(screen(predictor, first, Conditions(), rank_by="chi"), second, None)
    before, after = pd.read_csv(first), pd.read_csv(second)
    assert "Temp" not in before
    assert before["temperature_K"].tolist() == [350.0] * 5
    assert before["solvent"].tolist() == ["CCO"] * 5
    assert after["input_row"].tolist() == [1, 2, 3, 4, 5]
    pd.testing.assert_frame_equal(after.drop(columns="input_row"), before.drop(columns="input_row"))
    reader = TableReader.open(first)
    write_predictions(reader, predict_table(predictor, reader, temperatures=None, solvent=None, n_jobs=1), again)
    predicted = pd.read_csv(again)
    for name in ("solvent", "temperature_K", "chi", "chi_high", "p_soluble"):
        assert predicted[name].equals(predicted[f"{name}_predicted"])


@pytest.mark.parametrize("temperatures", [None, [300.0, 350.5]])
@pytest.mark.parametrize("n_times", [1, 2])
def test_of_a_table_that_was_predicted_the_predictions_are_replaced_and_no_column_of_its_own(
    predictor: Predictor, tmp_path: Path, n_times: int, temperatures: list[float] | None
) -> None:
    paths = [tmp_path / f"{number}.csv" for number in range(n_times + 1)]
    paths[0].write_text("SMILES,Chi,rank,solvent\n*CCO*,7.5,a,CCO\n*CC(*)O,8.5,b,CCO\n", encoding="utf-8")
    for before, after in itertools.pairwise(paths):
        reader = TableReader.open(before)
        parts = predict_table(predictor, reader, temperatures=temperatures, solvent=None, n_jobs=1)
        write_predictions(reader, parts, after)
    reader = TableReader.open(paths[-1])
    assert ("chi_350.5K_high" in reader.header) == (temperatures is not None)
    parts = predict_table(predictor, reader, temperatures=None, solvent="O", n_jobs=1)
    best = screen_candidates(parts, reader.header, Conditions(), rank_by="chi", top=9).best.sort_values("input_row")
    assert [name for name in best if "_predicted" in name or name.startswith("chi_3")] == []
    assert best["Chi"].tolist() == ["7.5", "8.5"]
    assert best["rank_2"].tolist() == ["a", "b"]
    assert best["chi"].tolist() == predictor.predict(["*CCO*", "*CC(*)O"])["chi"].tolist()


@needs_drawing
def test_columns_of_one_name_or_none_keep_their_own_values(predictor: Predictor, tmp_path: Path) -> None:
    """As spreadsheets export them; the quick tests take warnings of pandas for errors."""
    path, output = tmp_path / "in.csv", tmp_path / "best.csv"
    path.write_text("note,SMILES,note,note_2,,\na,*CCO*,b,c,,e\n", encoding="utf-8")
    write_screening(screen(predictor, path, Conditions()), output, tmp_path / "best.png")
    header, row = (line.split(",") for line in output.read_text(encoding="utf-8").splitlines())
    assert header[-5:] == ["note", "note_3", "note_2", "", "_2"]
    assert row[-5:] == ["a", "b", "c", "", "e"]
    again = screen(predictor, output, Conditions()).best
    assert again["note_3"].tolist() == ["b"]


def test_blank_rows_are_candidates_without_a_prediction(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("name,SMILES\na,*CCO*\n,\nc,*CC(*)CO\n\n")
    found = screen(predictor, path, Conditions())
    assert (found.n_rows, found.n_usable, found.n_kept) == (3, 2, 2)
    assert dict(zip(found.best["name"], found.best["input_row"], strict=True)) == {"a": 1, "c": 3}


def test_a_misnamed_column_is_refused_with_file_and_line(trained: Any, run_command: RunCommand, tmp_path: Path) -> None:
    path, output = tmp_path / "in.csv", tmp_path / "best.csv"
    path.write_text("SMILES,Temperature (K)\n*CCO*,350\n")
    words = ["screen", "--model", trained.model, "--input", path, "--output", output, "--n-jobs", 1]
    code, _, err = run_command(*words)
    assert code == 2
    assert "line 1: there is no column temp, but one called Temperature (K)" in " ".join(err.split())
    assert not output.exists()
    assert run_command(*words, "--temperature", 350)[0] == 0
    assert pd.read_csv(output)["temperature_K"].tolist() == [350.0]


@pytest.mark.parametrize(
    ("option", "name", "expected"),
    [
        ("--output", "best.png", "the name must end in .csv or .csv.gz"),
        ("--output", "folder.csv", "is a folder"),
        ("--picture", "best.csv", "the name must end in .png"),
    ],
)
def test_names_are_refused_before_anything_is_predicted(
    trained: Any, candidates: Path, run_command: RunCommand, tmp_path: Path, option: str, name: str, expected: str
) -> None:
    folder = tmp_path / "own"
    (folder / "folder.csv").mkdir(parents=True)
    words = ["screen", "--model", trained.model, "--input", candidates, option, folder / name]
    code, _, err = run_command(*words, *([] if option == "--output" else ["--output", folder / "best.csv"]))
    assert code == 2
    assert f"ERROR: {option} {folder / name}: {expected}" in err
    assert [entry.name for entry in folder.iterdir()] == ["folder.csv"]


def test_a_ranking_is_at_one_temperature(run_command: RunCommand, tmp_path: Path) -> None:
    words = ["--model", tmp_path / "none.pt", "--input", tmp_path / "none.csv", "--output", tmp_path / "best.csv"]
    code, _, err = run_command("screen", *words, "--temperature", 300, "--temperature", 350.5)
    assert code == 2
    assert "ERROR: --temperature is given 2 times (300, 350.5), but one is taken; give one and" in err


@pytest.mark.parametrize(
    ("option", "own"), [("--output", "--input"), ("--picture", "--input"), ("--picture", "--model")]
)
def test_neither_candidates_nor_model_are_overwritten(
    run_command: RunCommand, tmp_path: Path, option: str, own: str
) -> None:
    ending = {"--output": "csv", "--picture": "png"}[option]
    words = {"--model": tmp_path / "model.pt", "--input": tmp_path / "in.csv", "--output": tmp_path / "best.csv"}
    words |= {own: tmp_path / f"own.{ending}"}
    words[own].write_text("SMILES\n*CCO*\n")
    link = tmp_path / f"link.{ending}"
    link.symlink_to(words[own])
    for path in (words[own], link):
        words[option] = path
        code, _, err = run_command("screen", *(word for pair in words.items() for word in pair))
        assert code == 2
        assert f"ERROR: {option} {path}: is the file of {own} {words[own]}, which would be overwritten" in err
    assert words[own].read_text() == "SMILES\n*CCO*\n"


WHERE = {"rank": 1, "chi": 0.25, "solvent": "O", "temperature_K": 298.15, "in_domain": True}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, "1: chi 0.25\nin O at 298.15 K"),
        ({"chi_high": 1.0, "p_soluble": 0.5}, "1: P(soluble) 0.50, chi 0.25 +/- 0.75 (80 %)\nin O at 298.15 K"),
        ({"in_domain": False, "chi_in_domain": False}, "1: chi 0.25\nin O at 298.15 K, outside the domain"),
        ({"chi_in_domain": False}, "1: chi 0.25\nin O at 298.15 K, chi outside its domain"),
        ({"solvent": "C" * 30, "temperature_K": 350.0}, f"1: chi 0.25\nin {'C' * 13}... at 350 K"),
    ],
)
def test_a_legend_tells_prediction_conditions_and_domain(columns: dict[str, object], expected: str) -> None:
    legend = picture_legend(WHERE | columns, 0.8)
    assert legend == expected
    assert legend.isascii(), "RDKit draws no other letters"


@needs_drawing
def test_one_long_candidate_leaves_the_others_their_size(tmp_path: Path) -> None:
    ink = []
    for other in ("*CC*", "*" + "C" * 80 + "*"):
        rows = [WHERE | {"SMILES": smiles} for smiles in ("*CC(*)c1ccccc1", other)]
        draw_structures(pd.DataFrame(rows), tmp_path / "best.png")
        ink.append(Image.open(tmp_path / "best.png").crop((0, 0, 320, 260)).convert("L").tobytes())
    assert ink[0] == ink[1]


@pytest.mark.parametrize("own", ["--input", "--model"])
def test_predict_overwrites_neither_the_table_nor_the_model(run_command: RunCommand, tmp_path: Path, own: str) -> None:
    words = {"--model": tmp_path / "model.csv", "--input": tmp_path / "in.csv"}
    words[own].write_text("SMILES\n*CCO*\n")
    code, _, err = run_command("predict", *(word for pair in words.items() for word in pair), "--output", words[own])
    assert code == 2
    assert f"ERROR: --output {words[own]}: is the file of {own} {words[own]}, which would be overwritten" in err
    assert words[own].read_text() == "SMILES\n*CCO*\n"
