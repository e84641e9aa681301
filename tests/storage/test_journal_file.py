"""A journal whose last write was torn, by a kill, a full disk or a power failure, is continued."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from effllava_optuna.errors import StudyError
from effllava_optuna.storage.connection import open_storage
from tests.full_disk import file_size_limited
from tests.study_fixtures import invoke

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SAMPLER = optuna.samplers.RandomSampler()
WRITES: dict[str, Callable[[optuna.Study], object]] = {
    "study": lambda study: optuna.create_study(
        storage=study._storage, study_name="another", sampler=SAMPLER
    ),
    "trial": lambda study: study.ask(),
    "values": lambda study: study.tell(0, 0.5),
    "attribute": lambda study: study.set_user_attr("text", "ä\n" * 20),
    "deletion": lambda study: optuna.delete_study(study_name="s", storage=study._storage),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.log"


def opened(file: Path) -> optuna.Study:
    storage = open_storage(f"journal:///{file}", create=True)
    return optuna.create_study(
        storage=storage, study_name="s", load_if_exists=True, sampler=SAMPLER
    )


def stock_opened(file: Path) -> optuna.Study:
    """Open a journal as the dashboard does."""
    backend = JournalFileBackend(str(file), lock_obj=JournalFileOpenLock(str(file)))
    return optuna.load_study(storage=JournalStorage(backend), study_name="s", sampler=SAMPLER)


def facts_of(study: optuna.Study) -> Any:
    states = [trial.state.name for trial in study.trials]
    return optuna.get_all_study_names(study._storage), states, study.user_attrs


@pytest.mark.parametrize("write", WRITES)
def test_a_write_that_was_torn_at_any_byte_did_not_happen(file: Path, write: str) -> None:
    study = opened(file)
    study.ask()
    before, expected = file.read_bytes(), facts_of(study)
    WRITES[write](study)
    last = file.read_bytes().removeprefix(before)
    for length in range(len(last)):
        file.write_bytes(before + last[:length])
        reader = opened(file)
        assert facts_of(reader) == expected
        reader.ask()
        assert file.read_bytes().startswith(before)
        records = file.read_bytes().splitlines()
        assert all(json.loads(record)["op_code"] in range(11) for record in records)
        names, states, attributes = expected
        assert facts_of(stock_opened(file)) == (names, [*states, "RUNNING"], attributes)


@pytest.mark.parametrize("tail", [b"\0" * 8, b"\0" * 4097, b"\0\0\0\n", b'\0\0\0"a":1}\n'])
def test_a_last_line_that_a_power_failure_emptied_did_not_happen(file: Path, tail: bytes) -> None:
    study = opened(file)
    study.ask()
    before, expected = file.read_bytes(), facts_of(study)
    file.write_bytes(before + tail)
    reader = opened(file)
    assert facts_of(reader) == expected
    reader.ask()
    assert len(stock_opened(file).trials) == 2


def test_a_process_that_has_the_journal_open_reads_what_follows_half_a_line(file: Path) -> None:
    study = opened(file)
    study.ask()
    with file.open("ab") as journal:
        journal.write(b'{"op_code":4,"worker')
    assert len(study.trials) == 1
    opened(file).ask()
    assert len(study.trials) == 2
    study.ask()
    assert len(study.trials) == len(stock_opened(file).trials) == 3


def test_a_full_disk_leaves_no_half_line(file: Path) -> None:
    study = opened(file)
    study.ask()
    before = file.read_bytes()
    with (
        file_size_limited(len(before) + 1000),
        pytest.raises(StorageInternalError, match=f"{file}: File too large"),
    ):
        study.set_user_attr("long", "x" * 5000)
    assert file.read_bytes() == before
    study.set_user_attr("long", "x" * 5000)
    assert opened(file).user_attrs == {"long": "x" * 5000}


def damaged(file: Path, line: bytes) -> int:
    """Put a line before the last record, and return its number."""
    opened(file).ask()
    *records, last = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*records, line, last]))
    return len(records) + 1


def test_a_record_that_another_program_appended_to_half_a_line_counts(file: Path) -> None:
    study = opened(file)
    with file.open("ab") as journal:
        journal.write(b'{"op_code":9,"trial_id":0,"system_a')
    attribute = {"text": '{"op_code":1}'}
    with file.open("ab") as journal:
        record = {"op_code": 2, "worker_id": "a", "study_id": 0, "user_attr": attribute}
        journal.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
    study.ask()
    assert study.user_attrs == opened(file).user_attrs == attribute
    assert len(opened(file).trials) == 1
    words = ("doctor", "--storage", f"journal:///{file}", "--study-name", "s")
    printed = " ".join(invoke(*words, check=False).stdout.split())
    assert "line 2 starts with half a record" in printed


@pytest.mark.parametrize(
    "line", [b"\0\0\0\0\n", b"not a record\n", b"\n", b'{"op_code":5,"da\n', b"\xff{}\n"]
)
def test_a_damaged_line_is_named(file: Path, line: bytes) -> None:
    number = damaged(file, line)
    with pytest.raises(StudyError) as raised:
        open_storage(f"journal:///{file}")
    assert raised.value.message.startswith(f"{file}: line {number} is not a record of a journal")
    assert raised.value.hint.startswith("Restore it from a copy")
    status = invoke("doctor", "--storage", f"journal:///{file}", "--study-name", "s", check=False)
    assert status.returncode == 2
    assert f"line {number}" in " ".join(status.stdout.split())


@pytest.mark.parametrize("content", [b"my notes", b"my notes\n", b"[1, 2]\n", b'{"a": 1}\n'])
def test_a_file_that_is_not_a_journal_is_refused_and_unchanged(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(StudyError, match="line 1 is not a record of a journal"):
        opened(file)
    assert file.read_bytes() == content


def test_doctor_names_half_a_line_and_changes_nothing(file: Path) -> None:
    opened(file).ask()
    content = file.read_bytes() + b'{"op_code":4,"worker'
    file.write_bytes(content)
    words = ("doctor", "--storage", f"journal:///{file}", "--study-name", "s", "-f", "json")
    findings = json.loads(invoke(*words, check=False).stdout)["findings"]
    (finding,) = [finding for finding in findings if finding["check"] == "journal"]
    assert finding["state"] == "warning"
    assert finding["detail"] == f"{file}: line 3 is half a record of 20 bytes"
    assert finding["cure"].startswith("Nothing to do")
    assert file.read_bytes() == content
