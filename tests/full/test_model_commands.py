"""`chitransfer predict`, `screen` and `finetune`: what they say, and how they refuse what they cannot use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chitransfer.config import override_config
from chitransfer.data.tables import read_stage1_table
from chitransfer.errors import TrainingError
from chitransfer.model.checkpoint import Pretrained
from chitransfer.training import finetune, pretrain
from chitransfer.training.handover import describe_other_table, hand_over

RunCommand = Callable[..., tuple[int, str, str]]


def test_command_line(trained: Any, run_command: RunCommand, tmp_path: Path) -> None:
    code, out, _ = run_command(
        "predict", "--model", trained.model, "*CCO*", "--temperature", 298, "--temperature", 350, "--solvent", "O"
    )
    assert code == 0
    assert "chi_350K_low" in out
    path = tmp_path / "in.csv"
    path.write_text("SMILES\n" + "".join(f"*CC(*){'C' * n}O\n" for n in range(12)), encoding="utf-8")
    code, out, _ = run_command(
        "predict", "--model", trained.model, "--input", path, "--output", tmp_path / "out.csv", "--n_jobs", 1
    )
    assert code == 0
    assert "12 rows" in out
    words = ["predict", "--model", trained.model, "*CCO*", "CCO", "--temperature", 298, "--temperature", 350]
    code, out, err = run_command(*words)
    assert code == 2
    assert "chi_350K_low" in out, "what can be predicted is"
    assert err.startswith("ERROR: no prediction for 1 repeat unit\n  'CCO': a repeat unit needs exactly two *")
    assert "--temperature" not in err
    code, _, err = run_command("predict", "--model", trained.model, "*CCO*", "--temperature", 298, 350)
    assert code == 2
    assert err.endswith("\nA further temperature has a flag of its own: --temperature 350\n")
    code, _, err = run_command("predict", "--model", trained.model, "*CCO*", "--temperature", 0)
    assert code == 2
    assert "got 0; it looks like °C: add 273.15" in err
    code, _, err = run_command("predict", "--model", tmp_path / "none.pt", "*CCO*")
    assert code == 2
    assert "no such model file" in err
    code, _, err = run_command("predict", "--model", trained.model)
    assert code == 2
    assert "--input" in err


def test_where_rdkit_cannot_draw_the_ranking_comes_without_a_picture(
    trained: Any, run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rdkit.Chem.Draw", None)
    path, output, picture = tmp_path / "in.csv", tmp_path / "best.csv", tmp_path / "best.png"
    path.write_text("SMILES\n*CCO*\n*CC(*)O\n", encoding="utf-8")
    picture.write_bytes(b"of an earlier ranking")
    words = ["screen", "--model", trained.model, "--input", path, "--output", output, "--n-jobs", 1]
    code, out, err = run_command(*words, "--picture", picture)
    assert code == 2
    assert f"ERROR: --picture {picture}: RDKit cannot draw on this machine (" in err
    assert not output.exists()
    code, out, err = run_command(*words)
    assert (code, err) == (0, "")
    said = " ".join(out.split())
    assert f"the best 2 are in {output}, without a picture" in said
    assert "no picture: RDKit cannot draw on this machine (" in said
    assert "apt install libxrender1 libxext6" in said
    assert len(output.read_text(encoding="utf-8").splitlines()) == 3
    assert not picture.exists()


def test_quiet_leaves_the_predictions_as_its_help_says(
    trained: Any, run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.csv"
    path.write_text("SMILES\n*CCO*\n", encoding="utf-8")
    words = ["predict", "--quiet", "--model", trained.model]
    assert run_command(*words, "*CCO*")[1] == run_command(*words[::2], trained.model, "*CCO*")[1] != ""
    assert run_command(*words, "--input", path, "--output", tmp_path / "out.csv", "--n-jobs", 1) == (0, "", "")
    monkeypatch.setenv("COLUMNS", "200")
    assert "Print nothing but predictions and errors." in run_command("predict", "--help")[1]


@pytest.mark.parametrize("command", ["predict", "screen"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([""], "--solvent '': is empty; give a SMILES (water is O) or leave the option out"),
        ([" "], "--solvent ' ': is empty"),
        (["O", "CCO"], "--solvent is given 2 times (O, CCO), but one is taken"),
    ],
)
def test_a_solvent_is_one_and_not_empty(
    run_command: RunCommand, tmp_path: Path, command: str, values: list[str], expected: str
) -> None:
    output = tmp_path / "out.csv"
    words = [word for value in values for word in ("--solvent", value)]
    code, _, err = run_command(command, "--model", "none.pt", "--input", "none.csv", "--output", output, *words)
    assert code == 2
    assert f"ERROR: {expected}" in err


def test_an_extended_space_is_of_a_resumed_search(run_command: RunCommand) -> None:
    code, _, err = run_command("search", "--allow-extended-space")
    assert code == 2
    assert "give it with --resume STUDY" in err


def test_fine_tuning_says_that_a_table_is_the_built_in_one(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*anything: object) -> None:
        raise TrainingError("far enough")

    monkeypatch.setattr(finetune, "check_recipe", stop)
    config = override_config(trained.config, {"paths.solubility_csv": "builtin:water_solubility"})
    said: list[str] = []
    with pytest.raises(TrainingError, match="far enough"):
        finetune.run_finetuning(
            config, [str(trained.pretraining / "checkpoints" / "best_model.pt")], said.append, print
        )
    assert said[-1].startswith(
        "paths.solubility_csv is builtin:water_solubility (153 rows), the built-in table, beside"
    )


def test_fine_tuning_says_that_networks_and_test_polymers_are_those_of_stage_1(trained: Any) -> None:
    stage1 = Pretrained.load(trained.pretraining / "checkpoints" / "best_model.pt")
    config = override_config(trained.config, {"training.n_networks": 7, "training.test_fraction": 0.0})
    _, used, notes = hand_over(stage1, config)
    assert notes == [
        "training.n_networks: 2, as Stage 1 was trained, not 7 as configured",
        "training.test_fraction: 0.1, as Stage 1 was trained, not 0.0 as configured",
    ]
    assert (used.training.n_networks, used.training.test_fraction) == (2, 0.1)
    assert hand_over(stage1, trained.config)[2] == []


def test_fine_tuning_says_that_stage_1_learned_from_another_table(trained: Any, tmp_path: Path) -> None:
    stage1 = Pretrained.load(trained.pretraining / "checkpoints" / "best_model.pt")
    own = Path(trained.config.paths.dft_chi_csv)
    same, fewer = tmp_path / "same.csv", tmp_path / "fewer.csv"
    same.write_bytes(own.read_bytes())
    fewer.write_text("".join(own.read_text(encoding="utf-8").splitlines(keepends=True)[:-3]), encoding="utf-8")
    assert describe_other_table(stage1, read_stage1_table(str(same))) == []
    (line,) = describe_other_table(stage1, read_stage1_table(str(fewer)))
    assert line.startswith(
        f"warning: Stage 1 was trained on {own} (216 rows), but paths.dft_chi_csv is now {fewer} (213 rows): "
    )
    assert describe_other_table(replace(stage1, provenance={}), read_stage1_table(str(fewer))) == []


@pytest.mark.parametrize("stage", [finetune.run_finetuning, pretrain.run_pretraining])
def test_both_stages_say_what_they_find_beside_own_tables(
    trained: Any, tmp_path: Path, stage: Callable[..., object]
) -> None:
    path = tmp_path / "fewer.csv"
    table = Path(trained.config.paths.dft_chi_csv).read_text(encoding="utf-8")
    path.write_text("".join(table.splitlines(keepends=True)[:-3]), encoding="utf-8")
    changes = {"paths.dft_chi_csv": str(path), "paths.solubility_csv": "builtin:water_solubility"}
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith(("Stage 1: ", "Stage 2: ")):
            raise TrainingError("far enough")

    checkpoint = [str(trained.pretraining / "checkpoints" / "best_model.pt")]
    words = [checkpoint, say] if stage is finetune.run_finetuning else [say]
    config = override_config(trained.config, {**changes, "paths.results_dir": str(tmp_path)})
    with pytest.raises(TrainingError, match="far enough"):
        stage(config, *words, lambda *anything: None)
    text = "\n".join(said)
    assert "paths.solubility_csv is builtin:water_solubility (153 rows), the built-in table, beside" in text
    assert ("warning: Stage 1 was trained on " in text) == (stage is finetune.run_finetuning)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["training.stage2_epochs=5"], ["in full training: training.stage2_epochs;"]),
        (["objective={}", "objective.sol_f1=1"], ["in full training: objective, objective.sol_f1;"]),
        (
            ["training.lr_encoder=0.1", "training.lambda_dft=0", "training.freeze_encoder_stage2=true"],
            ["while the encoder is frozen: training.lambda_dft, training.lr_encoder;"],
        ),
        (["training.lr_encoder=0.1", "training.freeze_encoder_stage2=false"], []),
        (["training.lr_finetune=0.1"], []),
        (["training.precision=bf16", "training.lr_pretrain=0.1"], ["in Stage 2: training.lr_pretrain, training.prec"]),
    ],
)
def test_settings_without_effect_on_fine_tuning_are_told(
    run_command: RunCommand, settings: list[str], told: list[str]
) -> None:
    words = [word for setting in settings for word in ("--set", setting)]
    _, out, err = run_command("finetune", "--pretrained", "none.pt", *words)
    assert "none.pt: no such checkpoint" in err
    text = " ".join(out.split())
    assert text.count("warning: without effect") == len(told)
    for line in told:
        assert f"warning: without effect {line}" in text


@pytest.mark.parametrize("command", ["predict", "screen"])
def test_blank_cells_beside_filled_ones_are_told(
    trained: Any, run_command: RunCommand, tmp_path: Path, command: str
) -> None:
    path = tmp_path / "merged.csv"
    # 25 K is refused; P(soluble) of that row is predicted all the same.
    path.write_text("SMILES,solvent,temp\n*CC(*)O,CCO,\n*CC(*)N,,350\n*CC(*)C,,25\nbad,,\n,,\n", encoding="utf-8")
    words = [command, "--model", trained.model, "--input", path, "--output", tmp_path / "out.csv", "--n-jobs", 1]
    solvents = f"2 of 3 usable rows of {path} have no solvent and are taken to be in water; merged cells? fill"
    temperature = f"1 of 3 usable rows of {path} has no temp and is taken to be at 298.15 K; merged cells? fill temp"
    for flags, told in (
        ([], [True, True]),
        (["--solvent", "O"], [False, True]),
        (["--temperature", 300], [True, False]),
    ):
        code, out, _ = run_command(*words, *flags)
        assert code == 0
        assert [line in out for line in (solvents, temperature)] == told
    path.write_text("SMILES,solvent,temp\n*CC(*)O,,350\n*CC(*)N,,350\n", encoding="utf-8")
    assert "merged cells" not in run_command(*words)[1], "a column left blank is as one left out"
