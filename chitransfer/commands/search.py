"""`chitransfer search` and `status`. Each command parses, calls and prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chitransfer.commands.options import (
    ConfigOption,
    DeviceOption,
    EpochsOption,
    FoldsOption,
    QuietOption,
    RepeatsOption,
    ResultsOption,
    SeedOption,
    SetOption,
    collect_overrides,
)

if TYPE_CHECKING:
    from chitransfer.search.study_folder import StudyFolder


def search(
    config: ConfigOption = None,
    n_trials: Annotated[
        int | None, typer.Option(help="Total number of trials, including those of a resumed study.")
    ] = None,
    timeout_hours: Annotated[float | None, typer.Option(help="Stop after this many hours.")] = None,
    n_cv_folds: FoldsOption = None,
    n_cv_repeats: RepeatsOption = None,
    stage2_epochs: EpochsOption = None,
    study_name: Annotated[str | None, typer.Option(help="Default: transfer_aware_YYYYMMDD_HHMMSS.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Resume a study: its folder or its study.db.")] = None,
    sampler: Annotated[str | None, typer.Option(help="tpe, random, cmaes, gp, qmc or nsga2.")] = None,
    pruner: Annotated[str | None, typer.Option(help="auto, none, median, hyperband or asha.")] = None,
    device: DeviceOption = None,
    seed: SeedOption = None,
    results_dir: ResultsOption = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes on this machine.")] = None,
    devices: Annotated[str | None, typer.Option(help="One worker each: cuda:0,cuda:1,…")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="tcp://host:port of a Dask cluster, or slurm, pbs, lsf, sge (see cluster:).")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="postgresql://user@host/database; the password is best left to PGPASSWORD.")
    ] = None,
    trial_timeout_minutes: Annotated[float | None, typer.Option(help="Trials that take longer fail.")] = None,
    allow_extended_space: Annotated[
        bool,
        typer.Option("--allow-extended-space", help="Let a resumed study use wider ranges and more parameters."),
    ] = False,
    second_pass: Annotated[
        Path | None, typer.Option(help="Tune Stage 2 on the best Stage 1 encoder of this finished study.")
    ] = None,
    trial: Annotated[int | None, typer.Option(help="With --second-pass: another trial's encoder.")] = None,
    control: Annotated[
        str | None,
        typer.Option(help="permute: shuffle measured values among polymers; no score should then be above chance."),
    ] = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> int:
    """Search for the Stage 1 hyperparameters with the best Stage 2 result."""
    from chitransfer.config import load_config
    from chitransfer.console import make_console
    from chitransfer.errors import ConfigError
    from chitransfer.report.finish import finish_study
    from chitransfer.search.run import run_search
    from chitransfer.search.study_folder import keep_storage, load_resumed_config, locate_study
    from chitransfer.search.unread import describe_unread

    overrides = collect_overrides(
        {
            "search.n_trials": n_trials,
            "search.timeout_hours": timeout_hours,
            "cv.n_cv_folds": n_cv_folds,
            "cv.n_cv_repeats": n_cv_repeats,
            "training.stage2_epochs": stage2_epochs,
            "search.study_name": study_name,
            "search.sampler": sampler,
            "search.pruner": pruner,
            "training.device": device,
            "seed": seed,
            "search.control": control,
            "paths.results_dir": results_dir,
            "search.workers": workers,
            "search.devices": None if devices is None else [name.strip() for name in devices.split(",")],
            "search.scheduler": scheduler,
            "search.storage": storage,
            "search.trial_timeout_minutes": trial_timeout_minutes,
        },
        settings,
    )
    if trial is not None and second_pass is None:
        raise ConfigError("--trial names the encoder of a second pass; give --second-pass STUDY with it")
    folder = None if resume is None else locate_study(resume)
    if folder is not None and folder.first_pass is not None and second_pass is None:
        if config is not None:
            raise ConfigError(f"{folder.path}: a second pass continues with its own configuration; leave out --config")
        (second_pass, trial), resume = folder.first_pass, None
    if second_pass is not None:
        from chitransfer.search.second_pass import run_second_pass

        if resume is not None or config is not None:
            raise ConfigError("--second-pass takes the study's own configuration; leave out --resume and --config")
        if allow_extended_space:
            raise ConfigError("--allow-extended-space is for a resumed search; leave it out with --second-pass")
        console = make_console(quiet)
        return run_second_pass(locate_study(second_pass), console, trial=trial, overrides=overrides, draw=finish_study)
    if folder is None:
        if allow_extended_space:
            raise ConfigError("--allow-extended-space is for a resumed search; give it with --resume STUDY")
        resolved = load_config(config, overrides)
    else:
        _refuse_another_place(folder, overrides)
        resolved = load_resumed_config(folder, config, overrides)
        folder = keep_storage(folder, resolved.search.storage)
    console = make_console(quiet)
    for line in describe_unread(resolved, overrides):
        console.print(line)
    return run_search(
        resolved,
        console,
        resume=folder,
        allow_extended_space=allow_extended_space,
        draw=finish_study,
    )


def _refuse_another_place(folder: StudyFolder, overrides: Mapping[str, object]) -> None:
    """Refuse another name or results folder for a resumed study."""
    from chitransfer.errors import ConfigError

    if overrides.get("search.study_name", folder.name) != folder.name:
        raise ConfigError(f"--study-name names a new study; {folder.name}, which is resumed, keeps its name")
    root = overrides.get("paths.results_dir")
    if root is not None and (Path(str(root)) / "hparam_search").resolve() != folder.path.parent:
        raise ConfigError(f"--results-dir is for a new study; {folder.path}, which is resumed, stays where it is")


def status(study: Annotated[Path, typer.Argument(help="A study's folder or its study.db.")]) -> None:
    """Show the status of a running or finished study."""
    from chitransfer.search.study import read_study
    from chitransfer.search.study_folder import load_study_config, locate_study
    from chitransfer.search.summary import describe_status

    folder = locate_study(study)
    settings = load_study_config(folder, {}).search if folder.config.is_file() else None
    for line in describe_status(read_study(folder), folder, settings):
        print(line)
