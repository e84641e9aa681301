"""How sure is it that a policy is beaten, though it has not answered everything yet?

A rival has shown what a policy must reach. Each sample that the policy does not get full marks
for costs it something; if it were as good as its rival, all samples together would cost it no
more than an *allowance*. Units (pictures) are asked in a random order, so what the next one costs
is on average no more than what is left of the allowance, shared by the units that are left. Who
bets that it costs more, at fair odds, will hardly get rich: capital reaches ``k`` times the stake
with a probability of at most ``1 / k``, however often one looks and whatever scores are like
(Ville 1939; Waudby-Smith and Ramdas 2024, arXiv:2010.09686, for draws without replacement). So
the capital is the evidence against the policy.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Shares of the capital that are bet each time; the stake is split evenly between them.
_BETS = np.linspace(0.1, 1.0, 10)
_SLACK = 1e-6  # samples: rounding is no evidence


def dealt(
    units: Sequence[str], sizes: Iterable[int], rng: np.random.Generator
) -> tuple[tuple[str, ...], ...]:
    """Deal units into rungs, in a random order.

    Args:
        units: Of each sample.
        sizes: Samples after which a rung ends, ascending; its last unit is asked as a whole.
        rng: Draws the order.

    Returns:
        The units of each rung in the order drawn; after the last size one rung holds the rest.

    Example:
        >>> dealt(["a", "a", "b", "b", "c"], [1, 3], np.random.default_rng(0))
        (('c',), ('a',), ('b',))
    """
    held = Counter(units)
    names, ends = list(held), sorted(sizes)
    rungs: list[list[str]] = [[]]
    asked = 0
    for place in rng.permutation(len(names)):
        while ends and asked >= ends[0]:
            ends.pop(0)
            if rungs[-1]:
                rungs.append([])
        rungs[-1].append(names[place])
        asked += held[names[place]]
    return tuple(map(tuple, rungs))


def missed(scores: Sequence[float], units: Sequence[str]) -> dict[str, float]:
    """Add up by unit what samples lack of full marks; scores are in [0, 1]."""
    found = dict.fromkeys(units, 0.0)
    for score, unit in zip(scores, units, strict=True):
        found[unit] += 1 - score
    return found


def evidence(missed: Iterable[float], allowance: float, units: int) -> float:
    """Weigh what the first units cost against an allowance for all of them.

    Args:
        missed: What each unit that was asked lacks of full marks, in samples, in the random order
            in which units are asked.
        allowance: The most that all units may lack together, in samples.
        units: How many there are.

    Returns:
        At least 0. If the allowance holds, it ever reaches ``k`` with a probability of at most
        ``1 / k``. Infinite where full marks from now on would not be enough.

    Example:
        >>> round(evidence([2.0, 1.0, 0.5], 4.0, units=8), 2)
        16.78
        >>> evidence([2.0, 2.0, 0.5], 4.0, units=8)
        inf
    """
    left, capital = allowance + _SLACK, np.ones_like(_BETS)
    for asked, cost in enumerate(missed):
        if cost > left:
            return math.inf
        if left > 0:
            capital *= 1 - _BETS + _BETS * cost * (units - asked) / left
        left -= cost
    return math.inf if left < 0 else float(capital.mean())
