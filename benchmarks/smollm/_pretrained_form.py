"""The form of the scripts that measure ``smollm-vlm``."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from _evidence import announce, parse_form, publish
from _packages import BUILT, HERE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from _evidence import Form
    from _records import Record, RecordId
    from _studies import StudyRunner

MODEL, LANGUAGE_MODEL = "smollm-vlm", "smollm2"
# The language model alone: it agrees with its own answers to questions about words.
TEXT = (
    f"task.data={json.dumps(str(BUILT / 'words.jsonl'))}", "task.new_tokens=24",
    "quality.measure='agreement'",
)  # fmt: skip
DRAWS = 3
CAVEAT = (
    "One pretrained language model of 135 million parameters, with questions about one coloured "
    "shape: this supports no claim about larger models."
)
# In the tiny form; fits by least squares take minutes, whatever the number of samples.
_FAST = (
    "pruning.importance='flap'", "pruning.compensation='bias'", "pruning.width_ratios=[0.3, 1.0]",
    "task.proxy=8", "latency.batch=1", "latency.checks=1", "search.epochs=1",
    "search.population=4", "report.finalists=1",
)  # fmt: skip


def pretrained_form(
    description: str | None,
    arguments: Sequence[str] | None,
    draws: int = DRAWS,
    *,
    any_device: bool = True,
) -> Form:
    """Read the command line of a script that measures ``smollm-vlm``.

    Args:
        description: The description of the script.
        arguments: The command line; None: that of the process.
        draws: Number of draws in the full form.
        any_device: Whether the models may run on another device than a CPU.

    Raises:
        SystemExit: The model has not been built.
    """
    form = parse_form(description, arguments, draws=draws, any_device=any_device)
    model = BUILT / MODEL
    if not form.report and not model.is_dir():
        raise SystemExit("Run `python benchmarks/smollm/build.py` first.")
    return replace(
        form,
        models={name: str(BUILT / name) for name in (MODEL, LANGUAGE_MODEL)},
        config=HERE / "tables.toml",
        common=(f"task.data={json.dumps(str(BUILT / 'easy-vqa'))}",),
        overrides=_FAST if form.name == "tiny" else (),
        caveat=CAVEAT,
    )


class PretrainedTables(Protocol):
    """Measures the networks of a script, and keeps their records."""

    form: Form
    runner: StudyRunner

    def ids(self) -> list[RecordId]:
        """Return the ids of all records of the form."""

    def measure(self) -> None:
        """Measure what has no record."""


def measure_and_publish(
    tables: PretrainedTables,
    title: str,
    seconds: float,
    section: Callable[[Mapping[tuple[Any, ...], Record], Form], str],
) -> None:
    """Measure what has no record, unless only a report is wanted, and write the section.

    Args:
        tables: What is measured.
        title: The heading.
        seconds: Of one core, for a record.
        section: Formats it, from the records by what follows the kind in their keys.
    """
    torch.set_num_threads(1)
    announce(tables.runner.missing(tables.ids()), seconds)
    if not tables.form.report:
        tables.measure()
    publish_tables(
        tables.runner, title, tables.ids(), lambda records: section(records, tables.form)
    )


def publish_tables(
    runner: StudyRunner,
    title: str,
    record_ids: Iterable[RecordId],
    section: Callable[[Mapping[tuple[Any, ...], Record]], str],
) -> None:
    """Write the section of the records that exist.

    Args:
        runner: Has the records.
        title: The heading.
        record_ids: The records of the section.
        section: Formats it, from the records by what follows the kind in their keys.

    Raises:
        SystemExit: There are no records.
    """
    existing = runner.existing(record_ids)
    if not existing:
        raise SystemExit("There are no records yet; run this without --report.")
    text = section({record_id.key[1:]: record for record_id, record in existing.items()})
    publish(runner.form, title, text, [record["provenance"] for record in existing.values()])
