"""Prompts from a chat template."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.prompts import append_answer, format_prompt, require_answers_last


class MergingTokenizer:
    """A tokenizer that merges an answer with the end of the prompt."""

    def encode(self, text: str, **_: object) -> list[int]:
        return [len(text)]


@pytest.fixture(scope="module")
def bpe() -> Any:
    """Return a byte-level BPE in which ' A' and 'A' are two tokens, as in real models."""
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
    assert append_answer(bpe, "what is it? ASSISTANT:", "A")[1] == spaced


def test_after_a_line_break_no_space_precedes_the_answer(bpe: Any) -> None:
    assert append_answer(bpe, "what is it?\nASSISTANT\n", "A")[1] == bpe.encode("A")


def test_an_answer_that_changes_the_prompt_is_refused() -> None:
    with pytest.raises(
        TaskError, match="answer 'A' changes the tokens of the prompt that ends in"
    ):
        append_answer(MergingTokenizer(), "assistant:", "A")


def test_the_prompt_ends_before_the_answer(processor: Any) -> None:
    assert format_prompt(processor, "what is it?") == "user: <image>\nwhat is it?\nassistant:"


def test_a_system_turn_comes_first(processor: Any) -> None:
    text = format_prompt(processor, "why?", system="be brief.", pictures=0)
    assert text == "system: be brief.\nuser: why?\nassistant:"


@pytest.mark.parametrize(
    ("ending", "kept"), [("assistant: ", "assistant:"), ("assistant\n", "assistant\n")]
)
def test_a_trailing_space_is_dropped_and_a_line_break_kept(
    processor: Any, ending: str, kept: str
) -> None:
    other = copy.copy(processor)
    asked = "messages[0]['content'][1]['text']"
    other.chat_template = f"{{{{ {asked} + ' ' + {ending!r} }}}}"
    assert format_prompt(other, "why?") == f"why? {kept}"


def test_a_template_that_fails_is_an_error_of_one_line(processor: Any) -> None:
    """Templates raise errors of many classes, such as one for a system turn."""
    for template, message in (
        ("{{ messages[0]['content'] + 'text' }}", "TypeError"),
        ("{{ raise_exception('No system\nturn.') }}", "No system"),
        ("{{ messages[7]['content'] }}", "UndefinedError"),
        ("{% if %}", "TemplateSyntaxError"),
    ):
        other = copy.copy(processor)
        other.chat_template = template
        with pytest.raises(TaskError, match=message) as caught:
            format_prompt(other, "why?", system="be brief")
        assert "\n" not in str(caught.value)
        assert "chat template" in caught.value.hint


def test_prompts_that_do_not_end_with_their_answers_are_refused() -> None:
    """As those of PaliGemma, whose processor adds a line break."""
    inputs = {"input_ids": torch.tensor([[0, 5, 6], [4, 5, 7]])}
    require_answers_last(inputs, [[5, 6], [7]])
    require_answers_last(inputs, [[], [4, 5, 7]])
    with pytest.raises(TaskError, match="adds tokens after an answer"):
        require_answers_last(inputs, [[5, 6], [5]])
