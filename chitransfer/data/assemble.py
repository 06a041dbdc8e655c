"""Turn the three tables into arrays for training: each distinct structure once, rows as indices into the structures.

The search, full training and the evidence commands call `load_dataset`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from chitransfer.chemistry.features import (
    FeatureCache,
    FeatureRecipe,
    default_cache_folder,
    end_idle_processes,
    featurise_solvents,
)
from chitransfer.chemistry.stereo import merge_stereo_variants
from chitransfer.chemistry.vectors import Representation
from chitransfer.data.splits import assign_folds
from chitransfer.data.tables import (
    WATER,
    BadRows,
    Contradictions,
    Table,
    read_chi_table,
    read_solubility_table,
    read_stage1_table,
)
from chitransfer.data.temperatures import DEFAULT_TEMPERATURE_K
from chitransfer.errors import DataError
from chitransfer.progress import NamedProgress, name_progress


@dataclass(frozen=True)
class Rows:
    """The rows of one table as indices into the structures of a `Dataset`.

    Attributes
    ----------
    structure, solvent
        Row of `Dataset.polymer_features` and `Dataset.solvent_features`, (n_rows,) int64.
    polymer
        The polymer as an index into `Dataset.polymers`, (n_rows,) int64; every split is by polymer.
    temperature
        Kelvin, (n_rows,) float64; always 298.15 for solubility.
    value
        χ (dimensionless) or the label 0/1, (n_rows,) float64.
    table
        The table the rows came from, in the same order.
    """

    structure: np.ndarray
    solvent: np.ndarray
    polymer: np.ndarray
    temperature: np.ndarray
    value: np.ndarray
    table: Table

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True)
class Dataset:
    """All data that a search or a training run uses, held in memory once.

    Attributes
    ----------
    recipe
        How the features were made.
    polymers
        Distinct polymer identities over all tables. Polymers that differ only in stereo have the same features and
        count as one, under their name without stereo.
    n_stereo_variants
        How many identities were merged into another one in this way.
    solvents
        Distinct solvents over all tables (canonical SMILES).
    polymer_features
        (n_structures, n_polymer_features) float32, sparse: about one value in fifty is non-zero.
    solvent_features
        (n_solvents, n_solvent_features) float32, sparse; no columns when every row is in water.
    stage1, chi, solubility
        The tables' rows; ``None`` for a Stage 2 table that was left out.
    """

    recipe: FeatureRecipe
    polymers: tuple[str, ...]
    n_stereo_variants: int
    solvents: tuple[str, ...]
    polymer_features: sparse.csr_array
    solvent_features: sparse.csr_array
    stage1: Rows
    chi: Rows | None
    solubility: Rows | None

    @property
    def tables(self) -> list[Table]:
        """The available tables, in the order Stage 1, measured χ, solubility."""
        return [rows.table for rows in (self.stage1, self.chi, self.solubility) if rows is not None]

    def digest(self) -> str:
        """SHA-256 over everything training depends on: the tables' contents, polymer names and feature recipe."""
        parts = [f"{table.kind}:{table.digest}:{len(table)}" for table in self.tables]
        parts += [f"stereo variants:{self.n_stereo_variants}"] if self.n_stereo_variants else []
        return hashlib.sha256("\n".join([*parts, self.names_digest(), self.recipe.digest()]).encode()).hexdigest()

    def names_digest(self) -> str:
        """SHA-256 over the polymer names, which determine the splits; another RDKit version may give other names."""
        return hashlib.sha256("\n".join(self.polymers).encode()).hexdigest()

    def measured_polymers(self) -> np.ndarray:
        """Indices of the polymers with at least one Stage 2 row, sorted, (n_measured,) int64."""
        present = [rows.polymer for rows in (self.chi, self.solubility) if rows is not None]
        return np.unique(np.concatenate(present))

    def fold_of_polymers(
        self, n_folds: int, random_state: int, among: np.ndarray | None = None, first_size: float = 1.0
    ) -> np.ndarray:
        """Fold of every polymer for one shuffle, (n_polymers,) int64; −1 for polymers that are not split.

        The χ and solubility tables share the folds. `among` restricts them to some polymers (default: all with a
        Stage 2 row); `first_size` is the size of fold 0 relative to each of the others.
        """
        chosen = self.measured_polymers() if among is None else among
        loads = np.zeros((len(self.polymers), 3))
        if self.chi is not None:
            np.add.at(loads[:, 0], self.chi.polymer, 1.0)
        if self.solubility is not None:
            for label in (0, 1):
                np.add.at(loads[:, 1 + label], self.solubility.polymer[self.solubility.value == label], 1.0)
        folds = np.full(len(self.polymers), -1, dtype=np.int64)
        names = [self.polymers[i] for i in chosen]
        folds[chosen] = assign_folds(names, loads[chosen], n_folds, random_state, first_size)
        return folds


