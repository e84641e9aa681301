"""Answer questions in free text, and compute the likelihood of given answers.

For the benchmarks of other packages: questions about any number of pictures.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from effllava_optuna.errors import ModelError, TaskError
from effllava_optuna.processors import takes_pictures, tokenizer_of
from effllava_optuna.surgery.apply.decoding import generate_tokens, special_tokens
from effllava_optuna.tasks.prompts import (
    append_answer,
    build_model_inputs,
    format_prompt,
    require_answers_last,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from PIL.Image import Image

    from effllava_optuna.surgery import LoadedModel

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a user.

    Attributes:
        text: Text of the user's turn.
        pictures: RGB pictures that are shown before the text, in this order; may be empty.
    """

    text: str
    pictures: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How an answer is generated.

    An option that is None has the value of the checkpoint's generation_config.json or, if that
    has none, transformers' default. No other setting of that file is used.

    Attributes:
        new_tokens: Maximum number of tokens.
        until: Stop strings; an answer ends before the first of them.
        temperature: Temperature of sampling from torch's global generator; 0: greedy decoding.
        top_p: Share of the probability that is sampled from, in (0, 1].
        top_k: Number of tokens that are sampled from.
        beams: Beams of beam search; 1: no beam search.
        repetition_penalty: 1: no penalty.
    """

    new_tokens: int = 1024
    until: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    beams: int = 1
    repetition_penalty: float | None = None


class AnswerLikelihood(NamedTuple):
    """The likelihood of an answer.

    Attributes:
        log_probability: Sum over its tokens, in nats, <= 0; without an end token.
        greedy: Whether greedy decoding would generate each of its tokens.
    """

    log_probability: float
    greedy: bool


@dataclass(frozen=True, slots=True)
class AnsweringModel:
    """A model that answers questions in batches.

    Args:
        loaded: The model.
        batch_size: Maximum number of questions per batch; 1 if the tokenizer has no padding
            token.
        system: System prompt; empty: none.

    Raises:
        ModelError: The model takes no pictures.
    """

    loaded: LoadedModel
    batch_size: int = 1
    system: str = ""

    def __post_init__(self) -> None:
        if not takes_pictures(self.loaded.processor):
            raise ModelError(
                f"{self.loaded.source} takes no pictures.", hint="Use a vision-language model."
            )

    def generate(self, questions: Iterable[Question], options: GenerationOptions) -> list[str]:
        """Generate an answer to each question.

        Args:
            questions: The questions; their pictures are held only until they are processed.
                Questions with the same number of pictures share batches; similar lengths in a row
                need little padding.
            options: How answers are generated.

        Returns:
            The stripped answers, in the order of the questions.

        Raises:
            TaskError: The processor has no chat template, or a question has the image token in it.
        """
        tokenizer = tokenizer_of(self.loaded.processor)
        settings = self._generation_settings(options)
        answers: dict[int, str] = {}
        for positions, batch in self._batches(questions, lambda q: len(q.pictures)):
            inputs = self._encode([self._prompt(question) for question in batch], batch)
            start = inputs["input_ids"].shape[1]
            criteria = StoppingCriteriaList()
            if options.until:
                criteria.append(_stop_criterion(tokenizer, start, options.until))
            with self.loaded.lock, torch.no_grad():
                tokens = generate_tokens(
                    self.loaded.model, inputs, settings, stopping_criteria=criteria
                )
            texts = tokenizer.batch_decode(tokens[:, start:], skip_special_tokens=True)
            for position, text in zip(positions, texts, strict=True):
                answers[position] = _before_stop(text, options.until)
        return [answers[position] for position in sorted(answers)]

    def likelihoods(self, pairs: Iterable[tuple[Question, str]]) -> list[AnswerLikelihood]:
        """Compute the likelihood of a given answer to each question.

        Args:
            pairs: Questions, see `generate`, and answers. An answer is tokenized together with
                its prompt, after a space unless the prompt ends in a space or a line break.

        Returns:
            The likelihoods, in the order of the questions.

        Raises:
            TaskError: As `generate`, or an answer is empty or merges with the prompt.
        """
        likelihoods: dict[int, AnswerLikelihood] = {}
        for positions, batch in self._batches(pairs, lambda pair: len(pair[0].pictures)):
            completed = [
                append_answer(
                    tokenizer_of(self.loaded.processor), self._prompt(question), answer.strip()
                )
                for question, answer in batch
            ]
            inputs = self._encode([text for text, _ in completed], [pair[0] for pair in batch])
            require_answers_last(inputs, [tokens for _, tokens in completed])
            longest = max(len(tokens) for _, tokens in completed)
            with self.loaded.lock, torch.no_grad():
                logits = self.loaded.model(**inputs, logits_to_keep=longest + 1).logits
            # The position before an answer predicts its first token.
            log_probabilities = logits[:, -longest - 1 : -1].float().log_softmax(-1).cpu()
            for position, row, (_, tokens) in zip(
                positions, log_probabilities, completed, strict=True
            ):
                likelihoods[position] = _likelihood(row[-len(tokens) :], torch.tensor(tokens))
        return [likelihoods[position] for position in sorted(likelihoods)]

    def _prompt(self, question: Question) -> str:
        token = getattr(self.loaded.processor, "image_token", None)
        if token and token in question.text:
            raise TaskError(
                f"The question {question.text[:40]!r} has {token!r} in it.",
                hint="Remove it: the chat template adds it for each picture.",
            )
        return format_prompt(
            self.loaded.processor,
            question.text,
            pictures=len(question.pictures),
            system=self.system,
        )

    def _encode(self, texts: list[str], questions: list[Question]) -> dict[str, Any]:
        pictures = [question.pictures for question in questions]
        return {
            name: value.to(
                self.loaded.device,
                dtype=self.loaded.model.dtype if value.is_floating_point() else None,
            )
            for name, value in build_model_inputs(self.loaded.processor, texts, pictures).items()
        }

    def _batches(
        self, items: Iterable[Item], kind: Callable[[Item], int]
    ) -> Iterator[tuple[list[int], list[Item]]]:
        """Yield batches of items of one kind, with the positions of the items."""
        waiting: defaultdict[int, list[tuple[int, Item]]] = defaultdict(list)
        for position, item in enumerate(items):
            group = waiting[kind(item)]
            group.append((position, item))
            if len(group) == self.batch_size:
                del waiting[kind(item)]
                yield _unzip(group)
        for group in waiting.values():
            yield _unzip(group)

    def _generation_settings(self, options: GenerationOptions) -> GenerationConfig:
        """Return the settings of ``generate``; other settings of the checkpoint are not used."""
        model = self.loaded.model
        shipped = model.generation_config
        sampling = {}
        if options.temperature > 0:
            sampling = {
                "temperature": options.temperature,
                "top_p": shipped.top_p if options.top_p is None else options.top_p,
                "top_k": shipped.top_k if options.top_k is None else options.top_k,
            }
        penalty = options.repetition_penalty
        return GenerationConfig(
            max_new_tokens=options.new_tokens,
            num_beams=options.beams,
            repetition_penalty=shipped.repetition_penalty if penalty is None else penalty,
            do_sample=options.temperature > 0,
            **sampling,
            **special_tokens(model, tokenizer_of(self.loaded.processor)),
        )


def _unzip(pairs: list[tuple[int, Item]]) -> tuple[list[int], list[Item]]:
    return [position for position, _ in pairs], [item for _, item in pairs]


def _stop_criterion(
    tokenizer: Any, start: int, until: tuple[str, ...]
) -> Callable[..., torch.Tensor]:
    """Return a stopping criterion of ``generate`` that is met by stop strings.

    Its own ``stop_strings`` fail with tokenizers of whole words.
    """
    reach = 4 * max(map(len, until)) + 4  # a character may be four tokens: its bytes

    def is_finished(tokens: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        tails = tokens[:, max(start, tokens.shape[1] - reach) :]
        texts = tokenizer.batch_decode(tails, skip_special_tokens=True)
        finished = [any(stop in text for stop in until) for text in texts]
        return torch.tensor(finished, device=tokens.device)

    return is_finished


def _before_stop(text: str, until: tuple[str, ...]) -> str:
    for stop in until:
        text = text.partition(stop)[0]
    return text.strip()


def _likelihood(log_probabilities: torch.Tensor, tokens: torch.Tensor) -> AnswerLikelihood:
    total = float(log_probabilities.gather(1, tokens[:, None]).double().sum())
    # NaN logits count as wrong: a maximum over answers would otherwise select the first NaN.
    greedy = bool((log_probabilities.argmax(-1) == tokens).all()) and not math.isnan(total)
    return AnswerLikelihood(-math.inf if math.isnan(total) else total, greedy)
