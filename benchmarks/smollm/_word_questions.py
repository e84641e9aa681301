"""Questions about common words: those of the text study, and others that remind the adapters."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import torch
from _smollm_vlm import ANSWER_END, text_prompt
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM
    from transformers import PreTrainedTokenizerBase as Tokenizer

_COMMON, _ASKED = 6000, 600  # words, and those that the text study asks for
_LENGTH = 24  # tokens of an answer
_BATCH = 32


def word_question(word: str) -> str:
    """Return the question about a word."""
    return f"In one short sentence, what does the word '{word}' mean?"


def common_words(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Return the words that the text study asks for, and the other common words.

    The words are tokens; those of small numbers were merged first, because they are common.
    """
    texts = (tokenizer.decode([index]) for index in range(len(tokenizer)))
    words = [text.strip() for text in texts if re.fullmatch(r" [a-z]{5,10}", text)][:_COMMON]
    asked = np.random.default_rng(0).choice(words, _ASKED, replace=False).tolist()
    return asked, [word for word in words if word not in {*asked}]


class Reminders:
    """What the language model says about words, which adapters shall not unlearn.

    Adapters that learn from the questions about pictures alone change the rest of the language
    model. So their loss contains the divergence from the model without them, on its own answers
    about words that the text study does not ask for.

    Args:
        language_model: The model, without adapters.
        tokenizer: Its tokenizer.
        count: Number of words.
    """

    def __init__(
        self, language_model: LlamaForCausalLM, tokenizer: Tokenizer, count: int = 256
    ) -> None:
        _, words = common_words(tokenizer)
        chosen = np.random.default_rng(1).choice(words, count, replace=False)
        self._rows: list[tuple[torch.Tensor, int]] = []
        self._expected: list[torch.Tensor] = []
        (end,) = tokenizer(ANSWER_END, add_special_tokens=False).input_ids
        for start in range(0, count, _BATCH):
            prompts = [text_prompt(word_question(w)) for w in chosen[start : start + _BATCH]]
            for ids, prompt in _answered(language_model, tokenizer, prompts, end):
                self._rows.append((ids, prompt))
                self._expected.append(_said(language_model, ids, prompt))

    @torch.enable_grad()
    def loss(
        self, language_model: LlamaForCausalLM, count: int, rng: np.random.Generator
    ) -> torch.Tensor:
        """Return the mean divergence of answers that are drawn, in nats for each token.

        Args:
            language_model: The model, with adapters.
            count: Number of answers.
            rng: Draws them.
        """
        drawn = rng.choice(len(self._rows), count, replace=False)
        predicted = _log_probabilities(language_model, [self._rows[index] for index in drawn])
        divergences = [
            functional.kl_div(
                tokens, self._expected[index].float(), reduction="batchmean", log_target=True
            )
            for index, tokens in zip(drawn, predicted, strict=True)
        ]
        return torch.stack(divergences).mean()


@torch.no_grad()
def _answered(
    language_model: LlamaForCausalLM, tokenizer: Tokenizer, prompts: list[str], end: int
) -> list[tuple[torch.Tensor, int]]:
    """Return prompts with greedy answers, up to the end of the turn; and tokens of the prompt."""
    rows = []
    batch = tokenizer(
        prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    )
    made = language_model.generate(
        **batch, max_new_tokens=_LENGTH, do_sample=False, eos_token_id=end, pad_token_id=end
    )
    width = batch.input_ids.shape[1]
    for ids, mask in zip(made, batch.attention_mask, strict=True):
        prompt, answer = ids[:width][mask.bool()], ids[width:].tolist()
        length = answer.index(end) + 1 if end in answer else len(answer)
        rows.append((torch.cat([prompt, ids[width : width + length]]), len(prompt)))
    return rows


@torch.no_grad()
def _said(language_model: LlamaForCausalLM, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    (expected,) = _log_probabilities(language_model, [(ids, prompt)])
    return expected.half()  # a row takes megabytes


def _log_probabilities(
    language_model: LlamaForCausalLM, rows: list[tuple[torch.Tensor, int]]
) -> list[torch.Tensor]:
    """Return for each row the log-probabilities of its answer tokens, (tokens, vocabulary)."""
    length = max(len(ids) for ids, _ in rows)
    padded = torch.stack([functional.pad(ids, (0, length - len(ids))) for ids, _ in rows])
    states = language_model.model(input_ids=padded, use_cache=False).last_hidden_state
    return [
        language_model.lm_head(hidden[prompt - 1 : len(ids) - 1]).log_softmax(-1)
        for hidden, (ids, prompt) in zip(states, rows, strict=True)
    ]
