"""What is wrong with a study is found, named with its cure, and mended where that is safe."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from effllava_optuna.study import doctor, integrity, storage
from tests.study.conftest import Ran, cli, clone, write_tiny

NOBODY = f"{socket.gethostname()}:99999999:1.00"  # no process has such a number


@pytest.fixture
def study(smoke: Ran, tmp_path: Path) -> Path:
    return clone(smoke.file, tmp_path / "study")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "_BUSY", 0.1)


def examined(*words: object) -> tuple[int, dict[str, dict[str, Any]], list[str]]:
    """Give the exit code, the worst finding of each check, and what was repaired."""
    done = cli("doctor", *words, "-f", "json", check=False)
    document = json.loads(done.stdout)
    order = ("ok", "warning", "fault")
    found: dict[str, dict[str, Any]] = {}
    for finding in document["findings"]:
        known = found.setdefault(finding["check"], finding)
        if order.index(finding["state"]) > order.index(known["state"]):
            found[finding["check"]] = finding
        assert bool(finding["cure"]) == (finding["state"] != "ok"), finding
    return done.returncode, found, document["repaired"]


def database(file: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(file.with_suffix(".db"))
    with connection:
        changed = connection.execute(statement, values).rowcount
    connection.close()
    assert changed


def opened(file: Path, name: str = "smoke") -> optuna.Study:
    return optuna.load_study(
        study_name=name,
        storage=storage.open_storage(f"sqlite:///{file.with_suffix('.db')}"),
        sampler=optuna.samplers.RandomSampler(),
    )


def test_a_machine_without_a_study() -> None:
    code, found, _ = examined()
    assert code == 0
    assert set(found) == {"python", "packages", "torch", "device", "cores", "memory", "disk",
                          "hub"}  # fmt: skip
    assert found["hub"]["found"].startswith("offline")
    table = cli("doctor").stdout
    assert table.splitlines()[0].split() == ["state", "check", "found"]


def test_a_healthy_study_has_no_fault(smoke: Ran) -> None:
    code, found, _ = examined(smoke.file)
    assert code == 0
    assert {name for name, finding in found.items() if finding["state"] != "ok"} <= {"memory"}
    assert {"storage", "schema", "study", "anatomy", "control study", "calibration", "artifacts",
            "export", "leftovers", "duplicates"} <= set(found)  # fmt: skip
    url = f"sqlite:///{smoke.file.with_suffix('.db')}"
    assert examined("--storage", url, "--study-name", "smoke")[0] == 0
    code, found, _ = examined("--storage", url, "--study-name", "other")
    assert (code, found["study"]["state"]) == (2, "fault")


@pytest.mark.parametrize("storage_url", ["journal", "postgresql"], indirect=True)
def test_a_study_in_another_kind_of_storage(
    checkpoint: Path, storage_url: str, tmp_path: Path
) -> None:
    file = write_tiny(checkpoint, tmp_path)
    places = (f"study.storage='{storage_url}'", f"study.artifacts='{tmp_path / 'tensors'}'")
    cli("run", file, *(word for place in places for word in ("--set", place)))
    where = ("--storage", storage_url, "--study-name", "tiny")
    code, found, _ = examined(*where)
    wrong = {name for name, finding in found.items() if finding["state"] != "ok"}
    assert (code, wrong - {"memory"}) == (0, set()), found
    mine = optuna.load_study(
        study_name="tiny",
        storage=storage.open_storage(storage_url),
        sampler=optuna.samplers.RandomSampler(),
    )
    mine.add_trial(create_trial(state=TrialState.RUNNING, system_attrs={"owner": NOBODY}))
    lost = "trials of ended processes"
    assert examined(*where)[1][lost]["state"] == "warning"
    assert len(examined(*where, "--repair")[2]) == 1
    assert examined(*where)[1][lost]["state"] == "ok"
    for tensors in (tmp_path / "tensors").iterdir():
        tensors.unlink()
    code, found, _ = examined(*where)
    assert (code, found["artifacts"]["state"]) == (2, "fault")


def test_a_study_that_has_not_begun_is_no_fault(tmp_path: Path) -> None:
    cli("init", "digits-vlm", "--task", "digits", "--out", tmp_path / "new.toml")
    code, found, _ = examined(tmp_path / "new.toml")
    assert (code, found["storage"]["found"]) == (0, "'new' has not been begun")
    assert [path.name for path in tmp_path.iterdir()] == ["new.toml"]


def test_artifacts_that_are_missing_damaged_or_nobody_s(study: Path) -> None:
    folder = study.with_suffix(".artifacts")
    first, second, *_ = sorted(folder.iterdir())
    (folder / "0123").write_text("whose is this?")
    code, found, _ = examined(study, "--repair")
    assert (code, found["artifacts"]["state"], found["orphans"]["state"]) == (0, "ok", "warning")
    assert (folder / "0123").is_file()
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, found, _ = examined(study)
    assert code == 2
    assert found["artifacts"]["found"].startswith(f"damaged: {first.name[:12]}")
    first.write_bytes(content)
    second.unlink()
    code, found, _ = examined(study, "--repair")
    assert code == 2
    assert found["artifacts"]["found"].startswith(f"missing: {second.name[:12]}")
    assert "trial" in found["artifacts"]["found"]


def test_what_ended_processes_left_running_is_failed_by_repair_alone(study: Path) -> None:
    mine, control = opened(study), opened(study, "smoke/projector")
    attempt = control.trials[0]
    mine.add_trial(create_trial(state=TrialState.RUNNING, system_attrs={"owner": NOBODY}))
    control.add_trial(
        create_trial(
            state=TrialState.RUNNING, params=attempt.params,
            distributions=attempt.distributions, user_attrs={"owner": NOBODY},
        )
    )  # fmt: skip
    code, found, done = examined(study)
    assert (code, done) == (0, [])
    lost = "trials of ended processes", "attempts of ended processes"
    assert [found[check]["state"] for check in lost] == ["warning", "warning"]
    code, found, done = examined(study, "--repair")
    assert len(done) == 2
    assert all(line.endswith("its process has ended") for line in done)
    assert [found[check]["state"] for check in lost] == ["ok", "ok"]
    assert [opened(study, name).trials[-1].state for name in ("smoke", "smoke/projector")] == [
        TrialState.FAIL, TrialState.FAIL
    ]  # fmt: skip
    assert examined(study, "--repair")[2] == []


def test_what_was_left_half_written_is_removed_if_nobody_writes_it(study: Path) -> None:
    folder, hour = study.with_suffix(".artifacts"), time.time() - 7200
    old = [folder / f".{'0' * 64}.abc.part", study.parent / f".{study.name}.abc.part"]
    scratch = study.parent / ".smoke.pruned-x"
    scratch.mkdir()
    (scratch / "model").write_text("half")
    new = [folder / f".{'1' * 64}.new.part", study.parent / f".{study.name}.new.part"]
    for path in (*old, *new):
        path.write_text("half")
    for path in (*old, scratch / "model", scratch):
        os.utime(path, (hour, hour))
    code, found, _ = examined(study)
    assert (code, found["leftovers"]["state"]) == (0, "warning")
    before = {path.name for path in folder.iterdir()}
    code, found, done = examined(study, "--repair")
    assert (code, found["leftovers"]["state"], len(done)) == (0, "ok", 3)
    assert not any(path.exists() for path in (*old, scratch))
    assert all(path.exists() for path in new)
    assert before - {path.name for path in folder.iterdir()} == {old[0].name}


def test_a_missing_control_study(study: Path) -> None:
    database(study, "delete from studies where study_name = 'smoke/projector'")
    code, found, _ = examined(study)
    assert (code, found["control study"]["found"]) == (2, "is missing")
    code, found, _ = examined(study, "--repair")
    assert (code, found["control study"]["found"]) == (2, "is missing")


def test_a_calibration_of_another_version(study: Path) -> None:
    database(
        study,
        "update trial_user_attributes set value_json = json_set(value_json, '$.format', 2) "
        "where key = 'bundle'",
    )
    code, found, _ = examined(study)
    assert (code, found["calibration"]["found"]) == (2, "format 2; this version reads 3")


def test_a_spec_and_an_anatomy_that_cannot_be_read(study: Path) -> None:
    key = "key = 'effllava:anatomy'"
    database(study, f"update study_user_attributes set value_json = '[]' where {key}")
    code, found, _ = examined(study)
    assert (code, found["anatomy"]["state"]) == (2, "fault")
    key = "key = 'effllava:spec'"
    database(study, f"update study_user_attributes set value_json = '{{}}' where {key}")
    code, found, _ = examined(study)
    assert (code, found["study"]["state"]) == (2, "fault")


def test_a_database_of_another_version(study: Path) -> None:
    database(study, "update alembic_version set version_num = 'v2.6.0.a'")
    code, found, _ = examined(study)
    assert code == 2
    assert "optuna storage upgrade" in found["storage"]["cure"]


def test_a_database_that_is_locked(study: Path) -> None:
    holder = sqlite3.connect(study.with_suffix(".db"))
    holder.execute("begin immediate")
    try:
        code, found, _ = examined(study)
    finally:
        holder.rollback()
        holder.close()
    assert code == 2
    assert found["storage"]["found"].endswith("database is locked")
    assert found["storage"]["cure"] == "End the process that holds it, or wait."


@pytest.mark.parametrize("content", [b"", b"no database", None])
def test_a_database_that_is_none(content: bytes | None, study: Path) -> None:
    place = study.with_suffix(".db")
    whole = place.read_bytes()
    place.write_bytes(whole[: len(whole) // 2] if content is None else content)
    code, found, _ = examined(study)
    assert (code, found["storage"]["state"]) == (2, "fault")


def test_an_export_of_another_policy_or_with_a_damaged_file(smoke: Ran, study: Path) -> None:
    code, found, _ = examined(study)
    assert (code, found["export"]["state"]) == (0, "warning")
    mine = opened(smoke.file)
    spec, place = storage.spec_of(mine), smoke.file.parent / "smoke.pruned"
    assert integrity.export_stands(mine, spec, place)
    assert not integrity.export_stands(mine, spec, place / "none")
    copied = opened(study)
    other = next(t.number for t in copied.trials if t.number != mine.user_attrs[storage.CHOSEN])
    copied.set_user_attr(storage.CHOSEN, other)
    assert not integrity.export_stands(copied, spec, place)


def test_a_package_out_of_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["click<1", "no-such-package-of-ours>=1", "numpy>=1", "boto3<1; extra == 's3'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: needed)
    found = {finding.found: finding.state for finding in doctor._packages()}
    states = {told.split()[0]: state for told, state in found.items()}
    assert states == {"click": "fault", "no-such-package-of-ours": "fault", "boto3": "warning"}


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setattr(doctor, "_PATIENCE", 0.2)
        began = time.monotonic()
        finding = doctor._hub()
    assert finding.state == "warning"
    assert "HF_HUB_OFFLINE=1" in finding.cure
    assert time.monotonic() - began < 10
