"""Options that several commands share, and how flags and `--set` become configuration overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

ConfigOption = Annotated[Path | None, typer.Option(help="YAML configuration; without it, the defaults.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key; repeatable.")
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
SeedOption = Annotated[int | None, typer.Option(help="Random seed; fixes every random choice.")]
ResultsOption = Annotated[str | None, typer.Option(help="Where results are kept.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
JobsOption = Annotated[int, typer.Option(min=0, help="Parallel processes for structures; 0: one per core.")]
FoldsOption = Annotated[int | None, typer.Option(help="Cross-validation folds of quick Stage 2.")]
RepeatsOption = Annotated[int | None, typer.Option(help="Repeats of the cross-validation, each on new folds.")]
EpochsOption = Annotated[int | None, typer.Option(help="Epochs of quick Stage 2.")]


def collect_overrides(flags: dict[str, Any], settings: list[str] | None) -> dict[str, object]:
    """Dotted configuration keys from the given flags and from ``--set``, which takes precedence.

    ``search={workers: 2}`` becomes ``search.workers=2``, because checks work on single keys, not on whole sections.
    """
    from chitransfer.config import Config, parse_set_options

    overrides = {key: value for key, value in flags.items() if value is not None}
    for key, value in parse_set_options(settings or []).items():
        if key in Config.model_fields and isinstance(value, dict) and value:
            overrides |= {f"{key}.{inner}": of_it for inner, of_it in value.items()}
        else:
            overrides[key] = value
    return overrides
