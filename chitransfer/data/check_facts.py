"""What is known of the three tables once they are checked: plain facts, without judgement.

Found by `data.check`; `data.check_warnings` judges them and `report.check_page` shows them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

SHOWN = 5


@dataclass(frozen=True)
class TableFacts:
    """One table by itself.

    Attributes
    ----------
    kind, source
        ``stage1``, ``chi`` or ``solubility``, and where it was read from.
    n_rows, n_rejected, n_polymers, n_solvents
        Rows used and not used; distinct polymer identities and solvents.
    n_without_stereo
        Polymers when those that differ only in stereo, in any table, count as one.
    rejected
        The first rows not used: line, value and reason.
    settings_to_skip
        With which a search leaves out the rows not used; without them it stops at those rows.
    n_duplicates, duplicate_lines
        Rows that say exactly what an earlier row says, and the lines of the first of them.
    odd_chi
        Line and χ of the rows whose χ lies outside `tables.USUAL_CHI`.
    n_repeats
        Rows that measure again what an earlier row measured (same polymer, solvent, temperature), with another value.
    value_range, temperature_range
        Smallest, median and largest; K. ``None`` where the table has no such column.
    largest_share
        Share of the rows that one polymer holds, and that polymer; ``None`` where no row is left.
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
    """Whether χ(T) = A/T + B can be told apart into A and B.

    Attributes
    ----------
    n_pairs, n_several
        Polymer–solvent pairs; those at two or more temperatures.
    median_span
        Of those, between their coldest and hottest row, K.
    residual
        Root mean square distance of the rows from their pair's own A/T + B, pairs with three temperatures or more.
    """

    n_pairs: int
    n_several: int
    median_span: float
    residual: float | None


@dataclass(frozen=True)
class NoiseFacts:
    """Spread of measurements of the same thing: no model can be expected to do better than this.

    Attributes
    ----------
    n_groups, n_rows
        Sets of rows with the same polymer, solvent and temperature, and the rows in them.
    standard_deviation
        Pooled over the sets.
    mae
        Of a perfect predictor of the mean, for normal noise: σ·√(2/π).
    """

    n_groups: int
    n_rows: int
    standard_deviation: float | None
    mae: float | None


@dataclass(frozen=True)
class CoverageFacts:
    """How far the measured polymers are from those of Stage 1.

    Attributes
    ----------
    kind
        ``chi`` or ``solubility``.
    n_polymers, n_in_stage1
        Distinct polymers, stereo variants as one, and those that are in the Stage 1 table themselves.
    similarity
        Tanimoto similarity of each polymer's periodic Morgan fingerprint (presence of bits) to its nearest neighbour in
        Stage 1, in the order of `polymers`.
    polymers
        Their identities.
    n_solvents_unseen, share_rows_unseen
        Solvents that Stage 1 has not, and the share of rows in them.
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
    """Stage 1 beside measurement, where both have the same polymer (any stereo) and solvent (nearest temperature)."""

    n_pairs: int
    n_polymers: int
    spearman: float | None
    computed: tuple[float, ...]
    measured: tuple[float, ...]


@dataclass(frozen=True)
class CheckReport:
    """Everything `check_tables` found; `to_dict` is what ``--json`` prints.

    `n_stage1` polymers are pretrained on or held out, `n_measured` are split by cross-validation, stereo variants
    counted as one in both; `stereo_variants` differ from another polymer only in stereo; `shared_polymers` counts those
    as one. `n_labelled` rows are written with isotopes. The first `n_obstacles` warnings say why a search would not
    start.
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
        """Plain values for JSON."""
        return asdict(self)
