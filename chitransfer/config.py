"""YAML to typed settings: all unknown keys, wrong types and impossible values are reported together by dotted path.

The command line calls the entry points (`load_config`, `override_config`); the code below takes plain parameters.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from chitransfer.counts import say_count
from chitransfer.errors import ConfigError
from chitransfer.patterns import WORDS
from chitransfer.secrecy import mask_passwords, strip_password
from chitransfer.sections import (
    ChemistrySettings,
    ClusterSettings,
    CrossValidationSettings,
    DataSettings,
    ModelSettings,
    ObjectiveSettings,
    PathSettings,
    SearchSettings,
    SecondPassSettings,
    Section,
    SolubilitySettings,
    TrainingSettings,
)


class Config(Section):
    """The whole configuration; `chitransfer` reads no other settings. The defaults are those of a search."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    T_ref_K: Annotated[float, Field(ge=150.0, le=1000.0)] = 298.15
    paths: PathSettings = PathSettings()
    data: DataSettings = DataSettings()
    chem: ChemistrySettings = ChemistrySettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    cv: CrossValidationSettings = CrossValidationSettings()
    solubility: SolubilitySettings = SolubilitySettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    search: SearchSettings = SearchSettings()
    second_pass: SecondPassSettings = SecondPassSettings()
    cluster: ClusterSettings = ClusterSettings()


# Errors of reading text as YAML: those for impossible dates and numbers and endlessly nested lists are no YAMLErrors.
UNREADABLE = (YAMLError, ValueError, RecursionError)
# Full training's defaults that differ from a search's, by dotted path.
FULL_TRAINING: Mapping[str, object] = {
    "training.n_networks": 3,
    "training.num_epochs_pretrain": 200,
    "training.min_epochs_pretrain": 50,
    "training.early_stopping_patience": 20,
    "training.lr_schedule_patience": 5,
}


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def load_config(
    path: Path | None, overrides: Mapping[str, object] | None = None, defaults: Mapping[str, object] | None = None
) -> Config:
    """Read a configuration file and apply overrides.

    Parameters
    ----------
    path
        A YAML file; ``None``: all keys take their defaults.
    overrides
        Values by dotted path, as from ``--set a.b=c`` and the flags; they take precedence over the file. A key under a
        search space that the file does not set changes or extends the default space; ``search.space`` itself replaces
        it.
    defaults
        Values by ``section.key`` for keys missing from the file, such as `FULL_TRAINING`; all others have a search's
        defaults.

    Raises
    ------
    ConfigError
        The file cannot be read, or it holds unknown keys, wrong types or impossible values: all are listed, each with
        its dotted path and its line in the file, or that it comes from the command line.
    """
    values, lines = ({}, {}) if path is None else _read_yaml(path)
    for dotted, value in (defaults or {}).items():
        section, key = dotted.split(".")
        if isinstance(inside := values.setdefault(section, {}), dict):
            inside.setdefault(key, value)
    overrides = overrides or {}
    for dotted, value in overrides.items():
        _start_from_default_space(values, dotted)
        _set_dotted(values, dotted, value)
        lines = {known: line for known, line in lines.items() if known != dotted and not known.startswith(f"{dotted}.")}
    return _validate(values, _Origins(lines, frozenset(overrides)), "the configuration" if path is None else str(path))


def override_config(config: Config, overrides: Mapping[str, object]) -> Config:
    """A copy of `config` with some dotted keys replaced; raises ConfigError as `load_config` does."""
    values = config.model_dump()
    for dotted, value in overrides.items():
        _set_dotted(values, dotted, value)
    return _validate(values, _Origins({}, frozenset()), "the configuration")


def parse_set_options(options: Sequence[str]) -> dict[str, object]:
    """Turn ``["a.b=c", …]`` into ``{"a.b": c}``; values are read as YAML, so ``[1, 2]``, ``true``, ``null`` work.

    Raises
    ------
    ConfigError
        An option has no ``=``, or a value is not valid YAML.
    """
    overrides: dict[str, object] = {}
    for option in options:
        dotted, equals, text = option.partition("=")
        if not equals or not dotted.strip():
            raise ConfigError(f"--set needs the form key.path=value, got {option!r}")
        try:
            overrides[dotted.strip()] = _yaml().load(text) if text.strip() else None
        except UNREADABLE as error:
            raise ConfigError(f"--set {option}: the value is not valid YAML ({_first_line(error)})") from error
    return overrides


