"""Prunable parts are found from the modules of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Kind
from effllava_optuna.surgery import LoadedModel, inspect_model, projector
from tests.surgery.families import FAMILIES
from tests.surgery.structure.toy_models import (
    Attention,
    Decoder,
    Mlp,
    VisionLanguageModel,
    attention_with,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.tasks import Batch


def test_components_come_in_forward_order_with_the_sizes_of_the_weights(tiny: LoadedModel) -> None:
    ids = [f"language.{layer:02d}.{kind}" for layer in range(3) for kind in ("attn", "mlp")]
    assert [component.id for component in tiny.structure.components] == ids
    assert [component.width for component in tiny.structure.components] == [3, 24] * 3
    # One group: two query heads and one key and one value head of 8, and their columns of o_proj.
    assert tiny.structure.components[0].unit_params == (2 + 1 + 1) * 8 * 36 + 2 * 8 * 36
    assert tiny.structure.components[1].unit_params == 3 * 36
    assert tiny.structure.kinds == (Kind.ATTN, Kind.MLP)


def test_the_parameters_of_all_units_are_those_of_the_blocks(
    make_llava: Callable[..., LoadedModel],
) -> None:
    loaded = make_llava(attention_bias=True, mlp_bias=True)
    parameters = [
        weight.numel()
        for handle in loaded.handles
        for name, weight in handle.module.named_parameters()
        # The bias of the output belongs to no unit.
        if name not in ("o_proj.bias", "down_proj.bias")
    ]
    assert loaded.structure.parameters == sum(parameters)


def test_a_text_decoder_has_no_tower() -> None:
    loaded = LoadedModel.of(FAMILIES["llama"].build(), None, "text only")
    assert {component.tower for component in loaded.structure.components} == {"language"}
    with pytest.raises(ModelError, match=r"text only has nothing to prune in tower 'vision'\."):
        LoadedModel.of(FAMILIES["llama"].build(), None, "text only", towers=["vision"])


def test_a_model_without_a_decoder_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Linear has no language decoder\. .* LLaVA check"):
        LoadedModel.of(nn.Linear(2, 2), None, "no model")


def test_a_decoder_without_prunable_parts_is_refused() -> None:
    attention = attention_with(sinks=nn.Parameter(torch.zeros(4)))
    message = r"Decoder has nothing to prune: language\.00\.attn has weights of its own"
    with pytest.raises(ModelError, match=message):
        inspect_model(VisionLanguageModel(Decoder([attention])))


def test_weights_of_two_places_are_unprunable() -> None:
    """Each place would permute them into the order of its own ranking."""
    mlp, tied = Mlp(), Mlp()
    tied.down_proj.weight = mlp.down_proj.weight
    for second in (mlp, tied):
        blocks = [[Attention(), mlp], [Attention(), second]]
        parts = inspect_model(VisionLanguageModel(Decoder(*blocks)))
        reason = "weights that another place also uses"
        places = [part.id for part in parts.unprunable if part.reason == reason]
        assert places == ["language.00.mlp", "language.01.mlp"]


def test_a_block_without_attention_is_listed() -> None:
    blocks: list[list[nn.Module]] = [[Attention(), Mlp()], [Mlp()]]
    parts = inspect_model(VisionLanguageModel(Decoder(*blocks)))
    assert [handle.component.id for handle in parts.handles][2:] == ["language.01.mlp"]
    attention = [part.id for part in parts.unprunable if "attn" in part.id]
    assert attention == ["language.01.attn"]


def test_the_projector_is_the_module_between_tower_and_decoder(tiny: LoadedModel) -> None:
    assert projector(tiny.model) is tiny.model.model.multi_modal_projector


def test_a_model_without_a_module_between_tower_and_decoder_has_no_projector() -> None:
    tower = nn.Sequential(nn.ModuleList([nn.Linear(3, 3)]))
    model = VisionLanguageModel(Decoder([Attention(), Mlp()]), tower=tower)
    message = r"VisionLanguageModel has no module that could be its projector\. Set"
    with pytest.raises(ModelError, match=message):
        projector(model)


def test_mlps_inside_a_tower_can_be_the_projector() -> None:
    model = FAMILIES["qwen3_vl"].build()
    merger, *deepstack_mergers = projector(model).children()
    assert merger is model.model.visual.merger
    assert deepstack_mergers == [*model.model.visual.deepstack_merger_list]


def test_the_tiny_model_distinguishes_its_inputs(tiny: LoadedModel, batch: Batch) -> None:
    """Without this, no comparison of logits in these tests would be informative."""
    with torch.no_grad():
        logits = tiny.model(**batch.inputs).logits[:, -1]
        black = torch.zeros_like(batch.inputs["pixel_values"])
        without_image = tiny.model(**dict(batch.inputs) | {"pixel_values": black}).logits[:, -1]
    assert logits.std() > 0.3
    assert logits.std(0).mean() > 0.1
    assert (logits - without_image).abs().max() > 0.1
