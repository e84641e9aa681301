"""Estimated changes of the answer margin, compared with sums over tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from effllava_optuna.policy import Component, Kind, ModelStructure
from effllava_optuna.surgery import (
    CalibrationBatch,
    LoadedModel,
    Moments,
    PruningOptions,
    WeightedSums,
    estimate_residuals,
    least_squares,
    rank_and_compensate,
)
from effllava_optuna.surgery.compensation.least_squares import COMPENSATIONS
from effllava_optuna.surgery.compensation.output_error import (
    OutputErrors,
    block_residuals,
    lost_output_error,
    removal_errors,
)
from effllava_optuna.surgery.importance.unit_statistics import weighted_inputs
from effllava_optuna.surgery.structure.component_handle import element_indices

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from effllava_optuna.policy import ComponentId
    from effllava_optuna.tasks import Batch

OUT = 5


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Tokens:
    """Correlated inputs that are not centred, with unequal weights of mean 1, and a weight."""

    def __init__(self, columns: int, tokens: int) -> None:
        self.x = randn(tokens, columns, seed=1) @ randn(columns, columns, seed=2) + 1.0
        g2 = randn(tokens, seed=3).pow(2)
        self.w = g2 / g2.mean()
        self.weight = randn(OUT, columns, seed=4)
        self.moments = Moments(WeightedSums.of(self.x, g2, full=True))

    def squared_error(self, error: torch.Tensor) -> float:
        """Compute E[w ||e||^2] for errors of shape ``(tokens, out)``."""
        return float((self.w * error.pow(2).sum(1)).mean())


@pytest.fixture(params=[(8, 40), (576, 60)], ids=["8", "576"])
def tokens(request: pytest.FixtureRequest) -> Tokens:
    return Tokens(*request.param)


def test_the_error_of_removed_columns_is_their_output(tokens: Tokens) -> None:
    columns = [1, 3, tokens.weight.shape[1] - 2, tokens.weight.shape[1]]
    errors = removal_errors(tokens.weight, tokens.moments.matrix, columns)
    assert list(errors) == columns
    for kept in columns:
        removed = tokens.x[:, kept:] @ tokens.weight[:, kept:].T
        assert errors[kept] == pytest.approx(tokens.squared_error(removed), rel=1e-9)


def test_a_bias_leaves_the_deviation_from_the_mean_output(tokens: Tokens) -> None:
    mean = tokens.moments.mean
    errors = removal_errors(tokens.weight, tokens.moments.matrix, [1, 3], mean=mean)
    for kept, error in errors.items():
        removed = (tokens.x - mean)[:, kept:] @ tokens.weight[:, kept:].T
        assert error == pytest.approx(tokens.squared_error(removed), rel=1e-9)


def test_a_diagonal_takes_the_columns_as_uncorrelated(tokens: Tokens) -> None:
    diagonal, mean = tokens.moments.mean_squares, tokens.moments.mean
    plain = removal_errors(tokens.weight, diagonal, [2])[2]
    centred = removal_errors(tokens.weight, diagonal, [2], mean=mean)[2]
    columns = range(2, tokens.weight.shape[1])
    assert plain == pytest.approx(
        sum(tokens.squared_error(tokens.x[:, [c]] * tokens.weight[:, c]) for c in columns)
    )
    assert centred == pytest.approx(
        sum(tokens.squared_error((tokens.x - mean)[:, [c]] * tokens.weight[:, c]) for c in columns)
    )


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_lost_output_is_the_whole_output_with_its_bias(tokens: Tokens, has_bias: bool) -> None:
    bias = randn(OUT, seed=5) if has_bias else None
    output = tokens.x @ tokens.weight.T + (0 if bias is None else bias)
    error = lost_output_error(tokens.weight, bias, tokens.moments)
    assert error == pytest.approx(tokens.squared_error(output), rel=1e-9)


def test_the_residual_of_576_columns_is_that_of_the_fit() -> None:
    tokens = Tokens(576, 60)
    matrix = tokens.moments.matrix
    fit = least_squares(tokens.weight, matrix, [64, 500], 1e-2)
    ridge = 1e-2 * float(matrix.diagonal().mean())
    for kept, fitted in fit.weights.items():
        change = torch.nn.functional.pad(fitted, (0, 576 - kept)) - tokens.weight
        error = tokens.squared_error(tokens.x @ change.T) + ridge * float(change.pow(2).sum())
        assert float(fit.residuals[kept]) == pytest.approx(error, rel=1e-6)


def test_errors_that_cancel_out_count_as_much_as_those_of_wider_widths() -> None:
    errors = OutputErrors(scale=0.5, lost=9.0, unfitted={1: 1.0, 2: 4.0, 3: 2.0, 4: 0.0})
    assert errors.residuals({}) == {1: 2.0, 2: 2.0, 3: 1.0, 4: 0.0}
    assert errors.residuals({1: 8.0, 4: 0.0}) == {1: 4.0, 4: 0.0}


@pytest.fixture(scope="module")
def folds(singles: list[Batch]) -> list[list[CalibrationBatch]]:
    samples = [
        CalibrationBatch(single.inputs, single.targets, single.answers) for single in singles
    ]
    return [samples[:2], samples[2:]]


def widths_of(loaded: LoadedModel) -> dict[ComponentId, tuple[int, ...]]:
    return {
        component.id: tuple(sorted({component.floor, component.width // 2, component.width}))
        for component in loaded.structure.components
    }


@pytest.mark.parametrize("compensation", ["none", "bias", "least-squares"])
@pytest.mark.parametrize("tokens", ["gradient", "text"])
def test_residuals_are_squared_errors_times_squared_gradients(
    tiny: LoadedModel, folds: list[list[CalibrationBatch]], compensation: str, tokens: str
) -> None:
    widths = widths_of(tiny)
    result = rank_and_compensate(tiny, folds, widths, PruningOptions("obs", compensation, tokens))
    batches = [batch for fold in folds for batch in fold]
    for handle in (tiny.handles[0], tiny.handles[-1]):
        component = handle.component.id
        runs = [
            inputs
            for batch in batches
            for _, inputs in weighted_inputs(tiny, [handle], batch, tokens=tokens)
        ]
        ranking = element_indices(
            torch.from_numpy(result.ranking.units[component]), handle.columns
        )
        x = torch.cat([run.x for run in runs])[:, ranking]
        u = torch.cat([run.tokens.weights for run in runs])
        g2 = torch.cat([run.squared_gradients for run in runs])
        w = u / u.sum() * len(u)
        if tokens == "gradient":
            real = torch.cat(
                [uniform for run in runs if (uniform := run.tokens.uniform) is not None]
            )
            w = 0.9 * w + 0.1 * real / real.sum() * len(u)
        weight = handle.linear(handle.output).weight.double()[:, ranking]
        scale = float(g2.sum() / len(batches) / weight.pow(2).sum())
        expected = []
        for width in widths[component]:
            kept = width * handle.columns
            change = -weight
            change[:, :kept] = 0
            constant = torch.zeros(len(weight)).double()
            penalty = 0.0
            fitted = (result.compensations[0] or {}).get((component, width))
            if fitted is not None and fitted.weight is not None:
                change[:, :kept] = fitted.weight.double() - weight[:, :kept]
                diagonal = (w[:, None] * x * x).sum(0) / len(w)
                ridge = result.damping[component] * float(diagonal.mean())
                penalty = ridge * float(change.pow(2).sum())
            if fitted is not None and fitted.bias is not None:
                constant = fitted.bias.double()
            error = (w * (x @ change.T + constant).pow(2).sum(1)).mean()
            expected.append(scale * (float(error) + penalty))
        # Raised to the largest value of the wider widths.
        expected = [max(expected[index:]) for index in range(len(expected))]
        computed = [result.residuals[component][width] for width in widths[component]]
        assert computed == pytest.approx(expected, rel=1e-3, abs=1e-12)
        assert computed[0] > 0


@pytest.mark.parametrize("importance", ["obs", "taylor-loss", "flap"])
@pytest.mark.parametrize("compensation", COMPENSATIONS)
@pytest.mark.parametrize("depth", [False, True])
def test_without_another_fit_the_residuals_of_the_same_samples_are_the_same(
    make_llava: Callable[..., LoadedModel],
    folds: list[list[CalibrationBatch]],
    importance: str,
    compensation: str,
    depth: bool,
) -> None:
    small = make_llava()
    loaded = LoadedModel.of(small.model, small.processor, "small", depth=depth)
    options, widths = PruningOptions(importance, compensation), dict(widths_of(loaded))
    mlp = next(c for c in loaded.structure.components if c.kind is Kind.MLP)
    widths[mlp.id] = (mlp.width,)  # it has no fit, and no damping
    fitted = rank_and_compensate(loaded, folds, widths, options)
    batches = [batch for fold in folds for batch in fold]
    shares: list[float] = []
    again = estimate_residuals(loaded, batches, widths, fitted, options, shares.append)
    assert shares == [(1 + index) / len(loaded.handles) for index in range(len(loaded.handles))]
    assert again.keys() == fitted.residuals.keys()
    for component, curve in fitted.residuals.items():
        assert dict(again[component]) == pytest.approx(dict(curve), rel=1e-6)
    other = estimate_residuals(loaded, folds[0], widths, fitted, options)
    assert any(dict(other[c]) != pytest.approx(dict(again[c]), rel=0.01) for c in again)


def test_a_ranking_without_samples_has_no_residuals(
    tiny: LoadedModel, folds: list[list[CalibrationBatch]]
) -> None:
    options = PruningOptions("magnitude", "none")
    fitted = rank_and_compensate(tiny, folds, widths_of(tiny), options)
    assert estimate_residuals(tiny, folds[0], widths_of(tiny), fitted, options) == {}


def test_residuals_do_not_depend_on_how_a_weight_is_divided_between_two_matrices(
    tiny: LoadedModel, folds: list[list[CalibrationBatch]]
) -> None:
    handle = next(h for h in tiny.handles if h.component.kind is Kind.MLP)
    component, options = handle.component.id, PruningOptions("obs", tokens="gradient")
    before = rank_and_compensate(tiny, folds, widths_of(tiny), options).residuals
    module: Any = handle.module
    with torch.no_grad():
        module.up_proj.weight.mul_(4)
        module.down_proj.weight.div_(4)
    try:
        after = rank_and_compensate(tiny, folds, widths_of(tiny), options).residuals
    finally:
        with torch.no_grad():
            module.up_proj.weight.div_(4)
            module.down_proj.weight.mul_(4)
    assert dict(after[component]) == pytest.approx(dict(before[component]), rel=1e-3)


def test_a_block_costs_what_its_attention_and_mlp_compute(
    make_llava: Callable[..., LoadedModel], folds: list[list[CalibrationBatch]]
) -> None:
    small = make_llava()
    loaded = LoadedModel.of(small.model, small.processor, "small", depth=True)
    result = rank_and_compensate(loaded, folds, widths_of(loaded), PruningOptions())
    blocks = [c for c in loaded.structure.components if c.kind is Kind.BLOCK]
    assert blocks
    for block in blocks:
        narrowest = sum(
            max(result.residuals[component.id].values())
            for component in loaded.structure.components
            if component.layer == block.layer and component.kind is not Kind.BLOCK
        )
        assert result.residuals[block.id][1] == 0
        assert result.residuals[block.id][0] >= narrowest > 0


def test_a_block_is_estimated_only_if_all_of_it_is() -> None:
    attention, mlp = (Component("language", 1, kind, 4, 10) for kind in (Kind.ATTN, Kind.MLP))
    block = Component("language", 1, Kind.BLOCK, 1, 10, floor=0)
    curves: dict[ComponentId, Mapping[int, float]] = {
        attention.id: {1: 2.0, 4: 0.0},
        mlp.id: {1: 3.0, 4: 0.0},
    }
    lost = {attention.id: 5.0, mlp.id: 1.0}
    structure = ModelStructure((attention, mlp, block))
    assert block_residuals(structure, curves, lost) == {block.id: {0: 5.0 + 3.0, 1: 0.0}}
    del curves[mlp.id]
    assert block_residuals(ModelStructure((attention, block)), curves, lost) == {}
