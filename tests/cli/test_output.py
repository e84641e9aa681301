"""What a command stores does not depend on whether, and in which encoding, it can print.

A table printer that dies over a character (rich issue 826) must not take an export with it.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from effllava_optuna.cli.output import console, protected_output
from effllava_optuna.cli.program import main
from tests.study_fixtures import (
    FinishedStudy,
    command_line,
    copy_study,
    invoke,
    subprocess_environment,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
NAME = "größe-模型"
READERS = ("status", "report", "pick", "check")


def text_stream(path: Path, encoding: str = "utf-8") -> io.TextIOWrapper:
    """Return a stream as Python opens it for the standard output."""
    return io.TextIOWrapper(path.open("ab"), encoding=encoding)


def run_with(
    monkeypatch: pytest.MonkeyPatch,
    *words: object,
    out: io.TextIOBase | None,
    err: io.TextIOBase | None,
) -> int:
    """Run the command line with these standard streams; return the exit code."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
    for stream in (out, err):
        if stream is not None:
            stream.close()
    code = ended.value.code
    return code if isinstance(code, int) else 0


@pytest.fixture
def named(smoke: FinishedStudy, tmp_path: Path) -> Path:
    """A finished study in a directory whose name no narrow encoding has."""
    return copy_study(smoke.file, tmp_path / NAME)


def unreadable_pipe() -> io.TextIOWrapper:
    """Return the writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return io.TextIOWrapper(os.fdopen(writer, "wb"), encoding="utf-8")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16"])
@pytest.mark.parametrize("verb", READERS)
def test_a_name_that_the_output_cannot_encode_is_escaped(
    named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, verb: str
) -> None:
    output, errors = tmp_path / "out", tmp_path / "err"
    words = [verb, str(named)]
    if verb == "status":  # its message about a missing study has the name
        url = f"sqlite:///{named.with_suffix('.db')}"
        words = [verb, "--storage", url, "--study-name", NAME]
    out, err = text_stream(output, encoding), text_stream(errors, encoding)
    code = run_with(monkeypatch, *words, out=out, err=err)
    assert code == (2 if verb == "status" else 0)
    printed = (errors if verb == "status" else output).read_bytes().decode(encoding)
    if encoding == "utf-16":
        assert NAME in printed
    elif encoding == "ascii":
        assert r"gr\xf6\xdfe-\u6a21\u578b" in printed
    else:
        assert r"größe-\u6a21\u578b" in printed


def test_a_path_that_is_not_unicode_is_printed_and_logged(
    smoke: FinishedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python reads a file name of other bytes with characters that no encoding has."""
    page, log = tmp_path / os.fsdecode(b"page-\xff.html"), tmp_path / "log"
    words = ("report", smoke.file, "--out", page, "-v", "--log-file", log)
    out, err = text_stream(tmp_path / "out"), text_stream(tmp_path / "err")
    assert run_with(monkeypatch, *words, out=out, err=err) == 0
    assert page.is_file()
    assert r"page-\udcff.html" in (tmp_path / "out").read_text()


def test_square_brackets_and_colons_of_a_path_are_printed_as_they_are(
    smoke: FinishedStudy, tmp_path: Path
) -> None:
    """Rich reads them as markup: ``[/a]`` was an error, ``[bold]`` was left out."""
    for name in ("a[bold]", "a[", "[b]:warning:"):
        folder = tmp_path / name / "[" / "b]"
        folder.mkdir(parents=True)
        printed = invoke("report", smoke.file, "--out", folder / "x.html").stdout
        assert f"page: {folder}/x.html" in printed


@needs_full
@pytest.mark.parametrize("verb", [*READERS, "inspect"])
def test_a_full_output_is_one_line_on_the_error_stream(
    named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    words = ("inspect", "digits-vlm", "--quick") if verb == "inspect" else (verb, named)
    err = text_stream(tmp_path / "err")
    assert run_with(monkeypatch, *words, out=text_stream(FULL), err=err) == 2
    message = "The output could not be printed: No space left on device."
    assert (tmp_path / "err").read_text().startswith(message)
    assert (tmp_path / "err").read_text().count("\n") == 1
    assert named.with_suffix(".html").is_file() == (verb == "report")


@pytest.mark.parametrize("verb", READERS)
def test_a_reader_that_stops_reading_is_no_error(
    named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    err = text_stream(tmp_path / "err")
    assert run_with(monkeypatch, verb, named, out=unreadable_pipe(), err=err) == 0
    assert (tmp_path / "err").read_text() == ""
    assert named.with_suffix(".html").is_file() == (verb == "report")


@needs_full
def test_an_error_message_that_cannot_be_printed_keeps_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[Callable[[], io.TextIOBase | None]] = [
        lambda: text_stream(FULL), unreadable_pipe, lambda: None
    ]  # fmt: skip
    for make in streams:
        for words in (("status", tmp_path / "none.toml"), ("no-such-verb",)):
            assert run_with(monkeypatch, *words, out=make(), err=make()) == 2


def test_a_function_of_the_user_may_close_the_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    with text_stream(output) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with protected_output() as state:
            for stream_of_user in (sys.stdout, sys.stderr):
                stream_of_user.write("before")
                stream_of_user.close()
                stream_of_user.write(", after")
        monkeypatch.undo()
    assert output.read_text() == "before, after"
    assert state.error is None


def test_the_streams_of_the_process_are_restored(tmp_path: Path) -> None:
    before = sys.stdout, sys.stderr
    with protected_output() as output:
        console().print("in between")
    assert (sys.stdout, sys.stderr) == before
    assert output.error is None


def test_all_is_printed_to_a_pipe_that_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write to such a pipe is an error when it is full; some shells and supervisors use one."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    text, read = "x" * 1_000_000, []

    def drain() -> None:
        with os.fdopen(reader, "rb") as file:
            read.append(len(file.read()))

    thread = threading.Thread(target=drain)
    thread.start()
    with io.TextIOWrapper(os.fdopen(writer, "wb"), encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with protected_output():
            sys.stdout.write(text)
    thread.join()
    assert read == [len(text)]


@pytest.mark.kill
@pytest.mark.parametrize(
    ("redirections", "code"),
    [
        ("> /dev/full", 2),
        (">&-", 0),
        ("2>&-", 0),
        ("<&- >&- 2>&-", 0),
        ("| head -1", 0),
    ],
)
@needs_full
def test_a_study_is_finished_and_exported_whatever_happens_to_its_output(
    smoke: FinishedStudy, tmp_path: Path, redirections: str, code: int
) -> None:
    file = copy_study(smoke.file, tmp_path / NAME)
    words = " ".join(command_line("resume", "-q", '"$1"'))
    script = f"set -o pipefail; {words} {redirections}"
    done = subprocess.run(
        ["bash", "-c", script, "bash", str(file)],
        capture_output=True, check=False,
        env=subprocess_environment() | {"PYTHONIOENCODING": "cp1252:strict"},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    plan = json.loads((file.parent / "smoke.pruned" / "config.json").read_text())
    assert plan
    assert invoke("resume", file).stdout.startswith("The search of 'smoke' is finished.")


@needs_full
def test_a_log_file_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    done = invoke("status", tmp_path / "none.toml", "--log-file", FULL, check=False)
    warning, error = done.stderr.splitlines()
    assert warning.endswith("/dev/full cannot be written: No space left on device.")
    assert error.startswith(f"{tmp_path}/none.toml: ")
