"""Ranks many candidate repeat units by P(soluble) or χ under conditions; only the best are kept in memory.

Called by `chitransfer screen`.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from chitransfer.counts import say_count
from chitransfer.errors import ConfigError, DataError
from chitransfer.files import replace_atomically, write_csv
from chitransfer.predict import IDENTITY
from chitransfer.predict_table import find_predictions

RankBy = Literal["p_soluble", "chi"]
INPUT_ROW = "input_row"
RANK = "rank"
SHOWN_REASONS = 10
MOST_REASONS = 1000
OTHER_REASONS = "for other reasons"
LONGEST_SOLVENT = 16
N_PICTURES = 24


@dataclass(frozen=True)
class Conditions:
    """Conditions a candidate must fulfil; ``None`` means no condition.

    Attributes
    ----------
    max_chi, min_chi
        At the screened temperature.
    certain
        χ conditions must hold for the whole 90 % interval, not just for the prediction.
    min_p_soluble
        0 … 1.
    in_domain
        The model must have been tested on polymers at least as dissimilar; for conditions on χ or a ranking by χ, on
        polymers with measured χ.

    Raises
    ------
    ConfigError
        No χ can fulfil both bounds, a bound is not a number, `min_p_soluble` lies outside 0 … 1, or `certain` is set
        without a condition on χ.
    """

    max_chi: float | None = None
    min_chi: float | None = None
    certain: bool = False
    min_p_soluble: float | None = None
    in_domain: bool = False

    def __post_init__(self) -> None:
        for option, bound in (("--max-chi", self.max_chi), ("--min-chi", self.min_chi)):
            if bound is not None and math.isnan(bound):
                raise ConfigError(f"{option} {bound:g}: is not a number, so no candidate can fulfil it; give a number")
        if self.min_p_soluble is not None and not 0.0 <= self.min_p_soluble <= 1.0:
            raise ConfigError(f"--min-p-soluble {self.min_p_soluble:g}: a probability is a number from 0 to 1")
        if self.certain and self.max_chi is None and self.min_chi is None:
            raise ConfigError(
                "--certain is about conditions on χ, and there is none; give --max-chi or --min-chi, or leave it out"
            )
        if self.min_chi is not None and self.max_chi is not None and self.min_chi > self.max_chi:
            raise ConfigError(
                f"--min-chi {self.min_chi:g} lies above --max-chi {self.max_chi:g}, so no candidate can fulfil both; "
                "swap them or leave one out"
            )

    def hold(self, frame: pd.DataFrame, rank_by: RankBy) -> dict[str, pd.Series]:
        """For each condition, by its option, whether the predicted rows fulfil it, (n_rows,) bool."""
        holds = {}
        low, high, certain = ("chi_low", "chi_high", " --certain") if self.certain else ("chi", "chi", "")
        if self.max_chi is not None:
            holds[f"--max-chi {self.max_chi:g}{certain}"] = frame[high] <= self.max_chi
        if self.min_chi is not None:
            holds[f"--min-chi {self.min_chi:g}{certain}"] = frame[low] >= self.min_chi
        if self.min_p_soluble is not None:
            holds[f"--min-p-soluble {self.min_p_soluble:g}"] = frame["p_soluble"] >= self.min_p_soluble
        if self.in_domain:
            column = "chi_in_domain" if self.ask_chi(rank_by) and "chi_in_domain" in frame else "in_domain"
            holds["--in-domain"] = frame[column].fillna(False).astype(bool)
        return holds

    def ask_chi(self, rank_by: RankBy) -> bool:
        """Whether χ affects the selection."""
        return rank_by == "chi" or self.max_chi is not None or self.min_chi is not None

    def select(self, frame: pd.DataFrame, rank_by: RankBy) -> pd.DataFrame:
        """The predicted rows that fulfil every condition and have a prediction."""
        keep = frame["problem"] == ""
        for held in self.hold(frame, rank_by).values():
            keep &= held
        return frame[keep]


@dataclass(frozen=True)
class Screening:
    """The best candidates, best first, and the outcome for the others.

    Attributes
    ----------
    n_rows, n_usable, n_kept
        Number of candidates read, with a prediction, and fulfilling the conditions.
    reasons
        Lines that say which rows have no prediction and why.
    n_holding
        By option, how many of the usable candidates fulfil that condition.
    """

    best: pd.DataFrame
    n_rows: int
    n_usable: int
    n_kept: int
    reasons: tuple[str, ...]
    n_holding: dict[str, int]


def screen_candidates(
    predictions: Iterator[tuple[list[list[str]], pd.DataFrame]],
    header: list[str],
    conditions: Conditions,
    *,
    rank_by: RankBy,
    top: int,
) -> Screening:
    """Keep the best `top` candidates of a stream of predictions.

    Parameters
    ----------
    predictions
        From `predict_table`, at one temperature.
    header
        The input's columns; all except SMILES, solvent and temperature, which the result has itself, are put last in
        it. A name that is already taken gets ``_2``, ``_3`` … appended; predictions in an input table of predictions
        are dropped.
    rank_by
        ``p_soluble``: highest first; ``chi``: lowest first. Ties are broken by the other, then by input order.
    top
        A candidate is a polymer in a solvent: if it appears several times, cut or spelled differently, with other
        stereochemistry or at other temperatures, only its best row within the conditions is kept.

    Raises
    ------
    DataError
        The model cannot answer: it has no solubility head or no χ interval. Or there are no candidates, or none with a
        prediction.
    """
    best: pd.DataFrame | None = None
    reasons: dict[str, list[int]] = {}
    n_holding: Counter[str] = Counter()
    n_rows = n_usable = n_kept = 0
    for rows, frame in predictions:
        _check_columns(frame, conditions, rank_by)
        frame = frame.assign(**{INPUT_ROW: range(n_rows + 1, n_rows + len(rows) + 1)})
        n_rows += len(rows)
        _add_reasons(reasons, frame.loc[frame["problem"] != "", ["problem", INPUT_ROW]])
        usable = frame[frame["problem"] == ""]
        n_usable += len(usable)
        for option, held in conditions.hold(usable, rank_by).items():
            n_holding[option] += int(held.sum())
        kept = conditions.select(usable, rank_by)
        n_kept += len(kept)
        # Temperature and solvent appear only once: with a second `temp` column the result could not be predicted again.
        own = {RANK, *frame.columns}
        of_a_ranking = {RANK, INPUT_ROW}
        written = own if of_a_ranking <= set(header) else own - of_a_ranking
        told = {"smiles", "solvent", "temp"} | find_predictions(header, written)
        names = _distinct_names(header, own)
        others = [place for place, name in enumerate(header) if name.lower() not in told]
        extra = pd.DataFrame(
            [[rows[row][place] for place in others] for row in kept.index],
            columns=[names[place] for place in others],
            index=kept.index,
            dtype=object,
        )
        found = pd.concat([kept, extra], axis=1)
        best = _best_of(found if best is None or best.empty else pd.concat([best, found]), rank_by, top)
    if best is None:
        raise DataError("--input: there are no candidates: the table has a header but no rows")
    if n_usable == 0:
        lines = [f"--input: nothing can be predicted of {say_count(n_rows, 'candidate')}", *_describe_reasons(reasons)]
        raise DataError("\n".join(lines))
    first = [INPUT_ROW, *(name for name in best.columns if name not in {INPUT_ROW, IDENTITY, "problem"})]
    ranked = best[first].reset_index(drop=True)
    ranked.insert(0, RANK, range(1, len(ranked) + 1))
    return Screening(ranked, n_rows, n_usable, n_kept, tuple(_describe_reasons(reasons)), dict(n_holding))


def _distinct_names(header: list[str], taken: set[str]) -> list[str]:
    names: list[str] = []
    for name in header:
        others = (f"{name}_{number}" for number in itertools.count(2))
        is_taken = name in taken or name in names
        names.append(next(one for one in others if one not in {*header, *names, *taken}) if is_taken else name)
    return names


def _add_reasons(reasons: dict[str, list[int]], refused: pd.DataFrame) -> None:
    """Add to each reason its number of rows and the first of them."""
    # A reason quotes its cell, so there may be as many reasons as rows.
    by_problem = refused.groupby("problem", sort=False)[INPUT_ROW].agg(["size", "min"])
    for problem, count, first in by_problem.itertuples(name=None):
        reason = str(problem) if problem in reasons or len(reasons) < MOST_REASONS else OTHER_REASONS
        reasons.setdefault(reason, [0, int(first)])[0] += int(count)


def _describe_reasons(reasons: dict[str, list[int]]) -> list[str]:
    frequent = sorted(reasons.items(), key=lambda reason: -reason[1][0])
    shown = [
        f"  {f'row {first}' if count == 1 else f'{count} rows, first {first}'}: {reason}"
        for reason, (count, first) in frequent[:SHOWN_REASONS]
    ]
    return shown + ([f"  … and {len(reasons) - SHOWN_REASONS} other reasons"] if len(reasons) > SHOWN_REASONS else [])


def _check_columns(frame: pd.DataFrame, conditions: Conditions, rank_by: RankBy) -> None:
    asks_solubility = rank_by == "p_soluble" or conditions.min_p_soluble is not None
    if asks_solubility and "p_soluble" not in frame:
        raise DataError("this model has not learned solubility; rank by chi and leave --min-p-soluble out")
    if conditions.certain and "chi_low" not in frame:
        raise DataError("this model has no χ interval (no measured χ in its training); leave --certain out")
    if conditions.in_domain and conditions.ask_chi(rank_by) and "chi_low" not in frame:
        raise DataError(
            "this model was trained on no measured χ, so the errors of its χ are unknown; leave --in-domain out, "
            "or rank by p_soluble without conditions on χ"
        )


def _best_of(frame: pd.DataFrame, rank_by: RankBy, top: int) -> pd.DataFrame:
    """The best `top` rows, each with another polymer or in another solvent."""
    keys, rising = ["chi", INPUT_ROW], [True, True]
    if "p_soluble" in frame:
        solubility_first = rank_by == "p_soluble"
        keys = ["p_soluble", "chi", INPUT_ROW] if solubility_first else ["chi", "p_soluble", INPUT_ROW]
        rising = [False, True, True] if solubility_first else [True, False, True]
    ranked = frame.sort_values(keys, ascending=rising, kind="stable")
    # Not by equal predictions: isomers may have the same features.
    return ranked.drop_duplicates([IDENTITY, "solvent"]).head(top)


def write_screening(
    screening: Screening, output: Path, picture: Path | None, chi_coverage: float | None = None, mark: str = ""
) -> None:
    """Write the ranking as CSV and, if asked for, the best `N_PICTURES` structures as a PNG.

    An empty ranking has no picture: an earlier one of the same name, which would show other candidates, is deleted.
    `chi_coverage` is the coverage of the model's χ intervals, 0 … 1, stated in the picture; `mark` is the input's byte
    order mark (`TableReader.mark`).
    """
    write_csv(output, screening.best, mark)
    if picture is None:
        return
    if len(screening.best):
        draw_structures(screening.best.head(N_PICTURES), picture, chi_coverage)
    else:
        picture.unlink(missing_ok=True)


def draw_structures(best: pd.DataFrame, path: Path, chi_coverage: float | None = None) -> None:
    """A grid of up to 50 structures with their `picture_legend` as PNG; needs no display."""
    from rdkit import Chem
    from rdkit.Chem import Draw

    molecules = [Chem.MolFromSmiles(smiles) for smiles in best["SMILES"]]
    legends = [picture_legend(row, chi_coverage) for row in best.to_dict("records")]
    options: Any = Draw.MolDrawOptions()
    # One long candidate must not shrink all others to specks; bonds have a fixed length if the structure fits.
    options.drawMolsSameScale = False
    options.fixedBondLength = 25.0
    options.legendFraction = 0.2
    content = Draw.MolsToGridImage(
        molecules,
        molsPerRow=min(4, len(molecules)),
        subImgSize=(320, 260),
        legends=legends,
        returnPNG=True,
        drawOptions=options,
    )
    replace_atomically(path, lambda temporary: temporary.write_bytes(content))


def picture_legend(row: Mapping[Hashable, Any], chi_coverage: float | None = None) -> str:
    """Text below a structure, in ASCII, because RDKit's own font has neither χ nor ±."""
    chi = f"chi {row['chi']:.2f}"
    if "chi_high" in row:
        chi += f" +/- {row['chi_high'] - row['chi']:.2f}"
        chi += "" if chi_coverage is None else f" ({100 * chi_coverage:.0f} %)"
    soluble = f"P(soluble) {row['p_soluble']:.2f}, " if "p_soluble" in row else ""
    solvent = row["solvent"]
    shown = solvent if len(solvent) <= LONGEST_SOLVENT else f"{solvent[: LONGEST_SOLVENT - 3]}..."
    domain = ""
    if not row["in_domain"]:
        domain = ", outside the domain"
    elif not row.get("chi_in_domain", True):
        domain = ", chi outside its domain"
    return f"{row['rank']}: {soluble}{chi}\nin {shown} at {row['temperature_K']:g} K{domain}"
