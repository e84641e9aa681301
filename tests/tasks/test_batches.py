"""From samples to tensors."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks import Batch, Digits, Sample, Split, encode
from effllava_optuna.tasks.batches import continuation, prompt

if TYPE_CHECKING:
    from effllava_optuna.surgery import Loaded

SAMPLES = Digits(proxy=8).samples(Split.PROXY)


def known(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor


class Letters:
    """A tokenizer in which an answer swallows the end of the prompt."""

    def encode(self, text: str, **_: object) -> list[int]:
        return [len(text)]


@pytest.fixture(scope="module")
def bpe() -> Any:
    """A byte-level BPE that, like those of real models, knows ' A' and 'A' as two tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["USER: A B C\nASSISTANT: A ASSISTANT: B"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def test_the_answer_is_the_token_that_follows_the_prompt(bpe: Any) -> None:
    spaced, alone = bpe.encode(" A"), bpe.encode("A")
    assert len(spaced) == len(alone) == 1
    assert spaced != alone
    assert continuation(bpe, "what is it? ASSISTANT:", "A")[1] == spaced


def test_after_a_line_break_the_answer_has_no_space(bpe: Any) -> None:
    assert continuation(bpe, "what is it?\nASSISTANT\n", "A")[1] == bpe.encode("A")


def test_an_answer_that_changes_the_prompt_is_refused() -> None:
    with pytest.raises(
        TaskError, match="answer 'A' changes the tokens of the prompt that ends in"
    ):
        continuation(Letters(), "assistant:", "A")


def test_the_prompt_ends_where_the_assistant_answers(processor: Any) -> None:
    assert prompt(processor, "what is it?") == "user: <image>\nwhat is it?\nassistant:"


@pytest.mark.parametrize(
    ("ending", "kept"), [("assistant: ", "assistant:"), ("assistant\n", "assistant\n")]
)
def test_a_trailing_space_is_dropped_and_a_line_break_kept(
    processor: Any, ending: str, kept: str
) -> None:
    other = copy.copy(processor)
    asked = "messages[0]['content'][1]['text']"
    other.chat_template = f"{{{{ {asked} + ' ' + {ending!r} }}}}"
    assert prompt(other, "why?") == f"why? {kept}"


def test_a_processor_without_a_chat_template_is_refused(processor: Any) -> None:
    other = copy.copy(processor)
    other.chat_template = None
    with pytest.raises(TaskError, match=r"LlavaProcessor cannot write a prompt.*chat_template"):
        encode(other, SAMPLES)


@pytest.mark.parametrize("size", [3, 8])
def test_batches_hold_the_samples_in_order_the_longest_first_if_there_are_several(
    processor: Any, size: int
) -> None:
    batches = encode(processor, SAMPLES, batch_size=size)
    assert [len(batch) for batch in batches] == ([3, 3, 2] if size == 3 else [8])
    expected = sorted(SAMPLES, key=lambda s: -len(s.question)) if size == 3 else SAMPLES
    assert [name for batch in batches for name in batch.ids] == [s.id for s in expected]
    assert [unit for batch in batches for unit in batch.units] == [s.unit for s in expected]
    answers = [answer for batch in batches for answer in known(batch.answers).tolist()]
    assert answers == [sample.answer for sample in expected]


def test_targets_are_the_tokens_of_the_answers(processor: Any, batch: Batch) -> None:
    words = processor.tokenizer.convert_ids_to_tokens(known(batch.targets)[0].tolist())
    assert tuple(words) == SAMPLES[0].targets


def test_prompts_are_padded_on_the_left(batch: Batch) -> None:
    mask = batch.inputs["attention_mask"]
    assert len(set(mask.sum(1).tolist())) > 1
    assert (mask.diff(dim=1) >= 0).all()
    assert (mask[:, -1] == 1).all()


def test_a_batch_gives_the_logits_of_single_samples(tiny: Loaded, batch: Batch) -> None:
    with torch.no_grad():
        together = tiny.model(**batch.inputs).logits[:, -1]
        alone = [
            tiny.model(**encode(tiny.processor, [sample])[0].inputs).logits[:, -1]
            for sample in SAMPLES[: len(batch)]
        ]
    assert together.std(0).max() > 0.1
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_a_template_that_writes_the_first_token_itself_does_not_get_two(
    processor: Any,
) -> None:
    other = copy.copy(processor)
    other.chat_template = "<s> " + processor.chat_template
    ids = encode(other, SAMPLES)[0].inputs["input_ids"]
    assert ((ids == processor.tokenizer.bos_token_id).sum(1) == 1).all()


def test_missing_targets_are_marked(processor: Any) -> None:
    fewer = replace(SAMPLES[0], targets=("1", "2"), answer=1)
    targets = known(encode(processor, [fewer, SAMPLES[1]])[0].targets)
    assert targets.shape == (2, len(SAMPLES[1].targets))
    assert (targets[0, 2:] == -1).all()
    assert (targets[0, :2] >= 0).all()
    assert (targets[1] >= 0).all()


def test_answers_that_begin_with_the_same_token_are_refused(processor: Any) -> None:
    twins = replace(SAMPLES[0], targets=("1", "one", "uno"), answer=0)
    with pytest.raises(TaskError, match=r"'proxy-0000': two of its answers begin with the same"):
        encode(processor, [twins])


def test_no_samples_are_refused(processor: Any) -> None:
    with pytest.raises(TaskError, match=r"no samples to encode\. Check the task's split sizes"):
        encode(processor, [])


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_pictures_of_any_mode_are_shown_as_rgb(processor: Any, mode: str) -> None:
    drawn = SAMPLES[0].picture()
    assert drawn is not None
    picture = drawn.convert("L").convert(mode)
    given = encode(processor, [replace(SAMPLES[0], image=picture)])[0].inputs["pixel_values"]
    rgb = encode(processor, [replace(SAMPLES[0], image=picture.convert("RGB"))])[0]
    assert given.shape == (1, 3, 32, 32)
    assert torch.equal(given, rgb.inputs["pixel_values"])


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2000)])
def test_pictures_of_any_size_fit(processor: Any, size: tuple[int, int]) -> None:
    sample = replace(SAMPLES[0], image=Image.new("RGB", size, "red"))
    assert encode(processor, [sample])[0].inputs["pixel_values"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize("size", [(0, 0), (0, 32), (32, 0)])
def test_a_picture_without_pixels_is_refused(processor: Any, size: tuple[int, int]) -> None:
    sample = replace(SAMPLES[0], image=Image.new("RGB", size))
    with pytest.raises(TaskError, match=r"'proxy-0000' has a picture of \(.*\) pixels\. Give"):
        encode(processor, [sample])


def test_a_question_that_names_the_image_token_is_refused(processor: Any) -> None:
    sample = replace(SAMPLES[0], question="what is in <image>?")
    with pytest.raises(TaskError, match=r"'proxy-0000' has '<image>' in its question\. Remove it"):
        encode(processor, [sample])


@pytest.mark.parametrize("where", [{"system": "see <image>"}, {"targets": ("<image>", "no")}])
def test_so_is_one_whose_system_turn_or_answers_do(processor: Any, where: dict[str, Any]) -> None:
    sample = replace(SAMPLES[0], answer=0, **where)
    with pytest.raises(TaskError, match="has '<image>' in its system turn or answers"):
        encode(processor, [sample])


def test_moving_a_batch_keeps_all_but_the_device(batch: Batch) -> None:
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in moved.inputs.values()} == {"meta"}
    assert known(moved.targets).device.type == known(moved.answers).device.type == "meta"
    assert (moved.ids, moved.units) == (batch.ids, batch.units)
    assert known(batch.targets).device.type == "cpu"


def test_an_empty_question_is_a_question(processor: Any) -> None:
    sample: Sample = replace(SAMPLES[0], question="")
    assert len(encode(processor, [sample, SAMPLES[1]])[0]) == 2
