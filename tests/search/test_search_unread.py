"""Settings and searched parameters that no trial uses are told, or refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from chitransfer.config import Config, load_config, override_config
from chitransfer.errors import ConfigError
from chitransfer.search.unread import (
    KEYS_OF_TABLES,
    OF_THE_VALIDATION_MAE,
    describe_unread_in_stage1,
    describe_unread_parameters,
    refuse_rate_of_frozen_encoder,
)


def test_the_rate_of_an_encoder_that_stays_frozen_is_not_searched() -> None:
    rate = {"search.space.rate": {"key": "training.lr_encoder", "type": "log", "low": 1e-5, "high": 1e-3}}
    with pytest.raises(ConfigError, match=r"search\.space\.rate\.key: no trial uses training\.lr_encoder while"):
        refuse_rate_of_frozen_encoder(load_config(None, rate))
    freezing = {"key": "training.freeze_encoder_stage2", "type": "categorical", "choices": [True, False]}
    for further in ({"training.freeze_encoder_stage2": False}, {"search.space.freezing": freezing}):
        refuse_rate_of_frozen_encoder(load_config(None, {**rate, **further}))
    refuse_rate_of_frozen_encoder(load_config(None))


def test_a_search_of_such_a_rate_leaves_no_folder(
    run_command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    rate = "search.space.rate={key: training.lr_encoder, type: log, low: 1.0e-5, high: 1.0e-3}"
    code, _, err = run_command("search", "--results-dir", tmp_path, "--set", rate)
    assert code == 2
    assert "search.space.rate.key: no trial uses training.lr_encoder" in " ".join(err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"training.num_epochs_finetune": 5, "training.n_networks": 2}, ["n_networks, training.num_epochs_finetune;"]),
        ({"training.lr_encoder": 1e-3}, ["while the encoder is frozen: training.lr_encoder;"]),
        ({"training.lr_encoder": 1e-3, "training.freeze_encoder_stage2": False}, []),
        ({"training.stage2_epochs": 5, "training.lr_finetune": 1e-3}, []),
    ],
)
def test_keys_that_no_trial_reads_are_told(
    run_command: Callable[..., tuple[int, str, str]],
    captured: list[Config],
    overrides: dict[str, object],
    expected: list[str],
) -> None:
    code, out, err = run_command("search", *chain(*(("--set", f"{key}={value}") for key, value in overrides.items())))
    assert code == 0, err
    warnings = [line for line in out.splitlines() if line.startswith("warning: without effect")]
    assert len(warnings) == len(expected)
    assert all(part in line for part, line in zip(expected, warnings, strict=True))


def test_parameters_of_a_table_that_is_not_given_are_told() -> None:
    second = load_config(None, {"search.space": Config().second_pass.model_dump()["space"]})
    assert describe_unread_parameters(second, "second_pass") == []
    told = describe_unread_parameters(override_config(second, {"paths.solubility_csv": None}), "second_pass")
    searched = [parameter.key for parameter in second.search.space.values()]
    assert [line.split()[5] for line in told] == [key for key in searched if key in KEYS_OF_TABLES["solubility_csv"]]
    assert told[0].startswith("warning: second_pass.space.")
    assert told[0].endswith("while paths.solubility_csv is null, so all its values score the same")


@pytest.mark.parametrize("is_least_searched", [False, True])
def test_parameters_that_stage_1_does_not_read_where_few_polymers_are_held_out_are_told(
    tiny: dict[str, object], tiny_dataset: Any, is_least_searched: bool
) -> None:
    ranges = {
        "training.min_epochs_pretrain": {"type": "int", "low": 0, "high": 9},
        "training.early_stopping_patience": {"type": "int", "low": 2, "high": 9},
        "training.lr_schedule_patience": {"type": "int", "low": 2, "high": 9},
        "training.lr_schedule_factor": {"type": "float", "low": 0.1, "high": 0.9},
        "training.lr_pretrain": {"type": "log", "low": 1e-4, "high": 1e-2},
    }
    if is_least_searched:
        ranges["training.min_validation_polymers"] = {"type": "int", "low": 2, "high": 60}
    space = {f"search.space.{key.split('.')[1]}": {"key": key, **values} for key, values in ranges.items()}
    # Of the 36 computed polymers a tenth is held out.
    enough = load_config(None, {**tiny, **space, "training.min_validation_polymers": 4})
    assert describe_unread_in_stage1(enough, tiny_dataset) == []
    told = describe_unread_in_stage1(override_config(enough, {"training.min_validation_polymers": 5}), tiny_dataset)
    if is_least_searched:
        assert told == [], "some trials may hold out enough"
        return
    assert told == [
        f"warning: search.space.{key.split('.')[1]}: no trial uses {key} while Stage 1 holds out fewer polymers (4) "
        "than training.min_validation_polymers (5), so all its values score the same"
        for key in OF_THE_VALIDATION_MAE
    ]
