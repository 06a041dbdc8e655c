"""`chitransfer apply`, `pretrain`, `finetune`, `predict` and `screen`. Each command parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chitransfer.commands.options import (
    ConfigOption,
    DeviceOption,
    JobsOption,
    QuietOption,
    ResultsOption,
    SeedOption,
    SetOption,
    collect_overrides,
)
from chitransfer.counts import say_count

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from chitransfer.predict import Predictor
    from chitransfer.screen import Screening


def pretrain(
    config: ConfigOption = None,
    resume: Annotated[Path | None, typer.Option(help="Resume an interrupted run: its folder.")] = None,
    device: DeviceOption = None,
    seed: SeedOption = None,
    results_dir: ResultsOption = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Full Stage 1 training: learn computed χ; writes results/dft_pretrain_<time>/."""
    from chitransfer.config import FULL_TRAINING, load_config
    from chitransfer.console import make_console, show_progress
    from chitransfer.errors import ConfigError
    from chitransfer.report.model_figures import draw_pretraining
    from chitransfer.shortage import explain_shortage
    from chitransfer.training.pretrain import load_run_config, run_pretraining

    flags = {"training.device": device, "seed": seed, "paths.results_dir": results_dir}
    overrides = collect_overrides(flags, settings)
    if resume is None:
        resolved = load_config(config, overrides, FULL_TRAINING)
    elif config is not None:
        raise ConfigError(f"{resume}: an interrupted run continues with its own configuration; leave out --config")
    else:
        resolved = load_run_config(resume, overrides)
    console = make_console(quiet)
    with explain_shortage("lower training.batch_size_dft"), show_progress(console) as progress:
        folder = run_pretraining(resolved, console.print, progress, resume)
    draw_pretraining(folder.path)


def finetune(
    pretrained: Annotated[str, typer.Option(help="Stage 1's best_model.pt, or a glob: the newest is taken.")],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="CHECKPOINT", help="Further checkpoints, if the shell expanded a glob."),
    ] = None,
    config: ConfigOption = None,
    device: DeviceOption = None,
    seed: SeedOption = None,
    results_dir: ResultsOption = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Full Stage 2 training: learn measured χ(T) and solubility; writes results/multitask_<time>/."""
    from chitransfer.config import FULL_TRAINING, load_config
    from chitransfer.console import make_console, show_progress
    from chitransfer.report.model_figures import draw_model
    from chitransfer.shortage import explain_shortage
    from chitransfer.training.finetune import run_finetuning
    from chitransfer.training.unread import describe_without_effect

    flags = {"training.device": device, "seed": seed, "paths.results_dir": results_dir}
    overrides = collect_overrides(flags, settings)
    resolved = load_config(config, overrides, FULL_TRAINING)
    console = make_console(quiet)
    for line in describe_without_effect(resolved, overrides):
        console.print(line)
    with explain_shortage("lower training.batch_size_exp"), show_progress(console) as progress:
        folder = run_finetuning(
            resolved,
            [pretrained, *(more or [])],
            console.print,
            progress,
        )
    draw_model(folder.path)


def apply(
    study: Annotated[Path, typer.Argument(help="A study's folder or its study.db.")],
    config: Annotated[
        Path | None,
        typer.Option(
            help="The configuration to write the parameters into. Default: configs/config.yaml, "
            "made from the defaults of full training where it is missing."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write here and leave --config as it is.")] = None,
    trial: Annotated[int | None, typer.Option(help="Apply this trial instead of the recommended one.")] = None,
) -> None:
    """Write a study's best parameters into a configuration, keeping its comments."""
    from chitransfer.config import load_config
    from chitransfer.search.apply import apply_trial, training_commands, write_application
    from chitransfer.search.study_folder import locate_study

    base = config or Path("configs/config.yaml")
    folder = locate_study(study)
    application = apply_trial(folder, base if config or base.exists() else None, trial)
    target = output or base
    write_application(application, target)
    print(application.difference or f"{base} has these parameters already")
    for note in application.notes:
        print(f"note: {note}")
    print(f"trial {application.trial} of {folder.name} is in {target}; next:")
    for command in training_commands(target, load_config(target).paths.results_dir, application.for_finetune):
        print(f"  {command}")


ModelOption = Annotated[Path, typer.Option(help="best_model.pt of `chitransfer finetune`.")]
# A list, because for a plain option typer would silently take the last of several values.
SolventOption = Annotated[
    list[str] | None, typer.Option(help="SMILES of one solvent. Default: the table's, else water, O.")
]


