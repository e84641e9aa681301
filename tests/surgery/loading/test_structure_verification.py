"""Components whose units cannot be removed exactly are found by running the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Kind
from effllava_optuna.surgery import LoadedModel, sliced, verify_structure
from tests.surgery.families import FAMILIES
from tests.surgery.family_models import load_family, random_policy, text_decoder, verified_text

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.mark.parametrize(
    ("name", "place", "reason"),
    [
        ("llava", "vision.02", "an output that nothing reads"),
        pytest.param(
            "internvl (6B tower)", "vision.00.attn", "a norm over all heads",
            marks=pytest.mark.families,
        ),
        ("blip-2", "vision.00.attn", "a forward pass that relies on its size (RuntimeError"),
        pytest.param(
            "gemma4", "language.01.block", "a forward pass that relies on its size (RuntimeError",
            marks=pytest.mark.families,
        ),
        pytest.param(
            "qwen3_5", "language.00.attn", "no attention of a known form",
            marks=pytest.mark.families,
        ),
        pytest.param(
            "qwen3_vl", "language.01.block", "features of the vision tower added to its output",
            marks=pytest.mark.families,
        ),
    ],
)  # fmt: skip
def test_an_unprunable_part_is_listed_with_the_reason(name: str, place: str, reason: str) -> None:
    reasons = {part.id: part.reason for part in load_family(name).unprunable}
    assert reasons[place].startswith(reason)
    assert "\n" not in reasons[place]


def test_a_norm_over_all_heads_is_found_even_if_it_has_no_weights() -> None:
    """Recognition looks for the weights of a norm; verification, at what is computed."""

    class NormWithoutWeights(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.pow(2).mean(-1, keepdim=True).rsqrt()

    family = FAMILIES["internvl (6B tower)"]
    model = family.build()
    for block in model.model.vision_tower.encoder.layer:
        block.attention.q_norm = block.attention.k_norm = NormWithoutWeights()
    loaded = LoadedModel.of(model, None, "disguised", towers=["vision", "language"])
    assert any(component.id == "vision.00.attn" for component in loaded.structure.components)
    unprunable = verify_structure(loaded, family.inputs()).unprunable
    assert [part.id for part in unprunable] == [f"vision.{layer:02d}.attn" for layer in range(3)]
    assert all(part.reason.startswith("units that are not independent") for part in unprunable)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weak_coupling_of_channels_is_found_in_every_dtype(dtype: torch.dtype) -> None:
    """In half precision, it changes the logits by less than rounding does."""

    class WeakCoupling(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.silu(x) + x.softmax(-1)

    model = text_decoder("LlamaConfig")
    model.model.layers[1].mlp.act_fn = WeakCoupling()
    faults = {part.id: part.reason for part in verified_text(model.to(dtype)).unprunable}
    assert list(faults) == ["language.00.block", "language.01.mlp"]
    assert faults["language.01.mlp"].startswith("units that are not independent")


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "mllama", "blip-2", "qwen3"])
def test_the_same_parts_are_found_in_half_precision(name: str) -> None:
    family = FAMILIES[name]
    model = family.build().to(torch.bfloat16)
    before = {path: weight.dtype for path, weight in model.state_dict().items()}
    half = LoadedModel.of(model, None, name, towers=None, depth=True)
    parts = verify_structure(half, family.inputs()).parts
    assert parts.structure == load_family(name).structure
    assert parts.unprunable == load_family(name).unprunable
    assert {path: weight.dtype for path, weight in model.state_dict().items()} == before


def test_a_model_that_overflows_in_half_precision_alone_is_refused() -> None:
    """It is verified in float32, but it will run in its own dtype."""
    model = text_decoder("LlamaConfig")
    for block in model.model.layers:
        block.mlp.up_proj.weight.data *= 3e3
        block.mlp.down_proj.weight.data *= 3e3
    verified_text(model)
    with pytest.raises(ModelError, match=r"answers (NaN|inf) to an example in float16"):
        verified_text(model.half())


def test_blocks_of_one_class_with_different_functions_are_tested_separately() -> None:
    """A function is not a module: its identity alone shows that a softmax couples the channels."""

    class GatedMlp(nn.Module):
        def __init__(self, gate: Any) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = (
                nn.Linear(*size, bias=False) for size in ((64, 96), (64, 96), (96, 64))
            )
            self.gate = gate
            for weight in self.parameters():
                nn.init.normal_(weight, std=0.12, generator=torch.Generator().manual_seed(0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.down_proj(self.gate(self.gate_proj(x)) * self.up_proj(x))
            return output

    model = text_decoder("LlamaConfig")
    gates = (nn.functional.silu, softmax_over_channels, nn.functional.silu)
    for block, gate in zip(model.model.layers, gates, strict=True):
        block.mlp = GatedMlp(gate)
    places = [part.id for part in verified_text(model).unprunable]
    assert places == ["language.00.block", "language.01.mlp"]


def softmax_over_channels(x: torch.Tensor) -> torch.Tensor:
    return x.softmax(-1)


@torch.no_grad()
def test_units_that_are_all_zero_do_not_exclude_a_component() -> None:
    """The first half that is masked may consist of the padding of a portable export."""
    for padded in (0, 1):
        model = text_decoder("LlamaConfig")
        for block in model.model.layers[:2]:
            block.self_attn.o_proj.weight[:, 32 * padded : 32 * padded + 32] = 0
        components = [component.id for component in verified_text(model).structure.components]
        assert {f"language.{layer:02d}.attn" for layer in range(3)} <= set(components)
    model.model.layers[0].self_attn.o_proj.weight.zero_()
    without_influence = [
        part.id
        for part in verified_text(model).unprunable
        if part.reason == "no influence on the logits"
    ]
    assert without_influence == ["language.00.attn"]


def test_a_component_that_failed_verification_is_excluded_from_a_slice_too() -> None:
    loaded = load_family("blip-2")
    small = sliced(loaded, *random_policy(loaded.structure, 0))
    places = {part.id for part in small.unprunable}
    assert places >= {f"vision.{layer:02d}.attn" for layer in range(3)}
    assert not any(c.tower == "vision" and c.kind is Kind.ATTN for c in small.structure.components)


def test_a_model_that_does_not_run_is_refused() -> None:
    inputs = {"input_ids": torch.tensor([[1, 3, 3, 7]]), **FAMILIES["llava"].image}
    with pytest.raises(ModelError, match=r"llava does not run on an example: \w+Error: "):
        verify_structure(load_family("llava"), inputs)
