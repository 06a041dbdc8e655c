"""Best parameters into a configuration: comments and order stay, and what comes out is what the trial was."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path

import optuna
import pytest

from chitransfer.config import FULL_TRAINING, Config, dump_config, load_config, override_config
from chitransfer.data.tables import read_chi_table
from chitransfer.errors import ConfigError, StudyError
from chitransfer.search.apply import (
    FULL_EPOCHS,
    SHARED_KEYS,
    STAGE1_KEYS,
    apply_trial,
    read_complete_trial,
    training_commands,
    write_application,
)
from chitransfer.search.encoders import STAGE2_SHAPE_KEYS
from chitransfer.search.space import to_distribution, to_overrides
from chitransfer.search.storage import open_storage, sqlite_address
from chitransfer.search.study import CONTRACT
from chitransfer.search.study_folder import LAUNCHER, StudyFolder
from chitransfer.sections import SECOND_PASS_KEYS
from chitransfer.training.finetune import locate_pretrained
from chitransfer.training.settings import network_shape, stage1_settings

RunCommand = Callable[..., tuple[int, str, str]]
BEST = {
    "latent_dim": 256,
    "encoder_hidden": "1024_512_256",
    "encoder_dropout": 0.28123456789,
    "chi_head_dropout": 0.15,
    "lr_pretrain": 0.00087,
    "weight_decay": 3.2e-05,
}
OTHER = {**BEST, "latent_dim": 64, "encoder_hidden": "256_128", "weight_decay": 1e-05}


def make_study(
    path: Path, config: Config, best: Mapping[str, object] = BEST, other: Mapping[str, object] = OTHER
) -> StudyFolder:
    """A study of three trials: `other` 2.0, `best` 1.5, `other` failed."""
    path.mkdir(parents=True)
    folder = StudyFolder(path)
    study = optuna.create_study(
        storage=open_storage(sqlite_address(folder.database, "rwc")), study_name=folder.name, direction="minimize"
    )
    distributions = {name: to_distribution(parameter) for name, parameter in config.search.space.items()}
    for params, value in ((other, 2.0), (best, 1.5), (other, None)):
        state = optuna.trial.TrialState.COMPLETE if value else optuna.trial.TrialState.FAIL
        study.add_trial(
            optuna.trial.create_trial(params=dict(params), distributions=distributions, value=value, state=state)
        )
    folder.config.write_text(dump_config(config), encoding="utf-8")
    return folder


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    """The study above with the guide's space."""
    return make_study(tmp_path / "study", load_config(None))


@pytest.fixture
def config_file(project_root: Path, tmp_path: Path) -> Path:
    """A copy of the project's configuration for full training."""
    path = tmp_path / "config.yaml"
    path.write_bytes((project_root / "configs" / "config.yaml").read_bytes())
    return path


def test_a_file_keeps_its_line_ends(study: StudyFolder, config_file: Path) -> None:
    plain = apply_trial(study, config_file, None)
    config_file.write_bytes(config_file.read_bytes().replace(b"\n", b"\r\n"))
    application = apply_trial(study, config_file, None)
    assert application.difference == plain.difference
    write_application(application, config_file)
    assert config_file.read_bytes() == plain.text.replace("\n", "\r\n").encode()


def test_only_the_searched_values_change(study: StudyFolder, config_file: Path) -> None:
    before = config_file.read_text(encoding="utf-8")
    application = apply_trial(study, config_file, None)
    assert config_file.read_text(encoding="utf-8") == before
    write_application(application, config_file)
    after = config_file.read_text(encoding="utf-8")
    old_lines, new_lines = before.splitlines(), after.splitlines()
    assert len(old_lines) == len(new_lines)
    changed = [(old, new) for old, new in zip(old_lines, new_lines, strict=True) if old != new]
    assert len(changed) == 6
    for old, new in changed:
        assert old.split(":")[0] == new.split(":")[0]
        assert [part.strip() for part in old.split("#")[1:]] == [part.strip() for part in new.split("#")[1:]]
    searched = to_overrides(BEST, load_config(None).search.space)
    assert load_config(config_file) == override_config(
        load_config(Path(application_source(before, config_file))), searched
    )


def application_source(text: str, beside: Path) -> str:
    """The old configuration as a file again."""
    path = beside.with_name("old.yaml")
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_applying_twice_changes_nothing_more(study: StudyFolder, config_file: Path) -> None:
    write_application(apply_trial(study, config_file, None), config_file)
    again = apply_trial(study, config_file, None)
    assert again.difference == ""
    assert again.text == config_file.read_text(encoding="utf-8")


