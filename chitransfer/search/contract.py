"""A study's contract, which all its trials share: making it, comparing two, and checking extensions of the space.

Made by `search.run`, `search.second_pass` and `evidence`; compared by `search.study` when a study is resumed, and by
`search.apply`, `search.rescore` and `search.second_pass`.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chitransfer.config import Config
from chitransfer.errors import DataError

if TYPE_CHECKING:
    from chitransfer.data.assemble import Dataset
    from chitransfer.search.study_folder import StudyFolder

SEARCH_KEYS = ("pruner", "rungs", "n_pretrain_seeds", "replicates", "objectives", "control")
# Key in a contract's ``data``: number of polymers merged with another that differs only in stereo.
VARIANTS = "stereo_variants"
# Likewise: a checksum of the polymers' names.
NAMES = "names"
# Where the tables were read from; only for messages, as the same tables may be stored elsewhere.
SOURCES = "sources"
# Names of a contract's tables, and the configuration keys that point to them.
_TABLES = {
    "stage1": ("the table of computed χ", "paths.dft_chi_csv"),
    "chi": ("the table of measured χ", "paths.exp_chi_csv"),
    "solubility": ("the table of solubility", "paths.solubility_csv"),
}


def make_contract(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What every trial of a study shares; a resumed search must agree with all of it."""
    values = config.model_dump()
    training = {k: v for k, v in values["training"].items() if k not in {"device", "num_threads"}}
    search = {k: values["search"][k] for k in SEARCH_KEYS}
    # A predictor to compare the trials with does not change them.
    del values["cv"]["random_forest"]
    every = [rows for rows in (dataset.stage1, dataset.chi, dataset.solubility) if rows is not None]
    return {
        "seed": config.seed,
        "T_ref_K": config.T_ref_K,
        "space": values["search"]["space"],
        "search": search,
        **{k: values[k] for k in ("objective", "cv", "solubility", "chem", "model")},
        "training": training,
        SOURCES: {rows.table.kind: rows.table.source for rows in every},
        "data": {rows.table.kind: {"sha256": rows.table.digest, "rows": len(rows)} for rows in every}
        | {NAMES: dataset.names_digest()}
        # A study from a release that put them on both sides of a split cannot be resumed.
        | ({VARIANTS: dataset.n_stereo_variants} if dataset.n_stereo_variants else {}),
    }


