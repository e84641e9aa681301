"""Fitted output matrices, against least squares by the book."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Order, Policy
from effllava_optuna.surgery import (
    Fitted,
    Loaded,
    Moments,
    Probe,
    Sums,
    choose_damping,
    least_squares,
    mean_biases,
    narrowed,
    survey,
)
from effllava_optuna.surgery.handle import elements
from effllava_optuna.surgery.refit import DAMPINGS

if TYPE_CHECKING:
    from effllava_optuna.tasks import Batch

OUT, COLUMNS, TOKENS = 5, 8, 40


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fold(tokens: int, seed: int) -> Moments:
    """Moments of correlated inputs and unequal gradients."""
    x = randn(tokens, COLUMNS, seed=seed) @ randn(COLUMNS, COLUMNS, seed=99)
    g2 = randn(tokens, seed=seed + 1000).pow(2)
    return Moments(Sums.of(x, g2, full=True), Sums.of(x, torch.ones(tokens), full=True))


@pytest.fixture(params=[1e-3, 1e-1, 10.0])
def damping(request: pytest.FixtureRequest) -> float:
    value: float = request.param
    return value


WEIGHT = randn(OUT, COLUMNS, seed=1)
# Fewer tokens than columns in one case: there only the damping makes the problem solvable.
INPUTS = [randn(TOKENS, COLUMNS, seed=2), randn(COLUMNS // 2, COLUMNS, seed=3)]


@pytest.mark.parametrize("x", INPUTS)
def test_every_width_is_the_least_squares_fit_of_the_damped_system(
    x: torch.Tensor, damping: float
) -> None:
    matrix = x.T @ x / len(x)
    ridge = damping * matrix.diagonal().mean()
    fit = least_squares(WEIGHT, matrix, range(1, COLUMNS + 1), damping)
    # Damping is the same as further tokens, each of which is one column alone.
    rows = torch.cat([x / len(x) ** 0.5, ridge.sqrt() * torch.eye(COLUMNS).double()])
    wanted = rows @ WEIGHT.T
    for kept in range(1, COLUMNS + 1):
        expected = torch.linalg.lstsq(rows[:, :kept], wanted).solution.T
        torch.testing.assert_close(fit.weights[kept], expected, rtol=1e-8, atol=1e-8)
        residual = (rows[:, :kept] @ fit.weights[kept].T - wanted).pow(2).sum()
        torch.testing.assert_close(fit.damage[kept], residual, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fit.damage[0], wanted.pow(2).sum())


@pytest.mark.parametrize("x", INPUTS)
def test_damage_only_falls_and_ends_in_nothing(x: torch.Tensor, damping: float) -> None:
    damage = least_squares(WEIGHT, x.T @ x, [], damping).damage
    assert damage.shape == (COLUMNS + 1,)
    assert (damage.diff() <= 0).all()
    assert damage[-1] == 0


def test_the_full_width_gives_the_original_weight(damping: float) -> None:
    x = INPUTS[0]
    fit = least_squares(WEIGHT.float(), x.T @ x, [COLUMNS], damping)
    assert fit.weights[COLUMNS].dtype == torch.float32
    torch.testing.assert_close(fit.weights[COLUMNS], WEIGHT.float(), rtol=1e-6, atol=1e-6)


def test_columns_that_never_speak_are_left_as_they_are() -> None:
    fit = least_squares(WEIGHT, torch.zeros(COLUMNS, COLUMNS).double(), [3], 1e-3)
    torch.testing.assert_close(fit.weights[3], WEIGHT[:, :3])


@pytest.mark.parametrize(
    ("matrix", "damping"),
    [
        (torch.full((COLUMNS, COLUMNS), torch.nan).double(), 1e-3),
        (-torch.eye(COLUMNS).double() * 2, 0.0),
        (torch.ones(COLUMNS, COLUMNS).double() - 2 * torch.eye(COLUMNS).double(), 1e-3),
    ],
)
def test_what_has_no_factor_is_refused(matrix: torch.Tensor, damping: float) -> None:
    with pytest.raises(ModelError, match=r"of 8 columns cannot be factored with damping .* Use a"):
        least_squares(WEIGHT, matrix.clone(), [1], damping)


@pytest.mark.parametrize("own", [True, False])
def test_the_bias_says_what_removed_columns_say_on_average(own: bool) -> None:
    x, weights = randn(TOKENS, COLUMNS, seed=4) + 1, randn(TOKENS, seed=5).pow(2)
    mean = (weights[:, None] * x).sum(0) / weights.sum()
    bias = randn(OUT, seed=6) if own else None
    found = mean_biases(WEIGHT, bias, mean, range(1, COLUMNS + 1))
    for kept, after in found.items():
        before = x @ WEIGHT.T + (0 if bias is None else bias)
        narrow = x[:, :kept] @ WEIGHT[:, :kept].T + after
        # No other bias is closer, in the mean over the weighted tokens.
        off = (weights[:, None] * (before - narrow)).sum(0)
        torch.testing.assert_close(off, torch.zeros_like(off), rtol=0, atol=1e-9)


def test_the_damping_is_the_one_that_predicts_the_other_folds_best() -> None:
    order = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(5))
    weight = WEIGHT[:, order]
    chosen = set()
    for tokens in (3, 6, 400):
        folds = [fold(tokens, seed) for seed in (10, 11, 12)]
        errors = dict.fromkeys(DAMPINGS, 0.0)
        for held_out in range(3):
            rest = [folds[index] for index in range(3) if index != held_out]
            seen = (rest[0] + rest[1]).matrix[order][:, order]
            unseen = folds[held_out].matrix[order][:, order]
            for damping in DAMPINGS:
                for kept in (2, 5):
                    fitted = least_squares(weight, seen, [kept], damping).weights[kept]
                    change = torch.nn.functional.pad(fitted, (0, COLUMNS - kept)) - weight
                    errors[damping] += float((change @ unseen @ change.T).trace())
        best = choose_damping(weight, folds, order, [2, 5])
        assert best == min(errors, key=lambda damping: errors[damping])
        chosen.add(best)
    assert len(chosen) > 1


def test_a_refit_from_moments_brings_the_narrowed_model_closer(
    tiny: Loaded, order: Order, batch: Batch
) -> None:
    handle = tiny.handles[1]
    site = handle.site.id
    policy = Policy.of(tiny.anatomy, {site: 12})
    ranked = elements(torch.from_numpy(order.units[site]), handle.columns)
    told = survey(tiny, [handle], [Probe(batch.inputs)])[site]
    matrix = told.moments.matrix[ranked][:, ranked]
    fit = least_squares(handle.linear("down_proj").weight[:, ranked], matrix, [12], 1e-3)
    with torch.no_grad():
        dense = tiny.model(**batch.inputs).logits[:, -1]
        with narrowed(tiny, policy, order) as small:
            plain = (small.model(**batch.inputs).logits[:, -1] - dense).norm()
        with narrowed(tiny, policy, order, {(site, 12): Fitted(fit.weights[12])}) as small:
            refitted = (small.model(**batch.inputs).logits[:, -1] - dense).norm()
    assert refitted < 0.7 * plain
