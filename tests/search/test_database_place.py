"""Where a study's database lies: behind a link, in the folder of a group, or on a server."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import optuna
import pytest

from chitransfer.errors import StudyError
from chitransfer.search.study import create_study, read_study
from chitransfer.search.study_folder import StudyFolder, locate_study


def make_files(folder: Path, *names: str) -> StudyFolder:
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return StudyFolder(folder)


@pytest.mark.parametrize("given", ["links/study.db", "links"])
def test_a_link_to_a_database_leads_to_its_study(tmp_path: Path, given: str) -> None:
    study = make_files(tmp_path / "base", "study.db", "config.yaml")
    make_files(tmp_path / "links").database.symlink_to(Path("..") / "base" / "study.db")
    assert locate_study(tmp_path / given) == study


@pytest.mark.parametrize("beside", ["config.yaml", "reference.json"])
def test_a_study_may_keep_its_database_on_another_disk(tmp_path: Path, beside: str) -> None:
    """Also when its configuration is lost: the disk's folder holds none either."""
    make_files(tmp_path / "disk", "study.db")
    study = make_files(tmp_path / "base", beside)
    study.database.symlink_to(tmp_path / "disk" / "study.db")
    assert locate_study(study.database) == locate_study(study.path) == study


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_a_database_is_for_whom_other_files_are(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        study = make_files(tmp_path / "base", "config.yaml")
        create_study(study, {"search": {}}, optuna.pruners.NopPruner())
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (study.database, study.config)]
    assert modes == [0o666 & ~umask] * 2


def test_a_renamed_folder_whose_study_is_on_a_server_is_told_so(finished_search: Any, tmp_path: Path) -> None:
    folder = finished_search.folder
    assert read_study(StudyFolder(tmp_path / folder.name, folder.address)).study_name == folder.name
    with pytest.raises(StudyError, match=r"no study named 'renamed'; .* found by its folder's name"):
        read_study(StudyFolder(tmp_path / "renamed", folder.address))
