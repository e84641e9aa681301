"""Units are derived from the shapes of weights; modules whose units are not separable are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from effllava_optuna.policy import Kind
from effllava_optuna.surgery import LoadedModel, UnitRows, inspect_model
from tests.surgery.structure.toy_models import (
    Attention,
    Decoder,
    Mlp,
    VisionLanguageModel,
    attention_with,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("config", "settings", "width", "columns"),
    [
        ("LlamaConfig", {"num_key_value_heads": 6}, 6, 8),
        ("Qwen2Config", {"head_dim": 6}, 3, 12),
        ("Qwen3Config", {}, 3, 16),
        ("Gemma3TextConfig", {}, 3, 16),
    ],
)
def test_groups_are_derived_from_the_shapes(
    make_llava: Callable[..., LoadedModel],
    config: str,
    settings: dict[str, int],
    width: int,
    columns: int,
) -> None:
    loaded = make_llava(config, **settings)
    for handle in loaded.handles[::2]:
        assert (handle.component.width, handle.columns) == (width, columns)
        assert handle.linear("o_proj").in_features == width * columns
        for name in ("q_proj", "k_proj"):
            assert handle.linear(name).out_features == width * handle.inputs[name].per_unit


def test_query_heads_are_the_units_if_all_share_one_key_head(
    make_llava: Callable[..., LoadedModel],
) -> None:
    handle = make_llava(num_key_value_heads=1).handles[0]
    assert (handle.component.width, handle.columns) == (6, 8)
    assert handle.inputs == {"q_proj": UnitRows((8,))}
    assert handle.counts["num_key_value_groups"] == 1


@pytest.mark.parametrize(
    ("config", "settings", "rows"),
    [
        ("Phi3Config", {"head_dim": 6}, {"qkv_proj": (12, 6, 6), "gate_up_proj": (1, 1)}),
        (
            "Qwen3NextConfig",
            {"num_experts": 0, "layer_types": ["full_attention"] * 3},
            {"q_proj": (32,), "k_proj": (8,), "gate_proj": (1,)},
        ),
    ],
)
def test_fused_matrices_and_gates_are_derived_from_the_shapes(
    make_llava: Callable[..., LoadedModel],
    config: str,
    settings: dict[str, Any],
    rows: dict[str, Any],
) -> None:
    attention, mlp = (handle.inputs for handle in make_llava(config, **settings).handles[:2])
    inputs = {**attention, **mlp}
    assert {name: inputs[name].parts for name in rows} == rows


@pytest.mark.parametrize(
    ("config", "settings", "kind", "reason"),
    [
        ("MixtralConfig", {"num_local_experts": 2}, "mlp", "no MLP of a known form"),
        (
            "Qwen2MoeConfig",
            {
                "num_experts": 2,
                "num_experts_per_tok": 1,
                "moe_intermediate_size": 8,
                "shared_expert_intermediate_size": 8,
                "head_dim": 6,
            },
            "mlp",
            "experts that could be its MLP",
        ),
        ("Olmo2Config", {"head_dim": 6}, "attn", "a norm over all heads (Olmo2Attention)"),
    ],
)
def test_modules_of_an_unknown_form_are_not_pruned(
    make_llava: Callable[..., LoadedModel],
    config: str,
    settings: dict[str, Any],
    kind: str,
    reason: str,
) -> None:
    loaded = make_llava(config, **settings)
    assert [(part.id, part.reason) for part in loaded.unprunable] == [
        (f"language.{layer:02d}.{kind}", reason) for layer in range(3)
    ]
    kinds = {component.kind for component in loaded.structure.components}
    assert kinds == {Kind.ATTN, Kind.MLP} - {Kind(kind)}


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ([Attention()], "no MLP of a known form"),
        ([Attention(), Mlp(), Mlp()], "2 modules that could be its MLP"),
        ([Attention(), Mlp(gate=11)], "inputs of another width than 5 (Mlp)"),
        ([Attention(), Mlp(gate=10)], "inputs of another width than 5 (Mlp)"),
        ([Attention(k_proj=6, v_proj=6), Mlp()], "4 query heads for 3 key/value heads"),
        ([Attention(v_proj=8), Mlp()], "queries or keys of another size than the output matrix"),
        ([attention_with(sinks=nn.Parameter(torch.zeros(4))), Mlp()], "weights of its own"),
        ([attention_with(k_norm=nn.LayerNorm(8)), Mlp()], "a norm over all heads"),
        ([attention_with(head_dim=None), Mlp()], "no head_dim"),
        ([attention_with(k_proj=None, v_proj=None), Mlp()], "keys and values of another block"),
    ],
)
def test_a_module_whose_units_cannot_be_removed_exactly_is_unprunable(
    block: list[nn.Module], reason: str
) -> None:
    parts = inspect_model(VisionLanguageModel(Decoder(block)))
    assert len(parts.handles) == 1
    (unprunable,) = (part for part in parts.unprunable if "block" not in part.id)
    assert unprunable.reason.startswith(reason)


def test_a_matrix_that_is_computed_is_unprunable() -> None:
    mlp = Mlp()
    weight_norm(mlp.up_proj)  # its parameter is no longer called weight
    parts = inspect_model(VisionLanguageModel(Decoder([Attention(), mlp])))
    assert [handle.component.id for handle in parts.handles] == ["language.00.attn"]
    assert "language.00.mlp" in [part.id for part in parts.unprunable]


def test_norms_within_a_head_and_norms_that_do_nothing_are_allowed() -> None:
    attention = attention_with(q_norm=nn.LayerNorm(2), k_norm=nn.Identity())
    first, second = inspect_model(VisionLanguageModel(Decoder([attention, Mlp()]))).handles
    assert (first.component.width, first.columns, second.component.width) == (2, 4, 5)


def test_attributes_follow_the_width_only_if_they_are_proportional_to_it() -> None:
    attention = attention_with(
        num_heads=4, num_key_value_heads=2, num_attention_heads=7, embed_dim=8
    )
    handle = inspect_model(VisionLanguageModel(Decoder([attention, Mlp()]))).handles[0]
    assert handle.counts == {"num_heads": 2, "num_key_value_heads": 1, "embed_dim": 4}
