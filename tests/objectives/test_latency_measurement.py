from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from effllava_optuna import Policy, narrowed, rank_units
from effllava_optuna.objectives import (
    Stopwatch,
    Workload,
    fit_correction,
    measure_table,
    origin_of,
)
from effllava_optuna.objectives.latency_measurement import friendly, isotonic
from effllava_optuna.tasks import Digits, Split

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.objectives import LatencyTable
    from effllava_optuna.surgery import LoadedModel


class Additive(Stopwatch):
    """A model whose time is known: so much a head, so much a channel, and a constant.

    Args:
        loaded: The model.
        speed: How slow the machine is at each run, by its number; each run takes longer or
            shorter by as much.
    """

    def __init__(self, loaded: LoadedModel, speed: Callable[[int], float] = lambda _: 1.0) -> None:
        super().__init__(
            loaded, Digits(proxy=8).samples(Split.PROXY), Workload(2, 3, 1, 5, 1.0, seconds=60)
        )
        self.speed, self.runs = speed, 0

    def vision(self) -> dict[str, float]:
        self.runs += 1
        return {"vision": 7.0 * self.speed(self.runs)}

    def decoder(self, network: LoadedModel) -> dict[str, float]:
        self.runs += 1
        cost = 5.0
        for handle in network.handles:
            each = 3.0 if handle.component.kind == "attn" else 0.25
            cost += each * handle.linear(handle.output).weight.shape[1] / handle.columns
        cost *= self.speed(self.runs)
        return {"prefill": cost, "decode": cost / 10}


def table_of(stopwatch: Stopwatch, checks: int = 20) -> LatencyTable:
    loaded = stopwatch.loaded
    widths = {
        component.id: range(1, component.width + 1) for component in loaded.structure.components
    }
    return measure_table(stopwatch, rank_units(loaded), widths, checks=checks)


def test_sums_of_the_table_are_whole_runs_of_an_additive_model(tiny: LoadedModel) -> None:
    table = table_of(Additive(tiny))
    assert len(table.errors) == 20
    assert table.error == pytest.approx(0, abs=0.02)
    assert table.vision_ms == pytest.approx(7.0)
    widths = {
        component.id: tuple(range(1, component.width + 1))
        for component in tiny.structure.components
    }
    assert {component: mine[:1] + mine[-1:] for component, mine in table.friendly.items()} == {
        component: (mine[0], mine[-1]) for component, mine in widths.items()
    }
    policy = Policy.uniform(tiny.structure, ratio=0.5)
    whole = 5.0 + sum(
        (3.0 if component.kind == "attn" else 0.25) * count
        for component, count in zip(tiny.structure.components, policy.widths, strict=True)
    )
    assert table.predict(policy) == pytest.approx(7.0 + whole + 2 * whole / 10, rel=0.02)
    phases = table.phases(policy)
    assert phases["decode"] == pytest.approx(phases["prefill"] / 10)


def test_a_machine_that_grows_three_times_slower_and_recovers_does_not_bend_the_table(
    tiny: LoadedModel,
) -> None:
    quiet = table_of(Additive(tiny))

    def drifting(run: int) -> float:
        return 2.0 + math.sin(run / 40)

    drifted = table_of(Additive(tiny, drifting))
    assert drifted.error < 0.03
    half = Policy.uniform(tiny.structure, ratio=0.5)
    ratios = [
        table.phases(half)["prefill"] / table.dense_ms["prefill"] for table in (quiet, drifted)
    ]
    assert ratios[1] == pytest.approx(ratios[0], rel=0.02)


class Overlapping(Additive):
    """A model in which what two kinds of components take grows by what the other takes."""

    def decoder(self, network: LoadedModel) -> dict[str, float]:
        apart = {"attn": 0.0, "mlp": 0.0}
        for handle in network.handles:
            kept = handle.linear(handle.output).weight.shape[1] / handle.columns
            apart[str(handle.component.kind)] += kept / handle.component.width
        ms = 1.0 + sum(apart.values()) + 0.4 * apart["attn"] * apart["mlp"]
        return {"prefill": ms, "decode": ms}


