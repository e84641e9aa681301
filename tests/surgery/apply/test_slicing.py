"""A slice is a smaller model of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from effllava_optuna.policy import Kind, Policy, Ranking
from effllava_optuna.surgery import LoadedModel, UnprunablePart, narrowed, sliced
from tests.surgery.apply.networks import (
    CLOSE,
    random_ranking,
    token_logits,
    unchanged,
    uneven_policy,
)
from tests.surgery.family_models import text_decoder, verified_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.tasks import Batch


def test_a_slice_has_memory_of_its_own_and_consistent_sizes(
    tiny: LoadedModel, ranking: Ranking
) -> None:
    policy = uneven_policy(tiny.structure)
    with unchanged(tiny):
        small = sliced(tiny, policy, ranking)
        dense_memory = {w.untyped_storage().data_ptr() for w in tiny.model.parameters()}
        for name, weight in small.model.named_parameters():
            assert weight.untyped_storage().data_ptr() not in dense_memory, name
            assert weight.untyped_storage().nbytes() == weight.nbytes, name
            weight.zero_()
    for handle in small.handles:
        for name in (*handle.inputs, handle.output):
            linear = handle.linear(name)
            assert linear.weight.shape == (linear.out_features, linear.in_features)
    removed = tiny.structure.parameters - small.structure.parameters
    assert removed == round((1 - policy.keep_ratio) * tiny.structure.parameters)
    assert tiny.model.num_parameters() - small.model.num_parameters() == removed


def test_tied_embeddings_stay_tied_in_a_slice(
    make_llava: Callable[..., LoadedModel], batch: Batch
) -> None:
    tied = make_llava(tie_word_embeddings=True)
    tied.model.lm_head.weight = tied.model.get_input_embeddings().weight
    ranking, policy = random_ranking(tied.structure, 0), uneven_policy(tied.structure)
    small = sliced(tied, policy, ranking)
    assert small.model.lm_head.weight is small.model.get_input_embeddings().weight
    with narrowed(tied, policy, ranking) as same:
        torch.testing.assert_close(token_logits(small, batch), token_logits(same, batch), **CLOSE)


def test_a_slice_can_be_sliced_again(tiny: LoadedModel, ranking: Ranking, batch: Batch) -> None:
    once = sliced(tiny, Policy.of(tiny.structure, [2, 20, 3, 24, 2, 18]), ranking)
    units = {c.id: np.arange(c.width) for c in once.structure.components}
    identity = Ranking(once.structure.digest, "as is", units)
    twice = sliced(once, Policy.of(once.structure, [1, 7, 3, 24, 2, 16]), identity)
    directly = sliced(tiny, uneven_policy(tiny.structure), ranking)
    assert torch.equal(token_logits(twice, batch), token_logits(directly, batch))


def test_unprunable_parts_are_renumbered_with_the_blocks() -> None:
    whole = verified_text(text_decoder("LlamaConfig"))
    excluded = [UnprunablePart(f"language.{layer:02d}.attn", "a reason") for layer in (1, 2)]
    loaded = replace(whole, parts=whole.parts.excluding(excluded))
    widths = {component.id: component.width for component in loaded.structure.components}
    policy = Policy.of(loaded.structure, widths | {"language.01.block": 0})
    small = sliced(loaded, policy, random_ranking(loaded.structure, 0))
    with_reason = [part.id for part in small.unprunable if part.reason == "a reason"]
    assert with_reason == ["language.01.attn"]
    attention = [c.id for c in small.structure.components if c.kind is Kind.ATTN]
    assert attention == ["language.00.attn"]
