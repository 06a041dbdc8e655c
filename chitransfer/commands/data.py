"""`chitransfer data …`: compute, build, fetch and check tables. Each command parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chitransfer.commands.options import ConfigOption, JobsOption, SetOption
from chitransfer.counts import say_count

data = typer.Typer(
    help="Stage 1 tables from physics, public tables, and a check before training.", no_args_is_help=True
)


@data.command()
def compute(
    input_: Annotated[Path, typer.Option("--input", help="A CSV table with a column SMILES[, solvent][, temp in K].")],
    output: Annotated[Path, typer.Option(help="The same table with chi_unifac, A_unifac_K, B_unifac, method, reason.")],
    n_jobs: JobsOption = 0,
) -> None:
    """Add χ(T) from UNIFAC group contributions to a table; rows without a value are kept and give the reason."""
    from chitransfer.console import make_console, show_progress
    from chitransfer.data.compute import compute_table
    from chitransfer.files import CSV_ENDINGS, check_writable, refuse_overwriting
    from chitransfer.processors import count_processors

    check_writable(output, "--output", CSV_ENDINGS)
    refuse_overwriting(output, "--output", {"--input": input_})
    with show_progress(make_console()) as progress:
        summary = compute_table(
            input_,
            output,
            n_jobs=n_jobs or count_processors(),
            progress=lambda done, total: progress("computing χ", done, total),
        )
    of_all = f"{summary.n_values} of {say_count(summary.n_rows, 'row')}"
    have = "has" if summary.n_values == 1 else "have"
    print(f"{of_all} {have} a χ ({_listed(summary.methods)}) in {summary.seconds:.0f} s")
    _print_reasons(summary.reasons)
    for line in summary.remarks:
        print(f"WARNING: {line}")
    print(f"table: {summary.output}")


@data.command()
def build(
    n: Annotated[int, typer.Option(help="How many polymers.")],
    output: Annotated[Path, typer.Option(help="The table: .csv or .csv.gz.")],
    solvent: Annotated[list[str] | None, typer.Option(help="Solvent SMILES; repeatable. Default: water.")] = None,
    solvents_from: Annotated[
        list[Path] | None, typer.Option(help="A table with a column solvent: all of its solvents; repeatable.")
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="Kelvin; repeatable. Default: 273.15 to 373.15 in steps of 25.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for the choice and order of polymers.")] = 0,
    monomers: Annotated[
        Path | None,
        typer.Option(help="A CSV with columns family and SMILES. Default: the project's about 2,600 monomers."),
    ] = None,
    n_jobs: JobsOption = 0,
) -> None:
    """Build a Stage 1 table from scratch: polymers from monomers by SMiPoly's rules, χ(T) from UNIFAC; resumable."""
    from chitransfer.console import make_console, show_progress
    from chitransfer.data.build import DEFAULT_TEMPERATURES, build_table
    from chitransfer.data.monomers import describe_unused
    from chitransfer.data.solvents import read_solvents
    from chitransfer.files import CSV_ENDINGS, check_writable, refuse_overwriting
    from chitransfer.processors import count_processors

    check_writable(output, "--output", CSV_ENDINGS)
    if monomers is not None:
        refuse_overwriting(output, "--output", {"--monomers": monomers})
    solvents = list(solvent or ())
    for path in solvents_from or ():
        refuse_overwriting(output, "--output", {"--solvents-from": path})
        found, warnings = read_solvents(path)
        solvents += found
        for line in warnings:
            print(f"WARNING: {line}")
    with show_progress(make_console()) as progress:
        summary = build_table(
            n,
            output,
            solvents=solvents or ("O",),
            temperatures=temperature or DEFAULT_TEMPERATURES,
            seed=seed,
            n_jobs=n_jobs or count_processors(),
            progress=lambda done, total: progress("building polymers", done, total),
            monomers=monomers,
        )
    print(f"{say_count(summary.n_polymers, 'polymer')}, {say_count(summary.n_rows, 'row')} in {summary.seconds:.0f} s")
    if summary.n_polymers < summary.n_requested:
        print(f"WARNING: {summary.n_requested} were asked for; the monomer list gives no more")
    print(f"classes: {_listed(summary.polymer_classes)}")
    print(f"models: {_listed(summary.methods)}")
    if summary.n_without_product:
        tried = say_count(summary.n_reactions, "polymerisation")
        print(f"  without a linear product: {summary.n_without_product} of {tried}")
    _print_reasons(summary.without_groups)
    # docs/builtin_data.md lists the unused monomers of the project's own list.
    if monomers is not None and summary.unused_monomers:
        print(f"WARNING: {describe_unused(summary.unused_monomers)} (all of them in {summary.provenance.name})")
    print(f"table: {summary.output}\nprovenance: {summary.provenance}")


@data.command()
def fetch(
    name: Annotated[str | None, typer.Argument(help="The table's name; without it, the known ones are listed.")] = None,
    output_folder: Annotated[Path, typer.Option(help="Where the table, its licence and corrections go.")] = Path(
        "data"
    ),
    base_url: Annotated[str | None, typer.Option(help="A mirror: an http address or a folder.")] = None,
) -> None:
    """Fetch a public table, convert it, correct known errors, and store its licence with it."""
    from chitransfer.console import make_console, show_progress
    from chitransfer.data.published import list_sources
    from chitransfer.data.sources import fetch_table

    if name is None:
        for source in list_sources():
            print(f"{source.name:15} {source.description}")
        return
    with show_progress(make_console()) as progress:
        fetched = fetch_table(
            name,
            output_folder=output_folder,
            base_url=base_url,
            progress=lambda done, total: progress(f"fetching {name}", done, total or done),
        )
    print(fetched.source.licence.strip())
    print(f"Please cite: {fetched.source.citation}")
    print(
        f"{say_count(fetched.n_rows, 'row')}, {say_count(fetched.n_polymers, 'polymer')}, "
        f"{say_count(fetched.n_solvents, 'solvent')} from "
        f"{fetched.n_published} published rows; {say_count(len(fetched.applied), 'correction')} "
        f"({fetched.corrections}), {say_count(fetched.n_left_out, 'row')} left out ({fetched.left_out}), "
        f"{say_count(fetched.n_duplicates, 'repeat')} of earlier rows dropped"
    )
    print(f"table: {fetched.table}" + (" (from files fetched before)" if fetched.from_cache else ""))


@data.command()
def check(
    config: ConfigOption = None,
    settings: SetOption = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw four panels into this .png, .svg or .pdf.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead.")] = False,
) -> None:
    """Check the three tables before training: one page of facts that ends with warnings in plain words.

    The exit code is 2 if a search would not start.
    """
    from chitransfer.config import load_config, parse_set_options
    from chitransfer.console import make_console, show_progress
    from chitransfer.errors import DataError
    from chitransfer.files import check_writable, dump_json
    from chitransfer.report.check_page import describe_check, draw_check
    from chitransfer.training.settings import check_configured_tables

    resolved = load_config(config, parse_set_options(settings or []))
    if figure is not None:
        check_writable(figure, "--figure", (".png", ".svg", ".pdf"))
    with show_progress(make_console(quiet=json)) as progress:
        report = check_configured_tables(resolved, progress)
    print(dump_json(report.to_dict()) if json else describe_check(report))
    if figure is not None:
        draw_check(report, figure)
    if report.n_obstacles:
        numbers = "warning 1" if report.n_obstacles == 1 else f"warnings 1 to {report.n_obstacles}"
        raise DataError(f"a search would not start with these tables; see {numbers}")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _print_reasons(reasons: dict[str, int]) -> None:
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        print(f"  without a value: {count}: {reason}")
