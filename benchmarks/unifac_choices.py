"""What each choice behind χ from UNIFAC is worth on measured tables; prints the figures of docs/physics.md.

After `chitransfer data fetch` of ``mtl-chi`` and ``polysol-vinyl``: ``python -m benchmarks.unifac_choices``.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import thermo.unifac
from rdkit import Chem
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from chitransfer.chemistry import groups as groups_module
from chitransfer.chemistry.cover import Candidate, cheapest_covers
from chitransfer.chemistry.groups import FragmentationError, molecule_groups, repeat_unit_groups
from chitransfer.chemistry.polymers import polymer_identity
from chitransfer.chemistry.rdkit_drawing import import_ugropy
from chitransfer.chemistry.unifac import chi_of_groups, default_parameters

FRACTIONS = (0.2, 0.5, 0.8, 0.95)
ACRYLAMIDES = ("N(C)C", "N(CC)CC", "N1CCCC1", "NC(C)C", "NCC")
Chi = Callable[[str, str, float, float, bool], float]


def score(name: str, chi: Chi, phi: float, with_combinatorial: bool, data: Path) -> str:
    """One line: rows with a value, Spearman and MAE on measured χ, the water rows of both tables, dχ/dT."""
    measured = pd.read_csv(data / "mtl-chi.csv")
    soluble = pd.read_csv(data / "polysol-vinyl.csv").query("solvent == 'O'")
    pairs = zip(measured.SMILES, measured.solvent, measured.temp, strict=True)
    found = np.array([chi(*pair, phi, with_combinatorial) for pair in pairs])
    known = np.isfinite(found) & (np.abs(found) < 50)
    water = known & (measured.solvent == "O").to_numpy()
    in_water = np.array([chi(smiles, "O", 298.15, phi, with_combinatorial) for smiles in soluble.SMILES])
    labelled = np.isfinite(in_water)
    rising = 0
    for amide in ACRYLAMIDES:
        polymer = f"*CC(*)C(=O){amide}"
        rising += chi(polymer, "O", 333.15, phi, with_combinatorial) > chi(
            polymer, "O", 276.15, phi, with_combinatorial
        )
    return (
        f"{name:20s} phi2 {phi:.2f} {'full' if with_combinatorial else 'residual':8s} | "
        f"all {known.sum():4d} rho {spearmanr(found[known], measured.chi[known]).statistic:5.2f} "
        f"MAE {np.abs(found[known] - measured.chi[known]).mean():.2f} | "
        f"water {water.sum():2d} rho {spearmanr(found[water], measured.chi[water]).statistic:5.2f} "
        f"MAE {np.abs(found[water] - measured.chi[water]).mean():.2f} | "
        f"solubility {labelled.sum():2d} AUC {roc_auc_score(soluble.soluble[labelled], -in_water[labelled]):.2f} | "
        f"dchi/dT > 0 for {rising} of 5"
    )


def product_chi(parameters: str | None) -> Chi:
    """χ as the package computes it, with one parameter set or its own choice."""

    def chi(polymer: str, solvent: str, T: float, phi: float, with_combinatorial: bool) -> float:
        try:
            chain, molecule = repeat_unit_groups(polymer), molecule_groups(solvent)
        except FragmentationError:
            return float("nan")
        chosen = parameters or default_parameters(molecule)
        full = chi_of_groups([chain], [molecule], [T], volume_fraction=phi, parameters=chosen)[0, 0, 0]  # type: ignore[arg-type]
        if with_combinatorial:
            return float(full)
        hot = chi_of_groups([chain], [molecule], [1e12], volume_fraction=phi, parameters="unifac-2.0")[0, 0, 0]
        return float(full - hot)  # without interactions only the combinatorial part is left

    return chi


class ForeignModel:
    """Another group model as tabulated in `thermo`, with the same group assignment and the same formula for χ."""

    def __init__(
        self, subgroups: dict, interactions: dict, reference_form: bool = False, smarts: object = None
    ) -> None:
        texts: dict[int, list[str]] = {}
        if smarts is None:
            for number, entry in subgroups.items():
                if entry.smarts:
                    texts[number] = entry.smarts if isinstance(entry.smarts, list) else [entry.smarts]
        else:
            numbers = {entry.group.upper().replace(" ", ""): number for number, entry in subgroups.items()}
            for name, text in smarts["smarts"].items():  # type: ignore[index]
                if name.upper().replace(" ", "") in numbers:
                    texts[numbers[name.upper().replace(" ", "")]] = [text]
        self.numbers = list(texts)
        self.patterns = [[p for t in texts[n] if (p := Chem.MolFromSmarts(t)) is not None] for n in self.numbers]
        self.R = np.array([subgroups[n].R for n in self.numbers])
        self.Q = np.array([subgroups[n].Q for n in self.numbers])
        mains = [subgroups[n].main_group_id for n in self.numbers]
        self.reference_form = reference_form
        self.abc = np.full((3, len(mains), len(mains)), np.nan)
        for i, m in enumerate(mains):
            for j, n in enumerate(mains):
                value = (0.0, 0.0, 0.0) if m == n else interactions.get(m, {}).get(n)
                if value is not None:
                    self.abc[:, i, j] = value if isinstance(value, tuple) else (value, 0.0, 0.0)
        self.known: dict[str, np.ndarray | None] = {}

    def counts(self, smiles: str) -> np.ndarray | None:
        """Counts of this model's subgroups in a repeat unit or a molecule; ``None`` if it cannot be assigned."""
        if smiles not in self.known:
            self.known[smiles] = self._cover(smiles)
        return self.known[smiles]

    def _cover(self, smiles: str) -> np.ndarray | None:
        if "*" in smiles:
            identity = polymer_identity(smiles)
            unit = Chem.MolFromSmiles(identity)
            stars = [atom.GetIdx() for atom in unit.GetAtoms() if atom.GetAtomicNum() == 0]
            universe = [atom.GetIdx() for atom in unit.GetAtoms() if atom.GetAtomicNum() != 0]
            molecule, position, shown = groups_module._oligomer_for_matching(identity, unit, *stars)
        else:
            molecule = Chem.MolFromSmiles(smiles)
            universe = list(range(molecule.GetNumAtoms()))
            position, shown = universe, [True] * len(universe)
        candidates = set()
        for index, patterns in enumerate(self.patterns):
            for pattern in patterns:
                for match in molecule.GetSubstructMatches(pattern, maxMatches=100_000):
                    atoms = frozenset(position[atom] for atom in match)
                    if all(shown[atom] for atom in match) and len(atoms) == len(match):
                        candidates.add(Candidate(index, atoms, (0, 1)))
        solutions = cheapest_covers(universe, candidates)
        if not solutions:
            return None
        counts = np.zeros(len(self.numbers))
        for index, count in max((tuple(sorted(Counter(s).items())) for s in solutions), key=self._surface):
            counts[index] = count
        return counts

    def _surface(self, counts: tuple[tuple[int, int], ...]) -> tuple[float, tuple[tuple[int, int], ...]]:
        return round(sum(self.Q[index] * count for index, count in counts), 6), counts

    def chi(self, polymer: str, solvent: str, T: float, phi: float, with_combinatorial: bool) -> float:
        """χ from the formula in docs/physics.md with this model's parameters."""
        chain, molecule = self.counts(polymer), self.counts(solvent)
        if chain is None or molecule is None:
            return float("nan")
        here = np.flatnonzero((chain > 0) | (molecule > 0))
        v1, v2, R, Q = molecule[here], chain[here], self.R[here], self.Q[here]
        a, b, c = self.abc[:, here][:, :, here]
        if self.reference_form:  # a + b(T − T0) + c(T ln(T0/T) + T − T0), over T
            T0 = 298.15
            exponent = (a + b * (T - T0) + c * (T * np.log(T0 / T) + T - T0)) / T
        else:
            exponent = a / T + b + c * T
        if not np.isfinite(exponent).all() or not R.any():
            return float("nan")
        r1, r2, q1, q2 = v1 @ R, v2 @ R, v1 @ Q, v2 @ Q
        amount = (1 - phi) * v1 / r1 + phi * v2 / r2
        with np.errstate(all="ignore"):
            psi = np.exp(-exponent)
            total = v1 @ (_ln_gamma(amount, Q, psi) - _ln_gamma(v1, Q, psi))
        if with_combinatorial:
            theta = ((1 - phi) * q1 / r1) / ((1 - phi) * q1 / r1 + phi * q2 / r2)
            ratio = (1 - phi) / theta
            total -= 5 * q1 * (np.log(ratio) + 1 - ratio)
        return float(total / phi**2)


