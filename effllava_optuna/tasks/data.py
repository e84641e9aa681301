"""Tasks whose samples are the rows of a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks._task import Sample, Split, digest_of
from effllava_optuna.tasks.dealing import Candidate, deal
from effllava_optuna.tasks.rows import Picture, Rows, read_rows, splits_of
from effllava_optuna.tasks.schemas import SCHEMAS, Options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from effllava_optuna.tasks._task import Task
    from effllava_optuna.tasks.schemas import Entry, Schema

_NAMED = 3  # faults in one message
_ONLY = "train"  # what the only split of a file is called


class _Read(NamedTuple):
    """A row that was read: what it says, the unit it comes from, and its picture, not opened."""

    entry: Entry
    unit: str
    picture: Picture | None


@dataclass(frozen=True)
class DataTask:
    """A benchmark, or the user's own rows.

    A sample is independent of others by its picture; without one, by its question. The proxy
    never shares either with validation or test, nor they with each other.

    Args:
        schema: What the rows say, one of `SCHEMAS`.
        data: Where they are: see `read_rows`; None: the schema's place on the hub.
        config: On the hub; None: the schema's.
        sources: Which split of the data each role comes from, where not the schema's.
        columns: By column of the schema, that of the data, where they differ.
        options: How the benchmark is asked and graded.
        seed: Draws the samples.
        proxy: The most samples of each role; all that there are, if fewer.
        validation: See ``proxy``.
        test: See ``proxy``.

    Raises:
        TaskError: There is no such data, a column is missing, or rows cannot be used.
    """

    schema: str
    data: str | None = None
    config: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    options: Options = field(default_factory=Options)
    seed: int = 0
    proxy: int = 64
    validation: int = 500
    test: int = 2000

    @property
    def name(self) -> str:
        """Name the task as a study file does."""
        return self.schema

    @cached_property
    def digest(self) -> str:
        """Identify the samples of all splits by content."""
        return digest_of([sample for split in Split for sample in self.samples(split)])

    @cached_property
    def chance(self) -> float:
        """Give the mean chance of guessing right on the proxy; open questions have none."""
        proxy = self.samples(Split.PROXY)
        return sum(0.0 if s.open else 1 / len(s.targets) for s in proxy) / max(1, len(proxy))

    def samples(self, split: Split) -> tuple[Sample, ...]:
        """Give the samples of ``split``, always the same ones in the same order."""
        return self._drawn[split]

    @property
    def left_out(self) -> tuple[int, int]:
        """Count the rows that are in no split, and all rows of the splits' sources.

        A row is left out where the sizes are reached, or its picture is in another split.
        """
        rows = sum(len(self._rows[name]) for name in dict.fromkeys(self._sources.values()))
        return rows - sum(len(self.samples(split)) for split in Split), rows

    def everything(self, split: Split) -> tuple[Sample, ...]:
        """Give all rows of the split of the data that ``split`` is drawn from.

        It is what a benchmark's official score is about; where the proxy comes from there, too,
        it holds samples that a search has seen.
        """
        name = self._sources[split]
        return tuple(self._sample(name, row, Split.TEST) for row in range(len(self._rows[name])))

    @cached_property
    def _schema(self) -> Schema:
        return SCHEMAS[self.schema](self.options)

    @cached_property
    def _data(self) -> str:
        found = self.data or self._schema.hub
        if found is None:
            raise TaskError(
                f"Task {self.name!r} has no data.", hint="Give task.data, a file or a directory."
            )
        return found

    @cached_property
    def _sources(self) -> dict[Split, str]:
        """Say which split of the data each role comes from."""
        known = splits_of(self._data, self._config)
        usual = dict(self._schema.sources)
        if known is None:
            return dict.fromkeys(Split, _ONLY)
        if len(known) == 1:
            usual = dict.fromkeys(Split, known[0])
        return usual | {Split(role): name for role, name in self.sources.items()}

    @property
    def _config(self) -> str | None:
        own = self.data is None or self.data == self._schema.hub
        return self.config or (self._schema.config if own else None)

    @cached_property
    def _rows(self) -> dict[str, Rows]:
        names = dict.fromkeys(self._sources.values())
        return {name: read_rows(self._data, name, self._config) for name in names}

    @cached_property
    def _entries(self) -> dict[str, list[_Read]]:
        """Read all rows, and each picture once."""
        return {name: self._read(rows) for name, rows in self._rows.items()}

    def _column(self, role: str) -> str:
        return self.columns.get(role, role)

    def _read(self, rows: Rows) -> list[_Read]:
        schema = self._schema
        asked = {role: self._column(role) for role in (*schema.required, *schema.optional)}
        for role in self.columns:
            if role not in asked:
                raise TaskError(
                    f"task.columns names {role!r}, which task {self.name!r} does not have.",
                    hint=f"It has {', '.join(asked)}.",
                )
        for role, column in asked.items():
            missing = column not in rows.columns
            if missing and (role in schema.required or role in self.columns):
                raise TaskError(
                    f"{rows.place} has no column {column!r}; it has {', '.join(rows.columns)}.",
                    hint=f"Say in task.columns which one is {role!r}.",
                )
        faults: list[str] = []
        seen: dict[str, int] = {}
        found: list[_Read] = []
        pictures: Iterable[Picture | None] = repeat(None, len(rows))
        if asked.get("image") in rows.columns:
            pictures = rows.pictures(asked["image"])
        for number, (texts, picture) in enumerate(zip(rows.texts(), pictures, strict=True)):
            row = {role: texts.get(column) for role, column in asked.items()}
            try:
                shown = None if picture is None else picture.encoded()
                if shown is None and "image" in schema.required:
                    raise ValueError(f"{asked['image']} is empty")
                entry = schema.read(row, pictured=shown is not None)
                if entry.id is not None and seen.setdefault(entry.id, number) != number:
                    raise ValueError(f"id {entry.id!r} is that of row {seen[entry.id]}, too")
            except (ValueError, OSError) as error:
                faults.append(f"row {number}: {error}")
                continue
            content = hashlib.sha256(entry.question.encode() if shown is None else shown)
            unit = f"{'text' if shown is None else 'picture'}-{content.hexdigest()[:16]}"
            found.append(_Read(entry, unit, None if shown is None else picture))
        if faults:
            more = f"; {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
            raise TaskError(
                f"{rows.place}: {'; '.join(faults[:_NAMED])}{more}.",
                hint="Mend these rows (the first one is row 0), or leave them out.",
            )
        return found

    @cached_property
    def _drawn(self) -> dict[Split, tuple[Sample, ...]]:
        pools = {
            name: [
                Candidate(row, read.unit, read.entry.stratum) for row, read in enumerate(entries)
            ]
            for name, entries in self._entries.items()
        }
        sizes = {
            Split.PROXY: self.proxy,
            Split.VALIDATION: self.validation,
            Split.TEST: self.test,
        }
        dealt = deal(pools, self._sources, sizes, self.seed)
        found = {}
        for split, rows in dealt.items():
            name = self._sources[split]
            found[split] = tuple(self._sample(name, row, split) for row in rows)
        return found

    def _sample(self, name: str, row: int, split: Split) -> Sample:
        read = self._entries[name][row]
        entry = read.entry
        return Sample(
            id=entry.id or f"{name}-{row:05d}",
            unit=read.unit,
            split=split,
            image=read.picture,
            question=entry.question,
            targets=entry.targets,
            answer=entry.answer,
            rule=self._rules[entry.answer is not None],
            subsets=entry.subsets,
            system=self.options.system,
            context=entry.context,
        )

    @cached_property
    def _rules(self) -> dict[bool, Any]:
        return {closed: self._schema.rule(closed=closed) for closed in (False, True)}


if TYPE_CHECKING:
    _: tuple[Callable[..., Task], ...] = (DataTask,)
