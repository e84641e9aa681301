"""Estimate the cost of a study by the speed of its model on this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from effllava_optuna.config.cost_estimate import (
    ANSWER_TOKENS,
    H200,
    CostEstimate,
    Hardware,
    cpu,
    estimate_cost,
    model_size,
)
from effllava_optuna.objectives import Stopwatch, Workload
from effllava_optuna.surgery import outline_checkpoint
from effllava_optuna.tasks import Split

if TYPE_CHECKING:
    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Task

_PROMPTS = 16  # that are timed at once
_RUNS = 2  # the faster one counts


def measure_cost(
    config: StudyConfig, loaded: LoadedModel, task: Task
) -> tuple[CostEstimate, Hardware]:
    """Time one batch of prompts, and estimate the cost of the whole study by it.

    Args:
        config: The study file.
        loaded: Its model.
        task: Its task.

    Returns:
        The cost, and the hardware with its measured speed.
    """
    samples = task.samples(Split.PROXY)
    workload = Workload(batch=min(_PROMPTS, len(samples)), warmup=0, repeats=1)
    stopwatch = Stopwatch(loaded, samples, workload)
    seconds = min(stopwatch.decoder(loaded)["prefill"] for _ in range(_RUNS)) / 1e3
    outline = outline_checkpoint(config.model.path)
    pictured = any(sample.image is not None for sample in samples)
    answers = ANSWER_TOKENS if any(sample.is_open_ended for sample in samples) else 0
    size = model_size(outline, answers, answers)
    size = replace(
        size,
        prompt_tokens=stopwatch.prompt_tokens + answers,
        vision_flops=size.vision_flops if pictured else 0.0,
    )
    flops = 2 * size.prunable * stopwatch.prompt_tokens * workload.batch / seconds
    hardware = replace(_present(loaded.device), flops=flops)
    return estimate_cost(config, size, hardware), hardware


def measure_dense_latency(config: StudyConfig, loaded: LoadedModel, task: Task) -> float:
    """Time the workload of ``[latency]`` with the dense model, in ms; the fastest run counts.

    Calibration times it again, for longer; this value helps to set ``search.latency_ms``.
    """
    table = config.latency
    workload = Workload(batch=table.batch, new_tokens=table.new_tokens, warmup=0, repeats=1)
    stopwatch = Stopwatch(loaded, task.samples(Split.PROXY), workload)
    runs = [stopwatch.vision() | stopwatch.decoder(loaded) for _ in range(_RUNS)]
    phases = {phase: min(run[phase] for run in runs) for phase in runs[0]}
    decode = (table.new_tokens - 1) * phases.get("decode", 0.0)
    return phases.get("vision", 0.0) + phases["prefill"] + decode


def _present(device: torch.device) -> Hardware:
    """Return the hardware of this machine, with guesses of what is not measured."""
    if device.type == "cuda":
        return replace(H200, name=torch.cuda.get_device_name(device))
    return replace(cpu(torch.get_num_threads()), name="this machine")
