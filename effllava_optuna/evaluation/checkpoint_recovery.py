"""Recover an exported checkpoint: distil the study's dense model into it, and export it again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from effllava_optuna.config.row_task_factory import make_row_task
from effllava_optuna.config.schema import ROWS, StudyConfig, is_task_name
from effllava_optuna.config.task_factory import make_task
from effllava_optuna.errors import LeakError, TaskError, shorten
from effllava_optuna.objectives import (
    ScoredSplit,
    graded_samples,
    measure_of,
    score_batch,
    tracked,
)
from effllava_optuna.policy import bootstrap_interval
from effllava_optuna.surgery import VerifiedExport, export, load, load_pruned
from effllava_optuna.tasks import Scores, Split
from effllava_optuna.tasks.data.split_sizes import FEWEST_PROXY
from effllava_optuna.training import (
    DistillationOptions,
    JointAdaptation,
    LoraAdaptation,
    ProjectorAdaptation,
    RecoveryResult,
    recover,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from effllava_optuna.calibration.stage_callback import StageCallback
    from effllava_optuna.objectives import Measure
    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Sample, Task
    from effllava_optuna.training import Adaptation

ADAPTATIONS: dict[str, Adaptation] = {
    "projector": ProjectorAdaptation(),
    "lora": LoraAdaptation(),
    "both": JointAdaptation(),
}


@dataclass(frozen=True, slots=True)
class RecoveryOptions:
    """Which weights are trained, and on which samples.

    Attributes:
        part: The trained weights, a key of `ADAPTATIONS`.
        data: The training data: a file, a directory or a hub id with rows; or a task, named as in
            a study file, whose proxy split is used. None: the proxy split of the study.
        samples: Maximum number of training samples; None: all rows, or of a task as many as the
            proxy set of the study has.
        steps: Maximum number of training steps.
    """

    part: str = "lora"
    data: str | None = None
    samples: int | None = None
    steps: int = 300


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """The effect of a recovery.

    Attributes:
        before: Accuracy on validation before, and its 95 % interval.
        after: The same of the recovered model.
        recovery: The training.
        verified: The new checkpoint.
        measure: Whether these are an accuracy, or an agreement with the dense model.
    """

    before: tuple[float, tuple[float, float]]
    after: tuple[float, tuple[float, float]]
    recovery: RecoveryResult
    verified: VerifiedExport
    measure: Measure


@torch.no_grad()
def measure_accuracy(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    progress: Callable[[float], None] = lambda _: None,
) -> tuple[float, tuple[float, float]]:
    """Return the share of right answers, and its 95 % interval.

    Args:
        loaded: The model.
        samples: Questions with answers.
        progress: Called with the finished share.
    """
    split = ScoredSplit(loaded, samples, kept_bytes=0)
    scores = Scores.concatenate(
        [score_batch(loaded, batch) for batch in tracked(split, len(samples), progress)]
    )
    return float(scores.hit.mean()), bootstrap_interval(scores.hit, split.groups)


def recovery_samples(config: StudyConfig, options: RecoveryOptions) -> tuple[Sample, ...]:
    """Return the training samples: rows, or the proxy split of a task.

    Raises:
        ConfigError: There is no such task.
        TaskError: The rows cannot be read or used, or are too few.
        LeakError: A sample has a picture of the study's validation or test set.
    """
    if options.data is None or is_task_name(options.data):
        document = config.document()
        task = document["task"]
        if options.data is not None:
            kept = {key: task[key] for key in ("seed", "validation", "test")}
            task = kept | {"name": options.data}
        document["task"] = task | {"proxy": options.samples or config.task.proxy}
        samples = make_task(StudyConfig.of(document, source="--data")).samples(Split.PROXY)
    else:
        samples = _rows(config, options.data, options.samples)
    refuse_leaks(samples, make_task(config))
    return samples


def _rows(config: StudyConfig, data: str, most: int | None) -> tuple[Sample, ...]:
    """Read training samples, with the columns and prompts of the study if it reads rows, too.

    Raises:
        TaskError: The rows cannot be read or used, or are too few.
    """
    document = config.document()
    own = document["task"] if config.task.name in ROWS else {"name": "qa"}
    document["task"] = own | {"data": data, "config": None, "splits": {}}
    document["quality"]["measure"] = "agreement"  # the dense model answers, if nobody else does
    task = make_row_task(StudyConfig.of(document, source="--data"))
    count = task.count_rows(Split.PROXY)
    if count < FEWEST_PROXY:
        raise TaskError(
            f"--data {data} has {count} row{'' if count == 1 else 's'}: a recovery needs at least "
            f"{FEWEST_PROXY}.",
            hint="Add rows, or leave --data out: then the proxy set of the study is used.",
        )
    return replace(task, proxy=most or count, validation=1, test=1).samples(Split.PROXY)


def refuse_leaks(samples: Sequence[Sample], task: Task) -> None:
    """Refuse samples with a picture of the validation or test set of ``task``.

    Raises:
        LeakError: A sample has such a picture or, without a picture, such a question.
    """
    for split in (Split.VALIDATION, Split.TEST):
        held_out_ids = {_content(held_out): held_out.id for held_out in task.samples(split)}
        for sample in samples:
            held_out_id = held_out_ids.get(_content(sample))
            if held_out_id is not None:
                what = "question" if sample.image is None else "picture"
                raise LeakError(
                    f"Training sample {sample.name} has the {what} of {split} sample "
                    f"{shorten(held_out_id)}.",
                    hint=f"Use training data without the {what}s that the study reports on.",
                )


def _content(sample: Sample) -> bytes:
    picture = sample.load_image()
    return sample.question.encode() if picture is None else picture.tobytes()


def recover_checkpoint(
    config: StudyConfig,
    options: RecoveryOptions,
    checkpoint: Path,
    out: Path,
    report_stage: StageCallback,
    *,
    overwrite: bool,
) -> RecoveryReport:
    """Recover an exported checkpoint of a study, and export the result to ``out``.

    Raises:
        LeakError: A training sample belongs to validation or test.
        ModelError: The checkpoint cannot be loaded, or was not pruned from the study's model.
        ExportError: ``out`` cannot be used, or the new checkpoint does not reload.
    """
    report_stage("reading the rows", 0.0)
    samples = recovery_samples(config, options)
    model = config.model
    report_stage("loading the models", 0.0)
    pruned = load_pruned(checkpoint, device=model.device, dtype=model.dtype)
    dense = load(model.path, device=model.device, dtype=model.dtype)
    measure = config.quality.measure
    report_stage("answering with the dense model", 0.0)
    labelled = all(sample.is_labelled for sample in samples)
    samples = graded_samples(dense, samples, measure if labelled else "agreement")
    validation = make_task(config).samples(Split.VALIDATION)
    validation_measure = measure_of(validation, measure)
    validation = graded_samples(dense, validation, measure)
    before = measure_accuracy(
        pruned, validation, lambda share: report_stage("measuring the pruned model", share)
    )
    recovery = recover(
        pruned,
        dense,
        samples,
        ADAPTATIONS[options.part],
        DistillationOptions(steps=options.steps, seed=config.study.seed),
        lambda share: report_stage("recovering", share),
    )
    after = measure_accuracy(
        pruned, validation, lambda share: report_stage("measuring the recovered model", share)
    )
    report_stage("exporting and verifying", 0.0)
    return RecoveryReport(
        before,
        after,
        recovery,
        export(pruned, out, overwrite=overwrite),
        validation_measure,
    )
