"""What is written to GGUF files, read with the gguf package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch

from effllava_optuna import export, export_gguf, export_target, sliced
from effllava_optuna.errors import ExportError
from effllava_optuna.policy import Policy, Ranking
from effllava_optuna.surgery import FittedOutput, reduced_tokens
from tests.study_fixtures import invoke
from tests.surgery.gguf.pruned_decoders import KINDRED, Kindred, dense_decoder, pruned_decoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.surgery import LoadedModel


@pytest.fixture(autouse=True)
def _without_llama_cpp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EFFLLAVA_LLAMA_NODE", str(tmp_path))


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields and the tensors of a file."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(
            tuple(reversed(tensor.shape.tolist()))
        )
        for tensor in reader.tensors
    }
    return fields, tensors


def test_every_block_has_its_own_sizes(tmp_path: Path) -> None:
    small = pruned_decoder(KINDRED["SmolLM2"])
    verified = export_gguf(small, tmp_path / "a.gguf", kind="f32")
    assert (verified.architecture, verified.engine, verified.pictures) == ("deci", None, None)
    fields, tensors = read(verified.path)
    blocks = small.model.model.layers
    assert fields["deci.block_count"] == len(blocks) == 3
    assert fields["deci.feed_forward_length"] == [b.mlp.down_proj.in_features for b in blocks]
    assert fields["deci.attention.head_count"] == [2, 2, 4]
    assert fields["deci.attention.head_count_kv"] == [1, 1, 2]
    assert fields["tokenizer.ggml.pre"] == "smollm"
    assert "output.weight" not in tensors, "embeddings are tied"
    written = sum(values.size for values in tensors.values())
    assert written == small.model.num_parameters()
    up = blocks[2].mlp.up_proj.weight.numpy()
    np.testing.assert_array_equal(tensors["blk.2.ffn_up.weight"], up)


def test_rows_of_heads_are_interleaved(tmp_path: Path) -> None:
    """Row ``i`` of the first half of a head is followed by row ``i`` of the second half."""
    small = pruned_decoder(KINDRED["gpt-2"])
    _, tensors = read(export_gguf(small, tmp_path / "a.gguf", kind="f32").path)
    attention = small.model.model.layers[2].self_attn
    keys, written = attention.k_proj.weight.numpy(), tensors["blk.2.attn_k.weight"]
    for head in range(2):
        for row in range(16):
            for half in range(2):
                np.testing.assert_array_equal(
                    written[32 * head + 2 * row + half], keys[32 * head + 16 * half + row]
                )


@pytest.mark.parametrize("name", ["Qwen3", "Gemma", "Gemma 2", "Gemma 3"])
def test_other_architectures_are_padded_to_one_width(name: str, tmp_path: Path) -> None:
    small = pruned_decoder(KINDRED[name])
    verified = export_gguf(small, tmp_path / "a.gguf", kind="f32")
    assert verified.architecture == KINDRED[name].architecture
    fields, tensors = read(verified.path)
    blocks = small.model.model.layers
    width = max(block.mlp.down_proj.in_features for block in blocks)
    assert fields[f"{verified.architecture}.feed_forward_length"] == width
    shapes = {tensors[f"blk.{n}.ffn_down.weight"].shape for n in range(len(blocks))}
    assert shapes == {(128, width)}
    offset = 0.0 if name == "Qwen3" else 1.0
    norm = blocks[0].input_layernorm.weight.numpy() + offset
    np.testing.assert_array_equal(tensors["blk.0.attn_norm.weight"], norm)


def test_types_of_matrices(tmp_path: Path) -> None:
    """A matrix whose rows are not whole blocks of 32 numbers is written in float16."""
    small = pruned_decoder(KINDRED["gpt-2"])
    verified = export_gguf(small, tmp_path / "a.gguf", kind="q8_0")
    types = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(verified.path).tensors}
    names = gguf.GGMLQuantizationType
    width = small.model.model.layers[0].mlp.down_proj.in_features
    assert width % 32
    assert types["blk.0.ffn_down.weight"] == names.F16
    assert types["blk.0.ffn_up.weight"] == names.Q8_0
    assert types["blk.0.ffn_norm.weight"] == names.F32
    half = export_gguf(small, tmp_path / "b.gguf")
    assert verified.size < half.size == (tmp_path / "b.gguf").stat().st_size


@pytest.mark.parametrize(
    ("rule", "model", "pre"),
    [("gpt-2", "gpt2", "gpt-2"), ("smollm", "gpt2", "smollm"), ("llama-bpe", "gpt2", "llama-bpe"),
     ("qwen2", "gpt2", "qwen2"), ("sentencepiece", "llama", "default")],
)  # fmt: skip
def test_tokenizers(rule: str, model: str, pre: str, tmp_path: Path) -> None:
    loaded = dense_decoder(Kindred("LlamaConfig", rule))
    loaded.processor.chat_template = "{{ messages[0]['content'] }}"
    fields, _ = read(export_gguf(loaded, tmp_path / "a.gguf").path)
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == (model, pre)
    assert fields["tokenizer.chat_template"] == loaded.processor.chat_template
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens == loaded.processor.convert_ids_to_tokens(range(len(tokens)))
    assert fields["tokenizer.ggml.eos_token_id"] == 2
    assert fields["tokenizer.ggml.token_type"][:4] == [2 if model == "llama" else 3, 3, 3, 3]
    assert fields["tokenizer.ggml.add_bos_token"] is False


def refused(loaded: LoadedModel, directory: Path) -> str:
    """Return why a model is refused; nothing may be left."""
    with pytest.raises(ExportError) as caught:
        export_gguf(loaded, directory / "a.gguf")
    assert caught.value.hint
    assert not [*directory.iterdir()]
    return caught.value.message


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        (Kindred("LlamaConfig", "unknown"), "splits texts by a rule.*Split and ByteLevel"),
        (Kindred("OlmoConfig", "gpt-2"), "decoder of type 'olmo'"),
        (Kindred("MistralConfig", "gpt-2", settings={"sliding_window": 8}), "sliding window"),
        (Kindred("Gemma2Config", "gpt-2"), "scales attention by query_pre_attn_scalar = 256"),
        (
            Kindred(
                "LlamaConfig", "gpt-2",
                settings={"rope_parameters": {"rope_type": "dynamic", "factor": 2.0,
                                              "rope_theta": 1e4}},
            ),
            "rotates embeddings by .*dynamic",
        ),
    ],
)  # fmt: skip
def test_what_llama_cpp_has_not_is_refused(family: Kindred, reason: str, tmp_path: Path) -> None:
    message = refused(dense_decoder(family), tmp_path)
    assert re.search(reason, message)


def test_a_bias_that_only_deci_has(tmp_path: Path) -> None:
    for name, accepted in (("gpt-2", True), ("Qwen3", False)):
        loaded = dense_decoder(KINDRED[name])
        components = loaded.structure.components
        component = next(c for c in components if c.kind == "mlp")
        scores = {c.id: np.arange(c.width, dtype=np.float64) for c in components}
        widths = {component.id: 200}
        fitted = {(component.id, 200): FittedOutput(bias=torch.linspace(-1, 1, 128))}
        ranking = Ranking.from_scores(loaded.structure, "order", scores)
        small = sliced(loaded, Policy.of(loaded.structure, widths), ranking, fitted)
        if accepted:
            _, tensors = read(export_gguf(small, tmp_path / "a.gguf").path)
            number = component.layer
            assert tensors[f"blk.{number}.ffn_down.bias"].tolist() == pytest.approx(
                torch.linspace(-1, 1, 128).tolist()
            )
            (tmp_path / "a.gguf").unlink()
        else:
            assert "a bias that llama.cpp's qwen3 does not have" in refused(small, tmp_path)


@pytest.mark.parametrize("name", ["Gemma 2", "Gemma 3"])
def test_a_gemma_with_windows_keeps_its_blocks(name: str, tmp_path: Path) -> None:
    """The window of each block follows from its number."""
    small = pruned_decoder(KINDRED[name]._replace(architecture="gemma"))
    assert "lost blocks" in refused(small, tmp_path)


def test_blocks_of_gemma_3_rotate_by_their_kind(tmp_path: Path) -> None:
    fields, _ = read(export_gguf(pruned_decoder(KINDRED["Gemma 3, linear"]), tmp_path / "a").path)
    assert fields["gemma3.attention.sliding_window"] == 8
    assert (fields["gemma3.rope.freq_base"], fields["gemma3.rope.freq_base_swa"]) == (1e4, 500)
    assert (fields["gemma3.rope.scaling.type"], fields["gemma3.rope.scaling.factor"]) == (
        "linear", 4,
    )  # fmt: skip


def test_a_window_as_long_as_the_context_is_none(tmp_path: Path) -> None:
    wide = dense_decoder(Kindred("MistralConfig", "gpt-2", settings={"sliding_window": 10**6}))
    assert export_gguf(wide, tmp_path / "a.gguf").architecture == "deci"


def test_a_word_level_tokenizer_is_refused(
    make_llava: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    assert "of kind WordLevel" in refused(make_llava(), tmp_path)


def test_reduced_image_tokens_are_refused(
    make_llava: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    with reduced_tokens(make_llava(), 0.5) as reduced:
        assert "reduced image tokens" in refused(reduced, tmp_path)


def test_existing_files_are_kept(tmp_path: Path) -> None:
    small = pruned_decoder(KINDRED["gpt-2"])
    for name in ("a.gguf", "mmproj-a.gguf"):
        (tmp_path / name).write_text("years of work")
        with pytest.raises(ExportError, match="exists already"):
            export_gguf(small, tmp_path / "a.gguf")
        assert (tmp_path / name).read_text() == "years of work"
        (tmp_path / name).unlink()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export_target, "find_spec", lambda _: None)
    message = refused(pruned_decoder(KINDRED["gpt-2"]), tmp_path)
    assert message == "GGUF needs gguf, which is not installed."


@pytest.mark.exports
def test_an_earlier_export_is_written_by_the_command_line(tmp_path: Path) -> None:
    small = pruned_decoder(KINDRED["gpt-2"])
    export(small, tmp_path / "small.pruned")
    path = tmp_path / "a.gguf"
    done = invoke("export", tmp_path / "small.pruned", "--format", "gguf-f32", "--out", path)
    assert f"small.pruned exported to {path}: architecture deci" in done.stdout
    assert "not verified: llama.cpp was not found" in done.stdout
    _, tensors = read(path)
    again = export_gguf(small, tmp_path / "b.gguf", kind="f32")
    for name, values in read(again.path)[1].items():
        np.testing.assert_array_equal(values, tensors[name])
    refused = invoke("export", tmp_path / "small.pruned", "--format", "gguf", "--out", path,
                     check=False)  # fmt: skip
    assert refused.returncode == 2
    assert "exists already" in refused.stderr
