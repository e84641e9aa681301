"""Recover an exported checkpoint: distil the study's dense model into it, and export it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from effllava_optuna.errors import LeakError
from effllava_optuna.hooks import Distillation, Lora, Projector, Recovered, recover
from effllava_optuna.objectives import ask, scored, units_of
from effllava_optuna.policy import bootstrap_interval
from effllava_optuna.study.spec import StudySpec
from effllava_optuna.study.task import task_of
from effllava_optuna.surgery import Verified, export, load, load_pruned
from effllava_optuna.tasks import Scores, Split

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from effllava_optuna.hooks import Adaptation
    from effllava_optuna.study.workbench import Say
    from effllava_optuna.surgery import Loaded
    from effllava_optuna.tasks import Sample, Task

PARTS: dict[str, Adaptation] = {"projector": Projector(), "lora": Lora()}


@dataclass(frozen=True, slots=True)
class Course:
    """What is learned, and from what.

    Attributes:
        part: Which weights learn, of `PARTS`.
        data: The task whose proxy split teaches, named as in a study file; None: the study's.
        samples: How many; None: as many as the study's proxy has.
        steps: The most steps that may be taken.
    """

    part: str = "lora"
    data: str | None = None
    samples: int | None = None
    steps: int = 300


@dataclass(frozen=True, slots=True)
class Report:
    """What a recovery gave.

    Attributes:
        before: Accuracy on validation, and its interval.
        after: The same of the recovered model.
        recovered: What was learned.
        verified: The new checkpoint.
    """

    before: tuple[float, tuple[float, float]]
    after: tuple[float, tuple[float, float]]
    recovered: Recovered
    verified: Verified


@torch.no_grad()
def accuracy(loaded: Loaded, samples: Sequence[Sample]) -> tuple[float, tuple[float, float]]:
    """Give the share of right answers, and its 95 % interval."""
    asked = ask(loaded, samples, written=True, kept="cpu")
    scores = Scores.joined([scored(loaded, item) for item in asked])
    return float(scores.hit.mean()), bootstrap_interval(scores.hit, units_of(asked))


def lessons_of(spec: StudySpec, course: Course) -> tuple[Sample, ...]:
    """Give the samples to learn from: the proxy split of a task, in the study's seed.

    Raises:
        SpecError: There is no such task.
        LeakError: One shows a picture that the study validates or tests on.
    """
    document = spec.document()
    task = document["task"]
    if course.data is not None:
        task = {key: task[key] for key in ("seed", "validation", "test")} | {"name": course.data}
    document["task"] = task | {"proxy": course.samples or spec.task.proxy}
    samples = task_of(StudySpec.of(document, place="--data")).samples(Split.PROXY)
    refuse_shared(samples, task_of(spec))
    return samples


def refuse_shared(samples: Sequence[Sample], task: Task) -> None:
    """Refuse samples whose picture belongs to what ``task`` validates or tests on.

    Raises:
        LeakError: One does.
    """
    for split in (Split.VALIDATION, Split.TEST):
        taken = {_content(other): other.id for other in task.samples(split)}
        for sample in samples:
            shared = taken.get(_content(sample))
            if shared is not None:
                what = "question" if sample.image is None else "picture"
                raise LeakError(
                    f"Recovery was given sample {sample.id!r} with the {what} of {split} sample "
                    f"{shared!r}.",
                    hint=f"Learn from {what}s that the study does not report on.",
                )


def _content(sample: Sample) -> bytes:
    picture = sample.picture()
    return sample.question.encode() if picture is None else picture.tobytes()


def recover_checkpoint(
    spec: StudySpec, course: Course, checkpoint: Path, out: Path, say: Say, *, overwrite: bool
) -> Report:
    """Load a checkpoint, recover it, and write what came of it to ``out``.

    Raises:
        LeakError: A sample belongs to validation or test.
        ModelError: The checkpoint does not load, or was not cut from the study's model.
        ExportError: ``out`` cannot be used, or the checkpoint does not come back.
    """
    samples = lessons_of(spec, course)
    model = spec.model
    say("loading the models", 0.0)
    pruned = load_pruned(checkpoint, device=model.device, dtype=model.dtype)
    dense = load(model.path, device=model.device, dtype=model.dtype)
    validation = task_of(spec).samples(Split.VALIDATION)
    before = accuracy(pruned, validation)
    how = Distillation(steps=course.steps, seed=spec.study.seed)
    done = recover(
        pruned, dense, samples, PARTS[course.part], how, lambda share: say("recovering", share)
    )
    say("exporting and verifying", 0.0)
    after = accuracy(pruned, validation)
    return Report(before, after, done, export(pruned, out, overwrite=overwrite))
