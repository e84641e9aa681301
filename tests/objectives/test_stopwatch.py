from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import StaticCache

from effllava_optuna import Policy, narrowed, rank_units
from effllava_optuna.objectives import Stopwatch, Workload, cuda_graph, timing
from effllava_optuna.objectives import stopwatch as stopwatch_module
from effllava_optuna.objectives.timing import Timing
from effllava_optuna.surgery import prefill
from effllava_optuna.tasks import Digits, Split
from tests.waits import Waits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from effllava_optuna.surgery import LoadedModel


def stopwatch_of(loaded: LoadedModel, **workload: Any) -> Stopwatch:
    known: dict[str, Any] = {"batch": 3, "new_tokens": 4, "precision": float("inf")}
    return Stopwatch(loaded, Digits(proxy=8).samples(Split.PROXY), Workload(**(known | workload)))


def called(calls: list[str], times: Mapping[str, float]) -> dict[str, Callable[[], Any]]:
    """Runs that write down their name, each with a time."""

    def run(name: str) -> Callable[[], Mapping[str, float]]:
        def timed() -> Mapping[str, float]:
            calls.append(name)
            return {"prefill": times[name]}

        return timed

    return {name: run(name) for name in times}


def test_the_reference_runs_around_every_few_and_warm_ups_do_not_count(tiny: LoadedModel) -> None:
    calls: list[str] = []
    times = {"dense": 2.0} | {f"n{index}": 1.0 for index in range(6)}
    stopwatch = stopwatch_of(tiny, warmup=1, repeats=2)
    timings = stopwatch.race(called(calls, times), "dense")
    rounds = [calls[start : start + 9] for start in (0, 9, 18)]
    assert len(calls) == 27
    for one in rounds:
        assert [index for index, name in enumerate(one) if name == "dense"] == [0, 5, 8]
        assert sorted(one) == sorted([*times, "dense", "dense"])
    assert rounds[0] != rounds[1]  # the order differs from round to round
    assert timings["n0"]["prefill"] == Timing([1.0, 1.0], [0.5, 0.5])
    assert timings["dense"]["prefill"].typical_ms == 2.0


def test_a_run_is_divided_by_the_reference_before_and_after_it(tiny: LoadedModel) -> None:
    dense = iter([1.0, 3.0])
    runs: dict[str, Any] = {
        "dense": lambda: {"prefill": next(dense)},
        "a": lambda: {"prefill": 4.0, "vision": 1.0},
    }
    timings = stopwatch_of(tiny, warmup=0, repeats=1).race(runs, "dense")
    assert timings["a"]["prefill"].ratio == 2.0
    assert timings["a"]["vision"].ratio == 0.5  # there is no vision in the reference


def test_rounds_go_on_until_timings_are_known_well_enough(tiny: LoadedModel) -> None:
    calls: list[str] = []
    steady = called(calls, {"dense": 1.0, "a": 1.0})
    stopwatch_of(tiny, warmup=0, repeats=3, seconds=60).race(steady, "dense")
    assert len(calls) == 9  # nothing to doubt
    noisy = iter(range(1000))
    runs = {"dense": steady["dense"], "a": lambda: {"prefill": 1.0 + next(noisy) % 5}}
    timings = stopwatch_of(tiny, warmup=0, repeats=3, seconds=60, precision=0.2).race(
        runs, "dense"
    )
    assert len(timings["a"]["prefill"].ms) > 20
    assert timings["a"]["prefill"].relative_error <= 0.2


@pytest.mark.parametrize(
    ("seconds", "counted", "rounds"),
    [
        (0, [0.0], 1),  # a first round in any case, even if it is one to warm up
        (17, [0.0], 1),
        (18, [1.0], 2),
        (80, [1.0, 2.0, 3.0, 4.0, 0.0, 1.0, 2.0], 8),
    ],
)
def test_no_round_begins_that_does_not_fit_into_the_time(
    tiny: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    counted: list[float],
    rounds: int,
) -> None:
    clock, noisy = [100.0], iter(range(1000))

    def run(ms: Callable[[], float]) -> Callable[[], dict[str, float]]:
        def timed() -> dict[str, float]:
            clock[0] += 3.0
            return {"prefill": ms()}

        return timed

    runs = {"dense": run(lambda: 1.0), "a": run(lambda: float(next(noisy) % 5))}
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    shares: list[float] = []
    stopwatch = stopwatch_of(tiny, warmup=1, repeats=4, precision=1e-6)
    timings = stopwatch.race(runs, "dense", seconds=seconds, progress=shares.append)
    assert timings["a"]["prefill"].ms == counted
    assert clock[0] == 100 + 9 * rounds
    assert shares == sorted(shares)
    assert shares[-1] == (1.0 if seconds < 9 else 9 * rounds / seconds)
    assert len(shares) == 3 * rounds  # also within a round


