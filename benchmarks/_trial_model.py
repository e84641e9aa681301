"""Time of policies on a model beside the forward passes of their networks.

Needs torch, transformers and pillow, and only those parts of the package that do not depend on
Optuna.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _shapes import SHAPES, config_of, processor_of
from torch.profiler import ProfilerActivity, profile
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from effllava_optuna import LoadedModel
from effllava_optuna.objectives import encode_samples, score_policy, split_folds
from effllava_optuna.policy import Policy, Ranking
from effllava_optuna.surgery import (
    CalibrationBatch,
    FittedOutput,
    PruningOptions,
    WeightState,
    arranged,
    policy_network,
    rank_and_compensate,
    rank_units,
)
from effllava_optuna.surgery.structure.inspection import inspect_model
from effllava_optuna.surgery.structure.prunable_parts import LANGUAGE
from effllava_optuna.tasks import encode_with_answers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from effllava_optuna.objectives import EncodedBatch
    from effllava_optuna.surgery import EncodedInputs
    from effllava_optuna.tasks import Sample

WIDTH_RATIOS = (1.0, 0.75, 0.5, 0.35)
PROFILED = 0.5  # width ratio
# Parts of a trial by the beginnings of the names of operators; the first match counts.
_PARTS = {
    "attention": ("_scaled_dot", "_flash", "_efficient", "_fused_sdp", "_softmax", "_cudnn_att"),
    "GEMM": ("addmm", "mm", "bmm", "baddbmm", "linear", "matmul", "mkldnn_linear"),
    "copies": ("copy_", "_to_copy", "cat", "clone", "contiguous", "masked_scatter", "index"),
}


@dataclass(frozen=True, slots=True)
class Setup:
    """How the policies of a model are fitted and scored.

    Attributes:
        compensation: ``none``, ``bias`` or ``least-squares``.
        folds: Folds of the samples; each is scored by a compensation table of its own.
        batch_size: Largest number of samples of a forward pass.
    """

    compensation: str = "least-squares"
    folds: int = 2
    batch_size: int = 64


def measure(
    loaded: LoadedModel, samples: Sequence[Sample], rounds: int, setup: Setup | None = None
) -> dict[str, Any]:
    """Time policies against the plain forward passes of the dense model, in turn.

    Args:
        loaded: The model, on any device.
        samples: Proxy samples.
        rounds: Rounds that are timed, after one for warming up.
        setup: How policies are fitted and scored.

    Returns:
        Milliseconds of each round: ``plain`` (dense forward passes over the batches, pictures
        encoded), and by width ratio ``trial`` (`score_policy`) and ``forward`` (the forward passes
        of the policy's network); ``apply_ms``, to apply a random policy and undo it, for each fit
        that scores; and ``profile``, the share of each part in a trial at half the width.
    """
    setup = setup or Setup()
    weight_state = _weight_state(loaded, samples, setup)
    batches = tuple(
        batch
        for index, fold in enumerate(split_folds(samples, setup.folds))
        for batch in encode_samples(loaded, fold, batch_size=setup.batch_size, fit=index + 1)
    )
    policies = {ratio: Policy.uniform(loaded.structure, ratio=ratio) for ratio in WIDTH_RATIOS}
    rng = np.random.default_rng(0)
    times: dict[str, Any] = {"plain": [], "apply_ms": []}
    times |= {name: {str(ratio): [] for ratio in WIDTH_RATIOS} for name in ("trial", "forward")}
    with arranged(loaded, weight_state.ranking) as ready:
        for number in range(rounds + 1):
            times_of_round = _round(ready, weight_state, policies, batches)
            times_of_round["apply_ms"] = _time_apply(ready, weight_state, rng)
            if number:
                _append(times, times_of_round)
        trial = partial(score_policy, ready, weight_state, policies[PROFILED], batches)
        shares = _profile(ready, trial)
    masks = [batch.seen.inputs["attention_mask"] for batch in batches]
    return times | {
        "profile": shares,
        "device": _device_name(loaded.device),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "parameters": sum(weight.numel() for weight in loaded.model.parameters()),
        "samples": len(samples),
        "batches": len(batches),
        "tokens": sum(mask.numel() for mask in masks),
        "padding": sum(int((mask == 0).sum()) for mask in masks),
        "compensation": setup.compensation,
    }


def time_apply_on_shape(name: str, rounds: int) -> list[float]:
    """Time how long it takes to apply a random policy to a model of a shape, and undo it.

    Weights and compensation tables have no data: applying them consists of views and look-ups,
    which do not depend on their content.
    """
    shape = SHAPES[name]
    with torch.device("meta"):
        model = LlavaForConditionalGeneration._from_config(
            config_of(shape, processor_of(shape)), dtype=torch.bfloat16
        )
    loaded = LoadedModel(model, None, inspect_model(model).select((LANGUAGE,), depth=False), name)
    structure, rng = loaded.structure, np.random.default_rng(0)
    ranking = Ranking.from_scores(
        structure,
        "random",
        {component.id: rng.random(component.width) for component in structure.components},
    )
    table = {
        (handle.component.id, width): FittedOutput(
            torch.empty(
                handle.linear(handle.output).out_features, handle.columns * width,
                dtype=torch.bfloat16, device="meta",
            )
        )
        for ratio in WIDTH_RATIOS
        for handle, width in zip(
            loaded.handles, Policy.uniform(structure, ratio=ratio).widths, strict=True
        )
    }  # fmt: skip
    weight_state = WeightState("shape", ranking, (table, table), (None, None))
    with arranged(loaded, ranking) as ready:
        return [_time_apply(ready, weight_state, rng) for _ in range(rounds)]


def _round(
    ready: LoadedModel,
    weight_state: WeightState,
    policies: dict[float, Policy],
    batches: Sequence[EncodedBatch],
) -> dict[str, Any]:
    """Time everything once."""
    device = ready.device
    times: dict[str, Any] = {
        "plain": _time_ms(device, partial(_forward, [batch.seen for batch in batches], ready)),
        "trial": {},
        "forward": {},
    }
    for ratio, policy in policies.items():
        times["trial"][str(ratio)] = _time_ms(
            device, partial(score_policy, ready, weight_state, policy, batches)
        )
        forward_ms = 0.0
        for fit, group in groupby(batches, key=lambda batch: batch.fit):
            inputs = [batch.seen for batch in group]
            with policy_network(ready, weight_state, policy, fit) as network:
                forward_ms += _time_ms(device, partial(_forward, inputs, network))
        times["forward"][str(ratio)] = forward_ms
    return times


def _append(times: dict[str, Any], times_of_round: dict[str, Any]) -> None:
    for name, value in times_of_round.items():
        if isinstance(value, dict):
            _append(times[name], value)
        else:
            times[name].append(value)


@torch.inference_mode()
def _forward(batches: Sequence[EncodedInputs], network: LoadedModel) -> None:
    """Run plain forward passes."""
    for seen in batches:
        inputs = dict(seen.inputs)
        if seen.vision is not None:
            projected = seen.vision.image_features(network.model)
            encoded = BaseModelOutputWithPooling(pooler_output=projected)
            inputs["mm_encoder_outputs"] = {"image": encoded}
        network.model(**inputs, logits_to_keep=seen.positions, use_cache=False)


def _time_apply(ready: LoadedModel, weight_state: WeightState, rng: np.random.Generator) -> float:
    """Time applying a policy whose components have different width ratios, and undoing it."""
    structure = ready.structure
    choices = [Policy.uniform(structure, ratio=ratio).widths for ratio in WIDTH_RATIOS]
    policy = Policy.of(structure, [int(rng.choice(row)) for row in zip(*choices, strict=True)])

    def apply() -> None:
        with torch.inference_mode(), policy_network(ready, weight_state, policy, 1):
            pass

    return _time_ms(ready.device, apply)


def _weight_state(loaded: LoadedModel, samples: Sequence[Sample], setup: Setup) -> WeightState:
    """Rank by magnitude and fit the output matrices of all widths."""
    none = (None,) * (setup.folds + 1)
    if setup.compensation == "none":
        return WeightState("plain", rank_units(loaded), none, none)
    widths = {
        component.id: tuple(
            sorted(
                {max(component.floor, round(ratio * component.width)) for ratio in WIDTH_RATIOS}
            )
        )
        for component in loaded.structure.components
    }
    folds = [
        [
            CalibrationBatch(batch.inputs, batch.targets, batch.answers)
            for batch in encode_with_answers(loaded.processor, fold, batch_size=setup.batch_size)
        ]
        for fold in split_folds(samples, setup.folds)
    ]
    options = PruningOptions(
        importance="magnitude", compensation=setup.compensation, tokens="all", table_gb=32.0
    )
    fitted = rank_and_compensate(loaded, folds, widths, options)
    return WeightState("fitted", fitted.ranking, fitted.compensations, none)


def _time_ms(device: torch.device, run: Callable[[], object]) -> float:
    _synchronize(device)
    started = time.perf_counter()
    run()
    _synchronize(device)
    return 1000 * (time.perf_counter() - started)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _profile(ready: LoadedModel, trial: Callable[[], object]) -> dict[str, float]:
    """Return the share of each part of a trial; on a GPU, the remainder is its idle time."""
    on_gpu = ready.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        wall_ms = _time_ms(ready.device, trial)
    part_ms: defaultdict[str, float] = defaultdict(float)
    for row in profiler.key_averages():
        if row.device_type.name == "CPU" and row.key.startswith("aten::"):
            spent_us = row.self_device_time_total if on_gpu else row.self_cpu_time_total
            part_ms[_part(row.key.removeprefix("aten::"))] += spent_us / 1000
    shares = {name: part_ms[name] / wall_ms for name in (*_PARTS, "other operators")}
    return shares | {"Python, or idle": 1 - sum(shares.values())}


def _part(operator: str) -> str:
    for name, beginnings in _PARTS.items():
        if operator.startswith(beginnings):
            return name
    return "other operators"
