"""Convert public tables as published into the project's tables, correcting known errors.

Called by `data.sources`, which fetches the files; nothing here uses the network or writes a file.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from rdkit import Chem, rdBase

from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.chemistry.repeat_units import PolymerError
from chitransfer.data.corrections import Correction, corrections_of
from chitransfer.data.polymerisation import RepeatUnit, polymerise, vinyl_repeat_unit
from chitransfer.data.structure_names import repeat_unit_from_name
from chitransfer.errors import DataError

CELSIUS_ZERO_K = 273.15
CHI_DECIMALS = 6
POLYSOL_COLUMNS = ("polymer", "mono_name", "mono_smiles", "solvent", "solvent_smiles", "solvent_characteristic")
MTL_CHI_COLUMNS = ("ps_pair", "ps_pair_nonCyclic", "temp", "chi")
MTL_COSMO_COLUMNS = ("ps_pair", "temp", "chi")
POLYVERSE_COLUMNS = ("Polymer_SMILES", "Solvent_SMILES", "chi", "Reference")
POLYVERSE_TEMPERATURES = ("temperature [K]", "temperature")


@dataclass
class Converted:
    """A public table in the project's form.

    Attributes
    ----------
    table
        ``SMILES,chi,temp,solvent`` or ``SMILES,soluble,solvent`` first, then any columns that identify a row's origin.
    left_out
        ``line,entry,value,reason`` of the published rows that are not in the table.
    applied
        Each correction that applied to at least one row, with the number of rows.
    n_published
        Number of rows in the published file.
    n_duplicates
        Number of rows left out because an earlier row is the same.
    """

    table: pd.DataFrame
    left_out: pd.DataFrame
    applied: list[tuple[Correction, int]]
    n_published: int
    n_duplicates: int = 0


@dataclass
class _Ledger:
    """Record of left-out rows and applied corrections during a conversion."""

    left: list[tuple[int, str, str, str]] = field(default_factory=list)
    met: dict[Correction, int] = field(default_factory=dict)

    def leave(self, line: int, entry: str, value: str, reason: str) -> None:
        self.left.append((line, entry, value, reason))

    def meet(self, correction: Correction) -> None:
        self.met[correction] = self.met.get(correction, 0) + 1

    def finish(self, table: pd.DataFrame, n_published: int, n_duplicates: int = 0) -> Converted:
        left = pd.DataFrame(sorted(self.left), columns=["line", "entry", "value", "reason"])
        return Converted(table.reset_index(drop=True), left, list(self.met.items()), n_published, n_duplicates)


def convert_mtl_chi(files: Mapping[str, bytes]) -> Converted:
    """Experimental χ of MTL_ChiParameter (°C) to ``SMILES,chi,temp,solvent`` (K); `files` holds ``data_Chi.csv``."""
    records = _read_csv(files["data_Chi.csv"], "data_Chi.csv", ",", MTL_CHI_COLUMNS)
    return _convert_pairs(
        "mtl-chi", "data_Chi.csv", [(line, row["ps_pair_nonCyclic"], row["temp"], row["chi"]) for line, row in records]
    )


def convert_mtl_cosmo(files: Mapping[str, bytes]) -> Converted:
    """χ computed by COSMO-RS for the same pairs; the repeat unit of each ring is looked up in ``data_Chi.csv``."""
    units = {
        row["ps_pair"]: row["ps_pair_nonCyclic"]
        for _, row in _read_csv(files["data_Chi.csv"], "data_Chi.csv", ",", MTL_CHI_COLUMNS)
    }
    records = _read_csv(files["data_COSMO.csv"], "data_COSMO.csv", ",", MTL_COSMO_COLUMNS)
    return _convert_pairs(
        "mtl-cosmo-rs",
        "data_COSMO.csv",
        [(line, units.get(row["ps_pair"], ""), row["temp"], row["chi"]) for line, row in records],
    )


def convert_polyverse_chi(files: Mapping[str, bytes]) -> Converted:
    """Experimental χ of polyVERSE to ``SMILES,chi,temp,solvent,source``; its temperatures are in kelvin.

    Raises
    ------
    DataError
        The temperature column or another column is missing.
    """
    name = "chi_parameter.csv"
    records = _read_csv(files[name], name, ",", POLYVERSE_COLUMNS)
    column = next((title for title in POLYVERSE_TEMPERATURES if title in records[0][1]), None)
    if column is None:
        raise DataError(_changed_format(name, f"no column {' or '.join(POLYVERSE_TEMPERATURES)}"))
    ledger, rows = _Ledger(), []
    structures = {c.given: c for c in corrections_of("polyverse-chi") if c.kind == "unit"}
    for line, row in records:
        unit = _canonical(row["Polymer_SMILES"])
        solvent, chi, temperature = _canonical(row["Solvent_SMILES"]), _number(row["chi"]), _number(row[column])
        if unit is not None and unit in structures:
            ledger.meet(structures[unit])
            unit = structures[unit].corrected
        problem = _why_not_a_unit(unit)
        if problem is None and solvent is None:
            problem = "the solvent is not a readable SMILES"
        if problem is None and (chi is None or temperature is None):
            problem = "chi or temperature is not a number"
        if problem is not None:
            ledger.leave(line, row.get("Polymer", row["Polymer_SMILES"]), row["Polymer_SMILES"], problem)
            continue
        rows.append((unit, chi, temperature, solvent, row["Reference"].strip()))
    return ledger.finish(pd.DataFrame(rows, columns=["SMILES", "chi", "temp", "solvent", "source"]), len(records))


def convert_polysol_vinyl(files: Mapping[str, bytes]) -> Converted:
    """The widely used vinyl subset of PolySol: one ``CH2=CXY`` per monomer, nothing corrected.

    Kept because published comparisons use it; `convert_polysol` gives more polymers and fewer errors.
    """
    name, records = _polysol_records(files)
    ledger, rows, n_duplicates = _Ledger(), [], 0
    seen: set[tuple[str, str, int]] = set()
    for line, row in records:
        unit = vinyl_repeat_unit(row["mono_smiles"])
        if unit is None:
            ledger.leave(line, row["polymer"], row["mono_smiles"], "the monomer does not have exactly one vinyl C=C")
            continue
        key = (unit, _solvent_of(name, line, row["solvent_smiles"]), _label(name, line, row["solvent_characteristic"]))
        if key in seen:
            n_duplicates += 1
            continue
        seen.add(key)
        rows.append((*key, row["polymer"]))
    table = pd.DataFrame(sorted(rows), columns=["SMILES", "solvent", "soluble", "name"])
    return ledger.finish(table, len(records), n_duplicates)


def convert_polysol(files: Mapping[str, bytes]) -> Converted:
    """PolySol's homopolymers to ``SMILES,soluble,solvent,name,rule``, with repeat units from both names and monomers.

    The repeat unit comes from the first of these that applies: the list of corrections; a structure-based name; the
    polymerisation rules for the monomer. Monomers with more than one possible outcome are left out with the reason, and
    so are polymer–solvent pairs labelled both soluble and insoluble.
    """
    name, records = _polysol_records(files)
    known = corrections_of("polysol")
    by_entry = {c.entry: c for c in known if c.kind in ("unit", "drop")}
    by_row = {(c.entry, c.solvent): c for c in known if c.kind == "row"}
    by_solvent = {c.solvent: c for c in known if c.kind == "solvent"}
    ledger, rows = _Ledger(), []
    units: dict[tuple[str, str], RepeatUnit | str] = {}
    for line, row in records:
        entry, monomer = row["polymer"], row["mono_smiles"]
        solvent, label = (
            _solvent_of(name, line, row["solvent_smiles"]),
            _label(name, line, row["solvent_characteristic"]),
        )
        correction = by_row.get((entry, row["solvent"]))
        if correction is not None:
            ledger.meet(correction)
            ledger.leave(line, entry, row["solvent"], correction.reason)
            continue
        correction = by_entry.get(entry)
        if correction is not None:
            ledger.meet(correction)
            if correction.kind == "drop":
                ledger.leave(line, entry, monomer, correction.reason)
                continue
            unit: RepeatUnit | str = RepeatUnit(correction.corrected, "correction")
        else:
            if (entry, monomer) not in units:
                units[entry, monomer] = _unit_of(row["mono_name"], monomer)
            unit = units[entry, monomer]
        if isinstance(unit, str):
            ledger.leave(line, entry, monomer, unit)
            continue
        correction = by_solvent.get(row["solvent"])
        if correction is not None and _canonical(correction.given) == solvent:
            ledger.meet(correction)
            if not correction.corrected:
                ledger.leave(line, entry, row["solvent"], f"solvent: {correction.reason}")
                continue
            solvent = str(_canonical(correction.corrected))
        rows.append((line, unit.smiles, label, solvent, entry, unit.rule))
    table = pd.DataFrame(rows, columns=["line", "SMILES", "soluble", "solvent", "name", "rule"])
    return _without_repeats(table, ledger, len(records))


def _unit_of(name: str, monomer: str) -> RepeatUnit | str:
    named = repeat_unit_from_name(name)
    return RepeatUnit(named, "structure name") if named else polymerise(monomer)


def _without_repeats(table: pd.DataFrame, ledger: _Ledger, n_published: int) -> Converted:
    """Keep the first row of each polymer and solvent; leave out pairs with both labels."""
    table["polymer"] = [polymer_identity(smiles) for smiles in table["SMILES"]]
    share = table.groupby(["polymer", "solvent"])["soluble"].transform("mean")
    mixed = (share > 0) & (share < 1)
    for line, entry, solvent in table.loc[mixed, ["line", "name", "solvent"]].to_numpy():
        ledger.leave(
            int(line),
            str(entry),
            str(solvent),
            "another row of the same polymer and solvent says the opposite",
        )
    clean = table[~mixed]
    repeated = clean.duplicated(["polymer", "solvent"])
    kept = clean[~repeated].copy()
    # Use one SMILES per polymer, so that a reader of the table sees at once which rows belong together.
    kept["SMILES"] = kept.groupby("polymer")["SMILES"].transform("first")
    return ledger.finish(kept[["SMILES", "soluble", "solvent", "name", "rule"]], n_published, int(repeated.sum()))


def _convert_pairs(table: str, name: str, pairs: Sequence[tuple[int, str, str, str]]) -> Converted:
    """Convert rows of "polymer_solvent", °C, χ to the project's columns; an unreadable cell means a changed file."""
    ledger, rows = _Ledger(), []
    for line, pair, celsius, chi_text in pairs:
        polymer, _, solvent_text = pair.partition("_")
        unit, solvent = _canonical(polymer), _canonical(solvent_text)
        temperature, chi = _number(celsius), _number(chi_text)
        if unit is None or solvent is None or temperature is None or chi is None:
            raise DataError(_changed_format(name, f"line {line} cannot be read: {pair!r}, {celsius!r}, {chi_text!r}"))
        used = unit
        for correction in corrections_of(table):
            if correction.given == unit:
                ledger.meet(correction)
                used = correction.corrected or used
        rows.append((used, round(chi, CHI_DECIMALS), round(temperature + CELSIUS_ZERO_K, 2), solvent))
    return ledger.finish(pd.DataFrame(rows, columns=["SMILES", "chi", "temp", "solvent"]), len(pairs))


