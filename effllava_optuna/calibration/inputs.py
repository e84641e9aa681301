"""What a study works on: its model, its task and the encoded proxy set."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from effllava_optuna.config.task_factory import make_task
from effllava_optuna.config.user_functions import UserFunctions, user_functions
from effllava_optuna.objectives import EncodedProxy, Stopwatch, Workload, parameters
from effllava_optuna.surgery import load, restrict_to_stock_sizes
from effllava_optuna.tasks import Split
from effllava_optuna.tasks.sample_check import check_final_samples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from effllava_optuna.calibration.stage_callback import StageCallback
    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.policy import ModelStructure
    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Task

# With matrices this small, threads mostly wait for each other and, on shared cores, for a core:
# compare the error of the latency table in a run with `--set model.threads=2`.
_SMALL_MODEL = 20_000_000  # parameters


@dataclass(frozen=True)
class StudyInputs:
    """The model, the task and the encoded proxy set of a study.

    Attributes:
        config: The study file.
        functions: The user's functions that the study file names.
        loaded: The model.
        task: The samples of all splits.
        proxy: The samples that calibration, search and projector training may use.
    """

    config: StudyConfig
    functions: UserFunctions
    loaded: LoadedModel
    task: Task
    proxy: EncodedProxy

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
        ModelError: There is no such checkpoint, or its structure is not understood.
    """
    loaded = load(
        config.model.path,
        device=device or config.model.device,
        dtype=config.model.dtype,
        towers=config.pruning.towers,
        depth=config.pruning.depth,
    )
    return restrict_to_stock_sizes(loaded).checked() if config.pruning.tied else loaded


@contextmanager
def study_inputs(
    config: StudyConfig,
    loaded: LoadedModel | None = None,
    task: Task | None = None,
    *,
    device: str | None = None,
) -> Iterator[StudyInputs]:
    """Load the model and the task of a study, and encode its proxy set.

    On a CPU, torch's number of threads is as the study file says until the context ends.

    Args:
        config: The study file.
        loaded: The model; None: as the study file says.
        task: The samples; None: as the study file says.
        device: Where to load the model; None: as the study file says.

    Raises:
        ModelError: The model cannot be loaded.
        TaskError: The samples cannot be read or encoded, or do not fit into the context of the
            model.
    """
    functions = user_functions(config)
    loaded = loaded or load_model(config, device=device)
    task = task or make_task(config)
    threads = torch.get_num_threads()
    if loaded.device.type == "cpu":
        torch.set_num_threads(_threads(config, loaded))
    try:
        proxy = EncodedProxy.of(
            loaded,
            task.samples(Split.PROXY),
            config.pruning.folds,
            generate=config.task.measure == "generation",
        )
        yield StudyInputs(config, functions, loaded, task, proxy=proxy)
    finally:
        if loaded.device.type == "cpu":
            torch.set_num_threads(threads)


def _threads(config: StudyConfig, loaded: LoadedModel) -> int:
    if config.model.threads != "auto":
        return config.model.threads
    return 1 if parameters(loaded) < _SMALL_MODEL else torch.get_num_threads()
