"""Warnings about tables: none about good ones but the noise floor, and each on the right side of its threshold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chitransfer.data import check_facts
from chitransfer.data.check_warnings import find_obstacles, find_warnings

POLYMERS = tuple(f"*{'C' * (n + 1)}O*" for n in range(100))
FACTS = check_facts.TableFacts(
    kind="stage1",
    source="stage1.csv",
    n_rows=5000,
    n_rejected=0,
    n_polymers=1000,
    n_without_stereo=1000,
    n_solvents=1,
    rejected=(),
    settings_to_skip=(),
    n_duplicates=0,
    duplicate_lines=(),
    odd_chi=(),
    n_repeats=0,
    value_range=(0.1, 0.5, 3.0),
    temperature_range=(280.0, 300.0, 360.0),
    largest_share=(0.01, "*CCO*"),
)
CHI = replace(FACTS, kind="chi", source="chi.csv", n_rows=300, n_polymers=100, n_without_stereo=100)
LABELS = replace(FACTS, kind="solubility", source="labels.csv", n_rows=200, temperature_range=None, value_range=None)
COVERAGE = check_facts.CoverageFacts("chi", 100, 50, (0.29,) * 10 + (0.3,) * 90, POLYMERS, 0, 0.0)
GOOD = check_facts.CheckReport(
    tables=(FACTS, CHI, LABELS),
    shared_polymers={},
    n_stage1=1000,
    n_measured=200,
    stage1_temperatures=check_facts.TemperatureFacts(1000, 500, 20.0, None),
    chi_temperatures=check_facts.TemperatureFacts(100, 1, 5.0, 0.1),
    noise=check_facts.NoiseFacts(2, 5, 0.18, 0.15),
    soluble_share=0.65,
    contradictions=(),
    coverage=(COVERAGE,),
    agreement=check_facts.AgreementFacts(50, 20, 0.3, (), ()),
    stereo_variants=(),
    n_labelled=0,
)


def test_good_tables_are_warned_of_their_noise_alone() -> None:
    (noise,) = find_warnings(GOOD, 5, 1)
    assert "differ by 0.18 (standard deviation, 2 sets)" in noise
    assert list(find_obstacles(GOOD, 5)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_stage1": 499}, "Stage 1: only 499 polymers"),
        ({"n_stage1": 2}, "Stage 1: only 2 polymers"),
        (
            {"tables": (replace(FACTS, n_rejected=1, rejected=((2, "*" + "C" * 5000, "too long"),)), CHI, LABELS)},
            f"(line 2: *{'C' * 199}…: too long)",
        ),
        (
            {"tables": (replace(FACTS, value_range=(0.5, 0.5, 0.5)), CHI, LABELS)},
            "χ is 0.5 in every row, so pretraining has nothing to learn from",
        ),
        (
            {"tables": (FACTS, replace(CHI, value_range=(0.5, 0.5, 0.5)), LABELS)},
            "χ is 0.5 in every row, so its R² is not defined",
        ),
        (
            {"tables": (replace(FACTS, largest_share=(0.31, "*CC*")), CHI, LABELS)},
            "Stage 1: 31% of the rows are one polymer, *CC*; whether it is held out for validation decides",
        ),
        (
            {"tables": (FACTS, replace(CHI, n_without_stereo=14), LABELS)},
            "14 polymers in 5 folds: fewer than 3 to score",
        ),
        (
            {"tables": (FACTS, replace(CHI, n_without_stereo=4), LABELS)},
            "4 polymers in 5 folds: folds without any to score",
        ),
        ({"tables": (FACTS, replace(CHI, largest_share=(0.31, "*CC*")), LABELS)}, "*CC*; its fold decides"),
        ({"tables": (FACTS, replace(CHI, n_rejected=2), LABELS)}, "2 rows cannot be used (; …). A search leaves them"),
        ({"tables": (FACTS, replace(CHI, temperature_range=(259.0, 300.0, 360.0)), LABELS)}, "(259 to 360 K) reach"),
        ({"tables": (FACTS, replace(CHI, temperature_range=(280.0, 300.0, 381.0)), LABELS)}, "(280 to 381 K) reach"),
        ({"n_labelled": 1}, "1 row of polymers written with isotopes, such as [2H]. Isotopes are ignored"),
        ({"stage1_temperatures": check_facts.TemperatureFacts(1000, 0, 0.0, None)}, "cannot be separated"),
        (
            {"stage1_temperatures": check_facts.TemperatureFacts(1000, 499, 20.0, None)},
            "for 499 of 1000 polymer-solvent pairs only",
        ),
        (
            {"stage1_temperatures": check_facts.TemperatureFacts(1000, 500, 19.0, None)},
            "span 19 K per pair (median): too little",
        ),
        (
            {"chi_temperatures": check_facts.TemperatureFacts(100, 0, 0.0, None)},
            "its temperature dependence comes from Stage 1",
        ),
        ({"stereo_variants": ("*CC=CC*",)}, "1 polymer with a stereo variant in the tables (such as *CC=CC*)"),
        (
            {"coverage": (replace(COVERAGE, similarity=(0.29,) * 11 + (0.3,) * 89),)},
            "11 of 100 polymers have no similar polymer",
        ),
        ({"coverage": (replace(COVERAGE, n_in_stage1=51),)}, "51 of 100 polymers are also in Stage 1"),
        (
            {"coverage": (replace(COVERAGE, n_solvents_unseen=1, share_rows_unseen=0.2),)},
            "1 solvent not in Stage 1 (20%",
        ),
        ({"soluble_share": 0.66}, "calling everything soluble has F1 0.80"),
        ({"soluble_share": 0.34}, "Calling everything insoluble is right 66% of the time"),
        ({"soluble_share": 0.4, "tables": (FACTS, CHI, replace(LABELS, n_rows=47))}, "19 rows of the rarer class"),
        (
            {"noise": check_facts.NoiseFacts(0, 0, None, None)},
            "the noise floor is not known. Rows scatter by 0.10 around",
        ),
        (
            {"agreement": check_facts.AgreementFacts(50, 20, 0.29, (), ())},
            "ranks the 50 measured rows it shares poorly",
        ),
    ],
)
def test_each_is_told_beyond_its_threshold(changes: dict[str, Any], words: str) -> None:
    told = list(find_warnings(replace(GOOD, **changes), 5, 1))
    assert [words in warning for warning in told].count(True) == 1
    # The one about noise, which a change may replace, and the one that the change calls for.
    assert len(told) == (1 if "noise" in changes else 2)


def test_rows_that_stop_a_search_are_its_obstacle_and_no_second_warning() -> None:
    stopping = replace(CHI, n_rejected=1, rejected=((7, "chi = 'x'", "no number"),), settings_to_skip=("data.a=skip",))
    report = replace(GOOD, tables=(FACTS, stopping, LABELS))
    assert len(list(find_warnings(report, 5, 1))) == 1
    (obstacle,) = find_obstacles(report, 5)
    assert "1 row cannot be used (line 7: chi = 'x': no number). A search stops there" in obstacle
    assert obstacle.endswith("leave such rows out with data.a=skip.")


@pytest.mark.parametrize(("n_measured", "n_obstacles"), [(5, 0), (4, 1)])
def test_as_many_polymers_as_folds_are_enough(n_measured: int, n_obstacles: int) -> None:
    assert len(list(find_obstacles(replace(GOOD, n_measured=n_measured), 5))) == n_obstacles


def test_stage_1_needs_a_polymer_to_learn_from_and_one_to_hold_out() -> None:
    report = replace(GOOD, n_stage1=1)
    (obstacle,) = find_obstacles(report, 5)
    assert obstacle.startswith("Stage 1 has 1 polymer, stereo variants counted as one. A search holds out")
    assert len(list(find_warnings(report, 5, 1))) == 1, "said already"
    assert list(find_obstacles(replace(GOOD, n_stage1=2), 5)) == []


@pytest.mark.parametrize(
    ("positive_label", "share", "words"),
    [
        (0, 0.66, "66% are soluble. Calling everything soluble is right 66% of the time; look at sol_auc"),
        (0, 0.34, "calling everything insoluble has F1 0.80 and recall 1. Set solubility.positive to soluble, or"),
        (1, 0.66, "calling everything soluble has F1 0.80 and recall 1. Set solubility.positive to insoluble, or"),
    ],
)
def test_lopsided_labels_are_judged_by_the_class_that_scores_speak_of(
    positive_label: int, share: float, words: str
) -> None:
    told, _noise = find_warnings(replace(GOOD, soluble_share=share), 5, positive_label)
    assert words in told
