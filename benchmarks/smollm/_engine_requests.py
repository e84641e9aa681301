"""What the processes of engines are asked to time, and how they answer.

A process reads the number of rows of a batch as a line, runs it once, and writes the seconds of
the prefill and of the decoding as a line of JSON. This module imports nothing of this project, for
one of the processes runs in vLLM's environment.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

MARK = '{"engine": '
"""How a line of an answer begins; engines write other lines, too."""

_PIXELS = 64


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a batch.

    Attributes:
        tokens: The tokens of the prompt; none with a picture.
        text: The prompt about a picture.
        picture: The picture, which no other row has, so that no engine knows its features.
    """

    tokens: list[int]
    text: str = ""
    picture: Any = None


@dataclass(slots=True)
class Requests:
    """The rows that a process is asked for.

    Attributes:
        length: Tokens of a prompt, those of a picture included.
        new: Tokens that are generated after it.
        text: The prompt about a picture; empty: there is none, and prompts are only tokens.
        drawn: Number of rows that were drawn.
    """

    length: int
    new: int
    text: str
    drawn: int = 0

    @staticmethod
    def read(file: Path) -> Requests:
        """Read what `write` has written."""
        return Requests(**json.loads(file.read_text(encoding="utf-8")))

    def write(self, file: Path) -> None:
        """Write length, number of new tokens and text."""
        content = {"length": self.length, "new": self.new, "text": self.text}
        file.write_text(json.dumps(content), encoding="utf-8")

    def draw(self, count: int) -> list[Row]:
        """Return rows of which each is another one than those before."""
        rows = []
        for _ in range(count):
            rng = np.random.default_rng(self.drawn)
            self.drawn += 1
            if self.text:
                pixels = rng.integers(0, 256, (_PIXELS, _PIXELS, 3), dtype=np.uint8)
                rows.append(Row([], self.text, Image.fromarray(pixels)))
            else:
                rows.append(Row(rng.integers(10, 1000, self.length).tolist()))
        return rows

    def answer(self, engine: str, run: Callable[[Sequence[Row], int], float]) -> None:
        """Answer lines of the standard input until it ends.

        Args:
            engine: Its name.
            run: Runs a batch with a number of new tokens, and returns the seconds until the first
                of them is there, or the seconds of all.
        """
        write(engine, {})
        for line in sys.stdin:
            count = int(line)
            first = run(self.draw(count), 1)
            write(engine, {"prefill": first, "decode": run(self.draw(count), self.new) - first})


def seconds_of(action: Callable[[], object]) -> float:
    """Return how long a function runs."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def write(engine: str, seconds: dict[str, float]) -> None:
    """Write an answer."""
    sys.stdout.write(json.dumps({"engine": engine, **seconds}) + "\n")
    sys.stdout.flush()
