"""The search space: from configuration to Optuna suggestions, and from suggestions back to configuration keys.

Called by `search.driver`, and by what reads a trial's parameters back.
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

# asha and hyperband let one trial of so many go on, after so many times the epochs.
REDUCTION_FACTOR = 3
# Attribute of a trial for whose own `training.batch_size_dft` memory ran out: the size it went on with.
HALVED_BATCH_SIZE = "halved_batch_size_dft"


def to_distribution(parameter: SpaceParameter) -> CategoricalDistribution | IntDistribution | FloatDistribution:
    """Optuna's distribution of one parameter."""
    if parameter.choices is not None:
        return CategoricalDistribution(parameter.choices)
    low, high = parameter.ends()
    with warnings.catch_warnings():
        # The last step ends below `high` where steps do not divide the range, which is no news to who set them.
        warnings.filterwarnings("ignore", message="The distribution is specified by")
        if parameter.type == "int":
            return IntDistribution(low, high, step=int(parameter.step or 1))
        return FloatDistribution(low, high, step=parameter.step, log=parameter.type == "log")


def to_overrides(
    params: Mapping[str, Any], space: Mapping[str, SpaceParameter], attributes: Mapping[str, Any] | None = None
) -> dict[str, object]:
    """Dotted configuration keys and their values, for `override_config`.

    Parameters
    ----------
    attributes
        Of the trial, where it has run: if memory ran out they hold the smaller batch that it took instead.
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

    Samplers are made anew for every trial from (study seed, trial number), and for every parameter drawn on its own, so
    that a resumed search suggests what an uninterrupted one would have suggested.
    """
    seed = derive_seed(study_seed, "sampler", number, position)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if settings.sampler == "random":
            return RandomSampler(seed=seed)
        if settings.sampler == "cmaes":
            # Categorical parameters are beyond CMA-ES; TPE draws them.
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
            # The scrambled sequence itself must be one and the same for the whole study.
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
    """Takes the point of the sequence that has the trial's number, in the search space as it is now.

    Optuna counts the points it has handed out, so a trial that is drawn again on resume would take the next one. And it
    draws from the space of the study's first trial, whatever ``--allow-extended-space`` made of it.
    """

    def __init__(self, number: int, space: Mapping[str, SpaceParameter], **options: Any) -> None:
        super().__init__(**options)
        self._number = number
        self._space = space

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        known = super().infer_relative_search_space(study, trial)
        if not known:
            return known
        # Each parameter keeps its place, and so its coordinate of the sequence; those that joined come last.
        names = [*(name for name in known if name in self._space), *(name for name in self._space if name not in known)]
        return {name: to_distribution(self._space[name]) for name in names}

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._number


class _RememberingGPSampler(GPSampler):
    """Gives a trial that is drawn again on resume what it was given before.

    Optuna's takes such a trial, which is running, for another one's and keeps away from its parameters.
    """

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        pieces = [trial.system_attrs[name] for name in sorted(trial.system_attrs, key=_piece) if _piece(name) >= 0]
        try:
            drawn: dict[str, Any] = json.loads("".join(pieces))
        except json.JSONDecodeError:
            # Not drawn yet, or not all of it was written.
            with warnings.catch_warnings():
                # Of more than four objectives, which the user chose; a draw takes seconds.
                warnings.filterwarnings("ignore", message="Box decomposition")
                return super().sample_relative(study, trial, search_space)
        return {name: value for name, value in drawn.items() if name in search_space}


def _piece(attribute: str) -> int:
    """Which piece of the parameters that Optuna's GP sampler drew an attribute of a trial holds; −1: none."""
    name, _, number = attribute.rpartition(":")
    return int(number) if name == "gp:relative_params" else -1


def _make_tpe(settings: SearchSettings, seed: int) -> TPESampler:
    return TPESampler(seed=seed, n_startup_trials=settings.n_startup_trials, multivariate=True, constant_liar=True)


def settle_pruner(config: Config, dataset: Dataset) -> Config:
    """A configuration whose `search.pruner` is no longer ``auto``.

    It becomes ``median`` where there is one objective and Stage 1 holds out enough polymers to be judged by
    (`training.min_validation_polymers`), else ``none``: scores of early epochs were found to tell something about final
    ones on a large Stage 1 table and nothing on a small one (docs/performance.md).
    """
    if config.search.pruner != "auto":
        return config
    pays = is_judged_by_held_out(config, dataset) and not config.search.objectives
    return override_config(config, {"search.pruner": "median" if pays else "none"})


def make_pruner(settings: SearchSettings, n_epochs: int) -> BasePruner:
    """The pruner that decides at rungs; its resource is the Stage 1 epoch. ``auto`` is to be settled before."""
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

    Optuna's goes by the study's name, too, so that two searches with the same seed would not prune alike.
    """

    def _get_bracket_id(self, study: optuna.Study, trial: FrozenTrial) -> int:
        # All that it reads of a study is the name.
        return super()._get_bracket_id(SimpleNamespace(study_name=""), trial)  # type: ignore[arg-type]


def rung_epochs(settings: SearchSettings, n_epochs: int) -> list[int]:
    """Stage 1 epochs at which a trial is scored; the last is always the full number.

    Without `search.rungs`, pruners get E/9, E/3 and E epochs and an unpruned search only E.
    """
    chosen = [epoch for epoch in settings.rungs if epoch < n_epochs]
    if not settings.rungs and settings.pruner not in ("auto", "none"):
        chosen = sorted({max(1, n_epochs // 9), max(1, n_epochs // 3)} - {n_epochs})
    return [*chosen, n_epochs]


def trial_rungs(config: Config, overrides: Mapping[str, object]) -> list[int]:
    """Stage 1 epochs at which a trial with these overrides is scored; the last is its own full number.

    Where `training.num_epochs_pretrain` is searched, the others stay those of the study, so that trials compare.
    """
    n_epochs = override_config(config, overrides).training.num_epochs_pretrain
    early = config.search.rungs or rung_epochs(config.search, config.training.num_epochs_pretrain)[:-1]
    return [*(epoch for epoch in early if epoch < n_epochs), n_epochs]


def deciding_rungs(settings: SearchSettings, early: Sequence[int]) -> list[int]:
    """Of the rungs before the last, where the pruner decides: asha and hyperband wait for thrice the epochs.

    Parameters
    ----------
    early
        Stage 1 epochs, ascending, one at least.
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
    """The Stage 1 epochs of the trial that may have the most of them."""
    for parameter in config.search.space.values():
        if parameter.key == "training.num_epochs_pretrain":
            return max(parameter.ends())
    return config.training.num_epochs_pretrain


def suggest_params(study: optuna.Study, trial: optuna.Trial, settings: SearchSettings, seed: int) -> dict[str, Any]:
    """Draw (or, for a resumed trial, read back) the parameters of a trial, in the order of the space.

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
            raise ConfigError(f"search.space.{name} does not hold {enqueued[name]!r}, with which it was enqueued")


def _suggest(trial: optuna.Trial, name: str, parameter: SpaceParameter) -> Any:
    distribution = to_distribution(parameter)
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step)
    return trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
