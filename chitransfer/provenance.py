"""What results were made from: versions, machine, command, and the rows that were rejected.

Called by `search.run` and `training.run_folder`; nothing written contains a password.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from chitransfer.data.assemble import Dataset
from chitransfer.files import write_csv, write_json
from chitransfer.secrecy import mask_passwords

# What `environment.json` keeps of earlier runs.
OF_EARLIER_RUNS = ("started", "chitransfer", "command")
PACKAGES = ("numpy", "optuna", "pandas", "rdkit", "scikit-learn", "torch")


def versions() -> dict[str, str]:
    """Versions of chitransfer and of the packages that affect its numbers."""
    return {name: version(name) for name in ("chitransfer", *PACKAGES)}


def describe_environment() -> dict[str, Any]:
    """Versions, machine, time and command, with passwords masked."""
    packages = versions()
    return {
        "chitransfer": packages.pop("chitransfer"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "n_cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": packages,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": [mask_passwords(word) for word in sys.argv],
    }


def _runs_so_far(path: Path) -> list[dict[str, Any]]:
    try:
        last = json.loads(path.read_text(encoding="utf-8"))
        return [*last.get("earlier_runs", []), {name: last.get(name) for name in OF_EARLIER_RUNS}]
    except (OSError, ValueError, AttributeError, TypeError):
        return []


def write_provenance(folder: Path, dataset: Dataset) -> None:
    """Write ``environment.json`` and, if rows were rejected, ``rejected_rows.csv``.

    The environment is that of the run now starting; ``earlier_runs`` keeps time, version and command of earlier runs in
    the same folder, oldest first.
    """
    path = folder / "environment.json"
    write_json(path, {**describe_environment(), "earlier_runs": _runs_so_far(path)})
    rejected = [table.rejected.assign(table=table.source) for table in dataset.tables if len(table.rejected)]
    if rejected:
        write_csv(folder / "rejected_rows.csv", pd.concat(rejected, ignore_index=True))
