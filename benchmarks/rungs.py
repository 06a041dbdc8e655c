"""Do early scores tell which trials to stop? Objectives of random configurations at every rung, and pruners' regret.

`python -m benchmarks.rungs record TABLES OUT.jsonl` trains; `python -m benchmarks.rungs judge OUT.jsonl` replays them.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from scipy.stats import spearmanr

from chitransfer.config import Config, load_config, override_config
from chitransfer.search.objective import RungTask
from chitransfer.search.runner import TrialRunner
from chitransfer.search.space import make_pruner, suggest_params, to_overrides
from chitransfer.training.settings import read_dataset

RUNGS = (11, 33, 100)
N_ORDERS = 40
POLICIES: dict[str, dict[str, object]] = {
    "none": {"search.pruner": "none"},
    "median": {"search.pruner": "median"},
    "hyperband": {"search.pruner": "hyperband"},
    "asha": {"search.pruner": "asha"},
}


def configure(tables: str, seed: int) -> Config:
    """The search's configuration on the built-in tables or on the public ones in a folder."""
    overrides: dict[str, object] = {
        "seed": seed,
        "search.sampler": "random",
        "training.num_threads": 1,
        "training.num_epochs_pretrain": RUNGS[-1],
    }
    return load_config(None, overrides | table_paths(tables))


def table_paths(tables: str) -> dict[str, object]:
    """Configuration keys of the tables: empty for ``builtin``, else those fetched into that folder."""
    if tables == "builtin":
        return {}
    folder = Path(tables)
    return {
        "paths.dft_chi_csv": str(folder / "mtl-cosmo-rs.csv"),
        "paths.exp_chi_csv": str(folder / "mtl-chi.csv"),
        "paths.solubility_csv": str(folder / "polysol-vinyl.csv"),
    }


def record(tables: str, path: Path, n_seeds: int, n_trials: int) -> None:
    """Train random configurations through every rung without pruning; one JSON line per trial, as soon as it is done.

    Trials of all seeds alternate, so that an interrupted run has equally many of each; a resumed one skips finished
    ones.
    """
    dataset = read_dataset(configure(tables, 0))
    done = {(trial["seed"], trial["number"]) for trials in read_trials(path).values() for trial in trials}
    runners = [TrialRunner(configure(tables, seed), dataset, n_threads=1) for seed in range(n_seeds)]
    studies = [optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)) for seed in range(n_seeds)]
    for number in range(n_trials):
        for seed, (runner, study) in enumerate(zip(runners, studies, strict=True)):
            params = suggest_params(study, study.ask(), runner.config.search, seed)
            if (seed, number) not in done:
                line = {"seed": seed, "number": number, "params": params, "rungs": _run_rungs(runner, number, params)}
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


def _run_rungs(runner: TrialRunner, number: int, params: dict[str, Any]) -> list[dict[str, Any]]:
    rungs: list[dict[str, Any]] = []
    state: bytes | None = None
    for epoch in RUNGS:
        result = runner.run(RungTask(number, to_overrides(params, runner.config.search.space), epoch, state))
        if result.failure:
            raise SystemExit(f"trial {number} failed: {result.failure}")
        rungs.append({"asked": epoch, "epoch": result.epoch, "value": result.value, "seconds": result.seconds})
        state = result.state
        if result.finished:
            break
    return rungs


def read_trials(path: Path) -> dict[int, list[dict[str, Any]]]:
    """Recorded trials by seed."""
    by_seed = defaultdict(list)
    if not path.exists():
        return {}
    for line in path.read_text(encoding="utf-8").splitlines():
        trial = json.loads(line)
        by_seed[trial["seed"]].append(trial)
    return dict(by_seed)


def rank_correlations(by_seed: dict[int, list[dict[str, Any]]]) -> Iterator[tuple[int, list[float]]]:
    """Per rung, for every seed, Spearman's correlation between the scores there and the final ones."""
    for place, epoch in enumerate(RUNGS[:-1]):
        yield (
            epoch,
            [
                float(
                    spearmanr(
                        [trial["rungs"][min(place, len(trial["rungs"]) - 1)]["value"] for trial in trials],
                        [trial["rungs"][-1]["value"] for trial in trials],
                    ).statistic
                )
                for trials in by_seed.values()
            ],
        )


def replay(trials: list[dict[str, Any]], pruner: optuna.pruners.BasePruner) -> tuple[float, int]:
    """Value of the chosen trial and Stage 1 epochs spent if the pruner sees the trials in this order."""
    study = optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
    finals, epochs = [], 0
    for recorded in trials:
        trial = study.ask()
        for rung in recorded["rungs"]:
            trial.report(rung["value"], step=rung["asked"])
            is_last = rung is recorded["rungs"][-1]
            if is_last or trial.should_prune():
                break
        epochs += rung["epoch"]
        if is_last:
            finals.append(rung["value"])
            study.tell(trial, rung["value"])
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return min(finals), epochs


