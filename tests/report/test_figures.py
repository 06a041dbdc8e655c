"""Figures: the numbers are the study's, and the pictures show something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial
from scipy.stats import spearmanr

from chitransfer.config import load_config
from chitransfer.evidence.insight import measure_insight
from chitransfer.report import figures, html, insight_figures
from chitransfer.report.figures import (
    draw_study,
    history_series,
    importance_series,
    marked_trials,
    parameter_series,
)
from chitransfer.search.reference import Reference
from chitransfer.search.study import CONTRACT, read_study
from chitransfer.search.study_folder import StudyFolder
from chitransfer.search.summary import Names

NAMES = ("optimization_history.png", "param_importances.png", "parallel_coordinate.png", "slice_plot.png")
SPACE = {
    "rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
    "dropout": optuna.distributions.FloatDistribution(0.0, 0.4),
    "extra": optuna.distributions.CategoricalDistribution([0, 16, 64]),
    "fixed": optuna.distributions.IntDistribution(3, 3),
}


def made_up_study(n_trials: int) -> optuna.Study:
    """A study whose objective is ruled by `rate` alone; one trial failed, one was pruned."""
    study = optuna.create_study()
    rng = np.random.default_rng(3)
    for number in range(n_trials):
        params = {
            "rate": float(10 ** rng.uniform(-4, -2)),
            "dropout": float(rng.uniform(0, 0.4)),
            "extra": [0, 16, 64][number % 3],
            "fixed": 3,
        }
        state = {1: optuna.trial.TrialState.FAIL, 2: optuna.trial.TrialState.PRUNED}.get(
            number, optuna.trial.TrialState.COMPLETE
        )
        value = (np.log10(params["rate"]) + 3) ** 2 + 0.001 * params["dropout"]
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                params=params,
                distributions=SPACE,
                value=float(value) if state == optuna.trial.TrialState.COMPLETE else None,
                user_attrs={"is_default": number == 0, "stage1_mae": 0.1},
            )
        )
    study.set_user_attr(CONTRACT, {"objective": {"exp_mae": 1.0, "sol_f1": 0.0, "sol_recall": 0.0, "stage1_mae": 1.0}})
    return study


def extended_study(n_trials: int) -> optuna.Study:
    """Half of the trials are from before `rate` got a wider range and `added` came; the best one is the last."""
    study = made_up_study(n_trials)
    rng = np.random.default_rng(4)
    wider = {
        "rate": optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True),
        "added": optuna.distributions.FloatDistribution(0.0, 1.0),
    }
    for number in range(n_trials):
        rate = float(10 ** rng.uniform(-5, -1))
        params = {"rate": rate, "dropout": 0.1, "extra": [0, 16, 64][number % 3], "fixed": 3, "added": 0.5}
        value = -1.0 if number == n_trials - 1 else (np.log10(rate) + 3) ** 2
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=SPACE | wider, value=float(value), user_attrs={"stage1_mae": 0.1}
            )
        )
    return study


def marked(trials: list[FrozenTrial], recommended: FrozenTrial, default: FrozenTrial) -> figures.Marked:
    """What a figure of a first pass points out."""
    return marked_trials(trials, recommended, default, Names())


class TestSeries:
    def test_history_is_the_studys(self, finished_search: Any) -> None:
        study = read_study(finished_search.folder)
        trivial = {"exp_mae": 0.4, "sol_f1": 0.6, "sol_recall": 1.0}
        forest = {"exp_mae": 0.3, "sol_f1": 0.8, "sol_recall": 0.9}
        series = history_series(study, Reference(trivial, forest), study.best_trial)
        values = [trial.values[0] for trial in study.trials]
        assert series.number.tolist() == list(range(6))
        assert series.value.tolist() == values
        assert series.running_best.tolist() == [min(values[: n + 1]) for n in range(6)]
        assert series.default == (0, values[0])
        best = study.best_trial.user_attrs["stage1_mae"]
        assert series.trivial == pytest.approx(1.5 * 0.4 + 2.0 * 0.4 + 0.0 + 0.1 * best)
        assert series.forest == pytest.approx(1.5 * 0.3 + 2.0 * 0.2 + 1.5 * 0.1 + 0.1 * best)

    def test_failed_and_pruned_trials_have_no_value_in_the_history(self) -> None:
        study = made_up_study(6)
        series = history_series(study, Reference(), study.best_trial)
        assert series.number.tolist() == [0, 3, 4, 5]
        assert (series.pruned, series.failed) == ([2], [1])

    def test_importances_are_shares_and_find_what_matters(self) -> None:
        found = importance_series(made_up_study(40))
        assert set(found) == {"rate", "dropout", "extra"}
        assert sum(found.values()) == pytest.approx(1.0)
        assert next(iter(found)) == "rate"
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert found["rate"] > 0.7

    def test_importances_are_the_same_each_time(self) -> None:
        study = made_up_study(20)
        assert importance_series(study) == importance_series(study)

    def test_importances_by_any_method_have_the_same_guards(self) -> None:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        assert next(iter(importance_series(made_up_study(40), evaluator))) == "rate"
        assert importance_series(made_up_study(4), evaluator) == {}

    def test_importances_of_a_long_study_are_of_trials_from_all_over_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """fANOVA's time grows with the square of their number; the last third alone would know no `dropout`."""
        study, later = made_up_study(40), extended_study(20)
        for one, names in ((study, {"rate", "dropout", "extra"}), (later, {"rate", "dropout", "extra"})):
            found = importance_series(one, optuna.importance.FanovaImportanceEvaluator(seed=0), 12)
            assert set(found) == names
            assert next(iter(found)) == "rate"
        monkeypatch.setattr(html, "MOST_FANOVA_TRIALS", 38)
        assert list(html.importances(study)) == ["PED-ANOVA", "fANOVA"]
        monkeypatch.setattr(html, "MOST_FANOVA_TRIALS", 12)
        evaluated: list[int] = []
        evaluate = optuna.importance.FanovaImportanceEvaluator.evaluate

        def counted(self: Any, study: optuna.Study, **options: Any) -> Any:
            evaluated.append(len(study.trials))
            return evaluate(self, study, **options)

        monkeypatch.setattr(optuna.importance.FanovaImportanceEvaluator, "evaluate", counted)
        assert list(html.importances(study)) == ["PED-ANOVA", "fANOVA (12 of 38 trials)"]
        assert evaluated == [12]

    def test_too_few_trials_say_nothing(self) -> None:
        assert importance_series(made_up_study(4)) == {}

    def test_positions_of_parameters(self) -> None:
        trials = [t for t in made_up_study(9).trials if t.values]
        rate = parameter_series(trials, "rate")
        assert rate.is_log
        assert rate.position.tolist() == [t.params["rate"] for t in trials]
        assert rate.ticks == pytest.approx([1e-4, 1e-3, 1e-2])
        extra = parameter_series(trials, "extra")
        assert extra.labels == ["0", "16", "64"]
        assert [extra.labels[int(p)] for p in extra.position] == [str(t.params["extra"]) for t in trials]

    def test_importances_after_an_extension_are_of_what_all_trials_have(self) -> None:
        study = extended_study(20)
        assert "added" in study.best_trial.params
        for evaluator in (None, optuna.importance.FanovaImportanceEvaluator(seed=0)):
            found = importance_series(study, evaluator)
            assert set(found) == {"rate", "dropout", "extra"}
            assert next(iter(found)) == "rate"
        assert [trial.distributions["rate"].high for trial in study.trials[::39]] == [1e-2, 1e-1]

    def test_positions_after_an_extension_have_the_widest_range(self) -> None:
        trials = [t for t in extended_study(9).trials if t.values]
        rate, added = (parameter_series(trials, name) for name in ("rate", "added"))
        assert rate.ticks == pytest.approx([1e-5, 1e-3, 1e-1])
        np.testing.assert_array_equal(added.position, [np.nan] * 7 + [0.5] * 9)
        figure = figures._draw_slices(trials, marked(trials, trials[-1], trials[0]))
        assert {panel.collections[0].get_clim() for panel in figure.axes if panel.get_xlabel()} == {(0, 17)}
        figure = figures._draw_parallel(trials, marked(trials, trials[-1], trials[0]))
        assert [label.get_text() for label in figure.axes[0].get_xticklabels()][-1] == "added"

    @pytest.mark.parametrize(
        ("name", "low", "high"), [("rate", 1e-4, 1e-2), ("dropout", 0.0, 0.4), ("extra", 0, 2), ("fixed", 3, 3)]
    )
    def test_every_slice_shows_all_that_was_searched(self, name: str, low: float, high: float) -> None:
        """One trial, so that next to nothing was tried: an axis of what was tried would show that alone."""
        trials = [t for t in made_up_study(1).trials if t.values]
        figure = figures._draw_slices(trials, marked(trials, trials[0], trials[0]))
        (axes,) = [axes for axes in figure.axes if axes.get_xlabel() == name]
        left, right = axes.get_xlim()
        assert left < low <= high < right
        assert axes.get_xticks()[[0, -1]] == pytest.approx([low, high])

    def test_choices_that_begin_with_zero_keep_their_names(self) -> None:
        """Positions 0, 1, 2 must not be shown as if they were the values."""
        trials = [t for t in made_up_study(9).trials if t.values]
        figure = figures._draw_slices(trials, marked(trials, trials[0], trials[0]))
        (axes,) = [axes for axes in figure.axes if axes.get_xlabel() == "extra"]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "16", "64"]

    def test_a_log_axis_has_no_labels_of_minor_ticks(self) -> None:
        """Of less than a decade Matplotlib labels them all, one over the other."""
        trials = [t for t in made_up_study(9).trials if t.values]
        figure = figures._draw_slices(trials, marked(trials, trials[0], trials[1]))
        (axes,) = [axes for axes in figure.axes if axes.get_xlabel() == "rate"]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0.0001", "0.001", "0.01"]
        assert not axes.get_xticklabels(minor=True)

    @pytest.mark.parametrize(("n_trials", "expected"), [(1, [0]), (4, [0, 1, 2, 3])])
    def test_trials_are_counted_in_whole_numbers(self, n_trials: int, expected: list[int]) -> None:
        study = made_up_study(n_trials)
        trials = [t for t in study.trials if t.values]
        figure = figures._draw_slices(trials, marked(trials, trials[0], trials[-1]))
        (bar,) = [axes for axes in figure.axes if axes.get_ylabel() == "trial"]
        series = history_series(study, Reference(), trials[0])
        (axes,) = figures._draw_history(series, marked(trials, trials[0], trials[-1])).axes
        for ticks, ends in ((bar.get_yticks(), bar.get_ylim()), (axes.get_xticks(), axes.get_xlim())):
            assert [tick for tick in ticks if ends[0] <= tick <= ends[1]] == expected

    def test_the_best_trial_is_named_the_default_where_it_is(self) -> None:
        """Two marks at one place hide each other."""
        trials = [t for t in made_up_study(9).trials if t.values]
        best, other = sorted(trials, key=lambda trial: trial.values[0])[:2]

        def legend(recommended: FrozenTrial, default: FrozenTrial) -> list[str]:
            figure = figures._draw_slices(trials, marked(trials, recommended, default))
            return [text.get_text() for text in figure.legends[0].get_texts()]

        assert legend(best, best) == ["best trial, the default configuration"]
        assert legend(best, other) == ["default configuration", "best trial"]
        assert legend(other, best) == ["default configuration", "recommended trial"]


