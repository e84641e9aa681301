"""A directory that cannot be written, by root neither."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Make a directory and all that is in it read-only.

    Root may write whatever the mode says, but no immutable file. The test is skipped where the
    file system has none.
    """
    places = [directory, *directory.rglob("*")]
    modes = {place: place.stat().st_mode for place in places}
    for place in places:
        place.chmod(modes[place] & ~0o222)
    try:
        if os.access(directory, os.W_OK):
            _set_immutable("+i", directory)
        if os.access(directory, os.W_OK):
            pytest.skip("root can write everywhere, and the file system has no immutable files")
        yield
    finally:
        _set_immutable("-i", directory)
        for place in places:
            place.chmod(modes[place])


def _set_immutable(flag: str, directory: Path) -> None:
    chattr = shutil.which("chattr")
    if chattr is not None and os.geteuid() == 0:
        subprocess.run([chattr, "-R", flag, str(directory)], check=False, capture_output=True)
