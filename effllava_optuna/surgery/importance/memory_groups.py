"""Group components so that the moments of a group fit into memory together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.surgery.structure.component_handle import ComponentHandle


def group_by_memory(
    handles: Sequence[ComponentHandle], sizes: Sequence[float], available: float
) -> list[list[ComponentHandle]]:
    """Group ``handles`` in order, so that the sizes of each group sum to at most ``available``.

    Args:
        handles: The components.
        sizes: Bytes that each component needs while its group is computed.
        available: Bytes that a group may need. A component that needs more is a group by itself.
    """
    groups: list[list[ComponentHandle]] = []
    left = 0.0
    for handle, size in zip(handles, sizes, strict=True):
        if not groups or size > left:
            groups.append([])
            left = available
        groups[-1].append(handle)
        left -= size
    return groups
