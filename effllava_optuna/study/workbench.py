"""The model on the bench: loaded once, measured many times, narrowed in place."""

from __future__ import annotations

import hashlib
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from effllava_optuna.errors import StudyError
from effllava_optuna.objectives import (
    Stopwatch,
    Workload,
    answers,
    ask,
    ask_crossed,
    flops,
    parameters,
    risk,
)
from effllava_optuna.policy import Policy, Space
from effllava_optuna.study.bundle import Bundle
from effllava_optuna.study.functions import own_of
from effllava_optuna.study.task import task_of
from effllava_optuna.surgery import (
    WHOLE,
    Basis,
    arranged,
    load,
    narrowed,
    sayable,
)
from effllava_optuna.tasks import Scores, Split, proxy_only

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from effllava_optuna.objectives import Asked
    from effllava_optuna.study.spec import StudySpec
    from effllava_optuna.surgery import Loaded
    from effllava_optuna.tasks import Sample, Task

    Say = Callable[[str, float], None]

# Threads on matrices this small mostly wait for each other, and on shared cores for their core:
# compare the error of the latency table in a run with `--set model.threads=2`.
_SMALL = 20_000_000  # parameters


@dataclass(frozen=True, slots=True)
class Measured:
    """What one policy gave on the proxy.

    Attributes:
        quality: ``accuracy - eta * risk``, less ``quality.term``; accuracy as the spec says.
        accuracy: Share of right answers, cross-fitted.
        expected: Mean probability of the right answer, cross-fitted.
        log_probability: Mean log-probability of the right answer, cross-fitted, >= -100.
        risk: Omega, in nats.
        latency_ms: By the table.
        hits: Share of each sample that was answered right, in [0, 1].
    """

    quality: float
    accuracy: float
    expected: float
    log_probability: float
    risk: float
    latency_ms: float
    hits: tuple[float, ...]


