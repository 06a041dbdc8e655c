"""Build a Stage 1 table from scratch, resumably: repeat units from monomers, and their χ(T) from UNIFAC.

Called by `chitransfer data build`; the built-in table `computed_chi.csv.gz` is its output (docs/builtin_data.md).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from itertools import islice
from pathlib import Path

import numpy as np

from chitransfer import __version__
from chitransfer.chemistry.enumerate import Reaction, find_unused, list_reactions, run_reaction
from chitransfer.chemistry.groups import FragmentationError, Groups, groups_of_identity
from chitransfer.chemistry.unifac import (
    DEFAULT_TEMPERATURES,
    VOLUME_FRACTION,
    chi_of_groups,
    default_parameters,
    method_name,
)
from chitransfer.chunks import call_each
from chitransfer.counts import say_count
from chitransfer.data.monomers import describe_unused, read_monomers
from chitransfer.data.solvents import check_solvents
from chitransfer.data.temperatures import check_temperatures, name_temperature
from chitransfer.errors import DataError
from chitransfer.files import (
    beside_csv,
    check_csv_name,
    is_compressed,
    replace_atomically,
    write_atomically,
    write_json,
)
from chitransfer.progress import Progress

# Increased whenever the same reactions would give other repeat units or groups; old partial results are then ignored.
BUILD_VERSION = 6
CHUNK = 100
# Number of polymers whose χ is computed and written at a time.
BLOCK = 2000
COLUMNS = ("SMILES", "chi", "temp", "solvent", "method")
SOFTWARE = ("rdkit", "smipoly", "ugropy", "thermo", "numpy")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildSummary:
    """Result of `build_table`.

    Attributes
    ----------
    output, provenance
        The table and its provenance JSON in the same folder.
    n_polymers, n_requested, n_rows
        Distinct polymers written, distinct polymers requested, rows written.
    n_reactions, n_without_product, n_duplicates
        Polymerisations tried, those without a linear product, products seen before.
    polymer_classes, methods
        Number of polymers per class, and of polymer–solvent pairs per model that gave their values.
    without_groups
        Number of polymers left out, by the reason why they have no χ.
    unused_monomers
        Monomers that take part in no polymerisation (`find_unused`).
    seconds
        Wall time.
    """

    output: Path
    provenance: Path
    n_polymers: int
    n_requested: int
    n_rows: int
    n_reactions: int
    n_without_product: int
    n_duplicates: int
    polymer_classes: dict[str, int]
    methods: dict[str, int]
    without_groups: dict[str, int]
    unused_monomers: list[str]
    seconds: float


@dataclass(frozen=True)
class _Unit:
    identity: str
    polymer_class: str
    groups: Groups | None
    reason: str


@dataclass
class _Collection:
    """Distinct units with groups, in order, and counts of the reactions that gave none."""

    units: list[_Unit] = field(default_factory=list)
    n_reactions: int = 0
    n_without_product: int = 0
    n_duplicates: int = 0
    without_groups: Counter[str] = field(default_factory=Counter)
    _seen: set[str] = field(default_factory=set)

    def add(self, found: _Unit | None) -> bool:
        """Record the outcome of a reaction; returns whether it added a unit."""
        self.n_reactions += 1
        if found is None:
            self.n_without_product += 1
        elif found.identity in self._seen:
            self.n_duplicates += 1
        else:
            self._seen.add(found.identity)
            if found.groups is not None:
                self.units.append(found)
                return True
            self.without_groups[found.reason] += 1
        return False


def build_table(
    n: int,
    output: Path,
    *,
    solvents: Sequence[str] = ("O",),
    temperatures: Sequence[float] = DEFAULT_TEMPERATURES,
    seed: int = 0,
    n_jobs: int = 1,
    progress: Progress | None = None,
    monomers: Path | None = None,
) -> BuildSummary:
    """Write a Stage 1 table of `n` distinct polymers: ``SMILES, chi, temp, solvent, method``.

    An interrupted build resumes when started again with the same output: finished parts stay in ``<output>.parts``
    until the table is complete. Other files there, such as parts of another seed, are kept. The table depends, byte for
    byte, only on `n`, `solvents`, `temperatures`, `seed` and the monomers, not on `n_jobs`.

    Parameters
    ----------
    n
        Number of polymers, at least 1. If the monomer list gives fewer, the summary says so.
    output
        ``.csv`` or ``.csv.gz``; replaced atomically when the table is complete.
    solvents
        SMILES; every polymer gets a row per solvent and temperature.
    temperatures
        Kelvin, 150 to 1000.
    seed
        Selects which of the possible polymers are used, and their order.
    n_jobs
        Number of processes.
    progress
        Called with (polymers ready, n).
    monomers
        Another monomer list (columns ``family, SMILES``); ``None`` uses the project's own.

    Raises
    ------
    DataError
        An argument is out of range, a solvent has no UNIFAC groups, or the monomer list is unreadable.
    """
    started = time.perf_counter()
    if n < 1:
        raise DataError(f"the number of polymers must be at least 1, got {n}")
    check_csv_name(output)
    kelvin = _checked_temperatures(temperatures)
    solvent_names, solvent_groups = check_solvents(solvents)
    families = read_monomers(monomers)
    parts = output.with_name(output.name + ".parts")
    found = _collect_units(n, families, seed, parts, n_jobs, progress)
    methods = _write_rows(output, found.units, solvent_names, solvent_groups, kelvin)
    summary = BuildSummary(
        output=output,
        provenance=beside_csv(output, ".provenance.json"),
        n_polymers=len(found.units),
        n_requested=n,
        n_rows=len(found.units) * len(solvent_names) * len(kelvin),
        n_reactions=found.n_reactions,
        n_without_product=found.n_without_product,
        n_duplicates=found.n_duplicates,
        polymer_classes=dict(Counter(unit.polymer_class for unit in found.units)),
        methods=methods,
        without_groups=dict(found.without_groups.most_common()),
        unused_monomers=find_unused(families),
        seconds=time.perf_counter() - started,
    )
    _write_provenance(summary, solvent_names, solvent_groups, kelvin, seed, families)
    _remove_parts(parts, _input_digest(families, seed))
    return summary


def _collect_units(
    n: int,
    families: dict[str, list[str]],
    seed: int,
    parts: Path,
    n_jobs: int,
    progress: Progress | None,
) -> _Collection:
    """The first `n` units, or as many as the monomers give; raises DataError if there are none."""
    found = _Collection()
    units, inputs = found.units, _input_digest(families, seed)
    for unit in _units_in_order(list_reactions(families, seed), parts, inputs, n_jobs, lambda: n - len(units)):
        # The last wave is always finished and saved as a whole.
        is_one_more = len(units) < n and found.add(unit)
        if is_one_more and progress is not None and (len(units) % CHUNK == 0 or len(units) == n):
            progress(len(units), n)
    if not units:
        raise DataError(f"{_explain_nothing(found, families)}; check its families and SMILES")
    if len(units) < n:
        logger.warning("the monomer list gives %d distinct polymers, fewer than the %d asked for", len(units), n)
    return found


def _explain_nothing(found: _Collection, families: dict[str, list[str]]) -> str:
    """The reason why a monomer list gives no polymer at all."""
    if found.without_groups:
        return "the monomer list gives no polymer with UNIFAC groups"
    if found.n_reactions:
        return f"the monomer list gives no linear chain ({say_count(found.n_reactions, 'polymerisation')} tried)"
    return f"the monomer list gives no polymerisation: {describe_unused(find_unused(families))}"


def _units_in_order(
    reactions: Iterator[Reaction], parts: Path, inputs: str, n_jobs: int, lacking: Callable[[], int]
) -> Iterator[_Unit | None]:
    """Units of the reactions in order, computed in parallel; chunks are kept in `parts` until the table is complete.

    Works in waves. Each is sized for the polymers still missing, as if every reaction gave a new one. Stops when none
    is missing or no reaction is left.
    """
    number = 0
    while lacking() > 0:
        wave = -(-lacking() // CHUNK)
        chunks = [chunk for chunk in (list(islice(reactions, CHUNK)) for _ in range(wave)) if chunk]
        if not chunks:
            return
        paths = [parts / f"{inputs}-{place:06d}.json.z" for place in range(number, number + len(chunks))]
        for lines in call_each(_expand_chunk, list(zip(chunks, paths, strict=True)), n_jobs):
            for line in lines:
                yield None if line is None else _unit_from_line(line)
        number += len(chunks)


def _remove_parts(parts: Path, inputs: str) -> None:
    """Remove the parts of one build, including half-written ones of a killed process, and the folder if then empty."""
    with suppress(OSError):
        for path in parts.glob(f"*{inputs}-*.z"):
            path.unlink()
        parts.rmdir()


def _expand_chunk(reactions: list[Reaction], path: Path) -> list[list | None]:
    """Identity, class, group counts and reason of each reaction's product; read from `path` if computed before."""
    known = _read_part(path, len(reactions))
    if known is not None:
        return known
    lines: list[list | None] = []
    for reaction in reactions:
        unit = run_reaction(reaction)
        if unit is None:
            lines.append(None)
            continue
        try:
            counts, reason = list(groups_of_identity(unit.identity).counts), ""
        except FragmentationError as error:
            counts, reason = [], str(error)
        lines.append([unit.identity, unit.polymer_class, counts, reason])
    write_atomically(path, zlib.compress(json.dumps(lines).encode()))
    return lines