def make_study_key(folder: StudyFolder, contract: Mapping[str, Any]) -> str:
    """The study's key on a Dask scheduler; distinct from studies in a folder of the same name on other machines."""
    what = json.dumps([socket.gethostname(), str(folder.path), contract], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()[:16]


def find_differences(known: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Every key on which two contracts differ, one sentence each.

    A key that a study of an earlier release does not have yet counts as having its default, which is how that release
    behaved.
    """
    ours = {key: value for key, value in now.items() if key != SOURCES}
    theirs = {key: value for key, value in known.items() if key != SOURCES}
    return list(_differences(theirs, ours, _defaults(ours), "", now.get(SOURCES, {})))


def _defaults(now: Mapping[str, Any]) -> dict[str, Any]:
    values = Config().model_dump(mode="json")
    return {key: values[key] for key in now if key in values}


def _differences(known: Any, now: Any, default: Any, prefix: str, sources: Mapping[str, str]) -> Iterator[str]:
    told = _tell_tables_apart(known, now, prefix, sources) if known != now else ""
    if told:
        yield told
    elif isinstance(known, dict) and isinstance(now, dict):
        inner = default if isinstance(default, dict) else {}
        for key in sorted(known.keys() | now.keys()):
            dotted = f"{prefix}.{key}" if prefix else key
            # Searched parameters and tables are the user's own, so a missing one is a difference.
            is_new_key = key not in known and not prefix.startswith(("space", "data")) and dotted != "space"
            if is_new_key and key in inner and inner[key] == now[key]:
                continue
            yield from _differences(known.get(key), now.get(key), inner.get(key), dotted, sources)
    elif known != now and prefix == f"data.{VARIANTS}":
        yield (
            f"{prefix}: {now or 0} polymers of the tables differ from another one only in stereochemistry. The "
            "release that created this study put such polymers into different folds, this one keeps them together, "
            "so old and new trials cannot be compared; continue with that release, or start a new study"
        )
    elif known != now and prefix == f"data.{NAMES}":
        # A study of an earlier release has no checksum of them.
        if known is not None:
            yield (
                f"{prefix}: the polymers have other names than when the study began. If the tables are the same, the "
                "version of RDKit differs (environment.json has the study's version); other names give other folds. "
                "Continue with that version, or start a new study"
            )
    elif known != now:
        yield f"{prefix}: {known!r} in the study, now {now!r}"


def _tell_tables_apart(known: Any, now: Any, prefix: str, sources: Mapping[str, str]) -> str:
    """A sentence if the study began with another table, or with one more or less, than now; else empty."""
    section, _, kind = prefix.partition(".")
    if section != "data" or kind not in _TABLES:
        return ""
    what, key = _TABLES[kind]
    source = sources.get(kind, key)
    is_elsewhere = not source.startswith("builtin:") and not Path(source).is_absolute()
    go = "go to the folder where the study began, " if is_elsewhere else ""
    if isinstance(known, dict) and isinstance(now, dict) and known["sha256"] != now["sha256"]:
        return (
            f"{prefix}.sha256: {what}, {source}, is not the one the study began with ({known['rows']} rows then, "
            f"{now['rows']} now); put the old file back, {go}or start a new study"
        )
    if isinstance(known, dict) and now is None:
        return (
            f"{prefix}: the study began with {what} ({known['rows']} rows), now there is none; set {key} to its file "
            "again"
        )
    if known is None and isinstance(now, dict):
        return f"{prefix}: the study began without {what}, now there is {source}; set {key} to null"
    return ""


def remark_on_tables(known: Mapping[str, Any], config: Config) -> list[str]:
    """Which of the configuration's tables differ from those the study began with, or cannot be read from this folder.

    Parameters
    ----------
    known
        The study's contract; anything may be missing in one from an earlier release or another program.

    Returns
    -------
    list of str
        One sentence per table; empty if all are the study's.
    """
    # Imported here because it loads the table readers, which listing a study does not need.
    from chitransfer.data.csv_text import read_source

    remarks = []
    for kind, table in known.get("data", {}).items():
        what, key = _TABLES.get(kind, ("", ""))
        source = attrgetter(key)(config) if key else None
        if source is None:
            continue
        try:
            digest = hashlib.sha256(read_source(source)[0]).hexdigest()
        except DataError as error:
            remarks.append(f"{key}: {error}; training needs {what} that the study used")
        else:
            if digest != table["sha256"]:
                remarks.append(
                    f"{key}: {source} is not {what} that the study used ({table['rows']} rows then); training would "
                    "use the present one"
                )
    return remarks


def remark_on_scored_tables(known: Mapping[str, Any], dataset: Dataset) -> list[str]:
    """Which Stage 2 tables differ from those that a study's trials were scored on, one sentence each.

    Parameters
    ----------
    known
        The study's contract; as in `remark_on_tables`.
    """
    remarks = []
    for rows in (rows for rows in (dataset.chi, dataset.solubility) if rows is not None):
        then = known.get("data", {}).get(rows.table.kind)
        if then is not None and then["sha256"] != rows.table.digest:
            remarks.append(
                f"WARNING: {_TABLES[rows.table.kind][0]}, {rows.table.source}, is not the one that the study used "
                f"({then['rows']} rows then, {len(rows)} now); old and new scores cannot be compared"
            )
    return remarks


def find_space_refusals(known: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Why a search space is not an extension that Optuna accepts; empty if it is one.

    Ranges may become wider and parameters may be added. Choices may not change: Optuna keeps a categorical parameter's
    choices for the life of a study.
    """
    refusals = []
    for name, old in known.items():
        new = now.get(name)
        if new is None:
            refusals.append(f"space.{name}: a parameter cannot be removed from a study")
            continue
        for key in ("key", "type", "step"):
            if old.get(key) != new.get(key):
                refusals.append(f"space.{name}.{key}: {old.get(key)!r} in the study, now {new.get(key)!r}")
        if old.get("choices") != new.get("choices"):
            refusals.append(
                f"space.{name}.choices: Optuna cannot change the choices of a running study "
                f"(it has {old.get('choices')}, now {new.get('choices')})"
            )
        if old.get("low") is not None and new.get("low") is not None and new["low"] > old["low"]:
            refusals.append(f"space.{name}.low: can only be lowered from {old['low']}, not raised to {new['low']}")
        if old.get("high") is not None and new.get("high") is not None and new["high"] < old["high"]:
            refusals.append(f"space.{name}.high: can only be raised from {old['high']}, not lowered to {new['high']}")
    return refusals


def space_hint(known: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """A hint at ``--allow-extended-space`` where it would resolve a difference of the space."""
    if now["space"] == known["space"] or find_space_refusals(known["space"], now["space"]):
        return ""
    return " The new search space contains the old one: --allow-extended-space accepts it."