class Workbench:
    """A model, a task and, once calibrated, what is needed to measure policies.

    Args:
        spec: The study's.
        loaded: The model; loaded from the spec if not given.
        task: The samples; made from the spec if not given.
        device: What to load the model on; None: what the spec says.
    """

    def __init__(
        self,
        spec: StudySpec,
        loaded: Loaded | None = None,
        task: Task | None = None,
        *,
        device: str | None = None,
    ) -> None:
        self.spec = spec
        self.own = own_of(spec)
        model = spec.model
        self.loaded = loaded or load(
            model.path,
            device=device or model.device,
            dtype=model.dtype,
            towers=spec.pruning.towers,
            depth=spec.pruning.depth,
        )
        if self.tied:
            self.loaded = sayable(self.loaded).checked()
        self.anatomy = self.loaded.anatomy
        self.task = task or task_of(spec)
        self._open = ExitStack()
        if self.loaded.device.type == "cpu":
            self._open.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(self._threads())

    def _threads(self) -> int:
        if self.spec.model.threads != "auto":
            return self.spec.model.threads
        return 1 if parameters(self.loaded) < _SMALL else torch.get_num_threads()

    def close(self) -> None:
        """Put the units of the model back where they were, and torch's threads, too."""
        self._open.close()

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def proxy(self) -> tuple[Sample, ...]:
        """Give the samples that calibration, search and projector training may use."""
        return proxy_only(self.task.samples(Split.PROXY), "Calibration")

    @cached_property
    def crossed(self) -> tuple[Asked, ...]:
        """Give the proxy, each sample asked of the fit that did not see it."""
        return self._crossed(written=self.spec.task.measure == "generation")

    @cached_property
    def graded(self) -> tuple[Asked, ...]:
        """Give the same, to be answered as validation and test are: open questions in writing."""
        open_ones = any(sample.open for sample in self.proxy)
        if not open_ones or self.spec.task.measure == "generation":
            return self.crossed
        return self._crossed(written=True)

    def _crossed(self, *, written: bool) -> tuple[Asked, ...]:
        return ask_crossed(self.loaded, self.proxy, self.spec.pruning.folds, written=written)

    @cached_property
    def stopwatch(self) -> Stopwatch:
        """Give what runs and times the workload."""
        table = self.spec.latency
        workload = Workload(
            table.batch,
            table.new_tokens,
            table.warmup,
            table.repeats,
            table.precision,
            table.seconds,
        )
        return Stopwatch(self.loaded, self.proxy, workload)

    def adopt(self, bundle: Bundle, digest: str) -> None:
        """Arrange the model by a bundle's order; from now on policies are cheap to run."""
        self.bundle = bundle
        self.bundle_digest = digest
        if bundle.order.anatomy != self.anatomy.digest:
            raise StudyError(
                f"The study was calibrated on anatomy {bundle.order.anatomy}, the model has "
                f"{self.anatomy.digest}.",
                hint="Use the checkpoint that the study began with.",
            )
        self.loaded = self._open.enter_context(arranged(self.loaded, bundle.order))
        self.stopwatch.loaded = self.loaded

    @cached_property
    def wide(self) -> Space:
        """Give the space of epoch 0."""
        return Space.of(self.anatomy, self.bundle.widths, tied=self.tied)

    @property
    def tied(self) -> bool:
        """Tell whether all blocks of a tower have one width."""
        return self.spec.pruning.mode == "vllm-safe"

    def basis(self, projectors: Sequence[Mapping[str, torch.Tensor]] | None = None) -> Basis:
        """Join the bundle with an epoch's projectors; None: the model's own."""
        bundle = self.bundle
        fits = len(bundle.refits)
        if projectors is None:
            return Basis(self.bundle_digest, bundle.order, bundle.refits, (None,) * fits)
        content = hashlib.sha256(self.bundle_digest.encode())
        for state in projectors:
            for name, weight in sorted(state.items()):
                content.update(name.encode())
                content.update(weight.cpu().float().numpy().tobytes())
        return Basis(content.hexdigest(), bundle.order, bundle.refits, tuple(projectors))

    def risk(self, policy: Policy) -> float:
        """Give Omega of ``policy``, in nats."""
        return risk(policy, self.loaded, self.bundle.risk)

    def term(self, policy: Policy) -> float:
        """Give the user's own term of ``policy``, in accuracy; 0 if there is none."""
        return 0.0 if self.own.term is None else float(self.own.term(policy, self.loaded))

    def latency_ms(self, policy: Policy) -> float:
        """Predict the milliseconds of ``policy``."""
        return self.bundle.latency.predict(self.anatomy, policy)

    def measure(self, policy: Policy, basis: Basis) -> Measured:
        """Let ``policy`` answer the proxy, each sample by the fit that did not see it.

        Args:
            policy: Which units stay.
            basis: What turns it into a network.

        Raises:
            TimeoutError: It takes longer than the spec allows; noticed after each batch.
        """
        omega = self.risk(policy)
        charge = self.spec.quality.eta * omega + self.term(policy)
        with self.loaded.lock:
            asked = _within(self.spec.search.timeout, time.monotonic(), self.crossed)
            scores = answers(self.loaded, basis, policy, asked)
        accuracy, expected = float(scores.hit.mean()), float(scores.probability.mean())
        return Measured(
            quality=float(self._chosen(scores).mean()) - charge,
            accuracy=accuracy,
            expected=expected,
            log_probability=float(np.maximum(scores.log_probability, -100).mean()),
            risk=omega,
            latency_ms=self.latency_ms(policy),
            hits=tuple(round(float(hit), 4) for hit in scores.hit),
        )

    def _chosen(self, scores: Scores) -> NDArray[np.float64]:
        """Give what the quality is made of, shape ``(samples,)``, in [0, 1]."""
        return scores.probability if self.spec.quality.accuracy == "expected" else scores.hit

    def final(self, policy: Policy, basis: Basis, asked: Sequence[Asked]) -> Scores:
        """Let ``policy`` answer with the fits for use."""
        with self.loaded.lock:
            return answers(self.loaded, basis, policy, asked)

    def asked(self, split: Split) -> tuple[Asked, ...]:
        """Ask the samples of ``split``, for the fits for use; open questions in writing."""
        samples = self.task.samples(split)
        return ask(self.loaded, samples, batch_size=64, fit=WHOLE, written=True, kept="cpu")

    def sizes(self, policy: Policy) -> tuple[int, float]:
        """Give the parameters of the network of ``policy``, and the GFLOPs of the workload."""
        with self.loaded.lock, narrowed(self.loaded, policy, self.bundle.order) as network:
            return parameters(network), flops(network, self.stopwatch.seen) / 1e9


def _within(seconds: float | None, began: float, asked: Iterable[Asked]) -> Iterator[Asked]:
    for item in asked:
        yield item
        if seconds is not None and time.monotonic() - began > seconds:
            raise TimeoutError(f"not done within search.timeout = {seconds:g} s")
