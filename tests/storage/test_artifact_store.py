from __future__ import annotations

import io
from contextlib import closing
from typing import TYPE_CHECKING

import boto3
import pytest
import torch
from moto import mock_aws

from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.errors import StudyError
from effllava_optuna.search.runner import resume
from effllava_optuna.storage.artifact_store import (
    ArtifactStore,
    DirectoryArtifactStore,
    artifact_backend_of,
)
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.studies import open_study
from tests.study_fixtures import begin_study, write_tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from effllava_optuna.storage.artifact_store import ArtifactBackend


def config_with(artifacts: str) -> StudyConfig:
    study = {"name": "s", "artifacts": artifacts}
    return StudyConfig.of({"study": study, "model": {"path": "m"}, "task": {"name": "digits"}})


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "tests")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="pruned")
        yield "s3://pruned"


@pytest.fixture(params=["directory", "bucket"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactBackend:
    if request.param == "directory":
        return DirectoryArtifactStore(tmp_path / "artifacts")
    return artifact_backend_of("", config_with(request.getfixturevalue("bucket")))


def test_tensors_are_read_by_the_digest_of_their_content(backend: ArtifactBackend) -> None:
    artifact_store = ArtifactStore(backend)
    tensors = {"a": torch.arange(3.0), "b": torch.eye(2).t()[:, :1]}
    name = artifact_store.write_tensors(tensors)
    assert artifact_store.write_tensors(tensors) == name
    for key, value in artifact_store.read_tensors(name).items():
        assert torch.equal(value, tensors[key])


def test_a_directory_has_only_complete_artifacts(tmp_path: Path) -> None:
    name = ArtifactStore(DirectoryArtifactStore(tmp_path / "artifacts")).write_tensors(
        {"a": torch.arange(3.0)}
    )
    assert [file.name for file in (tmp_path / "artifacts").iterdir()] == [name]


def test_a_damaged_artifact_is_refused(backend: ArtifactBackend) -> None:
    artifact_store = ArtifactStore(backend)
    name = artifact_store.write_tensors({"a": torch.arange(3.0)})
    with closing(backend.open_reader(name)) as file:
        content = bytearray(file.read())
    content[-1] ^= 1
    backend.write(name, io.BytesIO(content))
    with pytest.raises(StudyError, match="is damaged"):
        artifact_store.read_tensors(name)


def test_the_error_about_a_missing_artifact_names_its_path(backend: ArtifactBackend) -> None:
    with pytest.raises(
        StudyError, match=r"(artifacts|s3://pruned)/0000.*missing.*Keep the artifacts"
    ):
        ArtifactStore(backend).read_tensors("0" * 64)


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(StudyError, match="cannot be written"):
        ArtifactStore(DirectoryArtifactStore(tmp_path / "file")).write_tensors(
            {"a": torch.arange(3.0)}
        )
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_the_error_about_a_missing_bucket_names_it(bucket: str) -> None:
    artifact_store = ArtifactStore(artifact_backend_of("", config_with(f"{bucket}-not")))
    with pytest.raises(StudyError, match=r"s3://pruned-not: an artifact of .*does not exist"):
        artifact_store.write_tensors({"a": torch.arange(3.0)})
    with pytest.raises(StudyError, match=r"s3://pruned-not/a: the artifact"):
        artifact_store.read_tensors("a")


@pytest.mark.parametrize("location", ["s3://", "s3://bucket/folder", "gs://bucket"])
def test_an_invalid_location_of_artifacts_is_refused(location: str) -> None:
    with pytest.raises(StudyError, match=r"is not a directory or a bucket.*s3://BUCKET"):
        artifact_backend_of("", config_with(location))


def test_a_study_stores_its_tensors_in_a_bucket(
    bucket: str, checkpoint: Path, tmp_path: Path
) -> None:
    file = write_tiny(checkpoint, tmp_path)
    file.write_text(f'[study]\nname = "tiny"\nartifacts = "{bucket}"\n' + file.read_text())
    begin_study(file)
    url = f"sqlite:///{file.with_suffix('.db')}"
    study = open_study(open_storage(url), "tiny")
    with resume(study, url) as session:
        (calibration,) = session.epochs.control_study.published_epochs()
    objects = boto3.client("s3").list_objects_v2(Bucket="pruned")["Contents"]
    assert [item["Key"] for item in objects] == [calibration.user_attrs["artifact"]]
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
