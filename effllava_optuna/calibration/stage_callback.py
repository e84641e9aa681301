"""How long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

StageCallback: TypeAlias = Callable[[str, float], None]
"""Called with the name of the current stage, and its finished share in [0, 1]."""


def silent(stage: str, share: float, /) -> None:
    """Report nothing."""
