"""Servers of engines, started by the commands of docs/serving.md."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING

from effllava_optuna.surgery.gguf.llama_server import free_port
from tests.page_blocks import blocks_of, commands_of
from tests.study_fixtures import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

BLOCKS = blocks_of(ROOT / "docs" / "serving.md")
_SECONDS = 600  # until a server is given up


def page_command(*begin: str) -> list[str]:
    """Return the only command of the page that begins with these words."""
    (command,) = [
        words
        for block in BLOCKS
        if block.language == "sh"
        for _, words in commands_of(block.text)
        if tuple(words[: len(begin)]) == begin
    ]
    return command


@contextmanager
def serving(command: Sequence[str], place: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Start a server in a directory, on a free port, and return its address once it answers."""
    port = free_port()
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], cwd=place, stdout=log, stderr=log, env=environment,
            start_new_session=True,
        )  # fmt: skip
    address = f"http://localhost:{port}"
    try:
        for _ in range(_SECONDS):
            try:
                urllib.request.urlopen(f"{address}/health")
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, (place / "log").read_text()[-3000:]
                time.sleep(1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
