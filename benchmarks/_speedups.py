"""Speed-ups of uniform policies: predicted, measured and ideal."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from effllava_optuna import LoadedModel, Policy, narrowed
from effllava_optuna.objectives import Stopwatch, flops
from effllava_optuna.policy import Kind
from effllava_optuna.surgery import arranged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from effllava_optuna.objectives import LatencyTable
    from effllava_optuna.policy import ModelStructure, Ranking


GOAL = 1.8  # the paper's main result
_SEARCHED = tuple(round(0.40 + 0.02 * step, 2) for step in range(13))


def policy_of(structure: ModelStructure, ratio: float, step: int) -> Policy:
    """Return the policy with one width ratio; MLP widths are multiples of ``step``."""
    widths = []
    for component in structure.components:
        each = step if component.kind is Kind.MLP else 1
        width = max(component.floor, each, round(ratio * component.width / each) * each)
        widths.append(min(component.width, width))
    return Policy.of(structure, widths)


def decode_bytes(network: LoadedModel, tokens: int, batch: int) -> int:
    """Count the bytes that decoding one token reads: weights of the decoder, and its cache."""
    decoder = network.model.get_decoder()
    weights = sum(weight.nbytes for weight in decoder.layers.parameters())
    weights += network.model.get_output_embeddings().weight.nbytes
    cached = sum(
        linear.weight.shape[0]
        for name, linear in decoder.named_modules()
        if name.endswith(("k_proj", "v_proj"))
    )
    return int(weights + cached * tokens * batch * network.model.dtype.itemsize)


def ideal_speedups(
    loaded: LoadedModel, policies: Mapping[float, Policy], ranking: Ranking, stopwatch: Stopwatch
) -> dict[float, dict[str, float]]:
    """Return the ideal speed-ups by width ratio and phase."""
    tokens = stopwatch.prompt_tokens + stopwatch.workload.new_tokens

    def costs(policy: Policy) -> dict[str, float]:
        with narrowed(loaded, policy, ranking) as network:
            return {
                "prefill": float(flops(network, stopwatch.seen)),
                "decode": float(decode_bytes(network, tokens, stopwatch.workload.batch)),
            }

    dense = costs(Policy.dense(loaded.structure))
    return {
        ratio: {phase: dense[phase] / cost for phase, cost in costs(policy).items()}
        for ratio, policy in policies.items()
    }


def measured_speedups(
    stopwatch: Stopwatch,
    dense: LoadedModel,
    networks: Iterable[tuple[float, Callable[[], LoadedModel]]],
) -> dict[float, dict[str, float]]:
    """Time pruned models in turn with the dense one, one after the other.

    Args:
        stopwatch: Runs and times the workload.
        dense: The dense model.
        networks: Width ratios, each with a function that creates the pruned model.

    Returns:
        Speed-ups by width ratio and phase.
    """
    speedups: dict[float, dict[str, float]] = {}
    for ratio, create in networks:
        small = create()
        timings = stopwatch.race(
            {
                "dense": partial(stopwatch.decoder, dense),
                "small": partial(stopwatch.decoder, small),
            },
            "dense",
        )
        speedups[ratio] = {phase: 1 / timing.ratio for phase, timing in timings["small"].items()}
        del small
        if stopwatch.cuda:
            torch.cuda.empty_cache()
    return speedups


def reloaded(small: LoadedModel, directory: Path) -> LoadedModel:
    """Export a pruned model, and read it back with plain transformers."""
    from transformers import AutoModelForImageTextToText

    from effllava_optuna import export

    export(small, directory)
    model = AutoModelForImageTextToText.from_pretrained(directory, trust_remote_code=True)
    return replace(
        LoadedModel.of(model, small.processor, str(directory)), pruning_record=small.pruning_record
    )


def interpolated_ms(table: LatencyTable, policy: Policy) -> dict[str, float]:
    """Predict the latency of a policy by phase, in ms; widths between those of the table."""
    phases = {}
    for phase, dense_ms in table.dense_ms.items():
        saved_ms = 0.0
        for component, width in zip(policy.structure.components, policy.widths, strict=True):
            row = table.saved_ms[phase][component.id]
            widths = sorted(row)
            saved_ms += float(np.interp(width, widths, [row[each] for each in widths]))
        phases[phase] = dense_ms + saved_ms
    return phases


def largest_keep_ratios(
    loaded: LoadedModel, ranking: Ranking, stopwatch: Stopwatch, step: int
) -> dict[str, Any]:
    """Return by phase the largest keep ratio of the decoder with the speed-up of the goal."""
    policies = {ratio: policy_of(loaded.structure, ratio, step) for ratio in _SEARCHED}

    def runner(policy: Policy) -> Callable[[], Mapping[str, float]]:
        def run() -> Mapping[str, float]:
            with narrowed(loaded, policy, ranking) as network:
                return stopwatch.decoder(network)

        return run

    with arranged(loaded, ranking) as ready:
        runs = {ratio: runner(policy) for ratio, policy in policies.items()}
        dense = runner(Policy.dense(loaded.structure))
        timings = stopwatch.on(ready).race({"dense": dense} | runs, "dense")
    goal: dict[str, Any] = {}
    for phase in timings["dense"]:
        fast = [
            policy.keep_ratio
            for ratio, policy in policies.items()
            if 1 / timings[ratio][phase].ratio >= GOAL
        ]
        goal[phase] = max(fast, default=None)
    return goal
