"""What llama.cpp is asked, and what it answers, by whatever program it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from effllava_optuna.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PICTURE_MARK = "<__media__>"
"""Where a picture is in a prompt."""

CONTEXT = 2048
"""Tokens of the context."""

COMPARED = 5
"""Number of probabilities of the first token."""


@dataclass(frozen=True, slots=True)
class EnginePrompt:
    """A prompt for llama.cpp.

    Attributes:
        text: The prompt, with one `PICTURE_MARK` for a picture.
        picture: File of the picture; None: there is none.
    """

    text: str
    picture: Path | None = None

    @staticmethod
    def about(text: str, image_token: str, picture: Path) -> EnginePrompt:
        """Return a prompt about a picture, whose place ``image_token`` marks."""
        return EnginePrompt(text.replace(image_token, PICTURE_MARK), picture)


@dataclass(frozen=True, slots=True)
class Answer:
    """What llama.cpp made of a prompt.

    Attributes:
        prompt: The tokens of the prompt; those of a prompt with a picture do not matter.
        text: The text of the answer, without special tokens.
        probabilities: The largest `COMPARED` probabilities of its first token.
    """

    prompt: tuple[int, ...]
    text: str
    probabilities: tuple[float, ...]


class LlamaCpp(Protocol):
    """A program that has llama.cpp."""

    @property
    def version(self) -> str:
        """Name of the program, and its version."""

    def generate(
        self, files: Sequence[Path], prompts: Sequence[EnginePrompt], new_tokens: int, cache: str
    ) -> list[Answer]:
        """Generate greedily after each prompt.

        Args:
            files: The file of the decoder, and that of tower and projector if there is one.
            prompts: The prompts.
            new_tokens: Largest number of tokens of an answer.
            cache: Type of keys and values: ``f32`` or ``f16``.

        Raises:
            ExportError: llama.cpp does not load the files, or does not answer.
        """


def refused(version: str, output: str) -> ExportError:
    """Return the error of a program that ended, with the line of its output that says why."""
    lines = [line.strip() for line in output.splitlines() if "rror" in line]
    return ExportError(
        f"llama.cpp ({version}) does not run the GGUF export: "
        f"{lines[0] if lines else 'no message'}.",
        hint="Nothing was written; where no llama.cpp is found, exports are written unverified.",
    )
