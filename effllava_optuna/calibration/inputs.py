"""What a study works on: its model, its task and the encoded proxy set."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from effllava_optuna.calibration.stage_callback import silent
from effllava_optuna.config.row_task_factory import with_task_sizes
from effllava_optuna.config.task_factory import make_task
from effllava_optuna.config.user_functions import UserFunctions, user_functions
from effllava_optuna.logging import get_logger
from effllava_optuna.objectives import (
    EncodedProxy,
    Stopwatch,
    Workload,
    answer_questions,
    parameters,
)
from effllava_optuna.surgery import (
    TokenChoice,
    load,
    restrict_to_stock_sizes,
    verify_reduction,
)
from effllava_optuna.tasks import Split, with_dense_answers
from effllava_optuna.tasks.sample_check import check_final_samples

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from effllava_optuna.calibration.stage_callback import StageCallback
    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.policy import ModelStructure
    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import DenseAnswer, Task

# With matrices this small, threads mostly wait for each other and, on shared cores, for a core:
# compare the error of the latency table in a run with `--set model.threads=2`.
_SMALL_MODEL = 20_000_000  # parameters
_logger = get_logger(__name__)


@dataclass(frozen=True)
class StudyInputs:
    """The model, the task and the encoded proxy set of a study.

    Attributes:
        config: The study file, with the sizes of the splits.
        functions: The user's functions that the study file names.
        loaded: The model.
        task: The samples of all splits.
        proxy: The samples that calibration, search and projector training may use.
        answers: Answers of the dense model to them, which take the place of correct answers if
            ``quality.measure`` is ``agreement``; else empty.
    """

    config: StudyConfig
    functions: UserFunctions
    loaded: LoadedModel
    task: Task
    proxy: EncodedProxy
    answers: Mapping[str, DenseAnswer] = field(default_factory=dict)

    def with_answers(self, answers: Mapping[str, DenseAnswer]) -> StudyInputs:
        """Return the inputs with answers of the dense model that another process has published.

        Raises:
            StudyError: They are not answers to the proxy set.
        """
        if answers == self.answers:
            return self
        return replace(
            self, proxy=_encode(self.config, self.loaded, self.task, answers), answers=answers
        )

    @property
    def structure(self) -> ModelStructure:
        """Return the structure of the model."""
        return self.loaded.structure

    def stopwatch(self) -> Stopwatch:
        """Return a stopwatch for the workload of the study."""
        table = self.config.latency
        workload = Workload(
            batch=table.batch,
            new_tokens=table.new_tokens,
            warmup=table.warmup,
            repeats=table.repeats,
            precision=table.precision,
            seconds=table.seconds,
        )
        return Stopwatch(self.loaded, self.proxy.samples, workload)

    def check_final_samples(self, report_stage: StageCallback) -> None:
        """Check that the samples which a study needs after its search can be encoded.

        Args:
            report_stage: Called with the current stage and its finished share.

        Raises:
            TaskError: Some cannot; the message names three of them and counts the others.
        """
        check_final_samples(
            self.task,
            self.loaded.processor,
            self.loaded.context,
            lambda share: report_stage("checking the samples", share),
        )


def load_model(config: StudyConfig, *, device: str | None = None) -> LoadedModel:
    """Load the model of a study.

    Args:
        config: The study file.
        device: Where to load it; None: as the study file says.

    Raises:
        ModelError: There is no such checkpoint, its structure is not understood, or its image
            tokens cannot be reduced as the study file says.
    """
    loaded = load(
        config.model.path,
        device=device or config.model.device,
        dtype=config.model.dtype,
        towers=config.pruning.towers,
        depth=config.pruning.depth,
    )
    loaded = _with_token_choice(config, loaded)
    return restrict_to_stock_sizes(loaded).checked() if config.pruning.tied else loaded


def _with_token_choice(config: StudyConfig, loaded: LoadedModel) -> LoadedModel:
    """Return a model with the image tokens that the policies of a study may read."""
    widths, selection = config.pruning.token_widths, config.pruning.token_selection
    if len(widths) == 1:
        return loaded
    verify_reduction(loaded, selection)  # before anything is measured
    return loaded.with_token_choice(TokenChoice(widths, selection))


@contextmanager
def study_inputs(
    config: StudyConfig,
    loaded: LoadedModel | None = None,
    task: Task | None = None,
    *,
    device: str | None = None,
    answers: Mapping[str, DenseAnswer] | None = None,
    report_stage: StageCallback = silent,
) -> Iterator[StudyInputs]:
    """Load the model and the task of a study, and encode its proxy set.

    On a CPU, torch's number of threads is as the study file says until the context ends.

    Args:
        config: The study file.
        loaded: The model; None: as the study file says.
        task: The samples; None: as the study file says.
        device: Where to load the model; None: as the study file says.
        answers: Published answers of the dense model to the proxy set; None: if
            ``quality.measure`` is ``agreement``, it answers now.
        report_stage: Called with the current stage and its finished share.

    Raises:
        ModelError: The model cannot be loaded.
        TaskError: The samples cannot be read or encoded, or do not fit into the context of the
            model.
    """
    functions = user_functions(config)
    if loaded is None:
        loaded = load_model(config, device=device)
    else:
        loaded = _with_token_choice(config, loaded)
    task = task or make_task(config)
    threads = torch.get_num_threads()
    if loaded.device.type == "cpu":
        torch.set_num_threads(_threads(config, loaded))
    try:
        if config.quality.measure == "accuracy":
            answers = {}
        elif answers is None:
            answers = answer_proxy(loaded, task, report_stage)
        config = with_task_sizes(config, task)
        proxy = _encode(config, loaded, task, answers)
        yield StudyInputs(config, functions, loaded, task, proxy=proxy, answers=answers)
    finally:
        if loaded.device.type == "cpu":
            torch.set_num_threads(threads)


def answer_proxy(
    loaded: LoadedModel, task: Task, report_stage: StageCallback
) -> Mapping[str, DenseAnswer]:
    """Answer the proxy set with the dense model; warn about empty answers and cut ones.

    Args:
        loaded: The dense model.
        task: The task of the study.
        report_stage: Called with the current stage and its finished share.

    Raises:
        TaskError: A sample cannot be encoded.
    """
    answers = answer_questions(
        loaded,
        task.samples(Split.PROXY),
        lambda share: report_stage("answering the proxy set with the dense model", share),
    )
    written = [answer for answer in answers.values() if answer.option is None]
    empty = sum(not answer.text for answer in written)
    if empty:
        _logger.warning(
            f"The dense model answers {empty} of {len(answers)} proxy questions with no text: "
            "check the chat template and the questions."
        )
    truncated = sum(answer.truncated for answer in written)
    if truncated:
        _logger.warning(
            f"{truncated} of {len(answers)} answers of the dense model to the proxy set are cut: "
            "they reach the largest number of tokens. task.new_tokens sets it."
        )
    return answers


def _encode(
    config: StudyConfig, loaded: LoadedModel, task: Task, answers: Mapping[str, DenseAnswer]
) -> EncodedProxy:
    """Encode the proxy set; with the answers of the dense model, as labels, if there are any."""
    samples, agreement = task.samples(Split.PROXY), config.quality.measure == "agreement"
    proxy = EncodedProxy.of(
        loaded,
        with_dense_answers(samples, answers) if agreement else samples,
        config.pruning.folds,
        generate=config.task.measure == "generation",
    )
    return proxy.with_dense_outputs(loaded) if agreement else proxy


def _threads(config: StudyConfig, loaded: LoadedModel) -> int:
    if config.model.threads != "auto":
        return config.model.threads
    return 1 if parameters(loaded) < _SMALL_MODEL else torch.get_num_threads()
