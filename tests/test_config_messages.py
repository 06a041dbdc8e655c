"""Values that may be of several kinds: one problem each, with the path the user wrote and what may stand there."""

from __future__ import annotations

from pathlib import Path

import pytest

from chitransfer.config import load_config, parse_set_options
from chitransfer.errors import ConfigError

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


def test_a_section_without_keys_is_told_in_words(tmp_path: Path) -> None:
    """As where all of its keys are commented out."""
    path = tmp_path / "own.yaml"
    path.write_text("model:\npaths: computed.csv\nsearch:\n  space: 3\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, {})
    held = "should hold `key: value` lines, or be left out, got"
    assert str(error.value).splitlines()[1:] == [
        f"  line 2: paths: {held} 'computed.csv'",
        f"  line 1: model: {held} nothing (null)",
        f"  line 4: search.space: {held} 3",
    ]


def test_widths_as_the_message_writes_them_are_taken() -> None:
    config = load_config(None, parse_set_options([f'search.space.encoder_hidden={CHOICES}[512_256, "64"]}}']))
    assert config.search.space["encoder_hidden"].choices == ["512_256", "64"]


@pytest.mark.parametrize("written", ['"²"', '"٦٤"', "32", "512 256", "512x256", "true", "null"])
def test_how_widths_are_written_is_told(written: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, parse_set_options([f"model.encoder_hidden_dims={written}"]))
    told = 'from the command line: model.encoder_hidden_dims: widths of layers are written [512, 256] or "512_256", '
    assert f"{told}that of one [512], got " in str(error.value)


def test_the_same_widths_written_twice_are_no_two_choices() -> None:
    with pytest.raises(ConfigError, match=r"search\.space\.encoder_hidden: choices must differ from each other"):
        load_config(None, parse_set_options([f'search.space.encoder_hidden={CHOICES}["64", "064"]}}']))


@pytest.mark.parametrize(
    ("key", "value", "most"),
    [
        ("training.num_threads", 100000, "1024"),
        ("training.class_weight_pos", 1e300, "1000000"),
        ("training.lambda_exp", 1e300, "1000000"),
        ("training.lambda_sol", 1e300, "1000000"),
        ("training.lambda_dft", 1e300, "1000000"),
        ("model.encoder_latent_dim", 10**20, "65536"),
        ("model.chi_head_hidden_dim", 10**20, "65536"),
        ("model.solubility_head_hidden_dim", 10**20, "65536"),
    ],
)
def test_values_too_large_to_compute_with_are_refused_with_the_largest(key: str, value: object, most: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: input should be less than or equal to {most}, got {value!s:.3}"):
        load_config(None, {key: value})


@pytest.mark.parametrize(
    "parameter",
    [
        {"key": "training.class_weight_pos", "type": "log", "low": 1.0, "high": 1e300},
        {"key": "model.encoder_latent_dim", "type": "int", "low": 8, "high": 1e20},
        {"key": "model.encoder_hidden_dims", "type": "categorical", "choices": ["16", "100000"]},
    ],
)
def test_a_search_of_such_values_is_refused_likewise(parameter: dict[str, object]) -> None:
    refused = rf"search\.space\.p: .* is no value for {parameter['key']}: input should be less than or equal to "
    with pytest.raises(ConfigError, match=refused):
        load_config(None, {"search.space": {"p": parameter}})
