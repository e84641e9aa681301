"""How long a policy takes: measured once by width, then added up.

Every width of every kind of site is timed in place: all sites of the kind are narrowed to the
width, the whole model runs the workload, and the difference to the dense model, divided by the
number of sites, is what one site saves there. Runs are interleaved, so that a slow minute of the
machine hits all of them; what counts of each is the lower quartile (interruptions only ever add
time), smoothed to increase with width. Sums of the table are checked against whole runs of random
policies, and the error is reported.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression

from effllava_optuna.policy import Policy
from effllava_optuna.surgery import answer, look, narrowed
from effllava_optuna.tasks import prompts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from effllava_optuna.policy import Anatomy, Kind, Order, SiteId
    from effllava_optuna.surgery import Loaded, Seen
    from effllava_optuna.tasks import Sample


_SHADE = 0.01  # of the dense decoder's time, between the narrowest and the dense width
_LEAST = 0.02  # of the dense decoder's time; nothing is faster


@dataclass(frozen=True, slots=True)
class Workload:
    """What is timed.

    Attributes:
        batch: Prompts (with one picture each) that run at once.
        new_tokens: Tokens generated for each; 1 is the prefill alone.
        warmup: Runs before the clock counts.
        repeats: Timed runs; their lower quartile counts.
    """

    batch: int = 64
    new_tokens: int = 1
    warmup: int = 1
    repeats: int = 5


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of the workload, by width.

    The latency of a policy is ``vision + prefill + (new_tokens - 1) * decode``, the last two as
    the dense value plus what each site saves.

    Attributes:
        new_tokens: Of the workload.
        vision_ms: The vision tower; 0 where policies cut it, so that it counts as prefill.
        dense_ms: By phase (``prefill``, ``decode``: one token), the decoder at full width.
        saved_ms: By phase, site and width: change against the dense site, <= 0.
        friendly: By site, the widths that no wider one clearly beats; the dense one among them.
        error: Mean absolute relative error on the random policies that were run whole.
        spread: Median over all timings of (upper - lower quartile) / median.
    """

    new_tokens: int
    vision_ms: float
    dense_ms: Mapping[str, float]
    saved_ms: Mapping[str, Mapping[SiteId, Mapping[int, float]]]
    friendly: Mapping[SiteId, tuple[int, ...]]
    error: float
    spread: float

    def predict(self, anatomy: Anatomy, policy: Policy) -> float:
        """Add up the milliseconds of ``policy``."""
        total = self.vision_ms
        for phase, times in (("prefill", 1), ("decode", self.new_tokens - 1)):
            if times:
                # What a block that is left out saves is said by its own site alone.
                saved = sum(
                    self.saved_ms[phase][site][count]
                    for site, count in policy.working(anatomy).items()
                    if count in self.saved_ms[phase][site]
                )
                dense = self.dense_ms[phase]
                # What sites save is timed one kind at a time; on a machine under load the sum
                # can come out larger than the whole.
                total += times * max(dense + saved, _LEAST * dense)
        return total

    def saved(self, site: SiteId, width: int) -> float:
        """Give what one site saves of the workload at a width, in ms, <= 0."""
        saved = self.saved_ms["prefill"][site][width]
        if self.new_tokens > 1:
            saved += (self.new_tokens - 1) * self.saved_ms["decode"][site][width]
        return saved

    def dense(self, anatomy: Anatomy) -> float:
        """Give the milliseconds of the dense model."""
        return self.predict(anatomy, Policy.dense(anatomy))


