"""What is no checkpoint that can be pruned is refused by its files, before anything is loaded."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from effllava_optuna import load
from effllava_optuna.checkpoint_format import check_format
from effllava_optuna.errors import ModelError
from effllava_optuna.surgery import inspect_checkpoint
from effllava_optuna.surgery.loading.loader import read_config
from tests.hub_cache import downloaded
from tests.study_fixtures import invoke

if TYPE_CHECKING:
    from collections.abc import Callable

    Change = Callable[[Path], Any]

_ADAPTER = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "llava-hf/llava-1.5-7b-hf"})


def write(name: str, text: str | bytes = "x") -> Change:
    content = text.encode() if isinstance(text, str) else text

    def change(directory: Path) -> None:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)

    return change


def both(*changes: Change) -> Change:
    def change(directory: Path) -> None:
        for each in changes:
            each(directory)

    return change


def without_weights(change: Change) -> Change:
    def both(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        change(directory)

    return both


def alone(change: Change) -> Change:
    """Leave nothing of the checkpoint but its tokenizer and what ``change`` writes."""

    def both(directory: Path) -> None:
        for file in directory.iterdir():
            if not file.name.startswith("tokenizer"):
                file.unlink()
        change(directory)

    return both


def configure(*tables: str, **values: Any) -> Change:
    """Set keys of config.json, or of a table in it."""

    def change(directory: Path) -> None:
        document = json.loads((directory / "config.json").read_text())
        table = document
        for name in tables:
            table = table.setdefault(name, {})
        table.update(values)
        (directory / "config.json").write_text(json.dumps(document))

    return change


def as_type(dtype: torch.dtype, name: str) -> Change:
    """Store the MLP of a block with another name and type, as quantisation does."""

    def change(directory: Path) -> None:
        weights = load_file(directory / "model.safetensors")
        old = next(key for key in weights if key.endswith("layers.0.mlp.down_proj.weight"))
        weights[old.replace("weight", name)] = weights.pop(old).to(dtype)
        save_file(weights, directory / "model.safetensors")

    return change


_QUANTISED = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "mxfp4": {"quant_method": "mxfp4"},
    "load_in_8bit": {"load_in_8bit": True},
}
_CODE = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}

CASES: dict[str, tuple[Change, str]] = {
    "an adapter beside the weights": (
        write("adapter_config.json", _ADAPTER), "has files of an adapter (adapter_config.json)",
    ),
    "weights of an adapter without its configuration": (
        write("adapter_model.safetensors"), "has files of an adapter (adapter_model.safetensors)",
    ),
    "the other weights of a LoRA run of LLaVA": (
        write("non_lora_trainables.bin"), "has files of an adapter (non_lora_trainables.bin)",
    ),
    "an adapter alone": (
        alone(write("adapter_config.json", _ADAPTER)),
        "is an adapter of 'llava-hf/llava-1.5-7b-hf' (adapter_config.json), not a model",
    ),
    "a damaged adapter alone": (
        alone(write("adapter_config.json", "{")), "is an adapter (adapter_config.json), not a mod",
    ),
    "GGUF": (without_weights(write("model-Q4_K_M.gguf")), "(model-Q4_K_M.gguf)"),
    "GGUF alone": (alone(write("model.gguf")), "has its weights in the format GGUF (model.gguf)"),
    "GGUF in upper case": (
        without_weights(write("MODEL.GGUF")), "in the format GGUF (MODEL.GGUF)",
    ),
    "pickled shards": (
        without_weights(write("pytorch_model-00001-of-00002.bin")),
        "has pickled weights (pytorch_model-00001-of-00002.bin)",
    ),
    "a pickled model alone": (alone(write("model.pt")), "has pickled weights (model.pt)"),
    "a checkpoint of Meta": (alone(write("consolidated.00.pth")), "pickled weights (consolidated"),
    "TensorFlow": (without_weights(write("tf_model.h5")), "the format TensorFlow (tf_model.h5)"),
    "Flax": (without_weights(write("flax_model.msgpack")), "in the format Flax (flax_model.msg"),
    "ONNX": (without_weights(write("model.onnx")), "has its weights in the format ONNX"),
    **{
        name: (configure(quantization_config=entry), f"is quantised ({name})")
        for name, entry in _QUANTISED.items()
    },
    "a quantised decoder": (
        configure("text_config", quantization_config={"quant_method": "awq", "bits": 4}),
        "is quantised (awq)",
    ),
    "an older key of compressed-tensors": (
        configure(compression_config={"quant_method": "compressed-tensors"}),
        "is quantised (compressed-tensors): config.json has 'compression_config'",
    ),
    "MLX": (
        configure(quantization={"group_size": 64, "bits": 4}),
        "is quantised: config.json has 'quantization'",
    ),
    "ModelOpt": (
        write("hf_quant_config.json", '{"quantization": {"quant_algo": "FP8"}}'),
        "is quantised (FP8): hf_quant_config.json",
    ),
    "AutoGPTQ": (write("quantize_config.json", '{"bits": 4}'), "is quantised: quantize_config.js"),
    "float8 weights without an entry": (
        as_type(torch.float8_e4m3fn, "weight"), "down_proj.weight is stored as F8_E4M3",
    ),
    "packed weights without an entry": (
        as_type(torch.int32, "qweight"), "down_proj.qweight is stored as I32",
    ),
    "bytes without an entry": (
        as_type(torch.uint8, "weight"), "down_proj.weight is stored as U8",
    ),
    "LLaVA's own format": (
        configure(
            architectures=["LlavaLlamaForCausalLM"], hidden_size=5120, num_hidden_layers=40,
            mm_vision_tower="openai/clip-vit-large-patch14-336",
        ),
        "Use a converted checkpoint, such as llava-hf/llava-1.5-13b-hf.",
    ),
    "LLaVA-1.6's own format": (
        configure(
            architectures=["LlavaMistralForCausalLM"], model_type="llava_mistral",
            hidden_size=4096, image_aspect_ratio="anyres",
        ),
        "such as llava-hf/llava-v1.6-mistral-7b-hf.",
    ),
    "LLaVA's own format on MPT": (
        configure(architectures=["LlavaMPTForCausalLM"], model_type="llava_mpt"),
        "has LLaVA's own format, which transformers does not read: config.json names the archite",
    ),
    "LLaVA's own format without an architecture": (
        configure(architectures=None, model_type="llava", mm_vision_tower="openai/clip"),
        "has LLaVA's own format, which transformers does not read: config.json has 'mm_vision_to",
    ),
    "LLaVA's own format under the architecture of its decoder": (
        configure(architectures=["LlamaForCausalLM"], model_type="llama",
                  mm_projector_type="mlp2x_gelu"),
        "config.json has 'mm_projector_type'",
    ),
    "LLaVA's own format with pickled weights": (
        without_weights(both(
            write("pytorch_model-00001-of-00002.bin"),
            configure(architectures=["LlavaLlamaForCausalLM"], hidden_size=4096),
        )),
        "Use a converted checkpoint, such as llava-hf/llava-1.5-7b-hf.",
    ),
    "LLaVA-OneVision's own format": (
        configure(architectures=["LlavaQwenForCausalLM"], model_type="qwen2", hidden_size=896),
        "such as llava-hf/llava-onevision-qwen2-0.5b-ov-hf.",
    ),
    "an unknown architecture of a known type": (
        configure(architectures=["MobileLlamaForCausalLM"], model_type="llama"),
        "names the architecture 'MobileLlamaForCausalLM', which transformers",
    ),
    "an unknown type": (
        configure(architectures=None, model_type="later_vl"), "the model_type 'later_vl', which",
    ),
    "code of its own": (
        configure(architectures=["Own"], model_type="own", auto_map=_CODE),
        "needs code of its own (configuration_own.py), which is never run",
    ),
    "code of a tokenizer, of which there are two": (
        configure(architectures=None, model_type="own",
                  auto_map={"AutoTokenizer": [None, "tokenization_own.Own"]}),
        "needs code of its own (tokenization_own.py), which is never run",
    ),
    "a type that is no text": (
        configure(model_type=["llava"]), "config.json has the model_type ['llava'], which is no t",
    ),
    "code of another repository": (
        configure(
            architectures=None, model_type="own",
            auto_map={"AutoConfig": "someone/code--configuration_own.OwnConfig"},
        ),
        "needs code of its own (configuration_own.py of someone/code), which is never run",
    ),
}  # fmt: skip


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny LLaVA in the directory ``model``, which a test changes."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(checkpoint, tmp_path / "model")


def write_study(model: Path) -> Path:
    file = Path("mine.toml")
    file.write_text(f'[model]\npath = "{model}"\n[task]\nname = "digits"\n')
    return file


@pytest.mark.parametrize(("change", "message"), CASES.values(), ids=CASES)
def test_what_cannot_be_pruned_is_refused_from_its_files(
    change: Change, message: str, model: Path
) -> None:
    change(model)
    checked = invoke("check", write_study(model), check=False)
    assert (checked.returncode, checked.stdout) == (2, "")
    assert message in checked.stderr
    assert len(checked.stderr.splitlines()) == 1
    for function in (load, inspect_checkpoint):
        with pytest.raises(ModelError) as caught:
            function(model)
        assert f"{caught.value}\n" == checked.stderr
        assert repr(str(model)) in caught.value.message
        assert caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        write("training_args.bin"),
        write("pytorch_model.bin"),  # beside safetensors, which are what is read
        write("model.gguf"),
        write("runs/adapter_config.json", _ADAPTER),
        configure(quantization_config=None),
        configure(architectures=None),
        configure(architectures=["llavaforconditionalgeneration"]),
        configure(auto_map={"AutoConfig": "configuration_own.OwnConfig"}),  # is not needed
        configure(num_hidden_layers=3),
    ],
)
def test_files_that_change_nothing_are_allowed(change: Change, model: Path) -> None:
    change(model)
    assert inspect_checkpoint("model").structure.components
    invoke("check", write_study(model))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny.gguf", "tiny.gguf' is a file in the format GGUF, not a directory"),
        ("all.bin", "all.bin' is a pickled file, not a directory"),
        ("model.safetensors", "model.safetensors' is a file, not a directory"),
    ],
)
def test_a_file_is_no_checkpoint(name: str, message: str, model: Path) -> None:
    if not (model / name).exists():
        (model / name).write_bytes(b"x")
    for function in (load, inspect_checkpoint):
        with pytest.raises(ModelError, match=message):
            function(f"model/{name}")
    checked = invoke("check", write_study(model / name), check=False)
    assert checked.returncode == 2
    assert message in checked.stderr


def test_a_directory_without_a_configuration_is_refused(model: Path) -> None:
    (model / "config.json").unlink()
    with pytest.raises(ModelError, match=r"model' does not load: it has no config\.json"):
        check_format(model)


def test_sizes_that_the_configuration_class_ignores_are_refused(model: Path) -> None:
    configure(architectures=None, num_hidden_layers=40)(model)
    for function in (load, inspect_checkpoint):
        with pytest.raises(
            ModelError, match=r"has num_hidden_layers = 40 .* LlavaConfig .* reads 3\."
        ):
            function("model")


def test_a_model_type_of_another_architecture_is_refused(model: Path) -> None:
    configure(architectures=["MistralForCausalLM"])(model)
    with pytest.raises(ModelError, match=r"'MistralForCausalLM', .* model_type 'llava'"):
        inspect_checkpoint("model")


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        ("InternLM3Config", "LlamaForCausalLM"),
        ("ShieldGemma2Config", "Gemma3ForConditionalGeneration"),
        ("Qwen3_5Config", "Qwen3_5ForCausalLM"),
    ],
)
def test_an_architecture_that_transformers_has_for_the_model_type_is_allowed(
    config: str, architecture: str, tmp_path: Path
) -> None:
    """Some types have a class that belongs to another type by its own configuration."""
    written = getattr(transformers, config)()
    written.architectures = [architecture]
    written.save_pretrained(tmp_path)
    assert isinstance(read_config(tmp_path), type(written))


@pytest.mark.parametrize(
    ("file", "entry"),
    [
        ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}),
        ("config.json", {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Own"}}),
        ("processor_config.json",
         {"processor_class": "Own", "auto_map": {"AutoProcessor": "own.Own"}}),
        ("processor_config.json",
         {"image_processor": {
             "image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}}),
    ],
)  # fmt: skip
def test_the_code_of_a_checkpoint_is_neither_offered_nor_run(
    file: str,
    entry: dict[str, Any],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (model / "own.py").write_text(f"open({str(model / 'was_run')!r}, 'w')\nclass Own: pass\n")
    document = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps(document | entry))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    with pytest.raises(ModelError, match=r"needs code of its own.*, which is never run") as caught:
        load("model", device="cpu")
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert not (model / "was_run").exists()
    assert "[y/N]" not in capfd.readouterr().out


def test_code_that_transformers_does_not_need_is_not_run(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (model / "custom_generate").mkdir()
    for place in ("own.py", "custom_generate/generate.py"):
        (model / place).write_text(f"open({str(model / 'was_run')!r}, 'w')\n")
    for file in ("config.json", "tokenizer_config.json", "processor_config.json"):
        document = json.loads((model / file).read_text())
        autos = ("Config", "ModelForImageTextToText", "Processor", "Tokenizer")
        document["auto_map"] = {f"Auto{name}": "own.Own" for name in autos}
        (model / file).write_text(json.dumps(document))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    assert load("model", device="cpu").structure.components
    assert not (model / "was_run").exists()
    assert "[y/N]" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "name",
    ["", "a" * 300, f"a/{'b' * 300}", f"/{'a' * 300}", "x\0y", "a\nb", "http://x/y", "a--b/c"],
)
def test_a_name_that_is_neither_a_path_nor_a_hub_id_is_refused_in_one_line(name: str) -> None:
    for function in (load, inspect_checkpoint):
        with pytest.raises(ModelError) as caught:
            function(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, (2**40).to_bytes(8, "little"), b"\x02\0"])
def test_damaged_weights_are_left_to_the_loader(content: bytes, model: Path) -> None:
    (model / "model.safetensors").write_bytes(content)
    assert inspect_checkpoint(model).structure.components
    with pytest.raises(ModelError, match="does not load"):
        load(model, device="cpu")


def test_a_link_to_weights_that_are_gone_is_left_to_the_loader(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(model / "blob")
    assert inspect_checkpoint(model).structure.components
    with pytest.raises(ModelError, match="does not load"):
        load(model, device="cpu")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_config.json", _ADAPTER, "is an adapter of 'llava-hf/llava-1.5-7b-hf'"),
        ("config.json", '{"model_type": "llama", "quantization_config": {"quant_method": "awq"}}',
         "is quantised (awq)"),
        ("config.json", '{"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}',
         "has LLaVA's own format"),
    ],
)  # fmt: skip
def test_a_hub_id_is_refused_by_its_downloaded_files(
    file: str, content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (downloaded("model", tmp_path, monkeypatch) / file).write_text(content)
    checked = invoke("check", write_study(Path("someone/model")), check=False)
    assert checked.returncode == 2
    assert message in checked.stderr
    with pytest.raises(ModelError) as caught:
        check_format("someone/model")
    assert f"{caught.value}\n" == checked.stderr


_TEXT_FILES = ("config.json", "generation_config.json", "processor_config.json", "tokenizer.json",
               "tokenizer_config.json", "chat_template.jinja")  # fmt: skip


@pytest.mark.parametrize("name", _TEXT_FILES)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_a_file_in_an_encoding_that_transformers_does_not_read_is_named(
    name: str, encoding: str, model: Path
) -> None:
    text = (model / name).read_text()
    marked = text.replace("{", '{"\u00e9": 1,', 1) if name.endswith(".json") else f"{text}\u00e9"
    (model / name).write_bytes(marked.encode(encoding))
    if (name, encoding) == ("chat_template.jinja", "utf-8-sig"):
        check_format(model)  # the mark is removed when it is loaded
        return
    with pytest.raises(ModelError, match=f"{name} is no (valid JSON|text in UTF-8)"):
        check_format(model)
