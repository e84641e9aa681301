"""A stored value that no program of Optuna wrote is an error in one line, in every command."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.exceptions import StorageInternalError

from effllava_optuna.errors import StudyError
from effllava_optuna.storage.connection import open_storage
from tests.study_fixtures import invoke

if TYPE_CHECKING:
    from pathlib import Path

VERBS = ["status", "doctor", "resume"]
STATEMENTS = {
    "attribute of the study": "update study_user_attributes set value_json = '{\"a'",
    "system attribute": "update study_system_attributes set value_json = ''",
    "byte of an attribute": "update study_user_attributes set value_json = cast(x'ff22' as text)",
    "attribute of a trial": "update trial_user_attributes set value_json = '[1,'",
    "state": "update trials set state = 'RUNING'",
    "date": "update trials set datetime_start = 'yesterday'",
    "distribution": "update trial_params set distribution_json = '{}'",
}
RECORDS = {
    "unknown operation": b'{"op_code":77,"worker_id":"a"}',
    "operation of another type": b'{"op_code":[],"worker_id":"a"}',
    "missing field": b'{"op_code":4,"worker_id":"a"}',
    "missing worker": b'{"op_code":0,"study_name":"s","directions":[1]}',
    "two attributes": b'{"op_code":2,"worker_id":"a","study_id":0,"user_attr":{"a":1,"b":2}}',
    "state": b'{"op_code":6,"worker_id":"a","trial_id":0,"state":9,"values":null}',
    "date": b'{"op_code":4,"worker_id":"a","study_id":0,"datetime_start":"yesterday"}',
}


def fill(url: str) -> None:
    study = optuna.create_study(storage=open_storage(url, create=True), study_name="s")
    study.set_user_attr("text", "a")
    study._storage.set_study_system_attr(study._study_id, "text", "a")
    trial = study.ask()
    trial.suggest_int("x", 0, 3)
    trial.set_user_attr("text", "a")


@pytest.mark.parametrize("damage", STATEMENTS)
def test_a_damaged_value_of_a_database_is_one_line(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "a.db"
    url = f"sqlite:///{file}"
    fill(url)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(STATEMENTS[damage])
        connection.commit()
    with pytest.raises((StudyError, StorageInternalError), match=r"corrupt|decode"):
        optuna.load_study(storage=open_storage(url), study_name="s").get_trials()
    if "study" in STATEMENTS[damage]:
        for verb in VERBS:
            result = invoke(verb, "--storage", url, "--study-name", "s", check=False)
            assert result.returncode == 2
            printed = " ".join((result.stdout + result.stderr).split())
            assert "The database is damaged" in printed


@pytest.mark.parametrize("damage", RECORDS)
def test_a_record_that_optuna_cannot_read_is_named_by_its_line(
    tmp_path: Path, damage: str
) -> None:
    file = tmp_path / "a.log"
    url = f"journal:///{file}"
    fill(url)
    number = len(file.read_bytes().splitlines()) + 1
    with file.open("ab") as journal:
        journal.write(RECORDS[damage] + b"\n")
    for verb in VERBS:
        result = invoke(verb, "--storage", url, "--study-name", "s", check=False)
        printed = " ".join((result.stdout + result.stderr).split())
        assert result.returncode == 2
        assert f"line {number} is not a record" in printed
