"""The study on disk: found, locked, read by others, and refused when it would go on under other conditions."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from filelock import FileLock

from chitransfer.config import Config, override_config
from chitransfer.data.assemble import Dataset
from chitransfer.errors import DataError, StudyError
from chitransfer.search import run
from chitransfer.search.contract import find_differences, make_contract, make_study_key
from chitransfer.search.lock import drive_alone, find_driver
from chitransfer.search.storage import describe_storage_error, open_storage, sqlite_address
from chitransfer.search.study import read_study
from chitransfer.search.study_folder import StudyFolder, locate_study
from chitransfer.search.summary import describe_status
from tests.conftest import Tables, tiny_overrides


@pytest.fixture
def copied(finished_search: Any, tmp_path: Path) -> StudyFolder:
    """The finished study, free to be changed."""
    shutil.copytree(finished_search.folder.path, tmp_path / "done")
    return StudyFolder((tmp_path / "done").resolve())


class TestLocating:
    def test_by_folder_and_database(self, finished_search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = finished_search.folder
        assert locate_study(folder.path) == locate_study(folder.database) == folder
        monkeypatch.chdir(folder.path.parent)
        assert locate_study(Path("done")) == locate_study(Path("done/study.db")) == folder

    @pytest.mark.parametrize("name", ["none", "none/study.db", "done/config.yaml", "", "done/trials"])
    def test_what_is_none(self, finished_search: Any, name: str) -> None:
        with pytest.raises(StudyError, match="no study found; give the study's folder"):
            locate_study(finished_search.folder.path.parent / name)

    def test_the_folder_above_names_a_study(self, finished_search: Any) -> None:
        folder = finished_search.folder
        with pytest.raises(StudyError, match=re.escape(f"such as {folder.database}")):
            locate_study(folder.path.parent / "study.db")

    @pytest.mark.parametrize("content", [b"", b"not a database at all, only text" * 100])
    def test_a_file_that_is_no_study(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "study.db").write_bytes(content)
        with pytest.raises(StudyError, match=r"study\.db: (not an Optuna study database|expected one study)"):
            read_study(locate_study(tmp_path))

    def test_a_locked_database_is_not_called_damaged(
        self, copied: StudyFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("chitransfer.search.study.SQLITE_SECONDS", 0.01)
        with closing(sqlite3.connect(copied.database, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StudyError, match=r"\(database is locked\); another program is reading") as error:
                read_study(copied)
        assert "damaged" not in str(error.value)


class TestDamage:
    @pytest.mark.parametrize("damage", ["a page", "the end", "a value"])
    @pytest.mark.parametrize("command", ["status", "report", "apply", "rescore"])
    def test_a_damaged_database_is_one_message(
        self, copied: StudyFolder, run_command: Any, command: str, damage: str
    ) -> None:
        content = bytearray(copied.database.read_bytes())
        if damage == "a value":
            with closing(sqlite3.connect(copied.database)) as connection, connection:
                connection.execute("UPDATE trial_user_attributes SET value_json = '{\"cut sh'")
        elif damage == "the end":
            copied.database.write_bytes(content[: len(content) // 2])
        else:
            with closing(sqlite3.connect(copied.database)) as connection:
                (page,) = connection.execute(
                    "SELECT rootpage FROM sqlite_master WHERE name = 'trial_user_attributes'"
                ).fetchone()
                (size,) = connection.execute("PRAGMA page_size").fetchone()
            content[(page - 1) * size : page * size] = bytes(range(1, 256)) * (size // 255) + b"x" * (size % 255)
            copied.database.write_bytes(content)
        code, _, err = run_command(command, copied.path)
        assert code == 2, err
        assert "the file is damaged; restore it from a copy" in err
        assert "trials/*/scores.json" in err
        assert "Traceback" not in err

    @pytest.mark.parametrize("command", ["report", "apply", "rescore"])
    def test_a_lost_configuration_is_told_without_options_a_command_lacks(
        self, copied: StudyFolder, run_command: Any, command: str
    ) -> None:
        copied.config.unlink()
        code, _, err = run_command(command, copied.path)
        assert code == 2
        assert "config.yaml: missing; restore a copy" in err
        assert f"chitransfer search --resume {copied.database} --config FILE" in err

    def test_status_needs_no_configuration(self, copied: StudyFolder, run_command: Any) -> None:
        copied.config.unlink()
        code, out, err = run_command("status", copied.path)
        assert code == 0, err
        assert "6 trials ended (" in out

    def test_runs_are_told_from_trials_without_it(self, made_up_search: Any) -> None:
        search = made_up_search(search__n_trials=7, search__replicates=3)
        search.drive()
        n_trials = len(search.study.trials)
        status = describe_status(search.study, search.folder, None)
        assert status[0].startswith(f"study {search.folder.name}: 7 runs ended, of {n_trials} trials (")


def leave_hot_journal(database: Path) -> None:
    """Die in the middle of a transaction that has reached the file."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE trial_user_attributes SET value_json = '\"overwritten\"'")
    connection.executemany(
        "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, ?, ?)",
        [(f"half written {i}", '"' + "x" * 5000 + '"') for i in range(200)],
    )
    os._exit(9)


