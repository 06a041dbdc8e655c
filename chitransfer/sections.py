"""The sections of the configuration: every key with its type, range and default.

`chitransfer.config` assembles them and reads them from YAML.
"""

from __future__ import annotations

import math
import os
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from chitransfer import patterns


def parse_hidden_dims(value: object) -> object:
    """Turn the guide's ``"512_256"`` into ``[512, 256]``; anything else is left to validation."""
    if isinstance(value, str) and value and all(part.isascii() and part.isdecimal() for part in value.split("_")):
        return [int(part) for part in value.split("_")]
    return value


def read_hidden_dims(value: object) -> object:
    """A list is left to validation; anything else is refused with a hint at how widths are written."""
    widths = parse_hidden_dims(value)
    if not isinstance(widths, list):
        raise ValueError(f'widths of layers are written [512, 256] or "512_256", that of one [512], got {value!r}')
    return widths


def check_storage(value: str) -> str:
    """Accept a database server's address for the study; the message never repeats the password."""
    if not re.fullmatch(r"postgresql(\+psycopg)?://\S+", value):
        raise ValueError("a storage is postgresql://user@host:port/database, or null for SQLite in the study's folder")
    return value


UserPath = Annotated[str, AfterValidator(os.path.expanduser)]  # A leading ~ is the user's home
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
# Far above any sensible value, and below what PyTorch or single precision cannot hold.
Weight = Annotated[float, Field(ge=0.0, le=1e6)]
Width = Annotated[int, Field(ge=1, le=65536)]
Count = Annotated[int, Field(ge=1)]
HiddenDims = Annotated[list[Width], BeforeValidator(read_hidden_dims), Field(min_length=1)]
Device = Annotated[str, Field(pattern=patterns.DEVICE)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, types are not coerced, values are immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PathSettings(Section):
    """Where the three tables are read from and where results go."""

    dft_chi_csv: UserPath = "builtin:computed_chi"
    exp_chi_csv: UserPath | None = "builtin:experimental_chi"
    solubility_csv: UserPath | None = "builtin:water_solubility"
    results_dir: UserPath = "results"
    cache_dir: UserPath | None = None


class DataSettings(Section):
    """What to do with rows that cannot be used."""

    on_bad_rows: Literal["error", "skip"] = "error"
    on_contradictory_labels: Literal["error", "drop", "majority"] = "error"


class ChemistrySettings(Section):
    """How a polymer becomes a vector."""

    representation: Literal["periodic", "repeat_unit"] = "periodic"
    fingerprint_bits: Annotated[int, Field(ge=64, le=65536)] = 2048
    fingerprint_radius: Annotated[int, Field(ge=0, le=6)] = 2


class ModelSettings(Section):
    """Encoder, χ head and solubility head."""

    encoder_latent_dim: Width = 128
    encoder_hidden_dims: HiddenDims = [512, 256]
    encoder_dropout: Dropout = 0.2
    use_batchnorm: bool = False
    chi_head_hidden_dim: Width = 64
    chi_head_dropout: Dropout = 0.1
    solubility_head_hidden_dim: Width = 64
    solubility_head_dropout: Dropout = 0.1


class TrainingSettings(Section):
    """Optimisation of both stages."""

    device: Device = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    num_threads: Annotated[int, Field(ge=0, le=1024)] = 0
    lr_pretrain: Positive = 1e-3
    weight_decay: NotNegative = 1e-4
    batch_size_dft: Count = 256
    min_batches_per_epoch: Count = 16
    num_epochs_pretrain: Count = 100
    min_epochs_pretrain: Annotated[int, Field(ge=0)] = 0
    n_networks: Count = 1
    test_fraction: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    min_validation_polymers: Count = 50
    early_stopping_patience: Count = 10
    lr_schedule_patience: Count = 4
    lr_schedule_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    grad_clip_norm: Positive = 1.0
    batch_size_exp: Count = 64
    stage2_epochs: Count = 20
    num_epochs_finetune: Count = 200
    lr_decay_finetune: bool = True
    lr_finetune: Positive = 1e-3
    lr_encoder: Positive = 1e-4
    weight_decay_finetune: NotNegative = 1e-4
    freeze_encoder_stage2: bool = True
    lambda_exp: Weight = 3.0
    lambda_sol: Weight = 1.0
    lambda_dft: Weight = 1.0
    class_weight_pos: Annotated[float, Field(gt=0.0, le=1e6)] = 5.0

    @model_validator(mode="after")
    def _need_a_task(self) -> TrainingSettings:
        if self.lambda_exp == 0 and self.lambda_sol == 0:
            raise ValueError("lambda_exp and lambda_sol cannot both be zero: Stage 2 would have nothing to learn")
        return self


class CrossValidationSettings(Section):
    """Grouped k-fold cross-validation of quick Stage 2."""

    n_cv_folds: Annotated[int, Field(ge=2)] = 5
    n_cv_repeats: Count = 3
    random_forest: bool = True


class SolubilitySettings(Section):
    """Which class F1, recall and precision refer to."""

    positive: Literal["soluble", "insoluble", "minority"] = "soluble"


class ObjectiveSettings(Section):
    """Weights of the transfer objective; errors enter unchanged, scores as 1 − score. Minimised."""

    exp_mae: NotNegative = 1.5
    sol_f1: NotNegative = 2.0
    sol_recall: NotNegative = 1.5
    stage1_mae: NotNegative = 0.1
    exp_rmse: NotNegative = 0.0
    exp_r2: NotNegative = 0.0
    sol_auc: NotNegative = 0.0
    sol_balanced_accuracy: NotNegative = 0.0
    sol_mcc: NotNegative = 0.0

    @model_validator(mode="after")
    def _need_a_weight(self) -> ObjectiveSettings:
        if not any(weight > 0 for weight in self.model_dump().values()):
            raise ValueError("at least one weight must be above zero")
        return self


ObjectiveName = Literal[
    "exp_mae", "sol_f1", "sol_recall", "stage1_mae", "exp_rmse", "exp_r2", "sol_auc", "sol_balanced_accuracy", "sol_mcc"
]


FULL_TRAINING_KEYS = {
    "training.test_fraction", "training.n_networks", "training.num_epochs_finetune", "training.lr_decay_finetune",
    "training.lambda_dft",
}  # fmt: skip
# Not read by any trial: keys of the whole study, whose trials share a device and a split, and keys of full training.
UNREAD_KEYS = {"training.device", "training.num_threads", "training.validation_fraction", *FULL_TRAINING_KEYS}


def check_space_key(key: str) -> str:
    """Refuse to search a key that no trial reads."""
    if key in UNREAD_KEYS:
        raise ValueError(
            f"no trial uses {key}, so all its values would score the same; any model.* or training.* key will do but "
            f"{', '.join(sorted(UNREAD_KEYS))}"
        )
    return key


class SpaceParameter(Section):
    """One searched hyperparameter: which key it sets and the values it may take."""

    key: Annotated[str, Field(pattern=patterns.SPACE_KEY), AfterValidator(check_space_key)]
    type: Literal["categorical", "int", "float", "log"]
    choices: list[bool | int | float | str] | None = None
    low: float | None = None
    high: float | None = None
    step: Positive | None = None

    @model_validator(mode="after")
    def _check_range(self) -> SpaceParameter:
        if self.type == "categorical":
            if not self.choices:
                raise ValueError("a categorical parameter needs a list of choices with at least one value")
            if self.low is not None or self.high is not None or self.step is not None:
                raise ValueError("a categorical parameter takes choices, not low, high or step")
            if len({repr(parse_hidden_dims(choice)) for choice in self.choices}) < len(self.choices):
                raise ValueError(f"choices must differ from each other, got {self.choices}")
            return self
        if self.choices is not None:
            raise ValueError(f"choices belong to type categorical, not to type {self.type}")
        if self.low is None or self.high is None:
            raise ValueError(f"type {self.type} needs low and high")
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low > self.high:
            raise ValueError(f"low must be at most high and both finite, got low {self.low}, high {self.high}")
        if self.type == "log" and self.low <= 0:
            raise ValueError(f"a log range must stay above zero, got low {self.low}")
        if self.type == "log" and self.step is not None:
            raise ValueError("a log range takes no step")
        if self.type == "int" and any(v is not None and v != int(v) for v in (self.low, self.high, self.step)):
            raise ValueError(f"type int needs whole numbers, got low {self.low}, high {self.high}, step {self.step}")
        return self

    def ends(self) -> list[Any]:
        """The values that must be valid for the key: every choice, or both ends of the range."""
        if self.choices is not None:
            return list(self.choices)
        cast = int if self.type == "int" else float
        return [cast(self.low or 0.0), cast(self.high or 0.0)]


def check_space(space: dict[str, SpaceParameter]) -> dict[str, SpaceParameter]:
    """Refuse a space in which two parameters set the same key."""
    keys = [parameter.key for parameter in space.values()]
    if len(set(keys)) < len(keys):
        raise ValueError(f"two parameters of the space set the same key: {', '.join(sorted(keys))}")
    return space


Space = Annotated[dict[str, SpaceParameter], Field(min_length=1), AfterValidator(check_space)]


def guide_space() -> dict[str, SpaceParameter]:
    """The six Stage 1 hyperparameters of the guide, with its names and ranges."""
    return {
        "latent_dim": SpaceParameter(key="model.encoder_latent_dim", type="categorical", choices=[64, 128, 256]),
        "encoder_hidden": SpaceParameter(
            key="model.encoder_hidden_dims", type="categorical", choices=["512_256", "1024_512_256", "256_128"]
        ),
        "encoder_dropout": SpaceParameter(key="model.encoder_dropout", type="float", low=0.15, high=0.35),
        "chi_head_dropout": SpaceParameter(key="model.chi_head_dropout", type="float", low=0.05, high=0.25),
        "lr_pretrain": SpaceParameter(key="training.lr_pretrain", type="log", low=5e-4, high=2e-3),
        "weight_decay": SpaceParameter(key="training.weight_decay", type="log", low=1e-5, high=1e-3),
    }


class SearchSettings(Section):
    """Budget, sampler, pruner and space of the search."""

    n_trials: Count = 50
    timeout_hours: Positive = 48.0
    study_name: Annotated[str, Field(pattern=patterns.NAME)] | None = None
    sampler: Literal["tpe", "random", "cmaes", "gp", "qmc", "nsga2"] = "tpe"
    n_startup_trials: Annotated[int, Field(ge=1)] = 10
    pruner: Literal["auto", "none", "median", "hyperband", "asha"] = "auto"
    rungs: list[Count] = []
    n_pretrain_seeds: Count = 1
    enqueue_default: bool = True
    replicates: Count = 1
    select: Literal["best", "reevaluated", "one_se"] = "best"
    reevaluate_top: Annotated[int, Field(ge=0)] = 5
    reevaluate_seeds: Count = 2
    objectives: list[ObjectiveName] = []
    control: Literal["none", "permute"] = "none"
    max_consecutive_failures: Count = 5
    workers: Count = 1
    pack: Count | Literal["auto"] = "auto"
    devices: list[Device] = []
    scheduler: Annotated[str, Field(pattern=patterns.SCHEDULER)] | None = None
    storage: Annotated[str, AfterValidator(check_storage)] | None = None
    trial_timeout_minutes: Positive | None = None
    max_worker_deaths: Count = 3
    halve_batch_when_out_of_memory: bool = False
    space: Space = Field(default_factory=guide_space)

    @field_validator("rungs", mode="after")
    @classmethod
    def _check_rungs(cls, rungs: list[int]) -> list[int]:
        if rungs != sorted(set(rungs)):
            raise ValueError(f"rungs must be Stage 1 epochs in rising order, got {rungs}")
        return rungs

    @model_validator(mode="after")
    def _check_objectives(self) -> SearchSettings:
        if not self.objectives:
            return self
        if len(set(self.objectives)) < max(2, len(self.objectives)):
            raise ValueError(f"objectives must be two or more different names, or [], got {self.objectives}")
        if self.pruner not in ("auto", "none") or self.replicates > 1 or self.sampler == "cmaes":
            raise ValueError("objectives need pruner auto or none, replicates 1 and a sampler other than cmaes")
        return self


def second_pass_space() -> dict[str, SpaceParameter]:
    """Stage 2 hyperparameters that a second pass tunes on one Stage 1 encoder."""
    return {
        "lr_finetune": SpaceParameter(key="training.lr_finetune", type="log", low=1e-4, high=1e-2),
        "lr_encoder": SpaceParameter(key="training.lr_encoder", type="log", low=1e-5, high=1e-3),
        "weight_decay_finetune": SpaceParameter(key="training.weight_decay_finetune", type="log", low=1e-5, high=1e-2),
        "freeze_encoder": SpaceParameter(
            key="training.freeze_encoder_stage2", type="categorical", choices=[True, False]
        ),
        "stage2_epochs": SpaceParameter(key="training.stage2_epochs", type="int", low=10, high=60, step=5),
        "lambda_exp": SpaceParameter(key="training.lambda_exp", type="log", low=0.5, high=10.0),
        "class_weight_pos": SpaceParameter(key="training.class_weight_pos", type="log", low=1.0, high=10.0),
        "chi_head_dropout": SpaceParameter(key="model.chi_head_dropout", type="float", low=0.0, high=0.4),
        "solubility_head_dropout": SpaceParameter(key="model.solubility_head_dropout", type="float", low=0.0, high=0.4),
    }


# What a second pass may tune: only keys that do not require training the kept Stage 1 again.
SECOND_PASS_KEYS = frozenset(
    {
        "training.lr_finetune",
        "training.lr_encoder",
        "training.weight_decay_finetune",
        "training.batch_size_exp",
        "training.stage2_epochs",
        "training.freeze_encoder_stage2",
        "training.lambda_exp",
        "training.lambda_sol",
        "training.class_weight_pos",
        "training.grad_clip_norm",
        "model.encoder_dropout",
        "model.chi_head_dropout",
        "model.solubility_head_dropout",
        "model.solubility_head_hidden_dim",
    }
)


class SecondPassSettings(Section):
    """Tuning Stage 2 on one Stage 1 encoder of a finished search."""

    n_trials: Count = 50
    space: Space = Field(default_factory=second_pass_space)

    @field_validator("space", mode="after")
    @classmethod
    def _check_keys(cls, space: dict[str, SpaceParameter]) -> dict[str, SpaceParameter]:
        others = sorted({parameter.key for parameter in space.values()} - SECOND_PASS_KEYS)
        if others:
            raise ValueError(
                f"a second pass goes on from a finished Stage 1 and cannot tune {', '.join(others)}; "
                f"it can tune {', '.join(sorted(SECOND_PASS_KEYS))}"
            )
        return space


class ClusterSettings(Section):
    """A job of the batch system, for `search.scheduler` slurm, pbs, lsf or sge."""

    queue: str | None = None
    account: str | None = None
    walltime: Annotated[str, Field(pattern=patterns.WALLTIME)] = "04:00:00"
    cores: Count = 4
    memory: Annotated[str, Field(pattern=patterns.MEMORY)] = "8GB"
    workers_per_job: Count = 1
    gpus_per_job: Annotated[int, Field(ge=0)] = 0
    directives: list[str] = []
    setup: list[str] = []
    python: str | None = None
    interface: str | None = None
    local_directory: str | None = None
    minimum_jobs: Annotated[int, Field(ge=0)] = 1
    maximum_jobs: Count = 4
    scheduler_wait_minutes: Positive = 10.0

    @model_validator(mode="after")
    def _check_jobs(self) -> ClusterSettings:
        if self.minimum_jobs > self.maximum_jobs:
            raise ValueError(
                f"minimum_jobs must be at most maximum_jobs, got {self.minimum_jobs} and {self.maximum_jobs}"
            )
        return self
