"""Run a workload and clock its phases.

What counts is how long one network takes in proportion to another one. On a machine that others
use too, speed drifts by more than what a width saves; so everything runs in turn, again and again,
with the reference in between, and each run is divided by the reference runs beside it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
import transformers
from transformers import StaticCache

from effllava_optuna.surgery import look, read_into
from effllava_optuna.tasks import prompts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from effllava_optuna.surgery import Loaded, Seen
    from effllava_optuna.tasks import Sample

    Run = Callable[[], Mapping[str, float]]

_STRIDE = 4  # runs between two runs of the reference
_STEPS = 4  # tokens that are decoded one by one to clock a token
_REPLAYS = 8  # of a captured graph in one run
_FEWEST = 3  # runs before anything can be said of their spread


@dataclass(frozen=True, slots=True)
class Workload:
    """What is timed, and how well.

    Attributes:
        batch: Prompts (with one picture each) that run at once.
        new_tokens: Tokens generated for each; 1 is the prefill alone.
        warmup: Rounds before the clock counts.
        repeats: Rounds that count, at least.
        precision: Rounds go on until the 95 % interval of what typically takes its share of the
            dense time is no wider than this to either side.
        seconds: After so many, there are no more rounds than ``repeats``.
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
        ms: Of each run.
        ratios: Of each run to the reference beside it.
    """

    ms: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Give the typical ratio to the reference."""
        return float(np.median(self.ratios))

    @property
    def typical_ms(self) -> float:
        """Give the typical time."""
        return float(np.median(self.ms))

    @property
    def doubt(self) -> float:
        """Give half the 95 % interval of `ratio`, as a share of it; infinite for few runs."""
        if len(self.ratios) < _FEWEST:
            return float("inf")
        middle = np.median(self.ratios)
        deviation = 1.4826 * np.median(np.abs(np.array(self.ratios) - middle))
        # The standard error of a median of normal values is 1.2533 times that of a mean.
        return float(1.96 * 1.2533 * deviation / np.sqrt(len(self.ratios)) / middle)


Timings = dict[Any, dict[str, Timing]]


