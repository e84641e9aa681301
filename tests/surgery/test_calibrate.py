"""Scores and moments, against twins that go sample by sample and token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from effllava_optuna.errors import EffllavaError, ModelError
from effllava_optuna.policy import SiteId
from effllava_optuna.surgery import Loaded, Probe, arranged, moments, rank_units
from effllava_optuna.tasks import Digits, Split, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.policy import Order
    from effllava_optuna.surgery import Handle
    from effllava_optuna.tasks import Batch


@pytest.fixture(scope="module")
def singles(processor: Any) -> list[Batch]:
    """The samples of `batch`, one to a batch: nothing is padded."""
    return list(encode(processor, Digits().samples(Split.PROXY)[:6], batch_size=1))


def margin(loaded: Loaded, single: Batch, *, targets: bool) -> torch.Tensor:
    """Give how far the likeliest answer of one sample is ahead of the next."""
    logits = loaded.model(**single.inputs).logits[0, -1]
    if targets:
        logits = logits[single.targets[0]]
    first, second, *_ = logits.sort(descending=True).values
    margin: torch.Tensor = first - second
    return margin


def units_of(handle: Handle) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.arange(handle.site.width * handle.columns).reshape(handle.site.width, -1)


@pytest.mark.parametrize("targets", [True, False])
def test_taylor_is_the_squared_effect_of_turning_each_unit_down(
    tiny: Loaded, batch: Batch, singles: list[Batch], targets: bool
) -> None:
    scores = {handle.site.id: np.zeros(handle.site.width) for handle in tiny.handles}
    for single in singles:
        for handle in tiny.handles:
            # The first-order change when a unit falls silent is the slope of its volume.
            volume = torch.ones(handle.site.width * handle.columns, requires_grad=True)
            hook = handle.linear(handle.output).register_forward_pre_hook(
                lambda _, inputs, volume=volume: inputs[0] * volume
            )
            slope = torch.autograd.grad(margin(tiny, single, targets=targets), volume)[0]
            hook.remove()
            scores[handle.site.id] += slope.numpy()[units_of(handle)].sum(1) ** 2
    found = rank_units(tiny, [Probe(batch.inputs, batch.targets if targets else None)], "taylor")
    assert found.method == "taylor"
    for site, expected in scores.items():
        ranked = expected[found.units[site]]
        # Equal up to rounding may swap; otherwise the ranking is that of the twin.
        assert (np.diff(ranked) <= 1e-3 * expected.max()).all()
        assert ranked[0] == pytest.approx(expected.max(), rel=1e-3)
        assert expected.std() > 0


def test_taylor_does_not_depend_on_how_samples_are_batched(
    tiny: Loaded, batch: Batch, singles: list[Batch]
) -> None:
    together = rank_units(tiny, [Probe(batch.inputs, batch.targets)], "taylor")
    apart = rank_units(tiny, [Probe(one.inputs, one.targets) for one in singles], "taylor")
    for site in map(SiteId, ("language.00.attn", "language.02.mlp")):
        assert together.units[site].tolist() == apart.units[site].tolist()


def test_magnitude_is_the_energy_of_a_units_columns(tiny: Loaded) -> None:
    order = rank_units(tiny)
    for handle in tiny.handles:
        weight = handle.linear(handle.output).weight.numpy().astype(np.float64)
        energy = [(weight[:, columns] ** 2).sum() for columns in units_of(handle)]
        assert order.units[handle.site.id].tolist() == np.argsort(-np.array(energy)).tolist()


def test_an_order_numbers_units_as_the_checkpoint_does(
    tiny: Loaded, batch: Batch, order: Order
) -> None:
    probes = [Probe(batch.inputs, batch.targets)]
    methods = ("magnitude", "taylor")
    outside = [rank_units(tiny, probes, method) for method in methods]
    with arranged(tiny, order):
        inside = [rank_units(tiny, probes, method) for method in methods]
    assert [o.digest for o in inside] == [o.digest for o in outside]


def test_moments_are_sums_over_single_tokens(
    tiny: Loaded, batch: Batch, singles: list[Batch]
) -> None:
    handles = [tiny.handles[0], tiny.handles[3]]
    found = moments(tiny, handles, [Probe(batch.inputs, batch.targets)])
    assert set(found) == {handle.site.id for handle in handles}
    for handle in handles:
        weighted = np.zeros((handle.site.width * handle.columns,) * 2)
        plain = np.zeros_like(weighted)
        squared: list[float] = []
        for single in singles:
            caught: list[torch.Tensor] = []
            hook = handle.linear(handle.output).register_forward_pre_hook(
                lambda _, inputs, caught=caught: caught.append(inputs[0].requires_grad_())
            )
            value = margin(tiny, single, targets=True)
            hook.remove()
            gradient = torch.autograd.grad(value, caught[0])[0][0].double().numpy()
            for x, g in zip(caught[0][0].detach().double().numpy(), gradient, strict=True):
                weighted += g @ g * np.outer(x, x)
                plain += np.outer(x, x)
                squared.append(g @ g)
        mine = found[handle.site.id]
        g2 = np.array(squared)
        assert mine.tokens == len(g2) == int(batch.inputs["attention_mask"].sum())
        np.testing.assert_allclose(mine.plain, plain, rtol=1e-3, atol=1e-4 * plain.max())
        np.testing.assert_allclose(mine.weighted, weighted, rtol=1e-3, atol=1e-4 * weighted.max())
        assert mine.weight == pytest.approx(g2.sum(), rel=1e-3)
        assert mine.effective_tokens == pytest.approx(g2.sum() ** 2 / (g2**2).sum(), rel=1e-3)
        assert mine.effective_tokens < mine.tokens
        expected = 0.9 * weighted / g2.sum() + 0.1 * plain / len(g2)
        np.testing.assert_allclose(mine.matrix, expected, rtol=1e-3, atol=1e-4 * expected.max())


def test_moments_of_parts_add_up_to_those_of_the_whole(
    tiny: Loaded, batch: Batch, singles: list[Batch]
) -> None:
    handle = tiny.handles[1]
    probes = [Probe(single.inputs, single.targets) for single in singles]
    whole = moments(tiny, [handle], [Probe(batch.inputs, batch.targets)])[handle.site.id]
    parts = [moments(tiny, [handle], [probe])[handle.site.id] for probe in probes]
    added = sum(parts[1:], start=parts[0])
    assert added.tokens == whole.tokens
    assert added.weight == pytest.approx(whole.weight, rel=1e-3)
    torch.testing.assert_close(added.matrix, whole.matrix, rtol=1e-3, atol=1e-4)


def test_calibration_leaves_the_model_as_it_was(tiny: Loaded, batch: Batch) -> None:
    before = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    rank_units(tiny, [Probe(batch.inputs)], "taylor")
    assert all(torch.equal(w, before[n]) for n, w in tiny.model.state_dict().items())
    assert not any(weight.requires_grad for weight in tiny.model.parameters())
    assert all(weight.grad is None for weight in tiny.model.parameters())
    assert not any(module._forward_pre_hooks for module in tiny.model.modules())


def test_an_order_that_cannot_be_made_is_refused(tiny: Loaded) -> None:
    with pytest.raises(ModelError, match=r"no order 'alphabet'\. Use magnitude or taylor"):
        rank_units(tiny, method="alphabet")
    with pytest.raises(ModelError, match="taylor order needs calibration samples"):
        rank_units(tiny, [], "taylor")
    with pytest.raises(ModelError, match="taylor order needs calibration samples"):
        rank_units(tiny, method="taylor")


def test_numbers_that_are_not_finite_are_refused(
    make_llava: Callable[..., Loaded], batch: Batch
) -> None:
    broken = make_llava()
    broken.handles[2].linear("v_proj").weight[0, 0] = torch.nan
    broken.handles[3].linear("down_proj").weight[0, 0] = torch.inf
    probes = [Probe(batch.inputs, batch.targets)]
    with pytest.raises(ModelError, match=r"language\.01\.attn computes NaN or infinity"):
        rank_units(broken, probes, "taylor")
    with pytest.raises(ModelError, match=r"language\.01\.attn computes NaN or infinity"):
        moments(broken, broken.handles, probes)
    with pytest.raises(EffllavaError, match=r"language\.01\.mlp has no 24 finite magnitude"):
        rank_units(broken)
    assert not any(module._forward_pre_hooks for module in broken.model.modules())