class Stopwatch:
    """Runs the workload on a model and times its phases.

    Args:
        loaded: The model.
        samples: Questions about pictures; repeated until they fill the batch. Those without a
            picture are left out, unless no other is there.
        workload: What to run.
    """

    def __init__(self, loaded: Loaded, samples: Sequence[Sample], workload: Workload) -> None:
        self.loaded = loaded
        self.workload = workload
        asked = [sample for sample in samples if sample.image is not None] or samples
        filled = [asked[index % len(asked)] for index in range(workload.batch)]
        (batch,) = prompts(loaded.processor, filled, batch_size=workload.batch)
        self.inputs = {name: value.to(loaded.device) for name, value in batch.inputs.items()}
        self.seen: Seen = look(loaded, self.inputs)

    def _timed(self, run: Callable[[], object]) -> float:
        self._wait()
        started = time.perf_counter()
        run()
        self._wait()
        return (time.perf_counter() - started) * 1e3

    def _wait(self) -> None:
        if self.loaded.device.type == "cuda":
            torch.cuda.synchronize(self.loaded.device)

    def vision(self) -> dict[str, float]:
        """Time the vision tower; nothing where it runs with the decoder, as it is cut, too."""
        if self.seen.features is None:
            return {}
        return {"vision": self._timed(lambda: look(self.loaded, self.inputs))}

    @torch.inference_mode()
    def decoder(self, network: Loaded) -> dict[str, float]:
        """Time the projector and decoder: ``prefill`` and, where asked for, one ``decode``."""
        phases = {"prefill": self._timed(lambda: answer(network, self.seen))}
        if self.workload.new_tokens > 1:
            phases["decode"] = self._decode(network.model)
        return phases

    def _decode(self, model: Any, steps: int = 4) -> float:
        first = model(**self.inputs, use_cache=True, logits_to_keep=1)
        cache, token = first.past_key_values, first.logits[:, -1:].argmax(-1)
        mask = self.inputs["attention_mask"]
        ms = 0.0
        for _ in range(steps):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            step = {"input_ids": token, "attention_mask": mask, "past_key_values": cache}
            ms += self._timed(functools.partial(model, **step, logits_to_keep=1))
        return ms / steps

    def race(
        self,
        runs: Mapping[Any, Callable[[], Mapping[str, float]]],
        progress: Callable[[float], None] | None = None,
    ) -> dict[Any, dict[str, list[float]]]:
        """Run everything in turn, ``repeats`` times over; give the timings of each."""
        timings: dict[Any, dict[str, list[float]]] = {name: {} for name in runs}
        rounds = self.workload.warmup + self.workload.repeats
        for number in range(rounds):
            for name, run in runs.items():
                for phase, ms in run().items():
                    if number >= self.workload.warmup:
                        timings[name].setdefault(phase, []).append(ms)
            if progress is not None:
                progress((number + 1) / rounds)
        return timings