class Stopwatch:
    """Runs the workload on a model and times its phases.

    On a GPU, each phase is captured as a CUDA graph: launching kernels one by one takes longer
    than computing a narrow block. Where a phase cannot be captured, its launches count, and it is
    in `launched`.

    Args:
        loaded: The model.
        samples: Questions; the one of middle length, with a picture if any has one, is repeated
            until it fills the batch, so that nothing is padded.
        workload: What to run.
    """

    def __init__(self, loaded: Loaded, samples: Sequence[Sample], workload: Workload) -> None:
        self.loaded = loaded
        self.workload = workload
        self.cuda = loaded.device.type == "cuda"
        self.launched: set[str] = set()
        asked = [sample for sample in samples if sample.image is not None] or list(samples)
        typical = sorted(asked, key=lambda sample: len(sample.question))[len(asked) // 2]
        many = [typical] * workload.batch
        (batch,) = prompts(loaded.processor, many, batch_size=workload.batch)
        self.inputs = {name: value.to(loaded.device) for name, value in batch.inputs.items()}
        if self.cuda and bool(self.inputs["attention_mask"].all()):
            del self.inputs["attention_mask"]  # to look whether it masks would stop a capture
        self.seen: Seen = look(loaded, self.inputs)

    @property
    def prompt_tokens(self) -> int:
        """Count the tokens of a prompt, those of the picture included."""
        return int(self.inputs["input_ids"].shape[1])

    @property
    def origin(self) -> dict[str, Any]:
        """Say what timings depend on, beside the model."""
        device, model, work = self.loaded.device, self.loaded.model, self.workload
        weights = [
            [name, list(weight.shape), str(weight.dtype)]
            for name, weight in model.named_parameters()
        ]
        return {
            "device": torch.cuda.get_device_name(device) if self.cuda else _processor(),
            "model": hashlib.sha256(json.dumps(weights).encode()).hexdigest()[:16],
            "threads": 0 if self.cuda else torch.get_num_threads(),
            "clock": self.clock.__name__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": str(model.config.get_text_config()._attn_implementation),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "batch": work.batch,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": work.new_tokens,
            "rounds": [work.warmup, work.repeats, work.precision, work.seconds],
        }

    @property
    def clock(self) -> Callable[[], float]:
        """Give the clock: of this thread where it computes alone, so that waiting is not timed.

        Where others use the machine, long runs are interrupted more often than short ones: by
        the clock on the wall, narrow networks would seem faster than they are.
        """
        alone = not self.cuda and torch.get_num_threads() == 1
        return time.thread_time if alone else time.perf_counter

    def _clocked(self, run: Callable[[], object], times: int = 1) -> float:
        clock = self.clock
        self._wait()
        started = clock()
        for _ in range(times):
            run()
        self._wait()
        return (clock() - started) * 1e3 / times

    def _wait(self) -> None:
        if self.loaded.device.type == "cuda":
            torch.cuda.synchronize(self.loaded.device)

    @torch.inference_mode()
    def vision(self) -> dict[str, float]:
        """Time the vision tower; nothing where it runs with the decoder, as it is cut, too."""
        if self.seen.features is None:
            return {}
        return self._phase("vision", lambda: look(self.loaded, self.inputs))

    @torch.inference_mode()
    def decoder(self, network: Loaded) -> dict[str, float]:
        """Time the projector and decoder: ``prefill`` and, where asked for, one ``decode``."""
        phases = self._phase("prefill", lambda: read_into(network, self.seen))
        if self.workload.new_tokens > 1:
            phases |= self._decode(network)
        return phases

    def _phase(self, phase: str, run: Callable[[], object]) -> dict[str, float]:
        replay = self._captured(phase, run)
        if replay is None:
            return {phase: self._clocked(run)}
        return {phase: self._clocked(replay, _REPLAYS)}

    def _decode(self, network: Loaded) -> dict[str, float]:
        """Time a token; captured, with a cache that has its full size from the start."""
        model = network.model
        if self.cuda and "decode" not in self.launched:
            more = max(self.workload.new_tokens, _REPLAYS + 1)
            cache = StaticCache(model.config, max_cache_len=self.prompt_tokens + more)
            token, _ = read_into(network, self.seen, cache)
            step = functools.partial(
                model, input_ids=token, past_key_values=cache, logits_to_keep=1
            )
            replay = self._captured("decode", step)
            if replay is not None:
                for layer in cache.layers:  # back to where the prompt ends
                    layer.cumulative_length.fill_(self.prompt_tokens)
                return {"decode": self._clocked(replay, _REPLAYS)}
        return {"decode": self._decode_by_launches(network)}

    def _decode_by_launches(self, network: Loaded) -> float:
        token, cache = read_into(network, self.seen)
        mask, ms = self.inputs.get("attention_mask"), 0.0
        for _ in range(_STEPS):
            step = {"input_ids": token, "past_key_values": cache, "logits_to_keep": 1}
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
                step["attention_mask"] = mask
            ms += self._clocked(functools.partial(network.model, **step))
        return ms / _STEPS

    def _captured(self, phase: str, run: Callable[[], object]) -> Callable[[], object] | None:
        """Capture ``run`` as a CUDA graph; None where there is no GPU, or it cannot be."""
        if not self.cuda or phase in self.launched:
            return None
        try:
            return captured(run, self.loaded.device)
        except (RuntimeError, AttributeError):  # a capture has no error of its own
            torch.cuda.synchronize(self.loaded.device)
            self.launched.add(phase)
            return None

    def race(
        self,
        runs: Mapping[Any, Run],
        reference: Any,
        *,
        seed: int = 0,
        progress: Callable[[float], None] | None = None,
    ) -> Timings:
        """Run everything in turn until it is known well enough, or the time is over.

        Args:
            runs: What to run, by name; each gives milliseconds by phase.
            reference: The name of the one that the others are divided by, phase by phase; a
                phase that it lacks is divided by its ``prefill``.
            seed: Of the order within a round.
            progress: Is told the share that is done.
        """
        work, rng = self.workload, np.random.default_rng(seed)
        timings: Timings = {name: {} for name in runs}
        others = [name for name in runs if name != reference]
        began, number = time.monotonic(), 0
        while number < work.warmup + work.repeats or (
            time.monotonic() - began < work.seconds and _doubt(timings) > work.precision
        ):
            order = [others[index] for index in rng.permutation(len(others))]
            for name, phases in _round(runs, order, reference):
                if number >= work.warmup:
                    for phase, (ms, ratio) in phases.items():
                        mine = timings[name].setdefault(phase, Timing())
                        mine.ms.append(ms)
                        mine.ratios.append(ratio)
            number += 1
            if progress is not None:
                progress(min(1.0, number / (work.warmup + work.repeats)))
        return timings


def _processor() -> str:
    """Name the processor, and how many there are."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), name)
    return f"{os.cpu_count()} x {name}"


def _round(
    runs: Mapping[Any, Run], order: Sequence[Any], reference: Any
) -> Iterator[tuple[Any, dict[str, tuple[float, float]]]]:
    """Run ``order`` with the reference around every few; give milliseconds and ratios."""
    before = runs[reference]()
    yield reference, {phase: (ms, 1.0) for phase, ms in before.items()}
    for start in range(0, len(order), _STRIDE):
        some = [(name, runs[name]()) for name in order[start : start + _STRIDE]]
        after = runs[reference]()
        yield reference, {phase: (ms, 1.0) for phase, ms in after.items()}
        beside = {phase: (ms + after[phase]) / 2 for phase, ms in before.items()}
        for name, phases in some:
            yield (
                name,
                {
                    phase: (ms, ms / beside.get(phase, beside["prefill"]))
                    for phase, ms in phases.items()
                },
            )
        before = after


def _doubt(timings: Timings) -> float:
    """Give the typical `Timing.doubt` of what is no reference."""
    doubts = [timing.doubt for phases in timings.values() for timing in phases.values()]
    doubts = [doubt for doubt in doubts if doubt > 0]
    return float(np.median(doubts)) if doubts else 0.0


def captured(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Capture ``run`` as a CUDA graph, and give what replays it.

    Raises:
        RuntimeError: It copies to the host, or does something else that cannot be captured.
    """
    with _unchecked(), torch.cuda.device(device):
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # kernels are chosen, and memory is taken, outside of the graph
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    replay: Callable[[], object] = graph.replay
    return replay


@contextmanager
def _unchecked() -> Iterator[None]:
    """Let transformers not compare counts on the host: that would end a capture.

    It is told to skip such checks, but writes their messages first, with tensors in them; reading
    one for that waits for the device, too.
    """
    with (
        mock.patch.dict(os.environ, {"TRANSFORMERS_DISABLE_TORCH_CHECK": "1"}),
        mock.patch.object(torch.Tensor, "__format__", return_value="a tensor"),
    ):
        yield
