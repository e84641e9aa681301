"""Small models of families with their own processors, which insert the image tokens."""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.smolvlm import processing_smolvlm

from effllava_optuna.surgery import LoadedModel
from effllava_optuna.tasks.prompts import build_model_inputs
from tests.surgery.families import FAMILIES, Family

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SIDE = 56  # pixels; 16 patches
_SIZE = {"height": _SIDE, "width": _SIDE}
_LONGEST = {"size": {"longest_edge": 2 * _SIDE}, "max_image_size": {"longest_edge": _SIDE}}
_GRID = {"image_grid_pinpoints": [[_SIDE, _SIDE], [_SIDE, 2 * _SIDE], [2 * _SIDE, _SIDE]]}
_QWEN_14 = {"patch_size": 14, "min_pixels": 84**2, "max_pixels": 112**2}
_QWEN_16 = _QWEN_14 | {"patch_size": 16}
_CROPS = {"size": _SIZE, "crop_to_patches": True, "min_patches": 2, "max_patches": 4}
_LLAVA = {"patch_size": 14, "vision_feature_select_strategy": "default",
          "num_additional_image_tokens": 1}  # fmt: skip
_INTERNVL = {
    "start_image_token": "<img>", "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
}  # fmt: skip


_WORDS = (
    "what", "is", "in", "the", "picture", "?", "digit", "at", "top", "left", ":", "user",
    "assistant",
)  # fmt: skip


class Pictured(NamedTuple):
    """How the processor of a family is made.

    Attributes:
        processor: Its class.
        pixels: Module and prefix of its image processor.
        pixel_settings: Arguments of the image processor.
        settings: Further arguments of the processor.
        token: The image token.
        special: Further special tokens, by name.
        asked: The token of a prompt, if it is not the image token.
    """

    processor: str
    pixels: str
    pixel_settings: Mapping[str, Any]
    settings: Mapping[str, Any]
    token: str = "<image>"
    special: Mapping[str, str] | None = None
    asked: str = ""


