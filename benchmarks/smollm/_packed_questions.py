"""Questions about pictures, packed so that those of one picture share its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from _smollm_vlm import ANSWER_END, prompt_parts
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _packages import Question
    from transformers import LlavaForConditionalGeneration
    from transformers import PreTrainedTokenizerBase as Tokenizer

_PADDING, _PICTURE = -1, 0  # segments; questions are 1, 2, ...


@dataclass(frozen=True, slots=True)
class _Row:
    """The prompt of one picture with all its questions and answers.

    Attributes:
        vectors: Embeddings, (tokens, hidden).
        segments: Which question each token belongs to, (tokens,).
        places: Positions, as if each question stood alone after the picture, (tokens,).
        answers: For each question, the positions that predict its answer, and the tokens of it.
    """

    vectors: torch.Tensor
    segments: torch.Tensor
    places: torch.Tensor
    answers: list[tuple[torch.Tensor, torch.Tensor]]


class PackedQuestions:
    """Runs questions through the frozen language model.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: LlavaForConditionalGeneration, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._ids: dict[tuple[str, str], tuple[torch.Tensor, int]] = {}
        self._start = self._tokens(prompt_parts("")[0])

    def _tokens(self, text: str) -> torch.Tensor:
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return torch.tensor(ids, device=self.model.device)

    def _question(self, question: Question) -> tuple[torch.Tensor, int]:
        """Return the tokens after the picture with the answer, and how many are the answer."""
        key = (question.text, question.answer)
        if key not in self._ids:
            prompt = self._tokens(prompt_parts(question.text)[1])
            answer = self._tokens(question.answer + ANSWER_END)
            self._ids[key] = torch.cat([prompt, answer]), len(answer)
        return self._ids[key]

    def _row(self, visual: torch.Tensor, questions: Sequence[Question]) -> _Row:
        embed = self.model.get_input_embeddings()
        prefix = torch.cat([embed(self._start), visual])
        vectors, length = [prefix], len(prefix)
        segments = [torch.full((length,), _PICTURE)]
        places, answers, end = [torch.arange(length)], [], length
        for number, question in enumerate(questions, start=1):
            ids, count = self._question(question)
            vectors.append(embed(ids))
            segments.append(torch.full((len(ids),), number))
            places.append(torch.arange(length, length + len(ids)))
            end += len(ids)
            answers.append((torch.arange(end - count, end) - 1, ids[-count:]))
        return _Row(torch.cat(vectors), torch.cat(segments), torch.cat(places), answers)

    def projected(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the visual tokens of pictures.

        Args:
            features: What the projector receives of each picture, (patches, width).
        """
        tokens: torch.Tensor = self.model.model.multi_modal_projector(torch.stack([*features]))
        return tokens

    def losses(
        self, pictures: Sequence[tuple[torch.Tensor, Sequence[Question]]]
    ) -> tuple[torch.Tensor, list[bool]]:
        """Return the loss of each answer, and whether greedy decoding would give it.

        Args:
            pictures: Visual tokens of a picture, (tokens, hidden), with questions about it.
        """
        with self.model.device:  # where all that follows is created
            return self._losses([self._row(visual, asked) for visual, asked in pictures])

    def _losses(self, rows: Sequence[_Row]) -> tuple[torch.Tensor, list[bool]]:
        length = max(len(row.segments) for row in rows)

        def padded(parts: Sequence[torch.Tensor], value: float) -> torch.Tensor:
            return torch.stack(
                [functional.pad(part, (0, length - len(part)), value=value) for part in parts]
            )

        segments = padded([row.segments for row in rows], _PADDING)
        seen = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None] == _PICTURE)
        seen &= torch.ones(length, length, dtype=torch.bool).tril()
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        states = self.model.model.language_model(
            inputs_embeds=torch.stack(
                [functional.pad(row.vectors, (0, 0, 0, length - len(row.vectors))) for row in rows]
            ),
            attention_mask=mask[:, None],
            position_ids=padded([row.places for row in rows], 0),
            use_cache=False,
        ).last_hidden_state
        losses, right = [], []
        for row, hidden in zip(rows, states, strict=True):
            for where, ids in row.answers:
                logits = self.model.lm_head(hidden[where])
                losses.append(functional.cross_entropy(logits, ids))
                right.append(bool((logits.argmax(1) == ids).all()))
        return torch.stack(losses), right
