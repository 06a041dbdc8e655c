"""From SMILES to χ(T) and P(soluble), each with its interval, and whether to trust them.

`Predictor` is the Python interface; `chitransfer predict` and `screen` are built on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from chitransfer.chemistry.features import featurise_polymers, featurise_solvents
from chitransfer.chemistry.identities import identify_polymers
from chitransfer.chemistry.stereo import without_stereo
from chitransfer.data.tables import WATER, canonical_solvent
from chitransfer.data.temperatures import check_temperatures, name_temperature
from chitransfer.errors import DataError
from chitransfer.interrupts import restore_interrupts
from chitransfer.model.calibration import COVERAGE
from chitransfer.model.checkpoint import TrainedModel
from chitransfer.model.network import chi_at, inverse_temperature, inverse_temperature_line

# Number of structures cached between calls: a file often lists a polymer with many solvents.
REMEMBERED = 4096
# The last bits of sums depend on the batch size; rounding makes the results of equal polymers identical.
DECIMALS = 8
# Computed in single precision, whose further digits are meaningless.
SIMILARITY_DECIMALS = 6
PAIRS_AT_ONCE = 1024
# Column of `Predictor.predict_rows` that identifies polymers; it is never written to a table.
IDENTITY = "identity_without_stereo"


class _Row(NamedTuple):
    """A row as read: its texts, why it cannot be used (or ""), the structure to featurise, and its identity."""

    smiles: str
    written_solvent: str
    problem: str
    structure: str
    solvent: str
    identity: str


@dataclass(frozen=True)
class _Pairs:
    """Predictions for distinct polymer–solvent pairs, before temperature enters.

    Attributes
    ----------
    coefficients
        (n_members, n_pairs, 2) of standardised χ(T).
    logits
        (n_members, n_pairs) for the positive class.
    nearest, similarity
        The nearest training polymer's index and Tanimoto similarity, (n_pairs,).
    chi_similarity
        Similarity to the nearest polymer with measured χ, (n_pairs,); NaN if the model does not record those.
    """

    coefficients: Tensor
    logits: np.ndarray
    nearest: np.ndarray
    similarity: np.ndarray
    chi_similarity: np.ndarray


class Predictor:
    """A fine-tuned model, ready to predict.

    >>> predictor = Predictor.load("results/multitask_…/checkpoints/best_model.pt")  # doctest: +SKIP
    >>> predictor.predict(["*CCO*", "*CC(*)c1ccccc1"], temperature=[298.15, 350.0])  # doctest: +SKIP
    """

    def __init__(self, model: TrainedModel) -> None:
        self.model = model
        self._groups = [group.to(torch.float64) for group in model.groups]
        self._known_features: dict[str, np.ndarray] = {}
        self._known_solvents: dict[str, np.ndarray] = {}

    @classmethod
    def load(cls, path: str | Path) -> Predictor:
        """Read a model written by `chitransfer finetune`; raises CheckpointError when it cannot be used."""
        return cls(TrainedModel.load(Path(path)))

    @property
    def label_rule(self) -> str:
        """What ``soluble`` = 1 means, in words; empty for a model without P(soluble)."""
        if self.model.probability is None:
            return ""
        if self.model.positive_label == 0:
            return f"1 where p_soluble is above {1.0 - self.model.threshold:.4g}"
        return f"1 where p_soluble is {self.model.threshold:.4g} or more"

    @property
    def interval_note(self) -> str:
        """The coverage of χ intervals in words, if it is less than 90 %; else empty."""
        interval = self.model.chi_interval
        if interval is None or interval.coverage >= COVERAGE:
            return ""
        return f"χ intervals promise {interval.coverage:.0%}, not {COVERAGE:.0%}: too few polymers with measured χ"

    def predict(
        self,
        smiles: str | Sequence[str],
        temperature: float | Sequence[float] | None = None,
        solvent: str | Sequence[str] = WATER,
        *,
        n_jobs: int = 1,
    ) -> pd.DataFrame:
        """Predict χ(T) and solubility.

        Parameters
        ----------
        smiles
            One repeat unit or several, with two ``*`` each. Values that are not text have no prediction; ``None`` and
            NaN, which pandas reads from empty cells, count as empty text.
        temperature
            Kelvin, 150 … 1000; one or several, each applied to every polymer. Default: the model's ``T_ref_K``, 298.15
            unless configured otherwise.
        solvent
            One SMILES for all, or one per polymer; empty is water, as in a table.
        n_jobs
            Number of processes that compute features, for more than a few hundred polymers.

        Returns
        -------
        pandas.DataFrame
            One row per input, in order. ``temperature_K``, ``chi``, ``chi_low``, ``chi_high`` (90 % interval, or less:
            `interval_note`) for one temperature; ``chi_300K``, ``chi_300K_low``, ``chi_300K_high`` … for several.
            ``A_K`` and ``B`` of χ(T) = A/T + B; ``p_soluble`` with ``p_soluble_low``, ``p_soluble_high``, and the label
            ``soluble`` (1/0) at the model's threshold (`label_rule`); ``nearest_polymer``, ``similarity`` (0 … 1),
            ``in_domain``, for χ ``chi_in_domain``, and, if not in it, ``domain_note``; ``problem`` says why a row has
            no prediction.

        Raises
        ------
        DataError
            A temperature is not a number or lies outside 150 … 1000 K, the temperatures form a table, or the numbers of
            solvents and polymers differ.
        """
        texts = list(smiles) if _are_several(smiles) else [smiles]
        solvents = list(solvent) if _are_several(solvent) else [solvent] * len(texts)
        if len(solvents) != len(texts):
            raise DataError(
                f"give one solvent for all or one a polymer: {len(texts)} polymers, {len(solvents)} solvents"
            )
        if temperature is None:
            temperature = self.model.scales.T_ref
        given = _read_temperatures(temperature)
        chosen = check_temperatures(np.atleast_1d(given))
        table = np.tile(chosen, (len(texts), 1))
        several = given.ndim > 0
        names = [f"chi_{name_temperature(value)}K" for value in chosen] if several else ["chi"]
        frame = self.predict_rows(texts, solvents, table, names, n_jobs=n_jobs).drop(columns=IDENTITY)
        if not several:
            frame.insert(2, "temperature_K", chosen[0])
        return frame

    def predict_rows(
        self,
        smiles: Sequence[object],
        solvents: Sequence[object],
        temperatures: np.ndarray,
        names: Sequence[str],
        *,
        n_jobs: int = 1,
    ) -> pd.DataFrame:
        """As `predict`, with each row's own temperatures (n_rows, n_temperatures) and the names of their columns.

        A temperature of NaN gives no χ there and leaves the row's ``in_domain`` undecided. The additional column
        `IDENTITY` is the same for all spellings and cuts of a polymer, regardless of stereochemistry, and empty for
        unusable rows.
        """
        n_rows = len(smiles)
        rows = self._read_rows(smiles, solvents, n_jobs)
        structures, canonical = [row.structure for row in rows], [row.solvent for row in rows]
        problem = self._featurise(structures, canonical, [row.problem for row in rows], n_jobs)
        good = np.array([not reason for reason in problem], dtype=bool)
        keys = [(structures[row], canonical[row]) for row in np.flatnonzero(good)]
        distinct = {pair: position for position, pair in enumerate(dict.fromkeys(keys))}
        pair_of_row = np.array([distinct[pair] for pair in keys], dtype=np.int64)
        pairs = self._predict_pairs(list(distinct))
        columns: dict[str, object] = {
            "SMILES": [row.smiles for row in rows],
            "solvent": [row.solvent or row.written_solvent for row in rows],
            IDENTITY: [row.identity for row in rows],
        }
        values = self._chi_columns(pairs, pair_of_row, temperatures[good], names)
        values |= self._solubility_columns(pairs, pair_of_row)
        for name, value in values.items():
            whole = np.full(n_rows, np.nan)
            whole[good] = np.round(value, DECIMALS)
            columns[name] = pd.array(whole, dtype="Int64") if name == "soluble" else whole
        columns |= self._domain_columns(pairs, pair_of_row, good, canonical, temperatures)
        columns["problem"] = problem
        return pd.DataFrame(columns)

    def _read_rows(self, smiles: Sequence[object], solvents: Sequence[object], n_jobs: int) -> list[_Row]:
        recipe = self.model.scales.recipe
        texts = [cell if isinstance(cell, str) else "" for cell in smiles]
        rows = []
        for unit, text, medium, found in zip(
            smiles, texts, solvents, identify_polymers(texts, n_jobs=n_jobs), strict=True
        ):
            reason = _refuse_other_than_text(unit, "the repeat unit") or found.reason
            reason = reason or _refuse_other_than_text(medium, "the solvent")
            written, canonical = medium if isinstance(medium, str) else "", ""
            if not reason:
                try:
                    canonical = canonical_solvent(written) if written else WATER
                except ValueError as error:
                    reason = f"solvent {written}: {error}"
            if not reason and canonical != WATER and not recipe.with_solvent:
                reason = f"solvent {written}: this model was trained on water (O) only, not on other solvents"
            key = found.key or ""
            structure = key if recipe.representation == "periodic" else text
            rows.append(_Row(text, written, reason, structure, canonical, "" if reason else without_stereo(key)))
        restore_interrupts()
        return rows

    def _featurise(
        self, structures: Sequence[str], solvents: Sequence[str], problems: Sequence[str], n_jobs: int
    ) -> list[str]:
        """Compute and cache missing features; returns the problems, including those of the features."""
        recipe = self.model.scales.recipe
        usable = [row for row, reason in enumerate(problems) if not reason]
        needed = dict.fromkeys(structures[row] for row in usable)
        new = [text for text in needed if text not in self._known_features]
        failed = _remember(
            self._known_features, new, needed, lambda part: featurise_polymers(part, recipe, n_jobs=n_jobs)
        )
        failed_solvents: dict[str, str] = {}
        if recipe.with_solvent:
            wanted = dict.fromkeys(solvents[row] for row in usable)
            new = [text for text in wanted if text not in self._known_solvents]
            failed_solvents = _remember(
                self._known_solvents, new, wanted, lambda part: featurise_solvents(part, recipe)
            )
        return [
            reason or failed.get(structure, "") or failed_solvents.get(solvent, "")
            for reason, structure, solvent in zip(problems, structures, solvents, strict=True)
        ]

    @torch.no_grad()
    def _predict_pairs(self, pairs: Sequence[tuple[str, str]]) -> _Pairs:
        scales, domain = self.model.scales, self.model.domain
        coefficients, logits, nearest, similarity, chi_similarity = [], [], [], [], []
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            part = pairs[start : start + PAIRS_AT_ONCE]
            polymer = np.stack([self._known_features[structure] for structure, _ in part])
            inputs = scales.polymer.transform(polymer)
            if scales.recipe.with_solvent:
                solvent = np.stack([self._known_solvents[name] for _, name in part])
                inputs = np.hstack([inputs, scales.solvent.transform(solvent)])
            tensor = torch.from_numpy(inputs).double()
            results = [group.forward(tensor) for group in self._groups]
            coefficients.append(torch.cat([result[0] for result in results]))
            logits.append(torch.cat([result[1] for result in results]).numpy())
            fingerprints = polymer[:, : scales.recipe.fingerprint_bits]
            index, near = domain.measured.nearest(fingerprints)
            nearest.append(index)
            similarity.append(near)
            unknown = np.full(len(part), np.nan)
            chi_similarity.append(unknown if domain.chi is None else domain.chi.nearest(fingerprints)[1])
        if not pairs:
            n_members = sum(len(group) for group in self._groups)
            return _Pairs(torch.zeros(n_members, 0, 2), np.zeros((n_members, 0)), np.zeros(0, int), *[np.zeros(0)] * 2)
        return _Pairs(
            torch.cat(coefficients, dim=1),
            np.concatenate(logits, axis=1),
            np.concatenate(nearest),
            np.concatenate(similarity),
            np.concatenate(chi_similarity),
        )

    def _chi_columns(
        self, pairs: _Pairs, pair_of_row: np.ndarray, temperatures: np.ndarray, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        scales, interval = self.model.scales, self.model.chi_interval
        coefficients = pairs.coefficients[:, pair_of_row]  # (member, row, 2)
        columns: dict[str, np.ndarray] = {}
        for position, name in enumerate(names):
            tau = inverse_temperature(torch.from_numpy(temperatures[:, position]).double(), scales.T_ref)
            chi = scales.chi.inverse(chi_at(coefficients, tau).numpy())  # (member, row)
            mean = chi.mean(axis=0)
            columns[name] = mean
            if interval is not None:
                spread = chi.std(axis=0, ddof=1) if len(chi) > 1 else np.zeros(len(mean))
                half_width = interval.half_width(spread)
                columns[f"{name}_low"], columns[f"{name}_high"] = mean - half_width, mean + half_width
        A, B = inverse_temperature_line(coefficients.mean(0), scales.chi.mean, scales.chi.scale, scales.T_ref)
        return columns | {"A_K": A.numpy(), "B": B.numpy()}

    def _solubility_columns(self, pairs: _Pairs, pair_of_row: np.ndarray) -> dict[str, np.ndarray]:
        calibration = self.model.probability
        if calibration is None:
            return {}
        probability = calibration.probability(pairs.logits.mean(axis=0))
        low, high = calibration.interval(pairs.logits)
        is_positive = np.round(probability, DECIMALS) >= self.model.threshold
        if self.model.positive_label == 0:
            probability, low, high, is_positive = 1.0 - probability, 1.0 - high, 1.0 - low, ~is_positive
        columns = {"p_soluble": probability, "p_soluble_low": low, "p_soluble_high": high, "soluble": is_positive}
        return {name: value[pair_of_row].astype(np.float64) for name, value in columns.items()}

    def _domain_columns(
        self,
        pairs: _Pairs,
        pair_of_row: np.ndarray,
        good: np.ndarray,
        solvents: Sequence[str],
        temperatures: np.ndarray,
    ) -> dict[str, object]:
        domain = self.model.domain
        n_rows = len(good)
        nearest: list[str | None] = [None] * n_rows
        similarity = np.full(n_rows, np.nan)
        notes = [""] * n_rows
        inside: dict[str, list[bool | None]] = {"in_domain": [None] * n_rows}
        if domain.chi is not None:
            inside["chi_in_domain"] = [None] * n_rows
        for row, pair in zip(np.flatnonzero(good).tolist(), pair_of_row, strict=True):
            nearest[row] = domain.measured.polymers[pairs.nearest[pair]]
            similarity[row] = round(float(pairs.similarity[pair]), SIMILARITY_DECIMALS)
            own = temperatures[row]
            if np.isnan(own).any():
                continue
            reasons = []
            smallest = domain.measured.smallest_similarity
            if pairs.similarity[pair] < smallest:
                reasons.append(f"unlike every measured polymer (similarity below {smallest:.2f})")
            if solvents[row] not in domain.solvents:
                reasons.append("solvent not met in training")
            # χ = A/T + B is meant to extrapolate a little; far outside the range it was never tested.
            if np.any(own < domain.coldest - 10.0) or np.any(own > domain.hottest + 10.0):
                reasons.append(f"temperature outside the measured {domain.coldest:.0f} to {domain.hottest:.0f} K")
            inside["in_domain"][row] = not reasons
            if domain.chi is not None:
                smallest = domain.chi.smallest_similarity
                if pairs.chi_similarity[pair] < smallest:
                    reasons.append(f"unlike every polymer with measured χ (similarity below {smallest:.2f})")
                inside["chi_in_domain"][row] = not reasons
            notes[row] = "; ".join(reasons)
        return {
            "nearest_polymer": nearest,
            "similarity": similarity,
            **{name: pd.array(values, dtype="boolean") for name, values in inside.items()},
            "domain_note": notes,
        }


def _are_several(cells: object) -> bool:
    return isinstance(cells, Iterable) and not isinstance(cells, str)


def _refuse_other_than_text(cell: Any, what: str) -> str:
    """Why a cell is neither text nor empty (as pandas writes empty cells); else an empty text."""
    is_empty = pd.api.types.is_scalar(cell) and pd.isna(cell)
    return "" if isinstance(cell, str) or is_empty else f"{what} must be text, got {type(cell).__name__}"


def _read_temperatures(given: object) -> np.ndarray:
    """A single number as an array (), several as (n,)."""
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError("temperatures must be numbers, in kelvin: one, or a list of several") from error
    if values.ndim > 1:
        raise DataError(f"give temperatures as one number or one list of them, not as a table of {values.shape}")
    return values


def _remember(
    known: dict[str, np.ndarray],
    new: list[str],
    needed: dict[str, None],
    featurise: Callable[[list[str]], np.ndarray],
) -> dict[str, str]:
    """Add features of new structures to `known`, dropping others if there are many; returns reasons of failures."""
    failed: dict[str, str] = {}
    if len(known) + len(new) > REMEMBERED:
        for text in [text for text in known if text not in needed]:
            del known[text]
    try:
        known.update(zip(new, featurise(new), strict=True) if new else ())
    except DataError:
        # A structure without finite descriptors must not fail the others in its chunk.
        for text in new:
            try:
                known[text] = featurise([text])[0]
            except DataError as error:
                failed[text] = str(error)
    return failed
