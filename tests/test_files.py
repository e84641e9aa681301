"""Files and directories appear complete or not at all."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from effllava_optuna.errors import ExportError
from effllava_optuna.files import (
    DRAFT_SUFFIX,
    is_scratch,
    scratch_beside,
    write_atomically,
    write_errors_as,
)

KILLED = """
import os, signal, sys
from pathlib import Path
from effllava_optuna.files import write_atomically

setattr(os, sys.argv[1], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
write_atomically(Path(sys.argv[2]), "new" * 10_000)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["a\n\r\nü", b"\x00\xff"])
def test_the_content_is_written_unchanged(tmp_path: Path, content: str | bytes) -> None:
    write_atomically(tmp_path / "x", content)
    data = content.encode() if isinstance(content, str) else content
    assert (tmp_path / "x").read_bytes() == data
    assert names(tmp_path) == ["x"]


def test_a_new_file_has_the_default_mode_and_an_existing_one_keeps_its_mode(
    tmp_path: Path,
) -> None:
    plain, new, old = (tmp_path / name for name in ("plain", "new", "old"))
    plain.touch()
    old.touch()
    old.chmod(0o640)
    for path in (new, old):
        write_atomically(path, "text")
    assert new.stat().st_mode == plain.stat().st_mode
    assert old.stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link, target = tmp_path / "link", tmp_path / "folder" / "target"
    link.symlink_to(target)
    for text in ("created", "replaced"):
        write_atomically(link, text)
        assert (link.is_symlink(), target.read_text()) == (True, text)
    assert names(tmp_path / "folder") == ["target"]


def test_a_pipe_is_written_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = Thread(target=write_atomically, args=(pipe, "text"))
    writer.start()
    assert pipe.read_text() == "text"
    writer.join()
    assert pipe.is_fifo()


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_leaves_the_old_content(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, moment, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    (draft,) = (name for name in names(tmp_path) if name != "x")
    assert (draft.startswith(".x."), draft.endswith(DRAFT_SUFFIX)) == (True, True)


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_content_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(os, moment, fail)
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_text_that_is_not_valid_leaves_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "x", "half a pair: \ud800")
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_an_existing_file_is_kept_if_asked(tmp_path: Path) -> None:
    write_atomically(tmp_path / "x", "old", overwrite=False)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "x", "new", overwrite=False)
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("path", [".", "no/folder", "file/x", "x" * 300])
def test_a_path_that_cannot_be_written_is_an_os_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"."):
        write_atomically(tmp_path / path, "text")
    assert names(tmp_path) == ["file"]


def test_scratch_is_beside_its_target_and_removed_on_exit(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "target"
    with pytest.raises(IsADirectoryError), scratch_beside(target) as scratch:
        scratch.write_text("half")
    assert names(target.parent) == []
    with scratch_beside(target) as scratch:
        assert scratch.parent == target.parent
        (scratch / "whole").mkdir()
        (scratch / "whole").rename(target)
    assert names(target.parent) == ["target"]


def test_a_write_error_names_the_path_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "no" / "x"
    message = f"{path} cannot be written: No such file or directory. Choose another one."
    with (
        pytest.raises(ExportError, match=f"^{message}$"),
        write_errors_as(ExportError, path, hint="Choose another one."),
    ):
        write_atomically(path, "text")


@pytest.mark.parametrize("overwrite", [True, False])
def test_the_name_of_a_new_file_is_flushed_after_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """A database that refers to the file may be durable before the name is."""
    flushed: list[bool] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        flushed.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    write_atomically(tmp_path / "a", "content", overwrite=overwrite)
    assert flushed == [False, True]


def test_a_new_file_is_written_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on exFAT, and on many network file systems."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_atomically(tmp_path / "x", "old", overwrite=False)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "x", "new", overwrite=False)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("x", "old")]


def test_only_drafts_of_a_directory_are_scratch(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with scratch_beside(target) as scratch:
        assert is_scratch(scratch, target)
    for name in (".out-backup", ".out-old", "out-abcdefgh", ".other-abcdefgh"):
        assert not is_scratch(tmp_path / name, target)