class TestPictures:
    def assert_shows_something(self, path: Path) -> None:
        from matplotlib import image

        pixels = image.imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 250, path
        white = (pixels > 0.99).all(axis=-1)
        assert 0.005 < 1.0 - white.mean() < 0.7, path
        # One number a colour: whole rows take seconds to sort.
        assert len(np.unique((pixels * 255).round() @ [1, 256, 65536])) > 20, path

    @pytest.mark.parametrize("name", NAMES)
    def test_of_a_search(self, finished_search: Any, name: str) -> None:
        self.assert_shows_something(finished_search.folder.figures / name)

    @pytest.mark.parametrize("n_trials", [1, 30])
    def test_of_any_number_of_trials(self, tmp_path: Path, n_trials: int) -> None:
        folder = StudyFolder(tmp_path)
        draw_study(made_up_study(n_trials), Reference({"exp_mae": 0.5}), folder)
        assert sorted(path.name for path in folder.figures.iterdir()) == sorted(NAMES)
        for name in NAMES:
            self.assert_shows_something(folder.figures / name)

    def test_of_an_extended_study(self, tmp_path: Path) -> None:
        folder = StudyFolder(tmp_path)
        draw_study(extended_study(8), Reference({"exp_mae": 0.5}), folder)
        for name in NAMES:
            self.assert_shows_something(folder.figures / name)

    def test_equal_values_and_a_single_parameter(self, tmp_path: Path) -> None:
        study = optuna.create_study()
        for x in (0.1, 0.2, 0.3, 0.4, 0.5):
            study.add_trial(
                optuna.trial.create_trial(
                    params={"x": x}, distributions={"x": optuna.distributions.FloatDistribution(0, 1)}, value=1.0
                )
            )
        draw_study(study, Reference(), StudyFolder(tmp_path))
        assert len(list((tmp_path / "figures").iterdir())) == 4

    def test_tick_labels_of_parallel_coordinates_are_not_crossed_by_lines(self) -> None:
        trials = [t for t in made_up_study(30).trials if t.values]
        figure = figures._draw_parallel(trials, marked(trials, trials[0], trials[0]))
        (axes,) = figure.axes
        ticks = [text for text in axes.texts if text.get_text() in {"16", "0.001"}]
        assert len(ticks) == 2
        for text in axes.texts:
            assert text.get_zorder() > max(line.get_zorder() for line in axes.lines)
            assert text.get_bbox_patch() is not None

    def test_every_line_of_parallel_coordinates_is_seen_on_white(self) -> None:
        from matplotlib.colors import to_rgb

        trials = [t for t in made_up_study(30).trials if t.values]
        figure = figures._draw_parallel(trials, marked(trials, trials[0], trials[0]))
        for line in figure.axes[0].lines:
            channels = np.array(to_rgb(line.get_color()))
            linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
            # Contrast with white as in WCAG 2.1; yellow has 1.2.
            assert 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) > 2.0

    def test_the_history_goes_on_to_the_last_trial_though_it_was_pruned(self) -> None:
        study = made_up_study(5)
        study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED))
        trials = [t for t in study.trials if t.values]
        series = history_series(study, Reference(), study.best_trial)
        (axes,) = figures._draw_history(series, marked(trials, study.best_trial, trials[0])).axes
        lines = {line.get_label(): line for line in axes.lines}
        assert list(lines["pruned (2)"].get_xdata()) == [2, 5]
        assert lines["best so far"].get_xdata()[-1] == 5
        assert lines["best so far"].get_ydata()[-1] == study.best_value

    def test_the_history_names_every_line_below_the_axes_and_marks_the_recommended_trial(self) -> None:
        study = made_up_study(12)
        trials = [t for t in study.trials if t.values]
        first, best = trials[0], min(trials, key=lambda trial: trial.values[0])
        series = history_series(study, Reference({"exp_mae": 0.5}, {"exp_mae": 0.3}), best)
        figure = figures._draw_history(series, marked(trials, best, first))
        (axes,) = figure.axes
        assert axes.get_xlabel() == "trial"
        assert "objective" in axes.get_ylabel()
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == [
            "trial",
            "best so far",
            "pruned (1)",
            "failed (1)",
            f"default configuration {first.values[0]:.3f}",
            f"best trial {best.values[0]:.3f}",
            f"trivial predictor {series.trivial:.3f}",
            f"random forest {series.forest:.3f}",
        ]
        drawn, explained = (
            {(line.get_color(), line.get_linestyle()) for line in lines if line.get_linestyle() != "None"}
            for lines in (axes.lines, legend.get_lines())
        )
        assert drawn == explained
        figure.draw_without_rendering()
        assert legend.get_window_extent().y1 < axes.get_window_extent().y0
        for text, trial in (("default", first), ("best trial", best)):
            (mark,) = [line for line in axes.lines if str(line.get_label()).startswith(text)]
            assert np.asarray(mark.get_xydata()).tolist() == [[trial.number, trial.values[0]]]


