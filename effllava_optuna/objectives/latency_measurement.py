"""Measure a latency table.

Every width of every kind of component is timed in place: all components of the kind are narrowed
to the width, the whole model runs the workload, and the difference to the dense model is divided
by the number of components. (A block timed alone finds its weights in the cache of the processor,
where a model never has them.) Times are ratios to the dense model, which runs beside them, and are
smoothed so that they do not fall with the width. Savings are not quite additive: one factor for
each phase is fitted to whole runs of random policies in the same rounds. Each of these policies is
predicted with the factor of the others, and the error is reported.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from effllava_optuna.objectives.latency_table import LatencyTable
from effllava_optuna.policy import IMAGE_TOKENS, Kind, Policy
from effllava_optuna.surgery import narrowed, reduced_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from effllava_optuna.objectives.stopwatch import Stopwatch
    from effllava_optuna.objectives.timing import Timing, Timings
    from effllava_optuna.policy import Component, ComponentId, ModelStructure, Ranking

    Widths = Mapping[ComponentId, Sequence[int]]

_TILT = 1e-3  # of the dense decoder's time, between the narrowest and the dense width
_FEWEST_RUNS = 4  # whole runs that a factor is fitted to
_LEAST_FACTOR, _MOST_FACTOR = 0.5, 1.5
_CLEARLY = 0.02  # of the time at a width: by which a wider one must be faster, at least
_MOST_WIDTHS = 16  # that a search is offered for one component


@dataclass(frozen=True)
class _Group:
    """Components that are alike (tower, kind, width, parameters of a unit) and share timings."""

    component: Component
    members: tuple[int, ...]


def _groups(structure: ModelStructure) -> list[_Group]:
    members: dict[tuple[Any, ...], list[int]] = {}
    for index, component in enumerate(structure.components):
        if component.kind is Kind.TOKENS:  # they multiply with widths: each has its own table
            continue
        key = (component.tower, component.kind, component.width, component.unit_params)
        members.setdefault(key, []).append(index)
    return [
        _Group(structure.components[indices[0]], tuple(indices)) for indices in members.values()
    ]


def origin_of(stopwatch: Stopwatch, widths: Widths, checks: int) -> dict[str, Any]:
    """Return what a table depends on; tables of the same origin are interchangeable."""
    components = [
        [
            component.id,
            component.kind,
            component.width,
            component.unit_params,
            sorted(map(int, widths[component.id])),
        ]
        for component in stopwatch.loaded.structure.components
        if component.kind is not Kind.TOKENS
    ]
    digest = hashlib.sha256(json.dumps(components).encode()).hexdigest()[:16]
    return stopwatch.origin | {"components": digest, "checks": checks}


def measure_table(
    stopwatch: Stopwatch,
    ranking: Ranking,
    widths: Widths,
    *,
    checks: int = 20,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> LatencyTable:
    """Measure the latency table of a model that is arranged by ``ranking``.

    Args:
        stopwatch: Runs and times the workload.
        ranking: The ranking of the units.
        widths: Widths to time by component, without image tokens; the dense width is among them.
        checks: Number of random policies that are run whole, to measure the error.
        seed: Seed of these policies, and of the order within a round.
        progress: Called with the finished share.
    """
    structure = stopwatch.loaded.structure
    groups = _groups(structure)
    policies = _policies(structure, groups, widths)
    rng = np.random.default_rng(seed)
    random = [
        Policy.of(
            structure,
            [int(rng.choice(list(widths.get(c.id, [c.width])))) for c in structure.components],
        )
        for _ in range(checks)
    ]
    policies |= {("check", check): policy for check, policy in enumerate(random)}

    def runner(policy: Policy) -> Callable[[], Mapping[str, float]]:
        def run() -> Mapping[str, float]:
            with narrowed(stopwatch.loaded, policy, ranking) as network:
                return stopwatch.decoder(network)

        return run

    runs = {name: runner(policy) for name, policy in policies.items()}
    timings = stopwatch.race(
        runs | {"vision": stopwatch.vision}, "dense", seed=seed, progress=progress
    )
    table = _additive_table(stopwatch, groups, widths, timings)
    whole = [(policy, timings["check", check]) for check, policy in enumerate(random)]
    errors = []
    for check, (policy, run) in enumerate(whole):
        others = whole[:check] + whole[check + 1 :]
        predicted = _scaled(table, _fit_factor(table, others)).predict(policy)
        errors.append(predicted / whole_ms(table, timings["dense"], run) - 1)
    factor = _fit_factor(table, whole)
    return replace(
        _scaled(table, factor),
        errors=tuple(errors),
        factor=factor,
        origin=origin_of(stopwatch, widths, checks),
    )


def measure_token_ratios(
    stopwatch: Stopwatch, progress: Callable[[float], None] | None = None
) -> dict[int, dict[str, float]]:
    """Time the dense model with each number of image tokens that policies may keep, in turn.

    Args:
        stopwatch: Runs and times the workload with all image tokens.
        progress: Called with the finished share.

    Returns:
        By percent of the image tokens below 100, the latency of each phase over that with all.
    """
    loaded, choice = stopwatch.loaded, stopwatch.loaded.parts.tokens
    if choice is None:
        return {}

    def runner(ratio: float) -> Callable[[], Mapping[str, float]]:
        def run() -> Mapping[str, float]:
            with reduced_tokens(loaded, ratio, selection=choice.selection) as network:
                return stopwatch.decoder(network)

        return run

    ratios = dict(zip(choice.widths, (*choice.ratios, 1.0), strict=True))
    runs = {percent: runner(ratio) for percent, ratio in ratios.items()}
    timings = stopwatch.race(runs, IMAGE_TOKENS.width, progress=progress)
    return {
        percent: {phase: timing.ratio for phase, timing in timings[percent].items()}
        for percent in choice.widths[:-1]
    }


def _fit_factor(
    table: LatencyTable, runs: Sequence[tuple[Policy, Mapping[str, Timing]]]
) -> dict[str, float]:
    """Fit by phase the factor of the sums of savings; 1 if there are few runs."""
    if len(runs) < _FEWEST_RUNS:
        return dict.fromkeys(table.dense_ms, 1.0)
    factors = {}
    for phase, dense in table.dense_ms.items():
        sums = np.array([table.phases(policy)[phase] - dense for policy, _ in runs])
        saved = np.array([dense * (timings[phase].ratio - 1) for _, timings in runs])
        fitted = float(sums @ saved) / (float(sums @ sums) or 1.0)
        factors[phase] = min(max(fitted, _LEAST_FACTOR), _MOST_FACTOR)
    return factors


def fit_correction(
    table: LatencyTable, policies: Sequence[Policy], measured_ms: Sequence[float]
) -> float:
    """Fit the share of the predicted savings that networks have when they are run whole.

    The table is fitted to random policies; those that a search prefers are narrower, and owe their
    place in part to errors of the table in their favour.

    Args:
        table: The table that predicts them.
        policies: The policies; none of them is dense.
        measured_ms: Latency of the dense model, then that of each policy, measured in turn.

    Returns:
        The factor for `LatencyTable.predict`, between 0.5 and 1.5; 1 without policies.
    """
    dense_ms, *whole = measured_ms
    dense = table.dense_total_ms
    predicted = np.array([table.predict(policy) - dense for policy in policies])
    saved = np.array([dense * (ms / dense_ms - 1) for ms in whole])
    squares = float(predicted @ predicted)
    if squares == 0:
        return 1.0
    return min(max(float(predicted @ saved) / squares, _LEAST_FACTOR), _MOST_FACTOR)


def _scaled(table: LatencyTable, factor: Mapping[str, float]) -> LatencyTable:
    return replace(
        table,
        saved_ms={
            phase: {
                component: {width: factor[phase] * ms for width, ms in row.items()}
                for component, row in rows.items()
            }
            for phase, rows in table.saved_ms.items()
        },
    )


def _policies(
    structure: ModelStructure, groups: Sequence[_Group], widths: Widths
) -> dict[Any, Policy]:
    """Return the dense policy, and one for each width of each group."""
    dense = Policy.dense(structure)
    policies: dict[Any, Policy] = {"dense": dense}
    for group in groups:
        for width in widths[group.component.id]:
            if width < group.component.width:
                narrowed_widths = [
                    width if index in group.members else dense_width
                    for index, dense_width in enumerate(dense.widths)
                ]
                policies[group, width] = Policy.of(structure, narrowed_widths)
    return policies


def whole_ms(
    table: LatencyTable, dense: Mapping[str, Timing], timings: Mapping[str, Timing]
) -> float:
    """Return the latency of a network that was run whole, from its ratios to the dense model.

    Args:
        table: Has the time of the vision tower and the number of new tokens.
        dense: Timings of the dense model, by phase.
        timings: Timings of the network, with ratios to the dense model.

    Returns:
        Milliseconds of the whole workload.
    """
    ms = {phase: dense[phase].typical_ms * timings[phase].ratio for phase in dense}
    return float(table.vision_ms + ms["prefill"] + (table.new_tokens - 1) * ms.get("decode", 0.0))


def _additive_table(
    stopwatch: Stopwatch, groups: Sequence[_Group], widths: Widths, timings: Timings
) -> LatencyTable:
    """Compute the table in which the savings of components simply add up."""
    structure = stopwatch.loaded.structure
    dense_ms = {phase: timing.typical_ms for phase, timing in timings["dense"].items()}
    others = [
        timing for name, phases in timings.items() if name != "dense" for timing in phases.values()
    ]
    typical = float(np.median([timing.relative_error for timing in others]))
    spread = typical if np.isfinite(typical) else None
    runs = {"prefill": 1, "decode": stopwatch.workload.new_tokens - 1}
    saved: dict[str, dict[ComponentId, dict[int, float]]] = {phase: {} for phase in dense_ms}
    useful: dict[ComponentId, tuple[int, ...]] = {}
    for group in groups:
        component = group.component
        ids = [structure.components[member].id for member in group.members]
        costs = dict.fromkeys(sorted(widths[component.id]), 0.0)  # of the whole workload
        for phase, dense in dense_ms.items():
            ratios = {
                width: timings[group, width][phase].ratio if width < component.width else 1.0
                for width in costs
            }
            for width, ratio in ratios.items():
                costs[width] += runs[phase] * dense * ratio
            smooth = _increasing(ratios)
            row = {
                width: dense * (ratio - smooth[component.width]) / len(ids)
                for width, ratio in smooth.items()
            }
            saved[phase] |= dict.fromkeys(ids, row)
        useful |= dict.fromkeys(ids, friendly(costs, max(_CLEARLY, 2 * (spread or 0.0))))
    vision = timings["vision"].get("vision")
    return LatencyTable(
        new_tokens=stopwatch.workload.new_tokens,
        vision_ms=0.0 if vision is None else vision.ratio * dense_ms["prefill"],
        dense_ms=dense_ms,
        saved_ms=saved,
        friendly=useful,
        errors=(),
        spread=spread,
        rounds=max(len(timing.ms) for timing in others),
        launched=tuple(sorted(stopwatch.launched)),
    )


def friendly(costs: Mapping[int, float], tolerance: float) -> tuple[int, ...]:
    """Remove widths at which a wider component is clearly faster; keep both ends.

    The narrowest is kept, so that a feasible budget stays feasible. If more than 16 are left,
    those are kept that are evenly spaced in cost.

    Args:
        costs: Cost of each width, ascending by width; the dense width is the last.
        tolerance: Share by which the wider one must be faster.

    Example:
        >>> friendly({100: 5.0, 120: 6.0, 128: 4.0, 256: 8.0}, tolerance=0.02)
        (100, 128, 256)
    """
    widths, values = list(costs), list(costs.values())
    kept = [
        width
        for index, (width, cost) in enumerate(costs.items())
        if index == 0 or min(values[index:]) >= cost * (1 - tolerance)
    ]
    if len(kept) > _MOST_WIDTHS:
        smooth = _increasing(costs)
        steps = np.linspace(smooth[widths[0]], smooth[widths[-1]], _MOST_WIDTHS)
        nearest = {min(kept, key=lambda w: (abs(smooth[w] - step), w)) for step in steps}
        kept = sorted(nearest | {widths[0], widths[-1]})
    return tuple(kept)


def _increasing(measured: Mapping[int, float]) -> dict[int, float]:
    """Smooth timings by width, so that they strictly increase.

    Among widths with equal times, the narrower one becomes slightly faster. Otherwise a Pareto
    front would have one point for all widths that the clock cannot tell apart.
    """
    widths = sorted(measured)
    fitted = isotonic([measured[width] for width in widths])
    tilt = _TILT * float(fitted[-1]) / widths[-1]
    return {
        width: float(ms) - tilt * (widths[-1] - width)
        for width, ms in zip(widths, fitted, strict=True)
    }


def isotonic(values: Sequence[float]) -> list[float]:
    """Compute the non-decreasing numbers nearest to ``values`` in least squares.

    Uses the minimax formula (Barlow et al. 1972): at i, the largest over starts a <= i of the
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
