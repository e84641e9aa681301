"""Rows are dealt to splits that share no unit."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effllava_optuna.tasks import Split
from effllava_optuna.tasks.dealing import Candidate, deal

APART = {Split.PROXY: "train", Split.VALIDATION: "validation", Split.TEST: "test"}
SHARED = dict.fromkeys(Split, "all")


def pool(units: list[int], strata: int = 1) -> list[Candidate]:
    return [Candidate(row, f"u{unit}", str(unit % strata)) for row, unit in enumerate(units)]


def sizes(proxy: int, validation: int, test: int) -> dict[Split, int]:
    return {Split.PROXY: proxy, Split.VALIDATION: validation, Split.TEST: test}


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=120),
    st.lists(st.integers(0, 40), min_size=1, max_size=120),
    st.tuples(st.integers(8, 60), st.integers(1, 60), st.integers(1, 60)),
    st.sampled_from([SHARED, APART | {Split.VALIDATION: "train"}, APART]),
    st.integers(0, 5),
)
def test_no_unit_is_in_two_splits(
    first: list[int],
    second: list[int],
    wanted: tuple[int, int, int],
    sources: dict[Split, str],
    seed: int,
) -> None:
    pools = {name: pool(first) for name in ("train", "all")}
    pools |= {name: pool(second) for name in ("validation", "test")}
    dealt = deal(pools, sources, sizes(*wanted), seed)
    assert dealt == deal(pools, sources, sizes(*wanted), seed)
    owner: dict[str, Split] = {}
    for split, rows in dealt.items():
        assert rows == sorted(set(rows))
        assert len(rows) <= sizes(*wanted)[split]
        for row in rows:
            unit = pools[sources[split]][row].unit
            assert owner.setdefault(unit, split) is split


def test_a_test_split_of_its_own_stays_whole_and_the_proxy_gives_way() -> None:
    pools = {"test": pool(list(range(50))), "train": pool(list(range(40, 140)))}
    sources = APART | {Split.VALIDATION: "train"}
    dealt = deal(pools, sources, sizes(64, 30, 50), seed=0)
    assert dealt[Split.TEST] == list(range(50))
    taken = {row + 40 for row in (*dealt[Split.PROXY], *dealt[Split.VALIDATION])}
    assert taken <= set(range(50, 140))
    assert (len(dealt[Split.PROXY]), len(dealt[Split.VALIDATION])) == (64, 26)


def test_a_shared_pool_serves_the_proxy_first_and_divides_the_rest() -> None:
    dealt = deal({"all": pool(list(range(100)))}, SHARED, sizes(64, 500, 2000), seed=1)
    assert [len(dealt[split]) for split in Split] == [64, 7, 29]


@pytest.mark.parametrize("seed", range(5))
def test_splits_have_the_strata_in_proportion(seed: int) -> None:
    rng = np.random.default_rng(seed)
    strata = rng.choice(["a", "b", "c"], size=600, p=[0.6, 0.3, 0.1])
    rows = [Candidate(row, f"u{row}", str(name)) for row, name in enumerate(strata)]
    dealt = deal({"all": rows}, SHARED, sizes(64, 100, 200), seed)
    share = Counter(strata.tolist())
    for split in Split:
        found = Counter(rows[row].stratum for row in dealt[split])
        for name, count in share.items():
            assert abs(found[name] - len(dealt[split]) * count / 600) <= 2


def test_many_questions_about_one_picture_do_not_fill_the_proxy() -> None:
    units = [0] * 300 + list(range(1, 101))
    dealt = deal(APART_POOLS | {"train": pool(units)}, APART, sizes(64, 1, 1), seed=0)
    counts = Counter(units[row] for row in dealt[Split.PROXY])
    assert max(counts.values()) == 1
    everything = deal(APART_POOLS | {"train": pool(units)}, APART, sizes(400, 1, 1), seed=0)
    assert everything[Split.PROXY] == list(range(400))


APART_POOLS = {"validation": [Candidate(0, "v", "")], "test": [Candidate(0, "t", "")]}


def test_another_seed_draws_other_rows() -> None:
    rows = {"all": pool(list(range(500)))}
    first, second = (deal(rows, SHARED, sizes(64, 64, 64), seed) for seed in (0, 1))
    assert first[Split.PROXY] != second[Split.PROXY]
