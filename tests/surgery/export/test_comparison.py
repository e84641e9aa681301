"""A reloaded model that is not the one that was written is recognised in every dtype."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from effllava_optuna.surgery import LoadedModel, build_example_inputs
from effllava_optuna.surgery.export.comparison import compare_with_expected, write_expected
from tests.surgery.export.pruned_models import prune, state_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def small(make_llava: Callable[..., LoadedModel], request: pytest.FixtureRequest) -> LoadedModel:
    loaded = prune(make_llava())
    loaded.model.to(request.param)
    return loaded


@pytest.fixture(scope="module")
def scratch(small: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reload of `small` must reproduce."""
    directory = tmp_path_factory.mktemp("expected")
    write_expected(small.model, small.model, build_example_inputs(small.processor), directory)
    return directory


def attention(model: Any, layer: int) -> Any:
    return model.model.language_model.layers[layer].self_attn


def silence_head(model: Any) -> None:
    attention(model, 1).o_proj.weight[:, 8:16] = 0


def swap_heads(model: Any) -> None:
    weight = attention(model, 1).q_proj.weight
    weight[:16] = weight[:16].roll(8, 0)


def change_one_value(model: Any) -> None:
    """By the least that its dtype can express."""
    weight = model.model.language_model.layers[0].mlp.up_proj.weight
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.ones_like(weight[0, 0]))


def transpose(model: Any) -> None:
    linear = model.model.multi_modal_projector.linear_2
    linear.weight.copy_(linear.weight.T.clone())


def change_scaling(model: Any) -> None:
    """As a field of the configuration that is lost; no weight changes."""
    attention(model, 2).scaling *= 1.05


def change_frequencies(model: Any) -> None:
    model.model.language_model.rotary_emb.inv_freq.mul_(1.01)


def change_norm(model: Any) -> None:
    model.model.language_model.norm.variance_epsilon = 1e-2


@pytest.mark.parametrize(
    ("damage", "changed"),
    [
        (silence_head, ["layers.1.self_attn.o_proj.weight"]),
        (swap_heads, ["layers.1.self_attn.q_proj.weight"]),
        (change_one_value, ["layers.0.mlp.up_proj.weight"]),
        (transpose, ["multi_modal_projector.linear_2.weight"]),
        (change_scaling, []),
        (change_frequencies, []),
        (change_norm, []),
    ],
)
@torch.no_grad()
def test_a_damaged_model_is_not_the_one_that_was_written(
    small: LoadedModel, scratch: Path, damage: Callable[[Any], None], changed: list[str]
) -> None:
    damaged = copy.deepcopy(small.model)
    damage(damaged)
    difference = compare_with_expected([small.model, damaged], scratch)
    assert not difference.is_none
    assert [
        name.removeprefix("model.").removeprefix("language_model.")
        for name in difference.changed_weights
    ] == changed


def test_the_same_model_is_the_one_that_was_written(small: LoadedModel, scratch: Path) -> None:
    before = state_of(small)
    difference = compare_with_expected([small.model, copy.deepcopy(small.model)], scratch)
    assert difference.is_none
    assert difference.logits == 0
    assert state_of(small) == before


def test_a_reload_does_not_have_the_rounded_frequencies_of_a_converted_model(
    small: LoadedModel, scratch: Path
) -> None:
    """Checkpoints have none; `from_pretrained` computes exact ones, and ``to`` rounds them."""
    reloaded = copy.deepcopy(small.model)
    rotary = reloaded.model.language_model.rotary_emb
    rotary.inv_freq = type(rotary)(reloaded.config.text_config).inv_freq
    assert rotary.inv_freq.dtype == torch.float32
    assert compare_with_expected([reloaded], scratch).is_none


def test_an_error_leaves_a_model_in_its_dtype(small: LoadedModel, scratch: Path) -> None:
    """In the middle of a forward pass, when a block is in float32."""
    model = copy.deepcopy(small.model)
    before = state_of(replace(small, model=model))

    def fail(*_: object) -> None:
        raise ValueError("no memory")

    hook = attention(model, 1).register_forward_hook(fail)
    with pytest.raises(ValueError, match="no memory"):
        compare_with_expected([model], scratch)
    hook.remove()
    assert state_of(replace(small, model=model)) == before
