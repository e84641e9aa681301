"""The numbers of samples of the three splits, where a study file does not set them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.sample import Split

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_SIZES = {Split.PROXY: 64, Split.VALIDATION: 500, Split.TEST: 2000}
"""Largest numbers of samples, if nothing is set and there are enough rows."""

FEWEST_PROXY = 8
"""Smallest proxy set of a study."""

_FEWEST_ROWS = FEWEST_PROXY + 2  # one that chooses, one that tests


def sizes_for_rows(
    n_rows: int, most: Mapping[Split, int] = DEFAULT_SIZES, *, source: str
) -> dict[Split, int]:
    """Return sizes of splits that share ``n_rows`` rows: ``most``, or smaller ones that fit.

    With few rows, half of them is for the proxy, and the rest is divided equally.

    Args:
        n_rows: Number of rows.
        most: The largest sizes.
        source: Name of the data, for messages.

    Raises:
        TaskError: There are too few rows.
    """
    if n_rows > most[Split.PROXY] + most[Split.VALIDATION]:
        return dict(most)
    if n_rows < _FEWEST_ROWS:
        raise TaskError(
            f"{source} has {n_rows} row{'' if n_rows == 1 else 's'}: a study needs at least "
            f"{_FEWEST_ROWS}, about different images.",
            hint="Add rows: about 64 for the search, and a few hundred to choose and test.",
        )
    proxy = min(most[Split.PROXY], max(FEWEST_PROXY, n_rows // 2))
    half = max(1, (n_rows - proxy) // 2)
    return {
        Split.PROXY: proxy,
        Split.VALIDATION: min(most[Split.VALIDATION], half),
        Split.TEST: min(most[Split.TEST], half),
    }


def complete_sizes(
    sizes: Mapping[Split, int | None], n_shared_rows: int | None, *, source: str = ""
) -> dict[Split, int]:
    """Return the sizes of all splits; those that are None are chosen.

    Args:
        sizes: The largest number of samples of each split, as far as they are set.
        n_shared_rows: Number of rows that all splits are drawn from; None: each split, or one of
            them, has rows of its own.
        source: Name of the data, for messages.

    Raises:
        TaskError: None is set, and there are too few rows.
    """
    chosen = DEFAULT_SIZES
    if n_shared_rows is not None:
        if not any(sizes.values()):
            return sizes_for_rows(n_shared_rows, source=source)
        proxy = min(DEFAULT_SIZES[Split.PROXY], max(FEWEST_PROXY, n_shared_rows // 2))
        chosen = DEFAULT_SIZES | {Split.PROXY: proxy}
    return {split: sizes[split] or chosen[split] for split in Split}


def describe_sizes(sizes: Mapping[Split, int]) -> str:
    """Return sizes as keys of a study file."""
    *first, last = (f"task.{split} = {sizes[split]}" for split in Split)
    return f"{', '.join(first)} and {last}"