def test_doubt_is_half_the_interval_of_a_median() -> None:
    assert Timing(ratios=[1.0, 1.0]).relative_error == float("inf")
    rng = torch.Generator().manual_seed(0)
    draws = 1 + 0.1 * torch.randn(400, 25, generator=rng)
    doubts = [Timing(ratios=row.tolist()).relative_error for row in draws]
    medians = draws.median(1).values
    inside = [abs(float(m) - 1) <= d * float(m) for m, d in zip(medians, doubts, strict=True)]
    assert 0.88 < sum(inside) / len(inside) < 0.99


def test_prefill_and_decode_are_timed_on_the_model(tiny: LoadedModel) -> None:
    stopwatch = stopwatch_of(tiny, batch=10)
    assert len(stopwatch.seen.inputs["input_ids"]) == 10
    assert bool(stopwatch.inputs["attention_mask"].all())  # nothing is padded
    phases = stopwatch.decoder(tiny)
    assert set(phases) == {"prefill", "decode"}
    assert min(phases.values()) > 0
    assert stopwatch.vision()["vision"] > 0


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Let everything believe that it is captured on a GPU; give what would have ended that."""
    counts: Counter[tuple[str, str]] = Counter()

    def run_once(run: Callable[[], object], _: torch.device) -> Callable[[], object]:
        run()
        with cuda_graph._unchecked(), monkeypatch.context() as patch, Waits() as waits:
            patch.setattr("transformers.utils.import_utils.is_cuda_stream_capturing", lambda: True)
            run()
        counts.update(waits.counts)
        return run

    monkeypatch.setattr(stopwatch_module, "captured", run_once)
    return counts


def test_nothing_in_a_phase_waits_for_the_device(
    tiny: LoadedModel, capturing: Counter[tuple[str, str]]
) -> None:
    stopwatch = stopwatch_of(tiny)
    stopwatch.cuda = True
    rest = {n: tensor for n, tensor in stopwatch.seen.inputs.items() if n != "attention_mask"}
    stopwatch.seen = replace(stopwatch.seen, inputs=rest)  # as where nothing is padded on a GPU
    ranking = rank_units(tiny)
    with narrowed(tiny, Policy.uniform(tiny.structure, ratio=0.5), ranking) as network:
        phases = stopwatch.decoder(network)
    assert set(phases) == {"prefill", "decode"}
    assert not stopwatch.launched
    assert stopwatch.vision()
    assert not capturing


def test_what_cannot_be_captured_is_timed_with_its_launches(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> object:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(stopwatch_module, "captured", refuse)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    stopwatch = stopwatch_of(tiny)
    stopwatch.cuda = True
    assert set(stopwatch.decoder(tiny)) == {"prefill", "decode"}
    assert stopwatch.launched == {"prefill", "decode"}


def test_a_token_decoded_from_a_cache_of_full_size_is_the_one_of_a_growing_cache(
    tiny: LoadedModel,
) -> None:
    stopwatch = stopwatch_of(tiny)
    policy = Policy.of(
        tiny.structure, [max(1, component.width // 3) for component in tiny.structure.components]
    )
    with narrowed(tiny, policy, rank_units(tiny)) as network, torch.inference_mode():
        model = network.model
        fixed = StaticCache(model.config, max_cache_len=stopwatch.prompt_tokens + 4)
        token, _ = prefill(network, stopwatch.seen, fixed)
        step = {"input_ids": token, "logits_to_keep": 1}
        logits = model(**step, past_key_values=fixed).logits
        again, growing = prefill(network, stopwatch.seen)
        assert torch.equal(again, token)
        expected = model(**step, past_key_values=growing).logits
    torch.testing.assert_close(logits, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_phase_computes_what_was_captured(tiny: LoadedModel) -> None:
    device = torch.device("cuda")
    given = torch.ones(4, device=device)
    doubled = torch.zeros(4, device=device)
    replay = cuda_graph.captured(lambda: doubled.copy_(given * 2), device)
    given.fill_(3.0)
    replay()
    assert doubled.tolist() == [6.0] * 4
