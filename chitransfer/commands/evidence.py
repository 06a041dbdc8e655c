"""`chitransfer compare`, `report` and `dashboard`. Each command parses, calls and prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from chitransfer.commands.options import (
    ConfigOption,
    DeviceOption,
    ResultsOption,
    SeedOption,
    SetOption,
    collect_overrides,
)


def compare(
    config: ConfigOption = None,
    outer: Annotated[int, typer.Option(min=2, help="Outer folds of whole polymers the searches never see.")] = 5,
    n_trials: Annotated[int | None, typer.Option(help="Trials of each inner search.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Stage 1 runs each chosen configuration is tested with.")] = 2,
    protocol: Annotated[str, typer.Option(help="Are test polymers in Stage 1? known: yes, new: no; or both.")] = "both",
    name: Annotated[str, typer.Option(help="Folder under results/compare; the same name resumes.")] = "compare",
    results_dir: ResultsOption = None,
    device: DeviceOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
) -> None:
    """Test, on polymers the search never saw, whether the search and Stage 1 itself help."""
    from chitransfer.config import load_config
    from chitransfer.console import make_console, show_progress
    from chitransfer.errors import ConfigError
    from chitransfer.evidence.compare import Plan, run_comparison
    from chitransfer.evidence.nested import PROTOCOLS
    from chitransfer.evidence.unheeded import describe_without_effect, refuse_without_effect
    from chitransfer.patterns import NAME, WORDS
    from chitransfer.search.objective import refuse_constant_objective, refuse_nothing_to_learn
    from chitransfer.search.summary import describe_objective
    from chitransfer.training.settings import read_dataset

    if not re.fullmatch(NAME, name):
        raise ConfigError(f"--name should be {WORDS[NAME]}, got {name!r}")
    chosen = {"known": PROTOCOLS[:1], "new": PROTOCOLS[1:], "both": PROTOCOLS}
    if protocol not in chosen:
        raise ConfigError(f"--protocol must be known, new or both, got {protocol!r}")
    flags = {"search.n_trials": n_trials, "paths.results_dir": results_dir, "training.device": device, "seed": seed}
    overrides = collect_overrides(flags, settings)
    resolved = load_config(config, overrides)
    refuse_without_effect(resolved, overrides)
    refuse_constant_objective(resolved)
    refuse_nothing_to_learn(resolved)
    console = make_console()
    for line in [*describe_without_effect(resolved), *describe_objective(resolved)]:
        console.print(line)
    with show_progress(console) as progress:
        dataset = read_dataset(resolved, progress)
    folder = (Path(resolved.paths.results_dir) / "compare" / name).resolve()
    lines = run_comparison(
        resolved,
        dataset,
        folder,
        Plan(n_outer=outer, n_seeds=seeds, protocols=chosen[protocol]),
        console.print,
    )
    for line in [*lines, f"tables: {folder}"]:
        console.print(line)


def report(
    study: Annotated[Path, typer.Argument(help="A study's folder or its study.db.")],
    comparison: Annotated[
        Path | None, typer.Option("--compare", help="Folder of a `chitransfer compare` to show in the report.")
    ] = None,
) -> None:
    """Rewrite a study's report.html, figures and corrected estimate."""
    from chitransfer.errors import StudyError
    from chitransfer.report.finish import finish_study
    from chitransfer.search.reference import read_reference
    from chitransfer.search.study import read_study
    from chitransfer.search.study_folder import locate_study

    folder = locate_study(study)
    if comparison is not None and not (comparison / "table.csv").is_file():
        raise StudyError(f"{comparison}: no table.csv there; give the folder that `chitransfer compare` printed")
    for line in finish_study(read_study(folder), read_reference(folder.reference), folder, comparison):
        print(line)


def dashboard(
    study: Annotated[Path, typer.Argument(help="A study's folder or its study.db.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8080,
) -> None:
    """Watch a study live in the browser with optuna-dashboard, on this machine only; Ctrl-C ends it."""
    import socket
    from importlib.util import find_spec

    from chitransfer.errors import ConfigError, say_install
    from chitransfer.search.storage import open_storage
    from chitransfer.search.study_folder import locate_study

    if find_spec("optuna_dashboard") is None:
        raise ConfigError(f"the dashboard needs optuna-dashboard; {say_install('dashboard')}")
    folder = locate_study(study)
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise ConfigError(f"--port {port} is taken on this machine; choose another")
    from optuna_dashboard import run_server

    print(f"dashboard of {folder.name}: http://127.0.0.1:{port}/ (Ctrl-C ends it)", flush=True)
    run_server(open_storage(folder.address), host="127.0.0.1", port=port)
