"""Recover an exported checkpoint: distil the study's dense model into it, and export it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.config.task_factory import make_task
from effllava_optuna.errors import LeakError, shorten
from effllava_optuna.objectives import (
    encode_samples,
    graded_samples,
    groups_of,
    measure_of,
    score_batch,
)
from effllava_optuna.policy import bootstrap_interval
from effllava_optuna.surgery import VerifiedExport, export, load, load_pruned
from effllava_optuna.tasks import Scores, Split
from effllava_optuna.training import (
    DistillationOptions,
    JointAdaptation,
    LoraAdaptation,
    ProjectorAdaptation,
    RecoveryResult,
    recover,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
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
        data: Task whose proxy split is the training data, named as in a study file; None: the
            task of the study.
        samples: Number of training samples; None: the size of the study's proxy set.
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
    loaded: LoadedModel, samples: Sequence[Sample]
) -> tuple[float, tuple[float, float]]:
    """Return the share of right answers, and its 95 % interval."""
    encoded = encode_samples(loaded, samples, generate=True, device="cpu")
    scores = Scores.concatenate([score_batch(loaded, batch) for batch in encoded])
    return float(scores.hit.mean()), bootstrap_interval(scores.hit, groups_of(encoded))


def recovery_samples(config: StudyConfig, options: RecoveryOptions) -> tuple[Sample, ...]:
    """Return the training samples: the proxy split of a task, drawn with the study's seed.

    Raises:
        ConfigError: There is no such task.
        LeakError: A sample has a picture of the study's validation or test set.
    """
    document = config.document()
    task = document["task"]
    if options.data is not None:
        task = {key: task[key] for key in ("seed", "validation", "test")} | {"name": options.data}
    document["task"] = task | {"proxy": options.samples or config.task.proxy}
    samples = make_task(StudyConfig.of(document, source="--data")).samples(Split.PROXY)
    refuse_leaks(samples, make_task(config))
    return samples


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
                    f"Training sample {shorten(sample.id)} has the {what} of {split} sample "
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
    samples = recovery_samples(config, options)
    model = config.model
    report_stage("loading the models", 0.0)
    pruned = load_pruned(checkpoint, device=model.device, dtype=model.dtype)
    dense = load(model.path, device=model.device, dtype=model.dtype)
    measure = config.quality.measure
    samples = graded_samples(dense, samples, measure)
    validation = make_task(config).samples(Split.VALIDATION)
    validation_measure = measure_of(validation, measure)
    validation = graded_samples(dense, validation, measure)
    before = measure_accuracy(pruned, validation)
    recovery = recover(
        pruned,
        dense,
        samples,
        ADAPTATIONS[options.part],
        DistillationOptions(steps=options.steps, seed=config.study.seed),
        lambda share: report_stage("recovering", share),
    )
    report_stage("exporting and verifying", 0.0)
    after = measure_accuracy(pruned, validation)
    return RecoveryReport(
        before,
        after,
        recovery,
        export(pruned, out, overwrite=overwrite),
        validation_measure,
    )
