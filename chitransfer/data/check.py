"""Check what the three tables can and cannot support before spending an hour of training on them.

Called by ``chitransfer data check``; `report.check_page` turns the report into a page and a figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import spearmanr

from chitransfer.chemistry.features import FeatureCache, FeatureRecipe
from chitransfer.chemistry.similarity import tanimoto
from chitransfer.chemistry.stereo import merge_stereo_variants
from chitransfer.data.check_facts import (
    SHOWN,
    AgreementFacts,
    CheckReport,
    CoverageFacts,
    NoiseFacts,
    TableFacts,
    TemperatureFacts,
)
from chitransfer.data.check_warnings import find_obstacles, find_warnings
from chitransfer.data.rejected_rows import SHOWN_ROWS
from chitransfer.data.table_remarks import describe_blank_cells, describe_builtin_beside_own
from chitransfer.data.tables import CONTRADICTS, USUAL_CHI, BadRows, Contradictions, Table
from chitransfer.data.temperatures import DEFAULT_TEMPERATURE_K
from chitransfer.progress import NamedProgress, name_progress

SAME_TEMPERATURE_K = 0.05
# A measured χ is compared with a label only within this distance of room temperature; beyond these χ the two contradict
# each other.
NEAR_ROOM_TEMPERATURE_K = 20.0
LARGEST_CHI_OF_SOLUBLE, SMALLEST_CHI_OF_INSOLUBLE = 1.0, 0.3
# Isotope-labelled atoms in a SMILES, such as [2H] or [13CH2]; labels of chain ends, [1*], do not match.
LABELLED = r"\[\d+[A-Za-z]"


def check_tables(
    stage1: Table,
    chi: Table | None,
    solubility: Table | None,
    *,
    n_folds: int = 5,
    positive_label: int = 1,
    on_bad_rows: BadRows = "error",
    on_contradictory_labels: Contradictions = "error",
    cache_folder: Path | None = None,
    n_jobs: int = 1,
    progress: NamedProgress | None = None,
) -> CheckReport:
    """Check the three tables as training and scoring will use them.

    Parameters
    ----------
    stage1, chi, solubility
        As read by `data.tables`, preferably with ``on_bad_rows="skip"`` and ``on_contradictory_labels="drop"`` so that
        everything is reported at once; either Stage 2 table may be missing.
    n_folds
        Number of cross-validation folds, for the warning about too few polymers.
    positive_label
        The label, 1 (soluble) or 0, to which a search's F1 and recall refer.
    on_bad_rows, on_contradictory_labels
        How a search will read the tables, which decides whether it stops at rows that were left out here.
    cache_folder
        Cache for the fingerprints, which a search reuses; ``None`` turns caching off.
    progress
        Called with (what, done, total).

    Returns
    -------
    CheckReport
        Facts, and warnings in plain words.
    """
    tables = [table for table in (stage1, chi, solubility) if table is not None]
    polymers = {table.kind: set(table.rows["polymer"]) for table in tables}
    names = merge_stereo_variants(set().union(*polymers.values()))
    merged = {kind: {names[polymer] for polymer in own} for kind, own in polymers.items()}
    facts = tuple(
        _table_facts(table, len(merged[table.kind]), on_bad_rows, on_contradictory_labels) for table in tables
    )
    shared = {
        f"{first}+{second}": len(merged[first] & merged[second])
        for first, second in (("stage1", "chi"), ("stage1", "solubility"), ("chi", "solubility"))
        if first in merged and second in merged
    }
    # If all labels contradict each other, the table has no rows left.
    measured = [table for table in (chi, solubility) if table is not None and len(table)]
    report = CheckReport(
        tables=facts,
        shared_polymers=shared,
        n_stage1=len(merged["stage1"]),
        n_measured=len({names[polymer] for table in measured for polymer in table.rows["polymer"]}),
        stage1_temperatures=_temperature_facts(stage1.rows),
        chi_temperatures=None if chi is None else _temperature_facts(chi.rows),
        noise=None if chi is None else _noise_facts(chi.rows),
        soluble_share=float(solubility.rows["soluble"].mean()) if solubility is not None and len(solubility) else None,
        contradictions=_contradictions(chi, solubility),
        coverage=_coverage(stage1, measured, merged, cache_folder, n_jobs, progress),
        agreement=None if chi is None else _agreement(stage1.rows, chi.rows, names),
        stereo_variants=tuple(one for one, name in names.items() if one != name),
        n_labelled=sum(int(table.rows["SMILES"].str.contains(LABELLED).sum()) for table in tables),
    )
    obstacles = tuple(find_obstacles(report, n_folds))
    taken = (f"{line}." for line in (*describe_builtin_beside_own(tables), *describe_blank_cells(tables)))
    warnings = (*obstacles, *taken, *find_warnings(report, n_folds, positive_label))
    return replace(report, n_obstacles=len(obstacles), warnings=warnings)


def _table_facts(
    table: Table, n_without_stereo: int, on_bad_rows: BadRows, on_contradictory_labels: Contradictions
) -> TableFacts:
    rows = table.rows
    value = "soluble" if table.kind == "solubility" else "chi"
    keys = ["polymer", "solvent"] + ([] if value == "soluble" else ["temp"])
    counts = rows["polymer"].value_counts()
    exact = rows.duplicated([*keys, value])
    contradictory = table.rejected["reason"] == CONTRADICTS
    settings = []
    if on_bad_rows == "error" and not contradictory.all():
        settings.append("data.on_bad_rows=skip")
    if on_contradictory_labels == "error" and contradictory.any():
        settings.append("data.on_contradictory_labels=drop")
    return TableFacts(
        kind=table.kind,
        source=table.source,
        n_rows=len(rows),
        n_rejected=len(table.rejected),
        n_polymers=len(counts),
        n_without_stereo=n_without_stereo,
        n_solvents=int(rows["solvent"].nunique()),
        rejected=tuple(table.rejected.head(SHOWN_ROWS).itertuples(index=False, name=None)),
        settings_to_skip=tuple(settings),
        n_duplicates=int(exact.sum()),
        duplicate_lines=tuple(int(line) for line in rows.loc[exact, "line"].head(SHOWN)),
        odd_chi=() if value == "soluble" else _odd_chi(rows),
        n_repeats=int(rows[~exact].duplicated(keys).sum()),
        value_range=None if value == "soluble" else _range(rows["chi"]),
        temperature_range=None if value == "soluble" else _range(rows["temp"]),
        largest_share=(float(counts.iloc[0] / len(rows)), str(counts.index[0])) if len(rows) else None,
    )


def _odd_chi(rows: pd.DataFrame) -> tuple[tuple[int, float], ...]:
    low, high = USUAL_CHI
    odd = rows[(rows["chi"] <= low) | (rows["chi"] >= high)]
    return tuple((int(line), float(chi)) for line, chi in zip(odd["line"], odd["chi"], strict=True))


def _range(values: pd.Series) -> tuple[float, float, float]:
    return float(values.min()), float(values.median()), float(values.max())


def _temperature_facts(rows: pd.DataFrame) -> TemperatureFacts:
    """Temperature spans of the pairs, and the scatter of rows around their pair's least-squares line in 1/T."""
    pairs = rows.groupby(["polymer", "solvent"], sort=False)
    span = pairs["temp"].max() - pairs["temp"].min()
    several = span[span > SAME_TEMPERATURE_K]
    fitted = rows[pairs["temp"].transform("nunique") >= 3]
    terms = fitted[["polymer", "solvent"]].assign(x=1.0 / fitted["temp"], y=fitted["chi"])
    by_pair = terms.groupby(["polymer", "solvent"], sort=False)
    x, y = (terms[name] - by_pair[name].transform("mean") for name in ("x", "y"))
    sums = terms.assign(xx=x * x, xy=x * y).groupby(["polymer", "solvent"], sort=False)[["xx", "xy"]].transform("sum")
    squares, freedom = float(((y - sums["xy"] / sums["xx"] * x) ** 2).sum()), len(terms) - 2 * by_pair.ngroups
    return TemperatureFacts(
        n_pairs=len(span),
        n_several=len(several),
        median_span=float(several.median()) if len(several) else 0.0,
        residual=math.sqrt(squares / freedom) if freedom else None,
    )


