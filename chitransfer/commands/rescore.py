"""`chitransfer rescore`: parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chitransfer.commands.options import (
    DeviceOption,
    EpochsOption,
    FoldsOption,
    QuietOption,
    RepeatsOption,
    SetOption,
    collect_overrides,
)
from chitransfer.counts import say_count


def rescore(
    study: Annotated[Path, typer.Argument(help="A study's folder or its study.db.")],
    n_cv_folds: FoldsOption = None,
    n_cv_repeats: RepeatsOption = None,
    stage2_epochs: EpochsOption = None,
    device: DeviceOption = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Rescore a study's kept Stage 1 encoders with other folds, Stage 2 settings or objective weights."""
    from chitransfer.console import make_console, show_progress
    from chitransfer.search.rescore import rescore_study
    from chitransfer.search.study_folder import locate_study

    overrides = collect_overrides(
        {
            "cv.n_cv_folds": n_cv_folds,
            "cv.n_cv_repeats": n_cv_repeats,
            "training.stage2_epochs": stage2_epochs,
            "training.device": device,
        },
        settings,
    )
    console = make_console(quiet)
    with show_progress(console) as progress:
        rescored = rescore_study(locate_study(study), overrides, progress=progress)
    console.print(f"{say_count(len(rescored.trials), 'trial')} rescored without pretraining")
    console.print("rank  trial  objective  before  rank before")
    for rank, row in enumerate(rescored.trials.head(10).itertuples(), start=1):
        line = f"{rank:4d}  {row.number:5d}  {row.value:9.4f}  {row.value_before:6.4f}  {row.rank_before:11d}"
        console.print(line)
    if rescored.is_of_first_runs:
        console.print(
            "before: score of each trial's first run (whose encoders are rescored here), not the mean of its runs"
        )
    if len(rescored.trials) >= 3:
        console.print(f"rank correlation with the scores before: {rescored.rank_correlation:.2f}")
    for text in [*rescored.describe(), *rescored.describe_skipped()]:
        console.print(text)
    console.print(f"results in {rescored.folder}")
