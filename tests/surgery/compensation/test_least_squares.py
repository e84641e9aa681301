"""Fitted output matrices, compared with a plain least-squares solver."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Policy, Ranking
from effllava_optuna.surgery import (
    CalibrationBatch,
    FittedOutput,
    LoadedModel,
    Moments,
    WeightedSums,
    choose_damping,
    collect_statistics,
    least_squares,
    mean_biases,
    narrowed,
)
from effllava_optuna.surgery.compensation.least_squares import (
    DAMPINGS,
    cholesky_factor,
    fit_to_target,
)
from effllava_optuna.surgery.structure.component_handle import element_indices

if TYPE_CHECKING:
    from effllava_optuna.tasks import Batch

OUT, COLUMNS, TOKENS = 5, 8, 40


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fold(tokens: int, seed: int) -> Moments:
    """Moments of correlated inputs and unequal gradients."""
    x = randn(tokens, COLUMNS, seed=seed) @ randn(COLUMNS, COLUMNS, seed=99)
    g2 = randn(tokens, seed=seed + 1000).pow(2)
    return Moments(
        WeightedSums.of(x, g2, full=True), WeightedSums.of(x, torch.ones(tokens), full=True)
    )


@pytest.fixture(params=[1e-3, 1e-1, 10.0])
def damping(request: pytest.FixtureRequest) -> float:
    value: float = request.param
    return value


WEIGHT = randn(OUT, COLUMNS, seed=1)
# One case has fewer tokens than columns: only the damping makes it solvable.
INPUTS = [randn(TOKENS, COLUMNS, seed=2), randn(COLUMNS // 2, COLUMNS, seed=3)]


@pytest.mark.parametrize("x", INPUTS)
def test_every_width_is_the_least_squares_fit_of_the_damped_system(
    x: torch.Tensor, damping: float
) -> None:
    matrix = x.T @ x / len(x)
    ridge = damping * matrix.diagonal().mean()
    fit = least_squares(WEIGHT, matrix, range(1, COLUMNS + 1), damping)
    # Damping is equivalent to further tokens with one non-zero column each.
    rows = torch.cat([x / len(x) ** 0.5, ridge.sqrt() * torch.eye(COLUMNS).double()])
    wanted = rows @ WEIGHT.T
    for kept in range(1, COLUMNS + 1):
        expected = torch.linalg.lstsq(rows[:, :kept], wanted).solution.T
        torch.testing.assert_close(fit.weights[kept], expected, rtol=1e-8, atol=1e-8)
        residual = (rows[:, :kept] @ fit.weights[kept].T - wanted).pow(2).sum()
        torch.testing.assert_close(fit.residuals[kept], residual, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fit.residuals[0], wanted.pow(2).sum())


def test_a_fit_to_other_outputs_solves_the_normal_equations_of_every_width() -> None:
    """576 outputs of 1,536 inputs, as in a small language model; fewer tokens than inputs."""
    x, outputs = randn(700, 1536, seed=7), randn(700, 576, seed=8)
    matrix, target = x.T @ x / len(x), outputs.T @ x / len(x)
    matrix.diagonal().add_(1e-2)
    fits = fit_to_target(target, cholesky_factor(matrix, "test", 1e-2), [1, 500, 1536])
    for kept, fit in fits.items():
        assert fit.shape == (576, kept)
        torch.testing.assert_close(
            fit @ matrix[:kept, :kept], target[:, :kept], rtol=1e-8, atol=1e-9
        )


def test_a_fit_to_the_original_outputs_is_that_of_least_squares(damping: float) -> None:
    matrix = INPUTS[0].T @ INPUTS[0]
    expected = least_squares(WEIGHT, matrix, [1, 5, COLUMNS], damping).weights
    damped = matrix + damping * matrix.diagonal().mean() * torch.eye(COLUMNS).double()
    fits = fit_to_target(WEIGHT @ damped, cholesky_factor(damped, "test", damping), [*expected])
    for kept, fit in fits.items():
        torch.testing.assert_close(fit, expected[kept], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("x", INPUTS)
def test_residuals_do_not_increase_and_end_at_zero(x: torch.Tensor, damping: float) -> None:
    residuals = least_squares(WEIGHT, x.T @ x, [], damping).residuals
    assert residuals.shape == (COLUMNS + 1,)
    assert (residuals.diff() <= 0).all()
    assert residuals[-1] == 0


def test_the_dense_width_keeps_the_original_weight(damping: float) -> None:
    x = INPUTS[0]
    fit = least_squares(WEIGHT.float(), x.T @ x, [COLUMNS], damping)
    assert fit.weights[COLUMNS].dtype == torch.float32
    torch.testing.assert_close(fit.weights[COLUMNS], WEIGHT.float(), rtol=1e-6, atol=1e-6)


def test_columns_of_zero_inputs_keep_their_weights() -> None:
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
def test_moments_without_a_cholesky_factor_are_refused(
    matrix: torch.Tensor, damping: float
) -> None:
    with pytest.raises(ModelError, match=r"of 8 columns cannot be factored with damping .* Use a"):
        least_squares(WEIGHT, matrix.clone(), [1], damping)


@pytest.mark.parametrize("has_bias", [True, False])
def test_the_bias_replaces_the_mean_output_of_the_removed_columns(has_bias: bool) -> None:
    x, weights = randn(TOKENS, COLUMNS, seed=4) + 1, randn(TOKENS, seed=5).pow(2)
    mean = (weights[:, None] * x).sum(0) / weights.sum()
    bias = randn(OUT, seed=6) if has_bias else None
    biases = mean_biases(WEIGHT, bias, mean, range(1, COLUMNS + 1))
    for kept, new_bias in biases.items():
        dense = x @ WEIGHT.T + (0 if bias is None else bias)
        narrow = x[:, :kept] @ WEIGHT[:, :kept].T + new_bias
        # The weighted mean difference is zero: no other bias is closer.
        difference = (weights[:, None] * (dense - narrow)).sum(0)
        expected = torch.zeros_like(difference)
        torch.testing.assert_close(difference, expected, rtol=0, atol=1e-9)


def test_the_damping_has_the_smallest_error_on_held_out_folds() -> None:
    ranking = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(5))
    weight = WEIGHT[:, ranking]
    chosen = set()
    for tokens in (3, 6, 400):
        folds = [fold(tokens, seed) for seed in (10, 11, 12)]
        errors = dict.fromkeys(DAMPINGS, 0.0)
        for held_out in range(3):
            one, other = (folds[index] for index in range(3) if index != held_out)
            fitted_moments = (one + other).matrix[ranking][:, ranking]
            held_out_moments = folds[held_out].matrix[ranking][:, ranking]
            for damping in DAMPINGS:
                for kept in (2, 5):
                    fitted = least_squares(weight, fitted_moments, [kept], damping).weights[kept]
                    change = torch.nn.functional.pad(fitted, (0, COLUMNS - kept)) - weight
                    errors[damping] += float((change @ held_out_moments @ change.T).trace())
        best = choose_damping(weight, folds, ranking, [2, 5])
        assert best == min(errors, key=lambda damping: errors[damping])
        chosen.add(best)
    assert len(chosen) > 1


def test_a_compensation_from_moments_brings_the_narrowed_model_closer(
    tiny: LoadedModel, ranking: Ranking, batch: Batch
) -> None:
    handle = tiny.handles[1]
    component = handle.component.id
    policy = Policy.of(tiny.structure, {component: 12})
    ranked = element_indices(torch.from_numpy(ranking.units[component]), handle.columns)
    statistics = collect_statistics(tiny, [handle], [CalibrationBatch(batch.inputs)])[component]
    matrix = statistics.moments.matrix[ranked][:, ranked]
    fit = least_squares(handle.linear("down_proj").weight[:, ranked], matrix, [12], 1e-3)
    with torch.no_grad():
        dense = tiny.model(**batch.inputs).logits[:, -1]
        with narrowed(tiny, policy, ranking) as small:
            uncompensated = (small.model(**batch.inputs).logits[:, -1] - dense).norm()
        with narrowed(
            tiny, policy, ranking, {(component, 12): FittedOutput(fit.weights[12])}
        ) as small:
            compensated = (small.model(**batch.inputs).logits[:, -1] - dense).norm()
    assert compensated < 0.7 * uncompensated
