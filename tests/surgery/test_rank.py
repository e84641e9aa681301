"""Orders, against slow and readable twins."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effllava_optuna.errors import EffllavaError, ModelError
from effllava_optuna.surgery import ORDERS, Loaded, Probe, arranged, rank_units
from effllava_optuna.surgery.rank import OBS_DAMPING, eliminate
from tests.surgery.twins import Told, margin, units_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.policy import Order, SiteId
    from effllava_optuna.surgery import Handle
    from effllava_optuna.tasks import Batch

    Array = np.ndarray[Any, np.dtype[np.float64]]


def weight_of(handle: Handle) -> Array:
    return handle.linear(handle.output).weight.numpy().astype(np.float64)


def wanda(handle: Handle, mine: Told) -> Array:
    weight, norms = weight_of(handle), np.sqrt((mine.x**2).mean(0))
    return np.array(
        [sum((np.abs(weight[:, j]) * norms[j]).sum() for j in unit) for unit in units_of(handle)]
    )


def flap(handle: Handle, mine: Told) -> Array:
    weight, variance = weight_of(handle), mine.x.var(0)
    return np.array(
        [
            np.mean([(variance[j] * weight[:, j] @ weight[:, j]) ** 2 for j in unit])
            for unit in units_of(handle)
        ]
    )


def obs(handle: Handle, mine: Told) -> Array:
    """Remove the unit whose best replacement by the others costs least; then the next one.

    The cost of a set of columns that are gone, the others fitted to replace them, is the
    residual of a least-squares problem: nothing here knows of inverses.
    """
    weight = weight_of(handle)
    moments = mine.x.T @ mine.x / len(mine.x)
    root = np.linalg.cholesky(
        moments + OBS_DAMPING * moments.diagonal().mean() * np.eye(len(moments))
    ).T
    units, turn = units_of(handle), np.zeros(handle.site.width)
    left = list(range(handle.site.width))
    for step in range(handle.site.width):

        def cost(gone: int, left: list[int] = left) -> float:
            columns = [j for unit in left if unit != gone for j in units[unit]]
            target = root @ weight.T
            fitted = root[:, columns] @ np.linalg.lstsq(root[:, columns], target)[0]
            return float(((target - fitted) ** 2).sum())

        first = min(left, key=cost)
        turn[first] = step
        left = [unit for unit in left if unit != first]
    return turn


TWINS: dict[str, Callable[[Handle, Told], Array]] = {
    "magnitude": lambda handle, _: (weight_of(handle)[:, units_of(handle)] ** 2).sum((0, 2)),
    "wanda": wanda,
    "flap": flap,
    "taylor": lambda handle, mine: mine.effect(units_of(handle), goal="margin"),
    "taylor-loss": lambda handle, mine: mine.effect(units_of(handle), goal="loss"),
    "obs": obs,
    "random": lambda handle, _: np.random.default_rng(
        [5, zlib.crc32(handle.site.id.encode())]
    ).random(handle.site.width),
}


@pytest.mark.parametrize("method", ORDERS)
def test_every_order_is_that_of_its_twin(
    tiny: Loaded, batch: Batch, twin: dict[SiteId, Told], method: str
) -> None:
    probe = Probe(batch.inputs, batch.targets, batch.answers)
    found = rank_units(tiny, [probe], method, tokens="all", seed=5)
    assert found.method == method
    for handle in tiny.handles:
        expected = TWINS[method](handle, twin[handle.site.id])
        scores = expected[found.units[handle.site.id]]
        # Equal up to rounding may swap; otherwise the ranking is that of the twin.
        assert (np.diff(scores) <= 1e-3 * expected.max()).all()
        assert expected.std() > 0


def test_taylor_without_targets_asks_all_tokens(
    tiny: Loaded, batch: Batch, singles: list[Batch]
) -> None:
    handle = tiny.handles[0]
    scores = np.zeros(handle.site.width)
    for single in singles:
        # The first-order change when a unit falls silent is the slope of its volume.
        volume = torch.ones(handle.site.width * handle.columns, requires_grad=True)
        hook = handle.linear(handle.output).register_forward_pre_hook(
            lambda _, inputs, volume=volume: inputs[0] * volume
        )
        slope = torch.autograd.grad(margin(tiny, single, targets=False), volume)[0]
        hook.remove()
        scores += slope.numpy()[units_of(handle)].sum(1) ** 2
    found = rank_units(tiny, [Probe(batch.inputs)], "taylor").units[handle.site.id]
    assert found.tolist() == np.argsort(-scores).tolist()


@pytest.mark.parametrize("method", ORDERS)
def test_an_order_depends_on_neither_batches_nor_arrangement(
    tiny: Loaded, batch: Batch, singles: list[Batch], order: Order, method: str
) -> None:
    probe = Probe(batch.inputs, batch.targets, batch.answers)
    together = rank_units(tiny, [probe], method)
    apart = rank_units(tiny, [Probe(s.inputs, s.targets, s.answers) for s in singles], method)
    with arranged(tiny, order):
        inside = rank_units(tiny, [probe], method)
    assert together.digest == apart.digest == inside.digest


@pytest.mark.parametrize("method", ["wanda", "flap", "obs"])
def test_token_weights_change_the_orders_that_use_moments(
    tiny: Loaded, batch: Batch, method: str
) -> None:
    probe = Probe(batch.inputs, batch.targets)
    found = {t: rank_units(tiny, [probe], method, tokens=t) for t in ("gradient", "all", "text")}
    assert len({order.digest for order in found.values()}) == 3


def test_random_orders_differ_by_seed_and_site(tiny: Loaded) -> None:
    one, other = (rank_units(tiny, method="random", seed=seed) for seed in (1, 2))
    mlp = [tiny.anatomy.sites[index].id for index in (1, 3, 5)]
    assert one.digest == rank_units(tiny, method="random", seed=1).digest
    assert len({tuple(o.units[site].tolist()) for o in (one, other) for site in mlp}) == 6


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_the_first_to_go_is_that_of_the_textbook(seed: int, columns: int) -> None:
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
    turn = eliminate(torch.from_numpy(weight), torch.from_numpy(matrix), 1, 0.1).numpy()
    assert costs[turn.argmin()] <= costs.min() * (1 + 1e-9)
    assert sorted(turn) == list(range(columns))


def test_elimination_changes_neither_weight_nor_moments() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (4, 9))
    matrix = x.T @ x
    before = weight.clone(), matrix.clone()
    eliminate(weight, matrix, 2)
    assert torch.equal(weight, before[0])
    assert torch.equal(matrix, before[1])


def test_moments_that_cannot_be_inverted_are_refused() -> None:
    with pytest.raises(ModelError, match="moments of 4 columns cannot be inverted for the obs"):
        eliminate(torch.ones(2, 4).double(), torch.full((4, 4), torch.nan).double(), 1)


def test_an_order_that_cannot_be_made_is_refused(tiny: Loaded) -> None:
    with pytest.raises(ModelError, match=r"no order 'alphabet'\. Use magnitude, wanda, flap, tay"):
        rank_units(tiny, method="alphabet")
    for method in ("taylor", "obs", "flap", "wanda", "taylor-loss"):
        with pytest.raises(ModelError, match=f"The {method} order needs calibration samples"):
            rank_units(tiny, [], method)


def test_weights_that_are_not_finite_are_refused(make_llava: Callable[..., Loaded]) -> None:
    broken = make_llava()
    broken.handles[3].linear("down_proj").weight[0, 0] = torch.inf
    with pytest.raises(EffllavaError, match=r"language\.01\.mlp has no 24 finite magnitude"):
        rank_units(broken)
