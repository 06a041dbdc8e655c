"""The check of the three tables: facts against small tables worked out by hand, warnings, page and figure."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rdkit import DataStructs
from scipy import sparse
from scipy.stats import spearmanr

from chitransfer.config import load_config
from chitransfer.data.check import _temperature_facts, check_tables, nearest_similarity
from chitransfer.data.check_facts import CheckReport
from chitransfer.data.tables import Table, read_chi_table, read_solubility_table, read_stage1_table
from chitransfer.report.check_page import describe_check, draw_check
from chitransfer.training.settings import check_configured_tables

STAGE1 = """SMILES,chi,temp,solvent
*CCO*,0.60,280,O
*CCO*,0.50,300,O
*CCO*,0.45,360,O
*CC(*)c1ccccc1,3.0,280,O
*CC(*)c1ccccc1,2.9,300,O
*CC(*)C(=O)OC,1.5,300,O
"""
CHI = """SMILES,chi,temp,solvent
*OCC*,0.40,298.15,O
*CCO*,0.50,298.15,O
*CCO*,0.60,298.15,O
*CC(*)c1ccccc1,4.0,298.15,O
*CC(*)c1ccccc1,4.4,298.15,O
*CC(*)c1ccccc1,4.4,298.15,O
*CC(*)Cl,1.2,298.15,CC(C)=O
"""
SOLUBILITY = """SMILES,soluble,solvent
*CCO*,1,O
*CC(*)c1ccccc1,1,O
*CC(*)Cl,0,O
*CC(*)C#N,0,O
*CC(*)O,1,O
*CC(*)O,0,CO
*CC(*)O,1,CO
"""


def tables(
    folder: Path, stage1: str = STAGE1, chi: str = CHI, solubility: str = SOLUBILITY
) -> tuple[Table, Table, Table]:
    paths = []
    for name, text in (("stage1", stage1), ("chi", chi), ("solubility", solubility)):
        paths.append(folder / f"{name}.csv")
        paths[-1].write_text(text)
    return (
        read_stage1_table(str(paths[0]), on_bad_rows="skip"),
        read_chi_table(str(paths[1]), on_bad_rows="skip"),
        read_solubility_table(str(paths[2]), on_bad_rows="skip", on_contradictory_labels="drop"),
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> CheckReport:
    return check_tables(*tables(tmp_path_factory.mktemp("check")))


def warned(report: CheckReport, words: str) -> bool:
    return any(words in warning for warning in report.warnings)


def test_counts_are_those_of_the_tables(report):
    stage1, chi, solubility = report.tables
    assert (stage1.n_rows, stage1.n_polymers, stage1.n_solvents) == (6, 3, 1)
    # The two cuts of the ethylene oxide chain are one polymer.
    assert (chi.n_rows, chi.n_polymers, chi.n_solvents) == (7, 3, 2)
    assert (chi.n_duplicates, chi.n_repeats) == (1, 3)
    assert (solubility.n_rows, solubility.n_rejected) == (5, 2)
    assert report.shared_polymers == {"stage1+chi": 2, "stage1+solubility": 2, "chi+solubility": 3}
    assert stage1.value_range == (0.45, 1.05, 3.0)
    assert stage1.temperature_range == (280.0, 300.0, 360.0)
    assert chi.largest_share[0] == pytest.approx(3 / 7)


def test_noise_is_the_pooled_standard_deviation(report):
    # {0.4, 0.5, 0.6}: sum of squares 0.02, two degrees of freedom; {4.0, 4.4}: 0.08, one.
    deviation = math.sqrt((0.02 + 0.08) / 3)
    assert report.noise is not None
    assert report.noise.standard_deviation == pytest.approx(deviation)
    assert report.noise.mae == pytest.approx(deviation * math.sqrt(2 / math.pi))
    assert (report.noise.n_groups, report.noise.n_rows) == (2, 5)
    assert warned(report, "no model can be expected below an MAE of about 0.15")


def test_temperatures_tell_whether_a_and_b_can_be_told_apart(report, tmp_path):
    facts = report.stage1_temperatures
    assert (facts.n_pairs, facts.n_several) == (3, 2)
    assert facts.median_span == 50.0
    slope, intercept = np.polyfit(1 / np.array([280.0, 300.0, 360.0]), [0.60, 0.50, 0.45], 1)
    left = np.array([0.60, 0.50, 0.45]) - slope / np.array([280.0, 300.0, 360.0]) - intercept
    assert facts.residual == pytest.approx(math.sqrt((left**2).sum()))
    one = check_tables(*tables(tmp_path, stage1="SMILES,chi\n*CCO*,0.5\n*CCC*,2\n"))
    assert warned(one, "cannot be separated")
    assert not warned(report, "cannot be separated")


def test_exact_line_in_1_over_t_has_no_residual(tmp_path):
    rows = "".join(f"*CCO*,{300 / T - 0.5!r},{T}\n" for T in (280.0, 300.0, 320.0, 340.0))
    facts = check_tables(*tables(tmp_path, stage1="SMILES,chi,temp\n" + rows)).stage1_temperatures
    assert facts.residual == pytest.approx(0.0, abs=1e-12)


def test_temperature_facts_of_many_pairs_are_those_of_a_line_through_each():
    rng = np.random.default_rng(5)
    n = 600
    rows = pd.DataFrame(
        {
            "polymer": rng.integers(0, 60, n).astype(str),
            "solvent": rng.choice(["O", "CO"], n),
            "temp": rng.choice([280.0, 298.15, 300.0, 340.0, 420.0], n),
            "chi": rng.normal(size=n),
        }
    )
    squares, freedom, spans = 0.0, 0, []
    for _, own in rows.groupby(["polymer", "solvent"]):
        if np.ptp(own["temp"]) > 0:
            spans.append(np.ptp(own["temp"]))
        if own["temp"].nunique() >= 3:
            line = np.polynomial.Polynomial.fit(1 / own["temp"], own["chi"], 1)
            squares += float(((own["chi"] - line(1 / own["temp"])) ** 2).sum())
            freedom += len(own) - 2
    facts = _temperature_facts(rows)
    assert (facts.n_several, facts.median_span) == (len(spans), np.median(spans))
    assert facts.residual == pytest.approx(math.sqrt(squares / freedom), rel=1e-9)


def test_contradictions_within_and_between_tables_are_named(report):
    assert len(report.contradictions) == 3
    assert report.contradictions[0].startswith("solubility line 7")
    assert any("called soluble, but its measured χ is 4.27" in text for text in report.contradictions)
    assert warned(report, "a measured χ contradicts: 3;")


@pytest.mark.parametrize(
    ("label", "chi", "kelvin", "is_odd"),
    [
        (1, 1.1, 298.15, True),
        (1, 0.9, 298.15, False),
        (0, 0.2, 318.0, True),
        (0, 0.4, 298.15, False),
        (0, 0.2, 320.0, False),
        (1, 1.1, 276.0, False),
    ],
)
def test_labels_are_held_against_chi_measured_near_room_temperature(tmp_path, label, chi, kelvin, is_odd):
    measured = f"SMILES,chi,temp\n*CC(*)N,{chi},{kelvin}\n"
    report = check_tables(*tables(tmp_path, chi=measured, solubility=f"SMILES,soluble\n*CC(*)N,{label}\n"))
    word = "soluble" if label else "insoluble"
    said = f"solubility line 2: *CC(*)N in O is called {word}, but its measured χ is {chi:.2f}"
    assert report.contradictions == ((said,) if is_odd else ())


def test_similarity_is_tanimoto_against_rdkit():
    generator = np.random.default_rng(3)
    queries, known = generator.random((5, 64)) < 0.3, generator.random((11, 64)) < 0.3
    queries[0] = known[0] = False

    def vector(bits: np.ndarray) -> DataStructs.ExplicitBitVect:
        made = DataStructs.ExplicitBitVect(64)
        made.SetBitsFromList([int(bit) for bit in np.flatnonzero(bits)])
        return made

    expected = [max(DataStructs.BulkTanimotoSimilarity(vector(row), [vector(one) for one in known])) for row in queries]
    found = nearest_similarity(*(sparse.csr_array(bits, dtype=np.float32) for bits in (queries, known)), chunk=4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_coverage_finds_the_polymers_of_stage1_and_the_foreign_ones(report):
    chi = next(coverage for coverage in report.coverage if coverage.kind == "chi")
    assert chi.n_in_stage1 == 2
    similarity = dict(zip(chi.polymers, chi.similarity, strict=True))
    assert sorted(round(value, 6) for value in similarity.values())[1:] == [1.0, 1.0]
    assert min(similarity.values()) < 0.5
    assert chi.n_solvents_unseen == 1
    assert chi.share_rows_unseen == pytest.approx(1 / 7)


def test_agreement_pairs_stereo_variants_and_prefers_the_very_same_polymer(tmp_path):
    stage1 = """SMILES,chi,temp,solvent
