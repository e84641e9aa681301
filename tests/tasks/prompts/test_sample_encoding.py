"""Encoding of samples as batches."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks import Batch, Digits, Sample, Split, encode_with_answers

if TYPE_CHECKING:
    from effllava_optuna.surgery import LoadedModel

SAMPLES = Digits(proxy=8).samples(Split.PROXY)


def required(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor


def test_a_processor_without_a_chat_template_is_refused(processor: Any) -> None:
    other = copy.copy(processor)
    other.chat_template = None
    with pytest.raises(TaskError, match=r"LlavaProcessor cannot format a prompt.*chat_template"):
        encode_with_answers(other, SAMPLES)


@pytest.mark.parametrize("size", [3, 8])
def test_samples_keep_their_order_unless_several_batches_start_with_the_longest(
    processor: Any, size: int
) -> None:
    batches = encode_with_answers(processor, SAMPLES, batch_size=size)
    assert [len(batch) for batch in batches] == ([3, 3, 2] if size == 3 else [8])
    expected = sorted(SAMPLES, key=lambda s: -len(s.question)) if size == 3 else SAMPLES
    assert [name for batch in batches for name in batch.ids] == [s.id for s in expected]
    assert [group for batch in batches for group in batch.groups] == [s.group for s in expected]
    answers = [answer for batch in batches for answer in required(batch.answers).tolist()]
    assert answers == [sample.answer for sample in expected]


def test_targets_are_the_tokens_of_the_answers(processor: Any, batch: Batch) -> None:
    words = processor.tokenizer.convert_ids_to_tokens(required(batch.targets)[0].tolist())
    assert tuple(words) == SAMPLES[0].targets


def test_prompts_are_padded_on_the_left(batch: Batch) -> None:
    mask = batch.inputs["attention_mask"]
    assert len(set(mask.sum(1).tolist())) > 1
    assert (mask.diff(dim=1) >= 0).all()
    assert (mask[:, -1] == 1).all()


def test_a_batch_gives_the_logits_of_single_samples(tiny: LoadedModel, batch: Batch) -> None:
    with torch.no_grad():
        together = tiny.model(**batch.inputs).logits[:, -1]
        alone = [
            tiny.model(**encode_with_answers(tiny.processor, [sample])[0].inputs).logits[:, -1]
            for sample in SAMPLES[: len(batch)]
        ]
    assert together.std(0).max() > 0.1
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_a_template_with_a_first_token_does_not_get_a_second_one(
    processor: Any,
) -> None:
    other = copy.copy(processor)
    other.chat_template = "<s> " + processor.chat_template
    ids = encode_with_answers(other, SAMPLES)[0].inputs["input_ids"]
    assert ((ids == processor.tokenizer.bos_token_id).sum(1) == 1).all()


def test_missing_targets_are_minus_one(processor: Any) -> None:
    fewer = replace(SAMPLES[0], targets=("1", "2"), answer=1)
    targets = required(encode_with_answers(processor, [fewer, SAMPLES[1]])[0].targets)
    assert targets.shape == (2, len(SAMPLES[1].targets))
    assert (targets[0, 2:] == -1).all()
    assert (targets[0, :2] >= 0).all()
    assert (targets[1] >= 0).all()


def test_answers_that_begin_with_the_same_token_are_refused(processor: Any) -> None:
    twins = replace(SAMPLES[0], targets=("1", "one", "uno"), answer=0)
    with pytest.raises(TaskError, match=r"'proxy-0000': two of its answers begin with the same"):
        encode_with_answers(processor, [twins])


def test_an_empty_list_of_samples_is_refused(processor: Any) -> None:
    with pytest.raises(TaskError, match=r"no samples to encode\. Check the task's split sizes"):
        encode_with_answers(processor, [])


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_images_of_any_mode_are_converted_to_rgb(processor: Any, mode: str) -> None:
    drawn = SAMPLES[0].load_image()
    assert drawn is not None
    image = drawn.convert("L").convert(mode)
    converted = encode_with_answers(processor, [replace(SAMPLES[0], image=image)])[0].inputs[
        "pixel_values"
    ]
    rgb = encode_with_answers(processor, [replace(SAMPLES[0], image=image.convert("RGB"))])[0]
    assert converted.shape == (1, 3, 32, 32)
    assert torch.equal(converted, rgb.inputs["pixel_values"])


@pytest.mark.parametrize("size", [(0, 0), (0, 32), (32, 0)])
def test_an_image_without_pixels_is_refused(processor: Any, size: tuple[int, int]) -> None:
    sample = replace(SAMPLES[0], image=Image.new("RGB", size))
    with pytest.raises(
        TaskError, match=r"image of sample 'proxy-0000' has the size \(.*\)\. Replace"
    ):
        encode_with_answers(processor, [sample])


def test_a_question_with_the_image_token_is_refused(processor: Any) -> None:
    sample = replace(SAMPLES[0], question="what is in <image>?")
    with pytest.raises(TaskError, match=r"'proxy-0000' has '<image>' in its question\. Remove it"):
        encode_with_answers(processor, [sample])


@pytest.mark.parametrize("where", [{"system": "see <image>"}, {"targets": ("<image>", "no")}])
def test_a_system_turn_or_an_answer_with_the_image_token_is_refused(
    processor: Any, where: dict[str, Any]
) -> None:
    sample = replace(SAMPLES[0], answer=0, **where)
    with pytest.raises(TaskError, match="has '<image>' in its system turn or answers"):
        encode_with_answers(processor, [sample])


def test_moving_a_batch_changes_only_the_device(batch: Batch) -> None:
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in moved.inputs.values()} == {"meta"}
    assert required(moved.targets).device.type == required(moved.answers).device.type == "meta"
    assert (moved.ids, moved.groups) == (batch.ids, batch.groups)
    assert required(batch.targets).device.type == "cpu"


def test_an_empty_question_is_accepted(processor: Any) -> None:
    sample: Sample = replace(SAMPLES[0], question="")
    assert len(encode_with_answers(processor, [sample, SAMPLES[1]])[0]) == 2


@pytest.mark.parametrize("end", ["</s>", None])
def test_a_tokenizer_without_a_padding_token_pads_with_another(
    end: str | None, processor: Any, batch: Batch
) -> None:
    """The attention mask hides padding, whatever its token is (transformers issue 22312)."""
    other = copy.deepcopy(processor)
    other.tokenizer.pad_token = None
    other.tokenizer.eos_token = end
    (encoded,) = encode_with_answers(other, batch.samples)
    mask = batch.inputs["attention_mask"]
    assert torch.equal(encoded.inputs["attention_mask"], mask)
    masked_ids = encoded.inputs["input_ids"] * mask
    assert torch.equal(masked_ids, batch.inputs["input_ids"] * mask)
    assert other.tokenizer.pad_token is None
