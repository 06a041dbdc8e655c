"""Values that may be of several kinds: one problem each, with the path the user wrote and what may stand there."""

from __future__ import annotations

import pytest

from chitransfer.config import load_config, parse_set_options
from chitransfer.errors import ConfigError
from chitransfer.search.second_pass import second_pass_config

CHOICES = "{key: model.encoder_hidden_dims, type: categorical, choices: "
ANY = "a choice is a number, a text, true or false, got "


@pytest.mark.parametrize(
    ("option", "problems"),
    [
        ("search.pack=0", ["search.pack: should be a whole number from 1, or auto, got 0"]),
        ("search.pack=many", ["search.pack: should be a whole number, or auto, got 'many'"]),
        (
            f"search.space.x={CHOICES}[[512, 256], [64]]}}",
            [
                f"search.space.x.choices.0: {ANY}[512, 256]; widths of layers are written 512_256 here",
                f'search.space.x.choices.1: {ANY}[64]; widths of layers are written "64" here',
            ],
        ),
        (f"search.space.x={CHOICES}[null, 512_256]}}", [f"search.space.x.choices.0: {ANY}nothing (null)"]),
        (f"search.space.x={CHOICES}[[a]]}}", [f"search.space.x.choices.0: {ANY}['a']"]),
    ],
)
def test_a_value_of_several_kinds_is_one_problem(option: str, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, parse_set_options([option]))
    count, *lines = str(error.value).splitlines()
    assert count == f"the configuration: {len(problems)} setting{'s' * (len(problems) > 1)} cannot be used"
    assert lines == [f"  from the command line: {problem}" for problem in problems]


def test_widths_as_the_message_writes_them_are_taken() -> None:
    config = load_config(None, parse_set_options([f'search.space.encoder_hidden={CHOICES}[512_256, "64"]}}']))
    assert config.search.space["encoder_hidden"].choices == ["512_256", "64"]


@pytest.mark.parametrize("written", ["32", "512 256", "512x256", "true", "null"])
def test_how_widths_are_written_is_told(written: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, parse_set_options([f"model.encoder_hidden_dims={written}"]))
    told = 'from the command line: model.encoder_hidden_dims: widths of layers are written [512, 256] or "512_256", '
    assert f"{told}that of one [512], got " in str(error.value)


def test_a_choice_by_fresh_runs_needs_some() -> None:
    choice = {"search.select": "reevaluated"}
    with pytest.raises(
        ConfigError, match="takes a trial by its fresh runs, of which reevaluate_top: 0 makes none; set"
    ):
        load_config(None, {**choice, "search.reevaluate_top": 0})
    assert load_config(None, choice).search.reevaluate_top > 0
    # A second pass makes none and so takes its best trial.
    assert second_pass_config(load_config(None, choice), {}).search.select == "best"