def _read_part(path: Path, n: int) -> list[list | None] | None:
    try:
        lines = json.loads(zlib.decompress(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, zlib.error):
        logger.warning("%s is damaged and is computed again", path)
        return None
    return lines if isinstance(lines, list) and len(lines) == n else None


def _unit_from_line(line: list) -> _Unit:
    identity, polymer_class, counts, reason = line
    groups = Groups(tuple((int(index), int(count)) for index, count in counts)) if not reason else None
    return _Unit(identity, polymer_class, groups, reason)


def _write_rows(
    output: Path, units: list[_Unit], solvents: list[str], solvent_groups: list[Groups], temperatures: np.ndarray
) -> dict[str, int]:
    chains = [unit.groups for unit in units if unit.groups is not None]
    methods: Counter[str] = Counter()
    written_temperatures = [name_temperature(value) for value in temperatures]

    def write(path: Path) -> None:
        # The gzip header gets no time and no file name, so the same table gives the same bytes.
        with path.open("wb") as raw:
            stream = gzip.GzipFile("", "wb", 9, raw, mtime=0) if is_compressed(output) else raw
            stream.write((",".join(COLUMNS) + "\n").encode())
            for start in range(0, len(units), BLOCK):
                block = slice(start, start + BLOCK)
                chi = chi_of_groups(chains[block], solvent_groups, temperatures)
                for unit, groups, values in zip(units[block], chains[block], chi, strict=True):
                    for place, solvent in enumerate(solvents):
                        method = method_name(groups, solvent_groups[place])
                        methods[method] += 1
                        stream.write(
                            "".join(
                                f"{unit.identity},{value:.4f},{temperature},{solvent},{method}\n"
                                for value, temperature in zip(values[place], written_temperatures, strict=True)
                            ).encode()
                        )
            if stream is not raw:
                stream.close()

    replace_atomically(output, write)
    return dict(methods)


def _write_provenance(
    summary: BuildSummary,
    solvents: list[str],
    solvent_groups: list[Groups],
    temperatures: np.ndarray,
    seed: int,
    families: dict[str, list[str]],
) -> None:
    write_json(
        summary.provenance,
        {
            "made_by": f"chitransfer {__version__} data build",
            "table": summary.output.name,
            "sha256": hashlib.sha256(summary.output.read_bytes()).hexdigest(),
            "arguments": {
                "n": summary.n_requested,
                "solvents": solvents,
                "temperatures_K": [float(value) for value in temperatures],
                "seed": seed,
            },
            "counts": {
                "polymers": summary.n_polymers,
                "rows": summary.n_rows,
                "reactions_tried": summary.n_reactions,
                "reactions_without_linear_product": summary.n_without_product,
                "duplicates": summary.n_duplicates,
                "polymer_classes": summary.polymer_classes,
                "methods": summary.methods,
                "polymers_without_groups": summary.without_groups,
            },
            "model": {
                "parameters": {
                    name: default_parameters(groups) for name, groups in zip(solvents, solvent_groups, strict=True)
                },
                "polymer_volume_fraction": VOLUME_FRACTION,
                "description": "docs/physics.md",
            },
            "monomers": {
                "sha256": _monomer_digest(families),
                "families": {family: len(members) for family, members in families.items()},
                "unused": summary.unused_monomers,
            },
            "software": {name: metadata.version(name) for name in SOFTWARE},
        },
    )


def _checked_temperatures(temperatures: Sequence[float]) -> np.ndarray:
    kelvin = check_temperatures(temperatures)
    if len(set(kelvin.tolist())) < kelvin.size:
        raise DataError(f"temperatures must differ from each other, got {kelvin.tolist()}")
    return kelvin


def _monomer_digest(families: dict[str, list[str]]) -> str:
    return hashlib.sha256(json.dumps(families, sort_keys=True).encode()).hexdigest()


def _input_digest(families: dict[str, list[str]], seed: int) -> str:
    versions = [metadata.version(name) for name in SOFTWARE]
    text = json.dumps([BUILD_VERSION, CHUNK, _monomer_digest(families), seed, versions])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