def test_what_components_save_together_is_fitted_to_whole_runs_held_out_in_turn(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = table_of(Overlapping(tiny))
    assert 0.6 < fitted.factor["prefill"] < 0.9
    monkeypatch.setattr("effllava_optuna.objectives.latency_measurement._FEWEST_RUNS", 99)
    plain = table_of(Overlapping(tiny))
    assert plain.factor == {"prefill": 1.0, "decode": 1.0}
    assert np.mean(plain.errors) < -0.04  # sums save too much
    assert abs(np.mean(fitted.errors)) < 0.02
    assert fitted.error < plain.error / 1.5


def test_a_correction_is_fitted_to_policies_that_random_ones_do_not_resemble(
    tiny: LoadedModel,
) -> None:
    stopwatch = Overlapping(tiny)
    table, ranking = table_of(stopwatch), rank_units(tiny)
    rng = np.random.default_rng(1)
    narrow = [
        Policy.of(
            tiny.structure,
            [int(rng.integers(1, max(2, c.width // 4))) for c in tiny.structure.components],
        )
        for _ in range(8)
    ]
    measured = []
    for policy in (Policy.dense(tiny.structure), *narrow):
        with narrowed(tiny, policy, ranking) as network:
            # Later, on a machine that is three times slower.
            phases = stopwatch.decoder(network)
            dense_ms = table.vision_ms + phases["prefill"] + 2 * phases["decode"]
            measured.append(3 * dense_ms)

    def worst(factor: float, policies: list[Policy], times: list[float]) -> float:
        predicted = [table.predict(policy, factor) / table.dense_total_ms for policy in policies]
        return max(abs(p * measured[0] / ms - 1) for p, ms in zip(predicted, times, strict=True))

    factor = fit_correction(table, narrow[:4], measured[:5])
    assert worst(factor, narrow[4:], measured[5:]) < worst(1.0, narrow[4:], measured[5:]) / 2
    assert fit_correction(table, [], measured[:1]) == 1
    assert fit_correction(table, narrow, [measured[0]] * 9) == 0.5  # nothing is saved


def test_latency_rises_with_width_however_noisy_the_clock(tiny: LoadedModel) -> None:
    rng = np.random.default_rng(0)
    table = table_of(Additive(tiny, lambda _: float(rng.uniform(0.5, 2.0))))
    for components in table.saved_ms.values():
        for row in components.values():
            saved = [row[width] for width in sorted(row)]
            assert saved == sorted(saved)
            assert saved[-1] == 0


def test_the_origin_of_a_table_tells_what_it_depends_on(tiny: LoadedModel) -> None:
    stopwatch = Additive(tiny)
    widths = {component.id: (1, component.width) for component in tiny.structure.components}
    origin = origin_of(stopwatch, widths, 4)
    assert origin == origin_of(Additive(tiny), widths, 4)
    assert (origin["dtype"], origin["batch"], origin["new_tokens"]) == ("float32", 2, 3)
    assert origin["device"].startswith(f"{os.cpu_count()} x ")
    longer = Additive(tiny)
    longer.workload = replace(longer.workload, seconds=9.0)
    assert origin != origin_of(longer, widths, 4)
    half = Policy.uniform(tiny.structure, ratio=0.5)
    with narrowed(tiny, half, rank_units(tiny)):
        assert origin["model"] != stopwatch.origin["model"]  # other weights, whatever is cut
    assert origin["prompt_tokens"] > 16  # the picture's, and some words
    component = tiny.structure.components[0]
    assert origin != origin_of(stopwatch, widths | {component.id: (1, 2, component.width)}, 4)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=16))
def test_smoothing_is_isotonic_regression(values: list[float]) -> None:
    expected = IsotonicRegression().fit_transform(range(len(values)), values)
    assert isotonic(values) == pytest.approx(list(expected), abs=1e-6)


def test_a_search_is_offered_sixteen_widths_at_most() -> None:
    costs = {width: 10.0 + width for width in range(1, 101)}
    kept = friendly(costs, tolerance=0.02)
    assert len(kept) == 16
    assert (kept[0], kept[-1]) == (1, 100)
    assert max(np.diff(kept)) <= 8
