"""The interface of a row schema, and helpers to read the columns of a row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from effllava_optuna.errors import TaskError, shorten
from effllava_optuna.tasks.sample import GradingRule, Split
from effllava_optuna.tasks.scoring.multiple_choice import parse_choice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.tasks.sample import Sample

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER_INSTRUCTION = "Answer with the option's letter from the given choices directly."


class UntypedInt(int):
    """A number in a JSON column of `datasets`, which stores 1 and the text "1" alike.

    Attributes:
        text: The text.
    """

    def __init__(self, text: str) -> None:
        self.text = text


class UntypedFloat(float):
    """A number in a JSON column of `datasets`, which stores 1.0 and the text "1.0" alike.

    Attributes:
        text: The text.
    """

    def __init__(self, text: str) -> None:
        self.text = text


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Options of the prompts and of the grading of a task.

    Attributes:
        harness: The evaluation harness whose rules grade a generated answer; None: the first one
            of the schema.
        instruction: The last line of each question; None: that of the schema.
        system: Text of the system turn; empty: no system turn.
        new_tokens: Largest number of tokens to generate; None: that of the grading rule.
        labels: Whether every row must have a correct answer.
    """

    harness: str | None = None
    instruction: str | None = None
    system: str = ""
    new_tokens: int | None = None
    labels: bool = True


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """The content of one row, without its image.

    Attributes:
        id: The id in the row; None: the row has none.
        question: Text of the user turn.
        targets: Possible answers of a closed question; correct texts of an open-ended one.
        answer: Index of the correct answer in ``targets``, or `UNLABELLED`; None: the question is
            open-ended.
        subsets: Subsets of the benchmark that contain the row.
        stratum: Kind of the row; all splits get the kinds in the same proportion.
        context: Description of the image for a judge.
    """

    id: str | None
    question: str
    targets: tuple[str, ...]
    answer: int | None = None
    subsets: tuple[str, ...] = ()
    stratum: str = ""
    context: str = ""


