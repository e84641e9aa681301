"""Logits from cached vision features equal those of a plain forward pass."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Policy, Ranking
from effllava_optuna.surgery import (
    EncodedInputs,
    LoadedModel,
    answer_logits,
    encode_images,
    narrowed,
    prefill,
    projector,
    projector_state,
    use_projector,
)
from tests.surgery.families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from effllava_optuna.tasks import Batch


# The others have no single module between tower and decoder, or take no features.
STORED = {
    "llava", "llava_next", "llava_onevision", "internvl", "internvl (6B tower)", "idefics3",
    "smolvlm", "paligemma", "gemma3", "mistral3", "aya_vision",
}  # fmt: skip


def features(loaded: LoadedModel, inputs: Mapping[str, Any]) -> torch.Tensor:
    encoded = encode_images(loaded, inputs)
    assert encoded.vision is not None
    return encoded.vision.features


def plain_logits(loaded: LoadedModel, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = loaded.model(**batch.inputs, logits_to_keep=1).logits
    return logits


def test_a_picture_that_several_inputs_share_is_moved_once() -> None:
    picture, rows = torch.zeros(2, 3, 4, 4), {"input_ids": torch.zeros(2, 9)}
    encoded = EncodedInputs(
        rows | {"pixel_values": picture},
        None,
        fewer={0.5: {"input_ids": torch.zeros(2, 5), "pixel_values": picture}},
    )
    moved = encoded.to("meta")
    assert moved.inputs["pixel_values"] is moved.fewer[0.5]["pixel_values"]
    assert [moved.inputs["input_ids"].shape[1], moved.fewer[0.5]["input_ids"].shape[1]] == [9, 5]
    assert all(tensor.is_meta for tensor in moved.tensors)


def test_logits_from_features_equal_the_plain_forward_pass(
    tiny: LoadedModel, batch: Batch
) -> None:
    encoded = encode_images(tiny, batch.inputs)
    assert features(tiny, batch.inputs).shape == (len(batch), 16, 16)
    assert not {"pixel_values"} & set(encoded.inputs)
    assert torch.equal(answer_logits(tiny, encoded), plain_logits(tiny, batch))


def test_features_stay_valid_while_the_language_model_and_projector_change(
    tiny: LoadedModel, ranking: Ranking, batch: Batch
) -> None:
    encoded, before = encode_images(tiny, batch.inputs), features(tiny, batch.inputs)
    half = Policy.uniform(tiny.structure, ratio=0.5)
    state = {name: weight * 0.5 + 0.1 for name, weight in projector_state(tiny).items()}
    with narrowed(tiny, half, ranking) as small, use_projector(small, state):
        logits, expected = answer_logits(small, encoded), plain_logits(small, batch)
        assert torch.equal(features(small, batch.inputs), before)
    assert torch.equal(logits, expected)
    assert (logits - plain_logits(tiny, batch)).abs().max() > 0.1


def test_gradients_reach_the_projector_and_nothing_else(tiny: LoadedModel, batch: Batch) -> None:
    encoded = encode_images(tiny, batch.inputs)
    module = projector(tiny.model).requires_grad_(requires_grad=True)
    try:
        torch.autograd.backward(answer_logits(tiny, encoded).square().sum())
        gradients = [weight.grad for weight in module.parameters()]
    finally:
        module.requires_grad_(requires_grad=False)
        module.zero_grad()
    assert all(g is not None and bool(g.abs().max() > 0) for g in gradients)
    assert all(weight.grad is None for weight in tiny.model.parameters())


def test_two_threads_may_encode_images_at_once(tiny: LoadedModel, batch: Batch) -> None:
    images = [batch.inputs["pixel_values"] * share for share in (1.0, 0.5)]
    inputs = [dict(batch.inputs) | {"pixel_values": image} for image in images]
    alone = [features(tiny, one) for one in inputs]
    together: list[list[torch.Tensor]] = [[], []]

    def work(index: int) -> None:
        together[index] += [features(tiny, inputs[index]) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, results in zip(alone, together, strict=True):
        assert len(results) == 10
        assert all(torch.equal(result, expected) for result in results)


def test_a_tower_that_is_pruned_itself_runs_each_time(
    make_llava: Callable[..., LoadedModel], batch: Batch
) -> None:
    model = make_llava().model
    loaded = LoadedModel.of(model, None, "tower", towers=["vision", "language"])
    encoded = encode_images(loaded, batch.inputs)
    assert encoded.vision is None
    assert torch.equal(answer_logits(loaded, encoded), plain_logits(loaded, batch))


@pytest.mark.parametrize("name", FAMILIES)
def test_all_families_give_the_logits_of_a_plain_forward_pass(name: str) -> None:
    model = FAMILIES[name].build()
    loaded = LoadedModel.of(model, None, name)
    inputs = FAMILIES[name].inputs()
    encoded = encode_images(loaded, inputs)
    with torch.no_grad():
        expected = model(**inputs).logits[:, -1:]
        logits = answer_logits(loaded, encoded)
        if name == "blip-2":
            with pytest.raises(ModelError, match="no key/value cache"):
                prefill(loaded, encoded)
        else:
            assert torch.equal(prefill(loaded, encoded)[0], expected.argmax(-1))
    assert torch.allclose(logits, expected, atol=1e-5)
    assert (encoded.vision is not None) == (name in STORED)


def test_a_model_that_cannot_repeat_its_features_encodes_pictures_each_time(
    make_llava: Callable[..., LoadedModel], batch: Batch
) -> None:
    loaded = make_llava()
    calls: list[nn.Module] = []

    def unlike(module: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
        calls.append(module)
        return output + len(calls)

    projector(loaded.model).register_forward_hook(unlike)
    assert encode_images(loaded, batch.inputs).vision is None


def test_rows_of_encoded_pictures_are_selected(tiny: LoadedModel, batch: Batch) -> None:
    encoded, index = encode_images(tiny, batch.inputs), torch.tensor([2, 0])
    some = encoded.select(index)
    assert some is not None
    torch.testing.assert_close(answer_logits(tiny, some), answer_logits(tiny, encoded)[index])