def predict(
    model: ModelOption,
    smiles: Annotated[list[str] | None, typer.Argument(help="Repeat units, such as '*CCO*'.")] = None,
    input: Annotated[Path | None, typer.Option(help="A CSV table with a column SMILES[, solvent][, temp].")] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write the table with its predictions.")] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="Kelvin; repeatable. Default: the table's temp, else the model's T_ref_K."),
    ] = None,
    solvent: SolventOption = None,
    n_jobs: JobsOption = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but predictions and errors.")] = False,
) -> None:
    """Predict χ(T) and solubility for repeat units or a table of them."""
    import time

    from chitransfer.console import make_console, show_progress
    from chitransfer.data.pair_table import TableReader
    from chitransfer.errors import ConfigError
    from chitransfer.files import CSV_ENDINGS, check_writable, refuse_overwriting
    from chitransfer.predict import Predictor
    from chitransfer.predict_table import BlankCells, predict_table, write_predictions
    from chitransfer.processors import count_processors, use_threads

    medium = _read_solvent(solvent)
    if bool(smiles) == (input is not None):
        raise ConfigError("give either repeat units or --input TABLE.csv")
    if (input is None) != (output is None):
        raise ConfigError("--input and --output go together")
    if input is not None and output is not None:
        check_writable(output, "--output", CSV_ENDINGS)
        refuse_overwriting(output, "--output", {"--input": input, "--model": model})
    use_threads(0)
    predictor = Predictor.load(model)
    console = make_console(quiet)
    if input is None or output is None:
        chosen = temperature[0] if temperature and len(temperature) == 1 else temperature or None
        frame = predictor.predict(smiles or [], temperature=chosen, solvent=medium or "O")
        _print_predictions(frame, predictor.label_rule)
        _warn_of_interval(console, predictor)
        _refuse_unpredicted(frame)
        return
    started = time.perf_counter()
    reader, blanks = TableReader.open(input), BlankCells()
    with show_progress(console) as progress:
        predictions = predict_table(
            predictor,
            reader,
            temperatures=temperature or None,
            solvent=medium,
            n_jobs=n_jobs or count_processors(),
            progress=progress,
            blanks=blanks,
        )
        n_rows, n_problems = write_predictions(reader, predictions, output)
    seconds = time.perf_counter() - started
    console.print(
        f"{output}: {say_count(n_rows, 'row')} in {seconds:.1f} s ({n_rows / seconds:.0f} a second), "
        f"{n_problems} without a prediction or with a remark (column problem)"
        f"{_tell_label(predictor.label_rule)}",
    )
    _warn_of_interval(console, predictor)
    for line in blanks.describe(predictor, str(input)):
        console.print(line)


