"""One trial is recommended: by the terminal, best_params.json, report, figures, status, apply and the second pass."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import create_trial
from rich.console import Console

from chitransfer.config import dump_config, load_config
from chitransfer.evidence.fresh import read_fresh_scores
from chitransfer.report import finish, html
from chitransfer.search.apply import read_complete_trial
from chitransfer.search.lock import drive_alone
from chitransfer.search.reference import Reference
from chitransfer.search.replicates import estimate_components, posterior_means
from chitransfer.search.results import read_recommended, read_standing, write_best_params
from chitransfer.search.storage import open_storage, sqlite_address
from chitransfer.search.study import read_study
from chitransfer.search.study_folder import StudyFolder
from chitransfer.search.summary import describe_outcome, describe_status
from chitransfer.search.watch import SearchDisplay


def test_configurations_that_do_not_differ_go_by_their_own_means() -> None:
    values = {0: [1.0, 3.0], 1: [2.5, 1.3], 2: [1.9], 3: [1.5, 2.3]}
    assert estimate_components(list(values.values())).between == 0.0
    assert list(posterior_means(values)) == [1, 2, 3, 0]
    assert len(set(posterior_means(values).values())) == 1


def noise_aware_copy(folder: StudyFolder, target: Path) -> tuple[StudyFolder, list[int]]:
    """A study whose lowest objective is one lucky run, and its trials by objective; the third is fresh runs's best."""
    shutil.copytree(folder.path, target, ignore=shutil.ignore_patterns("study.db", "best_params.json"))
    copy, trials = StudyFolder(target), read_study(folder).get_trials()
    study = optuna.create_study(storage=open_storage(sqlite_address(copy.database, "rwc")), study_name=copy.name)
    study.set_user_attr("contract", read_study(folder).user_attrs["contract"])
    fresh = read_fresh_scores(trials, copy)[0][0].number
    by_value = [trial.number for trial in trials if trial.number != fresh]
    by_value.insert(2, fresh)
    for trial in trials:
        place = by_value.index(trial.number)
        runs = [1.095] if place == 0 else [1.0 + 0.1 * place + luck for luck in (-0.05, 0.0, 0.05)]
        attributes = {**trial.user_attrs, "replicate_values": runs}
        study.add_trial(
            create_trial(
                params=trial.params,
                distributions=trial.distributions,
                value=float(np.mean(runs)),
                user_attrs=attributes,
            )
        )
    copy.config.write_text(dump_config(load_config(copy.config, {"search.replicates": 3})), encoding="utf-8")
    return copy, by_value


@pytest.mark.parametrize("select", ["best", "reevaluated"])
def test_all_that_speak_of_one_trial_mean_the_same(
    finished_search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: str
) -> None:
    folder, by_value = noise_aware_copy(finished_search.folder, tmp_path / "noisy")
    config = load_config(folder.config, {"search.select": select})
    folder.config.write_text(dump_config(config), encoding="utf-8")
    study = read_study(folder)
    shown: list[dict[str, Any]] = []
    for draw in ("draw_study", "draw_insight"):
        monkeypatch.setattr(finish, draw, lambda *_: None)
    monkeypatch.setattr(html, "importances", lambda study: {})
    contents = html.report_contents
    monkeypatch.setattr(html, "report_contents", lambda *words: shown.append(contents(*words)) or shown[-1])
    sentences = finish.finish_study(study, Reference(), folder)
    best = json.loads((folder.path / "best_params.json").read_text())
    number = best["best_trial_number"]
    assert number == by_value[1 if select == "best" else 2]
    assert (best["corrected_value"] is None) == (select == "reevaluated"), "what is corrected is the choice of the best"
    why = "it has the lowest posterior mean" if select == "best" else "search.select is reevaluated"
    reason = f"trial {number} is recommended (best_params.json), not trial {by_value[0]} with the lowest objective"
    status = describe_status(study, folder, config.search)
    for lines in (sentences, shown[0]["summary"], status):
        (line,) = [line for line in lines if " is recommended " in line]
        assert line.startswith(reason)
        assert why in line
    outcome = "\n".join(describe_outcome(study, folder, config, Reference(), "finished"))
    assert f"chosen (trial {number})" in outcome
    assert "chosen parameters: latent_dim={latent_dim}".format(**best["best_params"]) in outcome
    assert shown[0]["chosen"] == number
    assert read_complete_trial(folder, None).number == number
    if select == "best":
        assert next(line for line in status if line.startswith("1. ")).startswith(f"1. trial {number}: ")
        assert (folder.path / "top_20_trials.csv").read_text().splitlines()[1].startswith(f"{number},")


def test_the_table_at_the_end_is_of_the_trial_that_is_chosen_last(
    tiny: dict[str, object], make_search: Callable[..., tuple[int, Any]]
) -> None:
    """By `search.select` another trial than the best is known only once the study has been examined."""

    def choose(study: optuna.Study, reference: Reference, folder: StudyFolder) -> None:
        standing = read_standing(study)
        write_best_params(folder, standing, standing.ranked[-1], {})

    _, folder = make_search({**tiny, "search.n_trials": 2, "search.select": "one_se"}, draw=choose)
    standing = read_standing(read_study(folder))
    chosen = read_recommended(folder, standing)
    assert chosen.number != standing.ranked[0].number
    (log,) = folder.path.parent.glob("logs/*.log")
    said = log.read_text(encoding="utf-8")
    assert f"chosen (trial {chosen.number})" in said
    assert f"chosen parameters: latent_dim={chosen.params['latent_dim']}" in said


def test_what_is_counted_is_what_the_budget_counts(made_up_search: Callable[..., Any]) -> None:
    """Runs, where trials run several times; and a search that was killed is not called running."""
    search = made_up_search(search__n_trials=7, search__replicates=3)
    out = io.StringIO()
    search.watcher = SearchDisplay(Console(file=out, width=200), search.config.search, read_standing(search.study))

    def stop_after_three() -> str | None:
        return "interrupt" if read_standing(search.study).n_runs >= 3 else None

    search.workers.capacity = 2
    search.stop = stop_after_three
    assert search.drive() == "interrupt"
    status = describe_status(search.study, search.folder, search.config.search)
    assert "1 interrupted" in status[0]
    assert status[1].startswith("no search is running; resume with: chitransfer search --resume ")
    with drive_alone(search.folder):
        status = describe_status(search.study, search.folder, search.config.search)
    assert "1 running" in status[0]
    assert status[1].startswith("a search is running (host ")
    search.stop = lambda: None
    assert search.drive() == "finished"
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("[3/7] trial   0: objective")
    assert "(mean of 3 runs)" in lines[0]
    assert lines[-1].startswith("[7/7] ")
    status = describe_status(search.study, search.folder, search.config.search)
    assert f"7 of 7 runs ended, of {len(lines)} trials ({len(lines)} complete)" in status[0]
    assert not any(" left" in line or "running" in line for line in status)