def _noise_facts(rows: pd.DataFrame) -> NoiseFacts:
    """Pooled variance within sets of rows that measure the same quantity; exact copies count as one measurement."""
    distinct = rows.assign(at=(rows["temp"] / SAME_TEMPERATURE_K).round()).drop_duplicates(
        ["polymer", "solvent", "at", "chi"]
    )
    squares, freedom, n_groups, n_rows = 0.0, 0, 0, 0
    for _, group in distinct.groupby(["polymer", "solvent", "at"], sort=False)["chi"]:
        if len(group) > 1:
            squares += float(((group - group.mean()) ** 2).sum())
            freedom += len(group) - 1
            n_groups, n_rows = n_groups + 1, n_rows + len(group)
    deviation = math.sqrt(squares / freedom) if freedom else None
    return NoiseFacts(n_groups, n_rows, deviation, None if deviation is None else deviation * math.sqrt(2 / math.pi))


def _contradictions(chi: Table | None, solubility: Table | None) -> tuple[str, ...]:
    """Pairs labelled both soluble and insoluble, and labels that contradict a measured χ near room temperature."""
    found: list[str] = []
    if solubility is not None:
        against = solubility.rejected[solubility.rejected["reason"] == CONTRADICTS]
        found += [
            f"solubility line {line}: {value} {reason}"
            for line, value, reason in against[["line", "value", "reason"]].to_numpy()
        ]
    if chi is None or solubility is None:
        return tuple(found)
    near = chi.rows[(chi.rows["temp"] - DEFAULT_TEMPERATURE_K).abs() <= NEAR_ROOM_TEMPERATURE_K]
    mean_chi = near.groupby(["polymer", "solvent"])["chi"].mean().rename("mean_chi")
    both = solubility.rows.join(mean_chi, on=["polymer", "solvent"], how="inner")
    is_soluble, mean = both["soluble"] == 1, both["mean_chi"]
    odd = both[(is_soluble & (mean > LARGEST_CHI_OF_SOLUBLE)) | (~is_soluble & (mean < SMALLEST_CHI_OF_INSOLUBLE))]
    for line, unit, solvent, label, value in odd[["line", "SMILES", "solvent", "soluble", "mean_chi"]].to_numpy():
        word = "soluble" if label else "insoluble"
        found.append(f"solubility line {line}: {unit} in {solvent} is called {word}, but its measured χ is {value:.2f}")
    return tuple(found)


