"""Check all samples of a task before a study begins."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import TaskError
from effllava_optuna.processors import tokenizer_of
from effllava_optuna.tasks.data.row_task import DataTask
from effllava_optuna.tasks.prompts import encode_prompts, encode_with_answers
from effllava_optuna.tasks.prompts.prompt_length import count_text_tokens, require_text_context
from effllava_optuna.tasks.sample import Split
from effllava_optuna.tasks.scoring.scores import grade_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from effllava_optuna.tasks.sample import GradingRule, Sample
    from effllava_optuna.tasks.task import Task

_LISTED = 3  # faults in one message
_PICTURES = 4  # pictures whose tokens are counted


def check_samples(
    task: Task,
    processor: Any,
    context: int | None,
    *,
    generate: bool,
    progress: Callable[[float], None],
) -> None:
    """Encode the samples of all splits as a study does, and open every image of the dataset.

    Args:
        task: The task of the study.
        processor: The processor of the model.
        context: Largest number of tokens of a sample; None: any number.
        generate: Whether the search needs no correct answers to open-ended questions: it grades
            or compares generated ones.
        progress: Called with the finished share.

    Raises:
        TaskError: Samples cannot be encoded, or images cannot be opened; the message names three
            of them and counts the others.
    """
    drawn = [sample for split in Split for sample in task.samples(split)]
    others = _rows_outside(task, drawn)
    picture_tokens = _picture_tokens(processor, drawn)
    faults: list[TaskError] = []
    for number, sample in enumerate([*drawn, *others]):
        progress(number / (len(drawn) + len(others)))
        try:
            if number < len(drawn):
                with_answer = not generate and sample.split is Split.PROXY
                _encode(processor, sample, context, with_answer=with_answer)
                if sample.rule is not None and sample.is_open_ended and sample.is_labelled:
                    _check_answer_length(tokenizer_of(processor), sample, sample.rule)
            else:
                sample.load_image()
                require_text_context(processor, [sample], context, picture_tokens)
        except TaskError as error:
            faults.append(error)
    _raise_together(faults)


def check_final_samples(
    task: Task, processor: Any, context: int | None, progress: Callable[[float], None]
) -> None:
    """Encode the samples of validation and test as a study does at its end, after the search.

    Args:
        task: The task of the study.
        processor: The processor of the model.
        context: Largest number of tokens of a sample; None: any number.
        progress: Called with the finished share.

    Raises:
        TaskError: See `check_samples`.
    """
    samples = [*task.samples(Split.VALIDATION), *task.samples(Split.TEST)]
    faults: list[TaskError] = []
    for number, sample in enumerate(samples):
        progress(number / len(samples))
        try:
            _encode(processor, sample, context, with_answer=False)
        except TaskError as error:
            faults.append(error)
    _raise_together(faults)


def _raise_together(faults: Sequence[TaskError]) -> None:
    """Raise one error for several, if there are any."""
    if not faults:
        return
    listed = " ".join(fault.message for fault in faults[:_LISTED])
    more = f" {len(faults) - _LISTED} more cannot be used." if len(faults) > _LISTED else ""
    raise TaskError(f"{listed}{more}", hint=faults[0].hint) from faults[0]


def _rows_outside(task: Task, drawn: Sequence[Sample]) -> list[Sample]:
    """Return the rows that are in no split; ``evaluate --split full`` uses them, too."""
    if not isinstance(task, DataTask):
        return []
    inside = {(sample.id, sample.group) for sample in drawn}
    rows = {(s.id, s.group): s for split in Split for s in task.all_rows(split)}
    return [sample for key, sample in rows.items() if key not in inside]


def _picture_tokens(processor: Any, samples: Sequence[Sample]) -> int:
    """Count the tokens of a picture beside its token in the text; 0 if pictures differ in it."""
    counts = set()
    for sample in [sample for sample in samples if sample.image is not None][:_PICTURES]:
        try:
            (batch,) = encode_prompts(processor, [sample])
        except (TaskError, ValueError):  # `check_samples` names the sample
            continue
        tokens = batch.inputs["input_ids"].shape[1]
        counts.add(tokens - count_text_tokens(processor, sample))
    return counts.pop() if len(counts) == 1 else 0


def _encode(processor: Any, sample: Sample, context: int | None, *, with_answer: bool) -> None:
    closed = not sample.is_open_ended
    encode = encode_with_answers if closed or with_answer else encode_prompts
    if closed and not sample.is_labelled:  # the options are encoded alike for any correct one
        sample = replace(sample, answer=0)
    try:
        encode(processor, [sample], context=context)
    except ValueError as error:  # processors raise it for the shape of an image, for example
        raise TaskError(
            f"Sample {sample.name} cannot be encoded: {error}.",
            hint="Fix that row, or remove it.",
        ) from error


def _check_answer_length(tokenizer: Any, sample: Sample, rule: GradingRule) -> None:
    """Refuse a question whose correct answers score 0 because they are not generated whole."""
    answers = [tokenizer.encode(text, add_special_tokens=False) for text in sample.targets]
    whole, cut = (
        max((grade_answer(sample, tokenizer.decode(ids[:length])) for ids in answers), default=0)
        for length in (None, rule.new_tokens)
    )
    if whole > 0 and cut == 0:
        shortest = min(map(len, answers))
        raise TaskError(
            f"Sample {sample.name} has no correct answer of {rule.new_tokens} tokens, "
            f"which are generated; the shortest has {shortest}, and {rule.name} grades a part 0.",
            hint="Raise task.new_tokens, or use another task.harness.",
        )
