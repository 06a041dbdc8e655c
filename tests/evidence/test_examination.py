"""What the over-tuning guard reads of a made-up study on disk, and what it makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import create_trial

from chitransfer.config import Config, load_config
from chitransfer.errors import StudyError
from chitransfer.evidence.correction import correct_for_selection, paired_standard_errors
from chitransfer.evidence.fresh import measure_difference_noise
from chitransfer.evidence.outcomes import read_trial_sums
from chitransfer.evidence.overtuning import count_weights, examine_study, positive_label
from chitransfer.files import write_json
from chitransfer.search.replicates import REPLICATE_VALUES, replicate_folder
from chitransfer.search.study_folder import StudyFolder
from chitransfer.seeds import derive_seed

POLYMERS = sorted(str(number) for number in range(30))
STAGE1_MAE = (0.1, 0.3, 0.5, 0.2)
WIDTHS = (128, 256, 256, 64)
# Errors of χ, of every run: trial 2 is the best and has run twice more, the default once more.
LEVELS = ((1.3, 1.3), (1.1,), (0.95, 1.0, 1.05), (0.97,))
FRESH = {0: {1000: 2.0, 1001: 2.3}, 2: {1000: 1.5, 1001: 2.0}, 3: {1000: 1.4, 1001: 1.6}}


def make_study(folder: StudyFolder, n_trials: int = len(LEVELS)) -> optuna.Study:
    """Trials of χ alone with their out-of-fold files and further runs; trial 0 is the default configuration."""
    rng, study = np.random.default_rng(3), optuna.create_study()
    measured, luck = rng.normal(size=30), rng.normal(0.0, 0.3, 30)
    distributions = {"latent_dim": CategoricalDistribution((64, 128, 256))}
    for number, levels in enumerate(LEVELS[:n_trials]):
        values = []
        for run, level in enumerate(levels):
            error = np.abs(level + luck + rng.normal(0.0, 0.3, 30))
            frame = pd.DataFrame({"polymer": POLYMERS, "chi": measured, "predicted_chi": measured + error})
            path = replicate_folder(folder.trial(number), run)
            path.mkdir(parents=True)
            frame.assign(pretrain_seed=run, repeat=0).to_csv(path / "out_of_fold_chi.csv", index=False)
            values.append(1.5 * float(error.mean()) + 0.1 * STAGE1_MAE[number])
            write_run(path, values[-1])
        for run, value in FRESH.get(number, {}).items():
            write_run(replicate_folder(folder.trial(number), run), value)
        attributes: dict[str, Any] = {"stage1_mae": STAGE1_MAE[number], "exp_mae": 1.0, "sol_f1": None}
        attributes |= {"is_default": number == 0, REPLICATE_VALUES: values}
        params = {"latent_dim": WIDTHS[number]}
        study.add_trial(
            create_trial(
                value=float(np.mean(values)), params=params, distributions=distributions, user_attrs=attributes
            )
        )
    return study


def write_run(path: Path, value: float) -> None:
    """The scores of one run of a trial."""
    write_json(path / "scores.json", {"epoch": 1, "finished": True, "value": value, "attributes": {}})


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """Where a made-up study is kept."""
    return StudyFolder(tmp_path)


@pytest.fixture
def config() -> Config:
    """The guide's configuration."""
    return load_config(None)


def test_the_guard_is_its_parts_on_the_files_of_a_study(folder: StudyFolder, config: Config) -> None:
    study = make_study(folder)
    found = examine_study(study, folder, config)
    assert found is not None
    n_runs = [len(levels) for levels in LEVELS]
    sums = [read_trial_sums(folder.trial(n), ["chi"], POLYMERS, 1, n_runs[n]) for n in range(4)]
    seed = derive_seed(config.seed, "bbc")
    expected = correct_for_selection(sums, STAGE1_MAE, config.objective, default=0, random_state=seed)
    assert found.corrected == expected.objective
    assert found.corrected_components == expected.components
    assert found.times_chosen == {n: share for n, share in enumerate(expected.chosen) if share > 0}
    assert 0 < len(found.times_chosen) < 4
    # Both have run twice at least in the search, so their difference is that much less noisy than in one run.
    noise = measure_difference_noise(found.fresh).half_width
    assert noise is not None
    assert expected.gain is not None
    assert found.corrected_gain == expected.gain.widened(noise / np.sqrt(2))
    values = [trial.values[0] for trial in study.get_trials()]
    assert (found.best_trial, found.default_trial, found.best_value) == (2, 0, values[2])
    assert (found.n_trials, found.n_polymers, found.n_draws) == (4, 30, 1000)
    errors = paired_standard_errors(sums, STAGE1_MAE, config.objective, 2, derive_seed(config.seed, "one se"))
    within = [n for n in range(4) if values[n] - values[2] <= errors[n]]
    assert found.one_se_candidates == within
    assert {2, 3} <= set(within) != {0, 1, 2, 3}
    assert found.one_se_trial == 3
    assert [score.number for score in found.fresh] == [3, 2, 0]
    assert found.chosen_trial == 2
    assert found.posterior.keys() == {0, 1, 2, 3}
    assert found.sentences[0].startswith("the best of 4 trials has objective")


