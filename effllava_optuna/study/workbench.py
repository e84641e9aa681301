"""The model on the bench: loaded once, measured many times, narrowed in place."""

from __future__ import annotations

import hashlib
import importlib
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from effllava_optuna.errors import SpecError, StudyError
from effllava_optuna.objectives import (
    Stopwatch,
    Workload,
    answers,
    ask,
    ask_crossed,
    flops,
    folds_of,
    measure_table,
    parameters,
    risk,
    risk_table,
)
from effllava_optuna.policy import Policy, Space
from effllava_optuna.study.bundle import Bundle, Dense, widths_of
from effllava_optuna.surgery import (
    WHOLE,
    Basis,
    Moments,
    Probe,
    arranged,
    choose_damping,
    least_squares,
    load,
    moments,
    narrowed,
    rank_units,
    sayable,
)
from effllava_optuna.surgery.handle import elements
from effllava_optuna.tasks import Digits, Split, checked, encode, proxy_only

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from effllava_optuna.objectives import Asked
    from effllava_optuna.policy import SiteId
    from effllava_optuna.study.bundle import Refit
    from effllava_optuna.study.spec import StudySpec
    from effllava_optuna.surgery import Handle, Loaded
    from effllava_optuna.tasks import Batch, Sample, Scores, Task

    Say = Callable[[str, float], None]

# Threads on matrices this small mostly wait for each other, and on shared cores for their core:
# compare the error of the latency table in a run with `--set model.threads=2`.
_SMALL = 20_000_000  # parameters
_HEADROOM = 1.05  # of the dense latency: where the hypervolume begins


@dataclass(frozen=True, slots=True)
class Measured:
    """What one policy gave on the proxy.

    Attributes:
        quality: ``accuracy - eta * risk``, accuracy as the spec says.
        accuracy: Share of right answers, cross-fitted.
        expected: Mean probability of the right answer, cross-fitted.
        log_probability: Mean log-probability of the right answer, cross-fitted, >= -100.
        risk: Omega, in nats.
        latency_ms: By the table.
        hits: ``1`` for right and ``0`` for wrong, sample by sample.
    """

    quality: float
    accuracy: float
    expected: float
    log_probability: float
    risk: float
    latency_ms: float
    hits: str


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
        return ask_crossed(self.loaded, self.proxy, self.spec.pruning.folds)

    @cached_property
    def stopwatch(self) -> Stopwatch:
        """Give what runs and times the workload."""
        table = self.spec.latency
        workload = Workload(table.batch, table.new_tokens, table.warmup, table.repeats)
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

    def latency_ms(self, policy: Policy) -> float:
        """Predict the milliseconds of ``policy``."""
        return self.bundle.latency.predict(self.anatomy, policy)

    def measure(self, policy: Policy, basis: Basis) -> Measured:
        """Let ``policy`` answer the proxy, each sample by the fit that did not see it.

        Raises:
            TimeoutError: It takes longer than the spec allows; noticed after each batch.
        """
        with self.loaded.lock:
            asked = _within(self.spec.search.timeout, self.crossed)
            scores = answers(self.loaded, basis, policy, asked)
        accuracy, expected = float(scores.hit.mean()), float(scores.probability.mean())
        table = self.spec.quality
        omega = self.risk(policy)
        chosen = expected if table.accuracy == "expected" else accuracy
        return Measured(
            quality=chosen - table.eta * omega,
            accuracy=accuracy,
            expected=expected,
            log_probability=float(np.maximum(scores.log_probability, -100).mean()),
            risk=omega,
            latency_ms=self.latency_ms(policy),
            hits="".join("1" if hit else "0" for hit in scores.hit),
        )

    def final(self, policy: Policy, basis: Basis, asked: Sequence[Asked]) -> Scores:
        """Let ``policy`` answer with the fits for use."""
        with self.loaded.lock:
            return answers(self.loaded, basis, policy, asked)

    def asked(self, split: Split) -> tuple[Asked, ...]:
        """Ask the samples of ``split``, for the fits for use."""
        return ask(self.loaded, self.task.samples(split), batch_size=250, fit=WHOLE)

    def calibrate(self, say: Say) -> Bundle:
        """Make the bundle: order, refits, latency and risk tables, dense values.

        Args:
            say: Is told what is being done, and which share of it is.
        """
        spec = self.spec
        say("ranking units", 0.0)
        probes = [_probe(batch) for batch in encode(self.loaded.processor, self.proxy)]
        order = rank_units(self.loaded, probes, spec.pruning.order)
        widths = widths_of(self.anatomy, spec)
        say("timing widths", 0.0)
        with arranged(self.loaded, order) as ready:
            self.stopwatch.loaded = ready
            latency = measure_table(
                self.stopwatch,
                order,
                widths,
                seed=spec.study.seed,
                progress=lambda share: say("timing widths", share),
            )
        self.stopwatch.loaded = self.loaded
        widths = {site: tuple(friendly) for site, friendly in latency.friendly.items()}
        refits, damping, effective = self._refits(widths, order.units, say)
        say("measuring the dense model", 0.0)
        unfitted = (None,) * (spec.pruning.folds + 1)
        plain = Basis("dense", order, unfitted, unfitted)
        dense = Policy.dense(self.anatomy)
        scores = answers(self.loaded, plain, dense, self.crossed)
        dense_ms = latency.dense(self.anatomy)
        memory = sum(
            weight.nbytes for refit in refits if refit is not None for weight in refit.values()
        )
        return Bundle(
            order,
            refits,
            widths,
            risk_table(self.loaded, order, widths, form=spec.quality.risk, refit=refits[WHOLE]),
            latency,
            damping,
            effective,
            Dense(
                float(scores.hit.mean()),
                float(scores.probability.mean()),
                dense_ms,
                parameters(self.loaded),
                flops(self.loaded, self.stopwatch.seen) / 1e9,
                memory / 1e6,
            ),
            (self.task.chance, _HEADROOM * dense_ms),
        )

    def _refits(
        self,
        widths: Mapping[SiteId, Sequence[int]],
        ranked: Mapping[SiteId, np.ndarray[tuple[int], np.dtype[np.int64]]],
        say: Say,
    ) -> tuple[tuple[Refit | None, ...], dict[SiteId, float], dict[SiteId, float]]:
        """Fit every output matrix for every width: on the whole proxy and without each fold."""
        spec, fits = self.spec, self.spec.pruning.folds + 1
        if spec.pruning.refit == "none":
            return (None,) * fits, {}, {}
        dealt = [
            [_probe(batch) for batch in encode(self.loaded.processor, samples)]
            for samples in folds_of(self.proxy, spec.pruning.folds)
        ]
        refits: tuple[Refit, ...] = tuple({} for _ in range(fits))
        damping: dict[SiteId, float] = {}
        effective: dict[SiteId, float] = {}
        done = 0
        for handles in _shifts(self.loaded.handles, spec.pruning.folds, spec.pruning.table_gb):
            taken = [moments(self.loaded, handles, probes) for probes in dealt]
            for handle in handles:
                site = handle.site
                by_fold = [fold.pop(site.id) for fold in taken]
                units = torch.from_numpy(ranked[site.id].copy())
                fitted, damping[site.id] = _fit(handle, by_fold, widths[site.id], units)
                for refit, mine in zip(refits, fitted, strict=True):
                    refit.update({(site.id, width): weight for width, weight in mine.items()})
                effective[site.id] = round(_total(by_fold).effective_tokens, 1)
                done += 1
                say("fitting output matrices", done / len(self.loaded.handles))
        held = sum(weight.nbytes for refit in refits for weight in refit.values()) / 1e9
        if held > spec.pruning.table_gb:
            raise StudyError(
                f"The refit tables take {held:.2f} GB, pruning.table_gb allows "
                f"{spec.pruning.table_gb}.",
                hint="Allow more, or give fewer pruning.shares or pruning.folds.",
            )
        return refits, damping, effective

    def sizes(self, policy: Policy) -> tuple[int, float]:
        """Give the parameters of the network of ``policy``, and the GFLOPs of the workload."""
        with self.loaded.lock, narrowed(self.loaded, policy, self.bundle.order) as network:
            return parameters(network), flops(network, self.stopwatch.seen) / 1e9


