"""``doctor``: faults of machine and study, their cures, and repairs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from effllava_optuna.cli import diagnostics
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.integrity import export_is_valid, storage_check
from effllava_optuna.storage.names import CHOSEN
from effllava_optuna.storage.studies import config_of
from tests.study_fixtures import (
    FinishedStudy,
    copy_study,
    ended_process,
    invoke,
    url_of_study,
    write_tiny,
)


@pytest.fixture
def study(smoke: FinishedStudy, tmp_path: Path) -> Path:
    return copy_study(smoke.file, tmp_path / "study")


@pytest.fixture(autouse=True)
def _short_lock_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_check, "_LOCK_TIMEOUT", 0.1)


@pytest.fixture(autouse=True)
def _room_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the machine's own disk is nearly full is not what is tested."""
    usage = shutil.disk_usage(Path.cwd())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**12))


def doctor(*words: object) -> tuple[int, dict[str, dict[str, Any]], list[str]]:
    """Return the exit code, the worst finding of each check, and the repairs."""
    done = invoke("doctor", *words, "-f", "json", check=False)
    document = json.loads(done.stdout)
    order = ("ok", "warning", "fault")
    worst: dict[str, dict[str, Any]] = {}
    for finding in document["findings"]:
        other = worst.setdefault(finding["check"], finding)
        if order.index(finding["state"]) > order.index(other["state"]):
            worst[finding["check"]] = finding
        assert bool(finding["cure"]) == (finding["state"] != "ok"), finding
    return done.returncode, worst, document["repaired"]


def change_database(file: Path, statement: str) -> None:
    connection = sqlite3.connect(file.with_suffix(".db"))
    with connection:
        changed = connection.execute(statement).rowcount
    connection.close()
    assert changed


def load_study(url: str, name: str = "smoke") -> optuna.Study:
    return optuna.load_study(
        study_name=name, storage=open_storage(url), sampler=optuna.samplers.RandomSampler()
    )


def test_the_machine_is_checked_without_a_study() -> None:
    code, results, _ = doctor()
    assert code == 0
    assert set(results) == {"python", "packages", "torch", "device", "cores", "memory", "disk",
                          "hub"}  # fmt: skip
    assert results["hub"]["detail"].startswith("offline")
    table = invoke("doctor").stdout
    assert table.splitlines()[0].split() == ["state", "check", "result"]


