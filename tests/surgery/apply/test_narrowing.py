"""Masked, narrowed and sliced are one function, and leave no trace: promise 3."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effllava_optuna.errors import ModelError, PolicyError
from effllava_optuna.policy import ModelStructure, Policy, Ranking
from effllava_optuna.surgery import FittedOutput, LoadedModel, arranged, masked, narrowed, sliced
from tests.surgery.apply.networks import (
    CLOSE,
    random_ranking,
    token_logits,
    unchanged,
    uneven_policy,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.tasks import Batch


def any_policy(structure: ModelStructure) -> st.SearchStrategy[Policy]:
    widths = [st.integers(component.floor, component.width) for component in structure.components]
    return st.tuples(*widths).map(lambda drawn: Policy.of(structure, drawn))


def test_the_dense_policy_changes_nothing_at_all(model: LoadedModel, batch: Batch) -> None:
    ranking, dense = random_ranking(model.structure, 0), Policy.dense(model.structure)
    before = token_logits(model, batch)
    for context in (narrowed, masked):
        with unchanged(model), context(model, dense, ranking) as same:
            assert torch.equal(token_logits(same, batch), before)
    assert torch.equal(token_logits(sliced(model, dense, ranking), batch), before)


@settings(max_examples=15)
@given(data=st.data())
def test_masked_narrowed_and_sliced_agree(
    model: LoadedModel, batch: Batch, data: st.DataObject
) -> None:
    ranking = random_ranking(model.structure, data.draw(st.integers(0, 3)))
    policy = data.draw(any_policy(model.structure))
    with unchanged(model):
        with masked(model, policy, ranking) as reference:
            expected = token_logits(reference, batch)
        with narrowed(model, policy, ranking) as small:
            torch.testing.assert_close(token_logits(small, batch), expected, **CLOSE)
        small = sliced(model, policy, ranking)
        torch.testing.assert_close(token_logits(small, batch), expected, **CLOSE)
    assert tuple(component.width for component in small.structure.components) == policy.widths


def test_they_agree_at_the_floor_of_every_component(model: LoadedModel, batch: Batch) -> None:
    ranking = random_ranking(model.structure, 0)
    smallest = Policy.of(model.structure, [1] * len(model.structure.components))
    with masked(model, smallest, ranking) as reference:
        expected = token_logits(reference, batch)
    # The mask has an effect, so agreement with it is informative.
    assert (expected - token_logits(model, batch)).abs().max() > 0.1
    with narrowed(model, smallest, ranking) as small:
        torch.testing.assert_close(token_logits(small, batch), expected, **CLOSE)
    small = sliced(model, smallest, ranking)
    torch.testing.assert_close(token_logits(small, batch), expected, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_they_agree_in_half_precision(
    make_llava: Callable[..., LoadedModel], batch: Batch, dtype: torch.dtype
) -> None:
    loaded = make_llava()
    loaded.model.to(dtype)
    ranking, policy = random_ranking(loaded.structure, 0), uneven_policy(loaded.structure)
    close: dict[str, Any] = {"rtol": 0.0, "atol": 8 * torch.finfo(dtype).eps}
    with masked(loaded, policy, ranking) as reference:
        expected = token_logits(reference, batch)
    with narrowed(loaded, policy, ranking) as small:
        logits = token_logits(small, batch)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits, expected, **close)
    small = sliced(loaded, policy, ranking)
    torch.testing.assert_close(token_logits(small, batch), expected, **close)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator")
def test_they_agree_on_an_accelerator(
    make_llava: Callable[..., LoadedModel], batch: Batch
) -> None:
    on_cpu, on_gpu = make_llava(), make_llava()
    on_gpu.model.cuda()
    ranking, policy = random_ranking(on_gpu.structure, 0), uneven_policy(on_gpu.structure)
    with narrowed(on_cpu, policy, ranking) as small:
        expected = token_logits(small, batch)
    loose: dict[str, Any] = {"rtol": 5e-3, "atol": 5e-3}
    with unchanged(on_gpu), narrowed(on_gpu, policy, ranking) as small:
        logits = token_logits(small, batch)
        torch.testing.assert_close(logits.cpu(), expected, **loose)
    with masked(on_gpu, policy, ranking) as reference:
        torch.testing.assert_close(token_logits(reference, batch), logits, **loose)
    small = sliced(on_gpu, policy, ranking)
    torch.testing.assert_close(token_logits(small, batch), logits, **loose)


@pytest.mark.parametrize(
    "enter",
    [
        lambda loaded, policy, ranking: masked(loaded, policy, ranking),
        lambda loaded, _, ranking: arranged(loaded, ranking),
        lambda loaded, policy, ranking: narrowed(loaded, policy, ranking),
    ],
)
def test_an_exception_in_the_body_leaves_no_trace(
    model: LoadedModel, enter: Callable[[LoadedModel, Policy, Ranking], Any]
) -> None:
    ranking = random_ranking(model.structure, 0)
    context = enter(model, uneven_policy(model.structure), ranking)
    with unchanged(model), pytest.raises(KeyError, match="from the body"), context:
        raise KeyError("from the body")


def test_narrowing_inside_an_arrangement_uses_views(tiny: LoadedModel, ranking: Ranking) -> None:
    linears = [h.linear(name) for h in tiny.handles for name in (*h.inputs, h.output)]
    addresses = [linear.weight.data_ptr() for linear in linears]
    policy = uneven_policy(tiny.structure)
    with arranged(tiny, ranking) as network, narrowed(network, policy, ranking):
        assert [linear.weight.data_ptr() for linear in linears] == addresses


def test_a_compensation_replaces_the_output_matrix_of_its_component_and_width(
    tiny: LoadedModel, ranking: Ranking, batch: Batch
) -> None:
    policy = uneven_policy(tiny.structure)
    attn, mlp = tiny.structure.components[0].id, tiny.structure.components[1].id
    generator = torch.Generator().manual_seed(0)
    compensation = {
        (attn, 1): FittedOutput(torch.randn(36, 16, generator=generator, dtype=torch.float64)),
        (mlp, 7): FittedOutput(torch.randn(36, 7, generator=generator)),
        (mlp, 8): FittedOutput(torch.full((36, 8), torch.nan)),
        (tiny.structure.components[3].id, 24): FittedOutput(torch.full((36, 24), torch.nan)),
    }
    plain = token_logits(sliced(tiny, policy, ranking), batch)
    with unchanged(tiny), narrowed(tiny, policy, ranking, compensation) as small:
        for handle, component, count in ((tiny.handles[0], attn, 1), (tiny.handles[1], mlp, 7)):
            weight = compensation[component, count].weight
            assert weight is not None
            assert torch.equal(handle.linear(handle.output).weight, weight.float())
        logits = token_logits(small, batch)
    assert (logits - plain).abs().max() > 0.1
    small = sliced(tiny, policy, ranking, compensation)
    torch.testing.assert_close(token_logits(small, batch), logits, **CLOSE)


def test_a_compensation_may_add_a_bias_to_a_layer_without_one(
    model: LoadedModel, batch: Batch
) -> None:
    ranking, policy = random_ranking(model.structure, 0), uneven_policy(model.structure)
    shift = torch.randn(36, generator=torch.Generator().manual_seed(1))
    components = [model.structure.components[index].id for index in (0, 1)]
    compensation = {
        (components[0], 1): FittedOutput(bias=shift),
        (components[1], 7): FittedOutput(bias=shift),
    }
    hooks = [
        handle.linear(handle.output).register_forward_hook(
            lambda linear, _, out: out - (0 if linear.bias is None else linear.bias) + shift
        )
        for handle in model.handles[:2]
    ]
    with narrowed(model, policy, ranking) as small:
        expected = token_logits(small, batch)
    for hook in hooks:
        hook.remove()
    with unchanged(model), narrowed(model, policy, ranking, compensation) as small:
        logits = token_logits(small, batch)
    torch.testing.assert_close(logits, expected, **CLOSE)
    small = sliced(model, policy, ranking, compensation)
    torch.testing.assert_close(token_logits(small, batch), logits, **CLOSE)
    assert torch.equal(small.handles[0].linear(small.handles[0].output).bias, shift)


def test_a_compensation_of_another_shape_is_refused(tiny: LoadedModel, ranking: Ranking) -> None:
    component = tiny.structure.components[1].id
    policy = Policy.of(tiny.structure, {component: 7})
    wide = FittedOutput(torch.zeros(36, 8))
    message = (
        r"The compensation of language\.00\.mlp for 7 units has shape \(36, 8\) instead of "
        r"\(36, 7\)\. Fit"
    )
    with unchanged(tiny), pytest.raises(ModelError, match=message):
        narrowed(tiny, policy, ranking, {(component, 7): wide}).__enter__()
    short_bias = FittedOutput(torch.zeros(36, 7), torch.zeros(7))
    with unchanged(tiny), pytest.raises(ModelError, match=r"shape \(7,\) instead of \(36,\)"):
        narrowed(tiny, policy, ranking, {(component, 7): short_bias}).__enter__()


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_works_with_different_heads_in_every_block(
    model: LoadedModel, batch: Batch, cache: str
) -> None:
    ranking, policy = random_ranking(model.structure, 0), uneven_policy(model.structure)

    def generate(loaded: LoadedModel) -> list[list[int]]:
        tokens = loaded.model.generate(
            **batch.inputs, max_new_tokens=4, do_sample=False, cache_implementation=cache
        )
        new_tokens: list[list[int]] = tokens[:, batch.inputs["input_ids"].shape[1] :].tolist()
        return new_tokens

    with masked(model, policy, ranking) as reference:
        expected = generate(reference)
    assert len({tuple(tokens) for tokens in expected}) > 1
    with unchanged(model), narrowed(model, policy, ranking) as small:
        assert generate(small) == expected
    assert generate(sliced(model, policy, ranking)) == expected
    assert generate(model) != expected


def test_a_policy_or_ranking_of_another_model_is_refused(
    tiny: LoadedModel, structure: ModelStructure, ranking: Ranking
) -> None:
    foreign = random_ranking(structure, 0)
    for context in (narrowed, masked):
        with pytest.raises(PolicyError, match="Use the model that the policy was made for"):
            context(tiny, Policy.dense(structure), ranking).__enter__()
        with pytest.raises(ModelError, match=f"ranking belongs to structure {structure.digest}"):
            context(tiny, Policy.dense(tiny.structure), foreign).__enter__()
    with pytest.raises(PolicyError):
        sliced(tiny, Policy.dense(structure), ranking)


def test_a_narrowed_model_cannot_be_narrowed_again(tiny: LoadedModel, ranking: Ranking) -> None:
    policy = uneven_policy(tiny.structure)
    with unchanged(tiny), narrowed(tiny, policy, ranking) as small:
        for loaded in (tiny, small):
            for context in (narrowed(loaded, policy, ranking), masked(loaded, policy, ranking)):
                with pytest.raises(ModelError, match=r"is already narrowed\. Leave the other"):
                    context.__enter__()


def test_threads_that_share_a_model_take_turns(
    tiny: LoadedModel, ranking: Ranking, batch: Batch
) -> None:
    widths = ([1, 7, 3, 24, 2, 16], [3, 24, 1, 3, 1, 9], [2, 12, 2, 12, 2, 12])
    policies = [Policy.of(tiny.structure, kept_widths) for kept_widths in widths]
    alone = [token_logits(sliced(tiny, policy, ranking), batch) for policy in policies]
    together: list[list[torch.Tensor]] = [[] for _ in policies]
    start = threading.Barrier(len(policies))

    def work(index: int) -> None:
        start.wait()
        context = masked if index == 2 else narrowed
        for _ in range(5):
            with context(tiny, policies[index], ranking) as small:
                together[index].append(token_logits(small, batch))

    with unchanged(tiny):
        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(policies))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for expected, results in zip(alone, together, strict=True):
        assert len(results) == 5
        for logits in results:
            torch.testing.assert_close(logits, expected, **CLOSE)