def measure_table(
    stopwatch: Stopwatch,
    order: Order,
    widths: Mapping[SiteId, Sequence[int]],
    *,
    checks: int = 4,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> LatencyTable:
    """Measure the latency table of a model arranged by ``order``.

    Sites that are alike (kind, width, parameters of a unit) share their timings.

    Args:
        stopwatch: Runs the workload.
        order: Which units stay.
        widths: Numbers of units to time, by site; the dense width among them.
        checks: Random policies that are run whole, to know the error of the sums.
        seed: Draws them.
        progress: Is told the share that is done.
    """
    loaded, anatomy = stopwatch.loaded, stopwatch.loaded.anatomy
    alike: dict[tuple[Kind, int, int], list[int]] = {}
    for index, site in enumerate(anatomy.sites):
        alike.setdefault((site.kind, site.width, site.unit_params), []).append(index)
    dense = Policy.dense(anatomy)
    policies: dict[Any, Policy] = {"dense": dense}
    for group, members in alike.items():
        for width in widths[anatomy.sites[members[0]].id]:
            if width < group[1]:
                keep = [width if i in members else k for i, k in enumerate(dense.keep)]
                policies[group, width] = Policy.of(anatomy, keep)
    rng = np.random.default_rng(seed)
    for check in range(checks):
        drawn = [int(rng.choice(list(widths[site.id]))) for site in anatomy.sites]
        policies["check", check] = Policy.of(anatomy, drawn)

    def runner(policy: Policy) -> Callable[[], Mapping[str, float]]:
        def run() -> Mapping[str, float]:
            with narrowed(loaded, policy, order) as network:
                return stopwatch.decoder(network)

        return run

    runs: dict[Any, Callable[[], Mapping[str, float]]] = {
        name: runner(policy) for name, policy in policies.items()
    }
    runs["vision"] = stopwatch.vision
    timings = stopwatch.race(runs, progress)
    typical = {
        name: {phase: undisturbed(ms) for phase, ms in phases.items()}
        for name, phases in timings.items()
    }
    spread = _spread(timings)
    better: dict[SiteId, tuple[int, ...]] = {}
    dense_ms: dict[str, float] = {}
    saved: dict[str, dict[SiteId, dict[int, float]]] = {}
    for phase in typical["dense"]:
        saved[phase] = {}
        dense_ms[phase] = typical["dense"][phase]
        for group, members in alike.items():
            measured = {
                width: typical[group, width][phase] if width < group[1] else dense_ms[phase]
                for width in widths[anatomy.sites[members[0]].id]
            }
            smooth = _increasing(measured)
            top = smooth[group[1]]
            for member in members:
                if phase == "prefill":
                    better[anatomy.sites[member].id] = friendly(measured, max(0.02, 3 * spread))
                saved[phase][anatomy.sites[member].id] = {
                    width: (ms - top) / len(members) for width, ms in smooth.items()
                }
    table = LatencyTable(
        stopwatch.workload.new_tokens,
        typical["vision"].get("vision", 0.0),
        dense_ms,
        saved,
        better,
        error=0.0,
        spread=spread,
    )
    errors = []
    for check in range(checks):
        mine = typical["check", check]
        whole = table.vision_ms + mine["prefill"]
        whole += (table.new_tokens - 1) * mine.get("decode", 0.0)
        errors.append(abs(table.predict(anatomy, policies["check", check]) - whole) / whole)
    return replace(table, error=float(np.mean(errors)) if errors else 0.0)


def undisturbed(ms: Sequence[float]) -> float:
    """Give the lower quartile of timings: steadier than the median, as interruptions only add."""
    return float(np.quantile(ms, 0.25))


def friendly(ms: Mapping[int, float], tolerance: float) -> tuple[int, ...]:
    """Leave out widths at which a wider site is clearly faster; keep the two ends.

    The narrowest stays, so that a budget that could be met can be met.

    Args:
        ms: What each width costs, ascending by width; the dense width last.
        tolerance: Share by which the wider one must be faster.

    Example:
        >>> friendly({100: 5.0, 120: 6.0, 128: 4.0, 256: 8.0}, tolerance=0.02)
        (100, 128, 256)
    """
    widths, costs = list(ms), list(ms.values())
    return tuple(
        width
        for index, (width, cost) in enumerate(zip(widths, costs, strict=True))
        if index == 0 or min(costs[index:]) >= cost * (1 - tolerance)
    )


def _increasing(measured: Mapping[int, float]) -> dict[int, float]:
    """Smooth timings by width; of widths that time alike, the narrower is a shade faster.

    Without the shade, a front would have one point where the clock cannot tell widths apart.
    """
    widths = sorted(measured)
    fitted = IsotonicRegression().fit_transform(widths, [measured[width] for width in widths])
    shade = _SHADE * float(fitted[-1]) / widths[-1]
    return {
        width: float(ms) - shade * (widths[-1] - width)
        for width, ms in zip(widths, fitted, strict=True)
    }


def _spread(timings: Mapping[Any, Mapping[str, Sequence[float]]]) -> float:
    ratios = []
    for phases in timings.values():
        for ms in phases.values():
            low, middle, high = np.quantile(ms, [0.25, 0.5, 0.75])
            ratios.append((high - low) / middle)
    return float(np.median(ratios))
