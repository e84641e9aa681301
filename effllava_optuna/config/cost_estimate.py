"""Estimate the time and memory of a study by a cost model, without a measurement.

The time is that of the floating-point operations of all forward and backward passes, at the rate
that the hardware is expected to reach; the memory is that of the largest step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from effllava_optuna.tasks.sample import Split

if TYPE_CHECKING:
    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.surgery import CheckpointOutline


ANSWER_TOKENS = 16  # of an open question; a guess
_RESIDUALS = 0.25  # of the time of ranking and fitting; 36 of 143 s on smollm-vlm
_GENERATED_TOKENS = 32  # that pruned models write: they stop later than they should; a guess


@dataclass(frozen=True, slots=True)
class Hardware:
    """Hardware that runs a study.

    Attributes:
        name: Name, as in "hours on {name}".
        flops: Floating-point operations per second.
        bandwidth: Bytes per second from its memory.
        calibration_seconds: Time of loading, and of all that is not counted; a guess.
        fit_seconds: Time of ranking and fitting a component, divided by the square of its columns
            and by the sum of its columns and outputs.
        number_bytes: Bytes of a number.
        activation_bytes: Memory beside weights and compensation tables.
        trial_seconds: Time of a trial beside its forward passes.
        is_gpu: Whether it has memory of its own.
    """

    name: str
    flops: float
    bandwidth: float
    calibration_seconds: float
    fit_seconds: float
    number_bytes: int
    activation_bytes: float
    trial_seconds: float = 0.0
    is_gpu: bool = False


H200 = Hardware(
    "one H200",
    flops=0.4 * 989e12,  # dense bfloat16, at 40 %
    bandwidth=0.5 * 4.8e12,
    calibration_seconds=600.0,
    fit_seconds=0.0,  # part of the guess
    number_bytes=2,
    activation_bytes=8e9,  # as `samples_per_backward` allows
    is_gpu=True,
)


def cpu(threads: int, *, large: bool = False) -> Hardware:
    """Return a CPU on which ``threads`` threads run a model, of small or of large matrices."""
    return Hardware(
        f"a CPU with {threads} thread{'' if threads == 1 else 's'}",
        flops=(4e10 if large else 2e10) * threads,
        bandwidth=5e9,
        calibration_seconds=15.0,
        fit_seconds=8e-10 / threads,  # benchmarks/results/importance_time.json
        number_bytes=4,
        activation_bytes=1e9,  # as `samples_per_backward` allows
        trial_seconds=0.02,
    )


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The size of a vision-language model.

    Attributes:
        layers: Blocks of the decoder.
        hidden_size: Width of the decoder's hidden states.
        mlp_width: Hidden channels of a decoder MLP.
        group_ratio: Key/value heads as a share of the query heads.
        other_parameters: Parameters outside the linear layers of the decoder.
        prompt_tokens: Tokens of a prompt, with those of its picture.
        vision_flops: Floating-point operations of the vision tower for one picture.
        output_parameters: Parameters of the layer that returns logits.
        answer_tokens: Tokens of an answer whose likelihood is scored; 0: one of its options is.
    """

    layers: int
    hidden_size: int
    mlp_width: int
    group_ratio: float
    other_parameters: float
    prompt_tokens: int
    vision_flops: float
    output_parameters: float = 0.0
    answer_tokens: int = 0

    @property
    def prunable(self) -> float:
        """Return the number of parameters in the decoder's linear layers."""
        attention = 2 * self.hidden_size**2 * (1 + self.group_ratio)
        return self.layers * (attention + 3 * self.hidden_size * self.mlp_width)


