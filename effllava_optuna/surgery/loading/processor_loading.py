"""Load the processor of a checkpoint, complete it from the model, and check its chat template."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateSyntaxError
from transformers.utils import cached_file

from effllava_optuna.errors import ModelError, describe
from effllava_optuna.files import read_text
from effllava_optuna.processors import takes_pictures
from effllava_optuna.surgery.loading.example_inputs import (
    EXAMPLE_QUESTION,
    build_example_inputs,
    format_example,
)
from effllava_optuna.surgery.loading.one_line_errors import errors_in_one_line
from effllava_optuna.surgery.structure.inspection import language_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

# Where transformers looks for a template: the first file that has one takes precedence.
_PROCESSOR_TEMPLATES = ("processor_config.json", "chat_template.json", "chat_template.jinja")
_TOKENIZER_TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")
_FEWEST_TOKENS = 2  # attention to a single token depends on no query and no key
_CLASS_TOKENS = ("class_embedding", "cls_token")  # of a vision tower: one more image token


def load_processor(location: str | Path, source: str, *, takes_images: bool) -> Any:
    """Load the processor of a vision-language model, or the tokenizer of a text decoder.

    Args:
        location: A directory or a hub id.
        source: Name of the checkpoint in messages.
        takes_images: Whether it is a vision-language model.

    Raises:
        ModelError: There is no processor, or it or its chat template cannot be used.
    """
    with errors_in_one_line(source):
        # Not at the top: a torchvision that does not fit torch prevents this import.
        from transformers import AutoProcessor, AutoTokenizer

        factory = AutoProcessor if takes_images else AutoTokenizer
        with _sentencepiece_named(source):
            processor = factory.from_pretrained(location, trust_remote_code=False)
    if takes_images:
        for part in ("image_processor", "tokenizer"):
            if not hasattr(processor, part):
                raise ModelError(
                    f"{source!r} has a {type(processor).__name__} instead of a processor with "
                    f"{part.replace('_', ' ')}.",
                    hint="Use a complete checkpoint, with its processor_config.json.",
                )
        _adopt_template(processor)
    if getattr(processor, "chat_template", None):
        _remove_byte_order_mark(processor)
        _check_template(processor, location, source)
    return processor


@contextmanager
def _sentencepiece_named(source: str) -> Iterator[None]:
    """Name the package that a tokenizer.model needs; transformers asks for tiktoken."""
    try:
        yield
    except ValueError as error:
        if "`tiktoken` is required" not in str(error) or find_spec("sentencepiece") is not None:
            raise
        raise ModelError(
            f"The tokenizer of {source!r} needs sentencepiece, which is not installed.",
            hint="Run `pip install sentencepiece`, or add a tokenizer.json.",
        ) from error


def _adopt_template(processor: Any) -> None:
    """Use the chat template of the tokenizer if the processor has none and it shows pictures.

    Training programs store a template in tokenizer_config.json; a processor does not read it.
    """
    template = getattr(processor.tokenizer, "chat_template", None)
    if not template or getattr(processor, "chat_template", None):
        return
    processor.chat_template = template
    try:
        fault = _find_template_fault(processor)
    except Exception as error:  # a template may raise anything
        fault = describe(error)
    if fault:
        processor.chat_template = None


def _remove_byte_order_mark(processor: Any) -> None:
    """Remove the mark that some editors write at the start of a file from chat templates.

    transformers would write it at the start of every prompt.
    """
    for part in (processor, getattr(processor, "tokenizer", processor)):
        template = getattr(part, "chat_template", None)
        if isinstance(template, str):
            part.chat_template = template.removeprefix("\ufeff")
        elif isinstance(template, dict):
            part.chat_template = {
                name: text.removeprefix("\ufeff") for name, text in template.items()
            }


def encode_example(processor: Any, model: Any, source: str) -> dict[str, torch.Tensor]:
    """Complete the processor of a model, and encode the example inputs.

    Raises:
        ModelError: The processor cannot encode them, or it uses a token without an embedding.
    """
    complete_processor(processor, model)
    try:
        inputs = build_example_inputs(processor)
    except Exception as error:  # a processor may raise anything
        raise ModelError(
            f"The processor of {source!r} does not encode an example: {describe(error)}.",
            hint="Use the processor that belongs to the checkpoint.",
        ) from error
    rows, ids = model.get_input_embeddings().weight.shape[0], inputs["input_ids"]
    if ids.shape[1] < _FEWEST_TOKENS:
        raise ModelError(
            f"The tokenizer of {source!r} encodes {EXAMPLE_QUESTION!r} as {ids.shape[1]} tokens.",
            hint="Use the tokenizer that belongs to the checkpoint, in the class that "
            "tokenizer_config.json names.",
        )
    # Image tokens are replaced by features: some families have no embedding for them.
    outside = ids[(ids >= rows) & (ids != getattr(model.config, "image_token_id", -1))]
    if outside.numel():
        tokenizer, number = getattr(processor, "tokenizer", processor), int(outside[0])
        raise ModelError(
            f"The tokenizer of {source!r} has the token {tokenizer.decode([number])!r} (number "
            f"{number}), but {rows} embeddings are in the model.",
            hint="Use the tokenizer that belongs to the checkpoint.",
        )
    return inputs


def complete_processor(processor: Any, model: Any) -> None:
    """Set what a processor of an older version lacks, and what the model's configuration has.

    Processors of LLaVA had no ``patch_size`` before transformers 4.46, and no
    ``num_additional_image_tokens`` before 4.48; those of BLIP-2 had no ``num_query_tokens``.
    """
    config = model.config
    vision = getattr(config, "vision_config", None)
    if getattr(processor, "num_additional_image_tokens", None) == 0:  # also if it was not saved
        processor.num_additional_image_tokens = int(_has_class_token(model))
    for name, owner in (
        ("patch_size", vision),
        ("vision_feature_select_strategy", config),
        ("num_query_tokens", config),
    ):
        value = getattr(owner, name, None)
        if getattr(processor, name, 0) is None and value is not None:
            setattr(processor, name, value)


def _has_class_token(model: nn.Module) -> bool:
    decoder_weights = {id(weight) for weight in language_model(model).parameters()}
    return any(
        name.endswith(_CLASS_TOKENS) and id(weight) not in decoder_weights
        for name, weight in model.named_parameters()
    )


def _check_template(processor: Any, location: str | Path, source: str) -> None:
    """Check that the chat template formats a question about a picture, or parses at all.

    The template of a text model raises for the parts of a question, or writes them as a list, or
    leaves out the picture (LLaMA-Factory issue 5489).

    Raises:
        ModelError: It does not; the message names its file.
    """
    takes_images = takes_pictures(processor)
    file = _template_file(processor.chat_template, location, takes_images=takes_images)
    try:
        fault = _find_template_fault(processor) if takes_images else _find_syntax_error(processor)
    except Exception as error:  # a template may raise anything
        fault = f"does not format a question about a picture ({describe(error)})"
    if fault:
        raise ModelError(
            f"{source!r}: {file} {fault}.",
            hint="Use the chat template of a vision-language checkpoint: in it, the content of a "
            "message is a list of texts and pictures."
            if takes_images
            else "Use another chat template, or none.",
        )


def _find_template_fault(processor: Any) -> str:
    """Return what is wrong with a formatted question about a picture; empty if nothing is."""
    prompt, without_picture = (format_example(processor, pictures=count) for count in (1, 0))
    if any(f"{quote}type{quote}" in prompt for quote in "'\""):
        return "writes the parts of a message as a list"
    if EXAMPLE_QUESTION not in prompt:
        return "leaves out the text of a question about a picture"
    if prompt == without_picture:
        return "leaves out the picture of a question"
    return ""


def _find_syntax_error(tokenizer: Any) -> str:
    """Return why the template of a text decoder does not parse; empty if it does.

    Nothing says which conversations it supports, so that it may raise any other error.
    """
    conversation = [{"role": "user", "content": EXAMPLE_QUESTION}]
    try:
        tokenizer.apply_chat_template(conversation, tokenize=False)
    except TemplateSyntaxError as error:
        return f"does not parse ({describe(error)})"
    except Exception:
        return ""
    return ""


def _template_file(template: Any, location: str | Path, *, takes_images: bool) -> str:
    """Return the name of the file that a chat template was read from."""
    names = _PROCESSOR_TEMPLATES if takes_images else _TOKENIZER_TEMPLATES
    for name in names:
        file = cached_file(
            location,
            name,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if file is None:
            continue
        if name.endswith(".jinja") or '"chat_template"' in read_text(Path(file)):
            return name
    return f"the chat template of its {type(template).__name__}"
