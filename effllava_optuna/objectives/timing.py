"""Timings that stay comparable on a machine that others use.

Only the time of a network relative to another one matters. On a shared machine, speed drifts by
more than a width saves. So everything runs in turn, again and again, with the reference in
between, and each run is divided by the reference runs beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Run: TypeAlias = Callable[[], Mapping[str, float]]
"""Runs a network once, and returns milliseconds by phase."""

_STRIDE = 4  # runs between two runs of the reference
_FEWEST_RUNS = 3  # below, nothing is known about the spread


@dataclass(frozen=True, slots=True)
class Workload:
    """What is timed, and how precisely.

    Attributes:
        batch: Prompts (with one picture each) in a batch.
        new_tokens: Tokens generated for each prompt; 1 is the prefill alone.
        warmup: Rounds that are not counted, unless there is no time for others.
        repeats: Number of counted rounds before the precision is looked at.
        precision: Rounds continue until half the 95 % interval of a typical ratio to the dense
            time is at most this share of it.
        seconds: No round begins that would last longer than this, except the first one.
    """

    batch: int = 64
    new_tokens: int = 1
    warmup: int = 1
    repeats: int = 5
    precision: float = 0.01
    seconds: float = 30.0


@dataclass(frozen=True)
class Timing:
    """The runs of one phase.

    Attributes:
        ms: Milliseconds of each run.
        ratios: Ratio of each run to the reference beside it.
    """

    ms: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Return the median ratio to the reference."""
        return float(np.median(self.ratios))

    @property
    def typical_ms(self) -> float:
        """Return the median time, in ms."""
        return float(np.median(self.ms))

    @property
    def relative_error(self) -> float:
        """Return half the 95 % interval of `ratio`, relative to it; infinite for few runs."""
        if len(self.ratios) < _FEWEST_RUNS:
            return float("inf")
        middle = np.median(self.ratios)
        deviation = 1.4826 * np.median(np.abs(np.array(self.ratios) - middle))
        # The standard error of a median of normal values is 1.2533 times that of a mean.
        return float(1.96 * 1.2533 * deviation / np.sqrt(len(self.ratios)) / middle)


Timings: TypeAlias = dict[Any, dict[str, Timing]]
"""Timings by name of the run and by phase."""


def time_interleaved(
    runs: Mapping[Any, Run],
    reference: Any,
    workload: Workload,
    *,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Timings:
    """Time all runs in turn until their ratios are precise enough, or the time is over.

    One round lasts as long as it has to. More of them begin only if they fit into the time.

    Args:
        runs: What to run, by name.
        reference: Name of the run that all others are divided by, phase by phase; a phase that it
            lacks is divided by its ``prefill``.
        workload: Has the number of rounds, the precision and the time.
        seed: Seed of the order within a round.
        progress: Called with the finished share.
    """
    rng = np.random.default_rng(seed)
    others = [name for name in runs if name != reference]
    timings: Timings = {}
    started, rounds = time.monotonic(), 0
    while True:
        if rounds <= workload.warmup:  # what came before was to warm up
            timings = {name: {} for name in runs}
        order = [others[index] for index in rng.permutation(len(others))]
        for number, (name, phases) in enumerate(_round(runs, order, reference), start=1):
            for phase, (ms, ratio) in phases.items():
                timing = timings[name].setdefault(phase, Timing())
                timing.ms.append(ms)
                timing.ratios.append(ratio)
            if progress is not None:
                done = min(1.0, number / len(runs))  # of a round, which repeats the reference
                progress(_share(time.monotonic() - started, rounds + done, workload.seconds))
        rounds += 1
        passed = time.monotonic() - started
        enough = (
            rounds >= workload.warmup + workload.repeats
            and _typical_error(timings) <= workload.precision
        )
        if enough or passed * (rounds + 1) / rounds > workload.seconds:
            return timings


def _share(passed: float, rounds: float, seconds: float) -> float:
    """Estimate the finished share of ``seconds``, or of the first round if that lasts longer."""
    return min(1.0, passed / max(seconds, passed / rounds))


def _round(
    runs: Mapping[Any, Run], order: Sequence[Any], reference: Any
) -> Iterator[tuple[Any, dict[str, tuple[float, float]]]]:
    """Run ``order`` with the reference around every few runs; yield milliseconds and ratios."""
    before = runs[reference]()
    yield reference, {phase: (ms, 1.0) for phase, ms in before.items()}
    for start in range(0, len(order), _STRIDE):
        between = [(name, runs[name]()) for name in order[start : start + _STRIDE]]
        after = runs[reference]()
        yield reference, {phase: (ms, 1.0) for phase, ms in after.items()}
        beside = {phase: (ms + after[phase]) / 2 for phase, ms in before.items()}
        for name, phases in between:
            yield (
                name,
                {
                    phase: (ms, ms / beside.get(phase, beside["prefill"]))
                    for phase, ms in phases.items()
                },
            )
        before = after


def _typical_error(timings: Timings) -> float:
    """Return the median relative error of all runs but the reference."""
    errors = [timing.relative_error for phases in timings.values() for timing in phases.values()]
    errors = [error for error in errors if error > 0]
    return float(np.median(errors)) if errors else 0.0
