"""Native exports in stock vLLM, without a plug-in: settings of the engine, and a pretrained model.

vLLM needs an environment of its own: ``EFFLLAVA_VLLM`` names its Python (docs/development.md says
how it is made). Without it, these tests are skipped.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from effllava_optuna.surgery.export.checkpoint_files import size_plan, write_checkpoint
from effllava_optuna.surgery.export.vllm_verification import vllm_process
from effllava_optuna.vllm_package import VARIABLE
from tests.surgery.export.engine_families import decoder, greedy_tokens, prune_in_every_way
from tests.surgery.export.pretrained_model import BUILT, PICTURES, pruned_smollm

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PROMPT = "<|im_start|>user\n<image>\n{}<|im_end|>\n<|im_start|>assistant\n"
NEW_TOKENS = 10

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no Python with vLLM"),
]


@pytest.mark.parametrize(
    "options",
    [
        {"enable_prefix_caching": True},
        {"enable_chunked_prefill": True, "max_num_batched_tokens": 64},
        {"enforce_eager": False},
    ],
    ids=["prefix cache", "chunked prefill", "compiled"],
)
def test_settings_of_the_engine_change_nothing(options: Mapping[str, Any], tmp_path: Path) -> None:
    small = prune_in_every_way(decoder("llama"))
    write_checkpoint(small, tmp_path, size_plan(small))
    assert "per_layer_config" in (tmp_path / "config.json").read_text()
    prompts = [[*range(60), index] for index in range(3)] + [
        [5, 6, 7],
        [9] * 17,
        [*range(100, 290)],
    ]
    expected = []
    for prompt in prompts:
        inputs = torch.tensor([prompt])
        encoded = {"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}
        expected.append(greedy_tokens(small.model, encoded, NEW_TOKENS))
    settings = {"max_model_len": 256, "skip_tokenizer_init": True, **options}
    with vllm_process() as engine:
        answers = engine.generate(tmp_path, prompts, settings, NEW_TOKENS)
    assert answers.tokens == expected


@pytest.mark.skipif(not (BUILT / "smollm-vlm").is_dir(), reason="smollm-vlm is not built")
@pytest.mark.parametrize("share", [1.0, 0.33])
def test_a_vision_language_model_answers_as_in_transformers(share: float, tmp_path: Path) -> None:
    small = pruned_smollm(share)
    write_checkpoint(small, tmp_path, size_plan(small))
    questions = ("what color is the shape?", "what shape is in the image?")
    asked = [
        {"text": _PROMPT.format(question), "picture": str(picture)}
        for question, picture in zip(questions, PICTURES, strict=False)
    ]
    options = {"max_model_len": 256, "limit_mm_per_prompt": {"image": 1}}
    with vllm_process() as engine:
        answers = engine.generate(tmp_path, asked, options, NEW_TOKENS).tokens
    for request, answer in zip(asked, answers, strict=True):
        picture = Image.open(request["picture"]).convert("RGB")
        inputs = small.processor(text=request["text"], images=picture, return_tensors="pt")
        tokens = small.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        expected = tokens[0, inputs["input_ids"].shape[1] :].tolist()  # up to the end token
        assert answer[: len(expected)] == expected
        assert len(expected) > 1, "no answer"
