"""The configuration: every problem at once, overrides, and a round trip. Its defaults: `test_config_defaults.py`."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chitransfer.config import Config, dump_config, load_config, override_config, parse_set_options
from chitransfer.errors import ConfigError
from chitransfer.sections import UNREAD_KEYS, parse_hidden_dims
from chitransfer.training.settings import network_shape, stage1_settings, stage2_settings


def message_of(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    return str(error.value)


class TestHiddenDims:
    @pytest.mark.parametrize("written", ["512_256", '"512_256"', "[512, 256]"])
    def test_ways_to_write_them(self, tmp_path: Path, written: str) -> None:
        path = tmp_path / "c.yaml"
        path.write_text(f"model:\n  encoder_hidden_dims: {written}\n", encoding="utf-8")
        assert load_config(path).model.encoder_hidden_dims == [512, 256]

    def test_on_the_command_line(self) -> None:
        overrides = parse_set_options(["model.encoder_hidden_dims=1024_512_256"])
        assert load_config(None, overrides).model.encoder_hidden_dims == [1024, 512, 256]

    @pytest.mark.parametrize("wrong", ["512-256", "512_", "_", "", [], [0], ["512"], [1.5], 512])
    def test_what_is_refused(self, wrong: object) -> None:
        with pytest.raises(ConfigError, match=r"model\.encoder_hidden_dims"):
            load_config(None, {"model.encoder_hidden_dims": wrong})

    @given(st.lists(st.integers(1, 5000), min_size=1, max_size=5))
    def test_text_is_the_numbers_joined(self, dims: list[int]) -> None:
        assert parse_hidden_dims("_".join(map(str, dims))) == dims


class TestProblems:
    def test_all_at_once_with_path_and_line(self, tmp_path: Path) -> None:
        text = (
            "sed: 1\n"  # line 1: unknown
            "model:\n"
            "  encoder_dropout: 1.3\n"  # line 3: impossible
            "  encoder_latent_dim: '128'\n"  # line 4: wrong type
            "training:\n"
            "  lr_pretrian: 0.1\n"  # line 6: unknown
            "  device: gpu\n"  # line 7: impossible
            "search:\n"
            "  space:\n"
            "    a: {key: model.encoder_dropout, type: float, low: 0.4, high: 0.2}\n"  # line 10
            "    b: {key: training.lr_pretrain, type: log, low: 0.0, high: 1.0}\n"  # line 11
            "    c: {key: model.encoder_latent_dim, type: categorical, choices: []}\n"  # line 12
            "cv:\n"
            "  n_cv_folds:\n"  # line 14: left empty
        )
        path = tmp_path / "broken.yaml"
        message = message_of(path, text)
        assert message.startswith(f"{path}: 9 settings cannot be used")
        for expected in (
            "line 1: sed: unknown key (did you mean seed?)",
            "line 3: model.encoder_dropout: ",
            "got 1.3",
            "line 4: model.encoder_latent_dim: ",
            "got '128'",
            "line 6: training.lr_pretrian: unknown key (did you mean lr_pretrain?)",
            "line 7: training.device: ",
            "got 'gpu'",
            "line 10: search.space.a: low must be at most high",
            "line 11: search.space.b: a log range must stay above zero",
            "line 12: search.space.c: a categorical parameter needs a list of choices",
            "line 14: cv.n_cv_folds: input should be a valid integer, got nothing (null)",
        ):
            assert expected in message, message

    @pytest.mark.parametrize(
        ("dotted", "value"),
        [
            ("seed", -1),
            ("seed", True),
            ("seed", 1.5),
            ("T_ref_K", 25.0),
            ("model.encoder_dropout", 1.0),
            ("model.encoder_dropout", -0.1),
            ("model.encoder_dropout", float("nan")),
            ("model.use_batchnorm", "yes"),
            ("training.lr_pretrain", 0.0),
            ("training.lr_pretrain", float("inf")),
            ("training.lr_pretrain", "1e-3 "),
            ("training.validation_fraction", 1.0),
            ("training.batch_size_dft", 0),
            ("training.device", "cuda:x"),
            ("training.precision", "fp8"),
            ("training.class_weight_pos", 0.0),
            ("cv.n_cv_folds", 1),
            ("data.on_bad_rows", "ignore"),
            ("solubility.positive", "both"),
            ("objective.sol_f1", -1.0),
            ("search.n_trials", 0),
            ("search.timeout_hours", -1.0),
            ("search.sampler", "annealing"),
            *(
                ("search.study_name", name)
                for name in ("../up", "a/b", "..", ".hidden", "/abs", "a\\b", "x" * 101, "", "new\nline")
            ),
            ("search.rungs", [10, 5]),
            ("search.rungs", [5, 5]),
            ("chem.fingerprint_bits", 8),
        ],
    )
    def test_impossible_values_are_refused_by_dotted_path(self, dotted: str, value: object) -> None:
        with pytest.raises(ConfigError) as error:
            load_config(None, {dotted: value})
        assert f"{dotted}: " in str(error.value)

    def test_objective_needs_a_weight(self) -> None:
        weights = {f"objective.{name}": 0.0 for name in ("exp_mae", "sol_f1", "sol_recall", "stage1_mae")}
        with pytest.raises(ConfigError, match="objective: at least one weight must be above zero"):
            load_config(None, weights)

    def test_stage_2_needs_a_task(self) -> None:
        with pytest.raises(ConfigError, match="training: lambda_exp and lambda_sol cannot both be zero"):
            load_config(None, {"training.lambda_exp": 0.0, "training.lambda_sol": 0.0})

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("model: [", "not valid YAML"),
            ("- 1\n- 2\n", "got list"),
            ("42\n", "got int"),
            ("seed: 1\nseed: 2\n", "not valid YAML"),
            ("seed: !!python/object:os.system x\n", "not valid YAML"),
            ("model: 3\n", "line 1: model: "),
            ("model:\n", "model: "),
            ("1: 2\n", "line 1: 1: keys should be strings"),
            ("seed: 2020-01-01\n", "line 1: seed: "),
            ("a: &a {b: *a}\n", ""),
        ],
    )
    def test_texts_that_are_no_configuration(self, tmp_path: Path, text: str, expected: str) -> None:
        assert expected in message_of(tmp_path / "c.yaml", text)

    def test_a_missing_file_and_a_folder(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.yaml", tmp_path):
            with pytest.raises(ConfigError, match=str(path)):
                load_config(path)

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_bytes(b"seed: \xff\xfe\n")
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(path)

    def test_an_empty_file_is_every_default(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text("# nothing\n", encoding="utf-8")
        assert load_config(path) == Config()

    def test_an_overridden_value_is_not_blamed_on_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text("seed: 5\n", encoding="utf-8")
        with pytest.raises(ConfigError, match="1 setting cannot be used\n  from the command line: seed: ") as error:
            load_config(path, {"seed": -3})
        assert "line 1" not in str(error.value)

    def test_an_overridden_value_is_not_blamed_on_its_heading(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text("search:\n  timeout_hours: -1.0\ntraining:\n  lambda_exp: 0.0\n", encoding="utf-8")
        with pytest.raises(ConfigError) as error:
            load_config(path, {"search.n_trials": 0, "search.space.lr_pretrain.low": 1.0, "cv.n_cv_fold": 3})
        for expected in (
            "line 2: search.timeout_hours: ",
            "from the command line: search.n_trials: ",
            "from the command line: search.space.lr_pretrain: low must be at most high",
            "from the command line: cv.n_cv_fold: unknown key (did you mean n_cv_folds?)",
        ):
            assert expected in str(error.value), str(error.value)
        path.write_text("training:\n  lambda_exp: 0.0\n", encoding="utf-8")
        with pytest.raises(ConfigError, match="line 1 and the command line: training: lambda_exp and lambda_sol"):
            load_config(path, {"training.lambda_sol": 0.0})


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("device", "did you mean training.device?"),
        ("model.lr_pretrain", "did you mean training.lr_pretrain?"),
        ("training.seed", "did you mean seed, which is in no section?"),
        ("space", "did you mean search.space or second_pass.space?"),
    ],
)
def test_a_key_at_the_wrong_place_is_told_the_right_one(key: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(hint)):
        load_config(None, {key: 1})


def test_an_anchor_may_be_named_again(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("seed: &a 1\nT_ref_K: &a 300.0\nobjective: {exp_mae: *a}\n", encoding="utf-8")
    assert load_config(path).objective.exp_mae == 300.0


def test_an_override_changes_one_of_two_places_that_share_an_anchor(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("training: &a {}\nmodel: *a\n", encoding="utf-8")
    assert load_config(path, {"model.encoder_dropout": 0.3}).model.encoder_dropout == 0.3


class TestSetOptions:
    def test_values_are_yaml(self) -> None:
        options = ["a.b=1", "a.c=1.0e-3", "x=true", "y=null", "z=[1, 2]", "s=some text", "e=1e-3", "q='5'", "n="]
        assert parse_set_options(options) == {
            "a.b": 1,
            "a.c": 1e-3,
            "x": True,
            "y": None,
            "z": [1, 2],
            "s": "some text",
            "e": 1e-3,
            "q": "5",
            "n": None,
        }

    def test_the_last_one_wins_and_equals_signs_stay(self) -> None:
        assert parse_set_options(["a=1", "a=2", "paths.dft_chi_csv=x=y.csv"]) == {
            "a": 2,
            "paths.dft_chi_csv": "x=y.csv",
        }

    @pytest.mark.parametrize("value", ["2026-19-01", "!!int x", "[1, 2", "[" * 1000], ids=lambda value: value[:12])
    def test_what_yaml_cannot_read_is_an_error_of_the_option(self, value: str) -> None:
        with pytest.raises(ConfigError, match=r"--set search\.study_name=.*the value is not valid YAML"):
            parse_set_options([f"search.study_name={value}"])

    @pytest.mark.parametrize("option", ["seed", "=3", " =3", ""])
    def test_form(self, option: str) -> None:
        with pytest.raises(ConfigError, match="--set needs the form"):
            parse_set_options([option])

    def test_invalid_yaml_value(self) -> None:
        with pytest.raises(ConfigError, match=r"--set a=\[1: the value is not valid YAML"):
            parse_set_options(["a=[1"])

    def test_a_value_has_no_keys(self) -> None:
        with pytest.raises(ConfigError, match="seed is a single value"):
            override_config(Config(), {"seed.x": 1})

    def test_a_new_parameter_joins_the_space(self) -> None:
        options = parse_set_options(
            [
                "search.space.norm.key=model.use_batchnorm",
                "search.space.norm.type=categorical",
                "search.space.norm.choices=[true, false]",
            ]
        )
        base = load_config(None)
        space = override_config(base, options).search.space
        assert list(space) == [*base.search.space, "norm"]
        assert space["norm"].choices == [True, False]

    @pytest.mark.parametrize("text", [None, "seed: 1\n", "search: {n_trials: 5}\nsecond_pass: {n_trials: 5}\n"])
    def test_a_space_the_file_leaves_out_is_the_default_one(self, tmp_path: Path, text: str | None) -> None:
        path = None if text is None else tmp_path / "c.yaml"
        if path is not None:
            path.write_text(text or "", encoding="utf-8")
        base = load_config(path)
        head = {"key": "model.chi_head_hidden_dim", "type": "categorical", "choices": [32, 64]}
        config = load_config(path, {"search.space.head": head, "second_pass.space.lr_encoder.low": 2e-5})
        assert list(config.search.space) == [*base.search.space, "head"]
        assert config.search.space["lr_pretrain"] == base.search.space["lr_pretrain"]
        assert list(config.second_pass.space) == list(base.second_pass.space)
        assert config.second_pass.space["lr_encoder"].low == 2e-5

    def test_a_whole_space_replaces_the_default_one(self, tmp_path: Path) -> None:
        head = {"key": "model.chi_head_hidden_dim", "type": "categorical", "choices": [32, 64]}
        assert list(load_config(None, {"search.space": {"head": head}}).search.space) == ["head"]
        path = tmp_path / "c.yaml"
        path.write_text("search:\n  space:\n    a: {key: model.encoder_dropout, type: float, low: 0.1, high: 0.2}\n")
        assert list(load_config(path, {"search.space.head": head}).search.space) == ["a", "head"]


class TestSpaceValues:
    @pytest.mark.parametrize(
        ("parameter", "problem"),
        [
            (
                {"key": "model.encoder_dropuot", "type": "float", "low": 0.1, "high": 0.2},
                "did you mean encoder_dropout",
            ),
            ({"key": "search.n_trials", "type": "int", "low": 1, "high": 2}, "search.space.p.key"),
            ({"key": "model.encoder_dropout", "type": "float", "low": 0.1, "high": 1.2}, "1.2 is no value"),
            ({"key": "model.encoder_latent_dim", "type": "float", "low": 1.0, "high": 2.0}, "is no value for"),
            ({"key": "model.encoder_latent_dim", "type": "int", "low": 0, "high": 2}, "0 is no value for"),
            ({"key": "model.encoder_latent_dim", "type": "int", "low": 1.5, "high": 2}, "whole numbers"),
            ({"key": "model.encoder_hidden_dims", "type": "categorical", "choices": ["64", "x"]}, "'x' is no value"),
            ({"key": "model.use_batchnorm", "type": "categorical", "choices": [True, 3]}, "3 is no value"),
            ({"key": "model.encoder_latent_dim", "type": "categorical", "choices": [4, 4]}, "choices must differ"),
            ({"key": "model.encoder_latent_dim", "type": "categorical", "choices": [4], "low": 1}, "not low, high"),
            ({"key": "model.encoder_latent_dim", "type": "int", "choices": [4]}, "choices belong to type categorical"),
            ({"key": "model.encoder_latent_dim", "type": "int", "low": 4}, "needs low and high"),
            ({"key": "training.lr_pretrain", "type": "log", "low": 1e-4, "high": 1e-2, "step": 1.0}, "takes no step"),
            ({"key": "training.lr_pretrain", "type": "float", "low": 0.1, "high": float("inf")}, "finite"),
            ({"key": "training.lr_pretrain", "type": "uniform", "low": 0.1, "high": 0.2}, "search.space.p.type"),
            (
                {"key": "training.validation_fraction", "type": "float", "low": 0.1, "high": 0.3},
                "from the command line: search.space.p.key: no trial uses training.validation_fraction",
            ),
        ],
    )
    def test_what_the_space_may_not_hold(self, parameter: dict[str, object], problem: str) -> None:
        with pytest.raises(ConfigError) as error:
            load_config(None, {"search.space": {"p": parameter}})
        assert problem in str(error.value)
        assert "search.space.p" in str(error.value)

    def test_it_may_hold_exactly_what_a_trial_reads(self) -> None:
        """Each key that the settings of Stage 1, quick Stage 2 or the network depend on, found by changing it."""

        def settings_of(config: Config) -> object:
            quick = stage2_settings(config, config.training.stage2_epochs)
            return network_shape(config, 10), stage1_settings(config), quick

        config = load_config(None)
        unread = set()
        for section in ("model", "training"):
            for key, value in config.model_dump()[section].items():
                others = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2, list: lambda v: v[:1]}
                other = {"device": "cpu", "precision": "fp32"}.get(key) or others[type(value)](value)
                if settings_of(override_config(config, {f"{section}.{key}": other})) == settings_of(config):
                    unread.add(f"{section}.{key}")
        assert unread == UNREAD_KEYS

    def test_an_empty_space(self) -> None:
        with pytest.raises(ConfigError, match=r"search\.space"):
            load_config(None, {"search.space": {}})

    def test_two_parameters_for_one_key(self) -> None:
        parameter = {"key": "model.encoder_dropout", "type": "float", "low": 0.1, "high": 0.2}
        with pytest.raises(ConfigError, match="two parameters of the space set the same key"):
            load_config(None, {"search.space": {"a": parameter, "b": parameter}})


class TestRoundTrip:
    @pytest.mark.parametrize("name", ["config_hparam_search.yaml", None])
    def test_what_is_dumped_is_read_back(self, project_root: Path, tmp_path: Path, name: str | None) -> None:
        config = load_config(None if name is None else project_root / "configs" / name)
        path = tmp_path / "dumped.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        assert load_config(path) == config

    @given(
        rate=st.floats(1e-12, 1e3),
        dropout=st.floats(0.0, 1.0, exclude_max=True),
        name=st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.\-]{0,20}\Z"),
        path=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1),
        choices=st.lists(st.sampled_from(["64", "512_256", "8_8_8"]), min_size=1, unique=True),
    )
    @settings(max_examples=40)
    def test_any_value_survives(self, rate: float, dropout: float, name: str, path: str, choices: list[str]) -> None:
        from ruamel.yaml import YAML

        config = load_config(
            None,
            {
                "training.lr_pretrain": rate,
                "model.encoder_dropout": dropout,
                "search.study_name": name,
                "paths.dft_chi_csv": path,
                "search.space": {"h": {"key": "model.encoder_hidden_dims", "type": "categorical", "choices": choices}},
            },
        )
        assert load_config_text(dump_config(config)) == config
        assert YAML(typ="safe").load(dump_config(config))["search"]["study_name"] == name

    def test_overriding_changes_nothing_given(self, tiny: dict[str, object]) -> None:
        before = copy.deepcopy(tiny)
        config = load_config(None, tiny)
        dumped = dump_config(config)
        override_config(config, {"seed": 7, "search.space": {}} | tiny)
        assert tiny == before
        assert dump_config(config) == dumped


def load_config_text(text: str) -> Config:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path)
