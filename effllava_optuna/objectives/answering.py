"""Let a model answer in words, and weigh answers that are there already.

For benchmarks of others: questions about any number of pictures, answered in any manner.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from transformers import StoppingCriteriaList

from effllava_optuna.errors import ModelError, TaskError
from effllava_optuna.tasks.batches import continuation, inputs_of, prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from PIL.Image import Image

    from effllava_optuna.surgery import Loaded

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Question:
    """What a user asks.

    Attributes:
        text: Of the user's turn.
        pictures: Shown before the text, in this order; RGB. There may be none.
    """

    text: str
    pictures: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class Manner:
    """How an answer is written.

    Attributes:
        new_tokens: The most tokens.
        until: Texts before which an answer ends; they are no part of it.
        temperature: Of sampling, from the global generator of torch; 0: the likeliest token.
        top_p: Share of the probability that is sampled from, in (0, 1].
        top_k: Number of tokens that are sampled from.
        beams: Of beam search; 1: none.
        repetition_penalty: 1: none.

    None is what the checkpoint's generation_config.json says, else what transformers does.
    """

    new_tokens: int = 1024
    until: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    beams: int = 1
    repetition_penalty: float | None = None


class Weight(NamedTuple):
    """How likely an answer is.

    Attributes:
        log_probability: Sum over its tokens, in nats, <= 0; the end token is not among them.
        greedy: Whether each token is the likeliest one there.
    """

    log_probability: float
    greedy: bool


@dataclass(frozen=True, slots=True)
class Respondent:
    """A model that is asked.

    Args:
        loaded: The model.
        batch_size: The most questions at once. They are asked one by one where the tokenizer has
            no token to pad with.
        system: The system's turn; none if empty.

    Raises:
        ModelError: The model takes no pictures.
    """

    loaded: Loaded
    batch_size: int = 1
    system: str = ""

    def __post_init__(self) -> None:
        if not hasattr(self.loaded.processor, "image_processor"):
            raise ModelError(
                f"{self.loaded.source} takes no pictures.", hint="Use a vision-language model."
            )

    def write(self, questions: Iterable[Question], manner: Manner) -> list[str]:
        """Write an answer to each question.

        Args:
            questions: Their pictures are held only until they are asked. Questions with as many
                pictures as each other are asked together; it saves padding if those of about
                the same length follow each other.
            manner: How.

        Returns:
            The texts in the order of the questions, without spaces around them.

        Raises:
            TaskError: The processor has no chat template, or a question has the image token in it.
        """
        tokenizer = self.loaded.processor.tokenizer
        options = self._options(manner)
        found: dict[int, str] = {}
        for places, batch in self._dealt(questions, lambda question: len(question.pictures)):
            inputs = self._inputs([self._prompt(question) for question in batch], batch)
            start = inputs["input_ids"].shape[1]
            if manner.until:
                halt = _halt(tokenizer, start, manner.until)
                options["stopping_criteria"] = StoppingCriteriaList([halt])
            with self.loaded.lock, torch.no_grad():
                tokens = self.loaded.model.generate(**inputs, **options)
            said = tokens[:, start:]
            texts = tokenizer.batch_decode(said, skip_special_tokens=True)
            for place, text in zip(places, texts, strict=True):
                found[place] = _ended(text, manner.until)
        return [found[place] for place in sorted(found)]

    def weigh(self, answered: Iterable[tuple[Question, str]]) -> list[Weight]:
        """Say how likely given answers are, each behind its question.

        Args:
            answered: Questions, see `write`, and answers. The tokens of an answer are found in
                context, behind a space unless the prompt ends in one or in a line break.

        Returns:
            In the order of the questions.

        Raises:
            TaskError: As `write`, or an answer is empty or merges with the prompt.
        """
        found: dict[int, Weight] = {}
        for places, batch in self._dealt(answered, lambda pair: len(pair[0].pictures)):
            read = [
                continuation(
                    self.loaded.processor.tokenizer, self._prompt(question), answer.strip()
                )
                for question, answer in batch
            ]
            inputs = self._inputs([whole for whole, _ in read], [pair[0] for pair in batch])
            longest = max(len(tokens) for _, tokens in read)
            with self.loaded.lock, torch.no_grad():
                logits = self.loaded.model(**inputs, logits_to_keep=longest + 1).logits
            # The token before an answer predicts its first one.
            logs = logits[:, -longest - 1 : -1].float().log_softmax(-1).cpu()
            for place, row, (_, tokens) in zip(places, logs, read, strict=True):
                found[place] = _weighed(row[-len(tokens) :], torch.tensor(tokens))
        return [found[place] for place in sorted(found)]

    def _prompt(self, question: Question) -> str:
        token = getattr(self.loaded.processor, "image_token", None)
        if token and token in question.text:
            raise TaskError(
                f"The question {question.text[:40]!r} has {token!r} in it.",
                hint="Remove it: the chat template says where the pictures go.",
            )
        return prompt(
            self.loaded.processor,
            question.text,
            pictures=len(question.pictures),
            system=self.system,
        )

    def _inputs(self, texts: list[str], questions: list[Question]) -> dict[str, Any]:
        pictures = [question.pictures for question in questions]
        return {
            name: value.to(
                self.loaded.device,
                dtype=self.loaded.model.dtype if value.is_floating_point() else None,
            )
            for name, value in inputs_of(self.loaded.processor, texts, pictures).items()
        }

    def _dealt(
        self, items: Iterable[Item], kind: Callable[[Item], int]
    ) -> Iterator[tuple[list[int], list[Item]]]:
        """Give batches of one kind, and the places of their items."""
        padded = self.loaded.processor.tokenizer.pad_token_id is not None
        size = self.batch_size if padded else 1
        waiting: defaultdict[int, list[tuple[int, Item]]] = defaultdict(list)
        for place, item in enumerate(items):
            mine = waiting[kind(item)]
            mine.append((place, item))
            if len(mine) == size:
                del waiting[kind(item)]
                yield _apart(mine)
        for mine in waiting.values():
            yield _apart(mine)

    def _options(self, manner: Manner) -> dict[str, Any]:
        """Say to ``generate`` what differs from the checkpoint's own configuration."""
        tokenizer, known = self.loaded.processor.tokenizer, self.loaded.model.generation_config
        options: dict[str, Any] = {
            "max_new_tokens": manner.new_tokens,
            "num_beams": manner.beams,
            "repetition_penalty": manner.repetition_penalty,
            "do_sample": manner.temperature > 0,
            "temperature": manner.temperature or None,
            "top_p": manner.top_p,
            "top_k": manner.top_k,
        }
        if known.eos_token_id is None:
            options["eos_token_id"] = tokenizer.eos_token_id
        if known.pad_token_id is None:
            options["pad_token_id"] = tokenizer.pad_token_id
        return {name: value for name, value in options.items() if value is not None}


