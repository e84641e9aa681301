"""What native exports have for engines: a class of the body, and the heads of each layer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from effllava_optuna import Policy
from effllava_optuna.checkpoint_format import PLAN
from effllava_optuna.surgery import (
    LoadedModel,
    pad_to_stock_sizes,
    rank_units,
    reduced_tokens,
    sliced,
)
from effllava_optuna.surgery.export.checkpoint_files import size_plan, write_checkpoint
from effllava_optuna.surgery.loading.loader import check_keys
from effllava_optuna.surgery.structure.native_files import find_engine_obstacle, model_body
from effllava_optuna.surgery.structure.pruned_class import DESCRIBED, auto_class
from effllava_optuna.surgery.structure.reloaded_class import pruned_class
from tests.surgery.families import FAMILIES
from tests.surgery.family_models import (
    CLOSE,
    load_family,
    random_policy,
    text_decoder,
    verified_text,
)
from tests.surgery.visual_tokens.pictured_families import load_pictured, pictured_inputs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)


@pytest.fixture(autouse=True)
def modules_are_written_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the code of checkpoints out of the user's cache."""
    folder = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)


@torch.no_grad()
def hidden_states(body: Any, inputs: dict[str, Any]) -> torch.Tensor:
    states: torch.Tensor = body(**inputs).last_hidden_state
    return states


def written(small: LoadedModel, directory: Path) -> Path:
    write_checkpoint(small, directory, size_plan(small))
    return directory


def text_of(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    text: dict[str, Any] = config.get("text_config", config)
    return text


def check_body(name: str, directory: Path) -> None:
    """The class of ``AutoModel`` computes the hidden states of the pruned model."""
    loaded = load_family(name)
    small = sliced(loaded, *random_policy(loaded.structure, 0))
    body, place = model_body(small.model), written(small, directory)
    if body is None:
        assert name == "blip-2"
        return
    read = AutoModel.from_pretrained(place, trust_remote_code=True)
    assert type(read).__name__ == f"Pruned{body.name}"
    assert isinstance(read, getattr(transformers, body.name))
    inputs = FAMILIES[name].inputs()
    expected = hidden_states(getattr(small.model, body.path), inputs)
    torch.testing.assert_close(hidden_states(read, inputs), expected, **CLOSE)


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_engines_read_the_body_of_a_pruned_model(name: str, tmp_path: Path) -> None:
    check_body(name, tmp_path)
    assert (tmp_path / "modeling_effllava.py").read_text().count("class Pruned") == 2


@pytest.mark.families
@pytest.mark.parametrize("name", FAMILIES)
def test_engines_read_the_body_of_every_family(name: str, tmp_path: Path) -> None:
    check_body(name, tmp_path)
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_layers_that_differ_are_in_the_configuration(name: str, tmp_path: Path) -> None:
    loaded = load_family(name)
    structure = loaded.structure
    first = next(c for c in structure.components if c.kind == "attn" and c.tower == "language")
    small = sliced(loaded, Policy.of(structure, {first.id: 1}), random_policy(structure, 0)[1])
    place = written(small, tmp_path / "uneven")
    dense = loaded.model.config.get_text_config()
    groups = dense.num_attention_heads // dense.num_key_value_heads
    assert text_of(place)["per_layer_config"] == {
        "0": {"num_attention_heads": groups, "num_key_value_heads": 1}
    }
    config = AutoConfig.from_pretrained(place).get_text_config()
    assert config.per_layer_config[0].num_key_value_heads == 1
    assert config.per_layer_config[1].num_key_value_heads == dense.num_key_value_heads
    assert config.num_key_value_heads == dense.num_key_value_heads
    whole = sliced(loaded, Policy.dense(structure), random_policy(structure, 0)[1])
    assert "per_layer_config" not in text_of(written(whole, tmp_path / "dense"))


def test_query_heads_of_one_group_are_in_the_configuration(tmp_path: Path) -> None:
    """The linear layers of keys and values are those of the dense model then."""
    model = text_decoder("GemmaConfig", num_attention_heads=4, num_key_value_heads=1)
    loaded = verified_text(model)
    first = next(c for c in loaded.structure.components if c.kind == "attn")
    ranking = random_policy(loaded.structure, 0)[1]
    small = sliced(loaded, Policy.of(loaded.structure, {first.id: 3}), ranking)
    place = written(small, tmp_path)
    assert text_of(place)["per_layer_config"] == {
        "0": {"num_attention_heads": 3, "num_key_value_heads": 1}
    }
    plan = json.loads((place / "config.json").read_text())[PLAN]
    assert find_engine_obstacle(small.model, plan) == ""


def test_an_export_can_be_pruned_and_exported_again(tmp_path: Path) -> None:
    loaded = load_family("llama")
    structure = loaded.structure
    attention = [c for c in structure.components if c.kind == "attn"]
    ranking = random_policy(structure, 0)[1]
    small = sliced(loaded, Policy.of(structure, {attention[0].id: 1}), ranking)
    first = written(small, tmp_path / "first")
    model = pruned_class(first).from_pretrained(first)
    again = LoadedModel.of(model, None, "again", depth=True)
    assert not again.model.config.is_heterogeneous
    assert hasattr(again.model.config, PLAN)
    blocks = [c for c in again.structure.components if c.kind == "block"]
    widths = {blocks[0].id: 0, attention[1].id: 1}
    smaller = sliced(
        again, Policy.of(again.structure, widths), rank_units(again, importance="magnitude")
    )
    second = written(smaller, tmp_path / "second")
    assert text_of(second)["per_layer_config"] == text_of(first)["per_layer_config"]
    stock = pad_to_stock_sizes(smaller)
    write_checkpoint(stock, tmp_path / "portable", None)
    assert "per_layer_config" not in text_of(tmp_path / "portable")


def test_a_model_that_engines_would_build_generates_with_every_cache(tmp_path: Path) -> None:
    loaded = load_family("llama")
    small = sliced(loaded, *random_policy(loaded.structure, 1))
    place = written(small, tmp_path / "uneven")
    read = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True)
    inputs = FAMILIES["llama"].inputs()
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    expected = small.model.generate(**inputs, **options)
    for cache in (None, "static"):
        found = read.generate(**inputs, **options, cache_implementation=cache)
        assert torch.equal(found, expected)


