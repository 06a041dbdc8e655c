"""Steps after the trials of a search are done: figures, the over-tuning guard, best_params.json, report.html.

`finish_study` is called at the end of every search and by ``chitransfer report``.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import optuna

from chitransfer.errors import StudyError
from chitransfer.evidence.insight import SMALLEST_STUDY, measure_insight
from chitransfer.evidence.overtuning import Examination, examine_study
from chitransfer.files import write_csv, write_json
from chitransfer.report.figures import draw_study
from chitransfer.report.html import write_report
from chitransfer.report.insight_figures import draw_insight
from chitransfer.search.reference import Reference
from chitransfer.search.results import (
    explain_recommended,
    read_recommended,
    read_standing,
    write_best_params,
    write_results,
)
from chitransfer.search.second_pass import describe_fresh_folds
from chitransfer.search.study_folder import StudyFolder, load_study_config
from chitransfer.search.summary import describe_first_pass

logger = logging.getLogger(__name__)


def finish_study(
    study: optuna.Study, reference: Reference, folder: StudyFolder, comparison: Path | None = None
) -> list[str]:
    """Write all results of a study with at least one complete trial; returns sentences about it for the user.

    Parameters
    ----------
    reference
        Reference scores that its trials are compared with.
    comparison
        Folder of a comparison to show in the report.
    """
    config = load_study_config(folder, {})
    write_results(folder, study)
    sentences = describe_first_pass(folder)
    try:
        found = examine_study(study, folder, config)
    except StudyError as error:
        sentences.append(f"WARNING: no corrected value, gain or choice by them for this study: {error}")
        found = None
        # A file left over from when the study had fewer trials would be mistaken for a current one.
        (folder.path / "overtuning.json").unlink(missing_ok=True)
    if found is not None:
        write_json(folder.path / "overtuning.json", found.to_dict())
        _name_choice(study, folder, found)
        sentences += found.sentences
    standing = read_standing(study)
    sentences += explain_recommended(standing, read_recommended(folder, standing), config.search.select)
    draw_study(study, reference, folder)
    insight = measure_insight(study, config)
    if insight is not None:
        write_json(folder.path / "insight.json", asdict(insight))
        write_csv(folder.path / "insight.csv", insight.effects_frame())
        sentences += insight.sentences
    # In a second pass all trials share their Stage 1, so there is nothing to correlate.
    elif folder.first_pass is None:
        sentences.append(
            f"Key Insight: not measured (insight.json); it takes {SMALLEST_STUDY} complete trials whose losses differ"
        )
    draw_insight(study, insight, folder, config.objective)
    sentences += describe_fresh_folds(folder)
    path = write_report(study, reference, folder, config, found, insight, sentences, comparison)
    sentences.append(f"report: {path}")
    return sentences


def _name_choice(study: optuna.Study, folder: StudyFolder, found: Examination) -> None:
    standing = read_standing(study)
    chosen = next(trial for trial in standing.ranked if trial.number == found.chosen_trial)
    # The correction is for choosing the lowest objective; a trial chosen by another rule has no corrected value.
    is_best = found.chosen_trial == found.best_trial
    corrected, gain = (found.corrected, found.corrected_gain) if is_best else (None, None)
    fresh = {score.number: score.value for score in found.fresh}
    write_best_params(
        folder,
        standing,
        chosen,
        {
            "select": found.select,
            "raw_best_value": found.best_value,
            "raw_best_trial_number": found.best_trial,
            "corrected_value": None if corrected is None else corrected.value,
            "corrected_interval": None if corrected is None else [corrected.low, corrected.high],
            "corrected_gain_over_default": None if gain is None else gain.value,
            "corrected_gain_interval": None if gain is None else [gain.low, gain.high],
            "reevaluated_value": fresh.get(found.chosen_trial),
            "one_se_trial_number": found.one_se_trial,
        },
    )
