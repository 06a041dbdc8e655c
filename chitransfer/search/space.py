"""The search space: from configuration to Optuna suggestions, and from suggestions back to configuration keys.

Called by `search.driver` and by code that reads a trial's parameters back.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial

from chitransfer.config import Config, override_config
from chitransfer.errors import ConfigError
from chitransfer.search.unread import is_judged_by_held_out
from chitransfer.sections import SearchSettings, SpaceParameter, parse_hidden_dims
from chitransfer.seeds import derive_seed

if TYPE_CHECKING:
    from chitransfer.data.assemble import Dataset

# asha and hyperband let one trial in this many continue, for this many times the epochs.
REDUCTION_FACTOR = 3
# Attribute of a trial that ran out of memory with its own `training.batch_size_dft`: the size it continued with.
HALVED_BATCH_SIZE = "halved_batch_size_dft"


def to_distribution(parameter: SpaceParameter) -> CategoricalDistribution | IntDistribution | FloatDistribution:
    """Optuna's distribution of one parameter."""
    if parameter.choices is not None:
        return CategoricalDistribution(parameter.choices)
    low, high = parameter.ends()
    with warnings.catch_warnings():
        # If steps do not divide the range, the last one ends below `high`, as whoever set them will know.
        warnings.filterwarnings("ignore", message="The distribution is specified by")
        if parameter.type == "int":
            return IntDistribution(low, high, step=int(parameter.step or 1))
        return FloatDistribution(low, high, step=parameter.step, log=parameter.type == "log")


def to_overrides(
    params: Mapping[str, Any], space: Mapping[str, SpaceParameter], attributes: Mapping[str, Any] | None = None
) -> dict[str, object]:
    """Values for `override_config` by dotted configuration key.

    Parameters
    ----------
    attributes
        Of the trial, if it has run: after running out of memory they hold the smaller batch size it used instead.
    """
    overrides: dict[str, object] = {space[name].key: value for name, value in params.items()}
    halved = (attributes or {}).get(HALVED_BATCH_SIZE)
    return overrides if halved is None else {**overrides, "training.batch_size_dft": halved}


def default_params(config: Config) -> tuple[dict[str, Any], list[str]]:
    """The configuration's own values as a point of the space, and the parameters whose value lies outside it."""
    params: dict[str, Any] = {}
    outside = []
    for name, parameter in config.search.space.items():
        section, key = parameter.key.split(".")
        value = getattr(getattr(config, section), key)
        if parameter.choices is not None:
            same = [choice for choice in parameter.choices if parse_hidden_dims(choice) == value]
            if same:
                params[name] = same[0]
                continue
        elif to_distribution(parameter)._contains(value):
            params[name] = value
            continue
        outside.append(f"{parameter.key} = {value}")
    return params, outside


def make_sampler(settings: SearchSettings, study_seed: int, number: int, position: int = 0) -> BaseSampler:
    """A sampler for one suggestion of one trial.

    Samplers are created anew for every trial from (study seed, trial number), and for every parameter drawn separately,
    so that a resumed search suggests the same values as an uninterrupted one.
    """
    seed = derive_seed(study_seed, "sampler", number, position)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if settings.sampler == "random":
            return RandomSampler(seed=seed)
        if settings.sampler == "cmaes":
            # CMA-ES cannot handle categorical parameters; TPE draws them.
            return CmaEsSampler(
                seed=seed,
                n_startup_trials=settings.n_startup_trials,
                warn_independent_sampling=False,
                independent_sampler=_make_tpe(settings, seed),
            )
        if settings.sampler == "gp":
            return _RememberingGPSampler(
                seed=seed, n_startup_trials=settings.n_startup_trials, deterministic_objective=False
            )
        if settings.sampler == "nsga2":
            return NSGAIISampler(population_size=2 * settings.n_startup_trials, seed=seed)
        if settings.sampler == "qmc":
            # The scrambled sequence itself must be the same for the whole study.
            return _NumberedQMCSampler(
                number,
                settings.space,
                scramble=True,
                seed=derive_seed(study_seed, "qmc"),
                independent_sampler=RandomSampler(seed=seed),
                warn_independent_sampling=False,
            )
        return _make_tpe(settings, seed)


class _NumberedQMCSampler(QMCSampler):
    """Takes the point of the sequence with the trial's number, in the current search space.

    Optuna counts the points handed out, so a trial drawn again on resume would get the next one. It also draws from the
    space of the study's first trial, regardless of ``--allow-extended-space``.
    """

    def __init__(self, number: int, space: Mapping[str, SpaceParameter], **options: Any) -> None:
        super().__init__(**options)
        self._number = number
        self._space = space

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        known = super().infer_relative_search_space(study, trial)
        if not known:
            return known
        # Each parameter keeps its position, hence its coordinate of the sequence; new ones come last.
        names = [*(name for name in known if name in self._space), *(name for name in self._space if name not in known)]
        return {name: to_distribution(self._space[name]) for name in names}

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._number


class _RememberingGPSampler(GPSampler):
    """Gives a trial that is drawn again on resume the same parameters as before.

    Optuna's sampler mistakes such a running trial for a different one and avoids its parameters.
    """

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        pieces = [trial.system_attrs[name] for name in sorted(trial.system_attrs, key=_piece) if _piece(name) >= 0]
        try:
            drawn: dict[str, Any] = json.loads("".join(pieces))
        except json.JSONDecodeError:
            # Not drawn yet, or only partly written.
            with warnings.catch_warnings():
                # Warns about more than four objectives, which is the user's choice; a draw takes seconds.
                warnings.filterwarnings("ignore", message="Box decomposition")
                return super().sample_relative(study, trial, search_space)
        return {name: value for name, value in drawn.items() if name in search_space}


