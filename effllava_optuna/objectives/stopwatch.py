"""Run a workload on a model and time its phases."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import platform
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import StaticCache

from effllava_optuna.objectives.cuda_graph import captured
from effllava_optuna.objectives.timing import time_interleaved
from effllava_optuna.surgery import encode_images, prefill, reduced_processors
from effllava_optuna.tasks import encode_prompts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from effllava_optuna.objectives.timing import Run, Timings, Workload
    from effllava_optuna.surgery import EncodedInputs, LoadedModel
    from effllava_optuna.tasks import Sample

_STEPS = 4  # tokens that are decoded one by one to time a token
_REPLAYS = 8  # replays of a captured graph in one run


class Stopwatch:
    """Runs the workload on a model and times its phases.

    On a GPU, each phase is captured as a CUDA graph: launching kernels one by one takes longer
    than computing a narrow block. A phase that cannot be captured is timed with its launches, and
    listed in `launched`.

    Args:
        loaded: The model.
        samples: Samples; the one of median length, with a picture if any has one, is repeated
            until it fills the batch, so that nothing is padded.
        workload: What to time.
    """

    def __init__(self, loaded: LoadedModel, samples: Sequence[Sample], workload: Workload) -> None:
        self.loaded = loaded
        self.workload = workload
        self.cuda = loaded.device.type == "cuda"
        self.launched: set[str] = set()
        pictured = [sample for sample in samples if sample.image is not None] or list(samples)
        typical = sorted(pictured, key=lambda sample: len(sample.question))[len(pictured) // 2]
        repeated = [typical] * workload.batch
        whole = self._encoded(loaded.processor, repeated)
        fewer = {
            ratio: self._encoded(processor, repeated)
            for ratio, processor in reduced_processors(loaded).items()
        }
        self.seen: EncodedInputs = encode_images(loaded, whole, fewer=fewer)

    def _encoded(self, processor: Any, samples: Sequence[Sample]) -> dict[str, Any]:
        (batch,) = encode_prompts(processor, samples, batch_size=len(samples))
        inputs = {name: value.to(self.loaded.device) for name, value in batch.inputs.items()}
        if self.cuda and bool(inputs["attention_mask"].all()):
            # Checking whether it masks anything would end a capture.
            del inputs["attention_mask"]
        return inputs

    def on(self, loaded: LoadedModel, share: float = 1.0) -> Stopwatch:
        """Return a stopwatch for the same model in another arrangement, or with fewer tokens.

        Args:
            loaded: The model.
            share: Share of the seconds that one measurement may last.
        """
        other = copy.copy(self)
        other.loaded = loaded
        other.workload = replace(self.workload, seconds=share * self.workload.seconds)
        return other

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Return the prompts without pictures that were encoded."""
        return self.seen.inputs_of(self.loaded)

    @property
    def prompt_tokens(self) -> int:
        """Count the tokens of a prompt, including those of the picture."""
        return int(self.inputs["input_ids"].shape[1])

    @property
    def origin(self) -> dict[str, Any]:
        """Return what timings depend on beside the widths."""
        device, model, work = self.loaded.device, self.loaded.model, self.workload
        weights = [
            [name, list(weight.shape), str(weight.dtype)]
            for name, weight in model.named_parameters()
        ]
        reduction = self.loaded.visual_tokens
        fewer = {} if reduction is None else {"visual_tokens": reduction.to_json()}
        return fewer | {
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
        """Return the clock: the CPU time of this thread if it computes alone, else wall time.

        On a shared machine, long runs are interrupted more often than short ones: by wall time,
        narrow networks would seem faster than they are.
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
        """Time the vision tower; empty if it is pruned, so that it runs with the decoder."""
        encoded = self.seen.vision
        if encoded is None:
            return {}
        return self._phase(
            "vision", lambda: self.loaded.model.get_image_features(**encoded.arguments)
        )

    @torch.inference_mode()
    def decoder(self, network: LoadedModel) -> dict[str, float]:
        """Time projector and decoder: ``prefill`` and, if tokens are generated, one ``decode``."""
        phases = self._phase("prefill", lambda: prefill(network, self.seen))
        if self.workload.new_tokens > 1:
            phases |= self._decode(network)
        return phases

    def _phase(self, phase: str, run: Callable[[], object]) -> dict[str, float]:
        replay = self._captured(phase, run)
        if replay is None:
            return {phase: self._clocked(run)}
        return {phase: self._clocked(replay, _REPLAYS)}

    def _decode(self, network: LoadedModel) -> dict[str, float]:
        """Time one token; captured with a cache that has its full size from the start."""
        model = network.model
        if self.cuda and "decode" not in self.launched:
            more = max(self.workload.new_tokens, _REPLAYS + 1)
            tokens = int(self.seen.inputs_of(network)["input_ids"].shape[1])
            cache = StaticCache(model.config, max_cache_len=tokens + more)
            token, _ = prefill(network, self.seen, cache)
            step = functools.partial(
                model, input_ids=token, past_key_values=cache, logits_to_keep=1
            )
            replay = self._captured("decode", step)
            if replay is not None:
                for layer in cache.layers:  # back to the end of the prompt
                    layer.cumulative_length.fill_(tokens)
                return {"decode": self._clocked(replay, _REPLAYS)}
        return {"decode": self._decode_by_launches(network)}

    def _decode_by_launches(self, network: LoadedModel) -> float:
        token, cache = prefill(network, self.seen)
        mask, ms = self.seen.inputs_of(network).get("attention_mask"), 0.0
        for _ in range(_STEPS):
            step = {"input_ids": token, "past_key_values": cache, "logits_to_keep": 1}
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
                step["attention_mask"] = mask
            ms += self._clocked(functools.partial(network.model, **step))
        return ms / _STEPS

    def _captured(self, phase: str, run: Callable[[], object]) -> Callable[[], object] | None:
        """Capture ``run`` as a CUDA graph; None without a GPU, or if that is not possible."""
        if not self.cuda or phase in self.launched:
            return None
        try:
            return captured(run, self.loaded.device)
        except (RuntimeError, AttributeError):  # a failed capture has no error class of its own
            torch.cuda.synchronize(self.loaded.device)
            self.launched.add(phase)
            return None

    def race(
        self,
        runs: Mapping[Any, Run],
        reference: Any,
        *,
        seed: int = 0,
        seconds: float | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Timings:
        """Time all runs in turn, with the precision of the workload; see `time_interleaved`.

        Args:
            runs: What to run, by name.
            reference: Name of the run that all others are divided by.
            seed: Seed of the order within a round.
            seconds: Instead of the seconds of the workload.
            progress: Called with the finished share.
        """
        workload = self.workload if seconds is None else replace(self.workload, seconds=seconds)
        return time_interleaved(runs, reference, workload, seed=seed, progress=progress)


def _processor() -> str:
    """Return the name of the processor, and the number of logical ones."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), name)
    return f"{os.cpu_count()} x {name}"
