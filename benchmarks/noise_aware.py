"""Does a noise-aware search choose better than a plain one of equal cost? Whole searches, judged on fresh seeds.

`python -m benchmarks.noise_aware TABLES --results FOLDER` runs them and prints the table; run again, it resumes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.rungs import table_paths
from chitransfer.search.study_folder import StudyFolder

KINDS = {"plain": 1, "noise-aware": 3}


@dataclass(frozen=True)
class Outcome:
    """A search's choice: its value in the search, and its mean and the default configuration's on fresh seeds."""

    promised: float
    fresh: float
    default: float


def run_search(
    tables: str, results: Path, seed: int, *, replicates: int, n_runs: int, n_epochs: int, n_fresh: int
) -> StudyFolder:
    """One whole search through the command line; its choice and the default run again on fresh seeds and folds.

    Raises
    ------
    subprocess.CalledProcessError
        The search failed; its messages are on the terminal.
    """
    name = f"seed{seed}_replicates{replicates}"
    settings = {
        **table_paths(tables),
        "training.num_threads": 1,
        "training.num_epochs_pretrain": n_epochs,
        "search.workers": 1,
        "search.replicates": replicates,
        "search.reevaluate_top": 1,
        "search.reevaluate_seeds": n_fresh,
    }
    folder = StudyFolder(results / "hparam_search" / name)
    place = ["--resume", str(folder.path)] if folder.database.exists() else ["--study-name", name, "--seed", str(seed)]
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = ["search", *place, "--n-trials", str(n_runs), "--results-dir", str(results), "--quiet", *sets]
    subprocess.run([sys.executable, "-m", "chitransfer", *command], check=True)
    return folder


def read_outcome(folder: StudyFolder) -> Outcome:
    """The outcome of a finished search."""
    found = json.loads((folder.path / "overtuning.json").read_text(encoding="utf-8"))
    fresh = {score["number"]: score["value"] for score in found["fresh"]}
    default = next(score["value"] for score in found["fresh"] if score["is_default"])
    return Outcome(found["best_value"], fresh[found["best_trial"]], default)


def main() -> None:
    """Run the searches seed by seed and print a line for each pair as soon as it is finished."""
    parser = argparse.ArgumentParser(description="Noise-aware against plain search; see docs/evidence.md.")
    parser.add_argument("tables", help="'builtin', or the folder of the public tables")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="a search of each kind for each")
    parser.add_argument("--runs", type=int, default=50, help="runs of each search (%(default)s)")
    parser.add_argument("--epochs", type=int, default=100, help="of Stage 1 (%(default)s)")
    parser.add_argument("--fresh", type=int, default=6, help="fresh runs of a chosen configuration (%(default)s)")
    arguments = parser.parse_args()
    print("| seed | default | " + " | ".join(f"{kind}: promised, on fresh seeds" for kind in KINDS) + " |")
    print("|---" * (2 + len(KINDS)) + "|", flush=True)
    differences = []
    for seed in arguments.seeds:
        outcomes = [
            read_outcome(
                run_search(
                    arguments.tables,
                    arguments.results,
                    seed,
                    replicates=replicates,
                    n_runs=arguments.runs,
                    n_epochs=arguments.epochs,
                    n_fresh=arguments.fresh,
                )
            )
            for replicates in KINDS.values()
        ]
        cells = [f"{outcome.promised:.4f}, {outcome.fresh:.4f}" for outcome in outcomes]
        print(f"| {seed} | {outcomes[0].default:.4f} | " + " | ".join(cells) + " |", flush=True)
        differences.append([outcome.fresh - outcomes[0].fresh for outcome in outcomes])
    gain = np.array(differences)[:, 1]
    spread = f"from {gain.min():+.4f} to {gain.max():+.4f}"
    print(f"\nnoise-aware minus plain, on fresh seeds: mean {gain.mean():+.4f}, {spread}")


if __name__ == "__main__":
    main()
