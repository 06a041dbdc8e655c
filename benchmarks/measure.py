"""Timings taken in turns, so that a busy machine slows all variants equally; output as JSON and Markdown."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from chitransfer.files import write_atomically

# Resolution of the processor's clock in seconds.
CLOCK_TICK = 0.01

# Distinguishes processors sold under one name, best first (as in `torch.cpu.get_capabilities`).
INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512_f", "avx2")


@dataclass(frozen=True)
class Timing:
    """One variant of one case.

    Attributes
    ----------
    wall, cpu
        Median seconds per run by the wall clock, and of all its threads and processes together. On a shared machine
        only the second says what the work costs.
    ratio_wall, ratio_cpu
        The case's first variant divided by this one: above 1 is faster than the first.
    """

    case: str
    variant: str
    n_runs: int
    wall: float
    cpu: float
    ratio_wall: float
    ratio_cpu: float
    note: str = ""


def compare(
    case: str, variants: Mapping[str, Callable[[], object]], n_runs: int = 3, notes: Mapping[str, str] | None = None
) -> list[Timing]:
    """Time variants in turns, after one run of each that is not counted; the first is the reference."""
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(n_runs + 1):
        for name, run in variants.items():
            clock, processor = time.perf_counter(), _cpu_seconds()
            run()
            if round_number:
                wall[name].append(time.perf_counter() - clock)
                cpu[name].append(_cpu_seconds() - processor)
    medians = {name: (statistics.median(wall[name]), statistics.median(cpu[name])) for name in variants}
    return as_timings(case, medians, n_runs, notes)


def as_timings(
    case: str, seconds: Mapping[str, tuple[float, float]], n_runs: int, notes: Mapping[str, str] | None = None
) -> list[Timing]:
    """Timings of variants from their wall and processor seconds; the first is the reference."""
    reference = next(iter(seconds.values()))
    return [
        Timing(
            case,
            name,
            n_runs,
            *own,
            reference[0] / own[0],
            reference[1] / max(own[1], CLOCK_TICK),
            (notes or {}).get(name, ""),
        )
        for name, own in seconds.items()
    ]


def _cpu_seconds() -> float:
    """Processor time of this process, its threads and the child processes it has waited for."""
    return sum(os.times()[:4])


def machine_name() -> str:
    """The processor, its best arithmetic instructions and its core count, as a file name."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        model = found.group(1) if found else model
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    best = next((name for name in INSTRUCTIONS if known.get(name, False)), "")
    return re.sub(r"[^A-Za-z0-9]+", "_", f"{model} {best} {os.cpu_count()} cores").strip("_").lower()


def write_results(folder: Path, timings: list[Timing], threads: int) -> Path:
    """Update this machine's results file with new timings, case by case; returns the file."""
    path = folder / f"{machine_name()}.json"
    known = json.loads(path.read_text())["cases"] if path.exists() else {}
    for timing in timings:
        known[timing.case] = []
    for timing in timings:
        known[timing.case].append({**asdict(timing), "threads": threads, "load": round(os.getloadavg()[0], 1)})
    values = {
        "machine": machine_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cases": known,
    }
    write_atomically(path, json.dumps(values, indent=1) + "\n")
    return path


def as_markdown(path: Path) -> str:
    """The table of a results file."""
    values = json.loads(path.read_text())
    lines = [
        "| case | variant | clock, s | CPU, s | times as fast (clock) | (CPU) | note |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, timings in values["cases"].items():
        for t in timings:
            note = "; ".join(part for part in (t["note"], f"{t['threads']} thread(s), load {t['load']}") if part)
            lines.append(
                f"| {case} | {t['variant']} | {t['wall']:.3g} | {t['cpu']:.3g} "
                f"| {t['ratio_wall']:.2f} | {t['ratio_cpu']:.2f} | {note} |"
            )
    return "\n".join(lines)
