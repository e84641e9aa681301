from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.baselines import one_number, two_numbers

if TYPE_CHECKING:
    from effllava_optuna.policy import Anatomy, SiteId


def widths(anatomy: Anatomy) -> dict[SiteId, tuple[int, ...]]:
    return {
        site.id: (1, 2, 4) if site.kind == "attn" else (8, 16, 24, 32) for site in anatomy.sites
    }


def test_the_grid_has_every_pair_once(anatomy: Anatomy) -> None:
    grid = two_numbers(anatomy, widths(anatomy))
    pairs = {policy.keep[:2] for policy in grid}
    assert len(grid) == len(pairs) == 12
    for policy in grid:
        assert policy.keep == policy.keep[:2] * 3


def test_one_number_goes_from_the_narrowest_to_dense(anatomy: Anatomy) -> None:
    found = one_number(anatomy, widths(anatomy))
    shares = [policy.kept_share(anatomy) for policy in found]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert [policy.keep[:2] for policy in found] == [(1, 8), (2, 16), (2, 24), (4, 32)]
