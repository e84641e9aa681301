"""Complete checkpoints load; damaged and missing ones are refused in one line: promise 10."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from effllava_optuna import load, load_pruned, rank_units, sliced
from effllava_optuna.errors import ExportError, ModelError
from effllava_optuna.policy import Policy
from effllava_optuna.surgery import LoadedModel, build_example_inputs
from effllava_optuna.surgery.loading.loader import check_keys
from tests.surgery.families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Callable

    Damage = Callable[[Path], Any]


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    return shutil.copytree(checkpoint, tmp_path / "checkpoint")


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def cut_short(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def key_of(weights: dict[str, torch.Tensor], ending: str) -> str:
    return next(name for name in weights if name.endswith(ending))


def lose(ending: str) -> Damage:
    return lambda directory: edit_weights(
        directory, lambda weights: weights.pop(key_of(weights, ending))
    )


def widen(ending: str) -> Damage:
    def change(weights: dict[str, torch.Tensor]) -> None:
        name = key_of(weights, ending)
        weights[name] = torch.nn.functional.pad(weights[name], (0, 1))

    return lambda directory: edit_weights(directory, change)


def add(name: str) -> Damage:
    return lambda directory: edit_weights(
        directory, lambda weights: weights.update({name: torch.zeros(2)})
    )


def write(name: str, text: str) -> Damage:
    return lambda directory: (directory / name).write_text(text)


def remove(name: str) -> Damage:
    return lambda directory: (directory / name).unlink()


def change(name: str, **values: Any) -> Damage:
    """Set values of a JSON file; None removes a key."""

    def edit(directory: Path) -> None:
        document = json.loads((directory / name).read_text()) | values
        kept = {key: value for key, value in document.items() if value is not None}
        (directory / name).write_text(json.dumps(kept))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "does not load"),
        (write("model.safetensors", ""), "does not load"),
        (write("model.safetensors", "a page that says: not found" * 9), "does not load"),
        (remove("model.safetensors"), "does not load"),
        (lose("layers.1.mlp.down_proj.weight"), "has 1 missing keys, such as .*down_proj"),
        (lose("linear_2.bias"), "has 1 missing keys"),
        (add("language_model.extra"), "has 1 unexpected keys, such as .*extra"),
        (widen("layers.0.self_attn.v_proj.weight"), "has 1 mismatched keys, such as .*v_proj"),
        (write("config.json", "{"), "does not load"),
        (write("config.json", "[]"), "does not load"),
        (write("config.json", '{"model_type": "not a model"}'), "does not load"),
        (remove("config.json"), "does not load"),
        (
            change("config.json", text_config=None),
            "has no text_config in its config.json: transformers would build a llama of its",
        ),
        (change("generation_config.json", eos_token_id="</s>"), 'has eos_token_id = "</s>" in'),
        (change("generation_config.json", eos_token_id=[3, "2"]), r'eos_token_id = \[3, "2"\] in'),
        (change("generation_config.json", eos_token_id=[]), r"eos_token_id = \[\] in"),
        (change("generation_config.json", eos_token_id=True), "eos_token_id = true in"),
        (change("generation_config.json", eos_token_id=-1), "eos_token_id = -1 in"),
        (remove("tokenizer.json"), "does not load"),
        (write("tokenizer.json", "{}"), "does not load"),
        (remove("processor_config.json"), "does not load"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(
    copied: Path, damage: Damage, message: str
) -> None:
    damage(copied)
    with pytest.raises(ModelError, match=message) as caught:
        load(copied, device="cpu")
    assert str(copied) in caught.value.message
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "'' does not load"),
        (".", "'.' does not load"),
        ("nowhere", "'nowhere' does not load"),
        ("no/such-model", "'no/such-model' does not load"),
        ("a\nb", r"'a\\nb' does not load"),
        ("/no/such/place", r"no directory '/no/such/place'\. Use a directory, a hub id"),
        ("./nowhere", r"no directory './nowhere'"),
        (Path("nowhere"), "no directory 'nowhere'"),
    ],
)
def test_a_path_without_a_checkpoint_is_refused(
    path: str | Path, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        load(path, device="cpu")
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_the_current_directory_is_a_directory_like_others(
    checkpoint: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint)
    assert load(".", device="cpu").structure == tiny.structure


def test_a_text_decoder_is_loaded_with_its_tokenizer(tiny: LoadedModel, tmp_path: Path) -> None:
    FAMILIES["llama"].build().save_pretrained(tmp_path)
    tiny.processor.tokenizer.save_pretrained(tmp_path)
    loaded = load(tmp_path, device="cpu", depth=True)
    assert len(loaded.structure.components) == 8
    policy = Policy.of(loaded.structure, [1, 30, 2, 96, 0, 2, 50, 1])
    small = sliced(loaded, policy, rank_units(loaded))
    assert small.model.config.num_hidden_layers == 2
    assert set(build_example_inputs(loaded.processor)) >= {"input_ids", "attention_mask"}


def test_a_model_of_another_kind_is_refused_in_one_line(tiny: LoadedModel, tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    ViTModel(config).save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="Unrecognized configuration class") as caught:
        load(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_model_may_be_spread_over_devices(checkpoint: Path, tiny: LoadedModel) -> None:
    assert load(checkpoint, device="device-map").structure == tiny.structure


def test_a_wrong_dtype_or_device_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ModelError, match=r"dtype is 'float8'\. Use auto or one of float32, bfl"):
        load("nowhere", device="cpu", dtype="float8")
    for device in ("gpu", "cuda:99", ""):
        with pytest.raises(ModelError, match=f"has no device '{device}'. Use auto, cpu or cuda"):
            load("nowhere", device=device)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_have_the_requested_dtype(checkpoint: Path, dtype: str) -> None:
    loaded = load(checkpoint, device="cpu", dtype=dtype)
    assert {weight.dtype for weight in loaded.model.parameters()} == {getattr(torch, dtype)}
    assert loaded.device == torch.device("cpu")


def test_half_precision_becomes_float32_on_a_cpu_by_default(
    make_llava: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    half = make_llava()
    half.model.to(torch.bfloat16).save_pretrained(tmp_path)
    half.processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert load(tmp_path, device="cpu").model.dtype == torch.float32


def test_weights_are_those_of_the_file(
    checkpoint: Path, make_llava: Callable[..., LoadedModel], tiny: LoadedModel
) -> None:
    saved = make_llava().model.state_dict()
    loaded = tiny.model.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], weight) for name, weight in saved.items())
    assert tiny.source == str(checkpoint)


def test_a_normal_checkpoint_is_not_an_export(checkpoint: Path, tmp_path: Path) -> None:
    for directory in (checkpoint, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ExportError, match=r"holds no checkpoint that effllava_optuna wrote"):
            load_pruned(directory, device="cpu")


def test_a_clean_key_report_passes_and_any_other_is_refused() -> None:
    check_keys({"missing_keys": set(), "unexpected_keys": []}, "mine")
    report = {"mismatched_keys": {("b", (1,), (2,)), ("a", (1,), (2,))}}
    with pytest.raises(ModelError, match=r"'mine' has 2 mismatched keys, such as \('a'"):
        check_keys(report, "mine")
