"""smollm-vlm, pruned mildly: a pretrained model whose answers depend on the picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from effllava_optuna import Policy, load, rank_units
from effllava_optuna.surgery import reduced_tokens, sliced

if TYPE_CHECKING:
    from effllava_optuna.policy import ComponentId
    from effllava_optuna.surgery import LoadedModel

BUILT = Path(os.environ.get("SMOLLM_BUILT", "benchmarks/smollm/built"))
PICTURES = sorted((BUILT / "packages" / "easy_vqa" / "data" / "test" / "images").glob("*.png"))


def mild_widths(loaded: LoadedModel) -> dict[ComponentId, int]:
    """Narrow three layers of the decoder: magnitude ruins it if more are narrowed."""
    return {
        c.id: 2 if c.kind == "attn" else 1216
        for c in loaded.structure.components
        if c.tower == "language" and c.layer in (17, 21, 26)
    }


def pruned_smollm(image_tokens: float = 1.0) -> LoadedModel:
    """Prune three layers of the decoder.

    Args:
        image_tokens: Share of the image tokens that stays.
    """
    loaded = load(BUILT / "smollm-vlm", device="cpu")
    widths = mild_widths(loaded)
    with reduced_tokens(loaded, image_tokens) as network:
        ranking = rank_units(loaded, importance="magnitude")
        return sliced(network, Policy.of(loaded.structure, widths), ranking)


@torch.no_grad()
def greedy_answer(small: LoadedModel, question: str, new_tokens: int) -> str:
    """Answer a question about the first picture in transformers."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = small.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    picture = Image.open(PICTURES[0]).convert("RGB")
    inputs = small.processor(text=prompt, images=picture, return_tensors="pt")
    tokens = small.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    answer: str = small.processor.tokenizer.decode(
        tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return answer.strip()
