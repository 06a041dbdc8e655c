"""Write a trial's parameters into a configuration file, keeping comments and order; what changed and what to run next.

Called by `chitransfer apply`.
"""

from __future__ import annotations

import difflib
import glob
import io
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarfloat import ScalarFloat

from chitransfer.config import FULL_TRAINING, Config, dump_config, load_config, override_config
from chitransfer.errors import ConfigError, StudyError
from chitransfer.files import write_atomically
from chitransfer.search.contract import remark_on_tables
from chitransfer.search.results import explain_recommended, read_recommended, read_standing
from chitransfer.search.space import to_overrides
from chitransfer.search.study import CONTRACT, read_study
from chitransfer.search.study_folder import StudyFolder, load_study_config, locate_study
from chitransfer.sections import SECOND_PASS_KEYS, ChemistrySettings, ModelSettings, parse_hidden_dims
from chitransfer.training.unread import OF_STAGE1

# Keys other than the searched parameters that fix a trial's Stage 1: another value would give another model.
STAGE1_KEYS = (
    "T_ref_K",
    *(f"chem.{key}" for key in ChemistrySettings.model_fields),
    *(f"model.{key}" for key in ModelSettings.model_fields),
    *OF_STAGE1,
    "training.grad_clip_norm",
)
# Keys that determine which rows a trial learned from and was scored on.
TABLE_KEYS = (
    "paths.dft_chi_csv",
    "paths.exp_chi_csv",
    "paths.solubility_csv",
    "data.on_bad_rows",
    "data.on_contradictory_labels",
    "solubility.positive",
)
# Keys that a second pass may tune and that Stage 1 also reads: one file has room for only one value.
SHARED_KEYS = ("model.encoder_dropout", "model.chi_head_dropout", "training.grad_clip_norm")
# Full training has its own number of epochs.
QUICK_EPOCHS = "training.stage2_epochs"
# Of the keys that full training deliberately sets otherwise (`FULL_TRAINING`), the one that decides how long it takes.
FULL_EPOCHS = "training.num_epochs_pretrain"
STAGE2_KEYS = tuple(sorted(SECOND_PASS_KEYS.difference(STAGE1_KEYS, {QUICK_EPOCHS})))


@dataclass(frozen=True)
class Application:
    """A configuration with a trial's parameters and tables filled in.

    Attributes
    ----------
    trial
        Number of the trial.
    text, difference
        The new file's text, and a unified diff from the old one; empty if the text is the same.
    for_finetune
        Values from a second pass for keys that Stage 1 also reads and whose value in the file is Stage 1's.
    notes
        Why this trial was chosen, what was not written, where else the configuration differs from the study's, and
        which tables differ from those the study searched on.
    """

    trial: int
    text: str
    difference: str
    for_finetune: Mapping[str, object]
    notes: list[str]


def read_complete_trial(folder: StudyFolder, trial: int | None) -> FrozenTrial:
    """A complete trial; without a number, the one named in best_params.json.

    Raises
    ------
    StudyError
        The trial does not exist or did not complete, or the study has no complete trial.
    """
    study = read_study(folder)
    trials = {one.number: one for one in study.get_trials(deepcopy=False)}
    recommended = read_recommended(folder, read_standing(study))
    if trial is None:
        return recommended
    if trial not in trials:
        raise StudyError(f"{folder.path}: there is no trial {trial}; the study has trials 0 to {max(trials)}")
    if trials[trial].state != TrialState.COMPLETE:
        raise StudyError(
            f"{folder.path}: trial {trial} is {trials[trial].state.name}, not COMPLETE; choose one that is, such as "
            f"{recommended.number}"
        )
    return trials[trial]


def apply_trial(folder: StudyFolder, config_path: Path | None, trial: int | None) -> Application:
    """Fill a trial's parameters and tables into a configuration file or full training's defaults, without writing it.

    For a second pass, Stage 1's parameters are those of the first pass's trial.

    Raises
    ------
    ChitransferError
        The study, trial or configuration cannot be used.
    """
    study_config = load_study_config(folder, {})
    if study_config.search.control == "permute":
        raise StudyError(
            f"{folder.path}: this study is a permuted-label control (search.control: permute), so its parameters mean "
            "nothing; apply a study of the true values"
        )
    applied = read_complete_trial(folder, trial)
    # A second pass trains no Stage 1, so a batch size that an earlier release halved in it does not concern Stage 1.
    attributes = applied.user_attrs if folder.first_pass is None else {}
    chosen = to_overrides(applied.params, study_config.search.space, attributes)
    notes = []
    if trial is None:
        notes += explain_recommended(read_standing(read_study(folder)), applied, study_config.search.select)
    if config_path is not None and not config_path.exists():
        raise ConfigError(
            f"{config_path}: there is no such configuration file; without --config, configs/config.yaml is created"
        )
    old_config = load_config(config_path, None, FULL_TRAINING)
    overrides, for_finetune = chosen, {}
    if folder.first_pass is not None:
        for_finetune = {key: chosen.pop(key) for key in SHARED_KEYS if key in chosen}
        overrides = {**_stage1_parameters(*folder.first_pass), **chosen}
    # After the merge, because either pass may have searched it.
    epochs = overrides.pop(QUICK_EPOCHS, None)
    if epochs is not None:
        notes.append(
            f"{QUICK_EPOCHS}: {epochs} is the length of quick Stage 2 and was not written; full training runs for "
            f"training.num_epochs_finetune, {old_config.training.num_epochs_finetune} epochs"
        )
    overrides |= {
        key: attrgetter(key)(study_config)
        for key in TABLE_KEYS
        if attrgetter(key)(study_config) != attrgetter(key)(old_config)
    }
    # Validate first: a configuration that cannot be loaded must not be written.
    new_config = override_config(old_config, overrides)
    name = "the defaults" if config_path is None else str(config_path)
    # Read as bytes, because text mode would hide the file's line endings.
    old = dump_config(old_config) if config_path is None else config_path.read_bytes().decode("utf-8")
    text = _edit_yaml(old, overrides, name)
    before, after = (one.replace("\r\n", "\n").splitlines(keepends=True) for one in (old, text))
    difference = "".join(difflib.unified_diff(before, after, name, f"trial {applied.number}", n=1))
    for_finetune = {key: value for key, value in for_finetune.items() if value != attrgetter(key)(new_config)}
    notes += [
        f"{key}: Stage 1 uses it too, so the second pass's {value} is in the finetune command below, not in the file"
        for key, value in for_finetune.items()
    ]
    notes += _other_differences(study_config, new_config, overrides)
    notes += remark_on_tables(read_study(folder).user_attrs.get(CONTRACT, {}), new_config)
    return Application(applied.number, text, difference, for_finetune, notes)


