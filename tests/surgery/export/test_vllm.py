"""Native exports in stock vLLM, without a plug-in: the greedy tokens of transformers.

vLLM needs an environment of its own: ``EFFLLAVA_VLLM`` names its Python (docs/development.md says
how it is made). Without it, these tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from effllava_optuna import Policy, load, rank_units
from effllava_optuna.policy import Ranking
from effllava_optuna.surgery import LoadedModel, reduced_tokens, sliced
from effllava_optuna.surgery.export.checkpoint_files import size_plan, write_checkpoint
from tests.surgery.family_models import text_decoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import ComponentId

PYTHON = os.environ.get("EFFLLAVA_VLLM", "")
BUILT = Path(os.environ.get("SMOLLM_BUILT", "benchmarks/smollm/built"))
PROGRAM = Path(__file__).with_name("vllm_program.py")
SETTINGS: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 300, "max_position_embeddings": 512,
}  # fmt: skip
_PROMPT = "<|im_start|>user\n<image>\n{}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = [[5, 6, 7], [*range(20, 60)], [9] * 17, [*range(100, 290)]]
NEW_TOKENS = 10
TEXT: dict[str, Any] = {"max_model_len": 256, "skip_tokenizer_init": True}

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON, reason="EFFLLAVA_VLLM names no Python that has vLLM"),
]


def in_vllm(
    directory: Path, prompts: Sequence[Any], options: Mapping[str, Any], new_tokens: int
) -> list[list[int]]:
    """Return the greedy tokens of vLLM for each prompt."""
    request = {"prompts": prompts, "options": options, "new_tokens": new_tokens}
    command = [PYTHON, str(PROGRAM), str(directory), json.dumps(request)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=800
    )
    assert run.returncode == 0, run.stderr[-3000:]
    tokens: list[list[int]] = json.loads(run.stdout.splitlines()[-1])
    return tokens


@torch.no_grad()
def in_transformers(model: Any, prompt: list[int]) -> list[int]:
    """Return the greedy tokens of transformers."""
    inputs = torch.tensor([prompt])
    tokens = model.generate(
        inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False,
        attention_mask=torch.ones_like(inputs),
    )  # fmt: skip
    return list(tokens[0, len(prompt) :].tolist())


def uneven(config: str, **settings: Any) -> LoadedModel:
    """Prune heads, channels and a block of a decoder with random weights."""
    model = text_decoder(config, **SETTINGS, **settings)
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.dim() == 2:  # so large that answers do not repeat one token
            weight.data.normal_(0, 0.15, generator=generator)
    loaded = LoadedModel.of(model, None, config, depth=True)
    rng = np.random.default_rng(1)
    widths: dict[ComponentId, int] = {}
    for component in loaded.structure.components:
        if component.kind == "block":
            widths[component.id] = int(component.layer != 1)
        elif component.kind == "attn":
            widths[component.id] = 1 + component.layer % component.width
        else:
            widths[component.id] = int(rng.integers(40, component.width))
    scores = {c.id: rng.random(c.width) for c in loaded.structure.components}
    ranking = Ranking.from_scores(loaded.structure, "random", scores)
    return sliced(loaded, Policy.of(loaded.structure, widths), ranking)


@pytest.mark.parametrize("config", ["LlamaConfig", "Qwen2Config", "Qwen3Config", "MistralConfig"])
def test_uneven_layers_give_the_same_tokens(config: str, tmp_path: Path) -> None:
    small = uneven(config)
    write_checkpoint(small, tmp_path, size_plan(small))
    assert "per_layer_config" in (tmp_path / "config.json").read_text()
    expected = [in_transformers(small.model, prompt) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in expected}) == len(PROMPTS)
    assert in_vllm(tmp_path, PROMPTS, TEXT, NEW_TOKENS) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"enable_prefix_caching": True},
        {"enable_chunked_prefill": True, "max_num_batched_tokens": 64, "max_model_len": 256},
        {"enforce_eager": False},
    ],
    ids=["prefix cache", "chunked prefill", "compiled"],
)
def test_settings_of_the_engine_change_nothing(options: Mapping[str, Any], tmp_path: Path) -> None:
    small = uneven("LlamaConfig")
    write_checkpoint(small, tmp_path, size_plan(small))
    prompts = [[*range(60), index] for index in range(3)] + PROMPTS
    expected = [in_transformers(small.model, prompt) for prompt in prompts]
    assert in_vllm(tmp_path, prompts, {**TEXT, **options}, NEW_TOKENS) == expected


@pytest.mark.skipif(not (BUILT / "smollm-vlm").is_dir(), reason="smollm-vlm is not built")
@pytest.mark.parametrize("share", [1.0, 0.33])
def test_a_vision_language_model_answers_as_in_transformers(share: float, tmp_path: Path) -> None:
    loaded = load(BUILT / "smollm-vlm", device="cpu")
    widths = {  # magnitude ruins it if more layers are narrowed
        c.id: 2 if c.kind == "attn" else 1216
        for c in loaded.structure.components
        if c.tower == "language" and c.layer in (17, 21, 26)
    }
    with reduced_tokens(loaded, share) as network:
        ranking = rank_units(loaded, importance="magnitude")
        small = sliced(network, Policy.of(loaded.structure, widths), ranking)
    write_checkpoint(small, tmp_path, size_plan(small))
    pictures = sorted((BUILT / "packages" / "easy_vqa" / "data" / "test" / "images").glob("*.png"))
    questions = ("what color is the shape?", "what shape is in the image?")
    asked = [
        {"text": _PROMPT.format(question), "picture": str(picture)}
        for question, picture in zip(questions, pictures, strict=False)
    ]
    options = {"max_model_len": 256, "limit_mm_per_prompt": {"image": 1}}
    answers = in_vllm(tmp_path, asked, options, NEW_TOKENS)
    for request, answer in zip(asked, answers, strict=True):
        picture = Image.open(request["picture"]).convert("RGB")
        inputs = small.processor(text=request["text"], images=picture, return_tensors="pt")
        tokens = small.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        expected = tokens[0, inputs["input_ids"].shape[1] :].tolist()  # up to the end token
        assert answer[: len(expected)] == expected
        assert len(expected) > 1, "no answer"
