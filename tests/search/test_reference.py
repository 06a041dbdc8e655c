"""What trials are compared with: scored once, kept, read from damaged and old files, and named where it is better."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chitransfer.search.reference import (
    Reference,
    beaten_by_forest,
    beaten_by_trivial,
    borrowed_objective,
    forest_key,
    read_reference,
    score_reference,
)
from chitransfer.sections import ObjectiveSettings
from chitransfer.seeds import derive_seed
from chitransfer.training import forest
from chitransfer.training.settings import make_study_folds
from tests.formulas import guide_objective

FOREST = {"exp_mae": 0.3, "sol_f1": 0.9, "sol_recall": 0.9}


class TestTrivial:
    def test_warnings_name_what_is_not_beaten(self) -> None:
        best = {"exp_mae": 0.3, "sol_f1": 0.8, "sol_recall": 0.9, "stage1_mae": 0.1}
        reference = {"exp_mae": 0.4, "sol_f1": 0.82, "sol_recall": 0.95}
        sentences = beaten_by_trivial(best, reference, ObjectiveSettings())
        assert len(sentences) == 2
        assert "solubility F1: 0.800 is no better than the trivial predictor's 0.820" in sentences[0]
        assert beaten_by_trivial({**best, "sol_f1": 0.9, "sol_recall": 1.0}, reference, ObjectiveSettings()) == []

    def test_only_what_has_a_weight_and_is_known_of_both_is_told(self) -> None:
        best = {"exp_mae": 1.2, "sol_f1": None, "sol_recall": 0.9, "sol_auc": 0.4, "stage1_mae": 0.1}
        reference = {"exp_mae": 1.1, "sol_f1": 0.8, "sol_recall": 0.8, "sol_auc": 0.5}
        weights = ObjectiveSettings(exp_mae=0.5, sol_f1=0.5, sol_recall=0.1)
        objective, part = beaten_by_trivial(best, reference, weights)
        values = [0.5 * mae + 0.1 * (1 - recall) + 0.1 * 0.1 for mae, recall in ((1.2, 0.9), (1.1, 0.8))]
        assert "objective {:.4f} against {:.4f};".format(*values) in objective
        assert part.startswith("experimental χ MAE: 1.200 is no better than the trivial predictor's 1.100")

    def test_as_good_is_not_better(self) -> None:
        best = {"exp_mae": 0.4, "sol_f1": 0.8, "sol_recall": 0.9, "stage1_mae": 0.1}
        reference = {name: value for name, value in best.items() if name != "stage1_mae"}
        objective, *parts = beaten_by_trivial(best, reference, ObjectiveSettings())
        assert "does not beat the trivial predictor" in objective
        assert len(parts) == 3

    def test_the_objective_comes_first_where_it_is_not_beaten(self) -> None:
        best = {"exp_mae": 0.39, "sol_f1": 0.83, "sol_recall": 0.5, "stage1_mae": 0.1}
        sentences = beaten_by_trivial(best, {"exp_mae": 0.4, "sol_f1": 0.82, "sol_recall": 1.0}, ObjectiveSettings())
        values = [guide_objective(*parts, 0.1) for parts in ((0.39, 0.83, 0.5), (0.4, 0.82, 1.0))]
        assert len(sentences) == 1
        assert "does not beat the trivial predictor: objective {:.4f} against {:.4f}".format(*values) in sentences[0]

    def test_a_recall_that_cannot_be_bettered_is_no_warning(self) -> None:
        best = {"exp_mae": 0.3, "sol_f1": 0.9, "sol_recall": 0.95, "stage1_mae": 0.1}
        assert beaten_by_trivial(best, {"exp_mae": 0.4, "sol_f1": 0.8, "sol_recall": 1.0}, ObjectiveSettings()) == []

    def test_its_objective_takes_the_best_trials_stage_1(self) -> None:
        reference = {"exp_mae": 0.4, "sol_f1": 0.8, "sol_recall": 1.0}
        best = {"exp_mae": 0.3, "sol_f1": 0.9, "sol_recall": 0.9, "stage1_mae": 0.2}
        expected = guide_objective(0.4, 0.8, 1.0, 0.2)
        assert borrowed_objective(reference, best, ObjectiveSettings()) == pytest.approx(expected)
        assert borrowed_objective({**reference, "exp_mae": float("nan")}, best, ObjectiveSettings()) is None

    def test_without_a_part_of_the_trials_objective_there_is_none_to_set_beside_it(self) -> None:
        best = {"exp_mae": 0.4, "sol_f1": 0.8, "sol_recall": 0.5, "stage1_mae": 0.1}
        lacking = {"sol_f1": 0.9, "sol_recall": 1.0}
        assert borrowed_objective(lacking, best, ObjectiveSettings()) is None
        assert borrowed_objective(lacking, {**best, "exp_mae": None}, ObjectiveSettings()) is not None
        assert Reference(lacking, lacking).columns(best, ObjectiveSettings()) == [
            ("random forest", lacking, None),
            ("trivial predictor", lacking, None),
        ]
        # What they have can be compared, and the sentence says what is missing.
        own, other = (2.0 * (1 - f1) + 1.5 * (1 - recall) + 0.1 * 0.1 for f1, recall in ((0.8, 0.5), (0.9, 1.0)))
        trivial, _, forest = Reference(lacking, lacking).beats(best, ObjectiveSettings())
        assert f"trivial predictor: objective without experimental χ MAE {own:.4f} against {other:.4f};" in trivial
        assert f"best trial: objective without experimental χ MAE {other:.4f} against {own:.4f} (" in forest


class TestForest:
    def test_a_lower_objective_is_named_with_the_parts_that_count(self) -> None:
        best = {"exp_mae": 0.25, "sol_f1": 0.8, "sol_recall": 0.9, "sol_auc": 0.7, "stage1_mae": 0.1}
        values = [guide_objective(*parts, 0.1) for parts in ((0.3, 0.9, 0.9), (0.25, 0.8, 0.9))]
        (sentence,) = beaten_by_forest(best, {**FOREST, "sol_auc": 0.9}, ObjectiveSettings(), "chosen")
        assert "better than the chosen trial: objective {:.4f} against {:.4f}".format(*values) in sentence
        assert "experimental χ MAE 0.300 against 0.250, solubility F1 0.900 against 0.800" in sentence
        assert "ROC-AUC" not in sentence
        assert "by default on frozen encoders" in sentence, "others may be searched, or tuned by a second pass"
        assert Reference({}, FOREST).beats(best, ObjectiveSettings()) == beaten_by_forest(
            best, FOREST, ObjectiveSettings()
        )

    @pytest.mark.parametrize("known", [{}, FOREST, {"exp_mae": 0.29}, {"exp_mae": float("nan")}])
    def test_none_as_good_and_a_missing_part_say_nothing(self, known: dict[str, float]) -> None:
        best = {"exp_mae": 0.29, "sol_f1": 0.9, "sol_recall": 0.9, "stage1_mae": 0.1}
        assert beaten_by_forest(best, known, ObjectiveSettings()) == []

    def test_it_is_scored_once(
        self, tiny_dataset: Any, shared_tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, folds = tmp_path / "reference.json", make_study_folds(shared_tiny_config, tiny_dataset)
        said: list[str] = []
        without = score_reference(path, shared_tiny_config, tiny_dataset, folds, said.append)
        assert without.forest == {}
        cv = shared_tiny_config.cv.model_copy(update={"random_forest": True})
        config = shared_tiny_config.model_copy(update={"cv": cv})
        scored = []

        def score(*parts: Any) -> dict[str, float]:
            scored.append(parts[1].tolist())
            assert parts[2:] == (1, derive_seed(config.seed, "random forest"))
            return FOREST

        monkeypatch.setattr(forest, "score_random_forest", score)
        first, second = (score_reference(path, config, tiny_dataset, folds, said.append) for _ in range(2))
        assert first == second == Reference(without.trivial, FOREST)
        other = score_reference(tmp_path / "other.json", config, tiny_dataset, folds, said.append, [path])
        assert other == first
        assert scored == [folds[0].tolist()]
        assert len(said) == 1
        # Other folds, other values or another solvent are another forest's; a further shuffle is not.
        others = tmp_path / "others.json"
        score_reference(others, config, tiny_dataset, folds[:1], said.append, [path])
        assert len(scored) == 1
        score_reference(others, config, tiny_dataset, folds[[1, 1]], said.append, [path])
        score_reference(others, config, replace(tiny_dataset, solvents=("CCO",)), folds, said.append, [path])
        chi = replace(tiny_dataset.chi, value=tiny_dataset.chi.value + 1.0)
        score_reference(path, config, replace(tiny_dataset, chi=chi), folds, said.append)
        assert len(scored) == 4
        score_reference(path, config, tiny_dataset, folds, said.append)
        assert len(scored) == len(said) == 5
        assert read_reference(path) == first
        assert [title for title, _, _ in first.columns({"stage1_mae": 0.1}, ObjectiveSettings())] == [
            "random forest",
            "trivial predictor",
        ]


def test_whatever_a_forest_grows_on_is_in_its_key(tiny_dataset: Any, shared_tiny_config: Any) -> None:
    fold = make_study_folds(shared_tiny_config, tiny_dataset)[0]
    recipe = replace(tiny_dataset.recipe, fingerprint_radius=3)
    chi = replace(tiny_dataset.chi, temperature=tiny_dataset.chi.temperature + 1.0)
    labels = replace(tiny_dataset.solubility, value=1.0 - tiny_dataset.solubility.value)
    others = [replace(tiny_dataset, **change) for change in ({"recipe": recipe}, {"chi": chi}, {"solubility": labels})]
    keys = [forest_key(one, fold, 1, 5) for one in (tiny_dataset, *others)]
    keys += [forest_key(tiny_dataset, *words) for words in ((fold, 0, 5), (fold, 1, 6), (fold[::-1], 1, 5))]
    assert len(set(keys)) == 7
    assert keys[0] == forest_key(tiny_dataset, fold, 1, 5)


@pytest.mark.parametrize(
    "text", ["[1]", "1", "{", '{"trivial_predictor": {"mean": [1]}}', '{"trivial_predictor": []}', None]
)
def test_a_damaged_or_missing_file_is_done_without(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "reference.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert read_reference(path) == Reference()
    assert Reference().columns({"stage1_mae": 0.1}, ObjectiveSettings()) == []


def test_a_file_of_a_version_without_a_forest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    path.write_text(json.dumps({"trivial_predictor": {"mean": {"exp_mae": 0.5, "exp_r2": None}}}), encoding="utf-8")
    assert read_reference(path) == Reference({"exp_mae": 0.5})


def test_a_finished_search_shows_the_forest(finished_search: Any) -> None:
    known = read_reference(finished_search.folder.reference)
    assert set(FOREST) < set(known.forest)
    header = next(line for line in finished_search.printed.splitlines() if "trivial predictor" in line)
    assert header.split()[-4:] == ["random", "forest", "trivial", "predictor"]
    assert f"{known.forest['exp_mae']:.4f}" in finished_search.printed