def _stage1_parameters(first_pass: Path, number: int) -> dict[str, object]:
    folder = locate_study(first_pass)
    trial, config = read_complete_trial(folder, number), load_study_config(folder, {})
    return to_overrides(trial.params, config.search.space, trial.user_attrs)


def write_application(application: Application, path: Path) -> None:
    """Write the configuration atomically and check that it can be read back."""
    write_atomically(path, application.text)
    load_config(path)


def training_commands(path: Path, results_dir: str, for_finetune: Mapping[str, object]) -> list[str]:
    """The two commands of full training, ready for a shell; only Stage 2's gets the values in `for_finetune`."""
    config = shlex.quote(str(path))
    pattern = shlex.quote(f"{glob.escape(results_dir)}/dft_pretrain_*/checkpoints/best_model.pt")
    told = "".join(f" --set {key}={value}" for key, value in for_finetune.items())
    return [
        f"chitransfer pretrain --config {config}",
        f"chitransfer finetune --config {config}{told} --pretrained {pattern}",
    ]


def _edit_yaml(text: str, overrides: Mapping[str, object], name: str) -> str:
    yaml = YAML(typ="rt")
    yaml.Representer = _PlainRepresenter
    yaml.preserve_quotes = True
    yaml.width = 4096
    newline = "\r\n" if "\r\n" in text else "\n"
    try:
        values = yaml.load(text)
    except YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML ({str(error).splitlines()[0]})") from error
    values = CommentedMap() if values is None else values
    for dotted, value in overrides.items():
        section, key = dotted.split(".")
        if section not in values or values[section] is None:
            values[section] = CommentedMap()
        values[section][key] = _like(values[section].get(key), value)
    stream = io.StringIO()
    yaml.dump(values, stream)
    return stream.getvalue().replace("\r\n", "\n").replace("\n", newline)


class _PlainRepresenter(RoundTripRepresenter):
    """Writes None as ``null``, as the configurations do, instead of leaving it empty."""

    def represent_none(self, data: None) -> ScalarNode:
        """The word null."""
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_PlainRepresenter.add_representer(type(None), _PlainRepresenter.represent_none)


def _like(old: object, value: object) -> object:
    """The value in the style of the one it replaces: ``"512_256"`` becomes ``[512, 256]``, on one line."""
    value = parse_hidden_dims(value)
    if isinstance(value, list):
        if isinstance(old, list) and list(old) == value:
            return old
        sequence = CommentedSeq(value)
        sequence.fa.set_flow_style()
        return sequence
    if isinstance(value, float):
        if isinstance(old, float) and old == value:
            return old
        # ruamel writes 8.7e-05, which YAML 1.1 readers take for text; a decimal point makes it a number for all of
        # them.
        return _as_scalar_float(value)
    return value


def _as_scalar_float(value: float) -> object:
    text = repr(value)
    if "e" not in text or "." in text:
        return value
    mantissa, exponent = text.split("e")
    loaded = YAML(typ="rt").load(f"{mantissa}.0e{exponent}")
    return loaded if isinstance(loaded, ScalarFloat) else value


def _other_differences(study: Config, config: Config, overrides: Mapping[str, object]) -> list[str]:
    """Other differences between the two, except deliberate defaults of full training other than its epochs."""
    notes = []
    for key in (*STAGE1_KEYS, *STAGE2_KEYS):
        theirs, mine = attrgetter(key)(study), attrgetter(key)(config)
        if mine == theirs or key in overrides:
            continue
        if key not in FULL_TRAINING or mine != FULL_TRAINING[key]:
            notes.append(f"{key}: {theirs!r} in the study, {mine!r} in this configuration")
        elif key == FULL_EPOCHS:
            notes.append(f"{key}: full training keeps its own {mine} on purpose; the study used {theirs}")
    return notes
