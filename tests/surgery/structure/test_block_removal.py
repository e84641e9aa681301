"""Removing blocks renumbers all that refers to blocks by number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from effllava_optuna.policy import Kind, Policy
from effllava_optuna.surgery import (
    LoadedModel,
    masked,
    pad_to_stock_sizes,
    sliced,
    verify_structure,
)
from effllava_optuna.surgery.export.checkpoint_files import size_plan, write_checkpoint
from effllava_optuna.surgery.loading.loader import read_model
from tests.surgery.families import FAMILIES
from tests.surgery.family_models import (
    CLOSE,
    compute_logits,
    policies,
    random_policy,
    rebuilt,
    text_decoder,
    text_inputs,
    verified_text,
)

if TYPE_CHECKING:
    from pathlib import Path

_SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("Qwen3MoeConfig", {**_SPARSE, "mlp_only_layers": [0, 2, 4]}),
        (
            "Glm4MoeConfig",
            {
                **_SPARSE, "first_k_dense_replace": 2, "n_routed_experts": 4, "n_group": 1,
                "topk_group": 1,
            },
        ),
    ],
)  # fmt: skip
def test_fields_that_number_sparse_blocks_are_renumbered(
    config: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    loaded = verified_text(text_decoder(config, num_hidden_layers=5, **settings))
    assert [block.component.layer for block in loaded.blocks] == [1, 2, 3, 4]
    widths = [
        0 if component.id == "language.01.block" else component.width
        for component in loaded.structure.components
    ]
    _, ranking = random_policy(loaded.structure, 0)
    small = sliced(loaded, Policy.of(loaded.structure, widths), ranking)
    write_checkpoint(small, tmp_path / "small", size_plan(small))
    reloaded = read_model(tmp_path / "small", "small").eval()
    expected = compute_logits(small.model, text_inputs())
    torch.testing.assert_close(compute_logits(reloaded, text_inputs()), expected, **CLOSE)


@pytest.mark.families
@pytest.mark.parametrize("groups", [1, 2])
def test_settings_of_single_blocks_move_with_them(groups: int, tmp_path: Path) -> None:
    """A gemma4 stores by number which blocks have another head size or other key/value heads."""
    family = FAMILIES["gemma4"]
    changes = {
        "hidden_size_per_layer_input": 0,
        "num_hidden_layers": 5,
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"],
        "attention_k_eq_v": groups == 1,
        "num_global_key_value_heads": groups,
    }
    text_config = family.settings["text_config"] | changes
    model = family._replace(settings={**family.settings, "text_config": text_config}).build()
    inputs, config = family.inputs(), model.config.to_dict()
    loaded = verify_structure(LoadedModel.of(model, None, "gemma4", depth=True), inputs)
    assert [block.component.layer for block in loaded.blocks] == [1, 2, 3]
    removed = ("language.01.block", "language.02.block")
    widths = [0 if c.id in removed else max(c.width // 2, 1) for c in loaded.structure.components]
    policy, ranking = Policy.of(loaded.structure, widths), random_policy(loaded.structure, 0)[1]
    with masked(loaded, policy, ranking):
        expected = compute_logits(model, inputs)
    small = sliced(loaded, policy, ranking)
    torch.testing.assert_close(compute_logits(small.model, inputs), expected, **CLOSE)
    for exported in (small, pad_to_stock_sizes(small)):
        plan = size_plan(exported)
        assert exported is small or not plan["linears"]
        write_checkpoint(exported, tmp_path / "small", plan if exported is small else None)
        reloaded = read_model(tmp_path / "small", "small").eval()
        torch.testing.assert_close(compute_logits(reloaded, inputs), expected, **CLOSE)
    assert model.config.to_dict() == config


def test_a_block_stays_if_no_field_can_describe_the_model_without_it() -> None:
    """With one sparse block in two, only the last block can be removed."""
    model = text_decoder("Qwen3MoeConfig", num_hidden_layers=5, decoder_sparse_step=2, **_SPARSE)
    loaded = verified_text(model)
    assert [block.component.layer for block in loaded.blocks] == [4]
    reasons = {part.id: part.reason for part in loaded.unprunable}
    assert reasons["language.02.block"].startswith("a place that the configuration gives to")


# Decoders whose blocks differ by their number, by a pattern, or by a list in the configuration.
NUMBERED: dict[str, dict[str, Any]] = {
    "DiffLlamaConfig": {},
    "SmolLM3Config": {"no_rope_layer_interval": 2},
    "Llama4TextConfig": {
        "no_rope_layers": [1, 0, 1, 0, 1, 0], "intermediate_size_mlp": 48, "num_local_experts": 2,
        "interleave_moe_layer_step": 2, "head_dim": 16, "attention_chunk_size": 4,
        "floor_scale": 2,
    },
    "Qwen2Config": {"use_sliding_window": True, "max_window_layers": 3, "sliding_window": 3},
    "Gemma2Config": {"sliding_window": 3, "head_dim": 16},
    "Cohere2Config": {"sliding_window": 3},
    "Exaone4Config": {"sliding_window": 3, "sliding_window_pattern": 3},
    "Olmo3Config": {"sliding_window": 3},
    "MiniMaxConfig": {
        "layer_types": ["linear_attention", "full_attention"] * 3, "head_dim": 16,
        "num_local_experts": 2, "block_size": 4,
    },
    "Lfm2Config": {"full_attn_idxs": [0, 2, 3, 5]},
    "NanoChatConfig": {},
    "GraniteConfig": {"residual_multiplier": 0.5},
    "Ernie4_5_MoeConfig": {
        "moe_layer_start_index": 1, "moe_layer_interval": 2, "moe_num_experts": 4, "moe_k": 2,
        "moe_intermediate_size": 32,
    },
    "OPTConfig": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "Qwen3_5TextConfig": {
        "head_dim": 16, "layer_types": ["linear_attention", "full_attention"] * 3,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
}  # fmt: skip


@pytest.mark.parametrize("config", NUMBERED)
def test_whatever_can_be_removed_can_be_exported(config: str) -> None:
    loaded = verified_text(text_decoder(config, **{"num_hidden_layers": 6} | NUMBERED[config]))
    _, ranking = random_policy(loaded.structure, 0)
    for policy in policies(loaded.structure):
        small = sliced(loaded, policy, ranking)
        logits = compute_logits(small.model, text_inputs())
        torch.testing.assert_close(compute_logits(rebuilt(small), text_inputs()), logits, **CLOSE)


def test_blocks_before_one_that_depends_on_its_number_stay() -> None:
    """The attention of a DiffLlama has a constant that is computed from its number."""
    loaded = verified_text(text_decoder("DiffLlamaConfig", num_hidden_layers=6))
    assert [block.component.layer for block in loaded.blocks] == [5]
    reasons = {part.id: part.reason for part in loaded.unprunable}
    assert reasons["language.02.block"] == "a later block that depends on its number (lambda_init)"


@pytest.mark.parametrize("queries", [[1, 4, 2], [4, 1, 1]])
def test_a_single_query_head_of_a_single_key_head_stays_a_query_head(queries: list[int]) -> None:
    loaded = verified_text(text_decoder("LlamaConfig", num_key_value_heads=1))
    widths = [
        queries[component.layer] if component.kind is Kind.ATTN else component.width
        for component in loaded.structure.components
    ]
    _, ranking = random_policy(loaded.structure, 0)
    small = sliced(loaded, Policy.of(loaded.structure, widths), ranking)
    padded = pad_to_stock_sizes(small)
    assert not size_plan(padded)["linears"]
    expected = compute_logits(small.model, text_inputs())
    torch.testing.assert_close(compute_logits(padded.model, text_inputs()), expected, **CLOSE)
