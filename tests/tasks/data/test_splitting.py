"""Assignment of rows to splits that share no group."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effllava_optuna.tasks import Split
from effllava_optuna.tasks.data.splitting import CandidateRow, split_rows

APART = {Split.PROXY: "train", Split.VALIDATION: "validation", Split.TEST: "test"}
SHARED = dict.fromkeys(Split, "all")


def pool(groups: list[int], strata: int = 1) -> list[CandidateRow]:
    return [
        CandidateRow(row, f"g{group}", str(group % strata)) for row, group in enumerate(groups)
    ]


def sizes(proxy: int, validation: int, test: int) -> dict[Split, int]:
    return {Split.PROXY: proxy, Split.VALIDATION: validation, Split.TEST: test}


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=120),
    st.lists(st.integers(0, 40), min_size=1, max_size=120),
    st.tuples(st.integers(8, 60), st.integers(1, 60), st.integers(1, 60)),
    st.sampled_from([SHARED, APART | {Split.VALIDATION: "train"}, APART]),
    st.integers(0, 5),
)
def test_no_group_is_in_two_splits(
    first: list[int],
    second: list[int],
    wanted: tuple[int, int, int],
    sources: dict[Split, str],
    seed: int,
) -> None:
    pools = {name: pool(first) for name in ("train", "all")}
    pools |= {name: pool(second) for name in ("validation", "test")}
    assigned = split_rows(pools, sources, sizes(*wanted), seed)
    assert assigned == split_rows(pools, sources, sizes(*wanted), seed)
    split_of_group: dict[str, Split] = {}
    for split, rows in assigned.items():
        assert rows == sorted(set(rows))
        assert len(rows) <= sizes(*wanted)[split]
        for row in rows:
            group = pools[sources[split]][row].group
            assert split_of_group.setdefault(group, split) is split


def test_a_separate_test_split_stays_complete_and_the_proxy_avoids_its_groups() -> None:
    pools = {"test": pool(list(range(50))), "train": pool(list(range(40, 140)))}
    sources = APART | {Split.VALIDATION: "train"}
    assigned = split_rows(pools, sources, sizes(64, 30, 50), seed=0)
    assert assigned[Split.TEST] == list(range(50))
    taken = {row + 40 for row in (*assigned[Split.PROXY], *assigned[Split.VALIDATION])}
    assert taken <= set(range(50, 140))
    assert (len(assigned[Split.PROXY]), len(assigned[Split.VALIDATION])) == (64, 26)


def test_in_a_shared_pool_the_proxy_is_drawn_first_and_the_rest_is_divided() -> None:
    assigned = split_rows({"all": pool(list(range(100)))}, SHARED, sizes(64, 500, 2000), seed=1)
    assert [len(assigned[split]) for split in Split] == [64, 7, 29]


@pytest.mark.parametrize("seed", range(5))
def test_splits_have_the_strata_in_proportion(seed: int) -> None:
    rng = np.random.default_rng(seed)
    strata = rng.choice(["a", "b", "c"], size=600, p=[0.6, 0.3, 0.1])
    rows = [CandidateRow(row, f"g{row}", str(name)) for row, name in enumerate(strata)]
    assigned = split_rows({"all": rows}, SHARED, sizes(64, 100, 200), seed)
    totals = Counter(strata.tolist())
    for split in Split:
        counts = Counter(rows[row].stratum for row in assigned[split])
        for name, total in totals.items():
            assert abs(counts[name] - len(assigned[split]) * total / 600) <= 2


def test_many_questions_about_one_image_do_not_fill_the_proxy() -> None:
    groups = [0] * 300 + list(range(1, 101))
    assigned = split_rows(APART_POOLS | {"train": pool(groups)}, APART, sizes(64, 1, 1), seed=0)
    counts = Counter(groups[row] for row in assigned[Split.PROXY])
    assert max(counts.values()) == 1
    whole_pool = split_rows(APART_POOLS | {"train": pool(groups)}, APART, sizes(400, 1, 1), seed=0)
    assert whole_pool[Split.PROXY] == list(range(400))


@pytest.mark.parametrize("seed", range(5))
def test_images_with_many_rows_and_rows_without_an_image_are_in_proportion(seed: int) -> None:
    """Thirty images with six questions each, and sixty questions without one."""
    rows = [CandidateRow(row, f"image-{row // 6}", "") for row in range(180)]
    rows += [CandidateRow(row, f"text-{row}", "", has_image=False) for row in range(180, 240)]
    apart = split_rows(APART_POOLS | {"train": rows}, APART, sizes(64, 1, 1), seed)[Split.PROXY]
    images = [rows[row].group for row in apart if rows[row].has_image]
    assert (len(apart), len(images), len(set(images))) == (64, 48, 30)
    assigned = split_rows({"all": rows}, SHARED, sizes(64, 60, 116), seed)
    for split in Split:
        n_images = sum(rows[row].has_image for row in assigned[split])
        assert abs(n_images - 0.75 * len(assigned[split])) <= 4
    whole = split_rows(APART_POOLS | {"train": rows}, APART, sizes(400, 1, 1), seed)
    assert whole[Split.PROXY] == list(range(240))


APART_POOLS = {"validation": [CandidateRow(0, "v", "")], "test": [CandidateRow(0, "t", "")]}


def test_another_seed_draws_other_rows() -> None:
    rows = {"all": pool(list(range(500)))}
    first, second = (split_rows(rows, SHARED, sizes(64, 64, 64), seed) for seed in (0, 1))
    assert first[Split.PROXY] != second[Split.PROXY]