def test_the_body_of_a_reduced_model_reads_fewer_image_tokens(tmp_path: Path) -> None:
    loaded = load_pictured("llava")
    with reduced_tokens(loaded, 0.5) as reduced:
        dense = Policy.dense(loaded.structure)
        alone = sliced(reduced, dense, rank_units(loaded, importance="magnitude"))
    place = written(alone, tmp_path / "reduced")
    read = AutoModel.from_pretrained(place, trust_remote_code=True)
    inputs = pictured_inputs("llava", alone.processor)
    expected = hidden_states(alone.model.model, inputs)
    torch.testing.assert_close(hidden_states(read, inputs), expected, **CLOSE)
    assert read.get_image_features(inputs["pixel_values"]) is not None


HUB_PARTS = {  # of the keys of checkpoints on the hub
    "llava": {"vision_tower.vision_model", "language_model.model", "multi_modal_projector"},
    "llava_next": {
        "vision_tower.vision_model", "language_model.model", "multi_modal_projector",
        "image_newline",
    },
    "paligemma": {"vision_tower.vision_model", "language_model.model", "multi_modal_projector"},
}  # fmt: skip


def part_of(key: str) -> str:
    first, _, second = key.partition(".")
    second = second.partition(".")[0]
    return f"{first}.{second}" if first.endswith(("tower", "_model")) else first


@pytest.mark.parametrize("name", HUB_PARTS)
def test_portable_exports_have_the_key_names_of_the_hub(name: str, tmp_path: Path) -> None:
    """vLLM does not find the weights of a vision tower under the names of transformers."""
    loaded = load_family(name)
    stock = pad_to_stock_sizes(sliced(loaded, *random_policy(loaded.structure, 0)))
    write_checkpoint(stock, tmp_path / "first", None)
    keys = load_file(tmp_path / "first" / "model.safetensors").keys()
    assert {part_of(key) for key in keys} - {"language_model.lm_head"} == HUB_PARTS[name]
    auto = transformers.AutoModelForImageTextToText
    model, report = auto.from_pretrained(tmp_path / "first", output_loading_info=True)
    check_keys(report, name)
    for weight, value in stock.model.state_dict().items():
        assert torch.equal(model.state_dict()[weight], value)
    again = LoadedModel.of(model, None, "again")
    write_checkpoint(again, tmp_path / "second", None)
    assert load_file(tmp_path / "second" / "model.safetensors").keys() == keys


@pytest.mark.families
@pytest.mark.parametrize("name", FAMILIES)
def test_stock_classes_find_the_weights_of_every_family(name: str, tmp_path: Path) -> None:
    loaded = load_family(name)
    write_checkpoint(loaded, tmp_path / "hub", None)
    auto = auto_class(loaded.model.config)
    model, report = auto.from_pretrained(tmp_path / "hub", output_loading_info=True)
    check_keys(report, name)
    weights = model.state_dict()
    for weight, value in loaded.model.state_dict().items():
        assert torch.equal(weights[weight], value), weight
    write_checkpoint(LoadedModel.of(model, None, "again"), tmp_path / "again", None)
    first, again = (
        load_file(tmp_path / place / "model.safetensors").keys() for place in ("hub", "again")
    )
    assert first == again


def test_names_that_transformers_has_written_become_those_of_the_hub(tmp_path: Path) -> None:
    loaded = load_family("llava")
    loaded.model.save_pretrained(tmp_path / "new", save_original_format=False)
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "new")
    write_checkpoint(LoadedModel.of(model, None, "new"), tmp_path / "hub", None)
    keys = load_file(tmp_path / "hub" / "model.safetensors").keys()
    assert {part_of(key) for key in keys} - {"language_model.lm_head"} == HUB_PARTS["llava"]


def test_what_vllm_cannot_build_is_known(tmp_path: Path) -> None:
    loaded = load_family("llama")
    ranking = random_policy(loaded.structure, 0)[1]
    attention = next(c for c in loaded.structure.components if c.kind == "attn")
    small = sliced(loaded, Policy.of(loaded.structure, {attention.id: 1}), ranking)
    written(small, tmp_path)
    plan = json.loads((tmp_path / "config.json").read_text())[PLAN]
    assert find_engine_obstacle(small.model, plan) == ""
    undescribed = {name: value for name, value in plan.items() if name != DESCRIBED}
    assert f"the heads of {attention.id}" in find_engine_obstacle(small.model, undescribed)
    other = load_family("blip-2")
    assert "no class for its part" in find_engine_obstacle(other.model, size_plan(other))
