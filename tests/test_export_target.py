"""A place that cannot be written, or has files of the user, is refused before anything is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from effllava_optuna.errors import ExportError
from effllava_optuna.export_target import check_export_directory, check_onnx_file


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A directory with the descriptions of an export."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "policy.json").write_text('{"format": 2, "effllava_optuna": "0.1"}')
    (tmp_path / "out" / "checksums.json").write_text(json.dumps({"policy.json": "0123"}))
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["notes.txt", "model-Q4.gguf", "second/policy.json", ".git/HEAD"])
def test_files_that_were_added_to_an_export_are_not_overwritten(name: str, earlier: Path) -> None:
    check_export_directory(earlier, overwrite=True)
    (earlier / name).parent.mkdir(exist_ok=True)
    (earlier / name).write_text("x")
    with pytest.raises(ExportError, match=f"{name} is not of the earlier export") as caught:
        check_export_directory(earlier, overwrite=True)
    assert caught.value.hint


def test_bytecode_and_empty_directories_are_no_added_files(earlier: Path) -> None:
    (earlier / "__pycache__").mkdir()
    (earlier / "__pycache__" / "modeling_effllava.cpython-312.pyc").write_bytes(b"x")
    (earlier / "empty").mkdir()
    check_export_directory(earlier, overwrite=True)


@pytest.mark.parametrize("checksums", ["{", "[1]", "3"])
def test_an_export_with_a_damaged_list_is_overwritten(checksums: str, earlier: Path) -> None:
    (earlier / "checksums.json").write_text(checksums)
    check_export_directory(earlier, overwrite=True)


def test_a_path_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for path in (
        tmp_path / "a",
        tmp_path / "b" / "c",
        f"{tmp_path}/x\0y",
        f"{tmp_path}/{'x' * 300}",
    ):
        for check in (check_export_directory, check_onnx_file):
            with pytest.raises(ExportError, match="cannot be written") as caught:
                check(path, overwrite=False)
            assert "\n" not in str(caught.value)


def test_a_mounted_file_system_is_no_place_for_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end, a finished export takes the place of the directory."""
    mounted = tmp_path / "volume"
    mounted.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == mounted)
    with pytest.raises(ExportError, match=r"volume is where a file system is mounted\. Choose"):
        check_export_directory(mounted, overwrite=False)
    check_export_directory(mounted / "inside", overwrite=False)