def model_size(outline: CheckpointOutline, text_tokens: int, answer_tokens: int = 0) -> ModelSize:
    """Return the size of a model for prompts and answers of a length.

    Args:
        outline: The sizes of the checkpoint.
        text_tokens: Tokens of a prompt and its answer beside those of a picture.
        answer_tokens: Tokens of an answer that are predicted one by one; 0: one of the options is
            chosen.
    """
    size = ModelSize(
        layers=outline.decoder_layers,
        hidden_size=outline.hidden_size,
        mlp_width=outline.mlp_width,
        group_ratio=outline.group_ratio,
        other_parameters=0.0,
        prompt_tokens=outline.image_tokens + text_tokens,
        vision_flops=2.0 * outline.vision_parameters * outline.image_patches,
        output_parameters=outline.output_parameters,
        answer_tokens=answer_tokens,
    )
    return replace(size, other_parameters=max(0.0, outline.parameters - size.prunable))


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """The estimated cost of a study.

    Attributes:
        memory_gb: Memory of the device, if calibration uses as much of ``pruning.table_gb`` as it
            can.
        table_gb: The smallest ``pruning.table_gb`` that suffices.
        hours: Time of the study.
    """

    memory_gb: int
    table_gb: float
    hours: float


def estimate_cost(config: StudyConfig, size: ModelSize, hardware: Hardware = H200) -> CostEstimate:
    """Estimate the cost of a study for a model of ``size`` on ``hardware``."""
    memory = (size.prunable + size.other_parameters) * hardware.number_bytes
    largest = _table_bytes(config, size, hardware) + _moment_bytes(config, size)
    memory += min(config.pruning.table_gb * 1e9, largest)
    memory += hardware.activation_bytes
    return CostEstimate(
        memory_gb=max(1, round(memory / 1e9)),
        table_gb=round(_table_bytes(config, size, hardware) / 1e9, 1),
        hours=_seconds(config, size, hardware) / 3600,
    )