def _ln_gamma(amount: np.ndarray, Q: np.ndarray, psi: np.ndarray) -> np.ndarray:
    theta = amount * Q / (amount @ Q)
    mixed = theta @ psi
    return Q * (1 - np.log(mixed) - psi @ (theta / mixed))


def foreign_models() -> dict[str, ForeignModel]:
    """The other published group models for which `thermo` has parameters."""
    t = thermo.unifac
    t.load_unifac_ip()
    ugropy = import_ugropy()
    return {
        "PSRK": ForeignModel(t.PSRKSG, t.PSRKIP, smarts=ugropy.psrk.subgroups),
        "Dortmund 2006": ForeignModel(t.DOUFSG, t.DOUFIP2006, smarts=ugropy.dortmund.subgroups),
        "Dortmund 2016": ForeignModel(t.DOUFSG, t.DOUFIP2016, smarts=ugropy.dortmund.subgroups),
        "Dortmund 2.0": ForeignModel(t.DOUFSG, t.DOUF2IP, smarts=ugropy.dortmund.subgroups),
        "UNIFAC-LLE": ForeignModel(t.LLEUFSG, t.LLEUFIP),
        "NIST 2015": ForeignModel(t.NISTUFSG, t.NISTUFIP),
        "NIST KT 2011": ForeignModel(t.NISTKTUFSG, t.NISTKTUFIP, reference_form=True),
        "Lyngby": ForeignModel(t.LUFSG, t.LUFIP, reference_form=True),
    }


