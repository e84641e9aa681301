"""Turn samples into tensors: one forward pass answers a batch of questions.

A closed question is scored by the logits after the prompt: the answer that would come first. An
open one is read together with a right answer, of which each token is predicted from those before
it, the end included; or it is only asked, and the model writes. Rows are padded on the left, so
that the last positions are always the ones that answer (padding on the right and reading
position -1 would read padding).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from effllava_optuna.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image

    from effllava_optuna.tasks._task import Sample

IGNORED = -100  # the label of a position that predicts nothing, as in transformers
_MOST = 2**27  # logits that a batch of open questions may ask for: 512 MB in float32


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples, ready for one forward pass.

    Attributes:
        inputs: Keyword arguments of the model: ``input_ids`` and ``attention_mask`` of shape
            ``(samples, tokens)``, ``pixel_values`` if there are pictures, and what else the
            family's processor makes.
        targets: Shape ``(samples, targets)``; the token that each possible answer begins with,
            -1 where a sample has fewer possible answers than others. None: open questions.
        answers: Of closed questions, shape ``(samples,)``: index of the right answer in
            ``targets``. Of open ones, shape ``(samples, positions)``: the token that each of the
            last positions shall predict, `IGNORED` where none. None: nothing but the prompts.
        samples: The samples, in order.
    """

    inputs: Mapping[str, Any]
    targets: torch.Tensor | None
    answers: torch.Tensor | None
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def positions(self) -> int:
        """Count the positions, from the end, whose logits answer."""
        return 1 if self.targets is not None or self.answers is None else self.answers.shape[1]

    @property
    def new_tokens(self) -> int:
        """Give the most tokens that are written, where the model writes."""
        return max(_tokens(sample) for sample in self.samples)

    @property
    def ids(self) -> tuple[str, ...]:
        """Give the id of each sample."""
        return tuple(sample.id for sample in self.samples)

    @property
    def units(self) -> tuple[str, ...]:
        """Give the independent unit of each sample."""
        return tuple(sample.unit for sample in self.samples)

    def to(self, device: torch.device | str) -> Batch:
        """Copy the tensors to ``device``."""
        return replace(
            self,
            inputs={name: value.to(device) for name, value in self.inputs.items()},
            targets=None if self.targets is None else self.targets.to(device),
            answers=None if self.answers is None else self.answers.to(device),
        )


def prompt(processor: Any, question: str, *, pictures: int = 1, system: str = "") -> str:
    """Write the conversation up to where the assistant answers.

    Args:
        processor: Has the chat template.
        question: The user's turn.
        pictures: That come before it.
        system: The system's turn; none if empty.

    Raises:
        TaskError: The processor has no chat template.
    """
    content = [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
    turns = [{"role": "user", "content": content}]
    if system:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    try:
        text: str = processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=False
        )
    except (ValueError, AttributeError) as error:
        raise TaskError(
            f"{type(processor).__name__} cannot write a prompt: {error}.",
            hint="Give the checkpoint a chat_template.jinja.",
        ) from error
    # Tokenizers merge a trailing space with the answer, which then is another token. A line
    # break stays: templates such as ChatML's begin the answer on a line of its own.
    return text.rstrip(" ")


def continuation(tokenizer: Any, text: str, answer: str) -> tuple[str, list[int]]:
    """Find the tokens that ``answer`` has when it follows ``text``.

    Tokenizers look across the border: 'A' after a space is not the token of 'A' alone.

    Returns:
        The whole text, and the tokens of the answer.

    Raises:
        TaskError: The answer changes how the prompt itself is tokenized, or is empty.
    """
    before = tokenizer.encode(text, add_special_tokens=False)
    for joint in ("",) if text[-1:].isspace() else (" ", ""):
        whole = f"{text}{joint}{answer}"
        after = tokenizer.encode(whole, add_special_tokens=False)
        if after[: len(before)] == before and len(after) > len(before):
            return whole, list(after[len(before) :])
    raise TaskError(
        f"The answer {answer!r} changes the tokens of the prompt that ends in {text[-20:]!r}.",
        hint="End the chat template in a token that does not merge with an answer.",
    )


def encode(
    processor: Any, samples: Sequence[Sample], *, batch_size: int = 64
) -> tuple[Batch, ...]:
    """Encode ``samples``, at most ``batch_size`` to a batch.

    A batch holds questions of one kind: about pictures or not, closed or open. Within a kind
    they keep their order; where they fill several batches, the longest come first.

    Raises:
        TaskError: There are no samples, a picture cannot be opened, a question names the image
            token itself, two answers of one begin with the same token, an open question has no
            right answer, or the processor cannot write a prompt.
    """
    return tuple(
        _read(processor, some) if some[0].open else _chosen(processor, some)
        for some in _dealt(processor, samples, batch_size, apart=True)
    )


def prompts(
    processor: Any, samples: Sequence[Sample], *, batch_size: int = 64
) -> tuple[Batch, ...]:
    """Encode nothing but the questions, for a model that writes its answers.

    A batch holds questions of one kind: about pictures or not, and with answers as long. Where
    those of a kind fill several batches, the longest come first.

    Raises:
        TaskError: As `encode`.
    """
    return tuple(
        Batch(_inputs(processor, some, _prompts(processor, some)), None, None, tuple(some))
        for some in _dealt(processor, samples, batch_size, apart=False)
    )