@pytest.mark.parametrize(("select", "with_fresh"), [("best", 2), ("one_se", 3), ("reevaluated", 3)])
def test_the_choice_is_the_one_asked_for(folder: StudyFolder, select: str, with_fresh: int) -> None:
    study = make_study(folder)
    config = load_config(None, {"search.select": select})
    found = examine_study(study, folder, config)
    assert found is not None
    assert found.chosen_trial == with_fresh
    for path in folder.path.glob("trials/*/replicate_1*"):
        shutil.rmtree(path)
    alone = examine_study(study, folder, config)
    assert alone is not None
    assert alone.fresh == []
    assert alone.chosen_trial == (3 if select == "one_se" else 2)
    # Without fresh runs the gain's interval is of polymers alone, hence narrower.
    assert alone.corrected_gain is not None
    assert found.corrected_gain is not None
    assert found.corrected_gain.low < alone.corrected_gain.low


def test_the_gain_needs_the_default_and_the_correction_two_trials(folder: StudyFolder, config: Config) -> None:
    study = make_study(folder)
    lost = []
    for number in (0, 1):
        (folder.trial(number) / "out_of_fold_chi.csv").unlink()
        lost.append(number)
        found = examine_study(study, folder, config)
        assert found is not None
        assert (found.default_trial, found.corrected_gain) == (None, None)
        assert (found.n_trials, list(found.left_out)) == (4 - len(lost), lost)
    (folder.trial(3) / "out_of_fold_chi.csv").unlink()
    with pytest.raises(StudyError, match=r"trials/0000: the out-of-fold predictions \(chi\) are missing"):
        examine_study(study, folder, config)


@pytest.mark.parametrize(
    ("n_soluble", "positive", "expected"), [(2, "minority", 1), (4, "minority", 0), (4, "soluble", 1)]
)
def test_the_positive_label_is_that_of_the_trials_rows(
    folder: StudyFolder, n_soluble: int, positive: str, expected: int
) -> None:
    config = load_config(None, {"solubility.positive": positive})
    assert positive_label(folder, 0, config) == 1
    label = [1] * n_soluble + [0] * (6 - n_soluble)
    frame = pd.DataFrame({"polymer": POLYMERS[:6], "soluble": label, "probability_positive": 0.5, "called_positive": 1})
    folder.trial(0).mkdir(parents=True)
    frame.assign(pretrain_seed=0, repeat=0).to_csv(folder.trial(0) / "out_of_fold_solubility.csv", index=False)
    assert positive_label(folder, 0, config) == expected


def test_one_trial_is_no_choice_and_two_are(tmp_path: Path, config: Config) -> None:
    for n_trials in (1, 2):
        folder = StudyFolder(tmp_path / str(n_trials))
        found = examine_study(make_study(folder, n_trials), folder, config)
        assert (None if found is None else found.n_trials) == (None if n_trials == 1 else 2)


def test_the_smallest_network_has_the_fewest_weights() -> None:
    sizes = {
        "chem.fingerprint_bits": 100, "model.encoder_hidden_dims": [30, 20], "model.chi_head_hidden_dim": 7,
        "model.solubility_head_hidden_dim": 5,
    }  # fmt: skip
    trial = create_trial(
        value=0.0, params={"latent_dim": 256}, distributions={"latent_dim": CategoricalDistribution((64, 256))}
    )
    assert count_weights(load_config(None, sizes), trial) == 100 * 30 + 30 * 20 + 20 * 256 + 256 * (7 + 5)