def tied_covers(data: Path) -> str:
    """How often several group assignments are equally good, and how far apart their χ in water are."""
    polymers = sorted({s for name in ("mtl-chi", "polysol-vinyl") for s in pd.read_csv(data / f"{name}.csv").SMILES})
    found: list[list[tuple[tuple[int, int], ...]]] = []

    def remember(universe: Sequence[int], candidates: Collection[Candidate]) -> list[list[int]]:
        solutions = cheapest_covers(universe, candidates)
        found.append(sorted({tuple(sorted(Counter(solution).items())) for solution in solutions}))
        return solutions

    original = groups_module.cheapest_covers
    groups_module.cheapest_covers = remember
    try:
        for polymer in polymers:
            try:
                groups_module.groups_of_identity.__wrapped__(polymer_identity(polymer))
            except FragmentationError:
                continue
    finally:
        groups_module.cheapest_covers = original
    tied = [covers for covers in found if len(covers) > 1]
    water = molecule_groups("O")
    spreads = [
        float(np.ptp(chi_of_groups([groups_module.Groups(cover) for cover in covers], [water], [298.15])))
        for covers in tied
    ]
    return (
        f"{len(tied)} of {len(found)} polymers have several equally good covers; spread of chi in water at 298.15 K: "
        f"median {np.median(spreads):.2f}, largest {max(spreads):.2f}"
    )


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    data = parser.parse_args().data
    warnings.simplefilter("ignore")
    print("The package's groups")
    for name in (None, "unifac-2.0", "unifac-filled", "unifac"):
        for phi in FRACTIONS:
            print(score(name or "as shipped", product_chi(name), phi, True, data))
        print(score(name or "as shipped", product_chi(name), 0.8, False, data))
    print("\nOther group models, their own groups")
    for name, model in foreign_models().items():
        for with_combinatorial in (True, False):
            print(score(name, model.chi, 0.8, with_combinatorial, data))
    print()
    print(tied_covers(data))


if __name__ == "__main__":
    main()
