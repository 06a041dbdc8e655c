"""`chitransfer apply`, `pretrain`, `finetune`, `predict` and `screen`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chitransfer.commands.options import ConfigOption, SetOption, collect_overrides

DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
SeedOption = Annotated[int | None, typer.Option(help="Fixes every random choice.")]
ResultsOption = Annotated[str | None, typer.Option(help="Where results are kept.")]
QuietOption = Annotated[bool, typer.Option(help="Print nothing but errors.")]


def pretrain(
    config: ConfigOption = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with an interrupted run: its folder.")] = None,
    device: DeviceOption = None,
    seed: SeedOption = None,
    results_dir: ResultsOption = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Stage 1 in full: learn computed χ; leaves results/dft_pretrain_<time>/."""
    from chitransfer.config import load_config
    from chitransfer.report.model_figures import draw_pretraining
    from chitransfer.search.watch import make_console, show_progress
    from chitransfer.training.pretrain import run_pretraining

    flags = {"training.device": device, "seed": seed, "paths.results_dir": results_dir}
    resolved = load_config(config, collect_overrides(flags, settings))
    console = make_console(quiet)
    with show_progress(console) as progress:
        folder = run_pretraining(
            resolved, lambda line: console.print(line, markup=False, highlight=False), progress, resume
        )
    draw_pretraining(folder.path)


def finetune(
    pretrained: Annotated[str, typer.Option(help="Stage 1's best_model.pt, or a glob: the newest is taken.")],
    config: ConfigOption = None,
    device: DeviceOption = None,
    seed: SeedOption = None,
    results_dir: ResultsOption = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Stage 2 in full: learn measured χ(T) and solubility; leaves results/multitask_<time>/."""
    from chitransfer.config import load_config
    from chitransfer.report.model_figures import draw_model
    from chitransfer.search.watch import make_console, show_progress
    from chitransfer.training.finetune import run_finetuning

    flags = {"training.device": device, "seed": seed, "paths.results_dir": results_dir}
    resolved = load_config(config, collect_overrides(flags, settings))
    console = make_console(quiet)
    with show_progress(console) as progress:
        folder = run_finetuning(
            resolved, pretrained, lambda line: console.print(line, markup=False, highlight=False), progress
        )
    draw_model(folder.path)
