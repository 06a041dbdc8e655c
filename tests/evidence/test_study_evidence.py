"""Evidence of a real (tiny) search: its files, the choice it names, the control, several objectives, the report."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial
from scipy.stats import spearmanr

from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.config import dump_config, load_config, override_config
from chitransfer.console import make_console
from chitransfer.evidence.overtuning import count_weights, examine_study
from chitransfer.report.finish import finish_study
from chitransfer.report.html import write_report
from chitransfer.search.reference import Reference
from chitransfer.search.run import run_search
from chitransfer.search.study import read_study
from chitransfer.search.study_folder import StudyFolder, load_study_config
from tests.pages import BROWSER, needs_browser, read_page


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shared_tiny_config: Any) -> StudyFolder:
    """A search of eight trials with everything that follows one."""
    folder = tmp_path_factory.mktemp("finished")
    changes = {"search.n_trials": 8, "search.study_name": "finished", "paths.results_dir": str(folder)}
    config = override_config(shared_tiny_config, changes)
    assert run_search(config, make_console(quiet=True), draw=finish_study) == 0
    return StudyFolder(folder / "hparam_search" / "finished")


def test_best_params_keep_the_guides_keys_and_gain_the_corrected_value(finished: StudyFolder) -> None:
    best = json.loads((finished.path / "best_params.json").read_text())
    guard = json.loads((finished.path / "overtuning.json").read_text())
    assert list(best)[:4] == ["best_value", "best_params", "n_trials", "best_trial_number"]
    assert best["n_trials"] == 8
    assert best["corrected_value"] == guard["corrected"]["value"]
    assert best["corrected_interval"][0] <= best["corrected_value"] <= best["corrected_interval"][1]
    trials = pd.read_csv(finished.path / "all_trials.csv")
    assert best["best_value"] == trials["value"].min()


def test_keys_and_columns_are_explained(finished: StudyFolder, project_root: Path) -> None:
    explained = {
        name
        for document in (project_root / "docs").glob("*.md")
        for name in re.findall(r"\w+", document.read_text(encoding="utf-8"))
    }
    best = json.loads((finished.path / "best_params.json").read_text())
    columns = pd.read_csv(finished.path / "all_trials.csv").columns
    scores = {name.removesuffix("_std") for name in columns if not name.startswith("seconds_")}
    told_in_words = {"failure_reason"}
    assert scores | {*best, *best["components"]} <= explained | {*best["best_params"]} | told_in_words


def test_top_trials_and_the_default_were_run_again_on_other_seeds_and_folds(finished: StudyFolder) -> None:
    guard = json.loads((finished.path / "overtuning.json").read_text())
    assert {score["number"] for score in guard["fresh"]} >= {0}
    first = finished.trial(0)
    fresh = first / "replicate_1000"
    own, again = (json.loads((path / "scores.json").read_text()) for path in (first, fresh))
    assert own["replicates"][0]["seed"] != again["replicates"][0]["seed"]
    folds = [pd.read_csv(path / "out_of_fold_chi.csv")["fold"].tolist() for path in (first, fresh)]
    assert folds[0] != folds[1]


def test_insight_is_the_rank_correlation_without_stage_1s_own_term(finished: StudyFolder) -> None:
    insight = json.loads((finished.path / "insight.json").read_text())
    trials = pd.read_csv(finished.path / "all_trials.csv")
    expected = spearmanr(trials["stage1_mae"], trials["value"] - 0.1 * trials["stage1_mae"]).statistic
    assert insight["correlation"] == pytest.approx(expected)
    assert insight["stage1_choice"] == int(trials.loc[trials["stage1_mae"].idxmin(), "number"])
    dropout = next(effect for effect in insight["effects"] if effect["name"] == "encoder_dropout")
    assert dropout["on_stage1"] == pytest.approx(spearmanr(trials["encoder_dropout"], trials["stage1_mae"]).statistic)


def test_stereo_variants_count_as_one_polymer(finished: StudyFolder, tmp_path: Path) -> None:
    """As in the split: files keep the identity of every row, whose stereochemistry features leave out."""
    copy = StudyFolder(Path(shutil.copytree(finished.path, tmp_path / "finished")))
    config = load_config(copy.config)
    before = examine_study(read_study(copy), copy, config)
    first = pd.read_csv(copy.trial(0) / "out_of_fold_chi.csv")["polymer"].unique()[:2]
    variants = [polymer_identity(unit) for unit in ("*C/C=C\\C*", "*C/C=C/C*")]
    for path in copy.path.glob("trials/**/out_of_fold_*.csv"):
        pd.read_csv(path).replace({"polymer": dict(zip(first, variants, strict=True))}).to_csv(path, index=False)
    after = examine_study(read_study(copy), copy, config)
    assert before is not None
    assert after is not None
    assert after.n_polymers == before.n_polymers - 1


def test_a_lost_trial_is_left_out_of_the_correction_and_named(finished: StudyFolder, tmp_path: Path) -> None:
    copy = StudyFolder(Path(shutil.copytree(finished.path, tmp_path / "finished")))
    config, study = load_config(copy.config), read_study(copy)
    ranked = sorted(study.get_trials(), key=lambda trial: trial.values[0])
    lost, half, best = ranked[-1].number, ranked[-2].number, ranked[0].number
    shutil.rmtree(copy.trial(lost))
    (copy.trial(half) / "out_of_fold_chi.csv").unlink()
    found = examine_study(study, copy, config)
    assert found is not None
    assert found.left_out.keys() == {lost, half}
    assert found.n_trials == 6
    assert "(chi) are missing" in found.left_out[half]
    assert any(line.startswith(f"trial {lost} is left out of this: {copy.trial(lost)}") for line in found.sentences)
    assert found.best_value == ranked[0].values[0]
    # Without the best trial nothing is corrected, and nothing of before may be taken for it.
    shutil.rmtree(copy.trial(best))
    said = finish_study(study, Reference(), copy)
    assert any(line.startswith("WARNING: no corrected value, gain or choice by them") for line in said)
    assert read_page(copy.path)["summary"][1:] == said[:-1], "all but where the report is"
    assert not (copy.path / "overtuning.json").exists()
    assert "corrected_value" not in json.loads((copy.path / "best_params.json").read_text())


def test_select_decides_which_trial_is_named(finished: StudyFolder) -> None:
    study, config = read_study(finished), load_study_config(finished, {})
    trials = {trial.number: trial for trial in study.get_trials()}
    one_se = examine_study(study, finished, override_config(config, {"search.select": "one_se"}))
    fresh = examine_study(study, finished, override_config(config, {"search.select": "reevaluated"}))
    assert one_se is not None
    assert fresh is not None
    sizes = {n: count_weights(config, trials[n]) for n in one_se.one_se_candidates}
    assert sizes[one_se.chosen_trial] == min(sizes.values())
    assert fresh.chosen_trial == min(fresh.fresh, key=lambda score: score.value).number


def open_in_browser(page: Path, width: int, profile: Path) -> str:
    """The page's body after its scripts ran without a word on the console."""
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    where = [f"--window-size={width},2000", f"--user-data-dir={profile}", "--virtual-time-budget=5000"]
    shown = subprocess.run([*command, *where, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in shown.stderr
    return shown.stdout[shown.stdout.index("<body") :]


@needs_browser
@pytest.mark.parametrize("width", [1200, 390])
def test_report_renders_without_errors_in_a_browser(finished: StudyFolder, width: int, tmp_path: Path) -> None:
    body = open_in_browser(finished.path / "report.html", width, tmp_path)
    assert "[object" not in re.sub(r"<script.*?</script>", "", body, flags=re.DOTALL)
    assert len(re.findall(r"<h2>", body)) >= 8
    environment = json.loads((finished.path / "environment.json").read_text())
    assert f"<dd>{environment['python']}</dd>" in body


@needs_browser
def test_report_can_be_read_without_seeing_it(finished: StudyFolder, tmp_path: Path) -> None:
    body = open_in_browser(finished.path / "report.html", 1200, tmp_path)
    body = re.sub(r"<script.*?</script>", "", body, flags=re.DOTALL)
    charts = re.findall(r"<svg[^>]*>", body)
    assert len(charts) >= 8
    assert all('role="img"' in chart and re.search(r'aria-label="[^"]{10,}"', chart) for chart in charts)
    heads = re.findall(r"<th\b[^>]*>", body)
    assert heads
    assert all('scope="col"' in head or 'scope="row"' in head for head in heads)
    scores = body[body.index("<h2>Scores") : body.index("<h2>Best parameters")]
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", scores[: scores.index("</thead>")])
    # What the choice is worth the corrected gain says, not a colour.
    assert heads == ["metric", "chosen", "± spread", "default", "random forest", "trivial"]
    assert not re.search(r'class="(win|worse)"', scores)
    trials = pd.read_csv(finished.path / "all_trials.csv")
    table = body[body.index("<h2>All trials") :]
    table = table[: table.index("</table>")]
    assert "<details" in table
    assert table.count('scope="row"') == len(trials)
    assert all(f">{value:.4f}</td>" in table for value in trials["value"])


@needs_browser
def test_ticks_of_the_report_tell_values_apart(finished: StudyFolder, tmp_path: Path) -> None:
    """Three trials that differ in the fifth digit: trials are counted in whole numbers, no label comes twice."""
    page = (finished.path / "report.html").read_text(encoding="utf-8")
    begin = page.index(">", page.index('id="data"')) + 1
    end = page.index("</script>", begin)
    data = json.loads(page[begin:end])
    data["trials"] = data["trials"][:3]
    data |= {"chosen": 0, "default": 1, "trivial": None, "forest": None, "guard": None}
    for trial in data["trials"]:
        trial["value"] = 1.0 + trial["number"] * 3e-5
    copy = tmp_path / "close.html"
    copy.write_text(page[:begin] + json.dumps(data) + page[end:], encoding="utf-8")
    body = open_in_browser(copy, 1200, tmp_path)
    history = body[body.index("<h2>History") :]
    history = history[: history.index("</svg>")]
    numbers, values = (re.findall(rf'text-anchor="{anchor}">([^<]+)<', history) for anchor in ("middle", "end"))
    assert numbers[:-2] == ["0", "1", "2"]
    assert len(values) > 3
    assert len(set(values)) == len(values)


def test_report_shows_what_was_added_to_the_space_under_way(finished: StudyFolder, tmp_path: Path) -> None:
    """As after ``--allow-extended-space``: the last trial, which is the best, has a parameter that the others lack."""
    copy = StudyFolder(Path(shutil.copytree(finished.path, tmp_path / "finished")))
    space = load_config(copy.config).model_dump()["search"]["space"]
    space["encoder_dropout"]["high"] = 0.5
    space["weight_decay"] = {"key": "training.weight_decay", "type": "log", "low": 1e-6, "high": 1e-2}
    copy.config.write_text(dump_config(load_config(copy.config, {"search.space": space})), encoding="utf-8")
    study = read_study(copy)
    best = study.best_trial
    ranges = {"encoder_dropout": FloatDistribution(0.0, 0.5), "weight_decay": FloatDistribution(1e-6, 1e-2, log=True)}
    shutil.copytree(copy.trial(best.number), copy.trial(8))
    study.add_trial(
        create_trial(
            params={**best.params, "encoder_dropout": 0.5, "weight_decay": 1e-4},
            distributions={**best.distributions, **ranges},
            value=best.value - 0.1,
            user_attrs={**best.user_attrs, "is_default": False},
        )
    )
    finish_study(study, Reference(), copy)
    page = read_page(copy.path)
    axes = {axis["name"]: axis for axis in page["axes"]}
    assert axes["weight_decay"]["position"] == [None] * 8 + [1e-4]
    assert axes["encoder_dropout"]["ticks"] == [0.0, 0.25, 0.5]
    assert page["importances"]
    assert all(set(shares) == set(best.params) for shares in page["importances"].values())
    if BROWSER is not None:
        body = re.sub(
            r"<script.*?</script>", "", open_in_browser(copy.path / "report.html", 1200, tmp_path), flags=re.S
        )
        slices = body[body.index("<h2>Slices") : body.index("</section>", body.index("<h2>Slices"))]
        assert slices.count("<circle") == 9 * (len(axes) - 1) + 1
        assert "NaN" not in body


def test_report_says_what_to_do_without_javascript(finished: StudyFolder) -> None:
    text = (finished.path / "report.html").read_text(encoding="utf-8")
    (words,) = re.findall(r"<noscript>(.*?)</noscript>", text, re.DOTALL)
    named = re.findall(r"[\w]+\.(?:json|csv)", words)
    assert "all_trials.csv" in named
    assert all((finished.path / name).is_file() for name in named)


@needs_browser
@pytest.mark.parametrize("corrected", [-5.0, 50.0])
def test_corrected_value_is_inside_the_history(finished: StudyFolder, corrected: float, tmp_path: Path) -> None:
    text = (finished.path / "report.html").read_text(encoding="utf-8")
    text, n_changed = re.subn(r'("corrected": ?{"value": ?)[-\d.e]+', rf"\g<1>{corrected}", text, count=1)
    assert n_changed == 1
    page = tmp_path / "report.html"
    page.write_text(text, encoding="utf-8")
    body = open_in_browser(page, 1200, tmp_path / "profile")
    history = body[body.index("<h2>History") : body.index("<h2>Which")]
    height = float(re.findall(r'viewBox="0 0 [\d.]+ ([\d.]+)"', history)[0])
    levels = [float(y) for y in re.findall(r'y1="([-\d.]+)"[^>]*stroke-dasharray', history)]
    assert len(levels) >= 2
    assert all(0 <= level <= height for level in levels)


def test_every_number_of_the_report_is_in_the_csvs(finished: StudyFolder) -> None:
    page = read_page(finished.path)
    trials = pd.read_csv(finished.path / "all_trials.csv").set_index("number")
    best = json.loads((finished.path / "best_params.json").read_text())
    assert page["chosen"] == best["best_trial_number"]
    assert len(page["trials"]) == len(trials)
    for trial in page["trials"]:
        row = trials.loc[trial["number"]]
        assert trial["value"] == row["value"]
        for name, value in {**trial["components"], **trial["params"]}.items():
            if isinstance(value, str):
                assert value == str(row[name])
            elif value is None:
                assert pd.isna(row[name])
            else:
                assert value == pytest.approx(row[name], rel=1e-12), name
    for shown in page["scores"][1:]:
        assert shown["chosen"] in trials.loc[page["chosen"]].tolist()
        assert shown["default"] in trials.loc[0].tolist()
    chi = pd.read_csv(finished.trial(page["chosen"]) / "out_of_fold_chi.csv")
    mean = chi.groupby("line", sort=False)["predicted_chi"].mean()
    assert page["out_of_fold"]["chi"]["predicted"] == pytest.approx(mean.tolist(), abs=1e-5)
    assert page["guard"]["corrected"]["value"] == best["corrected_value"]


def test_report_is_one_file_without_the_network(finished: StudyFolder) -> None:
    text = (finished.path / "report.html").read_text(encoding="utf-8")
    assert len(text) < 5_000_000
    assert not re.search(r'(src|href)\s*=\s*"(?!data:)', text)
    outside = [url for url in re.findall(r"https?://[^\"'\s<]+", text) if "w3.org" not in url]
    assert outside == []
    assert "__DATA__" not in text
    assert "__TITLE__" not in text


def test_report_survives_names_that_look_like_markup(finished: StudyFolder, tmp_path: Path) -> None:

    copied = StudyFolder(tmp_path / "finished")
    shutil.copytree(finished.path, copied.path)
    environment = {"command": ["chitransfer", "</script><script>alert(1)</script>"], "packages": {}}
    (copied.path / "environment.json").write_text(json.dumps(environment))
    write_report(read_study(copied), Reference(), copied, load_study_config(copied, {}), None, None)
    text = (copied.path / "report.html").read_text(encoding="utf-8")
    assert "</script><script>alert" not in text
    assert "alert(1)" in read_page(copied.path)["environment"]["command"]


def test_report_command_rebuilds_the_page(
    finished: StudyFolder, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    before = read_page(finished.path)
    (finished.path / "report.html").unlink()
    code, out, _ = run_command("report", finished.path)
    assert code == 0
    assert "report.html" in out
    assert read_page(finished.path) == before


def test_report_of_nothing_says_so(tmp_path: Path, run_command: Callable[..., tuple[int, str, str]]) -> None:
    code, _, error = run_command("report", tmp_path)
    assert code == 2
    assert "no study found" in error
