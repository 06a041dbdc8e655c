"""Options that several commands share, and how flags and `--set` become configuration overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

ConfigOption = Annotated[Path | None, typer.Option(help="YAML configuration; without it, the defaults.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override any configuration key; repeatable.")
]


def collect_overrides(flags: dict[str, Any], settings: list[str] | None) -> dict[str, object]:
    """Dotted configuration keys from the flags that were given, then from ``--set``, which wins."""
    from chitransfer.config import parse_set_options

    return {key: value for key, value in flags.items() if value is not None} | parse_set_options(settings or [])