def load_dataset(
    stage1_source: str,
    chi_source: str | None,
    solubility_source: str | None,
    *,
    representation: Representation = "periodic",
    fingerprint_bits: int = 2048,
    fingerprint_radius: int = 2,
    on_bad_rows: BadRows = "error",
    on_contradictory_labels: Contradictions = "error",
    cache_folder: Path | None = None,
    n_jobs: int = 1,
    progress: NamedProgress | None = None,
) -> Dataset:
    """Read the tables, compute identities and features (cached), and index the rows.

    Parameters
    ----------
    stage1_source, chi_source, solubility_source
        Paths or ``builtin:`` names; one Stage 2 table may be ``None``.
    progress
        Called with (what, done, total).

    Raises
    ------
    DataError
        A table cannot be used (the message lists every problem of every table), or both Stage 2 tables are missing.
    """
    if chi_source is None and solubility_source is None:
        raise DataError("Stage 2 needs measured data: set paths.exp_chi_csv or paths.solubility_csv")
    folder = default_cache_folder() if cache_folder is None else cache_folder
    options = {"on_bad_rows": on_bad_rows, "cache_folder": folder, "n_jobs": n_jobs}
    tables: dict[str, Table] = {}
    problems: list[str] = []
    readers: list[tuple[str, str | None, Callable[..., Table], dict[str, object]]] = [
        ("Stage 1 table", stage1_source, read_stage1_table, {}),
        ("experimental χ", chi_source, read_chi_table, {}),
        ("solubility", solubility_source, read_solubility_table, {"on_contradictory_labels": on_contradictory_labels}),
    ]
    for what, source, read, extra in readers:
        if source is None:
            continue
        try:
            tables[what] = read(source, **options, **extra, progress=name_progress(progress, f"reading the {what}"))
        except DataError as error:
            problems.append(str(error))
    solubility_table = tables.get("solubility")
    if solubility_table is not None:
        problems.extend(_missing_class(solubility_table))
    if problems:
        raise DataError("\n\n".join(problems))
    return _index(list(tables.values()), representation, fingerprint_bits, fingerprint_radius, folder, n_jobs, progress)


def _missing_class(table: Table) -> list[str]:
    counts = table.rows["soluble"].value_counts()
    return [
        f"{table.source}: no row has soluble = {label}; F1, recall and AUC need both classes. Add such polymers, or "
        "set paths.solubility_csv to null to use χ only."
        for label in (0, 1)
        if counts.get(label, 0) == 0
    ]


def _index(
    tables: list[Table],
    representation: Representation,
    fingerprint_bits: int,
    fingerprint_radius: int,
    folder: Path,
    n_jobs: int,
    progress: NamedProgress | None,
) -> Dataset:
    every = pd.concat([table.rows[["SMILES", "polymer", "solvent"]] for table in tables], ignore_index=True)
    with_solvent = bool((every["solvent"] != WATER).any())
    recipe = FeatureRecipe(
        representation=representation,
        fingerprint_bits=fingerprint_bits,
        fingerprint_radius=fingerprint_radius,
        with_solvent=with_solvent,
    )
    cache = FeatureCache(folder)
    written = every["polymer" if representation == "periodic" else "SMILES"].tolist()
    polymer_features, structure = cache.polymer_features(
        written,
        recipe,
        are_identities=representation == "periodic",
        n_jobs=n_jobs,
        progress=name_progress(progress, "polymer features"),
    )
    end_idle_processes()
    names = merge_stereo_variants(every["polymer"].unique())
    polymers, polymer = np.unique(every["polymer"].map(names).to_numpy(dtype=object), return_inverse=True)
    solvents, solvent = np.unique(every["solvent"].to_numpy(dtype=object), return_inverse=True)
    if with_solvent:
        solvent_features = sparse.csr_array(featurise_solvents(solvents.tolist(), recipe))
    else:
        solvent_features = sparse.csr_array((len(solvents), 0), dtype=np.float32)
    ends = np.cumsum([len(table) for table in tables])
    rows: dict[str, Rows] = {}
    for table, end in zip(tables, ends, strict=True):
        part = slice(end - len(table), end)
        is_label = table.kind == "solubility"
        kelvin = DEFAULT_TEMPERATURE_K if is_label else table.rows["temp"].to_numpy(dtype=np.float64)
        rows[table.kind] = Rows(
            structure=structure[part],
            solvent=solvent[part],
            polymer=polymer[part],
            temperature=np.full(len(table), kelvin),
            value=table.rows["soluble" if is_label else "chi"].to_numpy(dtype=np.float64),
            table=table,
        )
    return Dataset(
        recipe=recipe,
        polymers=tuple(polymers),
        n_stereo_variants=sum(one != name for one, name in names.items()),
        solvents=tuple(solvents),
        polymer_features=polymer_features,
        solvent_features=solvent_features,
        stage1=rows["stage1"],
        chi=rows.get("chi"),
        solubility=rows.get("solubility"),
    )