def first_rung_then_best(trials: list[dict[str, Any]], share: float) -> tuple[float, int]:
    """The same for this policy: all trials to the first rung, then only the best share of them to the end."""
    ranked = sorted(trials, key=lambda trial: float(trial["rungs"][0]["value"]))
    kept = ranked[: max(1, round(share * len(ranked)))]
    stopped = ranked[len(kept) :]
    epochs = sum(t["rungs"][-1]["epoch"] for t in kept) + sum(t["rungs"][0]["epoch"] for t in stopped)
    return min(t["rungs"][-1]["value"] for t in kept), epochs


def as_many_as(trials: list[dict[str, Any]], epochs: int) -> float:
    """Best final value of the trials that this many Stage 1 epochs train to the end; the first one always counts."""
    spent = np.cumsum([trial["rungs"][-1]["epoch"] for trial in trials])
    n_trials = max(1, int(np.searchsorted(spent, epochs, side="right")))
    return float(min(trial["rungs"][-1]["value"] for trial in trials[:n_trials]))


def pooled(by_seed: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Trials of all seeds as one search: every score minus the mean final score of its seed."""
    together = []
    for trials in by_seed.values():
        middle = np.mean([trial["rungs"][-1]["value"] for trial in trials])
        for trial in trials:
            rungs = [{**rung, "value": rung["value"] - middle} for rung in trial["rungs"]]
            together.append({**trial, "rungs": rungs})
    return together


def judge(path: Path) -> str:
    """Rank correlations and, for each policy, regret and share of epochs relative to no pruning, as Markdown."""
    by_seed = read_trials(path)
    counts = ", ".join(str(len(trials)) for trials in by_seed.values())
    lines = [
        f"{len(by_seed)} seeds, trials: {counts}",
        "",
        "| rung | rank correlation with the final score |",
        "|---|---|",
    ]
    for epoch, values in rank_correlations(by_seed):
        lines.append(f"| {epoch} | {np.mean(values):.2f} ± {np.std(values):.2f} |")
    spread = np.mean([np.std([t["rungs"][-1]["value"] for t in trials]) for trials in by_seed.values()])
    lines += ["", f"Spread of the final objective between configurations: {spread:.4f}"]
    everything = pooled(by_seed)
    lines += ["", "Every seed a search of its own:", "", *_table(by_seed)]
    lines += ["", f"All seeds as one search of {len(everything)} trials:", "", *_table({0: everything})]
    return "\n".join(lines)


def _table(searches: dict[int, list[dict[str, Any]]]) -> list[str]:
    """Regret, cost, and the regret of no pruning at that cost, averaged over searches and orders."""
    lines = [
        "| policy | regret, mean ± sd | largest | epochs, share of no pruning | regret unpruned at that cost |",
        "|---|---|---|---|---|",
    ]
    outcomes: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for seed, trials in searches.items():
        best = min(trial["rungs"][-1]["value"] for trial in trials)
        full = sum(trial["rungs"][-1]["epoch"] for trial in trials)
        for order in range(N_ORDERS):
            shuffled = [trials[i] for i in np.random.default_rng([seed, order]).permutation(len(trials))]
            for name, policy in _policies(seed):
                value, epochs = policy(shuffled)
                outcomes[name].append((value - best, epochs / full, as_many_as(shuffled, epochs) - best))
    for name, triples in outcomes.items():
        regret, cost, plain = np.array(triples).T
        lines.append(
            f"| {name} | {regret.mean():.4f} ± {regret.std():.4f} | {regret.max():.4f} | {cost.mean():.2f} "
            f"| {plain.mean():.4f} |"
        )
    return lines


def _policies(seed: int) -> Iterator[tuple[str, Callable[[list[dict[str, Any]]], tuple[float, int]]]]:
    for name, overrides in POLICIES.items():
        pruner = make_pruner(override_config(configure("builtin", seed), overrides).search, RUNGS[-1])
        yield name, partial(replay, pruner=pruner)
    for share in (0.5, 0.25, 0.1):
        yield f"first rung, then the best {share:.0%}", partial(first_rung_then_best, share=share)


def main() -> None:
    """Record or judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    recorder = commands.add_parser("record", help="train random configurations through every rung")
    recorder.add_argument("tables", help="builtin, or the folder of the public tables")
    recorder.add_argument("out", type=Path)
    recorder.add_argument("--seeds", type=int, default=5)
    recorder.add_argument("--trials", type=int, default=24)
    judger = commands.add_parser("judge", help="replay the pruning policies")
    judger.add_argument("out", type=Path)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if arguments.command == "record":
        record(arguments.tables, arguments.out, arguments.seeds, arguments.trials)
    else:
        print(judge(arguments.out))


if __name__ == "__main__":
    main()