class TestKilledInTheMiddleOfAWrite:
    def test_the_half_written_part_is_taken_back(self, copied: StudyFolder, fork_server: Any) -> None:
        process = fork_server.Process(target=leave_hot_journal, args=(copied.database,))
        process.start()
        process.join(60)
        assert process.exitcode == 9
        assert copied.database.with_name("study.db-journal").stat().st_size > 0
        study = read_study(copied)
        assert len(study.trials) == 6
        assert not any(key.startswith("half written") for key in study.user_attrs)
        assert isinstance(study.trials[0].user_attrs["exp_mae"], float)


class TestResuming:
    @pytest.mark.parametrize(
        ("change", "dotted"),
        [
            ({"seed": 7}, "seed"),
            ({"objective.sol_f1": 9.0}, "objective.sol_f1"),
            ({"cv.n_cv_folds": 4}, "cv.n_cv_folds"),
            ({"training.stage2_epochs": 9}, "training.stage2_epochs"),
            ({"training.num_epochs_pretrain": 9}, "training.num_epochs_pretrain"),
            ({"chem.fingerprint_bits": 128}, "chem.fingerprint_bits"),
            ({"solubility.positive": "insoluble"}, "solubility.positive"),
            ({"model.chi_head_hidden_dim": 9}, "model.chi_head_hidden_dim"),
            ({"search.space.encoder_dropout.high": 0.2}, "space.encoder_dropout.high"),
            ({"search.pruner": "median"}, "search.pruner"),
        ],
        ids=str,
    )
    def test_other_conditions_are_refused_with_the_difference(
        self,
        finished_search: Any,
        copied: StudyFolder,
        make_search: Any,
        change: dict[str, object],
        dotted: str,
    ) -> None:
        before = (copied.path / "all_trials.csv").read_bytes()
        kept = copied.config.read_bytes()
        config = override_config(finished_search.config, {**change, "search.n_trials": 9})
        with pytest.raises(StudyError) as error:
            make_search(config.model_dump(), resume=copied)
        assert "cannot be resumed under other conditions" in str(error.value)
        assert f"  {dotted}: " in str(error.value)
        assert " in the study, now " in str(error.value)
        assert (copied.path / "all_trials.csv").read_bytes() == before
        assert copied.config.read_bytes() == kept
        assert len(read_study(copied).trials) == 6

    def test_other_names_of_the_same_polymers_are_refused(self, finished_search: Any, tiny_dataset: Dataset) -> None:
        known = make_contract(finished_search.config, tiny_dataset)
        renamed = replace(tiny_dataset, polymers=(*tiny_dataset.polymers[:-1], "as another RDKit has it"))
        now = make_contract(finished_search.config, renamed)
        (difference,) = find_differences(known, now)
        assert difference.startswith("data.names: the polymers have other names")
        del known["data"]["names"]
        assert not find_differences(known, now), "a study of an earlier release has no checksum of them"

    def test_changed_data_is_refused(
        self, finished_search: Any, copied: StudyFolder, make_search: Any, tmp_path: Path
    ) -> None:
        other = tmp_path / "measured.csv"
        text = Path(finished_search.config.paths.exp_chi_csv).read_text()
        other.write_text(text + text.splitlines()[1] + "\n")
        config = override_config(finished_search.config, {"paths.exp_chi_csv": str(other)})
        with pytest.raises(StudyError) as error:
            make_search(config.model_dump(), resume=copied)
        n_rows = len(text.splitlines()) - 1
        assert str(error.value).splitlines()[1:-1] == [
            f"  data.chi.sha256: the table of measured χ, {other}, is not the one the study began with ({n_rows} "
            f"rows then, {n_rows + 1} now); put the old file back, or start a new study"
        ]

    def test_of_a_relative_path_the_folder_is_told(self, finished_search: Any, tiny_dataset: Dataset) -> None:
        known = make_contract(finished_search.config, tiny_dataset)
        now = {**known, "data": {**known["data"], "chi": {"sha256": "0", "rows": 1}}}
        for source, is_told in (("my/measured.csv", True), ("/my/measured.csv", False), ("builtin:x", False)):
            (line,) = find_differences(known, {**now, "sources": {"chi": source}})
            assert ("go to the folder where the study began" in line) is is_told, source

    def test_a_table_more_or_less_is_told_without_its_checksum(
        self, finished_search: Any, tiny_dataset: Dataset
    ) -> None:
        both = make_contract(finished_search.config, tiny_dataset)
        alone = make_contract(finished_search.config, replace(tiny_dataset, solubility=None))
        assert tiny_dataset.solubility is not None
        n_rows = len(tiny_dataset.solubility)
        assert find_differences(both, alone) == [
            f"data.solubility: the study began with the table of solubility ({n_rows} rows), now there is none; set "
            "paths.solubility_csv to its file again"
        ]
        assert find_differences(alone, both) == [
            "data.solubility: the study began without the table of solubility, now there is "
            f"{tiny_dataset.solubility.table.source}; set paths.solubility_csv to null"
        ]

    def test_a_study_of_an_earlier_release_knows_no_sources(self, finished_search: Any, tiny_dataset: Dataset) -> None:
        now = make_contract(finished_search.config, tiny_dataset)
        known = {key: value for key, value in now.items() if key != "sources"}
        assert find_differences(known, now) == []

    def test_the_same_data_elsewhere_is_not(
        self, finished_search: Any, copied: StudyFolder, make_search: Any, tmp_path: Path
    ) -> None:
        other = tmp_path / "elsewhere.csv"
        shutil.copy(finished_search.config.paths.exp_chi_csv, other)
        config = override_config(finished_search.config, {"paths.exp_chi_csv": str(other), "search.n_trials": 7})
        code, _ = make_search(config.model_dump(), resume=copied)
        assert code == 0
        assert len(read_study(copied).trials) == 7

    def test_another_device_or_thread_count_is_no_difference(
        self, finished_search: Any, copied: StudyFolder, make_search: Any
    ) -> None:
        config = override_config(finished_search.config, {"training.num_threads": 2, "training.device": "auto"})
        assert make_search(config.model_dump(), resume=copied)[0] == 0

    def test_a_study_of_someone_else_is_refused(self, finished_search: Any, tmp_path: Path, make_search: Any) -> None:
        folder = StudyFolder(tmp_path)
        optuna.create_study(study_name="theirs", storage=open_storage(sqlite_address(folder.database, "rwc")))
        with pytest.raises(StudyError, match="was not created by chitransfer"):
            make_search(finished_search.config.model_dump(), resume=folder)

    def test_a_maximising_study_is_refused(self, finished_search: Any, tmp_path: Path, make_search: Any) -> None:
        folder = StudyFolder(tmp_path)
        optuna.create_study(
            study_name="up", direction="maximize", storage=open_storage(sqlite_address(folder.database, "rwc"))
        )
        with pytest.raises(StudyError, match="maximises"):
            make_search(finished_search.config.model_dump(), resume=folder)

    def test_a_name_that_is_taken(self, finished_search: Any, make_search: Any) -> None:
        folder = finished_search.folder
        how = re.escape(f"a study of that name exists; continue it with {folder.resume_command}, or choose another")
        with pytest.raises(StudyError, match=how):
            make_search(finished_search.config.model_dump())

    def test_a_name_that_is_taken_on_a_server(self, shared_tiny_config: Config, tmp_path: Path) -> None:
        folder = StudyFolder(tmp_path / "taken", f"sqlite:///{tmp_path / 'server.db'}")
        contract = {"search": {}, "space": {}}
        run.open_study(folder, shared_tiny_config, contract, is_new=True)
        before = folder.config.read_bytes()
        elsewhere = StudyFolder(tmp_path / "elsewhere" / "taken", folder.storage)
        other = override_config(shared_tiny_config, {"seed": 7})
        for again in (folder, elsewhere):
            with pytest.raises(StudyError, match="a study named 'taken' exists already; choose another --study-name"):
                run.open_study(again, other, contract, is_new=True)
        assert folder.config.read_bytes() == before
        assert not elsewhere.path.exists()

    def test_trials_of_a_study_whose_database_is_gone_are_no_part_of_a_new_one(
        self, copied: StudyFolder, finished_search: Any
    ) -> None:
        copied.database.unlink()
        before = copied.config.read_bytes()
        with pytest.raises(StudyError, match="contains the trials of a study whose database is missing"):
            run.open_study(copied, override_config(finished_search.config, {"seed": 7}), {}, is_new=True)
        assert copied.config.read_bytes() == before
        assert not copied.database.exists()


