"""What results were made from: versions, machine, command, and the rows that were left out of the tables.

Called by `search.run` and `training.run_folder`; what is written holds no password.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from chitransfer.data.assemble import Dataset
from chitransfer.files import write_csv, write_json
from chitransfer.secrecy import mask_passwords

PACKAGES = ("numpy", "optuna", "pandas", "rdkit", "scikit-learn", "torch")


def versions() -> dict[str, str]:
    """Of chitransfer and the packages its numbers depend on."""
    return {name: version(name) for name in ("chitransfer", *PACKAGES)}


def describe_environment() -> dict[str, Any]:
    """Versions, machine and command, passwords masked."""
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
        "command": [mask_passwords(word) for word in sys.argv],
    }


def write_provenance(folder: Path, dataset: Dataset) -> None:
    """Write ``environment.json`` and, where rows were left out, ``rejected_rows.csv``."""
    write_json(folder / "environment.json", describe_environment())
    tables = [rows.table for rows in (dataset.stage1, dataset.chi, dataset.solubility) if rows is not None]
    rejected = [table.rejected.assign(table=table.source) for table in tables if len(table.rejected)]
    if rejected:
        write_csv(folder / "rejected_rows.csv", pd.concat(rejected, ignore_index=True))