def _seconds(config: StudyConfig, size: ModelSize, hardware: Hardware) -> float:
    search, projector, task = config.search, config.projector, config.task
    proxy, validation, test = task.sizes.values()
    keep_ratio = search.keep_ratio or 1.0 / (search.speedup or 1.0)
    widths = len(config.pruning.width_ratios)
    sample_flops = 2 * size.prunable * size.prompt_tokens
    proxy_flops = proxy * sample_flops
    # A divergence from stored logits reads as much as computing the logits does.
    token_flops = 2 * size.output_parameters
    logit_flops = proxy * token_flops * size.answer_tokens
    logit_flops *= 1 + (config.quality.measure == "agreement")
    new_tokens = task.new_tokens or (_GENERATED_TOKENS if size.answer_tokens else ANSWER_TOKENS)
    # A token of a batch reads all weights once, and computes with them for each prompt.
    token_seconds = max(
        size.prunable * hardware.number_bytes * keep_ratio / hardware.bandwidth,
        64 * (2 * size.prunable * keep_ratio + token_flops) / hardware.flops,
    )
    generation_seconds = new_tokens * token_seconds
    trial_flops = keep_ratio * proxy_flops + logit_flops
    trials = search.trials * (hardware.trial_seconds + trial_flops / hardware.flops)
    if task.measure == "generation":
        batches = -(-proxy // 64)
        trials += search.trials * batches * generation_seconds
    trainings = projector.parts + config.pruning.folds + 1
    steps = (search.epochs - 1) * trainings * projector.steps
    updates = steps * 3 * keep_ratio * proxy_flops / hardware.flops
    if config.pruning.in_context:
        # Token weights; for each fit, every block runs twice in the dense and in the pruned model,
        # and the moments take about as much.
        passes = 3 + config.pruning.folds * 2 * (2 + keep_ratio)
        updates += (search.epochs - 1) * passes * proxy_flops / hardware.flops
    baselines = 2 * widths * keep_ratio * proxy_flops / hardware.flops
    held_out = validation + test
    finalists = (config.report.finalists + 3) * held_out
    final = finalists * (keep_ratio * sample_flops / hardware.flops + generation_seconds / 64)
    answer_seconds = generation_seconds / 64 / keep_ratio
    if config.quality.measure == "agreement":  # the dense model may answer all questions
        final += (held_out + proxy) * (sample_flops / hardware.flops + answer_seconds)
    vision = (held_out + proxy) * size.vision_flops / hardware.flops
    timing = _timing_seconds(config, sample_flops, hardware)
    calibration = _calibration_seconds(config, size, hardware)
    return calibration + trials + updates + timing + baselines + final + vision


def _calibration_seconds(config: StudyConfig, size: ModelSize, hardware: Hardware) -> float:
    """Estimate the time of ranking and fitting, in as many passes as fit into the memory."""
    matrices = (size.hidden_size, size.mlp_width)  # columns of the output matrices of a block
    work = size.layers * sum(columns**2 * (columns + size.hidden_size) for columns in matrices)
    moments = _moment_bytes(config, size)
    # What the tables leave, but at least the moments of one component.
    left = config.pruning.table_gb * 1e9 - _table_bytes(config, size, hardware)
    largest = 16 * config.pruning.folds * max(matrices) ** 2
    passes = math.ceil(moments / max(left, largest))
    # Forward and backward, through the dense model.
    proxy = config.task.sizes[Split.PROXY]
    pass_seconds = 3 * proxy * 2 * size.prunable * size.prompt_tokens / hardware.flops
    seconds = work * hardware.fit_seconds + passes * pass_seconds
    # Their residuals are estimated without a fit.
    limits_latency = config.search.speedup or config.search.latency_ms
    shares = len(config.pruning.token_widths) - 1 if limits_latency else 0
    return hardware.calibration_seconds + (1 + _RESIDUALS * shares) * seconds


def _moment_bytes(config: StudyConfig, size: ModelSize) -> float:
    """Return the memory for the moments of all components at once."""
    columns = size.hidden_size**2 + size.mlp_width**2
    return 16.0 * config.pruning.folds * size.layers * columns


def _timing_seconds(config: StudyConfig, sample_flops: float, hardware: Hardware) -> float:
    """Estimate the time of timing the table, the front of each epoch and the finalists."""
    latency = config.latency
    # 1.25: the dense model is timed around every four runs.
    seconds_of_run = 1.25 * latency.batch * sample_flops / hardware.flops
    table = (2 * len(config.pruning.width_ratios) + latency.checks) * seconds_of_run
    # One table for each share of the image tokens, which are most of a prompt.
    table *= sum(config.pruning.token_widths) / 100
    front = latency.rechecks * seconds_of_run
    finalists = (config.report.finalists + 3) * seconds_of_run
    rechecks = (config.search.epochs - 1) * max(front, latency.recheck_seconds)
    return max(table, latency.seconds) + rechecks + max(finalists, latency.seconds)


def _table_bytes(config: StudyConfig, size: ModelSize, hardware: Hardware) -> float:
    widths = sum(config.pruning.width_ratios) - 1.0
    outputs = size.layers * size.hidden_size * (size.hidden_size + size.mlp_width)
    folds = config.pruning.folds
    # Beside the tables, calibration holds the moments of a component in float64, of each fold
    # twice, and works on copies: see `effllava_optuna.surgery.compensation.fitting`.
    moments = (2 * folds + 7) * 8 * size.mlp_width**2
    tables = config.table_sets * (folds + 1) * widths * outputs * hardware.number_bytes
    return tables + moments


def describe_cost(cost: CostEstimate, hardware: Hardware = H200) -> str:
    """Return a cost as text, as in the header of a study file."""
    memory = "GPU memory" if hardware.is_gpu else "memory"
    if hardware.is_gpu or cost.hours >= 0.95:
        time = f"{cost.hours:.1f} hours"
    else:
        time = f"{max(1, round(cost.hours * 60))} minutes"
    return f"about {cost.memory_gb} GB of {memory} and {time} on {hardware.name}"
