"""Elimination by the optimal brain surgeon, compared with a slow and readable reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effllava_optuna.errors import ModelError
from effllava_optuna.surgery.importance.elimination import OBS_DAMPING, elimination_order

if TYPE_CHECKING:
    from collections.abc import Iterator

    Array = np.ndarray[Any, np.dtype[np.float64]]


@pytest.fixture(params=[1, 2, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(out: int, columns: int, seed: int = 0) -> tuple[Array, Array]:
    """Draw a weight and second moments with columns that depend on each other."""
    rng = np.random.default_rng(seed)
    mixture = rng.normal(size=(columns, columns)) / columns**0.5
    x = (rng.normal(size=(2 * columns, columns)) @ mixture) * rng.uniform(size=columns)
    return rng.normal(size=(out, columns)), x.T @ x / len(x)


def unblocked(weight: Array, matrix: Array, size: int) -> list[int]:
    """Return the step at which each unit is removed; every removal updates whole matrices."""
    inverse = np.linalg.inv(matrix + OBS_DAMPING * matrix.diagonal().mean() * np.eye(len(matrix)))
    weight, units = weight.copy(), np.arange(len(matrix)).reshape(-1, size)
    remaining, removed_at = list(range(len(units))), [0] * len(units)
    for step in range(len(units)):
        costs = []
        for unit in remaining:
            part, columns = weight[:, units[unit]], units[unit]
            if size == 1:
                costs.append(part[:, 0] @ part[:, 0] / inverse[columns[0], columns[0]])
            else:
                block = inverse[np.ix_(columns, columns)]
                costs.append(np.trace(part @ np.linalg.solve(block, part.T)))
        cheapest = remaining.pop(int(np.argmin(costs)))
        columns = units[cheapest]
        rows = np.linalg.solve(inverse[np.ix_(columns, columns)], inverse[columns])
        weight -= weight[:, columns] @ rows
        inverse -= inverse[:, columns] @ rows
        removed_at[cheapest] = step
    return removed_at


@pytest.mark.parametrize(
    ("out", "units", "size"),
    [
        (576, 3, 192),  # the KV groups of SmolLM2-135M
        (64, 5, 160),
        (48, 2, 448),
        (96, 9, 64),
        (16, 7, 48),  # more than one unit in a block of removals
        (64, 300, 1),
        (8, 130, 2),
    ],
)
def test_blocks_of_removals_give_the_order_of_single_removals(
    out: int, units: int, size: int, threads: int
) -> None:
    weight, matrix = drawn(out, units * size, seed=threads)
    removed_at = elimination_order(torch.from_numpy(weight), torch.from_numpy(matrix), size)
    assert removed_at.tolist() == unblocked(weight, matrix, size)


def test_wide_units_are_ranked_on_every_number_of_threads(threads: int) -> None:
    weight, matrix = (torch.from_numpy(array) for array in drawn(32, 1536))
    removed_at = elimination_order(weight, matrix, 512)
    assert sorted(removed_at.tolist()) == list(range(3))


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_the_first_removal_is_that_of_the_textbook(seed: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    weight, x = rng.normal(size=(3, columns)), rng.normal(size=(20, columns))
    matrix = x.T @ x / 20
    damped = matrix + 0.1 * matrix.diagonal().mean() * np.eye(columns)
    inverse = np.linalg.inv(damped)
    # dW = -(w_m / [H^-1]_mm) [H^-1]_m, at the cost of w_m^2 / [H^-1]_mm, summed over rows.
    costs = (weight**2).sum(0) / inverse.diagonal()
    for m, cost in enumerate(costs):
        change = -np.outer(weight[:, m], inverse[m]) / inverse[m, m]
        assert np.allclose(weight[:, m] + change[:, m], 0)
        assert np.isclose(np.trace(change @ damped @ change.T), cost)
    removed_at = elimination_order(torch.from_numpy(weight), torch.from_numpy(matrix), 1, 0.1)
    assert costs[int(removed_at.argmin())] <= costs.min() * (1 + 1e-9)
    assert sorted(removed_at.tolist()) == list(range(columns))


def test_elimination_changes_neither_weight_nor_moments() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (4, 9))
    matrix = x.T @ x
    before = weight.clone(), matrix.clone()
    elimination_order(weight, matrix, 2)
    assert torch.equal(weight, before[0])
    assert torch.equal(matrix, before[1])


@pytest.mark.parametrize("rank", [1, 40])
def test_moments_of_few_tokens_are_eliminated(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rank, 400, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 400, generator=generator, dtype=torch.float64)
    for size in (1, 100, 200):
        removed_at = elimination_order(weight, x.T @ x, size)
        assert sorted(removed_at.tolist()) == list(range(400 // size))


def test_moments_that_cannot_be_inverted_are_refused() -> None:
    with pytest.raises(
        ModelError, match="of 4 columns cannot be inverted for the importance 'obs'"
    ):
        elimination_order(torch.ones(2, 4).double(), torch.full((4, 4), torch.nan).double(), 1)