def test_a_second_pass_calls_its_trial_0_the_first_passs_settings() -> None:
    trials = [t for t in made_up_study(9).trials if t.values]
    (_, _, name), _ = marked_trials(trials, trials[1], trials[0], Names("second pass", "first pass's settings", ""))
    assert name == "first pass's settings"


def test_stage1_is_plotted_against_what_it_is_correlated_with(tmp_path: Path) -> None:
    """The objective without its Stage 1 term; with it, the order of these trials is another."""
    study = optuna.create_study()
    stage1 = np.array([0.1, 0.5, 0.2, 0.4, 0.3])
    transfer = np.array([1.3, 1.0, 1.2, 1.05, 1.1])
    for a, b in zip(stage1.tolist(), transfer.tolist(), strict=True):
        study.add_trial(optuna.trial.create_trial(value=b + 2.0 * a, user_attrs={"stage1_mae": a}))
    config = load_config(None, {"objective.stage1_mae": 2.0})
    insight = measure_insight(study, config)
    assert insight is not None
    figure = insight_figures._draw_scatter(study, insight, StudyFolder(tmp_path), config.objective)
    (axes,) = figure.axes
    points = np.asarray(axes.collections[0].get_offsets())
    np.testing.assert_allclose(points[points[:, 0].argsort()], np.column_stack([stage1, transfer])[stage1.argsort()])
    assert f"rank correlation {spearmanr(*points.T).statistic:+.2f}" in axes.get_title()
    assert "without its Stage 1 term" in axes.get_ylabel()


def test_the_users_matplotlib_settings_do_not_matter(tmp_path: Path) -> None:
    drawn = []
    for name, settings in (("plain", {}), ("theirs", {"text.usetex": True, "figure.facecolor": "black"})):
        folder = StudyFolder(tmp_path / name)
        with matplotlib.rc_context(settings):
            draw_study(made_up_study(4), Reference({"exp_mae": 0.5}), folder)
            assert all(matplotlib.rcParams[key] == value for key, value in settings.items())
        drawn.append({path.name: path.read_bytes() for path in folder.figures.iterdir()})
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) > 2


def test_a_backend_that_is_not_installed_is_not_asked_for() -> None:
    """A notebook names its own to every process it starts; Matplotlib cannot even be imported then."""
    program = (
        "import contextlib; from chitransfer.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--version'])\n"
        "import matplotlib; print(matplotlib.get_backend())"
    )
    environment = {**os.environ, "MPLBACKEND": "module://not_installed.backend"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "agg"