def _apart(pairs: list[tuple[int, Item]]) -> tuple[list[int], list[Item]]:
    return [place for place, _ in pairs], [item for _, item in pairs]


def _halt(tokenizer: Any, start: int, until: tuple[str, ...]) -> Callable[..., torch.Tensor]:
    """Tell ``generate`` which rows have come to an end.

    Its own ``stop_strings`` fail on tokenizers of whole words.
    """
    reach = 4 * max(map(len, until)) + 4  # a character may be four tokens: its bytes

    def halted(tokens: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        tails = tokens[:, max(start, tokens.shape[1] - reach) :]
        texts = tokenizer.batch_decode(tails, skip_special_tokens=True)
        ended = [any(stop in text for stop in until) for text in texts]
        return torch.tensor(ended, device=tokens.device)

    return halted


def _ended(text: str, until: tuple[str, ...]) -> str:
    for stop in until:
        text = text.partition(stop)[0]
    return text.strip()


def _weighed(logs: torch.Tensor, tokens: torch.Tensor) -> Weight:
    total = float(logs.gather(1, tokens[:, None]).double().sum())
    # A model that answers NaN is wrong: the first thing that a maximum would take is NaN.
    greedy = bool((logs.argmax(-1) == tokens).all()) and not math.isnan(total)
    return Weight(-math.inf if math.isnan(total) else total, greedy)
