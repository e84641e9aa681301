"""The form of ``smollm-vlm``: a LLaVA of a small CLIP tower and SmolLM2-135M-Instruct."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from _adapters import adapter_tensors, merge_adapters
from _packages import HERE
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import LlamaForCausalLM
    from transformers import PreTrainedTokenizerBase as Tokenizer

WEIGHTS = HERE / "trained.safetensors"
ANSWER_END = "<|im_end|>"
_ADAPTERS = "adapters"
_IMAGE = "<image>"
_SIZE, _PATCH = 64, 8
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    f"{_IMAGE}" + "{{ '\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def prompt_parts(question: str) -> tuple[str, str]:
    """Return what stands before and after the picture in a prompt, as the template has it."""
    return (
        "<|im_start|>user\n",
        f"\n{question}<|im_end|>\n<|im_start|>assistant\n",
    )


def text_prompt(question: str) -> str:
    """Return the prompt of a question without a picture, as the template has it."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def pixels_of(images: Sequence[Path]) -> torch.Tensor:
    """Read pictures of 64 x 64 pixels; return (pictures, 3, 64, 64), normalised."""
    pixels = np.stack([np.asarray(Image.open(image).convert("RGB")) for image in images])
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in (_MEAN, _DEVIATION))
    return (scaled - mean) / deviation


@torch.no_grad()
def features_of(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Return what the projector receives of pictures, (pictures, patches, hidden)."""
    tower = model.model.vision_tower
    parts = torch.split(pixels.to(model.device), 200)
    return torch.cat([tower(part).last_hidden_state[:, 1:] for part in parts])


def assemble(
    language_model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    weights: Path | None,
    *,
    adapted: bool = True,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Put the model and its processor together.

    Args:
        language_model: The pretrained language model; it is changed.
        tokenizer: Its tokenizer; it gets the token of a picture.
        weights: Trained tower, projector and adapters; None: random tower and projector.
        adapted: Whether the adapters are merged into the language model.
    """
    tokenizer.add_special_tokens({"additional_special_tokens": [_IMAGE]})
    image_id = tokenizer.convert_tokens_to_ids(_IMAGE)
    language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=_SIZE,
            patch_size=_PATCH,
            projection_dim=128,
        ),
        text_config=language_model.config,
        image_token_index=image_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        image_seq_length=(_SIZE // _PATCH) ** 2,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    model.tie_weights()
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    if weights is not None:
        trained = load_file(weights)

        def of(part: str) -> dict[str, torch.Tensor]:
            prefix = f"{part}."
            return {k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)}

        for part in ("vision_tower", "multi_modal_projector"):
            getattr(model.model, part).load_state_dict(of(part))
        if adapted:
            merge_adapters(model.model.language_model, of(_ADAPTERS))
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": _SIZE}, crop_size={"height": _SIZE, "width": _SIZE}
        ),
        tokenizer=tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        chat_template=_TEMPLATE,
        image_token=_IMAGE,
        num_additional_image_tokens=1,
    )
    return model, processor


def card() -> str:
    """Return the model card."""
    return (HERE / "card.md").read_text(encoding="utf-8")


def save_trained(model: LlavaForConditionalGeneration, file: Path) -> None:
    """Write tower, projector and adapters, which are all that was trained, in float16."""
    trained = {
        name.removeprefix("model."): value
        for name, value in model.state_dict().items()
        if name.startswith(("model.vision_tower.", "model.multi_modal_projector."))
    } | {
        f"{_ADAPTERS}.{name}": value
        for name, value in adapter_tensors(model.model.language_model).items()
    }
    halves = {
        name: value.half() if value.is_floating_point() else value
        for name, value in trained.items()
    }
    save_file({name: value.contiguous() for name, value in halves.items()}, file)