def test_equal_numbers_keep_their_spelling(study: StudyFolder, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("training:\n  lr_pretrain: 8.70e-4\n  weight_decay: 1e-3\n", encoding="utf-8")
    text = apply_trial(study, path, None).text
    assert "  lr_pretrain: 8.70e-4\n" in text
    assert "1e-3" not in text


def test_numbers_are_numbers_for_every_yaml_reader(study: StudyFolder, config_file: Path) -> None:
    text = apply_trial(study, config_file, 0).text
    line = next(line for line in text.splitlines() if line.strip().startswith("weight_decay:"))
    value = line.split(":")[1].split("#")[0].strip()
    # YAML 1.1 takes 1e-05 for text; it wants a point.
    assert "." in value
    assert float(value) == 1e-05


def test_keys_that_are_missing_are_added(study: StudyFolder, tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text("seed: 7  # mine\n", encoding="utf-8")
    write_application(apply_trial(study, path, None), path)
    config = load_config(path)
    assert config.seed == 7
    assert config.model.encoder_hidden_dims == [1024, 512, 256]
    assert config.training.weight_decay == 3.2e-05
    assert "# mine" in path.read_text(encoding="utf-8")


def chosen(folder: StudyFolder, number: int | None = None) -> tuple[int, dict[str, object]]:
    """Number and parameters of the trial that is applied."""
    trial = read_complete_trial(folder, number)
    return trial.number, trial.params


def test_best_params_json_decides_which_trial(study: StudyFolder) -> None:
    assert chosen(study) == (1, BEST)
    (study.path / "best_params.json").write_text(json.dumps({"best_trial_number": 0}), encoding="utf-8")
    assert chosen(study) == (0, OTHER)
    assert chosen(study, 1) == (1, BEST)


def test_of_several_objectives_the_transfer_objective_decides(tmp_path: Path) -> None:
    """Not the first metric, of which the highest is the best."""
    config = load_config(None, {"search.objectives": ["sol_auc", "exp_mae"]})
    folder = StudyFolder(tmp_path)
    study = optuna.create_study(
        storage=open_storage(sqlite_address(folder.database, "rwc")),
        study_name=folder.name,
        directions=["maximize", "minimize"],
    )
    distributions = {name: to_distribution(parameter) for name, parameter in config.search.space.items()}
    for params, values, objective in ((OTHER, [0.6, 0.5], 2.0), (BEST, [0.9, 0.4], 1.5)):
        attributes = {"objective": objective}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, values=values, user_attrs=attributes)
        )
    assert chosen(folder) == (1, BEST)


def test_trials_that_cannot_be_applied_are_named(study: StudyFolder, config_file: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"trial 2 is FAIL, not COMPLETE; choose one that is, such as 1"):
        apply_trial(study, config_file, 2)
    with pytest.raises(StudyError, match=r"no trial 9; the study has trials 0 to 2"):
        apply_trial(study, config_file, 9)
    with pytest.raises(ConfigError, match="no such configuration file; without --config, configs/config"):
        apply_trial(study, tmp_path / "none.yaml", None)


def test_a_permuted_control_is_not_applied(study: StudyFolder) -> None:
    study.config.write_text(dump_config(load_config(study.config, {"search.control": "permute"})), encoding="utf-8")
    with pytest.raises(StudyError, match=r"permuted-label control .* its parameters mean nothing"):
        apply_trial(study, None, None)


def test_other_differences_from_the_study_are_said(study: StudyFolder, config_file: Path) -> None:
    text = config_file.read_text(encoding="utf-8")
    config_file.write_text(text.replace("use_batchnorm: false", "use_batchnorm: true"), encoding="utf-8")
    notes = apply_trial(study, config_file, None).notes
    assert notes == [
        "model.use_batchnorm: False in the study, True in this configuration",
        "training.num_epochs_pretrain: full training keeps its own 200 on purpose; the study used 100",
    ]