def test_a_disk_that_is_nearly_full_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(".")._replace(free=10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    code, results, _ = doctor()
    assert (code, results["disk"]["state"]) == (0, "warning")
    assert results["disk"]["detail"].startswith("0.10 GB are free")


def test_a_healthy_study_has_no_fault(smoke: FinishedStudy) -> None:
    code, results, _ = doctor(smoke.file)
    assert code == 0
    assert {name for name, finding in results.items() if finding["state"] != "ok"} <= {"memory"}
    assert {"storage", "schema", "study", "structure", "control study", "calibration", "artifacts",
            "export", "unfinished files", "duplicates"} <= set(results)  # fmt: skip
    assert doctor("--storage", smoke.url, "--study-name", "smoke")[0] == 0
    code, results, _ = doctor("--storage", smoke.url, "--study-name", "other")
    assert (code, results["study"]["state"]) == (2, "fault")


@pytest.mark.parametrize(
    "storage_url",
    ["journal", pytest.param("postgresql", marks=pytest.mark.servers)],
    indirect=True,
)
def test_a_study_in_another_kind_of_storage_is_checked_and_repaired(
    checkpoint: Path, storage_url: str, tmp_path: Path
) -> None:
    file = write_tiny(checkpoint, tmp_path)
    changes = (
        f"study.storage='{storage_url}'",
        f"study.artifacts='{tmp_path / 'tensors'}'",
        "search.epochs=1",
    )
    invoke("run", file, *(word for change in changes for word in ("--set", change)))
    location = ("--storage", storage_url, "--study-name", "tiny")
    code, results, _ = doctor(*location)
    not_ok = {name for name, finding in results.items() if finding["state"] != "ok"}
    assert (code, not_ok - {"memory"}) == (0, set()), results
    load_study(storage_url, "tiny").add_trial(
        create_trial(state=TrialState.RUNNING, system_attrs={"owner": ended_process()})
    )
    check = "trials of ended processes"
    assert doctor(*location)[1][check]["state"] == "warning"
    assert len(doctor(*location, "--repair")[2]) == 1
    assert doctor(*location)[1][check]["state"] == "ok"
    for tensors in (tmp_path / "tensors").iterdir():
        tensors.unlink()
    code, results, _ = doctor(*location)
    assert (code, results["artifacts"]["state"]) == (2, "fault")


def test_a_study_that_has_not_begun_is_not_a_fault(tmp_path: Path) -> None:
    invoke("init", "digits-vlm", "--task", "digits", "--out", tmp_path / "new.toml")
    code, results, _ = doctor(tmp_path / "new.toml")
    assert (code, results["storage"]["detail"]) == (0, "'new' has not begun")
    assert [path.name for path in tmp_path.iterdir()] == ["new.toml"]


def test_missing_damaged_and_unreferenced_artifacts_are_named(study: Path) -> None:
    directory = study.with_suffix(".artifacts")
    first, second, *_ = sorted(directory.iterdir())
    (directory / "0123").write_text("unreferenced")
    code, results, _ = doctor(study, "--repair")
    assert (code, results["artifacts"]["state"], results["orphans"]["state"]) == (
        0,
        "ok",
        "warning",
    )
    assert (directory / "0123").is_file()
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, results, _ = doctor(study)
    assert code == 2
    assert results["artifacts"]["detail"].startswith(f"damaged: {first.name[:12]}")
    first.write_bytes(content)
    second.unlink()
    code, results, _ = doctor(study, "--repair")
    assert code == 2
    assert results["artifacts"]["detail"].startswith(f"missing: {second.name[:12]}")
    assert "trial" in results["artifacts"]["detail"]


def test_only_repair_fails_the_trials_of_ended_processes(study: Path) -> None:
    url = url_of_study(study)
    control_study = load_study(url, "smoke/projector")
    attempt = control_study.trials[0]
    load_study(url).add_trial(
        create_trial(state=TrialState.RUNNING, system_attrs={"owner": ended_process()})
    )
    control_study.add_trial(
        create_trial(
            state=TrialState.RUNNING, params=attempt.params,
            distributions=attempt.distributions, user_attrs={"owner": ended_process()},
        )
    )  # fmt: skip
    checks = "trials of ended processes", "attempts of ended processes"
    code, results, repaired = doctor(study)
    assert (code, repaired) == (0, [])
    assert [results[check]["state"] for check in checks] == ["warning", "warning"]
    code, results, repaired = doctor(study, "--repair")
    assert len(repaired) == 2
    assert all(line.endswith("its process has ended") for line in repaired)
    assert [results[check]["state"] for check in checks] == ["ok", "ok"]
    for name in ("smoke", "smoke/projector"):
        assert load_study(url, name).trials[-1].state == TrialState.FAIL
    assert doctor(study, "--repair")[2] == []


def test_repair_removes_only_abandoned_files(study: Path) -> None:
    directory, two_hours_ago = study.with_suffix(".artifacts"), time.time() - 7200
    abandoned = [directory / f".{'0' * 64}.abc.part", study.parent / f".{study.name}.abc.part"]
    scratch, own = (study.parent / f".smoke.pruned-{end}" for end in ("0a_b1c2d", "backup"))
    for place in (scratch, own):
        place.mkdir()
        (place / "model").write_text("half")
    recent = [directory / f".{'1' * 64}.new.part", study.parent / f".{study.name}.new.part"]
    for path in (*abandoned, *recent):
        path.write_text("half")
    for path in (*abandoned, scratch / "model", scratch, own / "model", own):
        os.utime(path, (two_hours_ago, two_hours_ago))
    code, results, _ = doctor(study)
    assert (code, results["unfinished files"]["state"]) == (0, "warning")
    before = {path.name for path in directory.iterdir()}
    code, results, repaired = doctor(study, "--repair")
    assert (code, results["unfinished files"]["state"], len(repaired)) == (0, "ok", 3)
    assert not any(path.exists() for path in (*abandoned, scratch))
    assert all(path.exists() for path in (*recent, own))
    assert before - {path.name for path in directory.iterdir()} == {abandoned[0].name}


def test_a_missing_control_study_is_a_fault_that_stays(study: Path) -> None:
    change_database(study, "delete from studies where study_name = 'smoke/projector'")
    for words in ((), ("--repair",)):
        code, results, _ = doctor(study, *words)
        assert (code, results["control study"]["detail"]) == (2, "is missing")


def test_a_calibration_of_another_version_is_a_fault(study: Path) -> None:
    change_database(
        study,
        "update trial_user_attributes set value_json = json_set(value_json, '$.format', 2) "
        "where key = 'calibration'",
    )
    code, results, _ = doctor(study)
    assert code == 2
    assert results["calibration"]["detail"].startswith("format 2; this version reads ")


@pytest.mark.parametrize(
    ("key", "value", "check"), [("structure", "[]", "structure"), ("config", "{}", "study")]
)
def test_a_damaged_attribute_of_the_study_is_a_fault(
    key: str, value: str, check: str, study: Path
) -> None:
    update = f"update study_user_attributes set value_json = '{value}'"
    change_database(study, f"{update} where key = 'effllava:{key}'")
    code, results, _ = doctor(study)
    assert (code, results[check]["state"]) == (2, "fault")


def test_a_database_of_another_version_of_optuna_is_a_fault(study: Path) -> None:
    change_database(study, "update alembic_version set version_num = 'v2.6.0.a'")
    code, results, _ = doctor(study)
    assert code == 2
    assert "optuna storage upgrade" in results["storage"]["cure"]


def test_a_locked_database_is_a_fault(study: Path) -> None:
    connection = sqlite3.connect(study.with_suffix(".db"))
    connection.execute("begin immediate")
    try:
        code, results, _ = doctor(study)
    finally:
        connection.rollback()
        connection.close()
    assert code == 2
    assert results["storage"]["detail"].endswith("database is locked")
    assert results["storage"]["cure"].startswith("Wait for the process that locks the database")


@pytest.mark.parametrize("content", [b"", b"no database", None])
def test_a_truncated_database_is_a_fault(content: bytes | None, study: Path) -> None:
    database = study.with_suffix(".db")
    whole = database.read_bytes()
    database.write_bytes(whole[: len(whole) // 2] if content is None else content)
    code, results, _ = doctor(study)
    assert (code, results["storage"]["state"]) == (2, "fault")


def test_a_missing_export_is_a_warning(study: Path) -> None:
    code, results, _ = doctor(study)
    assert (code, results["export"]["state"]) == (0, "warning")


def test_an_export_is_valid_for_the_chosen_policy_only(smoke: FinishedStudy, study: Path) -> None:
    finished, copied = load_study(smoke.url), load_study(url_of_study(study))
    config, directory = config_of(finished), smoke.file.parent / "smoke.pruned"
    assert export_is_valid(finished, config, directory)
    assert not export_is_valid(finished, config, directory / "none")
    other = next(t.number for t in copied.trials if t.number != finished.user_attrs[CHOSEN])
    copied.set_user_attr(CHOSEN, other)
    assert not export_is_valid(copied, config, directory)


def test_packages_outside_their_ranges_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["click<1", "no-such-package-of-ours>=1", "numpy>=1", "boto3<1; extra == 's3'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: requirements)
    states = {result.detail.split()[0]: result.state for result in diagnostics._check_packages()}
    assert states == {"click": "fault", "no-such-package-of-ours": "fault", "boto3": "warning"}


def test_a_hub_that_does_not_respond_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(diagnostics, "_HUB_TIMEOUT", 0.2)
        result = diagnostics._check_hub()
    assert result.state == "warning"
    assert "HF_HUB_OFFLINE=1" in result.cure
