"""Tasks whose samples are the rows of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.data.dataset_rows import DatasetRows, is_local, read_split, split_names
from effllava_optuna.tasks.data.row_parsing import GroupedRow, parse_rows
from effllava_optuna.tasks.data.split_sizes import (
    complete_sizes,
    describe_sizes,
    sizes_for_rows,
)
from effllava_optuna.tasks.data.splitting import CandidateRow, split_rows
from effllava_optuna.tasks.sample import GradingRule, Sample, Split
from effllava_optuna.tasks.schemas import SCHEMAS, TaskOptions
from effllava_optuna.tasks.task import digest_samples

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.tasks.schemas import RowSchema
    from effllava_optuna.tasks.task import Task

_UNNAMED = "train"  # name of the only split of a file


@dataclass(frozen=True)
class DataTask:
    """A benchmark, or the user's own rows.

    The group of a sample is its image; without an image, its question. No two splits share a
    group.

    Args:
        schema: Name of the schema of the rows, one of `SCHEMAS`.
        data: The dataset, see `read_split`; None: the dataset of the schema on the hub.
        config: Configuration on the hub; None: that of the schema.
        sources: For each split of the task, the split of the dataset that it is drawn from, where
            it differs from the schema.
        columns: Columns of the dataset by column of the schema, where the names differ.
        options: Options of the prompts and of the grading.
        seed: Seed of the draw.
        proxy: Largest number of proxy samples; the dataset may have fewer. None: 64, or a number
            that suits the rows if all splits are drawn from the same ones, see `complete_sizes`.
        validation: Largest number of validation samples; None: 500, or as above.
        test: Largest number of test samples; None: 2000, or as above.
        open_images: Whether to read the images, which are compared by their content. Otherwise
            those in files are compared by their names, which is fast but less strict.

    Raises:
        TaskError: At the first use of samples: the dataset cannot be read, a column is missing,
            or rows cannot be used.
    """

    schema: str
    data: str | None = None
    config: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    options: TaskOptions = field(default_factory=TaskOptions)
    seed: int = 0
    proxy: int | None = None
    validation: int | None = None
    test: int | None = None
    open_images: bool = True

    @property
    def name(self) -> str:
        """Return the name of the task in a study file."""
        return self.schema

    @cached_property
    def digest(self) -> str:
        """Return a hash of the samples of all splits."""
        return digest_samples([sample for split in Split for sample in self.samples(split)])

    @cached_property
    def chance(self) -> float:
        """Return the mean accuracy of random guessing on the proxy; 0 for open-ended questions."""
        proxy = self.samples(Split.PROXY)
        by_sample = (0.0 if sample.is_open_ended else 1 / len(sample.targets) for sample in proxy)
        return sum(by_sample) / max(1, len(proxy))

    def samples(self, split: Split) -> tuple[Sample, ...]:
        """Return the samples of ``split``, the same ones in the same order at every call."""
        return self._samples[split]

    @cached_property
    def sizes(self) -> dict[Split, int]:
        """Return the largest number of samples of each split.

        Raises:
            TaskError: There are too few rows, and no number is set.
        """
        given = {
            Split.PROXY: self.proxy,
            Split.VALIDATION: self.validation,
            Split.TEST: self.test,
        }
        return complete_sizes(given, self._n_shared_rows, source=self._data)

    def require_splits(self) -> None:
        """Refuse sizes that leave a split without samples.

        Raises:
            TaskError: One has none; the message names sizes that fit.
        """
        empty = next((split for split in Split if not self.samples(split)), None)
        if empty is None or self._n_shared_rows is None:
            return  # of splits with rows of their own, `validate_task` refuses an empty one
        (rows,) = self.parsed.values()
        fitting = sizes_for_rows(len(rows), source=self._data)
        n_groups = len({row.group for row in rows})
        if n_groups < len(Split):
            raise TaskError(
                f"{self._data}: its {len(rows)} rows are about {n_groups} different "
                f"picture{'' if n_groups == 1 else 's'}, or questions without one, but proxy, "
                "validation and test need one each.",
                hint="Add rows about other pictures.",
            )
        raise TaskError(
            f"{self._data} has {len(rows)} rows: {describe_sizes(self.sizes)} leave no {empty} "
            "samples.",
            hint=f"Use {describe_sizes(fitting)}, or leave all three out.",
        )

    @property
    def _n_shared_rows(self) -> int | None:
        """The number of rows that all splits are drawn from; None: not from the same ones."""
        return len(next(iter(self.rows.values()))) if len(self.rows) == 1 else None

    @property
    def is_local(self) -> bool:
        """Return whether the data is a path, not a dataset of the hub."""
        return is_local(self._data)

    @property
    def missing_columns(self) -> list[str]:
        """Return the columns of the schema that the dataset has not, that of answers included."""
        return [
            name
            for name in self._schema.required
            if any(self.columns.get(name, name) not in r.columns for r in self.rows.values())
        ]

    @property
    def column_names(self) -> list[str]:
        """Return the names of the columns of the dataset."""
        return list(dict.fromkeys(name for rows in self.rows.values() for name in rows.columns))

    @property
    def label(self) -> str:
        """Return the column of the schema that has the answers."""
        return self._schema.label

    @property
    def unused_rows(self) -> tuple[int, int]:
        """Return the number of rows in no split, and the number of all rows.

        A row is unused if the sizes are reached, or if another split has its group.
        """
        n_rows = sum(len(rows) for rows in self.rows.values())
        return n_rows - sum(len(self.samples(split)) for split in Split), n_rows

    @property
    def unlabelled_rows(self) -> tuple[int, int]:
        """Return the number of rows without a correct answer, and the number of all rows."""
        label = self._schema.label
        column = self.columns.get(label, label)
        values = [row.get(column) for rows in self.rows.values() for row in rows.iterate([column])]
        return sum(not self._schema.has_answer({label: v}) for v in values), len(values)

    def count_rows(self, split: Split) -> int:
        """Return the number of rows that ``split`` is drawn from."""
        return len(self.rows[self.drawn_from[split]])

    def all_rows(self, split: Split) -> tuple[Sample, ...]:
        """Return all rows of the dataset split that ``split`` is drawn from.

        Official scores of benchmarks are computed on them. They include proxy samples if the
        proxy is drawn from the same dataset split.
        """
        source = self.drawn_from[split]
        indices = range(len(self.rows[source]))
        return tuple(self._sample(source, row, Split.TEST) for row in indices)

    @cached_property
    def _schema(self) -> RowSchema:
        return SCHEMAS[self.schema](self.options)

    @cached_property
    def _data(self) -> str:
        data = self.data or self._schema.hub
        if data is None:
            raise TaskError(
                f"Task {self.name!r} has no data.", hint="Set task.data to a file or a directory."
            )
        return data

    @property
    def _config(self) -> str | None:
        is_hub_dataset = self.data is None or self.data == self._schema.hub
        return self.config or (self._schema.config if is_hub_dataset else None)

    @cached_property
    def drawn_from(self) -> dict[Split, str]:
        """Return the split of the dataset that each split of the task is drawn from."""
        names = split_names(self._data, self._config)
        if names is None:
            return dict.fromkeys(Split, _UNNAMED)
        default = dict.fromkeys(Split, names[0]) if len(names) == 1 else self._schema.sources
        return {**default, **{Split(split): name for split, name in self.sources.items()}}

    @cached_property
    def rows(self) -> dict[str, DatasetRows]:
        """Return the rows by split of the dataset.

        Raises:
            TaskError: The dataset does not exist, or cannot be read.
        """
        names = dict.fromkeys(self.drawn_from.values())
        return {name: read_split(self._data, name, self._config) for name in names}

    @cached_property
    def parsed(self) -> dict[str, list[GroupedRow]]:
        """Return the content of the rows by split of the dataset.

        Raises:
            TaskError: A column is missing, or rows cannot be used.
        """
        return {
            name: parse_rows(rows, self._schema, self.columns, open_images=self.open_images)
            for name, rows in self.rows.items()
        }

    @cached_property
    def _samples(self) -> dict[Split, tuple[Sample, ...]]:
        pools = {
            name: [
                CandidateRow(index, group, content.stratum, has_image=image is not None)
                for index, (content, group, image) in enumerate(rows)
            ]
            for name, rows in self.parsed.items()
        }
        assigned = split_rows(pools, self.drawn_from, self.sizes, self.seed)
        return {
            split: tuple(self._sample(self.drawn_from[split], row, split) for row in rows)
            for split, rows in assigned.items()
        }

    def _sample(self, source: str, index: int, split: Split) -> Sample:
        content, group, image = self.parsed[source][index]
        return Sample(
            id=content.id or f"{source}-{index:05d}",
            group=group,
            split=split,
            image=image,
            question=content.question,
            targets=content.targets,
            answer=content.answer,
            rule=self._rules[content.answer is not None],
            subsets=content.subsets,
            system=self.options.system,
            context=content.context,
            place=self.rows[source].place(index),
        )

    @cached_property
    def _rules(self) -> dict[bool, GradingRule]:
        return {closed: self._schema.grading_rule(closed=closed) for closed in (False, True)}


if TYPE_CHECKING:
    _: tuple[Callable[..., Task], ...] = (DataTask,)
