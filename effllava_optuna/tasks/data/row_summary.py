"""What the rows of a dataset are, as far as it is known without opening their images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import shorten
from effllava_optuna.tasks.sample import Split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.tasks.data.row_parsing import GroupedRow
    from effllava_optuna.tasks.data.row_task import DataTask
    from effllava_optuna.tasks.schemas import ParsedRow

WHY_UNUSED = "because the splits are full, or another split has their picture or question"
_COMMON = 0.9  # share of one answer, from which it is named
_LISTED = 12  # columns
_ENOUGH = 200  # rows, see docs/data.md


@dataclass(frozen=True, slots=True)
class RowSummary:
    """The rows of a dataset.

    Attributes:
        rows: Number of rows.
        columns: Names of the columns.
        pictures: Number of rows with an image.
        labelled: Number of rows with a correct answer.
        samples: Number of samples of each split.
        sources: The split of the dataset that each split is drawn from; empty: all from one.
        unused: Number of rows in no split.
        notes: What makes a study of these rows less useful.
    """

    rows: int
    columns: tuple[str, ...]
    pictures: int
    labelled: int
    samples: Mapping[Split, int]
    sources: Mapping[Split, str]
    unused: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return {
            "rows": self.rows,
            "columns": list(self.columns),
            "pictures": self.pictures,
            "labelled": self.labelled,
            "samples": {str(split): count for split, count in self.samples.items()},
            "sources": {str(split): name for split, name in self.sources.items()},
            "unused": self.unused,
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """Return the summary as lines of text."""
        named = ", ".join(map(shorten, self.columns[:_LISTED]))
        more = len(self.columns) - _LISTED
        origins = {split: f" from {shorten(name)}" for split, name in self.sources.items()}
        splits = ", ".join(
            f"{count:,} {split}{origins.get(split, '')}" for split, count in self.samples.items()
        )
        unused = f"; {self.unused:,} of the rows are in no split, {WHY_UNUSED}"
        return [
            f"rows: {self.rows:,}, {self.pictures:,} of them with a picture and "
            f"{self.labelled:,} with an answer; columns: {named}"
            f"{f' and {more} more' if more > 0 else ''}",
            f"samples: {splits}{unused if self.unused else ''}",
            *(f"note: {note}" for note in self.notes),
        ]


def summarise_rows(task: DataTask) -> RowSummary:
    """Read all rows of a task, and summarise them.

    Raises:
        TaskError: Rows cannot be read or used.
    """
    parsed = [row for rows in task.parsed.values() for row in rows]
    unused, count = task.unused_rows
    few = (
        f"with fewer than about {_ENOUGH} rows, the intervals on validation and test are too wide "
        "to choose by"
    )
    notes = (few if count < _ENOUGH else "", _repeated(task), _common_answer(parsed))
    return RowSummary(
        rows=count,
        columns=tuple(task.column_names),
        pictures=sum(row.image is not None for row in parsed),
        labelled=count - task.unlabelled_rows[0],
        samples={split: len(task.samples(split)) for split in Split},
        sources=task.drawn_from if len({*task.drawn_from.values()}) > 1 else {},
        unused=unused,
        notes=tuple(note for note in notes if note),
    )


def _repeated(task: DataTask) -> str:
    """Describe the rows that have the image, question and answer of another one."""
    first: dict[object, tuple[str, int]] = {}
    example, repeats = "", 0
    for name, rows in task.parsed.items():
        for number, (content, group, _) in enumerate(rows):
            key = (group, content.question, content.targets, content.answer)
            before = first.setdefault(key, (name, number))
            if before != (name, number):
                repeats += 1
                example = example or (
                    f"{task.rows[name].place(number)} repeats "
                    f"{task.rows[before[0]].place(before[1])}"
                )
    more = f", and {repeats - 1} more do" if repeats > 1 else ""
    return f"{example}{more}: each counts as a sample of its own" if example else ""


def _common_answer(rows: Sequence[GroupedRow]) -> str:
    """Describe an answer that most rows have, which a model may give to any question."""
    answers = Counter(answer for row in rows if (answer := _answer(row.content)))
    ((answer, count),) = answers.most_common(1) or [("", 0)]
    if len(rows) < 2 or not count or count < _COMMON * answers.total():
        return ""
    return (
        f"{count:,} of {answers.total():,} answers are {shorten(answer)}: a model that ignores "
        "pictures and questions scores as well"
    )


def _answer(content: ParsedRow) -> str:
    """Return the correct answer; empty if none is known."""
    index = content.answer or 0
    return content.targets[index] if 0 <= index < len(content.targets) else ""
