"""Questions for training: as many with the answer yes as with no, whatever their wording.

In easy-VQA five of six questions such as "is there a blue shape?" have the answer no, so that a
model learns to answer by the wording alone. Here every wording is asked of any picture, and its
answer follows from colour and shape, which other questions say.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from _packages import COLOURS, SHAPES, YES_OR_NO, Question

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

_NAMES = (*COLOURS, *SHAPES)


def name_in(text: str) -> str:
    """Return the one colour or shape that a question of the kind yes or no is about."""
    (name,) = {*re.findall("[a-z]+", text)}.intersection(_NAMES)
    return str(name)


def answer_to(text: str, colour: int, shape: int) -> str:
    """Return the answer to a question of the kind yes or no.

    Args:
        text: The question.
        colour: Number of the colour in the picture.
        shape: Number of the shape.
    """
    shown = name_in(text) in (COLOURS[colour], SHAPES[shape])
    denied = re.search(r"\b(not|no)\b", text) is not None
    return "yes" if shown != denied else "no"


class BalancedQuestions:
    """Draws questions about pictures whose colour and shape are known.

    Args:
        questions: The training questions.
        seen: Numbers of colour and shape of each picture; -1: unknown.
    """

    def __init__(
        self, questions: Sequence[Question], seen: Mapping[Path, tuple[int, int]]
    ) -> None:
        self.seen = {image: both for image, both in seen.items() if min(both) >= 0}
        self._open: dict[Path, list[Question]] = defaultdict(list)
        wordings: dict[str, dict[str, None]] = defaultdict(dict)
        for question in questions:
            if question.kind == YES_OR_NO:
                wordings[name_in(question.text)][question.text] = None
            else:
                self._open[question.image].append(question)
        self._wordings = {name: [*texts] for name, texts in wordings.items()}

    def drawn(self, image: Path, count: int, rng: np.random.Generator) -> list[Question]:
        """Draw an open question, if there is one, and others with the answers yes and no.

        Args:
            image: The picture.
            count: Number of questions of the kind yes or no.
            rng: Draws them.
        """
        colour, shape = self.seen[image]
        shown = [COLOURS[colour], SHAPES[shape]]
        absent = [name for name in _NAMES if name not in shown]
        asked = []
        if self._open[image]:
            asked.append(self._open[image][int(rng.integers(len(self._open[image])))])
        for number in range(count):
            names = shown if number % 2 else absent
            texts = self._wordings[names[int(rng.integers(len(names)))]]
            text = texts[int(rng.integers(len(texts)))]
            asked.append(Question(text, answer_to(text, colour, shape), image))
        return asked