def changed_keys(before: Config, after: Config) -> list[str]:
    """Dotted keys whose values differ, in configuration order; a search space counts as one value."""
    old, new = before.model_dump(), after.model_dump()
    return [
        f"{section}.{key}" if isinstance(values, dict) else section
        for section, values in old.items()
        for key in (values if isinstance(values, dict) else [""])
        if (values[key] != new[section][key] if isinstance(values, dict) else values != new[section])
    ]


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML text that `load_config` reads back to an equal object.

    Only a password in `search.storage` is omitted; it is given again (or by PGPASSWORD) when the study is resumed.
    """
    stream = io.StringIO()
    yaml = _yaml()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    values = config.model_dump()
    for section in ("search", "second_pass"):
        values[section]["space"] = {
            name: {key: value for key, value in parameter.items() if value is not None}
            for name, parameter in values[section]["space"].items()
        }
    if values["search"]["storage"] is not None:
        values["search"]["storage"] = strip_password(values["search"]["storage"])
    yaml.dump(values, stream)
    return stream.getvalue()


class _PlainConstructor(SafeConstructor):
    """YAML's safe types, except that ``512_256`` stays the guide's text instead of becoming the number 512256."""

    def construct_yaml_int(self, node: Any) -> Any:
        """An integer, or the text of a number written with underscores."""
        return node.value if "_" in node.value else super().construct_yaml_int(node)


_PlainConstructor.add_constructor("tag:yaml.org,2002:int", _PlainConstructor.construct_yaml_int)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _PlainConstructor
    # Redefining an anchor is valid YAML; the last definition counts.
    yaml.composer.warn_double_anchors = False
    return yaml


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such configuration file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the configuration file cannot be read ({error})") from error
    try:
        yaml = _yaml()
        root = yaml.compose(text)
        values = None if root is None else _unshared(yaml.constructor.construct_document(root))
        lines = dict(_node_lines(root, ""))
    except UNREADABLE as error:
        raise ConfigError(f"{path}: not valid YAML ({_first_line(error)})") from error
    if values is None:
        return {}, {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a list of `key: value` lines, got {type(values).__name__}")
    return values, lines


def _unshared(value: Any) -> Any:
    """A copy in which no two places share an object through an alias: overriding one must not change the other."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _first_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark is not None else ""
    return f"{getattr(error, 'problem', None) or str(error).strip().splitlines()[0]}{where}"


def _node_lines(node: Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}.{key.value}" if prefix else str(key.value)
            yield dotted, key.start_mark.line + 1
            yield from _node_lines(value, dotted)
    elif isinstance(node, SequenceNode):
        for position, value in enumerate(node.value):
            yield f"{prefix}.{position}", value.start_mark.line + 1
            yield from _node_lines(value, f"{prefix}.{position}")


def _set_dotted(values: dict[str, Any], dotted: str, value: object) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{dotted}: {parent} is a single value and has no key {last!r}")
        values = inner
    values[last] = value


def _start_from_default_space(values: dict[str, Any], dotted: str) -> None:
    section, *rest = dotted.split(".")
    if section not in ("search", "second_pass") or rest[:1] != ["space"] or len(rest) == 1:
        return
    inside = values.setdefault(section, {})
    if isinstance(inside, dict) and "space" not in inside:
        inside["space"] = Config().model_dump()[section]["space"]


@dataclass(frozen=True)
class _Origins:
    """Where values came from: lines of the file by dotted path, and the keys given on the command line."""

    lines: Mapping[str, int]
    overridden: frozenset[str]

    def describe(self, dotted: str) -> str:
        """Where the value of `dotted` comes from, as the beginning of a message; nothing for a default."""
        parts = dotted.split(".")
        changed_inside = any(key.startswith(f"{dotted}.") for key in self.overridden)
        if changed_inside and dotted in self.lines:
            return f"line {self.lines[dotted]} and the command line: "
        for prefix in (".".join(parts[:n]) for n in range(len(parts), 0, -1)):
            if changed_inside or prefix in self.overridden:
                return "from the command line: "
            if prefix in self.lines:
                return f"line {self.lines[prefix]}: "
        return ""


# Pydantic's names for the types in a union, in words.
_TYPES = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text"}