def test_a_storage_error_without_words_is_called_by_its_type() -> None:
    said = describe_storage_error("study.db", optuna.exceptions.StorageInternalError())
    assert "the study's database cannot be used (StorageInternalError); check" in said


def hold_lock(path: Path, ready: Any, let_go: Any) -> None:
    with drive_alone(StudyFolder(path)):
        ready.set()
        let_go.wait(30)


class TestLock:
    def test_a_second_driver_is_refused_by_host_and_process(self, tmp_path: Path, fork_server: Any) -> None:
        ready, let_go = fork_server.Event(), fork_server.Event()
        other = fork_server.Process(target=hold_lock, args=(tmp_path, ready, let_go))
        other.start()
        try:
            assert ready.wait(60)
            with (
                pytest.raises(StudyError, match=rf"another search is writing .*pid {other.pid}"),
                drive_alone(StudyFolder(tmp_path)),
            ):
                pass
        finally:
            let_go.set()
            other.join(30)
        with drive_alone(StudyFolder(tmp_path)):
            assert (tmp_path / "driver.json").is_file()

    def test_a_dead_drivers_lock_is_free(self, tmp_path: Path, fork_server: Any) -> None:
        ready, let_go = fork_server.Event(), fork_server.Event()
        other = fork_server.Process(target=hold_lock, args=(tmp_path, ready, let_go))
        other.start()
        assert ready.wait(60)
        other.kill()
        other.join(30)
        assert (tmp_path / "driver.json").is_file()
        assert find_driver(StudyFolder(tmp_path)) is None
        with drive_alone(StudyFolder(tmp_path)):
            assert str(os.getpid()) in (tmp_path / "driver.json").read_text()
        assert not (tmp_path / "driver.json").exists()

    def test_who_may_only_read_is_not_told_that_a_dead_driver_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(lock: FileLock) -> None:
            raise PermissionError(13, "Permission denied")

        (tmp_path / "driver.json").write_text('{"host": "h", "pid": 1, "since": "then"}')
        monkeypatch.setattr(FileLock, "_acquire", refuse)
        assert (find_driver(StudyFolder(tmp_path)) or "").startswith("host h, pid 1, since then, unless it was killed")

    def test_a_look_at_the_lock_keeps_no_search_from_starting(self, tmp_path: Path) -> None:
        # As status holds it, a moment long.
        looking = FileLock(tmp_path / "driver.lock", timeout=0, thread_local=False)
        looking.acquire()
        release = threading.Timer(0.2, looking.release)
        release.start()
        with drive_alone(StudyFolder(tmp_path)):
            release.join()

    def test_an_error_before_the_study_leaves_no_folder(self, tmp_path: Path) -> None:
        folder = StudyFolder(tmp_path / "mistyped")
        with pytest.raises(DataError), drive_alone(folder):
            raise DataError("no such table")
        assert not folder.path.exists()

    def test_too_few_polymers_for_the_folds_leave_none(self, tiny: dict[str, object], make_search: Any) -> None:
        with pytest.raises(DataError, match="needs at least 40 polymers"):
            make_search({**tiny, "cv.n_cv_folds": 40, "search.study_name": "small"})
        assert not (Path(str(tiny["paths.results_dir"])) / "hparam_search" / "small").exists()

    def test_an_error_after_it_takes_nothing_away(self, tmp_path: Path) -> None:
        folder = StudyFolder(tmp_path)
        folder.database.touch()
        with pytest.raises(DataError), drive_alone(folder):
            raise DataError("a table that changed")
        assert folder.database.is_file()


def test_studies_of_two_machines_in_folders_of_one_name_are_two_on_a_scheduler(
    tiny_config: Config, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StudyFolder(tmp_path)

    def key_of(host: str, seed: int) -> str:
        monkeypatch.setattr("socket.gethostname", lambda: host)
        return make_study_key(folder, make_contract(override_config(tiny_config, {"seed": seed}), tiny_dataset))

    assert key_of("here", 1) == key_of("here", 1)
    # Containers may all be called alike.
    assert len({key_of("here", 1), key_of("there", 1), key_of("here", 2)}) == 3


def test_searches_that_start_at_once_get_a_folder_each(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_search: Any
) -> None:
    monkeypatch.setattr(run, "new_study_name", lambda: "transfer_aware_20261128_120000")
    config = {**tiny_overrides(tables, tmp_path), "search.n_trials": 1, "search.study_name": None}
    root = tmp_path / "results" / "hparam_search"
    (root / "transfer_aware_20261128_120000").mkdir(parents=True)
    _, folder = make_search(config)
    assert folder.name == "transfer_aware_20261128_120000_2"