def _dealt(
    processor: Any, samples: Sequence[Sample], batch_size: int, *, apart: bool
) -> list[list[Sample]]:
    if not samples:
        raise TaskError("There are no samples to encode.", hint="Check the task's split sizes.")

    def kind(sample: Sample) -> tuple[bool, bool, int]:
        return sample.image is None, apart and sample.open, 0 if apart else _tokens(sample)

    dealt = []
    for (_, wide, _), members in groupby(sorted(samples, key=kind), key=kind):
        mine = list(members)
        size = batch_size
        if wide:  # one row of logits for each token of an answer
            tokenizer = processor.tokenizer
            longest = max(len(tokenizer.encode(_right(sample))) for sample in mine) + 1
            size = min(size, max(1, _MOST // (longest * len(tokenizer))))
        if len(mine) > size:  # those of about one length share a batch, and little is padded
            mine.sort(key=lambda sample: -len(sample.system + sample.question))
        dealt += [mine[start : start + size] for start in range(0, len(mine), size)]
    return dealt


def _tokens(sample: Sample) -> int:
    return 1 if sample.rule is None else sample.rule.new_tokens


def _right(sample: Sample) -> str:
    if not sample.right.strip():
        raise TaskError(
            f"Sample {sample.id!r} has no right answer to be compared with.",
            hint="Use a split that has answers.",
        )
    return sample.right.strip()


def _prompts(processor: Any, samples: Sequence[Sample]) -> list[str]:
    token = getattr(processor, "image_token", None)
    for sample in samples:
        texts = (sample.question, sample.system, *sample.targets)
        if token and any(token in text for text in texts):
            what = "question" if token in sample.question else "system turn or answers"
            raise TaskError(
                f"Sample {sample.id!r} has {token!r} in its {what}.",
                hint="Remove it: the chat template says where the picture goes.",
            )
    return [
        prompt(
            processor,
            sample.question,
            pictures=0 if sample.image is None else 1,
            system=sample.system,
        )
        for sample in samples
    ]


def _inputs(processor: Any, samples: Sequence[Sample], texts: Sequence[str]) -> dict[str, Any]:
    shown = [sample.picture() for sample in samples]
    pictures = [[] if picture is None else [picture] for picture in shown]
    return inputs_of(processor, texts, pictures)


def inputs_of(
    processor: Any, texts: Sequence[str], pictures: Sequence[Sequence[Image]]
) -> dict[str, Any]:
    """Make the keyword arguments of the model, padded on the left.

    Args:
        processor: Makes them.
        texts: As `prompt` writes them.
        pictures: Those of each text, as many of each.
    """
    bos = processor.tokenizer.bos_token
    return dict(
        processor(
            text=list(texts),
            # One list of pictures a question: what every processor understands.
            images=[list(mine) for mine in pictures] if any(pictures) else None,
            padding=len(texts) > 1,  # not every tokenizer has a token to pad with
            padding_side="left",
            # As `apply_chat_template` does: a template that writes <s> itself shall not get two.
            add_special_tokens=bos is None or not texts[0].startswith(bos),
            return_tensors="pt",
        )
    )


def _chosen(processor: Any, samples: Sequence[Sample]) -> Batch:
    """Encode closed questions."""
    texts = _prompts(processor, samples)
    most = max(len(sample.targets) for sample in samples)
    targets = torch.full((len(samples), most), -1)
    known: dict[tuple[str, str], int] = {}
    for row, (text, sample) in enumerate(zip(texts, samples, strict=True)):
        ending = text[-16:]
        for column, target in enumerate(sample.targets):
            if (ending, target) not in known:
                known[ending, target] = continuation(processor.tokenizer, text, target)[1][0]
            targets[row, column] = known[ending, target]
        if len(set(targets[row, : len(sample.targets)].tolist())) < len(sample.targets):
            raise TaskError(
                f"Sample {sample.id!r}: two of its answers begin with the same token.",
                hint="Use answers, or letters, that begin differently.",
            )
    return Batch(
        _inputs(processor, samples, texts),
        targets,
        torch.tensor([sample.answer for sample in samples]),
        tuple(samples),
    )


def _read(processor: Any, samples: Sequence[Sample]) -> Batch:
    """Encode open questions together with a right answer."""
    tokenizer = processor.tokenizer
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    found = [
        continuation(tokenizer, text, _right(sample))
        for text, sample in zip(_prompts(processor, samples), samples, strict=True)
    ]
    # The token before an answer predicts its first one, and its last one the end.
    tokens = [[*answer, *end] for _, answer in found]
    lead = 0 if end else 1
    answers = torch.full((len(samples), max(map(len, tokens)) + lead), IGNORED)
    for row, mine in enumerate(tokens):
        answers[row, answers.shape[1] - lead - len(mine) : answers.shape[1] - lead] = torch.tensor(
            mine
        )
    texts = [whole for whole, _ in found]
    return Batch(_inputs(processor, samples, texts), None, answers, tuple(samples))
