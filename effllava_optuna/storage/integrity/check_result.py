"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

State: TypeAlias = Literal["ok", "warning", "fault"]

_MAX_LISTED = 3  # items in one line


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check.

    Attributes:
        check: Name of the check.
        state: ``ok``, ``warning`` or ``fault``.
        detail: The state in words, in one line.
        cure: What to do; empty if the state is ``ok``.
    """

    check: str
    state: State
    detail: str
    cure: str = ""


def listed(items: Sequence[object]) -> str:
    """Return the first few items, and how many more there are."""
    n_more = len(items) - _MAX_LISTED
    text = ", ".join(map(str, items[:_MAX_LISTED]))
    return f"{text} and {n_more} more" if n_more > 0 else text