def screen(
    model: ModelOption,
    input: Annotated[Path, typer.Option(help="Candidates: a CSV table with a column SMILES[, solvent][, temp].")],
    output: Annotated[Path, typer.Option(help="Where to write the ranking.")],
    picture: Annotated[Path | None, typer.Option(help="The best structures as PNG. Default: beside the CSV.")] = None,
    rank_by: Annotated[str, typer.Option(help="p_soluble (highest first) or chi (lowest first).")] = "p_soluble",
    top: Annotated[int, typer.Option(min=1, help="Candidates to keep.")] = 100,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="One temperature in kelvin. Default: the table's temp, else the model's T_ref_K."),
    ] = None,
    solvent: SolventOption = None,
    max_chi: Annotated[float | None, typer.Option(help="Highest χ.")] = None,
    min_chi: Annotated[float | None, typer.Option(help="Lowest χ.")] = None,
    certain: Annotated[
        bool, typer.Option("--certain", help="The whole 90 % interval must meet the χ conditions.")
    ] = False,
    min_p_soluble: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Lowest P(soluble).")] = None,
    in_domain: Annotated[
        bool,
        typer.Option(
            "--in-domain", help="Only polymers like the measured ones, solvents and temperatures seen in training."
        ),
    ] = False,
    n_jobs: JobsOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Rank candidate repeat units by P(soluble) or χ under conditions; each once per solvent, at its best row."""
    from chitransfer.chemistry.rdkit_drawing import why_no_drawing
    from chitransfer.console import make_console, show_progress
    from chitransfer.data.pair_table import TableReader
    from chitransfer.data.temperatures import name_temperature
    from chitransfer.errors import ConfigError
    from chitransfer.files import CSV_ENDINGS, beside_csv, check_writable, refuse_overwriting
    from chitransfer.predict import Predictor
    from chitransfer.predict_table import BlankCells, predict_table
    from chitransfer.processors import count_processors, use_threads
    from chitransfer.screen import N_PICTURES, Conditions, screen_candidates, write_screening

    if rank_by != "p_soluble" and rank_by != "chi":
        raise ConfigError(f"--rank-by takes p_soluble or chi, got {rank_by!r}")
    medium = _read_solvent(solvent)
    _refuse_repetition("--temperature", [name_temperature(value) for value in temperature or []])
    conditions = Conditions(max_chi, min_chi, certain, min_p_soluble, in_domain)
    check_writable(output, "--output", CSV_ENDINGS)
    wants_picture = picture is not None
    picture = picture or beside_csv(output, ".png")
    check_writable(picture, "--picture", (".png",))
    for option, path in (("--output", output), ("--picture", picture)):
        refuse_overwriting(path, option, {"--input": input, "--model": model})
    no_drawing = why_no_drawing()
    if wants_picture and no_drawing is not None:
        raise ConfigError(f"--picture {picture}: {no_drawing}, or leave --picture out and get the ranking alone")
    use_threads(0)
    predictor = Predictor.load(model)
    reader, blanks = TableReader.open(input), BlankCells()
    console = make_console(quiet)
    with show_progress(console) as progress:
        predictions = predict_table(
            predictor,
            reader,
            temperatures=temperature or None,
            solvent=medium,
            n_jobs=n_jobs or count_processors(),
            progress=progress,
            blanks=blanks,
        )
        found = screen_candidates(predictions, reader.header, conditions, rank_by=rank_by, top=top)  # type: ignore[arg-type]
    interval = predictor.model.chi_interval
    coverage = None if interval is None else interval.coverage
    write_screening(found, output, picture if no_drawing is None else None, coverage, reader.mark)
    if no_drawing is not None:
        # An earlier picture would show other candidates.
        picture.unlink(missing_ok=True)
    n_best = len(found.best)
    drawn = f"{f'the first {N_PICTURES} ' if n_best > N_PICTURES else ''}drawn in {picture}"
    drawn = drawn if no_drawing is None else "without a picture"
    where = f"the best {n_best} are in {output}, {drawn}" if n_best else f"{output} has no row, and there is no picture"
    for line in _tell_screening(found, is_full=n_best == top, where=f"{where}{_tell_label(predictor.label_rule)}"):
        console.print(line)
    if n_best and no_drawing is not None:
        console.print(f"no picture: {no_drawing}")
    _warn_of_interval(console, predictor)
    for line in blanks.describe(predictor, str(input)):
        console.print(line)


def _tell_screening(found: Screening, *, is_full: bool, where: str) -> list[str]:
    """Summary of what happened to the candidates; `is_full` means that as many were kept as requested."""
    repeated = "; a polymer that is among them more than once in the same solvent counts once, at its best row"
    lines = [
        f"{say_count(found.n_rows, 'candidate')}, {found.n_usable} with a prediction, {found.n_kept} within the "
        f"conditions{repeated if len(found.best) < found.n_kept and not is_full else ''}; {where}"
    ]
    if not found.n_kept:
        lines.append("each condition by itself holds for:")
        lines += [f"  {option}: {say_count(count, 'candidate')}" for option, count in found.n_holding.items()]
    return [*lines, *(["without a prediction:", *found.reasons] if found.reasons else [])]


def _print_predictions(frame: pd.DataFrame, label_rule: str) -> None:
    """Print one line per available value, and an empty line after every repeat unit."""
    for row in frame.to_dict("records"):
        for name, value in row.items():
            if value is not None and value == value and value != "":
                text = f"{value:.4g}" if isinstance(value, float) and name != "temperature_K" else f"{value}"
                if name == "soluble":
                    text += f"  ({label_rule}, the model's threshold)"
                print(f"{name:>18}  {text}")
        print()


def _refuse_unpredicted(frame: pd.DataFrame) -> None:
    """Raise a DataError that names the repeat units given on the command line without a prediction, and why."""
    from chitransfer.errors import DataError
    from chitransfer.files import is_number

    refused = frame[frame["problem"] != ""].drop_duplicates("SMILES")
    if len(refused):
        pairs = zip(refused["SMILES"], refused["problem"], strict=True)
        reasons = [f"\n  {smiles!r}: {problem}" for smiles, problem in pairs]
        numbers = [text for text in refused["SMILES"] if is_number(text)]
        remedy = f"\nA further temperature has a flag of its own: --temperature {numbers[0]}" if numbers else ""
        raise DataError(f"no prediction for {say_count(len(reasons), 'repeat unit')}{''.join(reasons)}{remedy}")


def _warn_of_interval(console: Console, predictor: Predictor) -> None:
    if predictor.interval_note:
        console.print(f"warning: {predictor.interval_note}")


def _tell_label(rule: str) -> str:
    return f"; soluble is {rule}, the model's threshold" if rule else ""


def _read_solvent(given: list[str] | None) -> str | None:
    from chitransfer.errors import ConfigError

    _refuse_repetition("--solvent", given or [])
    if given and not given[0].strip():
        raise ConfigError(f"--solvent {given[0]!r}: is empty; give a SMILES (water is O) or leave the option out")
    return given[0] if given else None


def _refuse_repetition(option: str, given: list[str]) -> None:
    from chitransfer.errors import ConfigError

    if len(given) > 1:
        raise ConfigError(
            f"{option} is given {len(given)} times ({', '.join(given)}), but one is taken; "
            "give one and run the command again for the others"
        )
