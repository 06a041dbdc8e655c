"""Settings that a comparison ignores: refused where a command sets them, else mentioned in a line.

Called by `chitransfer compare` before it reads a table.
"""

from __future__ import annotations

from collections.abc import Iterable

from chitransfer.config import Config
from chitransfer.errors import ConfigError

# Where a search runs its trials and how many at a time; a comparison runs them one by one in its own process.
SPEED_KEYS = ("search.workers", "search.pack", "search.devices", "search.scheduler")
ALONE = "the searches of a comparison run one trial at a time in its own process, on training.device"
NAMED = "its folder is named by --name"
# Keys and whole sections (ending in a dot) that a comparison does not read, and why.
UNREAD = {
    **dict.fromkeys((*SPEED_KEYS, "search.max_worker_deaths", "cluster."), ALONE),
    "search.storage": NAMED,
    "search.study_name": NAMED,
    "search.select": "the table has a row for each choice",
    "cv.random_forest": "the table always has a random forest",
    "training.test_fraction": "the outer folds set polymers aside",
    "training.n_networks": "full fine-tuning trains one network here",
    "second_pass.": "a comparison has no second pass",
}


def refuse_without_effect(config: Config, overrides: Iterable[str]) -> None:
    """Refuse the control on permuted labels, and overrides that a comparison would ignore.

    Raises
    ------
    ConfigError
        There are some; the message names them.
    """
    if config.search.control != "none":
        raise ConfigError(
            f"search.control: {config.search.control} is for a search (`chitransfer search --control permute`); a "
            "comparison uses the true labels, so set it to none"
        )
    reasons = {key: UNREAD.get(key) or UNREAD.get(f"{key.split('.')[0]}.") for key in sorted(overrides)}
    useless = {key: reason for key, reason in reasons.items() if reason}
    if useless:
        why = "; ".join(dict.fromkeys(useless.values()))
        raise ConfigError(f"without effect in a comparison: {', '.join(useless)}; leave it out ({why})")


def describe_without_effect(config: Config) -> list[str]:
    """One line about keys in a file that would speed up a search but not a comparison; empty if there are none."""
    values, usual = ({f"search.{name}": value for name, value in search} for search in (config.search, Config().search))
    changed = [key for key in SPEED_KEYS if values[key] != usual[key]]
    return [f"without effect here: {', '.join(changed)}; {ALONE}"] if changed else []
