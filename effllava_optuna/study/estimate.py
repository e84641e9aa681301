"""What a study would need: a cost model, not a measurement.

Floating-point operations of every forward and backward pass that a study file asks for, at a rate
that a machine is thought to reach, and the bytes that must be in its memory at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from effllava_optuna.study.spec import StudySpec


@dataclass(frozen=True, slots=True)
class Machine:
    """What runs a study.

    Attributes:
        name: As in "hours on {name}".
        flops: Floating-point operations a second.
        bandwidth: Bytes a second from its memory.
        calibration: Seconds for loading, ranking and factoring, a guess.
        number: Bytes of a number.
        activations: Bytes beside weights and fits.
        trial: Seconds of a trial beside its forward passes.
    """

    name: str
    flops: float
    bandwidth: float
    calibration: float
    number: int
    activations: float
    trial: float = 0.0


H200 = Machine(
    "one H200",
    flops=0.4 * 989e12,  # dense bfloat16, at 40 %
    bandwidth=0.5 * 4.8e12,
    calibration=600.0,
    number=2,
    activations=8e9,  # for batches of 64
)


def cpu(threads: int) -> Machine:
    """Give a CPU of which ``threads`` compute for the model."""
    return Machine(
        f"a CPU with {threads} thread{'' if threads == 1 else 's'}",
        flops=2e10 * threads,
        bandwidth=5e9,
        calibration=25.0,
        number=4,
        activations=1e9,
        trial=0.02,
    )


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


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a study would need.

    Attributes:
        memory_gb: On the device, at once; calibration may take all that ``pruning.table_gb``
            allows.
        table_gb: The least that ``pruning.table_gb`` must allow.
        hours: On the machine.
    """

    memory_gb: int
    table_gb: float
    hours: float


def estimate(spec: StudySpec, shape: Shape, machine: Machine = H200) -> Estimate:
    """Estimate what ``spec`` needs for a model of ``shape``."""
    search, projector, report = spec.search, spec.projector, spec.report
    kept = search.kept_share or 1.0 / (search.speedup or 1.0)
    widths = len(spec.pruning.shares)
    sample = 2 * shape.prunable * shape.tokens
    proxy = spec.task.proxy * sample
    new = spec.task.new_tokens or 16
    written = new * shape.prunable * machine.number * kept / machine.bandwidth
    batches = -(-spec.task.proxy // 64)
    trials = search.trials * (machine.trial + kept * proxy / machine.flops)
    if spec.task.measure == "generation":
        trials += search.trials * batches * written
    lessons = projector.parts + spec.pruning.folds + 1
    updates = (search.epochs - 1) * lessons * projector.steps * 3 * kept * proxy / machine.flops
    runs = 2 * widths + spec.latency.checks  # and the dense model around every four
    rounds = spec.latency.warmup + spec.latency.repeats
    timing = 1.25 * runs * rounds * spec.latency.batch * sample / machine.flops
    timing = max(timing, spec.latency.seconds)
    grid = (widths**2 + widths) * kept * proxy / machine.flops
    exams = spec.task.validation + spec.task.test
    final = (report.finalists + 3) * exams * (kept * sample / machine.flops + written / 64)
    seen = (exams + spec.task.proxy) * shape.vision / machine.flops
    seconds = machine.calibration + trials + updates + timing + grid + final + seen
    needed = _table_bytes(spec, shape, machine)
    memory = (shape.prunable + shape.rest) * machine.number + spec.pruning.table_gb * 1e9
    memory += machine.activations
    return Estimate(max(1, round(memory / 1e9)), round(needed / 1e9, 1), seconds / 3600)


def _table_bytes(spec: StudySpec, shape: Shape, machine: Machine) -> float:
    fits = sum(spec.pruning.shares) - 1.0
    outputs = shape.layers * shape.hidden * (shape.hidden + shape.inner)
    folds = spec.pruning.folds
    # Beside the fits, calibration holds the moments of a site in float64, of each fold twice,
    # and works on copies of them: see `effllava_optuna.surgery.compensate`.
    return (folds + 1) * fits * outputs * machine.number + (2 * folds + 7) * 8 * shape.inner**2


def told(found: Estimate, machine: Machine = H200) -> str:
    """Say what a study needs, as its file does."""
    where = "GPU memory" if machine is H200 else "memory"
    time = f"{found.hours:.1f} hours"
    if found.hours < 0.95:
        time = f"{max(1, round(found.hours * 60))} minutes" if machine is not H200 else time
    return f"about {found.memory_gb} GB of {where} and {time} on {machine.name}"
