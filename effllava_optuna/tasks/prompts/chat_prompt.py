"""Prompts from the chat template of a processor, and their model inputs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import TaskError, describe, shorten
from effllava_optuna.processors import encode, takes_pictures, tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from PIL.Image import Image


def format_prompt(processor: Any, question: str, *, pictures: int = 1, system: str = "") -> str:
    """Format a conversation up to the position where the assistant answers.

    Args:
        processor: Processor with a chat template.
        question: Text of the user turn.
        pictures: Number of images before the text.
        system: Text of the system turn; empty: no system turn.

    Raises:
        TaskError: The processor has no chat template, or the template fails.
    """
    turns = [{"role": "user", "content": _content(processor, question, pictures)}]
    if system:
        turns.insert(0, {"role": "system", "content": _content(processor, system)})
    try:
        text: str = processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # a template may raise anything
        missing = not getattr(processor, "chat_template", None)
        raise TaskError(
            f"{type(processor).__name__} cannot format a prompt: {describe(error)}.",
            hint="Add a chat_template.jinja to the checkpoint."
            if missing
            else "Use a chat template that supports questions with "
            f"{'a system turn and ' if system else ''}a list of texts and pictures.",
        ) from error
    # Tokenizers merge a trailing space with the answer, which changes the token of the answer. A
    # line break stays: templates such as ChatML's begin the answer on a new line.
    return text.rstrip(" ")


def _content(processor: Any, text: str, pictures: int = 0) -> str | list[dict[str, str]]:
    """Return the content of a turn: parts for a processor of pictures, a text for a tokenizer."""
    if not takes_pictures(processor):
        return text
    return [{"type": "image"}] * pictures + [{"type": "text", "text": text}]


def append_answer(tokenizer: Any, prompt: str, answer: str) -> tuple[str, list[int]]:
    """Append ``answer`` to ``prompt``, and return its tokens in that context.

    Tokenizers merge characters across the boundary: 'A' after a space is another token than 'A'.

    Returns:
        The whole text, and the tokens of the answer.

    Raises:
        TaskError: The answer is empty, or changes how the prompt itself is tokenized.
    """
    prompt_tokens = tokenizer.encode(prompt, add_special_tokens=False)
    for separator in ("",) if prompt[-1:].isspace() else (" ", ""):
        whole = f"{prompt}{separator}{answer}"
        tokens = tokenizer.encode(whole, add_special_tokens=False)
        if tokens[: len(prompt_tokens)] == prompt_tokens and len(tokens) > len(prompt_tokens):
            return whole, list(tokens[len(prompt_tokens) :])
    raise TaskError(
        f"The answer {shorten(answer)} changes the tokens of the prompt that ends in "
        f"{prompt[-20:]!r}.",
        hint="End the chat template with a token that does not merge with an answer.",
    )


def require_answers_last(inputs: Mapping[str, Any], answers: Sequence[Sequence[int]]) -> None:
    """Check that prompts with answers end with them, so that the last positions predict them.

    The processor of PaliGemma adds a line break, and lets every token see the answer.

    Args:
        inputs: A result of `build_model_inputs`.
        answers: The tokens of each answer.

    Raises:
        TaskError: They do not.
    """
    for row, answer in zip(inputs["input_ids"].tolist(), answers, strict=True):
        if row[len(row) - len(answer) :] != list(answer):
            raise TaskError(
                "The processor of this model adds tokens after an answer, so that its likelihood "
                "cannot be computed.",
                hint="Use questions with options, or task.measure = 'generation'.",
            )


def build_model_inputs(
    processor: Any, texts: Sequence[str], pictures: Sequence[Sequence[Image]]
) -> dict[str, Any]:
    """Build the keyword arguments of the model, padded on the left.

    Args:
        processor: Processor of the model.
        texts: Prompts from `format_prompt`, with or without answers.
        pictures: The images of each text; all texts have the same number.
    """
    tokenizer = tokenizer_of(processor)
    bos = tokenizer.bos_token
    # One list of images for each text: the form that every processor accepts.
    parts = [list(images) for images in pictures] if any(pictures) else None
    images = {"images": parts} if takes_pictures(processor) else {}
    with _padding_token(tokenizer):
        return encode(
            processor,
            text=list(texts),
            **images,
            padding=len(texts) > 1,
            padding_side="left",
            # As `apply_chat_template` does: a template that writes <s> must not get two.
            add_special_tokens=bos is None or not texts[0].startswith(bos),
        )


@contextmanager
def _padding_token(tokenizer: Any) -> Iterator[None]:
    """Pad with any token for the duration of the ``with`` if there is no padding token.

    The attention mask hides it.
    """
    if tokenizer.pad_token is not None:
        yield
        return
    other = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.pad_token = other
    try:
        yield
    finally:
        tokenizer.pad_token = None
