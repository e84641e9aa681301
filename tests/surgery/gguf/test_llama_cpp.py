"""GGUF exports in llama.cpp: the greedy tokens of transformers.

llama.cpp comes with a Node package: ``EFFLLAVA_LLAMA_NODE`` names a directory in whose
``node_modules`` it is (docs/development.md says how it is made). Where ``llama-server`` is on the
path, each test runs with it, too. What is missing is skipped.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import pytest
import torch

from effllava_optuna import Policy, export_gguf, load, rank_units, sliced
from effllava_optuna.errors import ExportError
from effllava_optuna.surgery.gguf import gguf_export, tensors
from effllava_optuna.surgery.gguf.architectures import Architecture
from effllava_optuna.surgery.gguf.llama_cpp import VARIABLE, find_llama_cpp
from effllava_optuna.surgery.gguf.llama_server import PROGRAM
from effllava_optuna.surgery.gguf.tensors import TYPES
from effllava_optuna.surgery.loading.example_inputs import EXAMPLE_QUESTION
from tests.surgery.export.pretrained_model import BUILT, mild_widths
from tests.surgery.gguf.pruned_decoders import (
    KINDRED,
    decoder_that_ends,
    pruned_decoder,
    pruned_llava,
)

if TYPE_CHECKING:
    from effllava_optuna.surgery.gguf.tensors import GgufType

pytestmark = pytest.mark.llama_cpp
needs_smollm = pytest.mark.skipif(
    not (BUILT / "smollm-vlm").is_dir(), reason="smollm-vlm is not built"
)


@pytest.fixture(params=["Node package", PROGRAM], autouse=True)
def _engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == PROGRAM:
        if shutil.which(PROGRAM) is None:
            pytest.skip(f"{PROGRAM} is not on the path")
        monkeypatch.delenv(VARIABLE, raising=False)
    elif not os.environ.get(VARIABLE) or find_llama_cpp() is None:
        pytest.skip(f"{VARIABLE} names no directory with llama.cpp")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", KINDRED)
def test_families_answer_as_in_transformers(name: str, kind: GgufType, tmp_path: Path) -> None:
    verified = export_gguf(pruned_decoder(KINDRED[name]), tmp_path / "a.gguf", kind=kind)
    assert verified.engine
    assert verified.architecture == KINDRED[name].architecture
    if kind == "f32":  # two answers of 24 tokens, without a tie
        assert verified.tokens == 48


@pytest.mark.parametrize("token", ["<|endoftext|>", "<pad>"])
def test_an_answer_with_a_special_token(token: str, tmp_path: Path) -> None:
    """llama.cpp takes one for the end by its name, and transformers none of them."""
    whole = decoder_that_ends(token, EXAMPLE_QUESTION)
    ends = whole.processor.convert_tokens_to_ids(token)
    tokens = whole.processor(EXAMPLE_QUESTION, return_tensors="pt")
    answer = whole.model.generate(**tokens, max_new_tokens=24, do_sample=False)[0].tolist()
    shorter = answer.index(ends) - tokens["input_ids"].shape[1] + 1
    assert shorter > 1
    verified = export_gguf(whole, tmp_path / "a.gguf", kind="f32")
    assert verified.tokens <= shorter + 24


def test_another_matrix_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of weights that were damaged while they were written."""
    small = pruned_decoder(KINDRED["gpt-2"])
    add_weight = tensors.add_weight

    def damage(writer: Any, name: str, weight: torch.Tensor, kind: GgufType) -> None:
        add_weight(writer, name, weight.flip(0) if "2.ffn_up" in name else weight, kind)

    monkeypatch.setattr("effllava_optuna.surgery.gguf.decoder.add_weight", damage)
    with pytest.raises(ExportError, match=r"llama\.cpp computes other probabilities"):
        export_gguf(small, tmp_path / "a.gguf")
    assert not [*tmp_path.iterdir()]


def test_another_rule_of_splitting_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "effllava_optuna.surgery.gguf.tokenizers._splitting_rule", lambda _: "smollm"
    )
    with pytest.raises(ExportError, match="other tokens than transformers"):
        export_gguf(pruned_decoder(KINDRED["gpt-2"]), tmp_path / "a.gguf")


def test_a_file_that_does_not_load_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """llama.cpp's architecture ``llama`` has one width for all blocks."""
    llama = Architecture("llama", by_block=True, interleaved=True)
    monkeypatch.setattr(gguf_export, "architecture_of", lambda *_: llama)
    with pytest.raises(ExportError, match=r"llama\.cpp .* does not run the GGUF export"):
        export_gguf(pruned_decoder(KINDRED["gpt-2"]), tmp_path / "a.gguf")


@needs_smollm
def test_a_pretrained_decoder(tmp_path: Path) -> None:
    loaded = load(BUILT / "smollm2", device="cpu")
    policy = Policy.of(loaded.structure, mild_widths(loaded))
    small = sliced(loaded, policy, rank_units(loaded, importance="magnitude"))
    dense = export_gguf(loaded, tmp_path / "dense.gguf")
    verified = export_gguf(small, tmp_path / "small.gguf")
    assert verified.size < dense.size
    assert verified.tokens >= 4


@needs_smollm
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_a_question_about_a_picture(kind: GgufType, tmp_path: Path) -> None:
    """Of a LLaVA whose tower lost heads, and is as wide as its input in two blocks."""
    loaded = load(BUILT / "smollm-vlm", device="cpu", towers=("language", "vision"))
    widths = mild_widths(loaded)
    for component in loaded.structure.components:
        if component.tower == "vision":
            widths[component.id] = 3 if component.kind == "attn" else 128 + 64 * component.layer
    small = sliced(
        loaded, Policy.of(loaded.structure, widths), rank_units(loaded, importance="magnitude")
    )
    verified = export_gguf(small, tmp_path / "a.gguf", kind=kind)
    assert verified.pictures == str(tmp_path / "mmproj-a.gguf")
    assert Path(verified.pictures).stat().st_size > 1e6
    assert verified.tokens > 2
    assert verified.engine is not None
    if "1.7.15" in verified.engine:  # a later build may be mended
        assert verified.class_last


@pytest.mark.parametrize("tower", ["siglip", "clip"])
@pytest.mark.parametrize("kind", TYPES)
def test_towers_of_a_llava(tower: str, kind: GgufType, tmp_path: Path) -> None:
    """The features of CLIP are those before its last block."""
    small = pruned_llava(tower)
    verified = export_gguf(small, tmp_path / "a.gguf", kind=kind)
    assert verified.tokens >= (24 if kind == "f32" else 0)  # others have ties early
    assert verified.engine is not None
    if tower == "siglip" or "1.7.15" in verified.engine:  # a later build may be mended
        assert verified.class_last is (tower == "clip")
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "mmproj-a.gguf").tensors}
    assert ("v.class_embd" in names) == (tower == "clip")
    assert ("v.blk.2.ln1.weight" in names) == (tower == "siglip")