PICTURED = {
    "llava": Pictured(
        "LlavaProcessor", "clip.CLIP", {"size": _SIZE, "do_center_crop": False}, _LLAVA
    ),
    "llava_next": Pictured(
        "LlavaNextProcessor", "llava_next.LlavaNext",
        {"size": {"shortest_edge": _SIDE}, "crop_size": _SIZE, **_GRID}, _LLAVA,
    ),
    "llava_onevision": Pictured(
        "LlavaOnevisionProcessor", "llava_onevision.LlavaOnevision", {"size": _SIZE, **_GRID},
        {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
    ),
    "paligemma": Pictured(
        "PaliGemmaProcessor", "siglip.Siglip", {"size": _SIZE, "image_seq_length": 16}, {}
    ),
    "gemma3": Pictured(
        "Gemma3Processor", "gemma3.Gemma3", {"size": _SIZE}, {"image_seq_length": 4},
        special={"boi_token": "<boi>", "eoi_token": "<eoi>"}, asked="<boi>",
    ),
    "idefics3": Pictured(
        "Idefics3Processor", "idefics3.Idefics3", _LONGEST, {"image_seq_len": 4}
    ),
    "smolvlm": Pictured("SmolVLMProcessor", "smolvlm.SmolVLM", _LONGEST, {"image_seq_len": 4}),
    "internvl": Pictured(
        "InternVLProcessor", "got_ocr2.GotOcr2", _CROPS, {"image_seq_length": 4},
        "<IMG_CONTEXT>", _INTERNVL,
    ),
    "aya_vision": Pictured(
        "AyaVisionProcessor", "got_ocr2.GotOcr2", _CROPS,
        {"patch_size": 14, "img_size": _SIDE, "downsample_factor": 2}, "<|IMG_PATCH|>",
        {"start": "<|START_OF_IMG|>", "end": "<|END_OF_IMG|>"}, "<image>",
    ),
    "qwen2_vl": Pictured("Qwen2VLProcessor", "qwen2_vl.Qwen2VL", _QWEN_14, {}, "<|image_pad|>"),
    "qwen2_5_vl": Pictured(
        "Qwen2_5_VLProcessor", "qwen2_vl.Qwen2VL", _QWEN_14, {}, "<|image_pad|>"
    ),
    "qwen3_vl": Pictured("Qwen3VLProcessor", "qwen2_vl.Qwen2VL", _QWEN_16, {}, "<|image_pad|>"),
    "qwen3_5": Pictured("Qwen3VLProcessor", "qwen2_vl.Qwen2VL", _QWEN_16, {}, "<|image_pad|>"),
}  # fmt: skip


@functools.cache
def load_pictured(name: str) -> LoadedModel:
    """Load a family with its processor. Tests must leave the model unchanged."""
    return build_pictured(FAMILIES[name], PICTURED[name], name)


def build_pictured(family: Family, made: Pictured, source: str) -> LoadedModel:
    """Build a model with a processor, for pictures of 56 x 56 pixels."""
    processing_smolvlm.num2words = str  # a package for the words of videos
    factory = getattr(transformers, made.processor)
    parts = inspect.signature(factory.__init__).parameters
    processor = _without_videos(factory)(
        image_processor=_image_processor(made),
        tokenizer=word_tokenizer(made.token, made.special or {}),
        **({"video_processor": None} if "video_processor" in parts else {}),
        **made.settings,
    )
    return LoadedModel.of(build_for(family, processor, made.token), processor, source)


def build_for(family: Family, processor: Any, token: str) -> Any:
    """Build a model with the image token of a processor, for pictures of 56 x 56 pixels."""
    settings = {**family.settings}
    if "image_size" in settings["vision_config"]:
        size = settings["vision_config"]["image_size"]
        sides = [_SIDE, _SIDE] if isinstance(size, list) else _SIDE
        settings["vision_config"] = {**settings["vision_config"], "image_size": sides}
    number = processor.tokenizer.convert_tokens_to_ids(token)
    for key in ("image_token_index", "image_token_id"):
        if key in settings:
            settings[key] = number
    if "video_token_id" in settings:
        settings["video_token_id"] = 63  # no other token has it
    if "image_grid_pinpoints" in settings:
        settings |= _GRID
    return family._replace(settings=settings).build()


def random_pictures(count: int = 2) -> list[Image.Image]:
    """Draw one or two pictures of unlike sizes."""
    rng = np.random.default_rng(0)
    sizes = ((70, 100, 3), (50, 50, 3))[:count]
    return [Image.fromarray(rng.integers(0, 256, size).astype(np.uint8)) for size in sizes]


def pictured_inputs(
    name: str, processor: Any, pictures: int = 2, questions: Sequence[str] = ("what", "at left ?")
) -> dict[str, Any]:
    """Encode questions about two pictures of unlike sizes, or the first of them."""
    shown = random_pictures(pictures)
    token = PICTURED[name].asked or PICTURED[name].token
    prompts = [f"{f'{token} user ' * pictures}{question}" for question in questions]
    return build_model_inputs(processor, prompts, [shown for _ in questions])


def _image_processor(made: Pictured) -> Any:
    family, _, prefix = made.pixels.partition(".")
    module = importlib.import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    return getattr(module, f"{prefix}ImageProcessorPil")(**made.pixel_settings)


def word_tokenizer(token: str, special: Mapping[str, str]) -> Any:
    """Build a tokenizer of words with an image token, and further special tokens by name."""
    words = dict.fromkeys(
        ["<pad>", "<s>", "</s>", "<image>", token, *special.values(), "<unk>", *_WORDS]
    )
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        extra_special_tokens={"image_token": token, **special},
    )


def _without_videos(base: Any) -> Any:
    """Return a class of processors that need no part for videos, which needs torchvision."""

    def check(self: Any, name: str, argument: Any) -> Any:
        if name != "video_processor":
            return base.check_argument_for_proper_class(self, name, argument)
        return None

    members = {"check_argument_for_proper_class": check, "__module__": base.__module__}
    return type(base.__name__, (base,), members)
