"""Assignment of rows to proxy, validation and test, so that no two splits share a group."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from effllava_optuna.tasks.sample import Split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """A row that may be assigned to a split.

    Attributes:
        row: Its index in its pool.
        group: Its image; all rows of a group go to one split.
        stratum: Kind of the row; all splits get the kinds in the same proportion.
        has_image: Whether it asks about an image, as all rows of its group then do.
    """

    row: int
    group: str
    stratum: str
    has_image: bool = True


def split_rows(
    pools: Mapping[str, Sequence[CandidateRow]],
    sources: Mapping[Split, str],
    sizes: Mapping[Split, int],
    seed: int,
) -> dict[Split, list[int]]:
    """Draw the rows of each split; equal arguments give equal splits.

    Pools are processed in the order test, validation, proxy; groups that an earlier pool has used
    are excluded. If several splits share a pool, the proxy is drawn first; validation and test
    are reduced in proportion if too few rows remain. As many different groups as possible are
    used, and one at least is left to each split that follows.

    Args:
        pools: The rows, by name of the pool.
        sources: The pool of each split.
        sizes: Largest number of rows of each split.
        seed: Seed of the draw.

    Returns:
        By split, the indices of its rows in its pool, ascending.
    """
    split_of_group: dict[str, Split] = {}
    assigned: dict[Split, list[int]] = {}
    names = list(dict.fromkeys(sources[split] for split in reversed(Split)))
    for number, name in enumerate(names):
        splits = [split for split in Split if sources[split] == name]
        rows = [row for row in pools[name] if row.group not in split_of_group]
        groups = _shuffle_groups(rows, np.random.default_rng([seed, number]))
        wanted = _fit_sizes({split: sizes[split] for split in splits}, len(rows))
        for index, split in enumerate(splits):
            selected = list(groups)  # the last split of a pool gets all groups that remain
            if split is not splits[-1]:
                later = sum(wanted[other] > 0 for other in splits[index + 1 :])
                most = max(1, len(groups) - later)
                selected = _select_groups(groups, wanted[split], len(rows))[:most]
            split_of_group |= dict.fromkeys(selected, split)
            members = [groups.pop(group) for group in selected]
            assigned[split] = sorted(_select_rows(members, wanted[split]))
    return assigned


def _shuffle_groups(
    rows: Sequence[CandidateRow], rng: np.random.Generator
) -> dict[str, list[CandidateRow]]:
    """Shuffle groups so that every prefix of the result has the strata in proportion."""
    members: dict[str, list[CandidateRow]] = defaultdict(list)
    for index in rng.permutation(len(rows)):
        members[rows[index].group].append(rows[index])
    strata: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for group, (first, *_) in members.items():
        strata[first.stratum, not first.has_image].append(group)
    keys = {
        group: ((index + 0.5) / len(groups), stratum)
        for stratum, groups in strata.items()
        for index, group in enumerate(groups)
    }
    return {group: members[group] for group in sorted(members, key=keys.__getitem__)}


def _fit_sizes(sizes: Mapping[Split, int], n_rows: int) -> dict[Split, int]:
    """Reduce validation and test in proportion to the rows that the proxy leaves."""
    proxy = min(sizes.get(Split.PROXY, 0), n_rows)
    others = sum(size for split, size in sizes.items() if split is not Split.PROXY)
    ratio = min(1.0, (n_rows - proxy) / others) if others else 1.0
    return {
        split: proxy if split is Split.PROXY else round(size * ratio)
        for split, size in sizes.items()
    }


def _select_groups(
    groups: Mapping[str, Sequence[CandidateRow]], wanted: int, n_rows: int
) -> list[str]:
    """Select groups in order: a share of them in proportion, and enough for the wanted rows."""
    quota = -(-len(groups) * wanted // max(1, n_rows))
    selected: list[str] = []
    n_selected_rows = 0
    for group, rows in groups.items():
        if len(selected) >= quota and n_selected_rows >= wanted:
            break
        selected.append(group)
        n_selected_rows += len(rows)
    return selected


def _select_rows(groups: Sequence[Sequence[CandidateRow]], wanted: int) -> list[int]:
    """Select rows, as many with an image and without one as in proportion, of different groups.

    An image may have many rows, and a question without one is a group of its own: if only groups
    counted, a small proxy set would have far fewer images than the dataset.
    """
    with_image = [group for group in groups if group[0].has_image]
    without = [group for group in groups if not group[0].has_image]
    n_with_image = sum(map(len, with_image))
    n_rows = n_with_image + sum(map(len, without))
    share = round(min(wanted, n_rows) * n_with_image / max(1, n_rows))
    return _round_robin(with_image, share) + _round_robin(without, wanted - share)


def _round_robin(groups: Sequence[Sequence[CandidateRow]], wanted: int) -> list[int]:
    """Select one row of each group, then a second one, until there are enough."""
    selected: list[int] = []
    for turn in range(max((len(group) for group in groups), default=0)):
        selected += [group[turn].row for group in groups if turn < len(group)]
        if len(selected) >= wanted:
            break
    return selected[:wanted]
