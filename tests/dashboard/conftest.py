"""A running dashboard of the smoke study, which the tests of this directory share."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.study_fixtures import FinishedStudy, command_line, subprocess_environment

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def running_dashboard(*arguments: object) -> Iterator[str]:
    """Serve a study with the command ``dashboard``, and yield the URL of its page."""
    process = subprocess.Popen(
        command_line("dashboard", *arguments, "--port", 0),
        stdout=subprocess.PIPE, text=True, env=subprocess_environment(),
    )  # fmt: skip
    if process.stdout is None:
        raise AssertionError
    try:
        yield process.stdout.readline().split()[2]
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


@pytest.fixture(scope="session")
def dashboard_url(smoke: FinishedStudy) -> Iterator[str]:
    """The URL of the page of the smoke study."""
    with running_dashboard(smoke.file) as url:
        yield url
