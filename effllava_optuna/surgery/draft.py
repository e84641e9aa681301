"""Write beside a place first, so that what appears there is complete."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from effllava_optuna.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def drafting(target: Path, cure: str) -> Iterator[Path]:
    """Give an empty directory beside ``target``, gone afterwards; whoever succeeds renames.

    Args:
        target: Where it shall be in the end.
        cure: What to do where nothing can be written.

    Raises:
        ExportError: Something cannot be written there.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            yield Path(scratch)
    except OSError as error:
        raise ExportError(
            f"{target} cannot be written: {error.strerror or error}.",
            hint=cure,
        ) from error
