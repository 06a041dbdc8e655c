"""Formats of some configuration values: regular expressions, and their descriptions in errors.

Used by `sections`, `config` and `chitransfer compare`.
"""

from __future__ import annotations

# Names of studies and comparisons: a single folder, without a path.
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}$"
DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"
SCHEDULER = r"^((tcp|tls)://\S+|slurm|pbs|lsf|sge)$"
SPACE_KEY = r"^(model|training)\.\w+$"
WALLTIME = r"^(\d+-)?\d{1,3}:\d{2}(:\d{2})?$"
MEMORY = r"^\d+(\.\d+)? ?[kMGT]i?B$"
WORDS = {
    NAME: "1 to 100 letters, digits, _, . and -, and begin with none of the last two",
    DEVICE: "auto, cpu, cuda or a numbered card such as cuda:0",
    SCHEDULER: "an address such as tcp://host:8786, or slurm, pbs, lsf or sge",
    SPACE_KEY: "a key of model or training, such as model.encoder_dropout",
    WALLTIME: "hours:minutes or hours:minutes:seconds, such as 04:00:00, with days before them as 2-00:00:00",
    MEMORY: "a number and its unit, such as 8GB",
}