def _validate(values: dict[str, Any], origins: _Origins, source: str) -> Config:
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        by_place: dict[tuple[str, ...], list[Any]] = {}
        for detail in error.errors(include_url=False):
            by_place.setdefault(_place(detail), []).append(detail)
        problems = [_describe(parts, details, origins) for parts, details in by_place.items()]
    else:
        problems = [
            f"{origins.describe(dotted)}{dotted}: {reason}" for dotted, reason in _unusable_space_values(config)
        ]
        if not problems:
            return config
    listed = "\n".join(f"  {problem}" for problem in dict.fromkeys(problems))
    raise ConfigError(mask_passwords(f"{source}: {say_count(len(set(problems)), 'setting')} cannot be used\n{listed}"))


def _place(detail: Any) -> tuple[str, ...]:
    """The keys that lead to a value, without the names that pydantic adds for union branches."""
    parts = [str(part) for part in detail["loc"]]
    while len(parts) > 1 and ("[" in parts[-1] or parts[-1].removeprefix("constrained-") in _TYPES):
        parts.pop()
    return tuple(parts)


def _describe(parts: tuple[str, ...], details: Sequence[Any], origins: _Origins) -> str:
    """What is wrong with one value; a union has one detail per branch."""
    dotted, detail = ".".join(parts), details[0]
    where = origins.describe(dotted)
    if parts[-2:-1] == ("choices",):
        return f"{where}{dotted}: {_describe_choice(detail['input'])}"
    if detail["type"] == "extra_forbidden":
        return f"{where}{dotted}: unknown key{_suggest(parts)}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "string_pattern_mismatch":
        message = f"should be {WORDS[detail['ctx']['pattern']]}"
    if detail["type"] in {"model_type", "dict_type"}:
        message = "should hold `key: value` lines, or be left out"
    if len(details) > 1:
        message = f"should be {', or '.join(map(_name_branch, details))}"
    value = "" if detail["type"] in {"missing", "value_error"} else f", got {_say_given(detail['input'])}"
    return f"{where}{dotted}: {message[:1].lower()}{message[1:]}{value}"


def _describe_choice(given: object) -> str:
    widths = given if isinstance(given, list) and all(isinstance(width, int) for width in given) else []
    # Without quotes YAML would read a single width as a number.
    text = f'"{widths[0]}"' if len(widths) == 1 else "_".join(map(str, widths))
    hint = f"; widths of layers are written {text} here" if widths else ""
    return f"a choice is a number, a text, true or false, got {_say_given(given)}{hint}"


def _name_branch(detail: Any) -> str:
    """The type that one branch of a union accepts."""
    if detail["type"] == "literal_error":
        return str(detail["ctx"]["expected"]).replace("'", "")
    if detail["type"] == "greater_than_equal":
        return f"a whole number from {detail['ctx']['ge']}"
    return _TYPES.get(detail["type"].split("_")[0], str(detail["msg"]).removeprefix("Input should be "))


def _say_given(value: object) -> str:
    return "nothing (null)" if value is None else repr(value)


def _suggest(parts: Sequence[str]) -> str:
    model: Any = Config
    for part in parts[:-1]:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = field.annotation if field is not None else None
    known = list(getattr(model, "model_fields", {}))
    if parts[-1] in Config.model_fields:
        return f" (did you mean {parts[-1]}, which is in no section?)"
    homes = [
        f"{name}.{parts[-1]}"
        for name, section in Config.model_fields.items()
        if parts[-1] in getattr(section.annotation, "model_fields", {})
    ]
    if homes:
        return f" (did you mean {' or '.join(homes)}?)"
    close = difflib.get_close_matches(parts[-1], known, n=1)
    if close:
        return f" (did you mean {close[0]}?)"
    return f" (known here: {', '.join(known)})" if known else ""


def _unusable_space_values(config: Config) -> Iterator[tuple[str, str]]:
    named = [(f"search.space.{name}", parameter) for name, parameter in config.search.space.items()]
    named += [(f"second_pass.space.{name}", parameter) for name, parameter in config.second_pass.space.items()]
    searched = {parameter.key for _, parameter in named}
    for dotted, parameter in named:
        section, key = parameter.key.split(".")
        settings: Section = getattr(config, section)
        # A value may be invalid only in combination with another searched one; the defaults go with each.
        beside = {
            other: field.default
            for other, field in type(settings).model_fields.items()
            if f"{section}.{other}" in searched
        }
        if key not in type(settings).model_fields:
            yield f"{dotted}.key", f"{parameter.key} is no key of the configuration{_suggest([section, key])}"
            continue
        for value in parameter.ends():
            try:
                type(settings).model_validate({**settings.model_dump(), **beside, key: value})
            except ValidationError as error:
                message = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
                yield dotted, f"{value!r} is no value for {parameter.key}: {message[:1].lower()}{message[1:]}"
