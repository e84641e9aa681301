"""Ranking and fitting all sites at once, within a limit of memory."""

from __future__ import annotations

import re
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Policy
from effllava_optuna.surgery import (
    ORDERS,
    Compensation,
    Loaded,
    Probe,
    Recipe,
    arranged,
    choose_damping,
    compensate,
    least_squares,
    mean_biases,
    narrowed,
    rank_units,
    survey,
)
from effllava_optuna.surgery.handle import elements

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from effllava_optuna.policy import Order
    from effllava_optuna.tasks import Batch

REFITS = ("none", "bias", "least-squares")


@pytest.fixture(scope="module")
def folds(singles: list[Batch]) -> list[list[Probe]]:
    probes = [Probe(single.inputs, single.targets, single.answers) for single in singles]
    return [probes[:2], probes[2:3], probes[3:]]


def halves(loaded: Loaded) -> dict[Any, tuple[int, ...]]:
    return {
        site.id: tuple(sorted({1, site.width // 2, site.width})) for site in loaded.anatomy.sites
    }


def flat(found: Compensation) -> list[tuple[Any, ...]]:
    """Give all numbers of the refits, by place."""
    return [
        (fit, *place, part, tensor)
        for fit, refit in enumerate(found.refits)
        for place, fitted in sorted((refit or {}).items())
        for part, tensor in (("weight", fitted.weight), ("bias", fitted.bias))
        if tensor is not None
    ]


@pytest.mark.parametrize("tokens", ["gradient", "text"])
@pytest.mark.parametrize("refit", ["bias", "least-squares"])
def test_each_fit_comes_from_the_samples_it_may_see(
    tiny: Loaded, folds: list[list[Probe]], refit: str, tokens: str
) -> None:
    found = compensate(tiny, folds, halves(tiny), Recipe("taylor", refit, tokens))
    order = rank_units(tiny, [probe for fold in folds for probe in fold], "taylor")
    assert found.order.digest == order.digest
    assert len(found.refits) == 4
    for number, refits in enumerate(found.refits):
        assert refits is not None
        mine = [p for fold, probes in enumerate(folds) for p in probes if fold + 1 != number]
        told = survey(tiny, tiny.handles, mine, tokens=tokens)
        for handle in tiny.handles:
            site = handle.site
            columns = elements(torch.from_numpy(order.units[site.id]), handle.columns)
            output, moments = handle.linear(handle.output), told[site.id].moments
            weight = output.weight[:, columns]
            assert {count for place, count in refits if place == site.id} == {1, site.width // 2}
            for count in (1, site.width // 2):
                kept = count * handle.columns
                fitted = refits[site.id, count]
                if refit == "bias":
                    assert fitted.weight is None
                    expected = mean_biases(weight, None, moments.mean[columns], [kept])[kept]
                    torch.testing.assert_close(fitted.bias, expected, rtol=1e-3, atol=1e-4)
                else:
                    assert fitted.bias is None
                    matrix = moments.matrix[columns][:, columns]
                    damping = found.damping[site.id]
                    expected = least_squares(weight, matrix, [kept], damping).weights[kept]
                    torch.testing.assert_close(fitted.weight, expected, rtol=1e-3, atol=1e-3)


def test_damping_and_effective_tokens_are_those_of_all_folds(
    tiny: Loaded, folds: list[list[Probe]]
) -> None:
    found = compensate(tiny, folds, halves(tiny), Recipe())
    handle = tiny.handles[3]
    site = handle.site.id
    each = [survey(tiny, [handle], fold)[site].moments for fold in folds]
    order = torch.from_numpy(found.order.units[site])
    weight = handle.linear(handle.output).weight[:, order]
    assert found.damping[site] == choose_damping(weight, each, order, [1, 12])
    whole = (each[0] + each[1] + each[2]).effective_tokens
    assert found.effective_tokens[site] == pytest.approx(whole, abs=0.06)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("refit", REFITS)
def test_every_order_goes_with_every_refit(
    tiny: Loaded, folds: list[list[Probe]], order: str, refit: str
) -> None:
    found = compensate(tiny, folds, halves(tiny), Recipe(order, refit, seed=3))
    assert found.order.method == order
    assert (found.refits[0] is None) == (refit == "none")
    assert bool(found.damping) == (refit == "least-squares")
    assert bool(found.nbytes) == (refit != "none")
    if refit == "none":
        every = [probe for fold in folds for probe in fold]
        assert found.order.digest == rank_units(tiny, every, order, seed=3).digest


def sweeps(loaded: Loaded, run: Callable[[], object]) -> int:
    seen = []
    hook = loaded.model.register_forward_pre_hook(lambda *_: seen.append(1))
    run()
    hook.remove()
    return len(seen)


def least(loaded: Loaded, folds: Sequence[Sequence[Probe]], widths: Any, **recipe: Any) -> float:
    """Give the gigabytes below which nothing is tried."""
    with pytest.raises(
        ModelError, match=r"table_gb allows 1e-09\. Allow more, or give fewer"
    ) as e:
        compensate(loaded, folds, widths, Recipe(**recipe, table_gb=1e-9))
    found = re.search(r"making them (\S+) GB together", str(e.value))
    assert found is not None
    return float(found[1]) * 1.01


def test_one_sweep_does_unless_memory_is_short(tiny: Loaded, folds: list[list[Probe]]) -> None:
    widths = halves(tiny)
    tight = Recipe("obs", table_gb=least(tiny, folds, widths, order="obs"))
    results = []

    def run(recipe: Recipe) -> Callable[[], None]:
        return lambda: results.append(compensate(tiny, folds, widths, recipe))

    assert sweeps(tiny, run(Recipe("obs"))) == 6
    assert sweeps(tiny, run(tight)) > 6
    assert results[0].order.digest == results[1].order.digest
    assert results[0].damping == results[1].damping
    for (*place, mine), (*same, other) in zip(*map(flat, results), strict=True):
        assert place == same
        assert torch.equal(mine, other)


def peak(run: Callable[[], object]) -> int:
    """Count the bytes of tensors made by ``run`` that are alive at once, at most."""
    alive: dict[int, int] = {}
    most = 0

    def dispatch(_: Any, call: Any, __: Any, args: Any = (), kwargs: Any = None) -> Any:
        nonlocal most
        made = call(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in alive:
                    alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, alive.pop, storage._cdata, None)
        most = max(most, sum(alive.values()))
        return made

    with type("Peak", (TorchDispatchMode,), {"__torch_dispatch__": dispatch})():
        run()
    return most


@pytest.mark.parametrize("recipe", [{}, {"order": "obs", "tokens": "all"}])
def test_fits_and_factors_stay_under_the_limit(
    make_llava: Callable[..., Loaded], folds: list[list[Probe]], recipe: dict[str, Any]
) -> None:
    wide = make_llava(intermediate_size=400)
    some = [[fold[0]] for fold in folds[:2]]
    widths = {site.id: (site.width // 2, site.width) for site in wide.anatomy.sites}
    limit = least(wide, some, widths, **recipe)
    # Activations, and what they need to flow back, come on top.
    flow = peak(lambda: survey(wide, wide.handles, some[0], full=False))
    held = peak(lambda: compensate(wide, some, widths, Recipe(**recipe, table_gb=limit)))
    assert 0.5 * limit * 1e9 < held <= limit * 1e9 + flow


def test_an_arranged_model_and_unknown_names_are_refused(
    tiny: Loaded, folds: list[list[Probe]], order: Order
) -> None:
    with arranged(tiny, order), pytest.raises(ModelError, match=r"is arranged at present\. Leave"):
        compensate(tiny, folds, halves(tiny), Recipe())
    with pytest.raises(ModelError, match=r"no refit 'lasso'\. Use none, bias, least-squares"):
        Recipe(refit="lasso")
    with pytest.raises(ModelError, match="no order 'abc'"):
        compensate(tiny, folds, halves(tiny), Recipe("abc"))


@pytest.mark.parametrize("refit", ["bias", "least-squares"])
def test_a_refit_brings_the_outputs_of_narrowed_sites_closer(
    tiny: Loaded, folds: list[list[Probe]], batch: Batch, refit: str
) -> None:
    handle = tiny.handles[1]
    policy = Policy.of(tiny.anatomy, {handle.site.id: 12})
    found = compensate(tiny, folds, halves(tiny), Recipe("flap", refit, "all"))
    outputs: list[torch.Tensor] = []
    hook = handle.linear("down_proj").register_forward_hook(lambda *a: outputs.append(a[2]))
    real = batch.inputs["attention_mask"].bool()
    with torch.no_grad():
        tiny.model(**batch.inputs)
        for refits in (None, found.refits[0]):
            with narrowed(tiny, policy, found.order, refits) as small:
                small.model(**batch.inputs)
    hook.remove()
    dense, plain, fitted = (out[real] for out in outputs)
    assert (fitted - dense).norm() < 0.97 * (plain - dense).norm()
