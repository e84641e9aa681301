"""A limit of the size of files, which stands for a full disk.

At the limit, the system refuses a write in the middle of a file, to Python and to libraries in
other languages alike.
"""

from __future__ import annotations

import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 4_000  # bytes


@contextmanager
def file_size_limited(limit: int = LIMIT) -> Iterator[None]:
    """Refuse writes after an offset, in all files that this process writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
