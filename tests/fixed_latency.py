"""A latency table that depends on nothing measured, for all studies that tests calibrate.

What a search proposes depends on its latency table. A measured one differs from machine to
machine and from run to run, so tests calibrate with this one. ``EFFLLAVA_NOISY_CLOCK=1``
multiplies every time that is measured nevertheless by a random factor between 0.3 and 3: no test
may notice.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from effllava_optuna.objectives import LatencyTable, Stopwatch
    from effllava_optuna.policy import ComponentId, Policy, Ranking
    from effllava_optuna.search.evaluator import Evaluator

DENSE_MS = {"prefill": 100.0, "decode": 4.0}
PRUNABLE = 0.9  # share of the dense time that the components take, by parameters
TEXT = 0.2  # share of the dense time that does not depend on image tokens
CORRECTION = 0.9  # of the predicted savings, from epoch 1 on
NOISE = (0.3, 3.0)  # factors of measured times


def fixed_table(
    stopwatch: Stopwatch,
    ranking: Ranking,
    widths: Mapping[ComponentId, Sequence[int]],
    *,
    checks: int = 20,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> LatencyTable:
    """Return a table in which time is proportional to parameters; called like `measure_table`."""
    from effllava_optuna.objectives import LatencyTable, origin_of

    structure = stopwatch.loaded.structure
    new_tokens = stopwatch.workload.new_tokens
    phases = DENSE_MS if new_tokens > 1 else {"prefill": DENSE_MS["prefill"]}
    share = {
        component.id: PRUNABLE * component.width * component.unit_params / structure.parameters
        for component in structure.components
        if component.id in widths
    }
    saved = {
        phase: {
            component.id: {
                width: -dense_ms * share[component.id] * (1 - width / component.width)
                for width in widths[component.id]
            }
            for component in structure.components
            if component.id in widths
        }
        for phase, dense_ms in phases.items()
    }
    if progress is not None:
        progress(1.0)
    return LatencyTable(
        new_tokens=new_tokens,
        vision_ms=0.0 if stopwatch.seen.vision is None else 5.0,
        dense_ms=phases,
        saved_ms=saved,
        friendly={component: tuple(allowed) for component, allowed in widths.items()},
        errors=(0.01, -0.01),
        spread=0.01,
        factor=dict.fromkeys(phases, 1.0),
        rounds=5,
        origin=origin_of(stopwatch, widths, checks),
    )


def fixed_correction(
    table: LatencyTable, policies: Sequence[Policy], measured_ms: Sequence[float]
) -> float:
    """Return the same factor for all runs; called like `fit_correction`."""
    assert len(measured_ms) == len(policies) + 1
    return CORRECTION


def with_fixed_times(time_networks: Callable[..., list[float]]) -> Callable[..., list[float]]:
    """Return a method that times networks, but returns what the table predicts of them."""

    def timed(self: Evaluator, networks: Sequence[Any], *arguments: Any) -> list[float]:
        assert all(ms > 0 for ms in time_networks(self, networks, *arguments))
        table = self.calibration.latency
        return [table.predict(policy, CORRECTION) for _, policy in networks]

    return timed


@pytest.fixture(scope="session", autouse=True)
def latency_is_fixed() -> Iterator[None]:
    """Calibrate every study of this process with the fixed table."""
    with pytest.MonkeyPatch.context() as patch:
        fix_latency(patch)
        yield


def fix_latency(patch: pytest.MonkeyPatch) -> None:
    """Let every study of this process have fixed latencies, and so the same choice."""
    from effllava_optuna.search.evaluator import Evaluator

    patch.setattr(Evaluator, "time_networks", with_fixed_times(Evaluator.time_networks))
    patch.setattr("effllava_optuna.calibration.calibration_run.measure_table", fixed_table)
    patch.setattr("effllava_optuna.calibration.calibration_run.measure_token_ratios", fixed_ratios)
    patch.setattr("effllava_optuna.search.epochs.projector_round.fit_correction", fixed_correction)


def fixed_ratios(stopwatch: Stopwatch, progress: object = None) -> dict[int, dict[str, float]]:
    """Return latencies over that of all image tokens; called like `measure_token_ratios`."""
    choice = stopwatch.loaded.parts.tokens
    widths = () if choice is None else choice.widths[:-1]
    phases = DENSE_MS if stopwatch.workload.new_tokens > 1 else {"prefill": DENSE_MS["prefill"]}
    return {width: dict.fromkeys(phases, TEXT + (1 - TEXT) * width / 100) for width in widths}


@pytest.fixture(scope="session", autouse=True)
def clock_may_be_noisy() -> Iterator[None]:
    """Multiply what a stopwatch measures by random factors, if the environment asks for it."""
    if not os.environ.get("EFFLLAVA_NOISY_CLOCK"):
        yield
        return
    from effllava_optuna.objectives import Stopwatch

    rng = np.random.default_rng()
    clocked = Stopwatch._clocked

    def noisy(self: Stopwatch, *arguments: Any) -> float:
        return clocked(self, *arguments) * float(rng.uniform(*NOISE))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stopwatch, "_clocked", noisy)
        yield