class RowSchema(ABC):
    """The schema of the rows of a benchmark.

    Args:
        options: Options of the prompts and of the grading.

    Raises:
        TaskError: The schema does not have the harness.

    Attributes:
        name: Name of the task in a study file.
        hub: Id of the dataset on the hub; None: it is not on the hub.
        config: Configuration of the dataset on the hub.
        sources: For each split of the task, the split of the dataset that it is drawn from.
        required: Columns that a dataset must have; ``label`` only if the options say so.
        label: The column of the correct answer.
        optional: Columns that are used if a dataset has them.
        harnesses: Evaluation harnesses that can be selected, the default first.
    """

    name: ClassVar[str]
    hub: ClassVar[str | None] = None
    config: ClassVar[str | None] = None
    sources: ClassVar[Mapping[Split, str]]
    required: ClassVar[tuple[str, ...]]
    label: ClassVar[str] = "answer"
    optional: ClassVar[tuple[str, ...]] = ()
    harnesses: ClassVar[tuple[str, ...]]

    def __init__(self, options: TaskOptions) -> None:
        self.options = options
        self.harness = options.harness or self.harnesses[0]
        if self.harness not in self.harnesses:
            raise TaskError(
                f"task.harness = {self.harness!r} is unknown to task {self.name!r}.",
                hint=f"Use one of {', '.join(self.harnesses)}.",
            )

    @abstractmethod
    def parse(self, row: Mapping[str, Any], *, has_image: bool) -> ParsedRow:
        """Parse a row.

        Args:
            row: Values by column, with the names in `required` and `optional`.
            has_image: Whether the row has an image.

        Raises:
            ValueError: A column has an unusable value; the message names both.
        """

    @abstractmethod
    def grading_rule(self, *, closed: bool) -> GradingRule:
        """Return the rule that grades generated answers to closed or open-ended questions."""

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Return the columns that a dataset must have under the options of the schema."""
        if self.options.labels:
            return self.required
        return tuple(name for name in self.required if name != self.label)

    def has_answer(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row has any correct answer, valid or not."""
        value = row.get(self.label)
        return bool(value.strip()) if isinstance(value, str) else not is_empty(value)

    def is_unlabelled(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row has no correct answer, and need not have one."""
        return not self.options.labels and not self.has_answer(row)

    def add_instruction(self, question: str, default: str) -> str:
        """Append the instruction of the options, or else ``default``, to a question."""
        options = self.options
        instruction = default if options.instruction is None else options.instruction
        return f"{question}\n{instruction}" if instruction else question

    def generation_length(self, default: int) -> int:
        """Return the largest number of tokens to generate, of the options or else ``default``."""
        return default if self.options.new_tokens is None else self.options.new_tokens


def format_choices(question: str, choices: Sequence[str]) -> str:
    """Format a question and its options, one per line, as LLaVA does for ScienceQA."""
    options = [f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, *options])


def letter_rule(name: str, harness: str, new_tokens: int) -> GradingRule:
    """Create the rule that parses the letter of an option from a generated answer."""

    def grade(sample: Sample, text: str) -> float:
        return float(parse_choice(text, len(sample.targets), harness) == sample.answer)

    return GradingRule(f"{name} ({harness} parsing)", grade, new_tokens)


def read_text(row: Mapping[str, Any], column: str, *, empty: bool = False) -> str:
    """Return the text in a column, without white space around it.

    Args:
        row: The row.
        column: Name of the column.
        empty: Whether the text may be empty or missing.

    Raises:
        ValueError: The value is not a text, or is empty.
    """
    value = row.get(column)
    if value is None and empty:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{column} is {shorten(value)}, which is not a text")
    if not empty and not value.strip():
        raise ValueError(f"{column} is empty")
    return _valid(value.strip(), column)


def read_texts(row: Mapping[str, Any], column: str, at_least: int) -> tuple[str, ...]:
    """Return the list of texts in a column.

    Raises:
        ValueError: The value is not a list of texts, or has fewer than ``at_least``.
    """
    value = row.get(column)
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{column} is {shorten(value)}, which is not a list of texts")
    if len(value) < at_least:
        raise ValueError(f"{column} has {len(value)} entries, but needs {at_least}")
    return tuple(_valid(item.strip(), column) for item in value)


def _valid(text: str, column: str) -> str:
    """Refuse half of a surrogate pair, which JSON can express, but no encoding."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{column} is {shorten(text)}, which is not valid Unicode") from error
    return text


def read_choices(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options of a multiple-choice question, which are named by letters.

    Raises:
        ValueError: See `read_texts`, or there are more options than letters.
    """
    choices = read_texts(row, "choices", 2)
    if len(choices) > len(LETTERS):
        raise ValueError(f"choices has {len(choices)} entries, {len(LETTERS)} at most")
    return choices


def is_empty(value: Any) -> bool:
    """Return whether a column of lists has no list in a row; a cell of a csv file is a text."""
    return value is None or value in ([], "")


def read_index(value: Any, choices: Sequence[str], names: str = "") -> int:
    """Return the index of the correct option.

    A whole number may be stored as a float: pandas converts a column with a missing value.

    Args:
        value: The value.
        choices: The options.
        names: Other values that name an option, for the message.

    Raises:
        ValueError: The value is not a whole number, or is outside the options.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and 0 <= value < len(choices) and value == int(value):
        return int(value)
    raise ValueError(
        f"answer {shorten(value)} is outside its {len(choices)} choices "
        f"(0 to {len(choices) - 1}{names})"
    )


def read_id(row: Mapping[str, Any], column: str) -> str | None:
    """Return the id in a column; None if the row has none.

    Raises:
        ValueError: The value is neither a text nor a number or a date.
    """
    value = row.get(column)
    if value is None or value == "":
        return None
    if isinstance(value, (list, tuple, Mapping, bytes)) or value != value:  # NaN
        raise ValueError(f"{column} is {shorten(value)}, which is not a text or a number")
    is_untyped = isinstance(value, (UntypedInt, UntypedFloat))
    return _valid(value.text if is_untyped else str(value), column)
