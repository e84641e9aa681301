from __future__ import annotations

import io
from contextlib import closing
from typing import TYPE_CHECKING

import boto3
import pytest
import torch
from moto import mock_aws

from effllava_optuna.errors import StudyError
from effllava_optuna.study import storage
from effllava_optuna.study.artifacts import Folder, Vault, store_for
from effllava_optuna.study.loop import continued, search
from effllava_optuna.study.spec import StudySpec
from tests.study.conftest import TINY_TRIALS, calibrate, write_tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from effllava_optuna.study.artifacts import Store


def spec_with(artifacts: str) -> StudySpec:
    study = {"name": "s", "artifacts": artifacts}
    return StudySpec.of({"study": study, "model": {"path": "m"}, "task": {"name": "digits"}})


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "tests")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="pruned")
        yield "s3://pruned"


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Folder(tmp_path / "vault")
    return store_for("", spec_with(request.getfixturevalue("bucket")))


def test_tensors_come_back_under_the_name_of_their_content(store: Store) -> None:
    vault = Vault(store)
    tensors = {"a": torch.arange(3.0), "b": torch.eye(2).t()[:, :1]}
    name = vault.put(tensors)
    assert vault.put(tensors) == name
    for key, value in vault.get(name).items():
        assert torch.equal(value, tensors[key])


def test_a_folder_holds_nothing_but_whole_artifacts(tmp_path: Path) -> None:
    name = Vault(Folder(tmp_path / "vault")).put({"a": torch.arange(3.0)})
    assert [file.name for file in (tmp_path / "vault").iterdir()] == [name]


def test_a_damaged_artifact_is_refused(store: Store) -> None:
    vault = Vault(store)
    name = vault.put({"a": torch.arange(3.0)})
    with closing(store.open_reader(name)) as file:
        content = bytearray(file.read())
    content[-1] ^= 1
    store.write(name, io.BytesIO(content))
    with pytest.raises(StudyError, match="is damaged"):
        vault.get(name)


def test_a_missing_artifact_says_where_it_should_be(store: Store) -> None:
    with pytest.raises(StudyError, match=r"(vault|s3://pruned)/0000.*missing.*Keep the artifacts"):
        Vault(store).get("0" * 64)


def test_a_directory_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(StudyError, match="cannot be written"):
        Vault(Folder(tmp_path / "file")).put({"a": torch.arange(3.0)})
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_bucket_that_is_not_there_is_named(bucket: str) -> None:
    vault = Vault(store_for("", spec_with(f"{bucket}-not")))
    with pytest.raises(StudyError, match=r"s3://pruned-not: an artifact of .*does not exist"):
        vault.put({"a": torch.arange(3.0)})
    with pytest.raises(StudyError, match=r"s3://pruned-not/a: the artifact"):
        vault.get("a")


@pytest.mark.parametrize("place", ["s3://", "s3://bucket/folder", "gs://bucket"])
def test_a_place_that_is_none_is_refused(place: str) -> None:
    with pytest.raises(StudyError, match=r"is no place for artifacts.*s3://BUCKET"):
        store_for("", spec_with(place))


def test_a_study_keeps_its_tensors_in_a_bucket(
    bucket: str, checkpoint: Path, tmp_path: Path
) -> None:
    file = write_tiny(checkpoint, tmp_path)
    file.write_text(f'[study]\nname = "tiny"\nartifacts = "{bucket}"\n' + file.read_text())
    calibrate(file)
    url = f"sqlite:///{file.with_suffix('.db')}"
    study = storage.open_study(storage.open_storage(url), "tiny")
    with continued(study, url) as epochs:
        search(epochs)
        assert len(study.get_trials(deepcopy=False)) == TINY_TRIALS
        names = [attempt.user_attrs["artifact"] for attempt in epochs.ledger.epochs()]
    kept = boto3.client("s3").list_objects_v2(Bucket="pruned")["Contents"]
    assert {item["Key"] for item in kept} == set(names)
    assert not [found for found in tmp_path.iterdir() if found.is_dir()]