def _coverage(
    stage1: Table,
    measured: Sequence[Table],
    merged: Mapping[str, set[str]],
    cache_folder: Path | None,
    n_jobs: int,
    progress: NamedProgress | None,
) -> tuple[CoverageFacts, ...]:
    cache, recipe = FeatureCache(cache_folder), FeatureRecipe()

    def bits(polymers: Sequence[str], what: str) -> sparse.csr_array:
        features, _ = cache.polymer_features(
            polymers,
            recipe,
            are_identities=True,
            n_jobs=n_jobs,
            progress=name_progress(progress, what),
        )
        return sparse.csr_array(features[:, : recipe.fingerprint_bits] > 0).astype(np.float32)

    known_bits = bits(sorted(merged["stage1"]), "fingerprints of the Stage 1 polymers")
    facts = []
    for table in measured:
        polymers = sorted(merged[table.kind])
        unseen = ~table.rows["solvent"].isin(set(stage1.rows["solvent"]))
        facts.append(
            CoverageFacts(
                kind=table.kind,
                n_polymers=len(polymers),
                n_in_stage1=len(merged[table.kind] & merged["stage1"]),
                similarity=tuple(
                    float(value) for value in nearest_similarity(bits(polymers, "measured polymers"), known_bits)
                ),
                polymers=tuple(polymers),
                n_solvents_unseen=int(table.rows.loc[unseen, "solvent"].nunique()),
                share_rows_unseen=float(unseen.mean()),
            )
        )
    return tuple(facts)


def nearest_similarity(queries: sparse.csr_array, known: sparse.csr_array, chunk: int = 4096) -> np.ndarray:
    """Largest Tanimoto similarity of each query to any known fingerprint.

    Parameters
    ----------
    queries, known
        (n_queries, n_bits) and (n_known, n_bits) float32 of zeros and ones.

    Returns
    -------
    numpy.ndarray
        (n_queries,) in 0 … 1.
    """
    best = np.zeros(queries.shape[0])
    for start in range(0, known.shape[0], chunk):
        best = np.maximum(best, tanimoto(queries, known[start : start + chunk]).max(axis=1))
    return best


def _agreement(stage1: pd.DataFrame, chi: pd.DataFrame, names: Mapping[str, str]) -> AgreementFacts:
    """Compare each measured row with the Stage 1 row of its polymer and solvent that is nearest in temperature.

    Stereo variants, which share a name in `names`, are paired; at equal temperature distance the identical polymer is
    preferred.
    """
    measured, computed_rows = (rows.assign(name=rows["polymer"].map(names)) for rows in (chi, stage1))
    both = measured.reset_index(drop=True).rename_axis("row").reset_index()
    joined = both.merge(computed_rows, on=["name", "solvent"], suffixes=("", "_computed"))
    if joined.empty:
        return AgreementFacts(0, 0, None, (), ())
    joined["apart"] = (joined["temp"] - joined["temp_computed"]).abs()
    joined["is_variant"] = joined["polymer"] != joined["polymer_computed"]
    nearest = joined.sort_values(["row", "apart", "is_variant"], kind="stable").drop_duplicates("row")
    computed, values = nearest["chi_computed"], nearest["chi"]
    varied = computed.nunique() > 1 and values.nunique() > 1 and len(nearest) > 2
    return AgreementFacts(
        n_pairs=len(nearest),
        n_polymers=int(nearest["name"].nunique()),
        spearman=float(spearmanr(computed, values).statistic) if varied else None,
        computed=tuple(float(value) for value in computed),
        measured=tuple(float(value) for value in values),
    )
