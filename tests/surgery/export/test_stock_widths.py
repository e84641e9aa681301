"""Every width that a study may choose can leave in the form of its export."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from effllava_optuna import sliced
from effllava_optuna.config.schema import WIDTH_RATIOS
from effllava_optuna.errors import ExportError
from effllava_optuna.policy import Kind, Policy, Space
from effllava_optuna.surgery import (
    LoadedModel,
    inspect_model,
    nearest_stock_widths,
    pad_to_stock_sizes,
    restrict_to_stock_sizes,
)
from effllava_optuna.surgery.export.checkpoint_files import size_plan, write_checkpoint
from effllava_optuna.surgery.loading.loader import read_model
from tests.surgery.families import FAMILIES
from tests.surgery.family_models import (
    CLOSE,
    compute_logits,
    families,
    load_family,
    random_policy,
    text_decoder,
    text_inputs,
    verified_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from effllava_optuna.policy import ComponentId, ModelStructure

few = settings(max_examples=3, deadline=None)
pytestmark = [
    pytest.mark.exports,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
]

# Decoders with a hidden size of 64 and eight groups of two query heads, and the numbers of groups
# that their configurations can express.
ANY = tuple(range(1, 9))
EIGHT_GROUPS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "LlamaConfig": ({"head_dim": 8}, (1, 2, 4, 8)),  # a divisor of the hidden size
    "Gemma2Config": ({"head_dim": 8, "sliding_window": 3}, (1, 2, 4, 8)),
    "MistralConfig": ({"head_dim": 8}, ANY),
    "Qwen3Config": ({"head_dim": 8}, ANY),
    "GemmaConfig": ({"head_dim": 8}, ANY),
    "Cohere2Config": ({"sliding_window": 3}, ANY),
    "Qwen2Config": ({"num_attention_heads": 8}, (8,)),  # has no field for the size of a head
}


def proposed_widths(structure: ModelStructure) -> dict[ComponentId, tuple[int, ...]]:
    """Return the widths that a study would propose for each component."""
    return {
        c.id: (0, 1)
        if c.kind is Kind.BLOCK
        else tuple(sorted({max(1, round(ratio * c.width)) for ratio in WIDTH_RATIOS}))
        for c in structure.components
    }


def tied_space(loaded: LoadedModel) -> Space:
    """Return the space of a study in which all blocks of a tower have the same widths."""
    widths = nearest_stock_widths(loaded, proposed_widths(loaded.structure))
    return Space.of(loaded.structure, widths, tied=True)


@functools.cache
def restricted_family(name: str) -> tuple[LoadedModel, Space]:
    loaded = restrict_to_stock_sizes(load_family(name))
    return loaded, tied_space(loaded)


@functools.cache
def tied_decoder(config: str) -> tuple[LoadedModel, Space]:
    more, _ = EIGHT_GROUPS[config]
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8}
    loaded = verified_text(text_decoder(config, **heads | more))
    return loaded, tied_space(loaded)


def assert_portable(
    loaded: LoadedModel, policy: Policy, inputs: Mapping[str, Any], *, unpadded: bool = False
) -> None:
    """Write a policy in portable form, and compare it with what the stock class loads."""
    pruned = sliced(loaded, policy, random_policy(loaded.structure, 0)[1])
    written = pad_to_stock_sizes(pruned)
    plan = size_plan(written)
    assert plan["linears"] == plan["counts"] == {}
    if unpadded:
        assert written.model.num_parameters() == pruned.model.num_parameters()
    with TemporaryDirectory() as directory:
        write_checkpoint(written, Path(directory), None)
        model = read_model(directory, "portable").eval()
    assert type(model).__module__.startswith("transformers.")
    expected = compute_logits(pruned.model, inputs)
    torch.testing.assert_close(compute_logits(model, inputs), expected, **CLOSE)


def draw_policy(data: st.DataObject, structure: ModelStructure) -> Policy:
    """Draw a width of each component, of its own."""
    return Policy.of(
        structure, [data.draw(st.integers(c.floor, c.width)) for c in structure.components]
    )


def draw_tied_policy(data: st.DataObject, space: Space) -> Policy:
    """Draw one of the allowed widths of each gene."""
    return space.policy([data.draw(st.sampled_from(gene.widths)) for gene in space.genes])


@pytest.mark.parametrize("name", families())
@few
@given(data=st.data())
def test_any_policy_of_a_family_is_portable(name: str, data: st.DataObject) -> None:
    loaded = load_family(name)
    policy = draw_policy(data, loaded.structure)
    assert_portable(loaded, policy, FAMILIES[name].inputs())


@pytest.mark.parametrize("name", families())
@few
@given(data=st.data())
def test_a_tied_policy_of_a_family_needs_no_padding(name: str, data: st.DataObject) -> None:
    loaded, space = restricted_family(name)
    policy = draw_tied_policy(data, space)
    assert_portable(loaded, policy, FAMILIES[name].inputs(), unpadded=True)


@pytest.mark.parametrize("config", EIGHT_GROUPS)
@few
@given(data=st.data())
def test_configurations_that_refuse_some_widths(config: str, data: st.DataObject) -> None:
    loaded, space = tied_decoder(config)
    assert_portable(loaded, draw_policy(data, loaded.structure), text_inputs())
    policy = draw_tied_policy(data, space)
    assert_portable(loaded, policy, text_inputs(), unpadded=True)


@pytest.mark.parametrize(("config", "accepted"), [(c, a) for c, (_, a) in EIGHT_GROUPS.items()])
def test_widths_are_those_that_the_configuration_accepts(
    config: str, accepted: tuple[int, ...]
) -> None:
    """And a policy with uneven widths is padded to the next of them."""
    loaded, space = tied_decoder(config)
    genes = {gene.name: gene.widths for gene in space.genes}
    assert genes["language.00.attn"] == accepted
    assert len(genes["language.00.mlp"]) == len(WIDTH_RATIOS)
    kinds = {handle.component.kind for handle in restrict_to_stock_sizes(loaded).handles}
    assert kinds == ({Kind.ATTN, Kind.MLP} if len(accepted) > 1 else {Kind.MLP})
    for widest in ANY:
        widths = {"language.00.attn": widest, "language.01.attn": 1, "language.02.attn": 1}
        policy = Policy.of(loaded.structure, widths)
        padded = pad_to_stock_sizes(sliced(loaded, policy, random_policy(policy.structure, 0)[1]))
        groups = padded.model.config.num_key_value_heads
        assert groups == min(width for width in accepted if width >= widest)


def test_a_large_decoder_gets_the_nearest_width_to_each_ratio() -> None:
    """Of 32 groups, a LlamaConfig refuses those that do not divide the hidden size of 4,096."""
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=2))
    loaded = LoadedModel(model, None, inspect_model(model), "decoder of LLaVA-1.5-7B")
    proposed = proposed_widths(loaded.structure)
    first, last = (
        [widths[component.id] for component in loaded.structure.components]
        for widths in (proposed, nearest_stock_widths(loaded, proposed))
    )
    attention, mlp = first[:2]
    assert attention == (2, 3, 5, 6, 8, 10, 11, 13, 16, 19, 22, 26, 29, 32)
    divisors = (2, 4, 8, 16, 32)
    assert last == [divisors, mlp, divisors, mlp, (0, 1)]
    multiples = nearest_stock_widths(loaded, proposed, multiple_of=1000)
    assert multiples[loaded.structure.components[1].id] == (
        1000, 2000, 3000, 4000, 6000, 7000, 8000, 9000, 10000, 11008,
    )  # fmt: skip


def test_a_configuration_that_does_not_load_is_named() -> None:
    model = text_decoder("LlamaConfig")
    loaded = LoadedModel.of(model, None, "text")
    model.config.num_attention_heads = 3
    with pytest.raises(ExportError, match=r"LlamaConfig does not describe the model: .*\(64\) is"):
        pad_to_stock_sizes(loaded)
