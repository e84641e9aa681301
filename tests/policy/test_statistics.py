"""How sure a mean is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from effllava_optuna.policy import bootstrap_interval, bootstrap_means


def test_of_independent_samples_it_is_the_normal_interval() -> None:
    scores = np.random.default_rng(0).random(800) < 0.7
    low, high = bootstrap_interval(scores, [str(index) for index in range(800)])
    mean, error = scores.mean(), scores.std() / np.sqrt(800)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.2 * error)


def test_samples_of_one_unit_count_as_little_as_one() -> None:
    per_unit = np.random.default_rng(1).random(100) < 0.7
    groups = [str(index) for index in range(100)]
    low, high = bootstrap_interval(per_unit, groups)
    clustered_low, clustered_high = bootstrap_interval(
        np.repeat(per_unit, 8), [group for group in groups for _ in range(8)]
    )
    naive_low, naive_high = bootstrap_interval(
        np.repeat(per_unit, 8), [str(i) for i in range(800)]
    )
    # Eight copies of each score say nothing new ...
    assert clustered_high - clustered_low == pytest.approx(high - low, rel=0.05)
    # ... but resampled one by one they would seem to: narrower by the root of eight.
    assert clustered_high - clustered_low > 2.5 * (naive_high - naive_low)


def test_the_seed_decides_and_the_level_widens() -> None:
    scores = np.random.default_rng(2).random(50)
    groups = [str(index // 2) for index in range(50)]
    once = bootstrap_interval(scores, groups)
    assert bootstrap_interval(scores, groups) == once
    assert bootstrap_interval(scores, groups, seed=1) != once
    low, high = bootstrap_interval(scores, groups, level=0.5)
    assert once[0] < low < scores.mean() < high < once[1]


@pytest.mark.parametrize(("right", "groups"), [(8, 8), (0, 8), (500, 500)])
def test_without_an_exception_it_is_the_exact_one_and_not_of_width_zero(
    right: int, groups: int
) -> None:
    exact = binomtest(right, groups).proportion_ci(method="exact")
    scores = [1] * right + [0] * (groups - right)
    assert bootstrap_interval(scores, range(groups)) == pytest.approx(tuple(exact))
    twice = bootstrap_interval([*scores, *scores], [*range(groups), *range(groups)])
    assert twice == pytest.approx(tuple(exact))  # the units count, not their samples


def test_policies_that_never_differ_may_differ_rarely() -> None:
    low, high = bootstrap_interval([0.0] * 20, range(20), bounds=(-1.0, 1.0))
    assert -low == pytest.approx(high) == pytest.approx(1 - 0.025 ** (1 / 20))


def test_rows_are_resampled_together() -> None:
    scores = np.random.default_rng(3).random((2, 40))
    groups = [index // 4 for index in range(40)]
    means = bootstrap_means([*scores, scores[0] - scores[1]], groups)
    np.testing.assert_allclose(means[0] - means[1], means[2], atol=1e-12)
    low, high = bootstrap_interval(scores[0] - scores[1], groups)
    assert (low, high) == pytest.approx(tuple(np.quantile(means[2], [0.025, 0.975])))
