"""The configuration's defaults: the guide's numbers and space, the shipped files, and words for every pattern."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from operator import attrgetter
from pathlib import Path

import pytest

from chitransfer.config import FULL_TRAINING, Config, load_config
from chitransfer.errors import ConfigError
from chitransfer.patterns import WORDS

GUIDE_DEFAULTS = {
    "seed": 42,
    "model.encoder_latent_dim": 128,
    "model.encoder_hidden_dims": [512, 256],
    "model.encoder_dropout": 0.2,
    "model.chi_head_dropout": 0.1,
    "training.lr_pretrain": 1e-3,
    "training.weight_decay": 1e-4,
    "training.batch_size_dft": 256,
    "training.batch_size_exp": 64,
    "training.num_epochs_pretrain": 100,
    "training.num_epochs_finetune": 200,
    "training.stage2_epochs": 20,
    "training.freeze_encoder_stage2": True,
    "training.lambda_exp": 3.0,
    "training.lambda_sol": 1.0,
    "training.class_weight_pos": 5.0,
    "cv.n_cv_folds": 5,
    "objective.exp_mae": 1.5,
    "objective.sol_f1": 2.0,
    "objective.sol_recall": 1.5,
    "objective.stage1_mae": 0.1,
    "search.n_trials": 50,
    "search.timeout_hours": 48.0,
    "search.sampler": "tpe",
}
GUIDE_SPACE = {
    "latent_dim": ("model.encoder_latent_dim", "categorical", [64, 128, 256]),
    "encoder_hidden": ("model.encoder_hidden_dims", "categorical", ["512_256", "1024_512_256", "256_128"]),
    "encoder_dropout": ("model.encoder_dropout", "float", (0.15, 0.35)),
    "chi_head_dropout": ("model.chi_head_dropout", "float", (0.05, 0.25)),
    "lr_pretrain": ("training.lr_pretrain", "log", (5e-4, 2e-3)),
    "weight_decay": ("training.weight_decay", "log", (1e-5, 1e-3)),
}


class TestGuide:
    @pytest.mark.parametrize("dotted", GUIDE_DEFAULTS)
    def test_search_configuration_has_the_guides_values(self, project_root: Path, dotted: str) -> None:
        config = load_config(project_root / "configs" / "config_hparam_search.yaml")
        assert attrgetter(dotted)(config) == GUIDE_DEFAULTS[dotted]

    @pytest.mark.parametrize("name", ["config_hparam_search.yaml", None])
    def test_search_space_is_the_guides_table(self, project_root: Path, name: str | None) -> None:
        space = load_config(None if name is None else project_root / "configs" / name).search.space
        assert list(space) == list(GUIDE_SPACE)
        for parameter, (key, kind, values) in GUIDE_SPACE.items():
            found = space[parameter]
            assert (found.key, found.type) == (key, kind)
            assert (found.choices if kind == "categorical" else (found.low, found.high)) == values

    @pytest.mark.parametrize(
        ("name", "defaults"), [("config_hparam_search.yaml", None), ("config.yaml", FULL_TRAINING)]
    )
    def test_shipped_file_holds_the_defaults(
        self, project_root: Path, name: str, defaults: Mapping[str, object] | None
    ) -> None:
        assert load_config(project_root / "configs" / name) == load_config(None, defaults=defaults)

    def test_full_training_epochs_default_to_the_guides_two_hundred(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text("training:\n  n_networks: 1\n", encoding="utf-8")
        training = load_config(path, defaults=FULL_TRAINING).training
        assert (training.num_epochs_pretrain, training.n_networks) == (200, 1)

    def test_guides_table_paths_are_keys(self) -> None:
        keys = {"dft_chi_csv": "a.csv", "exp_chi_csv": "b.csv", "solubility_csv": "c.csv", "results_dir": "r"}
        paths = load_config(None, {f"paths.{key}": value for key, value in keys.items()}).paths
        assert {key: getattr(paths, key) for key in keys} == keys

    def test_comments_of_the_shipped_file_name_every_key(self, project_root: Path) -> None:
        text = (project_root / "configs" / "config_hparam_search.yaml").read_text(encoding="utf-8")
        shipped = load_config(project_root / "configs" / "config_hparam_search.yaml").model_dump()
        missing = [
            f"{section}.{key}"
            for section, values in shipped.items()
            if isinstance(values, dict)
            for key in values
            if f"{key}:" not in text and key != "study_name"
        ]
        assert missing == []

    @pytest.mark.parametrize("name", ["config_hparam_search.yaml", "config.yaml"])
    def test_every_key_of_a_shipped_file_has_its_meaning_beside_or_above_it(
        self, project_root: Path, name: str
    ) -> None:
        lines = (project_root / "configs" / name).read_text(encoding="utf-8").splitlines()
        bare = [
            line
            for above, line in pairwise(lines)
            if re.match(r"  \w+: ", line) and " # " not in line and not above.lstrip().startswith("# ")
        ]
        assert bare == []


def patterns_in(schema: object) -> Iterator[str]:
    """Every pattern of a JSON schema."""
    values = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else []
    for value in values:
        yield from patterns_in(value)
    if isinstance(schema, dict) and isinstance(schema.get("pattern"), str):
        yield schema["pattern"]


def test_every_pattern_has_words_for_its_error() -> None:
    assert set(patterns_in(Config.model_json_schema())) == set(WORDS)
    with pytest.raises(ConfigError, match=r"search.study_name: should be 1 to 100 letters, .* got 'my study'"):
        load_config(None, {"search.study_name": "my study"})
