"""Plain facts about the three tables, without judgement.

`data.check` computes them, `data.check_warnings` judges them and `report.check_page` shows them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

SHOWN = 5


@dataclass(frozen=True)
class TableFacts:
    """Facts about a single table.

    Attributes
    ----------
    kind, source
        ``stage1``, ``chi`` or ``solubility``, and where the table was read from.
    n_rows, n_rejected, n_polymers, n_solvents
        Rows used and not used; distinct polymer identities and solvents.
    n_without_stereo
        Number of polymers if those that differ only in stereo, in any table, count as one.
    rejected
        The first rows not used: line, value and reason.
    settings_to_skip
        Settings that make a search leave out the unused rows; without them it stops at those rows.
    n_duplicates, duplicate_lines
        Number of rows identical to an earlier row, and the line numbers of the first of them.
    odd_chi
        Line and χ of the rows whose χ lies outside `tables.USUAL_CHI`.
    n_repeats
        Rows with the polymer, solvent and temperature of an earlier row but another value.
    value_range, temperature_range
        Smallest, median and largest value (temperatures in K); ``None`` if the table has no such column.
    largest_share
        The largest share of rows held by one polymer, and that polymer; ``None`` if no row is left.
    """

    kind: str
    source: str
    n_rows: int
    n_rejected: int
    n_polymers: int
    n_without_stereo: int
    n_solvents: int
    rejected: tuple[tuple[int, str, str], ...]
    settings_to_skip: tuple[str, ...]
    n_duplicates: int
    duplicate_lines: tuple[int, ...]
    odd_chi: tuple[tuple[int, float], ...]
    n_repeats: int
    value_range: tuple[float, float, float] | None
    temperature_range: tuple[float, float, float] | None
    largest_share: tuple[float, str] | None


@dataclass(frozen=True)
class TemperatureFacts:
    """Whether the data can separate A from B in χ(T) = A/T + B.

    Attributes
    ----------
    n_pairs, n_several
        Number of polymer–solvent pairs, and of those with two or more temperatures.
    median_span
        Median span between the coldest and the hottest row of the latter, K.
    residual
        Root-mean-square residual of the rows from their own pair's A/T + B, over pairs with at least three
        temperatures.
    """

    n_pairs: int
    n_several: int
    median_span: float
    residual: float | None


@dataclass(frozen=True)
class NoiseFacts:
    """Spread of repeated measurements: no model can be expected to do better than this.

    Attributes
    ----------
    n_groups, n_rows
        Number of sets of rows with the same polymer, solvent and temperature, and of the rows in them.
    standard_deviation
        Standard deviation pooled over the sets.
    mae
        Mean absolute error of a perfect predictor of the mean, assuming normal noise: σ·√(2/π).
    """

    n_groups: int
    n_rows: int
    standard_deviation: float | None
    mae: float | None


@dataclass(frozen=True)
class CoverageFacts:
    """How far the measured polymers are from the Stage 1 polymers.

    Attributes
    ----------
    kind
        ``chi`` or ``solubility``.
    n_polymers, n_in_stage1
        Number of distinct polymers (stereo variants count as one), and of those that are in the Stage 1 table.
    similarity
        Tanimoto similarity of each polymer's periodic Morgan fingerprint (presence of bits) to its nearest neighbour in
        Stage 1, in the order of `polymers`.
    polymers
        Identities of the polymers.
    n_solvents_unseen, share_rows_unseen
        Number of solvents absent from Stage 1, and the share of rows in them.
    """

    kind: str
    n_polymers: int
    n_in_stage1: int
    similarity: tuple[float, ...]
    polymers: tuple[str, ...]
    n_solvents_unseen: int
    share_rows_unseen: float

    @property
    def farthest(self) -> list[tuple[str, float]]:
        """The polymers with the lowest similarity."""
        order = np.argsort(self.similarity)[:SHOWN]
        return [(self.polymers[i], self.similarity[i]) for i in order]


@dataclass(frozen=True)
class AgreementFacts:
    """Stage 1 against measured values of the same polymer (any stereo) and solvent, at the nearest temperature."""

    n_pairs: int
    n_polymers: int
    spearman: float | None
    computed: tuple[float, ...]
    measured: tuple[float, ...]


@dataclass(frozen=True)
class CheckReport:
    """Everything `check_tables` found; ``--json`` prints `to_dict`.

    `n_stage1` polymers are used for pretraining or held out, and `n_measured` are split by cross-validation; both, and
    `shared_polymers`, count stereo variants as one. `stereo_variants` differ from another polymer only in stereo.
    `n_labelled` rows contain isotope labels. The first `n_obstacles` warnings say why a search would not start.
    """

    tables: tuple[TableFacts, ...]
    shared_polymers: dict[str, int]
    n_stage1: int
    n_measured: int
    stage1_temperatures: TemperatureFacts
    chi_temperatures: TemperatureFacts | None
    noise: NoiseFacts | None
    soluble_share: float | None
    contradictions: tuple[str, ...]
    coverage: tuple[CoverageFacts, ...]
    agreement: AgreementFacts | None
    stereo_variants: tuple[str, ...]
    n_labelled: int
    n_obstacles: int = 0
    warnings: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return asdict(self)
