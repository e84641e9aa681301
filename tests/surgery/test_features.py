"""Answers from cached features are the answers."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch

from effllava_optuna.policy import Order, Policy
from effllava_optuna.surgery import (
    Loaded,
    answer,
    look,
    narrowed,
    projecting,
    projector,
    projector_state,
)
from tests.surgery.families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from effllava_optuna.tasks import Batch


def other_state(loaded: Loaded) -> dict[str, torch.Tensor]:
    return {name: weight * 0.5 + 0.1 for name, weight in projector_state(loaded).items()}


def features(loaded: Loaded, inputs: Mapping[str, Any]) -> torch.Tensor:
    found = look(loaded, inputs).features
    assert found is not None
    return found


def plain(loaded: Loaded, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = loaded.model(**batch.inputs, logits_to_keep=1).logits
    return logits


def test_answers_from_features_equal_the_plain_forward(tiny: Loaded, batch: Batch) -> None:
    seen = look(tiny, batch.inputs)
    assert features(tiny, batch.inputs).shape == (len(batch), 16, 16)
    assert not {"pixel_values"} & set(seen.inputs)
    assert torch.equal(answer(tiny, seen), plain(tiny, batch))


def test_features_stay_valid_while_the_language_model_and_projector_change(
    tiny: Loaded, order: Order, batch: Batch
) -> None:
    seen, before = look(tiny, batch.inputs), features(tiny, batch.inputs)
    half = Policy.uniform(tiny.anatomy, keep=0.5)
    with narrowed(tiny, half, order) as small, projecting(small, other_state(tiny)):
        found, expected = answer(small, seen), plain(small, batch)
        assert torch.equal(features(small, batch.inputs), before)
    assert torch.equal(found, expected)
    assert (found - plain(tiny, batch)).abs().max() > 0.1


def test_gradients_reach_the_projector_and_nothing_else(tiny: Loaded, batch: Batch) -> None:
    seen = look(tiny, batch.inputs)
    bridge = projector(tiny.model).requires_grad_(requires_grad=True)
    try:
        torch.autograd.backward(answer(tiny, seen).square().sum())
        slopes = [weight.grad for weight in bridge.parameters()]
    finally:
        bridge.requires_grad_(requires_grad=False)
        bridge.zero_grad()
    assert all(slope is not None and bool(slope.abs().max() > 0) for slope in slopes)
    assert all(weight.grad is None for weight in tiny.model.parameters())


def test_a_projector_is_used_and_put_back_bit_for_bit(tiny: Loaded, batch: Batch) -> None:
    seen = look(tiny, batch.inputs)
    before, state = projector_state(tiny), other_state(tiny)
    expected = answer(tiny, seen)
    with projecting(tiny, state) as changed:
        assert (answer(changed, seen) - expected).abs().max() > 0.1
        inside = projector_state(tiny)
        assert all(torch.equal(inside[name], state[name]) for name in state)
    assert all(torch.equal(before[name], weight) for name, weight in projector_state(tiny).items())
    assert torch.equal(answer(tiny, seen), expected)


def test_no_projector_state_means_the_one_that_is_there(tiny: Loaded) -> None:
    before = projector_state(tiny)
    with projecting(tiny, None) as same:
        assert same is tiny
    assert all(torch.equal(before[name], weight) for name, weight in projector_state(tiny).items())


def test_a_copied_state_does_not_follow_the_model(tiny: Loaded) -> None:
    state = projector_state(tiny)
    places = {weight.data_ptr() for weight in projector(tiny.model).parameters()}
    assert not places & {weight.data_ptr() for weight in state.values()}
    assert {weight.device.type for weight in state.values()} == {"cpu"}


def test_the_projector_is_put_back_after_an_exception(tiny: Loaded) -> None:
    before = projector_state(tiny)
    with pytest.raises(KeyError, match="from the body"), projecting(tiny, other_state(tiny)):
        raise KeyError("from the body")
    assert all(torch.equal(before[name], weight) for name, weight in projector_state(tiny).items())


def test_a_state_that_does_not_fit_changes_nothing(tiny: Loaded) -> None:
    before, state = projector_state(tiny), other_state(tiny)
    last = list(state)[-1]
    for damaged in (state | {last: torch.zeros(3)}, {n: w for n, w in state.items() if n != last}):
        with pytest.raises(RuntimeError, match=last), projecting(tiny, damaged):
            pass
        after = projector_state(tiny)
        assert all(torch.equal(before[name], weight) for name, weight in after.items())


def test_two_threads_may_look_at_once(tiny: Loaded, batch: Batch) -> None:
    pictures = [batch.inputs["pixel_values"] * share for share in (1.0, 0.5)]
    asked = [dict(batch.inputs) | {"pixel_values": picture} for picture in pictures]
    alone = [features(tiny, inputs) for inputs in asked]
    found: list[list[torch.Tensor]] = [[], []]

    def work(index: int) -> None:
        found[index] += [features(tiny, asked[index]) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, mine in zip(alone, found, strict=True):
        assert len(mine) == 10
        assert all(torch.equal(one, expected) for one in mine)


def test_where_the_tower_is_cut_it_runs_each_time(
    make_llava: Callable[..., Loaded], batch: Batch
) -> None:
    plain_model = make_llava()
    loaded = Loaded.of(plain_model.model, None, "tower", towers=["vision", "language"])
    seen = look(loaded, batch.inputs)
    assert seen.features is None
    assert torch.equal(answer(loaded, seen), plain(loaded, batch))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "idefics3", "llama"])
def test_other_families_answer_as_a_plain_forward_does(name: str) -> None:
    model = FAMILIES[name].build()
    loaded = Loaded.of(model, None, name)
    inputs = FAMILIES[name].inputs()
    with torch.no_grad():
        expected = model(**inputs).logits[:, -1:]
        assert torch.allclose(answer(loaded, look(loaded, inputs)), expected, atol=1e-5)