def _piece(attribute: str) -> int:
    """Which piece of the GP sampler's drawn parameters a trial attribute holds; −1: none."""
    name, _, number = attribute.rpartition(":")
    return int(number) if name == "gp:relative_params" else -1


def _make_tpe(settings: SearchSettings, seed: int) -> TPESampler:
    return TPESampler(seed=seed, n_startup_trials=settings.n_startup_trials, multivariate=True, constant_liar=True)


def settle_pruner(config: Config, dataset: Dataset) -> Config:
    """A configuration whose `search.pruner` is no longer ``auto``.

    It becomes ``median`` if there is one objective and Stage 1 holds out enough polymers for validation
    (`training.min_validation_polymers`), else ``none``: scores of early epochs were found to predict final ones with a
    large Stage 1 table but not with a small one (docs/performance.md).
    """
    if config.search.pruner != "auto":
        return config
    pays = is_judged_by_held_out(config, dataset) and not config.search.objectives
    return override_config(config, {"search.pruner": "median" if pays else "none"})


def make_pruner(settings: SearchSettings, n_epochs: int) -> BasePruner:
    """The pruner that decides at rungs; its resource is the Stage 1 epoch. ``auto`` must be settled before."""
    if settings.pruner == "median":
        return MedianPruner(n_startup_trials=5, n_warmup_steps=0)
    if settings.pruner == "asha":
        return SuccessiveHalvingPruner(
            min_resource=rung_epochs(settings, n_epochs)[0], reduction_factor=REDUCTION_FACTOR
        )
    if settings.pruner == "hyperband":
        return _NumberedHyperbandPruner(
            min_resource=rung_epochs(settings, n_epochs)[0], max_resource=n_epochs, reduction_factor=REDUCTION_FACTOR
        )
    return NopPruner()


class _NumberedHyperbandPruner(HyperbandPruner):
    """Chooses a trial's bracket by its number alone.

    Optuna's also depends on the study's name, so two searches with the same seed would not prune alike.
    """

    def _get_bracket_id(self, study: optuna.Study, trial: FrozenTrial) -> int:
        # It reads only the name of a study.
        return super()._get_bracket_id(SimpleNamespace(study_name=""), trial)  # type: ignore[arg-type]


def rung_epochs(settings: SearchSettings, n_epochs: int) -> list[int]:
    """Stage 1 epochs at which a trial is scored; the last is always the full number E.

    Without `search.rungs`, pruners use E/9, E/3 and E epochs and an unpruned search only E.
    """
    chosen = [epoch for epoch in settings.rungs if epoch < n_epochs]
    if not settings.rungs and settings.pruner not in ("auto", "none"):
        chosen = sorted({max(1, n_epochs // 9), max(1, n_epochs // 3)} - {n_epochs})
    return [*chosen, n_epochs]


def trial_rungs(config: Config, overrides: Mapping[str, object]) -> list[int]:
    """Stage 1 epochs at which a trial with these overrides is scored; the last is its own full number.

    If `training.num_epochs_pretrain` is searched, the earlier ones stay those of the study, so that trials compare.
    """
    n_epochs = override_config(config, overrides).training.num_epochs_pretrain
    early = config.search.rungs or rung_epochs(config.search, config.training.num_epochs_pretrain)[:-1]
    return [*(epoch for epoch in early if epoch < n_epochs), n_epochs]


def deciding_rungs(settings: SearchSettings, early: Sequence[int]) -> list[int]:
    """Rungs before the last at which the pruner decides: asha and hyperband wait for three times the epochs.

    Parameters
    ----------
    early
        Stage 1 epochs, ascending, at least one.
    """
    if settings.pruner not in ("asha", "hyperband"):
        return list(early)
    deciding, threshold = [], early[0]
    for epoch in early:
        if epoch >= threshold:
            deciding.append(epoch)
        while epoch >= threshold:
            threshold *= REDUCTION_FACTOR
    return deciding


def most_epochs(config: Config) -> int:
    """The largest number of Stage 1 epochs that any trial may have."""
    for parameter in config.search.space.values():
        if parameter.key == "training.num_epochs_pretrain":
            return max(parameter.ends())
    return config.training.num_epochs_pretrain


def suggest_params(study: optuna.Study, trial: optuna.Trial, settings: SearchSettings, seed: int) -> dict[str, Any]:
    """Draw the parameters of a trial or, for a resumed trial, read them back, in the order of the space.

    Raises
    ------
    ConfigError
        The trial was enqueued, by Optuna's own means, with a value outside the space.
    """
    _refuse_outside(study.get_trials(deepcopy=False)[trial.number].system_attrs.get("fixed_params", {}), settings.space)
    # Optuna 5 draws jointly sampled parameters on first use; they must come from the trial's own sampler.
    _ = getattr(trial, "relative_params", None)
    params: dict[str, Any] = {}
    for position, (name, parameter) in enumerate(settings.space.items()):
        study.sampler = make_sampler(settings, seed, trial.number, position + 1)
        params[name] = _suggest(trial, name, parameter)
    return params


def _refuse_outside(enqueued: Mapping[str, Any], space: Mapping[str, SpaceParameter]) -> None:
    for name, parameter in space.items():
        if name not in enqueued:
            continue
        distribution = to_distribution(parameter)
        try:
            is_inside = distribution._contains(distribution.to_internal_repr(enqueued[name]))
        except (ValueError, TypeError):
            is_inside = False
        if not is_inside:
            raise ConfigError(
                f"search.space.{name} does not contain {enqueued[name]!r}, the value the trial was enqueued with"
            )


def _suggest(trial: optuna.Trial, name: str, parameter: SpaceParameter) -> Any:
    distribution = to_distribution(parameter)
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step)
    return trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
