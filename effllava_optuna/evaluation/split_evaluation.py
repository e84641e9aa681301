"""Evaluate a checkpoint, or the policy of a trial, on a split of a study's task."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effllava_optuna.config.task_factory import make_unchecked_task
from effllava_optuna.errors import ConfigError, StudyError, TaskError
from effllava_optuna.evaluation.answering import GradedAnswer, answer_samples
from effllava_optuna.evaluation.record_file import RecordFile
from effllava_optuna.objectives import constant_of, rule_of
from effllava_optuna.policy import Policy
from effllava_optuna.report import accuracy_by_subset, accuracy_with_interval
from effllava_optuna.search.runner import resume
from effllava_optuna.storage.names import CHOSEN
from effllava_optuna.storage.trial_records import measured_record
from effllava_optuna.surgery import fingerprint, load, policy_network
from effllava_optuna.tasks import DataTask, Split

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from effllava_optuna.calibration.stage_callback import StageCallback
    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.storage.location import StudyLocation
    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Sample, Task

FULL_SPLIT = "full"
CHOSEN_MODEL, DENSE_MODEL = "chosen", "dense"


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """What is evaluated, and how.

    Attributes:
        model: ``dense``, ``chosen``, the number of a trial, a directory or a hub id.
        split: A split of the study, or `FULL_SPLIT`: all rows of the data that test is drawn
            from.
        letters: Whether to compare the options of closed questions; otherwise the model generates
            answers, which the rule of the benchmark reads.
        limit: Maximum number of samples, from the first one; None: all.
        batch_size: Samples per batch; None: as many as fit into memory.
    """

    model: str = CHOSEN_MODEL
    split: str = Split.TEST
    letters: bool = False
    limit: int | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class EvaluationResult:
    """The answers of a model, and their grades.

    Attributes:
        document: Accuracies as JSON values, see `effllava_optuna.report.evaluation_table`.
        samples: The samples that were answered.
        texts: The generated text of each sample, by id.
        model: Name of the model.
    """

    document: dict[str, Any]
    samples: Sequence[Sample]
    texts: Mapping[str, str]
    model: str


@dataclass(frozen=True)
class EvaluatedNetwork:
    """A network that is evaluated.

    Attributes:
        loaded: The network.
        task: The task of the study.
        name: Its name in reports.
        digest: Identifies its weights and widths.
    """

    loaded: LoadedModel
    task: Task
    name: str
    digest: str


def select_samples(task: Task, split: str) -> tuple[Sample, ...]:
    """Return the samples of a split, or of `FULL_SPLIT`.

    Raises:
        TaskError: The task has no rows outside its splits.
    """
    if split != FULL_SPLIT:
        return task.samples(Split(split))
    if isinstance(task, DataTask):
        return task.all_rows(Split.TEST)
    raise TaskError(
        f"Task {task.name!r} has no split 'full'.", hint="Use proxy, validation or test."
    )


@contextmanager
def open_network(
    location: StudyLocation, config: StudyConfig, model: str, report_stage: StageCallback
) -> Iterator[EvaluatedNetwork]:
    """Load the network that ``model`` names, see `EvaluationOptions`.

    Raises:
        StudyError: There is no such trial.
        ModelError: There is no such checkpoint.
    """
    if model != CHOSEN_MODEL and not model.isdecimal():
        report_stage("loading the model", 0.0)
        source = config.model.path if model == DENSE_MODEL else model
        loaded = load(source, device=config.model.device, dtype=config.model.dtype)
        yield EvaluatedNetwork(
            loaded, make_unchecked_task(config), source, fingerprint(loaded.model)
        )
        return
    study = location.open()
    number = study.user_attrs.get(CHOSEN) if model == CHOSEN_MODEL else int(model)
    if number is None:
        raise StudyError(
            f"Study {study.study_name!r} has not chosen a trial yet.",
            hint="Finish it with `resume`, or use the number of a trial.",
        )
    trial = measured_record(study, number)
    with resume(study, location.url, report_stage, config=location.config_of(study)) as session:
        policy = Policy.of(session.evaluator.structure, trial.widths)
        weight_state = session.epochs.weight_state(trial.weight_state)
        with policy_network(session.evaluator.loaded, weight_state, policy) as network:
            calibration = session.epochs.epoch(0).weight_state.digest
            yield EvaluatedNetwork(
                network,
                session.evaluator.inputs.task,
                f"trial {number} of {study.study_name}",
                f"{calibration} {trial.weight_state} {list(trial.widths)}",
            )


def evaluate(
    location: StudyLocation,
    config: StudyConfig,
    options: EvaluationOptions,
    out: Path,
    report_stage: StageCallback,
    *,
    overwrite: bool = False,
) -> EvaluationResult:
    """Answer the samples of a split with a model, and grade the answers.

    Answers are stored in the file ``out``. Samples that it has an answer to are not asked again,
    unless ``overwrite`` removes them first.

    Raises:
        ConfigError: ``out`` is a directory.
        StudyError: ``out`` has answers of another evaluation, or there is no such trial.
        TaskError: There is no such split.
        ModelError: There is no such checkpoint.
    """
    _refuse_directory(out)
    with open_network(location, config, options.model, report_stage) as network:
        all_samples = select_samples(network.task, options.split)
        description = {
            "model": network.digest,
            "task": network.task.digest,
            "split": options.split,
            "system": sorted({sample.system for sample in all_samples}),
            "rule": rule_of(all_samples, letters=options.letters),
            "new_tokens": max([s.rule.new_tokens for s in all_samples if s.rule] or [0]),
        }
        samples = all_samples[: options.limit]
        answers = RecordFile(out, GradedAnswer, description, overwrite=overwrite)
        _answer_missing(network.loaded, samples, answers, options, report_stage)
        document = _document(network, options, samples, answers)
    texts = {sample_id: answer.text for sample_id, answer in answers.records.items()}
    return EvaluationResult(document, samples, texts, network.name)


def _refuse_directory(out: Path) -> None:
    """Refuse a directory before a model is loaded."""
    with suppress(OSError):  # `RecordFile` names other faults of the path
        if out.is_dir():
            raise ConfigError(f"--out {out} is a directory.", hint="Use the path of a file.")


def _answer_missing(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    answers: RecordFile[GradedAnswer],
    options: EvaluationOptions,
    report_stage: StageCallback,
) -> None:
    """Answer the samples that have no answer yet."""
    missing = [sample for sample in samples if sample.id not in answers.records]
    answered = len(samples) - len(missing)
    report_stage(f"answering, {answered:,} of {len(samples):,} answers are stored", 0.0)

    def progress(count: int) -> None:
        share = (answered + count) / len(samples)
        # In steps of 10 %, because the stage is printed as a line if there is no progress bar.
        report_stage(f"answering, {int(10 * share) * 10} %", share)

    with loaded.lock:
        answer_samples(
            loaded,
            missing,
            answers.append,
            letters=options.letters,
            batch_size=options.batch_size,
            progress=progress,
        )


def _document(
    network: EvaluatedNetwork,
    options: EvaluationOptions,
    samples: Sequence[Sample],
    answers: RecordFile[GradedAnswer],
) -> dict[str, Any]:
    graded = [
        (sample, score)
        for sample in samples
        if (score := answers.records[sample.id].score) is not None
    ]
    scores, groups = [score for _, score in graded], [sample.group for sample, _ in graded]
    subsets = [sample.subsets for sample, _ in graded]
    return {
        "model": network.name,
        "task": network.task.name,
        "split": options.split,
        "rule": rule_of(samples, letters=options.letters),
        "all": accuracy_with_interval(scores, groups) if graded else None,
        "subsets": accuracy_by_subset(scores, groups, subsets),
        "constant": constant_of(samples),
        "unlabelled": len(samples) - len(graded),
        "seen": 0 if options.split == Split.PROXY else _count_seen(network.task, samples),
        "answers": str(answers.path),
    }


def _count_seen(task: Task, samples: Collection[Sample]) -> int:
    """Count the samples that share their group with a sample of the proxy set."""
    proxy_groups = {sample.group for sample in task.samples(Split.PROXY)}
    return sum(sample.group in proxy_groups for sample in samples)
