"""What a schema is, and what its rows have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks._task import Rule, Split
from effllava_optuna.tasks.choice import letter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.tasks._task import Sample

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIRECTLY = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True, slots=True)
class Options:
    """How a benchmark is asked and graded, where there is a choice.

    Attributes:
        harness: Whose rules grade a written answer; None: the schema's first.
        instruction: What the question ends in; None: the schema's own.
        system: The system's turn.
        new_tokens: The most tokens that are written; None: the rule's own.
    """

    harness: str | None = None
    instruction: str | None = None
    system: str = ""
    new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """What one row says, its picture aside.

    Attributes:
        id: The row's own; None: it has none.
        question: The text of the user's turn.
        targets: Possible answers of a closed question; right ones of an open one.
        answer: Index of the right one in ``targets``; None: an open question.
        subsets: Parts of the benchmark that it belongs to.
        stratum: The kind of row, which each split shall have in proportion.
        context: What the picture shows, for a judge.
    """

    id: str | None
    question: str
    targets: tuple[str, ...]
    answer: int | None
    subsets: tuple[str, ...] = ()
    stratum: str = ""
    context: str = ""


class Schema(ABC):
    """The rows of a benchmark.

    Args:
        options: How it is asked and graded.

    Raises:
        TaskError: There is no such harness.

    Attributes:
        name: As in a study file.
        hub: Where it is on the hub; None: nowhere.
        config: Its configuration there.
        sources: Which split of the data each role comes from.
        required: Columns that must be there.
        optional: Columns that are read where they are there.
        harnesses: Known ones, the default first.
    """

    name: ClassVar[str]
    hub: ClassVar[str | None] = None
    config: ClassVar[str | None] = None
    sources: ClassVar[Mapping[Split, str]]
    required: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    harnesses: ClassVar[tuple[str, ...]]

    def __init__(self, options: Options) -> None:
        self.options = options
        self.harness = options.harness or self.harnesses[0]
        if self.harness not in self.harnesses:
            raise TaskError(
                f"task.harness = {self.harness!r} is unknown to task {self.name!r}.",
                hint=f"Use one of {', '.join(self.harnesses)}.",
            )

    @abstractmethod
    def read(self, row: Mapping[str, Any], *, pictured: bool) -> Entry:
        """Say what a row says.

        Args:
            row: By column, as named in `required` and `optional`.
            pictured: Whether it has a picture.

        Raises:
            ValueError: It says nothing that can be used; the message is about the row.
        """

    @abstractmethod
    def rule(self, *, closed: bool) -> Rule:
        """Give the rule that grades written answers."""

    def asked(self, question: str, instruction: str) -> str:
        """End a question in its instruction, or in that of the options."""
        chosen = instruction if self.options.instruction is None else self.options.instruction
        return f"{question}\n{chosen}" if chosen else question

    def tokens(self, usual: int) -> int:
        """Give the most tokens that are written."""
        return usual if self.options.new_tokens is None else self.options.new_tokens


def lettered(question: str, choices: Sequence[str]) -> str:
    """Write a question with its options, one a line, as LLaVA asks ScienceQA."""
    return "\n".join(
        [question, *(f"{name}. {text}" for name, text in zip(LETTERS, choices, strict=False))]
    )


def letter_rule(name: str, harness: str, new_tokens: int) -> Rule:
    """Make the rule that reads the letter of an option from a written answer."""

    def grade(sample: Sample, text: str) -> float:
        return float(letter(text, len(sample.targets), harness) == sample.answer)

    return Rule(f"{name} ({harness} parsing)", grade, new_tokens)


def text_of(row: Mapping[str, Any], column: str, *, empty: bool = False) -> str:
    """Give a text of a row.

    Raises:
        ValueError: It is no text, or empty though it must not be.
    """
    value = row.get(column)
    if value is None and empty:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{column} is {value!r}, which is no text")
    if not empty and not value.strip():
        raise ValueError(f"{column} is empty")
    return value.strip()


def texts_of(row: Mapping[str, Any], column: str, fewest: int) -> tuple[str, ...]:
    """Give a list of texts of a row.

    Raises:
        ValueError: It is none, or too short.
    """
    value = row.get(column)
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{column} is {value!r}, which is no list of texts")
    if len(value) < fewest:
        raise ValueError(f"{column} has {len(value)} entries, {fewest} are needed")
    return tuple(item.strip() for item in value)


def id_of(row: Mapping[str, Any], column: str) -> str | None:
    """Give the id of a row, where it has one."""
    value = row.get(column)
    return None if value is None or value == "" else str(value)