def test_tables_that_are_not_the_studys_are_said(
    tmp_path: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path leads elsewhere from another folder: to another table, or to none."""
    config = load_config(None, {"paths.dft_chi_csv": "computed.csv", "paths.solubility_csv": None})
    folder = make_study(tmp_path / "study", config)
    for name, rows in (("mine", b"SMILES,chi\n*CC*,0.5\n"), ("other", b"SMILES,chi\n*CC*,0.7\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "computed.csv").write_bytes(rows)
    digest = hashlib.sha256((tmp_path / "mine" / "computed.csv").read_bytes()).hexdigest()
    measured = read_chi_table("builtin:experimental_chi")
    read = optuna.load_study(study_name=folder.name, storage=open_storage(folder.address))
    tables = {"stage1": {"sha256": digest, "rows": 1}, "chi": {"sha256": measured.digest, "rows": len(measured)}}
    read.set_user_attr(CONTRACT, {"data": {**tables, "names": "…"}})

    def told(where: str) -> list[str]:
        monkeypatch.chdir(tmp_path / where)
        code, printed, error = run_command("apply", str(folder.path))
        assert code == 0, error
        return [line for line in printed.splitlines() if line.startswith("note: paths.")]

    assert told("mine") == []
    assert told("other") == [
        "note: paths.dft_chi_csv: computed.csv is not the table of computed χ that the study used (1 rows then); "
        "training would use the present one"
    ]
    (tmp_path / "other" / "computed.csv").unlink()
    (missing,) = told("other")
    assert missing.startswith("note: paths.dft_chi_csv: computed.csv: there is no such file")
    assert missing.endswith("training needs the table of computed χ that the study used")


def test_the_document_says_which_differences_are_not_told(project_root: Path, study: StudyFolder) -> None:
    untold = set(FULL_TRAINING) - {FULL_EPOCHS}
    notes = apply_trial(study, None, None).notes
    assert not [note for note in notes if note.split(":")[0] in untold]
    text = (project_root / "docs" / "models.md").read_text(encoding="utf-8")
    assert not [key for key in untold if f"`{key.removeprefix('training.')}`" not in text]


def test_training_values_of_stage_1_that_differ_are_said(tmp_path: Path) -> None:
    space = {"latent_dim": {"key": "model.encoder_latent_dim", "type": "categorical", "choices": [64, 256]}}
    overrides = {"search.space": space, "training.lr_pretrain": 2e-3, "training.stage2_epochs": 5}
    folder = make_study(tmp_path / "study", load_config(None, overrides), {"latent_dim": 256}, {"latent_dim": 64})
    path = tmp_path / "config.yaml"
    path.write_text("training:\n  weight_decay: 1.0e-3\n  batch_size_dft: 64\n  num_epochs_pretrain: 300\n")
    assert apply_trial(folder, path, None).notes == [
        "training.lr_pretrain: 0.002 in the study, 0.001 in this configuration",
        "training.weight_decay: 0.0001 in the study, 0.001 in this configuration",
        "training.batch_size_dft: 256 in the study, 64 in this configuration",
        "training.num_epochs_pretrain: 100 in the study, 300 in this configuration",
    ]


def test_a_second_pass_is_applied_together_with_its_first(tmp_path: Path) -> None:
    """Stage 1 as the first pass has it, Stage 2 as the second has, on its tables; what both read, by command."""
    own = {"paths.dft_chi_csv": "mine.csv", "paths.solubility_csv": None, "solubility.positive": "insoluble"}
    config = load_config(None, own)
    folder = make_study(tmp_path / "study", config)
    space = load_config(None).second_pass.space
    names = ("lr_finetune", "freeze_encoder", "stage2_epochs", "chi_head_dropout", "solubility_head_dropout")
    changes = {**to_overrides(BEST, config.search.space), "search.space": {n: space[n].model_dump() for n in names}}
    best = dict(zip(names, (2e-3, False, 45, 0.31, 0.05), strict=True))
    other = dict(zip(names, (1e-3, True, 20, 0.15, 0.1), strict=True))
    second = make_study(folder.second_pass(1).path, override_config(config, changes), best, other)
    path = tmp_path / "config.yaml"
    path.write_text("model:\n  use_batchnorm: false  # mine\n", encoding="utf-8")
    application = apply_trial(second, path, None)
    write_application(application, path)
    written = load_config(path, None, FULL_TRAINING)
    expected = {
        **to_overrides(BEST, config.search.space),
        **own,
        "training.lr_finetune": 2e-3,
        "training.freeze_encoder_stage2": False,
        "model.solubility_head_dropout": 0.05,
    }
    assert written == override_config(load_config(None, None, FULL_TRAINING), expected)
    said = "\n".join(application.notes)
    assert "training.stage2_epochs: 45 is the length of quick Stage 2 and was not written" in said
    assert "model.chi_head_dropout: Stage 1 uses it too, so the second pass's 0.31 is in the finetune command" in said
    pretrain, finetune = training_commands(path, "results", application.for_finetune)
    assert "--set" not in pretrain
    assert " --set model.chi_head_dropout=0.31 " in finetune
    # The trial that kept the first pass's dropout has nothing to tell apart.
    assert not apply_trial(second, path, 0).for_finetune


def test_the_length_of_quick_stage2_stays_out_whichever_pass_searched_it(tmp_path: Path) -> None:
    config = load_config(None)
    space = {**config.search.space, "stage2_epochs": config.second_pass.space["stage2_epochs"]}
    config = override_config(config, {"search.space": {name: own.model_dump() for name, own in space.items()}})
    longer = {**BEST, "stage2_epochs": 35}
    folder = make_study(tmp_path / "study", config, longer, {**OTHER, "stage2_epochs": 20})
    rate = {"lr_finetune": config.second_pass.space["lr_finetune"].model_dump()}
    changes = {**to_overrides(longer, config.search.space), "search.space": rate}
    second = make_study(
        folder.second_pass(1).path, override_config(config, changes), {"lr_finetune": 2e-3}, {"lr_finetune": 1e-3}
    )
    application = apply_trial(second, None, None)
    assert "training.stage2_epochs: 35 is the length of quick Stage 2 and was not written" in "".join(application.notes)
    assert "stage2_epochs: 35" not in application.text


def test_what_both_stages_read_is_known() -> None:
    """Each key that a second pass may tune, changed alone: those that would make another Stage 1."""
    config = load_config(None)

    def stage1_of(config: Config) -> object:
        shape = network_shape(config, 8).to_dict()
        return stage1_settings(config), {name: shape[name] for name in shape if name not in STAGE2_SHAPE_KEYS}

    for key in SECOND_PASS_KEYS:
        value = attrgetter(key)(config)
        other = override_config(config, {key: not value if isinstance(value, bool) else type(value)(value * 2)})
        assert (stage1_of(other) != stage1_of(config)) == (key in SHARED_KEYS), key


def test_every_key_of_stage_1_is_compared() -> None:
    """Each training key that Stage 1's settings depend on, found by changing one at a time."""
    config = load_config(None)
    settings = stage1_settings(config)
    changed = {"precision": "fp32"}
    for key, value in config.training.model_dump().items():
        other = changed.get(key, value / 2 if isinstance(value, float) else value)
        other = value + 1 if type(value) is int else other
        if stage1_settings(override_config(config, {f"training.{key}": other})) != settings:
            assert f"training.{key}" in STAGE1_KEYS


def test_the_command_prints_what_to_run_next(
    study: StudyFolder, config_file: Path, run_command: RunCommand, tmp_path: Path
) -> None:
    output = tmp_path / "tuned.yaml"
    code, out, err = run_command("apply", study.path, "--config", config_file, "--output", output, "--trial", 1)
    assert code == 0, err
    assert "+  encoder_latent_dim: 256" in out
    assert f"  chitransfer pretrain --config {output}" in out
    assert "--pretrained 'results/dft_pretrain_*/checkpoints/best_model.pt'" in out
    assert load_config(output).model.encoder_latent_dim == 256
    assert load_config(config_file).model.encoder_latent_dim == 128


def test_printed_commands_run_from_an_empty_folder(
    study: StudyFolder, tmp_path: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the clone is needed: each command gets as far as asking for what is truly missing."""
    folder = tmp_path / "an empty folder"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(command: str) -> tuple[int, str, str]:
        program, *words = shlex.split(command)
        assert program == "chitransfer"
        return run_command(*words)

    code, printed, error = run(f"chitransfer apply {shlex.quote(str(study.path))}")
    assert code == 0, error
    config = load_config(folder / "configs" / "config.yaml", None, FULL_TRAINING)
    assert config == override_config(
        load_config(None, None, FULL_TRAINING), to_overrides(BEST, load_config(None).search.space)
    )
    pretrain, finetune = (line.strip() for line in printed.splitlines() if line.startswith("  chitransfer "))
    for command, missing in (
        (f"{pretrain} --set paths.dft_chi_csv=none.csv", "none.csv"),
        (finetune, "run `chitransfer pretrain` first"),
        (f"{study.resume_command} --n-trials 0", "from the command line: search.n_trials"),
    ):
        code, _, error = run(command)
        assert code == 2
        assert missing in error


def test_the_printed_pattern_finds_the_model_in_a_folder_of_any_name(tmp_path: Path) -> None:
    results = tmp_path / "res [a]*?"
    model = results / "dft_pretrain_1" / "checkpoints" / "best_model.pt"
    model.parent.mkdir(parents=True)
    model.touch()
    _, finetune = training_commands(tmp_path / "config.yaml", str(results), {})
    assert locate_pretrained([shlex.split(finetune)[-1]]) == (model, 1)


def test_the_command_to_resume_with(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = StudyFolder(Path("/my results/study"))
    monkeypatch.delenv(LAUNCHER, raising=False)
    assert folder.resume_command == "chitransfer search --resume '/my results/study/study.db'"
    monkeypatch.setenv(LAUNCHER, "bash scripts/run_hparam_search.sh")
    assert folder.resume_command == "bash scripts/run_hparam_search.sh --resume '/my results/study/study.db'"
