"""report.html says what it shows: of a second pass, of a trial that is not the best, and on a telephone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from chitransfer.files import write_json
from chitransfer.search.study_folder import StudyFolder
from tests.pages import BROWSER, needs_browser, read_page

# What a script of ours found out about the page in the frame.
FRAME = """<iframe src="report.html" style="width:390px;height:2000px"></iframe><pre id="found"></pre><script>
onload = () => {{ const page = document.querySelector("iframe").contentDocument;
  found.textContent = JSON.stringify((page => {script})(page)); }};
</script>"""


def ask_browser(page: Path, tmp_path: Path, script: str, changes: dict[str, Any]) -> Any:
    """What `script`, an expression of `page`, says about the report at 390 pixels, its data changed before."""
    text = page.read_text(encoding="utf-8")
    data = json.dumps({**read_page(page.parent), **changes}).replace("</", "<\\/")
    text = re.sub(r'(id="data">).*?(</script>)', lambda m: m.group(1) + data + m.group(2), text, flags=re.DOTALL)
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(script=script), encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=5000"]
    where = ["--allow-file-access-from-files", f"--user-data-dir={tmp_path}/profile"]
    shown = subprocess.run(
        [*command, *where, (tmp_path / "frame.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'<pre id="found">(.+?)</pre>', shown.stdout)
    assert found is not None
    return json.loads(found.group(1).replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))


@needs_browser
def test_the_page_is_no_wider_than_a_telephone(finished_search: Any, tmp_path: Path) -> None:
    """Tables scroll in their own boxes; a path without a place to break at is broken."""
    widths = "[...page.querySelectorAll('html, .scroll')].map(e => [e.clientWidth, e.scrollWidth])"
    script = f"{{ page.querySelectorAll('details').forEach(e => {{ e.open = true; }}); return {widths}; }}"
    changes = {"summary": [f"WARNING: /{'a' * 90}: no such file"]}
    own, *tables = ask_browser(finished_search.folder.path / "report.html", tmp_path, script, changes)
    assert own[0] < 400
    assert own[1] == own[0]
    assert any(inner > box for box, inner in tables)


@needs_browser
def test_the_corrected_value_is_that_of_the_best_trial(finished_search: Any, tmp_path: Path) -> None:
    """Where search.select chose another one, tile and table name the trial that is corrected, with its own values."""
    data = read_page(finished_search.folder.path)
    other = next(t["number"] for t in data["trials"] if t["number"] != data["guard"]["best_trial"])
    best = next(t for t in data["trials"] if t["number"] == data["guard"]["best_trial"])
    script = (
        "[page.querySelectorAll('.card span')[1].textContent, [...page.querySelectorAll('h3')]"
        ".find(e => e.textContent === 'Raw and corrected').nextSibling.innerText]"
    )
    page = finished_search.folder.path / "report.html"
    tile, table = ask_browser(page, tmp_path, script, {"chosen": other})
    assert tile.startswith(f"{best['value']:.4f} of trial {best['number']}, the best of the search")
    assert f"trial {best['number']}, the best of the search, raw" in table
    assert re.search(rf"objective\s+{best['value']:.4f}\s", table)
    assert re.search(rf"χ MAE\s+{best['components']['exp_mae']:.4f}\s", table)
    assert ask_browser(page, tmp_path, script, {})[0] == "the same, corrected for selection bias"


@needs_browser
def test_stage1_is_drawn_against_the_objective_without_its_term(finished_search: Any, tmp_path: Path) -> None:
    """With a weight that leaves nothing but noise the highest point is another than with the objective."""
    script = (
        "[...page.querySelectorAll('svg[aria-label*=\"Stage 1 term\"] circle')]"
        ".map(e => [Number(e.getAttribute('cx')), Number(e.getAttribute('cy'))])"
    )
    page = finished_search.folder.path / "report.html"
    data = read_page(page.parent)
    trials, weight = data["trials"], finished_search.config.objective.stage1_mae
    for trial in trials:
        assert trial["transfer"] == pytest.approx(trial["value"] - weight * trial["components"]["stage1_mae"])
        trial["transfer"] = trial["value"] - 50.0 * trial["components"]["stage1_mae"]
    points = ask_browser(page, tmp_path, script, {"trials": trials})
    lowest = min(trials, key=lambda t: t["transfer"])
    by_stage1 = sorted(t["components"]["stage1_mae"] for t in trials)
    down = max(points, key=lambda point: point[1])
    assert sorted(points).index(down) == by_stage1.index(lowest["components"]["stage1_mae"])
    assert min(trials, key=lambda t: t["value"]) != lowest


@needs_browser
def test_long_numbers_leave_room_for_the_name_of_their_axis(finished_search: Any, tmp_path: Path) -> None:
    page = finished_search.folder.path / "report.html"
    trials = [{**trial, "value": 0.83 + 0.001 * trial["number"]} for trial in read_page(page.parent)["trials"]]
    script = (
        "[...page.querySelectorAll('svg[aria-label*=\"objective\" i]')].map(e => [...e.querySelectorAll('text')])"
        ".map(texts => [texts.filter(e => e.hasAttribute('transform')).map(e => e.getBoundingClientRect().right),"
        " texts.filter(e => e.getAttribute('text-anchor') === 'end').map(e => [e.textContent,"
        " e.getBoundingClientRect().left])]).filter(found => found[0].length)"
    )
    charts = ask_browser(page, tmp_path, script, {"trials": trials})
    assert any(len(label) >= 5 for _, labels in charts for label, _ in labels)
    assert all(right + 4 < left for rights, labels in charts for right in rights for _, left in labels), "pixels"


@needs_browser
def test_titles_of_many_axes_do_not_touch(finished_search: Any, tmp_path: Path) -> None:
    page = finished_search.folder.path / "report.html"
    axes = [{**axis, "name": f"solubility_dropout_{n}"} for n, axis in enumerate(read_page(page.parent)["axes"])]
    script = (
        "[...page.querySelectorAll('svg[aria-label^=\"Parallel\"] text.title')]"
        ".map(e => e.getBoundingClientRect()).map(r => [r.left, r.right, r.top, r.bottom])"
    )
    boxes = ask_browser(page, tmp_path, script, {"axes": axes})
    assert len(boxes) == 1 + len(axes) > 3
    for one, other in combinations(boxes, 2):
        assert one[1] < other[0] or other[1] < one[0] or one[3] <= other[2] or other[3] <= one[2]


@pytest.fixture
def second_pass(finished_search: Any, tmp_path: Path) -> StudyFolder:
    """The finished study, as the second pass on trial 3 of another."""
    first = tmp_path / "first"
    shutil.copytree(finished_search.folder.path, first / "second_pass_0003")
    shutil.copy(finished_search.folder.config, first)
    return StudyFolder((first / "second_pass_0003").resolve())


def test_a_second_pass_says_what_it_is_and_what_it_gained(
    second_pass: StudyFolder, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    first, second = [1.0, 1.1, 1.2, 1.3, 1.4], [0.9, 1.0, 1.1, 1.2, 1.3]
    write_json(second_pass.path / "fresh_folds.json", {"first": first, "second": second})
    (second_pass.figures / "stage1_vs_transfer.png").unlink()
    code, out, err = run_command("report", second_pass.path)
    assert code == 0, err
    said = "on 5 fold shuffles and seeds that neither pass has seen: first pass 1.2000, second pass 1.1000, gain 0.1000"
    data = read_page(second_pass.path)
    assert said in out
    assert any(line.startswith(said) for line in data["summary"])
    assert data["subtitle"] == "Second pass: Stage 2 settings tuned on the Stage 1 of trial 3 of first"
    assert (data["names"]["default"], data["names"]["column"]) == ("first pass's Stage 2 settings", "first pass")
    assert "default" not in data["summary"][0]
    assert not (second_pass.figures / "stage1_vs_transfer.png").exists(), "its trials share one Stage 1"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"first": [1]}', '{"first": ["x"], "second": ["y"]}', '{"first": [1, 2], "second": [1, 2, 3]}']
)
def test_damaged_fresh_folds_are_done_without(
    second_pass: StudyFolder, run_command: Callable[..., tuple[int, str, str]], text: str
) -> None:
    (second_pass.path / "fresh_folds.json").write_text(text, encoding="utf-8")
    code, out, err = run_command("report", second_pass.path)
    assert code == 0, err
    assert "neither pass has seen" not in out


@needs_browser
def test_a_second_pass_speaks_of_no_default(second_pass: StudyFolder, tmp_path: Path) -> None:
    script = "page.querySelector('main').innerText"
    names = {"default": "DEFAULT", "column": "COLUMN"}
    changes: dict[str, Any] = {"names": names, "summary": [], "guard": None, "sources": {}, "environment": {}}
    text = ask_browser(second_pass.path / "report.html", tmp_path, script, changes)
    assert "DEFAULT" in text
    assert "COLUMN" in text
    assert not re.search(r"\bdefault\b", text)
