from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from effllava_optuna.errors import StudyError
from effllava_optuna.study.artifacts import Vault

if TYPE_CHECKING:
    from pathlib import Path


def test_tensors_come_back_under_the_name_of_their_content(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "vault")
    tensors = {"a": torch.arange(3.0), "b": torch.eye(2).t()[:, :1]}
    name = vault.put(tensors)
    assert vault.put(tensors) == name
    assert [file.name for file in vault.directory.iterdir()] == [name]
    for key, value in vault.get(name).items():
        assert torch.equal(value, tensors[key])


def test_a_damaged_artifact_is_refused(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    name = vault.put({"a": torch.arange(3.0)})
    content = bytearray((tmp_path / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StudyError, match="is damaged"):
        vault.get(name)


def test_a_missing_artifact_says_where_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="Keep the artifacts directory beside the database"):
        Vault(tmp_path).get("0" * 64)


def test_a_directory_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(StudyError, match="cannot be written"):
        Vault(tmp_path / "file").put({"a": torch.arange(3.0)})
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
