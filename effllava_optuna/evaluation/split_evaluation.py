"""Evaluate a checkpoint, or the policy of a trial, on a split of a study's task."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from effllava_optuna.config.task_factory import make_unchecked_task
from effllava_optuna.errors import ConfigError, StudyError, TaskError
from effllava_optuna.evaluation.answering import GradedAnswer, answer_samples
from effllava_optuna.evaluation.perplexity import measure_perplexity, read_text
from effllava_optuna.evaluation.record_file import RecordFile
from effllava_optuna.objectives import answer_questions, constant_of, measure_of, rule_of
from effllava_optuna.policy import Policy
from effllava_optuna.report import accuracy_by_subset, accuracy_with_interval
from effllava_optuna.search.runner import resume
from effllava_optuna.search.study_answers import published_answers, stored_answers
from effllava_optuna.storage.names import CHOSEN
from effllava_optuna.storage.trial_records import measured_record
from effllava_optuna.surgery import fingerprint, load, policy_network
from effllava_optuna.tasks import AGREEMENT, DataTask, Split, with_dense_answers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from effllava_optuna.calibration.stage_callback import StageCallback
    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.storage.location import StudyLocation
    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import DenseAnswers, Sample, Task

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
        text: File of a text whose perplexity is measured, too.
    """

    model: str = CHOSEN_MODEL
    split: str = Split.TEST
    letters: bool = False
    limit: int | None = None
    batch_size: int | None = None
    text: Path | None = None


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
        samples: The samples that it shall answer; with answers of the dense model if they are
            graded by their agreement with it.
        name: Its name in reports.
        digest: Identifies its weights and widths.
    """

    loaded: LoadedModel
    task: Task
    samples: Sequence[Sample]
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
    location: StudyLocation,
    config: StudyConfig,
    options: EvaluationOptions,
    report_stage: StageCallback,
) -> Iterator[EvaluatedNetwork]:
    """Load the network that ``options.model`` names, see `EvaluationOptions`, and its samples.

    Raises:
        StudyError: There is no such trial.
        ModelError: There is no such checkpoint.
    """
    model = options.model
    if model != CHOSEN_MODEL and not model.isdecimal():
        report_stage("loading the model", 0.0)
        source = config.model.path if model == DENSE_MODEL else model
        task, loaded = make_unchecked_task(config), None
        if source == config.model.path:
            loaded = _load(config, source)
        samples = _graded_samples(
            location,
            config,
            options,
            task,
            lambda: loaded or _load(config, config.model.path),
            report_stage,
        )
        loaded = loaded or _load(config, source)  # one model in memory at a time
        yield EvaluatedNetwork(loaded, task, samples, source, fingerprint(loaded))
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
        task, loaded = session.evaluator.inputs.task, session.evaluator.loaded
        samples = _graded_samples(location, config, options, task, lambda: loaded, report_stage)
        with policy_network(loaded, weight_state, policy) as network:
            calibration = session.epochs.epoch(0).weight_state.digest
            yield EvaluatedNetwork(
                network,
                task,
                samples,
                f"trial {number} of {study.study_name}",
                f"{calibration} {trial.weight_state} {list(trial.widths)}",
            )


def _load(config: StudyConfig, source: str) -> LoadedModel:
    return load(source, device=config.model.device, dtype=config.model.dtype)


def _graded_samples(
    location: StudyLocation,
    config: StudyConfig,
    options: EvaluationOptions,
    task: Task,
    dense: Callable[[], LoadedModel],
    report_stage: StageCallback,
) -> Sequence[Sample]:
    """Return the samples to answer; with answers of the dense model if one has no correct answer.

    Args:
        location: The study; the answers that it has stored are used.
        config: Its study file.
        options: The split, and the number of samples.
        task: The task of the study.
        dense: Returns the dense model, which answers if nothing is stored.
        report_stage: Called with the current stage and its finished share.
    """
    samples = select_samples(task, options.split)
    if measure_of(samples, config.quality.measure) == "accuracy":
        return samples[: options.limit]
    answers = _stored_answers(location, options.split)
    samples = samples[: options.limit]
    if answers is None:
        answers = answer_questions(
            dense(),
            samples,
            lambda share: report_stage("answering with the dense model", share),
        )
    return with_dense_answers(samples, answers)


def _stored_answers(location: StudyLocation, split: str) -> DenseAnswers | None:
    if not location.exists():
        return None
    study = location.open()
    return published_answers(study) if split == Split.PROXY else stored_answers(study, split)


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
        ConfigError: ``out`` is a directory, or the text cannot be read.
        StudyError: ``out`` has answers of another evaluation, or there is no such trial.
        TaskError: There is no such split.
        ModelError: There is no such checkpoint.
    """
    _refuse_directory(out)
    text = None if options.text is None else read_text(options.text)
    with open_network(location, config, options, report_stage) as network:
        all_samples = select_samples(network.task, options.split)
        measure = measure_of(all_samples, config.quality.measure)
        rule = (
            AGREEMENT if measure == "agreement" else rule_of(all_samples, letters=options.letters)
        )
        description = {
            "model": network.digest,
            "task": network.task.digest,
            "split": options.split,
            "system": sorted({sample.system for sample in all_samples}),
            "rule": rule,
            "new_tokens": max([s.rule.new_tokens for s in all_samples if s.rule] or [0]),
        }
        samples = network.samples
        answers = RecordFile(out, GradedAnswer, description, overwrite=overwrite)
        _answer_missing(network.loaded, samples, answers, options, report_stage)
        document = _document(network, options, answers) | {"rule": rule, "measure": measure}
        document["perplexity"] = None
        if text is not None:
            measured = measure_perplexity(
                network.loaded,
                text,
                progress=lambda share: report_stage("measuring the perplexity", share),
            )
            document["perplexity"] = asdict(measured) | {"text": str(options.text)}
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
    answers: RecordFile[GradedAnswer],
) -> dict[str, Any]:
    samples = network.samples
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