def _polysol_records(files: Mapping[str, bytes]) -> tuple[str, list[tuple[int, dict[str, str]]]]:
    name = "df_atactic_NOPE_nr_norad_nomol.csv"
    return name, _read_csv(files[name], name, ";", POLYSOL_COLUMNS)


def _read_csv(content: bytes, name: str, separator: str, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line, record) pairs of a published file whose header must contain `columns`."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(_changed_format(name, "it is not UTF-8 text")) from error
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    missing = [column for column in columns if column not in (reader.fieldnames or [])]
    if missing:
        raise DataError(
            _changed_format(name, f"column(s) {', '.join(missing)} missing; found {', '.join(reader.fieldnames or [])}")
        )
    records = []
    for record in reader:
        if None in record or any(value is None for value in record.values()):
            raise DataError(_changed_format(name, f"line {reader.line_num} does not have as many cells as the header"))
        records.append((reader.line_num, record))
    if not records:
        raise DataError(_changed_format(name, "it has no rows"))
    return records


def _changed_format(name: str, what: str) -> str:
    return (
        f"{name}: not in the format this version knows ({what}). The pinned file has other contents: fetch it again, "
        "or update chitransfer if the source has moved on."
    )


def _canonical(smiles: str) -> str | None:
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles) if smiles.strip() else None
    return None if molecule is None else str(Chem.MolToSmiles(molecule))


def _why_not_a_unit(smiles: str | None) -> str | None:
    if smiles is None:
        return "the repeat unit is not a readable SMILES"
    try:
        polymer_identity(smiles)
    except PolymerError as error:
        return str(error)
    return None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _solvent_of(name: str, line: int, smiles: str) -> str:
    solvent = _canonical(smiles)
    if solvent is None:
        raise DataError(_changed_format(name, f"line {line}: solvent {smiles!r} is not a readable SMILES"))
    return solvent


def _label(name: str, line: int, text: str) -> int:
    if text not in ("0", "1"):
        raise DataError(_changed_format(name, f"line {line}: solubility {text!r} is neither 1 nor 0"))
    return int(text)
