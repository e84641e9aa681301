"""Rankings, compared with slow and readable reference implementations."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from effllava_optuna.errors import EffllavaError, ModelError
from effllava_optuna.surgery import (
    IMPORTANCES,
    CalibrationBatch,
    LoadedModel,
    arranged,
    rank_units,
)
from effllava_optuna.surgery.importance.elimination import OBS_DAMPING
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


@pytest.mark.parametrize("tokens", ["gradient", "all"])
def test_obs_runs_the_samples_once_for_all_components_that_fit_into_memory(
    tiny: LoadedModel, batch: Batch, tokens: str
) -> None:
    samples = [CalibrationBatch(batch.inputs, batch.targets)] * 2
    largest = max(8 * (handle.columns * handle.component.width) ** 2 for handle in tiny.handles)
    matrices = 2 if tokens == "gradient" else 1
    passes: list[int] = []
    hook = tiny.model.register_forward_pre_hook(lambda *_: passes.append(1))
    counts, digests = [], set()
    # All components; then only a few; then one at a time.
    for gigabytes in (8.0, 1e-9 * (5 + 1.5 * matrices) * largest, 0.0):
        passes.clear()
        ranking = rank_units(tiny, samples, "obs", tokens=tokens, memory_gb=gigabytes)
        counts.append(len(passes))
        digests.add(ranking.digest)
    hook.remove()
    assert counts[0] == 2
    assert counts[0] < counts[1] < counts[2] == 2 * len(tiny.handles)
    assert len(digests) == 1


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
