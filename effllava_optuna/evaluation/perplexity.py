"""Perplexity of a text that a model has not been pruned on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from effllava_optuna.errors import ConfigError
from effllava_optuna.processors import tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from effllava_optuna.surgery import LoadedModel

_WINDOW = 256  # tokens


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model predicts the tokens of a text.

    Attributes:
        value: ``exp`` of the mean negative log-likelihood of a token; 1 is perfect.
        tokens: Number of tokens that were predicted.
    """

    value: float
    tokens: int


def read_text(file: Path) -> str:
    """Read a text in UTF-8.

    Raises:
        ConfigError: The file cannot be read, or has no text.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read: {error.strerror}.", hint="Use another --text."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file} is not text in UTF-8: byte {error.start}.", hint="Use another --text."
        ) from error
    if not text.strip():
        raise ConfigError(f"{file} has no text.", hint="Use another --text.")
    return text


@torch.inference_mode()
def measure_perplexity(
    loaded: LoadedModel,
    text: str,
    *,
    window: int = _WINDOW,
    progress: Callable[[float], None] = lambda _: None,
) -> Perplexity:
    """Measure the perplexity of a text, in windows that do not overlap.

    A window begins with the token that begins every text of the tokenizer, such as the ``<bos>``
    of Gemma; if there is none, its first token is not predicted. Pictures have no part in it.
    Compare only figures of one tokenizer and one window.

    Args:
        loaded: The model; of a vision-language model, its language model alone matters.
        text: The text, at least two tokens.
        window: Tokens that the model sees at once, at least two; fewer if its context is shorter.
        progress: Called with the finished share.

    Raises:
        ConfigError: The text has fewer than two tokens.
    """
    tokenizer = tokenizer_of(loaded.processor)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False).input_ids[
        0
    ]
    start = torch.tensor(_first_tokens(tokenizer), dtype=ids.dtype)
    window = min(window, loaded.context or window) - len(start)
    windows = [torch.cat([start, part]) for part in torch.split(ids, window)]
    windows = [part for part in windows if len(part) > 1]
    if not windows:
        raise ConfigError(
            "The text has fewer than two tokens.", hint="Use a text of at least a sentence."
        )
    total, tokens = 0.0, 0
    with loaded.lock:
        for done, part in enumerate(windows):
            progress(done / len(windows))
            part = part.to(loaded.device)[None]
            logits = loaded.model(
                input_ids=part, attention_mask=torch.ones_like(part), use_cache=False
            ).logits[0, :-1]
            total += functional.cross_entropy(logits.float(), part[0, 1:], reduction="sum").item()
            tokens += part.shape[1] - 1
    return Perplexity(math.exp(min(total / tokens, 700.0)), tokens)


def _first_tokens(tokenizer: Any) -> list[int]:
    """Return the token that begins every text, as a list; empty if there is none."""
    begin = tokenizer.bos_token_id
    return [begin] if begin is not None and tokenizer("a").input_ids[:1] == [begin] else []
