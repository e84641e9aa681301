"""Fits of one policy in sequence, against least squares on what a pruned model really sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from effllava_optuna.errors import ModelError, PolicyError
from effllava_optuna.policy import Policy
from effllava_optuna.surgery import (
    Fitted,
    Loaded,
    Probe,
    Recipe,
    arranged,
    compensate,
    narrowed,
    refit_in_sequence,
    sliced,
)
from effllava_optuna.surgery.handle import elements

if TYPE_CHECKING:
    from effllava_optuna.policy import Order, SiteId
    from effllava_optuna.surgery import Handle
    from effllava_optuna.tasks import Batch
    from tests.surgery.twins import Told

DAMPING = 0.05


def inputs_of(loaded: Loaded, handle: Handle, batch: Batch) -> torch.Tensor:
    """Give the inputs of an output matrix at all real tokens, shape ``(tokens, columns)``."""
    caught: list[torch.Tensor] = []
    hook = handle.linear(handle.output).register_forward_pre_hook(
        lambda _, inputs: caught.append(inputs[0])
    )
    with torch.no_grad():
        loaded.model(**batch.inputs)
    hook.remove()
    return caught[0][batch.inputs["attention_mask"].bool()].double()


def weights_of(mine: Told) -> torch.Tensor:
    g2 = torch.from_numpy((mine.margin**2).sum(1))
    return 0.9 * g2 / g2.mean() + 0.1


@pytest.mark.parametrize("tokens", ["all", "gradient"])
def test_each_fit_is_least_squares_on_what_the_pruned_model_sees(
    tiny: Loaded, order: Order, batch: Batch, twin: dict[SiteId, Told], tokens: str
) -> None:
    policy = Policy.of(tiny.anatomy, [2, 9, 3, 12, 1, 5])
    sites = [handle.site.id for handle in tiny.handles]
    probes = [Probe(batch.inputs, batch.targets)]
    found = refit_in_sequence(
        tiny, policy, order, probes, tokens=tokens, damping=dict.fromkeys(sites, DAMPING)
    )
    narrow = [n for n, handle in enumerate(tiny.handles) if policy.keep[n] < handle.site.width]
    assert [*found] == [(sites[n], policy.keep[n]) for n in narrow]
    fitted: dict[tuple[SiteId, int], Fitted] = {}
    for n in narrow:
        handle, count = tiny.handles[n], policy.keep[n]
        partial = Policy.of(tiny.anatomy, dict(zip(sites[: n + 1], policy.keep, strict=False)))
        small = sliced(tiny, partial, order, fitted)
        x, given = inputs_of(tiny, handle, batch), inputs_of(small, small.handles[n], batch)
        w = torch.ones(len(x)).double() if tokens == "all" else weights_of(twin[sites[n]])
        columns = elements(torch.from_numpy(order.units[sites[n]]), handle.columns)
        weight = handle.linear(handle.output).weight.double()[:, columns]
        # Damping is the same as further tokens, each of which is one column alone.
        ridge = DAMPING * ((w[:, None] * x**2).sum(0) / w.sum()).mean()
        eye = ridge.sqrt() * torch.eye(len(columns)).double()
        root = (w / w.sum()).sqrt()[:, None]
        kept = count * handle.columns
        rows = torch.cat([root * given, eye[:, :kept]])
        wanted = torch.cat([root * x[:, columns], eye]) @ weight.T
        expected = torch.linalg.lstsq(rows, wanted).solution.T
        mine = found[sites[n], count]
        assert mine.weight is not None
        torch.testing.assert_close(mine.weight.double(), expected, rtol=1e-3, atol=1e-3)
        fitted[sites[n], count] = mine


def test_the_first_narrowed_site_is_fitted_as_ever(
    tiny: Loaded, singles: list[Batch], batch: Batch
) -> None:
    probes = [Probe(single.inputs, single.targets) for single in singles]
    widths = {site.id: (site.width // 2, site.width) for site in tiny.anatomy.sites}
    ever = compensate(tiny, [probes[:3], probes[3:]], widths, Recipe())
    policy = Policy.of(tiny.anatomy, [3, 12, 3, 12, 3, 24])
    found = refit_in_sequence(
        tiny, policy, ever.order, [Probe(batch.inputs, batch.targets)], damping=ever.damping
    )
    first, second = ((tiny.anatomy.sites[n].id, 12) for n in (1, 3))
    whole = ever.refits[0]
    assert whole is not None
    torch.testing.assert_close(found[first].weight, whole[first].weight, rtol=1e-3, atol=1e-3)
    mine, other = found[second].weight, whole[second].weight
    assert mine is not None
    assert other is not None
    assert (mine - other).norm() > 0.01 * other.norm()


def test_it_leaves_the_model_and_tells_how_far_it_is(
    tiny: Loaded, order: Order, batch: Batch
) -> None:
    before = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    policy = Policy.uniform(tiny.anatomy, keep=0.5)
    shares: list[float] = []
    probes = [Probe(batch.inputs, batch.targets)]
    outside = refit_in_sequence(tiny, policy, order, probes, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    with arranged(tiny, order) as ready:
        inside = refit_in_sequence(ready, policy, order, probes)
        with narrowed(ready, policy, order, inside):
            pass
    for place, fitted in outside.items():
        again = inside[place].weight
        assert fitted.weight is not None
        assert again is not None
        assert torch.equal(fitted.weight, again)
    assert all(torch.equal(w, before[n]) for n, w in tiny.model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in tiny.model.modules())
    assert refit_in_sequence(tiny, Policy.dense(tiny.anatomy), order, probes) == {}


def test_what_cannot_be_fitted_is_refused(tiny: Loaded, order: Order, batch: Batch) -> None:
    site = tiny.anatomy.sites[1].id
    policy = Policy.of(tiny.anatomy, {site: 20})
    probes = [Probe(batch.inputs, batch.targets)]
    with pytest.raises(ModelError, match=r"moments of language\.00\.mlp cannot be factored with"):
        refit_in_sequence(tiny, policy, order, probes, damping={site: -1.0})
    other = sliced(tiny, policy, order)
    with pytest.raises(PolicyError):
        refit_in_sequence(other, policy, order, probes)
