"""Rankings, compared with slow and readable reference implementations."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effllava_optuna.errors import EffllavaError, ModelError
from effllava_optuna.surgery import (
    IMPORTANCES,
    CalibrationBatch,
    LoadedModel,
    arranged,
    rank_units,
)
from effllava_optuna.surgery.importance.criteria import OBS_DAMPING, elimination_order
from tests.surgery.twins import ReferenceObservation, margin, unit_columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.policy import ComponentId, Ranking
    from effllava_optuna.surgery import ComponentHandle
    from effllava_optuna.tasks import Batch

    Array = np.ndarray[Any, np.dtype[np.float64]]


def weight_of(handle: ComponentHandle) -> Array:
    return handle.linear(handle.output).weight.numpy().astype(np.float64)


def wanda(handle: ComponentHandle, observation: ReferenceObservation) -> Array:
    weight, norms = weight_of(handle), np.sqrt((observation.x**2).mean(0))
    return np.array(
        [
            sum((np.abs(weight[:, j]) * norms[j]).sum() for j in unit)
            for unit in unit_columns(handle)
        ]
    )


def flap(handle: ComponentHandle, observation: ReferenceObservation) -> Array:
    weight, variance = weight_of(handle), observation.x.var(0)
    return np.array(
        [
            np.mean([(variance[j] * weight[:, j] @ weight[:, j]) ** 2 for j in unit])
            for unit in unit_columns(handle)
        ]
    )


def obs(handle: ComponentHandle, observation: ReferenceObservation) -> Array:
    """Remove the unit that the other units replace at the least cost, and repeat.

    The cost of removed columns, with the other columns fitted to replace them, is the residual of
    a least-squares problem: this reference computes no inverse.
    """
    weight = weight_of(handle)
    moments = observation.x.T @ observation.x / len(observation.x)
    root = np.linalg.cholesky(
        moments + OBS_DAMPING * moments.diagonal().mean() * np.eye(len(moments))
    ).T
    units, removed_at = unit_columns(handle), np.zeros(handle.component.width)
    remaining = list(range(handle.component.width))
    for step in range(handle.component.width):

        def cost(removed: int, remaining: list[int] = remaining) -> float:
            columns = [j for unit in remaining if unit != removed for j in units[unit]]
            target = root @ weight.T
            fitted = root[:, columns] @ np.linalg.lstsq(root[:, columns], target)[0]
            return float(((target - fitted) ** 2).sum())

        cheapest = min(remaining, key=cost)
        removed_at[cheapest] = step
        remaining = [unit for unit in remaining if unit != cheapest]
    return removed_at


REFERENCES: dict[str, Callable[[ComponentHandle, ReferenceObservation], Array]] = {
    "magnitude": lambda handle, _: (weight_of(handle)[:, unit_columns(handle)] ** 2).sum((0, 2)),
    "wanda": wanda,
    "flap": flap,
    "taylor": lambda handle, observation: observation.effect(unit_columns(handle), goal="margin"),
    "taylor-loss": lambda handle, observation: observation.effect(
        unit_columns(handle), goal="loss"
    ),
    "obs": obs,
    "random": lambda handle, _: np.random.default_rng(
        [5, zlib.crc32(handle.component.id.encode())]
    ).random(handle.component.width),
}


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_ranking_is_that_of_its_reference(
    tiny: LoadedModel, batch: Batch, twin: dict[ComponentId, ReferenceObservation], importance: str
) -> None:
    samples = CalibrationBatch(batch.inputs, batch.targets, batch.answers)
    ranking = rank_units(tiny, [samples], importance, tokens="all", seed=5)
    assert ranking.method == importance
    for handle in tiny.handles:
        expected = REFERENCES[importance](handle, twin[handle.component.id])
        scores = expected[ranking.units[handle.component.id]]
        # Units of equal score up to rounding may swap.
        assert (np.diff(scores) <= 1e-3 * expected.max()).all()
        assert expected.std() > 0


def test_taylor_without_targets_compares_all_tokens(
    tiny: LoadedModel, batch: Batch, singles: list[Batch]
) -> None:
    handle = tiny.handles[0]
    scores = np.zeros(handle.component.width)
    for single in singles:
        # The first-order change if a unit is set to zero is the gradient at its scale.
        scale = torch.ones(handle.component.width * handle.columns, requires_grad=True)
        hook = handle.linear(handle.output).register_forward_pre_hook(
            lambda _, inputs, scale=scale: inputs[0] * scale
        )
        gradient = torch.autograd.grad(margin(tiny, single, targets=False), scale)[0]
        hook.remove()
        scores += gradient.numpy()[unit_columns(handle)].sum(1) ** 2
    ranking = rank_units(tiny, [CalibrationBatch(batch.inputs)], "taylor")
    assert ranking.units[handle.component.id].tolist() == np.argsort(-scores).tolist()


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_a_ranking_depends_on_neither_batches_nor_arrangement(
    tiny: LoadedModel, batch: Batch, singles: list[Batch], ranking: Ranking, importance: str
) -> None:
    samples = CalibrationBatch(batch.inputs, batch.targets, batch.answers)
    single_samples = [CalibrationBatch(s.inputs, s.targets, s.answers) for s in singles]
    together = rank_units(tiny, [samples], importance)
    apart = rank_units(tiny, single_samples, importance)
    with arranged(tiny, ranking):
        inside = rank_units(tiny, [samples], importance)
    assert together.digest == apart.digest == inside.digest


@pytest.mark.parametrize("importance", ["wanda", "flap", "obs"])
def test_token_weights_change_the_rankings_that_use_moments(
    tiny: LoadedModel, batch: Batch, importance: str
) -> None:
    samples = CalibrationBatch(batch.inputs, batch.targets)
    digests = {
        rank_units(tiny, [samples], importance, tokens=tokens).digest
        for tokens in ("gradient", "all", "text")
    }
    assert len(digests) == 3


def test_random_rankings_differ_by_seed_and_component(tiny: LoadedModel) -> None:
    one, other = (rank_units(tiny, importance="random", seed=seed) for seed in (1, 2))
    mlp = [tiny.structure.components[index].id for index in (1, 3, 5)]
    assert one.digest == rank_units(tiny, importance="random", seed=1).digest
    assert (
        len({tuple(o.units[component].tolist()) for o in (one, other) for component in mlp}) == 6
    )


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


def test_moments_that_cannot_be_inverted_are_refused() -> None:
    with pytest.raises(
        ModelError, match="of 4 columns cannot be inverted for the importance 'obs'"
    ):
        elimination_order(torch.ones(2, 4).double(), torch.full((4, 4), torch.nan).double(), 1)


def test_an_unknown_importance_or_missing_samples_are_refused(tiny: LoadedModel) -> None:
    with pytest.raises(
        ModelError, match=r"'alphabet' is not an importance criterion\. Use magnit"
    ):
        rank_units(tiny, importance="alphabet")
    for importance in ("taylor", "obs", "flap", "wanda", "taylor-loss"):
        with pytest.raises(ModelError, match=f"importance '{importance}' needs calibration samp"):
            rank_units(tiny, [], importance)


def test_weights_that_are_not_finite_are_refused(make_llava: Callable[..., LoadedModel]) -> None:
    broken = make_llava()
    broken.handles[3].linear("down_proj").weight[0, 0] = torch.inf
    with pytest.raises(EffllavaError, match=r"language\.01\.mlp needs 24 finite magnitude"):
        rank_units(broken)