*C/C=C/C*,0.70,300,O
*C/C=C\\C*,0.90,300,O
*CC(*)C,2.0,300,O
"""
    chi = """SMILES,chi,temp,solvent
*C/C=C\\C*,1.0,298.15,O
*CC=CC*,0.8,298.15,O
*C[C@H](*)C,2.2,298.15,O
"""
    agreement = check_tables(*tables(tmp_path, stage1, chi)).agreement
    assert agreement is not None
    assert (agreement.n_pairs, agreement.n_polymers) == (3, 2)
    assert agreement.computed == (0.90, 0.70, 2.0)
    assert agreement.measured == (1.0, 0.8, 2.2)


def test_agreement_takes_the_nearest_temperature(report):
    assert report.agreement is not None
    assert report.agreement.n_pairs == 6
    assert set(report.agreement.computed) == {0.50, 2.9}
    expected = spearmanr(report.agreement.computed, report.agreement.measured).statistic
    assert report.agreement.spearman == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("1111111110", "calling everything soluble has F1 0.95"),
        ("0000000001", "Calling everything insoluble is right 90%"),
    ],
)
def test_lopsided_labels_are_told(tmp_path, labels, words):
    rows = "".join(f"*CC(*){'C' * (n + 1)},{label}\n" for n, label in enumerate(labels))
    report = check_tables(*tables(tmp_path, solubility="SMILES,soluble\n" + rows))
    assert warned(report, words)
    assert warned(report, "1 row of the rarer class")


@pytest.mark.parametrize("positive", ["soluble", "insoluble", "minority"])
def test_the_positive_class_is_that_of_the_configuration(tmp_path, positive):
    rows = "".join(f"*CC(*){'C' * (n + 1)},{int(n < 8)}\n" for n in range(10))
    sources = [table.source for table in tables(tmp_path, solubility="SMILES,soluble\n" + rows)]
    keys = ("dft_chi_csv", "exp_chi_csv", "solubility_csv", "cache_dir")
    values = {f"paths.{key}": value for key, value in zip(keys, [*sources, str(tmp_path / "kept")], strict=True)}
    config = load_config(None, {**values, "solubility.positive": positive})
    report = check_configured_tables(config, lambda what, done, total: None)
    assert warned(report, "Set solubility.positive to insoluble") == (positive == "soluble")
    assert warned(report, "Calling everything soluble is right 80% of the time") == (positive != "soluble")


@pytest.mark.parametrize(("label", "name"), [(1, "soluble"), (0, "insoluble")])
def test_labels_of_one_class_are_told_as_a_search_takes_them(tmp_path, label, name):
    rows = "".join(f"*CC(*){'C' * (n + 1)},{label}\n" for n in range(6))
    stage1, chi, solubility = tables(tmp_path, solubility="SMILES,soluble\n" + rows)
    report = check_tables(stage1, chi, solubility, n_folds=10)
    assert warned(report, f"every label is {name}. A search needs both classes and refuses to start")
    assert not any("positive" in warning or "rarer" in warning for warning in report.warnings)
    # Poly(propylene) to poly(1-octene), ethylene oxide, styrene and vinyl chloride.
    assert report.n_measured == 9
    assert report.warnings[0].startswith("Solubility: every label is ")
    assert report.warnings[1].startswith("Stage 2 has 9 polymers in all, too few for 10 folds: a search refuses")
    assert not any("folds without any to score" in warning for warning in report.warnings), "said already"
    fewer = check_tables(stage1, chi, solubility, n_folds=5)
    assert warned(fewer, "Experimental χ: 3 polymers in 5 folds: folds without any to score")
    assert warned(report, "Experimental χ: 1 solvent not in Stage 1")


def test_contradictions_that_are_not_shown_are_counted(tmp_path):
    rows = "".join(f"*CC(*){'C' * (n + 1)},{label}\n" for n in range(3) for label in (0, 1)) + "*CC*,1\n"
    assert "… and 1 more contradicted label\n" in describe_check(
        check_tables(*tables(tmp_path, solubility="SMILES,soluble\n" + rows))
    )


def test_stereo_variants_are_shared_as_the_coverage_counts_them(tmp_path):
    stage1 = STAGE1 + "*CC=CC*,0.7,300,O\n"
    variants = "*C/C=C\\C*,0.4,298.15,O\n*C/C=C/C*,0.4,298.15,O\n"
    report = check_tables(*tables(tmp_path, stage1=stage1, chi=CHI + variants))
    assert report.shared_polymers == {"stage1+chi": 3, "stage1+solubility": 2, "chi+solubility": 3}
    coverage = next(coverage for coverage in report.coverage if coverage.kind == "chi")
    assert (coverage.n_in_stage1, coverage.n_polymers, len(coverage.similarity)) == (3, 4, 4)


def test_one_stage2_table_is_enough(tmp_path):
    stage1, chi, solubility = tables(tmp_path)
    only_chi, only_labels = check_tables(stage1, chi, None), check_tables(stage1, None, solubility)
    assert only_chi.soluble_share is None
    assert only_labels.noise is None
    assert only_labels.agreement is None
    for report, missing in ((only_chi, "no solubility table"), (only_labels, "no table of measured χ")):
        assert "Warnings" in describe_check(report)
        draw_check(report, tmp_path / "check.svg")
        drawn = (tmp_path / "check.svg").read_text(encoding="utf-8")
        assert missing in drawn
        assert "no polymer and solvent in both tables" not in drawn


def test_a_table_alone_shares_no_polymers(tmp_path):
    stage1, chi, _ = tables(tmp_path)
    assert "Polymers in two tables: stage1 and chi 2\n" in describe_check(check_tables(stage1, chi, None))
    assert "in two tables" not in describe_check(check_tables(stage1, None, None))


@pytest.mark.parametrize("with_chi", [True, False])
def test_labels_that_all_contradict_each_other_are_told(tmp_path, with_chi):
    stage1, chi, solubility = tables(tmp_path, solubility="SMILES,soluble\n*CCO*,1\n*OCC*,0\n*CC*,0\n*CC*,1\n")
    report = check_tables(stage1, chi if with_chi else None, solubility)
    facts = report.tables[-1]
    assert (facts.n_rows, facts.n_rejected, facts.n_polymers, facts.largest_share) == (0, 4, 0, None)
    assert report.soluble_share is None
    assert warned(report, "Solubility: no label is left")
    assert "line 3: *OCC* contradicts another row" in describe_check(report)
    json.loads(json.dumps(report.to_dict(), allow_nan=False))
    draw_check(report, tmp_path / "check.png")
    assert (tmp_path / "check.png").stat().st_size > 10_000


def test_a_count_of_0_is_written_where_a_logarithmic_axis_can_show_it(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("chitransfer.report.check_page.save_figure", lambda figure, path: drawn.append(figure))
    stage1, _, solubility = tables(tmp_path, solubility="SMILES,soluble\n*CCO*,1\n*CCO*,0\n")
    draw_check(check_tables(stage1, None, solubility), tmp_path / "check.png")
    rows = drawn[0].axes[0]
    zeros = [text.get_position()[0] for text in rows.texts if text.get_text() == " 0"]
    assert len(zeros) == 3
    assert min(zeros) >= rows.get_xlim()[0]


def test_copies_and_odd_chi_are_told_with_file_and_line(tmp_path):
    chi = CHI.replace("0.40,298.15", "-5,298.15").replace("4.0,", "55,")
    report = check_tables(*tables(tmp_path, chi=chi))
    assert report.tables[1].odd_chi == ((2, -5.0), (5, 55.0))
    assert warned(report, f"{tmp_path / 'chi.csv'}: χ rarely lies outside -5 to 20, but does in 2 rows (line 2: ")
    assert warned(report, f"{tmp_path / 'chi.csv'}: exact copies of earlier rows, 1 (line 7), also count")
    assert not warned(check_tables(*tables(tmp_path)), "rarely lies outside")


def test_page_figure_and_json(report, tmp_path):
    page = describe_check(report)
    assert all(warning in page for warning in report.warnings)
    assert "experimental χ" in page
    json.loads(json.dumps(report.to_dict(), allow_nan=False))
    for ending in ("png", "svg"):
        draw_check(report, tmp_path / f"check.{ending}")
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["check.png", "check.svg"]


def test_inputs_are_not_changed(tmp_path):
    given = tables(tmp_path)
    before = [table.rows.copy() for table in given]
    check_tables(*given)
    for table, copy in zip(given, before, strict=True):
        assert table.rows.equals(copy)


def test_shared_tables_as_their_readme_describes_them(shared_data):
    report = check_tables(
        read_stage1_table(str(shared_data / "cosmo_rs_chi.csv")),
        read_chi_table(str(shared_data / "experiment_chi.csv")),
        read_solubility_table(str(shared_data / "solubility.csv")),
    )
    assert [facts.n_polymers for facts in report.tables] == [46, 46, 153]
    assert report.soluble_share == pytest.approx(0.69, abs=0.005)
    assert report.agreement is not None
    assert report.agreement.spearman == pytest.approx(0.64, abs=0.02)
    assert warned(report, "F1 0.82 and recall 1")
    assert warned(report, "45 of 45 polymers are also in Stage 1")
