from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from effllava_optuna import Policy, rank_units
from effllava_optuna.objectives import Stopwatch, Workload, measure_table
from effllava_optuna.tasks import Digits, Split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from effllava_optuna.surgery import Loaded


class Additive(Stopwatch):
    """A model whose time is known: so much a head, so much a channel, and a constant."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.workload = Workload(repeats=3, warmup=1, new_tokens=3)
        self.slow = 1.0

    def vision(self) -> dict[str, float]:
        return {"vision": 7.0}

    def decoder(self, network: Loaded) -> dict[str, float]:
        self.slow *= 1.0
        cost = 5.0
        for handle in network.handles:
            each = 3.0 if handle.site.kind == "attn" else 0.25
            cost += each * handle.linear(handle.output).weight.shape[1] / handle.columns
        return {"prefill": cost, "decode": cost / 10}


def test_sums_of_the_table_are_whole_runs_of_an_additive_model(tiny: Loaded) -> None:
    order, stopwatch = rank_units(tiny), Additive(tiny)
    widths = {site.id: range(1, site.width + 1) for site in tiny.anatomy.sites}
    table = measure_table(stopwatch, order, widths, checks=3)
    assert table.error == pytest.approx(0, abs=0.03)
    assert table.friendly == {site: tuple(mine) for site, mine in widths.items()}
    policy = Policy.uniform(tiny.anatomy, keep=0.5)
    whole = 5.0 + sum(
        (3.0 if site.kind == "attn" else 0.25) * count
        for site, count in zip(tiny.anatomy.sites, policy.keep, strict=True)
    )
    assert table.predict(tiny.anatomy, policy) == pytest.approx(
        7.0 + whole + 2 * whole / 10, rel=0.03
    )


def test_timings_are_interleaved_and_warm_ups_do_not_count() -> None:
    calls = []
    stopwatch: Any = SimpleNamespace(workload=Workload(warmup=1, repeats=2))

    def run(name: str) -> Callable[[], Mapping[str, float]]:
        def timed() -> Mapping[str, float]:
            calls.append(name)
            return {"prefill": float(len(calls))}

        return timed

    found: dict[Any, dict[str, list[float]]] = Stopwatch.race(
        stopwatch, {"a": run("a"), "b": run("b")}
    )
    assert calls == ["a", "b"] * 3
    assert found == {"a": {"prefill": [3.0, 5.0]}, "b": {"prefill": [4.0, 6.0]}}


def test_prefill_and_decode_are_timed_on_the_model(tiny: Loaded) -> None:
    samples = Digits(proxy=8).samples(Split.PROXY)
    stopwatch = Stopwatch(tiny, samples, Workload(batch=10, new_tokens=3))
    assert len(stopwatch.seen.inputs["input_ids"]) == 10
    phases = stopwatch.decoder(tiny)
    assert set(phases) == {"prefill", "decode"}
    assert min(phases.values()) > 0
    assert stopwatch.vision()["vision"] > 0
