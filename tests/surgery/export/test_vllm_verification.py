"""Exports that are verified in vLLM, and what is refused."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from effllava_optuna import load_pruned
from effllava_optuna.errors import ExportError
from effllava_optuna.surgery import LoadedModel, Verification, export
from effllava_optuna.surgery.export.checkpoint_files import size_plan, write_checkpoint
from effllava_optuna.surgery.export.vllm_verification import verify_in_vllm
from effllava_optuna.vllm_package import VARIABLE
from tests.study_fixtures import SMOKE, invoke
from tests.surgery.export.engine_families import decoder, large_enough, prune_in_every_way

if TYPE_CHECKING:
    from pathlib import Path

IN_VLLM = Verification(engine="vllm")
INPUTS = {
    "input_ids": torch.tensor([[0, 5, 6, 7], [20, 30, 40, 50]]),
    "attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]),
}


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, sys.executable)


@pytest.mark.usefixtures("without_vllm")
def test_without_vllm_nothing_is_written(
    pruned: LoadedModel, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = rf"{VARIABLE} is .*, which has no vLLM to verify the export with\. Make an environ"
    with pytest.raises(ExportError, match=message):
        export(pruned, tmp_path / "small", verification=IN_VLLM)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "python"))
    with pytest.raises(ExportError, match=r"/python', which has no vLLM"):
        export(pruned, tmp_path / "small", verification=IN_VLLM)
    words = ("export", checkpoint, "--visual-tokens", 0.5, "--verify-with", "vllm")
    done = invoke(*words, "--out", tmp_path / "small", check=False)
    assert done.returncode == 2
    assert "which has no vLLM to verify the export with. Make an environment" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ExportError, match=r"^There is no vLLM to verify the export with\. Make"):
        export(pruned, tmp_path / "small", verification=IN_VLLM)
    assert not any(tmp_path.iterdir())


def test_a_file_for_onnxruntime_is_not_verified_in_vllm(tmp_path: Path) -> None:
    words = ("export", SMOKE, "--format", "onnx", "--verify-with", "vllm")
    done = invoke(*words, "--out", tmp_path / "a.onnx", check=False)
    assert done.returncode == 2
    assert "--format onnx, which vLLM does not load. Use native or portable" in done.stderr


@pytest.mark.exports
def test_an_export_says_that_no_engine_has_run_it(pruned: LoadedModel, tmp_path: Path) -> None:
    assert export(pruned, tmp_path / "small").engines == ()
    assert json.loads((tmp_path / "small" / "verified.json").read_text())["engines"] == []
    assert "It was not run in an engine." in (tmp_path / "small" / "README.md").read_text()


@pytest.mark.vllm
@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no Python with vLLM")
class TestInVllm:
    def test_the_command_verifies_text_and_pictures(self, tmp_path: Path) -> None:
        dense = large_enough("llava")
        dense.model.save_pretrained(tmp_path / "dense")
        dense.processor.save_pretrained(tmp_path / "dense")
        out = tmp_path / "small"
        words = ("export", tmp_path / "dense", "--visual-tokens", 0.5, "--verify-with", "vllm")
        done = invoke(*words, "--out", out)
        assert "same generation: yes, in vllm 0." in done.stdout
        (engine,) = json.loads((out / "verified.json").read_text())["engines"]
        assert engine.startswith("vllm 0.")
        card = (out / "README.md").read_text()
        assert f"Verified in {engine.replace('vllm', 'vLLM')}: the same greedy tokens" in card
        assert load_pruned(out, device="cpu").visual_tokens is not None

    def test_a_decoder_without_a_tokenizer_is_verified_on_tokens(self, tmp_path: Path) -> None:
        small = prune_in_every_way(decoder("llama"))
        half = replace(small, model=small.model.to(torch.bfloat16))
        verified = export(half, tmp_path / "small", verification=Verification(INPUTS, "vllm"))
        assert [engine.partition(" ")[0] for engine in verified.engines] == ["vllm"]

    def test_what_vllm_does_not_load_is_not_written(
        self, pruned: LoadedModel, tmp_path: Path
    ) -> None:
        message = r"The export of tiny LlamaConfig does not run in vLLM: .*head.*\. Nothing was"
        with pytest.raises(ExportError, match=message):  # no attention kernel has 8 columns
            export(pruned, tmp_path / "small", verification=IN_VLLM)
        assert not any(tmp_path.iterdir())

    def test_other_tokens_are_refused(self, tmp_path: Path) -> None:
        small = prune_in_every_way(decoder("llama"))
        write_checkpoint(small, tmp_path, size_plan(small))
        small.model.lm_head.weight.data *= -1
        message = r"does not answer row 0 of the inputs as in transformers: tokens \[.*\] in vllm"
        with pytest.raises(ExportError, match=message):
            verify_in_vllm(small, tmp_path, INPUTS)


def test_inputs_with_pictures_cannot_be_prompts_of_an_engine(
    pruned: LoadedModel, tmp_path: Path
) -> None:
    inputs = INPUTS | {"pixel_values": torch.zeros(2, 3, 32, 32)}
    message = r"cannot be verified in vLLM on inputs with pixel_values\. Export it with its proc"
    with pytest.raises(ExportError, match=message):
        verify_in_vllm(replace(pruned, processor=None), tmp_path, inputs)
