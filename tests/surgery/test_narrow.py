"""Masked, narrowed and sliced are one function, and leave no trace: promises 2 and 3."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effllava_optuna.errors import ModelError, PolicyError
from effllava_optuna.policy import Anatomy, Order, Policy
from effllava_optuna.surgery import Fitted, Loaded, arranged, masked, narrowed, sliced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from effllava_optuna.tasks import Batch

# Float32 sums of some dozen terms in another order; logits are near 1 and differ by more than
# 0.1 between policies.
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


def respond(loaded: Loaded, batch: Batch) -> torch.Tensor:
    """Give the logits at all tokens that are no padding."""
    moved = batch.to(loaded.device)
    with torch.no_grad():
        logits: torch.Tensor = loaded.model(**moved.inputs).logits
    return logits[moved.inputs["attention_mask"].bool()]


def shuffled(anatomy: Anatomy, seed: int) -> Order:
    rng = np.random.default_rng(seed)
    return Order.from_scores(anatomy, "random", {s.id: rng.random(s.width) for s in anatomy.sites})


def policies(anatomy: Anatomy) -> st.SearchStrategy[Policy]:
    counts = [st.integers(site.floor, site.width) for site in anatomy.sites]
    return st.tuples(*counts).map(lambda keep: Policy.of(anatomy, keep))


def different_heads(anatomy: Anatomy) -> Policy:
    """Keep another number of heads in each block."""
    return Policy.of(anatomy, [1, 7, 3, 24, 2, 16])


@contextmanager
def unharmed(loaded: Loaded) -> Iterator[None]:
    """Check that the block leaves every parameter, buffer and head count as it was."""

    def look() -> list[Any]:
        weights = [*loaded.model.named_parameters(), *loaded.model.named_buffers()]
        return [
            [(name, id(weight), weight.data_ptr(), weight.shape) for name, weight in weights],
            [{n: getattr(h.module, n) for n in h.counts} for h in loaded.handles],
            [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in loaded.model.modules()],
        ]

    before = look()
    copies = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    yield
    assert look() == before
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(weight, copies[name]), name


@pytest.fixture(scope="module", params=["plain", "bias", "counts"])
def model(
    request: pytest.FixtureRequest, tiny: Loaded, make_llava: Callable[..., Loaded]
) -> Loaded:
    """Models that differ in what must follow the width."""
    if request.param == "plain":
        return tiny
    if request.param == "bias":
        return make_llava(attention_bias=True, mlp_bias=True)
    loaded = make_llava("Qwen2Config", head_dim=6)
    for handle in loaded.handles[::2]:
        module: Any = handle.module
        module.num_heads, module.num_key_value_heads = 6, 3
    return Loaded.of(loaded.model, loaded.processor, "with head counts")


def test_arranging_changes_no_logit_beyond_rounding(model: Loaded, batch: Batch) -> None:
    order = shuffled(model.anatomy, 0)
    before = respond(model, batch)
    down = model.handles[1].linear("down_proj").weight
    columns = down.clone()
    with unharmed(model), arranged(model, order) as inside:
        assert inside.order is order
        assert torch.equal(down, columns[:, order.units[model.anatomy.sites[1].id].tolist()])
        torch.testing.assert_close(respond(inside, batch), before, **CLOSE)


def test_the_dense_policy_changes_nothing_at_all(model: Loaded, batch: Batch) -> None:
    order, dense = shuffled(model.anatomy, 0), Policy.dense(model.anatomy)
    before = respond(model, batch)
    for way in (narrowed, masked):
        with unharmed(model), way(model, dense, order) as same:
            assert torch.equal(respond(same, batch), before)
    assert torch.equal(respond(sliced(model, dense, order), batch), before)


def test_inside_an_arrangement_the_dense_policy_changes_nothing_more(
    tiny: Loaded, order: Order, batch: Batch
) -> None:
    dense = Policy.dense(tiny.anatomy)
    with arranged(tiny, order) as inside:
        before = respond(inside, batch)
        with narrowed(inside, dense, order) as same:
            assert torch.equal(respond(same, batch), before)


@settings(max_examples=15)
@given(data=st.data())
def test_masked_narrowed_and_sliced_agree(
    model: Loaded, batch: Batch, data: st.DataObject
) -> None:
    order = shuffled(model.anatomy, data.draw(st.integers(0, 3)))
    policy = data.draw(policies(model.anatomy))
    with unharmed(model):
        with masked(model, policy, order) as reference:
            expected = respond(reference, batch)
        with narrowed(model, policy, order) as small:
            torch.testing.assert_close(respond(small, batch), expected, **CLOSE)
        small = sliced(model, policy, order)
        torch.testing.assert_close(respond(small, batch), expected, **CLOSE)
    assert tuple(site.width for site in small.anatomy.sites) == policy.keep


def test_they_agree_at_the_floor_of_every_site(model: Loaded, batch: Batch) -> None:
    order = shuffled(model.anatomy, 0)
    least = Policy.of(model.anatomy, [1] * len(model.anatomy.sites))
    with masked(model, least, order) as reference:
        expected = respond(reference, batch)
    # The mask does something, so that agreeing with it says something.
    assert (expected - respond(model, batch)).abs().max() > 0.1
    with narrowed(model, least, order) as small:
        torch.testing.assert_close(respond(small, batch), expected, **CLOSE)
    torch.testing.assert_close(respond(sliced(model, least, order), batch), expected, **CLOSE)


def test_the_mask_silences_the_units_that_rank_last(tiny: Loaded, order: Order) -> None:
    site = tiny.anatomy.sites[1]
    policy = Policy.of(tiny.anatomy, {site.id: 20})
    heard: list[torch.Tensor] = []
    down = tiny.handles[1].linear("down_proj")
    with masked(tiny, policy, order):
        hook = down.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
        down(torch.ones(1, 24))
        hook.remove()
    assert torch.nonzero(heard[0][0] == 0)[:, 0].tolist() == sorted(order.units[site.id][20:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_they_agree_in_half_precision(
    make_llava: Callable[..., Loaded], batch: Batch, dtype: torch.dtype
) -> None:
    loaded = make_llava()
    loaded.model.to(dtype)
    order, policy = shuffled(loaded.anatomy, 0), different_heads(loaded.anatomy)
    close: dict[str, Any] = {"rtol": 0.0, "atol": 8 * torch.finfo(dtype).eps}
    with masked(loaded, policy, order) as reference:
        expected = respond(reference, batch)
    with narrowed(loaded, policy, order) as small:
        found = respond(small, batch)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, **close)
    torch.testing.assert_close(respond(sliced(loaded, policy, order), batch), expected, **close)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator")
def test_they_agree_on_an_accelerator(make_llava: Callable[..., Loaded], batch: Batch) -> None:
    on_cpu, on_gpu = make_llava(), make_llava()
    on_gpu.model.cuda()
    order, policy = shuffled(on_gpu.anatomy, 0), different_heads(on_gpu.anatomy)
    with narrowed(on_cpu, policy, order) as small:
        expected = respond(small, batch)
    loose: dict[str, Any] = {"rtol": 5e-3, "atol": 5e-3}
    with unharmed(on_gpu), narrowed(on_gpu, policy, order) as small:
        found = respond(small, batch)
        torch.testing.assert_close(found.cpu(), expected, **loose)
    with masked(on_gpu, policy, order) as reference:
        torch.testing.assert_close(respond(reference, batch), found, **loose)
    torch.testing.assert_close(respond(sliced(on_gpu, policy, order), batch), found, **loose)


@pytest.mark.parametrize(
    "enter",
    [
        lambda loaded, policy, order: masked(loaded, policy, order),
        lambda loaded, _, order: arranged(loaded, order),
        lambda loaded, policy, order: narrowed(loaded, policy, order),
    ],
)
def test_an_exception_in_the_body_leaves_no_trace(
    model: Loaded, enter: Callable[[Loaded, Policy, Order], Any]
) -> None:
    order = shuffled(model.anatomy, 0)
    way = enter(model, different_heads(model.anatomy), order)
    with unharmed(model), pytest.raises(KeyError, match="from the body"), way:
        raise KeyError("from the body")


def test_narrowing_inside_an_arrangement_uses_views(tiny: Loaded, order: Order) -> None:
    dense = {id(h): h.linear(name) for h in tiny.handles for name in (*h.inputs, h.output)}
    places = {key: linear.weight.data_ptr() for key, linear in dense.items()}
    with arranged(tiny, order) as inside, narrowed(inside, different_heads(tiny.anatomy), order):
        assert {key: linear.weight.data_ptr() for key, linear in dense.items()} == places


def test_it_does_not_matter_how_an_arranged_model_is_reached(
    tiny: Loaded, order: Order, batch: Batch
) -> None:
    policy = different_heads(tiny.anatomy)
    with narrowed(tiny, policy, order) as small:
        expected = respond(small, batch)
    with unharmed(tiny), arranged(tiny, order) as inside:
        for way in (tiny, inside):
            with narrowed(way, policy, order) as small:
                assert torch.equal(respond(small, batch), expected)
            with masked(way, policy, order) as silenced:
                torch.testing.assert_close(respond(silenced, batch), expected, **CLOSE)
            with arranged(way, order) as again:
                assert again.order is order
            assert torch.equal(respond(sliced(way, policy, order), batch), expected)
    # `inside` outlives its block; the weights it speaks of are no longer arranged.
    with narrowed(inside, policy, order) as small:
        assert torch.equal(respond(small, batch), expected)


def test_a_refit_replaces_the_output_matrix_of_its_site_and_width(
    tiny: Loaded, order: Order, batch: Batch
) -> None:
    policy = different_heads(tiny.anatomy)
    attn, mlp = tiny.anatomy.sites[0].id, tiny.anatomy.sites[1].id
    generator = torch.Generator().manual_seed(0)
    refit = {
        (attn, 1): Fitted(torch.randn(36, 16, generator=generator, dtype=torch.float64)),
        (mlp, 7): Fitted(torch.randn(36, 7, generator=generator)),
        (mlp, 8): Fitted(torch.full((36, 8), torch.nan)),
        (tiny.anatomy.sites[3].id, 24): Fitted(torch.full((36, 24), torch.nan)),
    }
    plain = respond(sliced(tiny, policy, order), batch)
    with unharmed(tiny), narrowed(tiny, policy, order, refit) as small:
        for handle, site, count in ((tiny.handles[0], attn, 1), (tiny.handles[1], mlp, 7)):
            fitted = refit[site, count].weight
            assert fitted is not None
            assert torch.equal(handle.linear(handle.output).weight, fitted.float())
        found = respond(small, batch)
    assert (found - plain).abs().max() > 0.1
    torch.testing.assert_close(respond(sliced(tiny, policy, order, refit), batch), found, **CLOSE)


def test_a_refit_may_bring_a_bias_where_there_is_none(model: Loaded, batch: Batch) -> None:
    order, policy = shuffled(model.anatomy, 0), different_heads(model.anatomy)
    shift = torch.randn(36, generator=torch.Generator().manual_seed(1))
    sites = [model.anatomy.sites[index].id for index in (0, 1)]
    refit = {(sites[0], 1): Fitted(bias=shift), (sites[1], 7): Fitted(bias=shift)}
    hooks = [
        handle.linear(handle.output).register_forward_hook(
            lambda linear, _, out: out - (0 if linear.bias is None else linear.bias) + shift
        )
        for handle in model.handles[:2]
    ]
    with narrowed(model, policy, order) as small:
        expected = respond(small, batch)
    for hook in hooks:
        hook.remove()
    with unharmed(model), narrowed(model, policy, order, refit) as small:
        found = respond(small, batch)
    torch.testing.assert_close(found, expected, **CLOSE)
    own = sliced(model, policy, order, refit)
    torch.testing.assert_close(respond(own, batch), found, **CLOSE)
    assert torch.equal(own.handles[0].linear(own.handles[0].output).bias, shift)


def test_a_refit_of_another_shape_is_refused(tiny: Loaded, order: Order) -> None:
    site = tiny.anatomy.sites[1].id
    policy = Policy.of(tiny.anatomy, {site: 7})
    message = (
        r"fit of language\.00\.mlp for 7 units has shape \(36, 8\) instead of \(36, 7\)\. Fit"
    )
    with unharmed(tiny), pytest.raises(ModelError, match=message):
        narrowed(tiny, policy, order, {(site, 7): Fitted(torch.zeros(36, 8))}).__enter__()
    wrong = Fitted(torch.zeros(36, 7), torch.zeros(7))
    with unharmed(tiny), pytest.raises(ModelError, match=r"shape \(7,\) instead of \(36,\)"):
        narrowed(tiny, policy, order, {(site, 7): wrong}).__enter__()


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_works_with_other_heads_in_every_block(
    model: Loaded, batch: Batch, cache: str
) -> None:
    order, policy = shuffled(model.anatomy, 0), different_heads(model.anatomy)

    def generate(loaded: Loaded) -> list[list[int]]:
        tokens = loaded.model.generate(
            **batch.inputs, max_new_tokens=4, do_sample=False, cache_implementation=cache
        )
        found: list[list[int]] = tokens[:, batch.inputs["input_ids"].shape[1] :].tolist()
        return found

    with masked(model, policy, order) as reference:
        expected = generate(reference)
    assert len({tuple(tokens) for tokens in expected}) > 1
    with unharmed(model), narrowed(model, policy, order) as small:
        assert generate(small) == expected
    assert generate(sliced(model, policy, order)) == expected
    assert generate(model) != expected


def test_a_slice_has_memory_of_its_own_and_the_sizes_it_says(tiny: Loaded, order: Order) -> None:
    policy = different_heads(tiny.anatomy)
    with unharmed(tiny):
        small = sliced(tiny, policy, order)
        dense_memory = {w.untyped_storage().data_ptr() for w in tiny.model.parameters()}
        for name, weight in small.model.named_parameters():
            assert weight.untyped_storage().data_ptr() not in dense_memory, name
            assert weight.untyped_storage().nbytes() == weight.nbytes, name
            weight.zero_()
    for handle in small.handles:
        for name in (*handle.inputs, handle.output):
            linear = handle.linear(name)
            assert linear.weight.shape == (linear.out_features, linear.in_features)
    removed = tiny.anatomy.parameters - small.anatomy.parameters
    assert removed == round((1 - policy.kept_share(tiny.anatomy)) * tiny.anatomy.parameters)
    assert tiny.model.num_parameters() - small.model.num_parameters() == removed


def test_tied_embeddings_stay_tied_in_a_slice(
    make_llava: Callable[..., Loaded], batch: Batch
) -> None:
    tied = make_llava(tie_word_embeddings=True)
    tied.model.lm_head.weight = tied.model.get_input_embeddings().weight
    order, policy = shuffled(tied.anatomy, 0), different_heads(tied.anatomy)
    small = sliced(tied, policy, order)
    assert small.model.lm_head.weight is small.model.get_input_embeddings().weight
    with narrowed(tied, policy, order) as same:
        torch.testing.assert_close(respond(small, batch), respond(same, batch), **CLOSE)


def test_a_slice_can_be_sliced_again(tiny: Loaded, order: Order, batch: Batch) -> None:
    once = sliced(tiny, Policy.of(tiny.anatomy, [2, 20, 3, 24, 2, 18]), order)
    identity = Order(
        once.anatomy.digest, "as is", {s.id: np.arange(s.width) for s in once.anatomy.sites}
    )
    twice = sliced(once, Policy.of(once.anatomy, [1, 7, 3, 24, 2, 16]), identity)
    directly = sliced(tiny, different_heads(tiny.anatomy), order)
    assert torch.equal(respond(twice, batch), respond(directly, batch))


def test_what_belongs_to_another_model_is_refused(
    tiny: Loaded, anatomy: Anatomy, order: Order
) -> None:
    foreign = shuffled(anatomy, 0)
    for way in (narrowed, masked):
        with pytest.raises(PolicyError, match="Use the model that the policy was made for"):
            way(tiny, Policy.dense(anatomy), order).__enter__()
        with pytest.raises(ModelError, match=f"order belongs to anatomy {anatomy.digest}"):
            way(tiny, Policy.dense(tiny.anatomy), foreign).__enter__()
    with pytest.raises(ModelError, match="Rank the units of this model"):
        arranged(tiny, foreign).__enter__()
    with pytest.raises(PolicyError):
        sliced(tiny, Policy.dense(anatomy), order)


def test_an_order_that_lacks_units_is_refused_before_anything_moves(
    tiny: Loaded, order: Order
) -> None:
    last = tiny.anatomy.sites[-1].id
    lacking = [
        {site: units for site, units in order.units.items() if site != last},
        dict(order.units) | {last: np.arange(20)},
    ]
    for units in lacking:
        damaged = Order(order.anatomy, order.method, units)
        with unharmed(tiny), pytest.raises(ModelError, match=f"not rank the 24 units of {last}"):
            arranged(tiny, damaged).__enter__()


def test_a_second_order_is_refused_while_the_first_is_in_use(tiny: Loaded, order: Order) -> None:
    other = shuffled(tiny.anatomy, 7)
    policy = different_heads(tiny.anatomy)
    with unharmed(tiny), arranged(tiny, order) as inside:
        for loaded in (tiny, inside):
            for way in (narrowed(loaded, policy, other), masked(loaded, policy, other)):
                with pytest.raises(ModelError, match=f"arranged by order {order.digest}, not"):
                    way.__enter__()
            with pytest.raises(ModelError, match="before using another order"):
                arranged(loaded, other).__enter__()


def test_a_narrowed_model_cannot_be_narrowed_again(tiny: Loaded, order: Order) -> None:
    policy = different_heads(tiny.anatomy)
    with unharmed(tiny), narrowed(tiny, policy, order) as small:
        for loaded in (tiny, small):
            for way in (narrowed(loaded, policy, order), masked(loaded, policy, order)):
                with pytest.raises(ModelError, match=r"is narrowed at present\. Leave the other"):
                    way.__enter__()


def test_threads_that_share_a_model_take_turns(tiny: Loaded, order: Order, batch: Batch) -> None:
    keeps = ([1, 7, 3, 24, 2, 16], [3, 24, 1, 3, 1, 9], [2, 12, 2, 12, 2, 12])
    works = [Policy.of(tiny.anatomy, keep) for keep in keeps]
    alone = [respond(sliced(tiny, policy, order), batch) for policy in works]
    found: list[list[torch.Tensor]] = [[] for _ in works]
    start = threading.Barrier(len(works))

    def work(index: int) -> None:
        start.wait()
        way = masked if index == 2 else narrowed
        for _ in range(5):
            with way(tiny, works[index], order) as small:
                found[index].append(respond(small, batch))

    with unharmed(tiny):
        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(works))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for expected, mine in zip(alone, found, strict=True):
        assert len(mine) == 5
        for logits in mine:
            torch.testing.assert_close(logits, expected, **CLOSE)


def test_threads_may_narrow_a_model_that_another_thread_has_arranged(
    tiny: Loaded, order: Order, batch: Batch
) -> None:
    policy = different_heads(tiny.anatomy)
    with narrowed(tiny, policy, order) as small:
        expected = respond(small, batch)
    found: list[torch.Tensor] = []

    def work(inside: Loaded) -> None:
        with narrowed(inside, policy, order) as small:
            found.append(respond(small, batch))

    with unharmed(tiny), arranged(tiny, order) as inside:
        threads = [threading.Thread(target=work, args=(inside,), daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert len(found) == 2
    assert all(torch.equal(logits, expected) for logits in found)


def test_an_arrangement_lasts_until_the_last_user_leaves(tiny: Loaded, order: Order) -> None:
    weight = tiny.handles[1].linear("down_proj").weight
    dense = weight.clone()
    first, second = arranged(tiny, order), arranged(tiny, order)
    with unharmed(tiny):
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert not torch.equal(weight, dense)
        second.__exit__(None, None, None)
        assert torch.equal(weight, dense)
