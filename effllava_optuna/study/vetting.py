"""Look at all samples before a study begins, not in the middle of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks import DataTask, Split, encode, prompts

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.study.workbench import Workbench
    from effllava_optuna.tasks import Sample, Task

_NAMED = 3  # faults in one message


def vet(bench: Workbench, progress: Callable[[float], None]) -> None:
    """Ask the samples of all splits as a study does, and open every picture of the data.

    Args:
        bench: The model and the task.
        progress: Is told the share that is done.

    Raises:
        TaskError: Samples cannot be asked, or pictures not be opened; three are told, and the
            others counted.
    """
    drawn = [sample for split in Split for sample in bench.task.samples(split)]
    others = _others(bench.task, drawn)
    faults: list[TaskError] = []
    for number, sample in enumerate([*drawn, *others]):
        progress(number / (len(drawn) + len(others)))
        try:
            if number < len(drawn):
                _ask(bench, sample)
            else:
                sample.picture()
        except TaskError as error:
            faults.append(error)
    if not faults:
        return
    told = " ".join(fault.message for fault in faults[:_NAMED])
    more = f" {len(faults) - _NAMED} more cannot be used." if len(faults) > _NAMED else ""
    raise TaskError(f"{told}{more}", hint=faults[0].hint) from faults[0]


def _others(task: Task, drawn: list[Sample]) -> list[Sample]:
    """Give the rows of the data that are in no split: `evaluate --split full` asks them, too."""
    if not isinstance(task, DataTask):
        return []
    known = {(sample.id, sample.unit) for sample in drawn}
    rows = {(s.id, s.unit): s for split in Split for s in task.everything(split)}
    return [sample for key, sample in rows.items() if key not in known]


def _ask(bench: Workbench, sample: Sample) -> None:
    read = bench.spec.task.measure == "likelihood" and sample.split is Split.PROXY
    make = prompts if sample.open and not read else encode
    try:
        make(bench.loaded.processor, [sample])
    except ValueError as error:  # what processors raise, of a picture's shape for example
        raise TaskError(
            f"Sample {sample.id!r} cannot be asked: {error}.",
            hint="Mend that row, or leave it out.",
        ) from error
