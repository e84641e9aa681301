"""The baselines without a search: one number for everything, or one for each kind of site."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from effllava_optuna.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import Anatomy, SiteId

    Widths = Mapping[SiteId, Sequence[int]]


def two_numbers(anatomy: Anatomy, widths: Widths) -> tuple[Policy, ...]:
    """Give the whole grid of policies with one width a kind of site.

    Args:
        anatomy: The model's; sites of one kind may differ in width, levels go by their place.
        widths: Allowed widths by site, ascending.
    """
    levels = {
        kind: range(min(len(widths[site.id]) for site in anatomy.sites if site.kind is kind))
        for kind in anatomy.kinds
    }
    found = []
    for chosen in product(*levels.values()):
        level = dict(zip(levels, chosen, strict=True))
        found.append(
            Policy.of(
                anatomy,
                [
                    widths[s.id][level[s.kind]] if s.kind in level else s.width
                    for s in anatomy.sites
                ],
            )
        )
    return tuple(found)


def one_number(anatomy: Anatomy, widths: Widths) -> tuple[Policy, ...]:
    """Give the policies that keep about the same share everywhere, by allowed widths.

    Shares are those of the site with the most widths; every other site takes its nearest.
    """
    fine = max(anatomy.sites, key=lambda site: len(widths[site.id]))
    found: dict[Policy, None] = {}
    for width in widths[fine.id]:
        share = width / fine.width
        keep = [
            _nearest(widths[site.id], share * site.width) if site.kind in anatomy.kinds else 1
            for site in anatomy.sites
        ]
        found[Policy.of(anatomy, keep)] = None
    return tuple(found)


def _nearest(widths: Sequence[int], count: float) -> int:
    return min(widths, key=lambda width: abs(width - count))