def task_of(spec: StudySpec) -> Task:
    """Make the task that a spec names.

    Raises:
        SpecError: It names a function that cannot be imported.
        TaskError: Two splits share a unit.
    """
    table = spec.task
    build: Callable[..., Task] = Digits
    if ":" in table.name:
        module, _, function = table.name.partition(":")
        sys.path.insert(0, str(Path.cwd()))
        try:
            build = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise SpecError(
                f"task.name = {table.name!r}: {error}.",
                hint="Name a function of a module that Python finds here.",
            ) from error
        finally:
            sys.path.pop(0)
    sizes = {"proxy": table.proxy, "validation": table.validation, "test": table.test}
    return checked(build(seed=spec.task_seed, **sizes))


def _probe(batch: Batch) -> Probe:
    return Probe(batch.inputs, batch.targets)


def _within(seconds: float | None, asked: Iterable[Asked]) -> Iterator[Asked]:
    began = time.monotonic()
    for item in asked:
        yield item
        if seconds is not None and time.monotonic() - began > seconds:
            raise TimeoutError(f"not done within search.timeout = {seconds:g} s")


def _shifts(handles: Sequence[Handle], folds: int, gigabytes: float) -> list[list[Handle]]:
    """Split ``handles`` so that the moments of one part fit into ``gigabytes``."""
    shifts: list[list[Handle]] = []
    room = 0.0
    for handle in handles:
        need = folds * 2 * 8 * (handle.columns * handle.site.width) ** 2 / 1e9
        if not shifts or need > room:
            shifts.append([])
            room = gigabytes
        shifts[-1].append(handle)
        room -= need
    return shifts


def _total(folds: Sequence[Moments]) -> Moments:
    return sum(folds[1:], start=folds[0])


def _fit(
    handle: Handle, folds: Sequence[Moments], widths: Sequence[int], units: torch.Tensor
) -> tuple[list[dict[int, torch.Tensor]], float]:
    each = handle.columns
    columns = elements(units, each).to(folds[0].plain.device)
    weight = handle.linear(handle.output).weight.detach()[:, columns]
    narrow = [width * each for width in widths if width < handle.site.width]
    if not narrow:
        return [{} for _ in range(len(folds) + 1)], 0.0
    damping = choose_damping(weight, folds, columns, narrow[:: max(1, len(narrow) // 3)])
    unseen = [_total(folds)] + [
        _total([fold for other, fold in enumerate(folds) if other != index])
        for index in range(len(folds))
    ]
    fitted = []
    for known in unseen:
        fit = least_squares(weight, known.matrix[columns][:, columns], narrow, damping)
        fitted.append(
            {count // each: matrix.contiguous() for count, matrix in fit.weights.items()}
        )
    return fitted, damping
