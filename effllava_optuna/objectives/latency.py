"""How long a policy takes: measured once by width, then added up.

Every width of every kind of site is timed in place: all sites of the kind are narrowed to the
width, the whole model runs the workload, and the difference to the dense model, divided by the
number of sites, is what one site saves there. (A block by itself would find its weights in the
cache of the processor, where a model never has them.) Times are shares of the dense model's, run
beside them, smoothed so that they do not fall with width. What sites save together is not quite
the sum of what they save apart: one factor a phase is fitted to whole runs of random policies in
the same rounds. Each of them is predicted by the factor of the others, and the error is reported.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from effllava_optuna.policy import Policy
from effllava_optuna.surgery import narrowed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from effllava_optuna.objectives.timing import Stopwatch, Timing, Timings
    from effllava_optuna.policy import Anatomy, Order, SiteId

    # The sites of a group are alike: they share their timings.
    Group = tuple[Any, ...]


_SHADE = 1e-3  # of the dense decoder's time, between the narrowest and the dense width
_LEAST = 0.02  # of the dense decoder's time; nothing is faster
_FEWEST = 4  # whole runs that a factor is fitted to
_LEAST_FACTOR, _MOST_FACTOR = 0.5, 1.5
_CLEARLY = 0.02  # of the time at a width: what a wider one must be faster by, at least
_MOST_WIDTHS = 16  # that a search is offered for one site


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
        errors: Of the random policies that were run whole: sum over run, minus 1; each by the
            factor of the others.
        spread: Half the 95 % interval of a typical timing, as a share of it; None where there
            were too few rounds to tell.
        factor: By phase: what sums of savings were multiplied by; it is in ``saved_ms`` already.
        rounds: How often everything was run.
        launched: Phases in which launching kernels was timed, too, as they could not be captured
            on a GPU.
        origin: What the table depends on; the same model on the same machine has the same.
    """

    new_tokens: int
    vision_ms: float
    dense_ms: Mapping[str, float]
    saved_ms: Mapping[str, Mapping[SiteId, Mapping[int, float]]]
    friendly: Mapping[SiteId, tuple[int, ...]]
    errors: tuple[float, ...]
    spread: float | None
    factor: Mapping[str, float] = field(default_factory=dict)
    rounds: int = 0
    launched: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Give the mean absolute error on the random policies that were run whole."""
        return float(np.mean(np.abs(self.errors))) if self.errors else 0.0

    def predict(self, anatomy: Anatomy, policy: Policy) -> float:
        """Add up the milliseconds of ``policy``."""
        phases = self.phases(anatomy, policy)
        total = self.vision_ms + phases["prefill"]
        return total + (self.new_tokens - 1) * phases.get("decode", 0.0)

    def phases(self, anatomy: Anatomy, policy: Policy) -> dict[str, float]:
        """Add up the milliseconds of ``policy`` by phase: ``prefill``, ``decode`` (one token)."""
        found = {}
        for phase, dense in self.dense_ms.items():
            # What a block that is left out saves is said by its own site alone.
            saved = sum(
                self.saved_ms[phase][site][count]
                for site, count in policy.working(anatomy).items()
                if count in self.saved_ms[phase][site]
            )
            # What sites save is timed one kind at a time; on a machine under load the sum can
            # come out larger than the whole.
            found[phase] = max(dense + saved, _LEAST * dense)
        return found

    def saved(self, site: SiteId, width: int) -> float:
        """Give what one site saves of the workload at a width, in ms, <= 0."""
        saved = self.saved_ms["prefill"][site][width]
        if self.new_tokens > 1:
            saved += (self.new_tokens - 1) * self.saved_ms["decode"][site][width]
        return saved

    def dense(self, anatomy: Anatomy) -> float:
        """Give the milliseconds of the dense model."""
        return self.predict(anatomy, Policy.dense(anatomy))


def origin_of(
    stopwatch: Stopwatch, widths: Mapping[SiteId, Sequence[int]], checks: int
) -> dict[str, Any]:
    """Say what a table depends on: two that would be the same have the same origin."""
    sites = [
        [site.id, site.kind, site.width, site.unit_params, sorted(map(int, widths[site.id]))]
        for site in stopwatch.loaded.anatomy.sites
    ]
    digest = hashlib.sha256(json.dumps(sites).encode()).hexdigest()[:16]
    return stopwatch.origin | {"sites": digest, "checks": checks}


def measure_table(
    stopwatch: Stopwatch,
    order: Order,
    widths: Mapping[SiteId, Sequence[int]],
    *,
    checks: int = 20,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> LatencyTable:
    """Measure the latency table of a model arranged by ``order``.

    Sites that are alike (tower, kind, width, parameters of a unit) share their timings.

    Args:
        stopwatch: Runs the workload.
        order: Which units stay.
        widths: Numbers of units to time, by site; the dense width among them.
        checks: Random policies that are run whole, to know the error of the sums.
        seed: Draws them.
        progress: Is told the share that is done.
    """
    loaded, anatomy = stopwatch.loaded, stopwatch.loaded.anatomy
    alike: dict[Group, list[int]] = {}
    for index, site in enumerate(anatomy.sites):
        group = (site.tower, site.kind, site.width, site.unit_params)
        alike.setdefault(group, []).append(index)
    policies = _policies(anatomy, alike, widths)
    rng = np.random.default_rng(seed)
    for check in range(checks):
        drawn = [int(rng.choice(list(widths[site.id]))) for site in anatomy.sites]
        policies["check", check] = Policy.of(anatomy, drawn)

    def runner(policy: Policy) -> Callable[[], Mapping[str, float]]:
        def run() -> Mapping[str, float]:
            with narrowed(loaded, policy, order) as network:
                return stopwatch.decoder(network)

        return run

    runs = {name: runner(policy) for name, policy in policies.items()}
    timings = stopwatch.race(
        runs | {"vision": stopwatch.vision}, "dense", seed=seed, progress=progress
    )
    table = _table(stopwatch, anatomy, alike, widths, timings)
    whole = [policies["check", check] for check in range(checks)]
    runs_of = [timings["check", check] for check in range(checks)]
    errors = []
    for mine, run in zip(whole, runs_of, strict=True):
        others = [pair for pair in zip(whole, runs_of, strict=True) if pair[1] is not run]
        sums = _scaled(table, _factor(table, anatomy, others)).predict(anatomy, mine)
        errors.append(sums / whole_ms(table, timings["dense"], run) - 1)
    factor = _factor(table, anatomy, list(zip(whole, runs_of, strict=True)))
    return replace(
        _scaled(table, factor),
        errors=tuple(errors),
        factor=factor,
        origin=origin_of(stopwatch, widths, checks),
    )


def _factor(
    table: LatencyTable, anatomy: Anatomy, runs: Sequence[tuple[Policy, Mapping[str, Timing]]]
) -> dict[str, float]:
    """Fit by phase what sums of savings are to be multiplied by; 1 where there are few runs."""
    if len(runs) < _FEWEST:
        return dict.fromkeys(table.dense_ms, 1.0)
    found = {}
    for phase, dense in table.dense_ms.items():
        sums = np.array([table.phases(anatomy, policy)[phase] - dense for policy, _ in runs])
        saved = np.array([dense * (timings[phase].ratio - 1) for _, timings in runs])
        fitted = float(sums @ saved) / (float(sums @ sums) or 1.0)
        found[phase] = min(max(fitted, _LEAST_FACTOR), _MOST_FACTOR)
    return found


def _scaled(table: LatencyTable, factor: Mapping[str, float]) -> LatencyTable:
    return replace(
        table,
        saved_ms={
            phase: {
                site: {width: factor[phase] * ms for width, ms in row.items()}
                for site, row in sites.items()
            }
            for phase, sites in table.saved_ms.items()
        },
    )


def _policies(
    anatomy: Anatomy, alike: Mapping[Group, list[int]], widths: Mapping[SiteId, Sequence[int]]
) -> dict[Any, Policy]:
    """Give the dense policy, and one for each width of each group."""
    dense = Policy.dense(anatomy)
    policies: dict[Any, Policy] = {"dense": dense}
    for group, members in alike.items():
        site = anatomy.sites[members[0]]
        for width in widths[site.id]:
            if width < site.width:
                keep = [width if i in members else k for i, k in enumerate(dense.keep)]
                policies[group, width] = Policy.of(anatomy, keep)
    return policies


def whole_ms(table: LatencyTable, dense: Mapping[str, Any], mine: Mapping[str, Any]) -> float:
    """Give the milliseconds of a network that was run whole, from its ratios to the dense one.

    Args:
        table: Has the vision tower's time and the number of new tokens.
        dense: Timings of the dense model, by phase.
        mine: Timings of the network, with ratios to the dense model.
    """
    ms = {phase: dense[phase].typical_ms * mine[phase].ratio for phase in dense}
    return float(table.vision_ms + ms["prefill"] + (table.new_tokens - 1) * ms.get("decode", 0.0))


def _table(
    stopwatch: Stopwatch,
    anatomy: Anatomy,
    alike: Mapping[Group, list[int]],
    widths: Mapping[SiteId, Sequence[int]],
    timings: Timings,
) -> LatencyTable:
    dense_ms = {phase: timing.typical_ms for phase, timing in timings["dense"].items()}
    others = [
        timing for name, phases in timings.items() if name != "dense" for timing in phases.values()
    ]
    doubt = float(np.median([mine.doubt for mine in others]))
    spread = doubt if np.isfinite(doubt) else None
    clearly = max(_CLEARLY, 2 * (spread or 0.0))
    times = {"prefill": 1, "decode": stopwatch.workload.new_tokens - 1}
    saved: dict[str, dict[SiteId, dict[int, float]]] = {phase: {} for phase in dense_ms}
    useful: dict[SiteId, tuple[int, ...]] = {}
    for group, members in alike.items():
        site, ids = anatomy.sites[members[0]], [anatomy.sites[member].id for member in members]
        costs = dict.fromkeys(sorted(widths[site.id]), 0.0)  # of the whole workload
        for phase, dense in dense_ms.items():
            measured = {
                width: timings[group, width][phase].ratio if width < site.width else 1.0
                for width in costs
            }
            for width, ratio in measured.items():
                costs[width] += times[phase] * dense * ratio
            smooth = _increasing(measured)
            row = {
                width: dense * (ratio - smooth[site.width]) / len(members)
                for width, ratio in smooth.items()
            }
            saved[phase] |= dict.fromkeys(ids, row)
        useful |= dict.fromkeys(ids, friendly(costs, clearly))
    vision = timings["vision"].get("vision")
    return LatencyTable(
        new_tokens=stopwatch.workload.new_tokens,
        vision_ms=0.0 if vision is None else vision.ratio * dense_ms["prefill"],
        dense_ms=dense_ms,
        saved_ms=saved,
        friendly=useful,
        errors=(),
        spread=spread,
        rounds=max(len(mine.ms) for mine in others),
        launched=tuple(sorted(stopwatch.launched)),
    )


def friendly(costs: Mapping[int, float], tolerance: float) -> tuple[int, ...]:
    """Leave out widths at which a wider site is clearly faster; keep the two ends.

    The narrowest stays, so that a budget that could be met can be met. Where more than 16 are
    left, those stay that are spread evenly in cost.

    Args:
        costs: What each width costs, ascending by width; the dense width last.
        tolerance: Share by which the wider one must be faster.

    Example:
        >>> friendly({100: 5.0, 120: 6.0, 128: 4.0, 256: 8.0}, tolerance=0.02)
        (100, 128, 256)
    """
    widths, known = list(costs), list(costs.values())
    kept = [
        width
        for index, (width, cost) in enumerate(costs.items())
        if index == 0 or min(known[index:]) >= cost * (1 - tolerance)
    ]
    if len(kept) > _MOST_WIDTHS:
        smooth = _increasing(costs)
        steps = np.linspace(smooth[widths[0]], smooth[widths[-1]], _MOST_WIDTHS)
        nearest = {min(kept, key=lambda w: (abs(smooth[w] - step), w)) for step in steps}
        kept = sorted(nearest | {widths[0], widths[-1]})
    return tuple(kept)


def _increasing(measured: Mapping[int, float]) -> dict[int, float]:
    """Smooth timings by width; of widths that time alike, the narrower is a shade faster.

    Without the shade, a front would have one point where the clock cannot tell widths apart.
    """
    widths = sorted(measured)
    fitted = isotonic([measured[width] for width in widths])
    shade = _SHADE * float(fitted[-1]) / widths[-1]
    return {
        width: float(ms) - shade * (widths[-1] - width)
        for width, ms in zip(widths, fitted, strict=True)
    }


def isotonic(values: Sequence[float]) -> list[float]:
    """Give the non-decreasing numbers nearest to ``values`` in least squares.

    By its minimax formula (Barlow et al. 1972): at i, the largest over starts a <= i of the
    smallest over ends b >= i of the mean from a to b.

    Example:
        >>> isotonic([1.0, 3.0, 2.0])
        [1.0, 2.5, 2.5]
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    count = len(values)
    return [
        max(
            min(float(sums[b] - sums[a]) / (b - a) for b in range(i + 1, count + 1))
            for a in range(i + 1)
        )
        for i in range(count)
    ]
