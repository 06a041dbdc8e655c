"""Read the three tables (computed χ, experimental χ, solubility); all unusable rows are reported at once.

`data.assemble` and `training.settings` call `read_stage1_table`, `read_chi_table` and `read_solubility_table`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import pandas as pd
from rdkit import Chem

from chitransfer.chemistry.charges import read_molecule
from chitransfer.chemistry.identities import identify_polymers
from chitransfer.chemistry.repeat_units import LONGEST_SMILES
from chitransfer.data.csv_text import (
    Column,
    find_columns,
    parse_csv,
    read_number,
    read_source,
    refuse_misnamed,
)
from chitransfer.data.rejected_rows import SHOWN_ROWS, describe_rejected
from chitransfer.data.temperatures import COLDEST_K, DEFAULT_TEMPERATURE_K, looks_like_celsius, read_kelvin
from chitransfer.errors import DataError
from chitransfer.progress import Progress

WATER = "O"
LARGEST_CHI = 1000.0
# χ rarely lies outside this range.
USUAL_CHI = (-5.0, 20.0)
# The reason with which `_settle_contradictions` leaves a row out.
CONTRADICTS = "contradicts another row of the same polymer and solvent"
LABELS = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0}
_YES_OR_NO = {"yes", "no", "y", "n"}
# Column that `data.compute` adds to a table, whose other columns it keeps, including a measured χ.
UNIFAC_CHI = "chi_unifac"
# Columns that may be missing; blank cells mean water and a default temperature.
_OPTIONAL = ("solvent", "temp")
# Number of labels shown for a polymer–solvent pair that has both labels.
SHOWN_LABELS = 10

BadRows = Literal["error", "skip"]
Contradictions = Literal["error", "drop", "majority"]


@dataclass(frozen=True)
class Table:
    """A table as the program uses it, in file order.

    Attributes
    ----------
    kind
        ``stage1``, ``chi`` or ``solubility``.
    source
        The path or ``builtin:`` name it was read from.
    rows
        ``line`` (int, in the file), ``SMILES`` (as written), ``polymer`` (identity), ``solvent`` (canonical SMILES),
        then ``temp`` (K) and ``chi`` (dimensionless), or ``soluble`` (0 or 1).
    rejected
        ``line``, ``value``, ``reason`` of the rows left out.
    digest
        SHA-256 of the file's decompressed content.
    n_repeated
        Number of rows with the polymer, solvent and temperature (solubility: polymer and solvent) of an earlier row.
    blank_cells
        For each optional column that is only partly filled: the lines where it is blank, rejected lines included.
    """

    kind: str
    source: str
    rows: pd.DataFrame
    rejected: pd.DataFrame
    digest: str
    n_repeated: int
    blank_cells: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)


class ReadOptions(TypedDict, total=False):
    """Options for reading a table.

    Attributes
    ----------
    on_bad_rows
        ``error`` (default) refuses the table; ``skip`` leaves such rows out, with their reasons in `Table.rejected`.
    cache_folder
        Cache folder for polymer identities; ``None`` (default) turns caching off.
    n_jobs
        Number of processes that compute them; default 1.
    progress
        Called with the numbers of distinct polymers (done, total).
    """

    on_bad_rows: BadRows
    cache_folder: Path | None
    n_jobs: int
    progress: Progress | None


def read_stage1_table(source: str, **options: Unpack[ReadOptions]) -> Table:
    """Read computed χ: ``SMILES, chi[, temp][, solvent]``, as `read_chi_table`; refuses a `UNIFAC_CHI` column."""
    return _read("stage1", source, [Column("chi", True), Column("temp", False)], **options)


def read_chi_table(source: str, **options: Unpack[ReadOptions]) -> Table:
    """Read experimental χ: ``SMILES, chi, temp[, solvent]``.

    Parameters
    ----------
    source
        A path (``.csv`` or ``.csv.gz``) or a ``builtin:`` name.
    options
        See `ReadOptions`.

    Raises
    ------
    DataError
        The file is missing or empty, a column is missing, or (unless ``on_bad_rows="skip"``) rows cannot be used.
    """
    return _read("chi", source, [Column("chi", True), Column("temp", True)], **options)


def read_solubility_table(
    source: str, *, on_contradictory_labels: Contradictions = "error", **options: Unpack[ReadOptions]
) -> Table:
    """Read solubility: ``SMILES, soluble[, solvent]`` with labels 1 (soluble) and 0; otherwise as `read_chi_table`.

    `on_contradictory_labels` decides what happens when a polymer–solvent pair has both labels: ``error``, ``drop`` all
    of its rows, or keep the ``majority`` (a tie drops them all).
    """
    table = _read("solubility", source, [Column("soluble", True)], **options)
    return _settle_contradictions(table, on_contradictory_labels)


@lru_cache(maxsize=200_000)
def canonical_solvent(smiles: str) -> str:
    """The canonical SMILES of a solvent molecule; raises ValueError with the reason if it is not one."""
    if len(smiles) > LONGEST_SMILES:
        raise ValueError(f"the solvent is longer than {LONGEST_SMILES} characters; give one small molecule")
    # RDKit would read anything after a space as the molecule's name.
    is_one_word = len(smiles.split()) == 1
    molecule = read_molecule(smiles) if is_one_word else None
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise ValueError("the solvent is not a SMILES that RDKit can read (water is O)")
    if any(atom.GetAtomicNum() == 0 for atom in molecule.GetAtoms()):
        raise ValueError("the solvent contains a *; a solvent is a whole molecule")
    if len(Chem.GetMolFrags(molecule)) > 1:
        raise ValueError(
            "the solvent is more than one molecule or ion; mixtures and salts are not modelled: give one molecule"
        )
    if any(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms()):
        raise ValueError("the solvent has an atom with open valences; write its hydrogens, or leave its brackets out")
    for atom in molecule.GetAtoms():
        atom.SetAtomMapNum(0)
    return Chem.MolToSmiles(molecule)


def _read(
    kind: str,
    source: str,
    columns: Sequence[Column],
    *,
    on_bad_rows: BadRows = "error",
    cache_folder: Path | None = None,
    n_jobs: int = 1,
    progress: Progress | None = None,
) -> Table:
    content, name = read_source(source)
    header, records = parse_csv(content, name)
    positions = find_columns(header, [Column("SMILES", True), *columns, Column("solvent", False)], name)
    # Labels have no temperature, so an unused temperature column is not a mistake in a solubility table.
    refuse_misnamed(header, {*positions, "temp"} if kind == "solubility" else positions, name)
    if kind == "stage1":
        _refuse_measured_chi(header, name)
    smiles = [record[positions["SMILES"]].strip() for _, record in records]
    identities = identify_polymers(smiles, cache_folder=cache_folder, n_jobs=n_jobs, progress=progress)
    kept: list[tuple[object, ...]] = []
    rejected: list[tuple[int, str, str]] = []
    value_names = [column.name for column in columns]
    for (line, record), text, identity in zip(records, smiles, identities, strict=True):
        if identity.key is None:
            rejected.append((line, text or "SMILES = ''", identity.reason))
            continue
        cells = {column: record[position].strip() for column, position in positions.items()}
        try:
            kept.append((line, text, identity.key, *_read_row(cells, columns)))
        except _RowError as error:
            rejected.append((line, error.value, str(error)))
    if "temp" in positions:
        _refuse_celsius([record[positions["temp"]].strip() for _, record in records], name)
    if rejected and (on_bad_rows == "error" or not kept):
        skipping = ", or leave such rows out with --set data.on_bad_rows=skip" if kept else ""
        raise DataError(f"{describe_rejected(name, rejected, len(records))}\nCorrect them{skipping}.")
    rows = pd.DataFrame(kept, columns=["line", "SMILES", "polymer", "solvent", *value_names])
    if "temp" in value_names:
        rows = rows[["line", "SMILES", "polymer", "solvent", "temp", "chi"]]
    keys = ["polymer", "solvent"] + (["temp"] if "temp" in value_names else [])
    return Table(
        kind=kind,
        source=source,
        rows=rows,
        rejected=pd.DataFrame(rejected, columns=["line", "value", "reason"]),
        digest=hashlib.sha256(content).hexdigest(),
        n_repeated=int(rows.duplicated(keys).sum()),
        blank_cells=_find_blank_cells(records, positions),
    )


class _RowError(ValueError):
    """Why a row cannot be used, and the value that causes it."""

    def __init__(self, value: str, reason: str) -> None:
        super().__init__(reason)
        self.value = value


def _read_row(cells: Mapping[str, str], columns: Sequence[Column]) -> list[object]:
    """The solvent of a row, then the values of its columns; raises _RowError at the first unusable one."""
    try:
        values: list[object] = [canonical_solvent(cells["solvent"]) if cells.get("solvent") else WATER]
    except ValueError as error:
        raise _RowError(cells["solvent"], str(error)) from error
    for column in columns:
        text = cells.get(column.name, "")
        try:
            values.append(_read_cell(column, text))
        except ValueError as error:
            raise _RowError(f"{column.name} = {text!r}", str(error)) from error
    return values


def _refuse_measured_chi(header: Sequence[str], name: str) -> None:
    """Refuse a measured χ table to which `data.compute` has added its χ: Stage 1 would learn the measured column."""
    if UNIFAC_CHI in (cell.lower() for cell in header):
        raise DataError(
            f"{name}, line 1: contains both chi and {UNIFAC_CHI}. Stage 1 learns the column chi, which seems to be "
            f"measured if {UNIFAC_CHI} is there too: rename {UNIFAC_CHI} to chi, and rename or remove the present chi"
        )


def _find_blank_cells(
    records: Sequence[tuple[int, list[str]]], positions: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    lines = {
        column: tuple(line for line, record in records if not record[positions[column]].strip())
        for column in _OPTIONAL
        if column in positions
    }
    return {column: blank for column, blank in lines.items() if 0 < len(blank) < len(records)}


def _refuse_celsius(cells: Sequence[str], name: str) -> None:
    """Refuse a temperature column that is mostly in °C: its hottest values would otherwise pass as kelvin."""
    numbers = []
    for cell in cells:
        with suppress(ValueError):
            numbers.append(read_number(cell, "temp"))
    n_cold = sum(looks_like_celsius(number) for number in numbers)
    if n_cold > len(numbers) / 2:
        raise DataError(
            f"{name}: the column temp looks like °C as a whole: {n_cold} of {len(numbers)} values are below "
            f"{COLDEST_K:g}. Add 273.15 to every one, also to those above {COLDEST_K:g}."
        )


def _read_chi(text: str) -> float:
    value = read_number(text, "chi")
    if abs(value) > LARGEST_CHI:
        low, high = USUAL_CHI
        raise ValueError(f"|chi| is above {LARGEST_CHI:g}; chi is dimensionless and rarely leaves {low:g} to {high:g}")
    return value


def _read_label(text: str) -> int:
    label = LABELS.get(text.lower())
    if label is None:
        hint = "; write 1 for yes, 0 for no" if text.lower() in _YES_OR_NO else ""
        raise ValueError(f"soluble must be 1 (soluble) or 0 (insoluble){hint}")
    return label


_READERS: dict[str, Callable[[str], object]] = {"chi": _read_chi, "temp": read_kelvin, "soluble": _read_label}


def _read_cell(column: Column, text: str) -> object:
    if not text and not column.required:
        return DEFAULT_TEMPERATURE_K
    return _READERS[column.name](text)


def _settle_contradictions(table: Table, rule: Contradictions) -> Table:
    rows = table.rows
    pairs = rows.groupby(["polymer", "solvent"], sort=False)["soluble"]
    share = pairs.transform("mean")
    mixed = (share > 0) & (share < 1)
    if not mixed.any():
        return table
    if rule == "error":
        described = [
            _describe_contradiction(group) for _, group in rows[mixed].groupby(["polymer", "solvent"], sort=False)
        ]
        more = [f"  … and {len(described) - SHOWN_ROWS} more"] if len(described) > SHOWN_ROWS else []
        raise DataError(
            f"{table.source}: {len(described)} polymer–solvent pair(s) are called both soluble and insoluble\n"
            + "\n".join(described[:SHOWN_ROWS] + more)
            + "\nCorrect them, or set data.on_contradictory_labels to drop or majority."
        )
    keep = ~mixed if rule == "drop" else ~mixed | ((share != 0.5) & (rows["soluble"] == (share > 0.5)))
    dropped = pd.DataFrame({"line": rows.loc[~keep, "line"], "value": rows.loc[~keep, "SMILES"], "reason": CONTRADICTS})
    return replace(
        table,
        rows=rows[keep].reset_index(drop=True),
        rejected=pd.concat([table.rejected, dropped], ignore_index=True),
        n_repeated=int(rows[keep].duplicated(["polymer", "solvent"]).sum()),
    )


def _describe_contradiction(group: pd.DataFrame) -> str:
    """The lines of a pair that has both labels; of many, the first lines of each label."""
    shown = group
    if len(group) > SHOWN_LABELS:
        shown = group.groupby("soluble").head(SHOWN_LABELS // 2)
    more = f", … ({len(group)} lines)" if len(shown) < len(group) else ""
    pair = f"{group['SMILES'].iloc[0]} in {group['solvent'].iloc[0]}"
    labels = ", ".join(map(str, shown["soluble"])) + (", …" if more else "")
    return f"  lines {', '.join(map(str, shown['line']))}{more}: {pair}: labels {labels}"
