"""What a study would need: ``python benchmarks/estimate.py studies/llava-1.5-7b-scienceqa.toml``.

A cost model, not a measurement: floating-point operations of every forward and backward pass that
the study file asks for, at 40 % of what an H200 can do in bfloat16, and the bytes that must be
in its memory at once. No checkpoint is read: the shapes of known models are below.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from effllava_optuna.study import StudySpec, read_spec

FLOPS = 0.4 * 989e12  # a second: dense bfloat16 on an H200, at 40 %
BANDWIDTH = 0.5 * 4.8e12  # bytes a second, at 50 %
CALIBRATION = 600.0  # seconds: ranking and factoring, a guess
BYTES = 2  # of a number in bfloat16
ACTIVATIONS = 8e9  # bytes beside weights and fits, for batches of 64


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a model.

    Attributes:
        layers: Blocks of the decoder.
        hidden: Their width.
        inner: Width of their MLPs.
        groups: Share of query heads that there are key/value heads.
        rest: Parameters beside the linear layers of the decoder.
        tokens: Of a prompt, the picture's included.
        vision: FLOPs of the tower for one picture.
    """

    layers: int
    hidden: int
    inner: int
    groups: float
    rest: float
    tokens: int
    vision: float

    @property
    def prunable(self) -> float:
        """Count the parameters of the decoder's linear layers."""
        heads = 2 * self.hidden**2 * (1 + self.groups)
        return self.layers * (heads + 3 * self.hidden * self.inner)


SHAPES = {
    "llava-hf/llava-1.5-7b-hf": Shape(32, 4096, 11008, 1.0, 0.59e9, 680, 0.39e12),
    "llava-hf/llava-1.5-13b-hf": Shape(40, 5120, 13824, 1.0, 0.67e9, 680, 0.39e12),
    "Qwen/Qwen2.5-VL-7B-Instruct": Shape(28, 3584, 18944, 1 / 7, 1.77e9, 500, 0.8e12),
    "HuggingFaceTB/SmolVLM-Instruct": Shape(24, 2048, 8192, 1.0, 0.63e9, 1250, 5e12),
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a study would need.

    Attributes:
        memory_gb: On the device, at once; calibration may take all that ``pruning.table_gb``
            allows.
        table_gb: The least that ``pruning.table_gb`` must allow.
        hours: On one H200.
    """

    memory_gb: int
    table_gb: float
    hours: float


def estimate(spec: StudySpec, shape: Shape) -> Estimate:
    """Estimate what ``spec`` needs for a model of ``shape``."""
    search, projector, report = spec.search, spec.projector, spec.report
    kept = search.kept_share or 1.0 / (search.speedup or 1.0)
    widths = len(spec.pruning.shares)
    sample = 2 * shape.prunable * shape.tokens
    proxy = spec.task.proxy * sample
    written = (spec.task.new_tokens or 16) * shape.prunable * BYTES * kept / BANDWIDTH
    batches = -(-spec.task.proxy // 64)
    trials = search.trials * kept * proxy / FLOPS
    if spec.task.measure == "generation":
        trials += search.trials * batches * written
    lessons = projector.parts + spec.pruning.folds + 1
    updates = (search.epochs - 1) * lessons * projector.steps * 3 * kept * proxy / FLOPS
    runs = 2 * widths + spec.latency.checks  # and the dense model around every four
    rounds = spec.latency.warmup + spec.latency.repeats
    timing = 1.25 * runs * rounds * spec.latency.batch * sample / FLOPS
    grid = (widths**2 + widths) * kept * proxy / FLOPS
    exams = spec.task.validation + spec.task.test
    final = (report.finalists + 3) * exams * (kept * sample / FLOPS + written / 64)
    seen = (exams + spec.task.proxy) * shape.vision / FLOPS
    seconds = CALIBRATION + trials + updates + timing + grid + final + seen
    fits = sum(spec.pruning.shares) - 1.0
    outputs = shape.layers * shape.hidden * (shape.hidden + shape.inner)
    folds = spec.pruning.folds
    # Beside the fits, calibration holds the moments of a site in float64, of each fold twice,
    # and works on copies of them: see `effllava_optuna.surgery.compensate`.
    needed = (folds + 1) * fits * outputs * BYTES + (2 * folds + 7) * 8 * shape.inner**2
    memory = (shape.prunable + shape.rest) * BYTES + spec.pruning.table_gb * 1e9 + ACTIVATIONS
    return Estimate(round(memory / 1e9), round(needed / 1e9, 1), round(seconds / 3600, 1))


def told(spec: StudySpec) -> str:
    """Say what a study needs, as its file does."""
    found = estimate(spec, SHAPES[spec.model.path])
    return f"about {found.memory_gb} GB of GPU memory and {found.hours} hours on one H200"


def main() -> None:
    """Print the estimate of each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    for file in parser.parse_args().files:
        print(f"{file}: {told(read_spec(file))} (a cost model, not measured)")


if __name__ == "__main__":
    main()
