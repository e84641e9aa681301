"""A database that is removed or replaced while a study runs is an error, not a silent loss."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest

from effllava_optuna.errors import StudyError
from effllava_optuna.search.evaluator import Evaluator
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.storage_internals import storage_of
from tests.study_fixtures import copy_study, invoke

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLER = optuna.samplers.RandomSampler()


def remove(file: Path) -> None:
    file.unlink()


def move(file: Path) -> None:
    file.rename(file.with_name("moved"))


def replace(file: Path) -> None:
    copy = shutil.copy(file, file.with_name("copy"))
    Path(copy).replace(file)


def empty(file: Path) -> None:
    file.unlink()
    file.touch()


def remove_directory(file: Path) -> None:
    file.parent.rename(file.parent.with_name("moved"))


@pytest.mark.parametrize("change", [remove, move, replace, empty, remove_directory])
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_file_that_is_not_the_one_that_was_opened_is_an_error(
    tmp_path: Path, kind: str, change: Callable[[Path], None]
) -> None:
    file = tmp_path / "study" / "a.db"
    file.parent.mkdir()
    storage = open_storage(f"{kind}:///{file}", create=True)
    study = optuna.create_study(storage=storage, study_name="s", sampler=SAMPLER)
    study.set_user_attr("written", value=True)
    change(file)
    existed = file.exists()
    for use in (
        lambda: study.set_user_attr("lost", value=True),
        lambda: study.ask(),
        lambda: study.user_attrs,
        lambda: optuna.get_all_study_names(storage),
    ):
        with pytest.raises(StudyError, match=f"^{file} was (removed|moved|replaced)"):
            use()
    assert file.exists() == existed


def test_a_journal_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    storage = open_storage(f"journal:///{file}", create=True)
    study = optuna.create_study(storage=storage, sampler=SAMPLER)
    study.set_user_attr("written", value=True)
    with file.open("r+b") as journal:
        journal.truncate(10)
    with pytest.raises(StudyError, match="is shorter than before"):
        study.ask()


def test_the_working_directory_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    studies = [
        optuna.create_study(storage=open_storage(url, create=True), sampler=SAMPLER)
        for url in ("sqlite:///a.db", "journal:///a.log")
    ]
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    for study in studies:
        study.set_user_attr("written", value=True)
        assert study.user_attrs["written"] is True
    assert list((tmp_path / "other").iterdir()) == []


def during_measurement(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something during the third measurement."""
    calls, measure = iter(range(10**6)), Evaluator.measure

    def measured(self: Evaluator, *rest: Any) -> Any:
        if next(calls) == 2:
            act()
        return measure(self, *rest)

    monkeypatch.setattr(Evaluator, "measure", measured)


def test_a_command_stops_with_one_line_if_its_database_is_removed(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = copy_study(calibrated, tmp_path / "study")
    database = file.with_suffix(".db")
    during_measurement(monkeypatch, database.unlink)
    result = invoke("resume", file, check=False)
    assert result.returncode == 2
    assert f"{database} was removed or moved while this process used it." in result.stderr
    assert not database.exists()
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("again", [False, True])
def test_a_command_stops_with_one_line_if_its_study_is_deleted(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, again: bool
) -> None:
    """SQLite gives the id of a deleted study to the next one."""
    file = copy_study(calibrated, tmp_path / "study")
    url = f"sqlite:///{file.with_suffix('.db')}"

    def delete() -> None:
        storage = open_storage(url)
        optuna.delete_study(study_name="smoke", storage=storage)
        if again:
            optuna.create_study(storage=storage, study_name="smoke", sampler=SAMPLER)

    during_measurement(monkeypatch, delete)
    result = invoke("resume", file, check=False)
    assert result.returncode == 2
    assert "was deleted while" in result.stderr
    assert "Traceback" not in result.stderr
    if again:
        study = optuna.load_study(storage=open_storage(url), study_name="smoke", sampler=SAMPLER)
        assert study.get_trials() == []
        assert storage_of(study) is not None


def test_a_command_stops_with_one_line_if_its_artifacts_are_removed(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = copy_study(calibrated, tmp_path / "study")
    artifacts = file.with_suffix(".artifacts")
    during_measurement(monkeypatch, lambda: shutil.rmtree(artifacts))
    result = invoke("resume", file, check=False)
    assert result.returncode == 2
    assert f"{artifacts}/" in result.stderr
    assert "the artifact is missing" in result.stderr
    assert "Traceback" not in result.stderr
