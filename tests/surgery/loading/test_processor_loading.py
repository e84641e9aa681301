"""Ordinary processors load, and a processor that cannot ask a question is refused in one line."""

from __future__ import annotations

import json
import shutil
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import Blip2Processor, LlavaNextProcessor

from effllava_optuna import load
from effllava_optuna.errors import ModelError
from effllava_optuna.surgery import LoadedModel, build_example_inputs
from effllava_optuna.surgery.loading.example_inputs import format_example
from effllava_optuna.surgery.loading.processor_loading import complete_processor, load_processor
from tests.surgery.families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Callable

_TEXT_TEMPLATES = {
    "adds strings": "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}",
    "prints the list": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}",
    "wants a string": "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}"
                      "{% endif %}{% endfor %}",
    "joins the texts": "{% for m in messages %}{% for part in m['content'] %}"
                       "{{ part['text'] }}{% endfor %}{% endfor %}",
    "raises": "{{ raise_exception('Only strings\nare supported.') }}",
    "calls a method": "{% for m in messages %}{{ m['content'].strip() }}{% endfor %}",
    "does not parse": "{% for m in messages %}{{ m['content'] }}",
    "has an unknown filter": "{% for m in messages %}{{ m['content'] | shout }}{% endfor %}",
}  # fmt: skip


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may change."""
    return shutil.copytree(checkpoint, tmp_path / "checkpoint")


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def forget(directory: Path, file: str, *keys: str) -> None:
    edit(directory / file, lambda document: [document.pop(key, None) for key in keys])


def test_a_tokenizer_without_a_padding_token_needs_no_padding(
    copied: Path, tiny: LoadedModel
) -> None:
    forget(copied, "tokenizer_config.json", "pad_token")
    forget(copied, "tokenizer.json", "padding")  # is there if it has padded before
    loaded = load(copied, device="cpu")
    assert loaded.processor.tokenizer.pad_token is None
    assert loaded.structure == tiny.structure
    assert len(build_example_inputs(loaded.processor)["input_ids"]) == 1


@pytest.mark.parametrize(
    "keys",
    [
        ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"),
        ("patch_size",),
        ("vision_feature_select_strategy",),
        ("num_additional_image_tokens",),
    ],
)
def test_a_processor_of_before_patch_size_takes_it_from_the_model(
    keys: tuple[str, ...], copied: Path, tiny: LoadedModel
) -> None:
    forget(copied, "processor_config.json", *keys)
    loaded = load(copied, device="cpu")
    assert loaded.structure == tiny.structure
    for key in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
        assert getattr(loaded.processor, key) == getattr(tiny.processor, key)
    expected = build_example_inputs(tiny.processor)
    for name, value in build_example_inputs(loaded.processor).items():
        assert torch.equal(value, expected[name])


def test_other_processors_take_from_the_model_what_they_lack(processor: Any) -> None:
    parts = processor.image_processor, processor.tokenizer
    old = LlavaNextProcessor(*parts)
    complete_processor(old, FAMILIES["llava_next"].build())
    assert (old.patch_size, old.num_additional_image_tokens) == (14, 1)
    assert old.vision_feature_select_strategy == "default"
    blip = FAMILIES["blip-2"].build()
    old = Blip2Processor(*parts)
    complete_processor(old, blip)
    assert old.num_query_tokens == blip.config.num_query_tokens


def test_what_a_processor_has_is_kept(processor: Any) -> None:
    own = LlavaNextProcessor(processor.image_processor, processor.tokenizer, patch_size=7)
    complete_processor(own, FAMILIES["llava_next"].build())
    assert own.patch_size == 7


@pytest.mark.parametrize("template", _TEXT_TEMPLATES.values(), ids=_TEXT_TEMPLATES)
def test_a_chat_template_that_asks_no_question_about_a_picture_is_refused(
    template: str, copied: Path
) -> None:
    (copied / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError) as caught:
        load(copied, device="cpu")
    assert str(caught.value).startswith(f"{str(copied)!r}: chat_template.jinja ")
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["chat_template.json", "processor_config.json"])
def test_the_file_of_a_chat_template_is_named(file: str, copied: Path) -> None:
    place = copied / file
    document = json.loads(place.read_text()) if place.exists() else {}
    place.write_text(json.dumps(document | {"chat_template": "{% if %}"}))
    with pytest.raises(ModelError, match=rf": {file} does not format a question about a pict"):
        load(copied, device="cpu")


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_of_a_text_decoder_that_does_not_parse_is_refused(
    file: str, tiny: LoadedModel, tmp_path: Path
) -> None:
    FAMILIES["llama"].build().save_pretrained(tmp_path)
    tiny.processor.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    if file.endswith(".jinja"):
        (tmp_path / file).write_text("{% for %}")
    else:
        edit(tmp_path / file, lambda document: document.update(chat_template="{% for %}"))
    with pytest.raises(ModelError, match=rf": {file} does not parse") as caught:
        load(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        _TEXT_TEMPLATES["adds strings"],
        "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}",
        "{{ raise_exception('A system turn is required.') }}",
    ],
)
def test_a_text_decoder_keeps_any_chat_template_that_parses(
    template: str, tiny: LoadedModel, tmp_path: Path
) -> None:
    FAMILIES["llama"].build().save_pretrained(tmp_path)
    tiny.processor.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    assert load(tmp_path, device="cpu").structure.components


def test_a_vision_language_model_with_a_tokenizer_alone_is_refused(copied: Path) -> None:
    for file in copied.glob("*processor*"):
        file.unlink()
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(ModelError) as caught:
        load(copied, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_processor_that_raises_is_refused_in_one_line(copied: Path) -> None:
    edit(
        copied / "processor_config.json",
        lambda document: document["image_processor"].update(image_mean=[0.5, 0.5]),
    )
    with pytest.raises(ModelError, match="does not encode an example: ValueError") as caught:
        load(copied, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_token_without_an_embedding_is_named(copied: Path) -> None:
    edit(
        copied / "tokenizer_config.json",
        lambda document: document.update(pad_token="[NEW]"),
    )
    with pytest.raises(ModelError, match=r"token '\[NEW\]' \(number \d+\), but \d+ embedd"):
        load(copied, device="cpu")


def test_the_template_of_the_tokenizer_is_used_if_the_processor_has_none(
    copied: Path, tiny: LoadedModel
) -> None:
    """It must show pictures: that of a text model is no template of the processor."""
    template = (copied / "chat_template.jinja").read_text()
    (copied / "chat_template.jinja").unlink()
    assert not load(copied, device="cpu").processor.chat_template
    file = copied / "tokenizer_config.json"
    for text in _TEXT_TEMPLATES.values():
        edit(file, partial(dict.update, chat_template=text))
        assert not load_processor(copied, "a", takes_images=True).chat_template
    edit(file, lambda document: document.update(chat_template=template))
    processor = load(copied, device="cpu").processor
    assert format_example(processor) == format_example(tiny.processor)


def test_a_tokenizer_that_encodes_a_question_as_one_token_is_refused(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    """Attention to one token would be verified without its queries and keys."""
    FAMILIES["llama"].build().save_pretrained(tmp_path)
    tiny.processor.tokenizer.save_pretrained(tmp_path)
    edit(
        tmp_path / "tokenizer.json",
        lambda document: document.update(pre_tokenizer=None, post_processor=None),
    )
    with pytest.raises(ModelError, match=r"encodes 'what is in the picture\?' as 1 tokens"):
        load(tmp_path, device="cpu")


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
def test_a_tokenizer_of_sentencepiece_names_the_package(copied: Path) -> None:
    """transformers asks for tiktoken instead."""
    (copied / "tokenizer.json").unlink()
    (copied / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    edit(
        copied / "tokenizer_config.json",
        lambda document: document.update(tokenizer_class="LlamaTokenizer"),
    )
    with pytest.raises(ModelError, match="needs sentencepiece, which is not installed") as caught:
        load(copied, device="cpu")
    assert "pip install sentencepiece" in caught.value.hint
