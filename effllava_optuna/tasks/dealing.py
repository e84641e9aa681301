"""Deal rows to proxy, validation and test, so that no unit is in two of them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from effllava_optuna.tasks._task import Split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row that may be dealt.

    Attributes:
        row: Its number in its pool.
        unit: The picture it is about; rows of one unit go to one split.
        stratum: Kinds of rows that each split shall have in proportion.
    """

    row: int
    unit: str
    stratum: str


def deal(
    pools: Mapping[str, Sequence[Candidate]],
    sources: Mapping[Split, str],
    sizes: Mapping[Split, int],
    seed: int,
) -> dict[Split, list[int]]:
    """Draw the rows of each split; the same for the same arguments.

    A pool that belongs to one split alone is drawn from as it is, test first, then validation,
    then proxy; each leaves out the units of those before it. Where splits share a pool, the proxy
    is served first; validation and test share what is left in proportion, if it is not enough.
    Rows of many different units are preferred.

    Args:
        pools: The rows, by name of the pool.
        sources: The pool of each split.
        sizes: The most rows of each split.
        seed: Draws.

    Returns:
        By split, the numbers of its rows in its pool, ascending.
    """
    owner: dict[str, Split] = {}
    dealt: dict[Split, list[int]] = {}
    names = list(dict.fromkeys(sources[split] for split in reversed(Split)))
    for number, name in enumerate(names):
        roles = [split for split in Split if sources[split] == name]
        free = [row for row in pools[name] if row.unit not in owner]
        units = _interleaved(free, np.random.default_rng([seed, number]))
        wanted = _fitting({role: sizes[role] for role in roles}, len(free))
        for role in roles:
            mine = _taken(units, wanted[role], alone=role is roles[-1], rows=len(free))
            for unit in mine:
                owner[unit] = role
            dealt[role] = sorted(_round_robin([units.pop(unit) for unit in mine], wanted[role]))
    return dealt


def _interleaved(
    rows: Sequence[Candidate], rng: np.random.Generator
) -> dict[str, list[Candidate]]:
    """Shuffle units so that every beginning of the list has the strata in proportion."""
    members: dict[str, list[Candidate]] = defaultdict(list)
    for place in rng.permutation(len(rows)):
        members[rows[place].unit].append(rows[place])
    strata: dict[str, list[str]] = defaultdict(list)
    for unit, mine in members.items():
        strata[mine[0].stratum].append(unit)
    keys = {
        unit: ((place + 0.5) / len(mine), stratum)
        for stratum, mine in strata.items()
        for place, unit in enumerate(mine)
    }
    return {unit: members[unit] for unit in sorted(members, key=keys.__getitem__)}


def _fitting(sizes: Mapping[Split, int], rows: int) -> dict[Split, int]:
    """Shrink validation and test to what the proxy leaves."""
    proxy = min(sizes.get(Split.PROXY, 0), rows)
    rest = sum(size for split, size in sizes.items() if split is not Split.PROXY)
    share = min(1.0, (rows - proxy) / rest) if rest else 1.0
    return {
        split: proxy if split is Split.PROXY else round(size * share)
        for split, size in sizes.items()
    }


def _taken(
    units: Mapping[str, Sequence[Candidate]], wanted: int, *, alone: bool, rows: int
) -> list[str]:
    """Choose units: all, if nobody else needs them; else a share, and enough for the rows."""
    if alone:
        return list(units)
    quota = -(-len(units) * wanted // max(1, rows))
    found: list[str] = []
    have = 0
    for unit, mine in units.items():
        if len(found) >= quota and have >= wanted:
            break
        found.append(unit)
        have += len(mine)
    return found


def _round_robin(units: Sequence[Sequence[Candidate]], wanted: int) -> list[int]:
    """Take a row of each unit, then a second one, until there are enough."""
    found: list[int] = []
    for turn in range(max((len(unit) for unit in units), default=0)):
        found += [unit[turn].row for unit in units if turn < len(unit)]
        if len(found) >= wanted:
            break
    return found[:wanted]
