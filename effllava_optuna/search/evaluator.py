"""Measure policies on a loaded model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from effllava_optuna.objectives import (
    ScoredSplit,
    flops,
    parameters,
    risk,
    score_policy,
    whole_ms,
)
from effllava_optuna.policy import Space
from effllava_optuna.surgery import narrowed, policy_network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from effllava_optuna.calibration.calibration import Calibration
    from effllava_optuna.calibration.inputs import StudyInputs
    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.objectives import EncodedBatch, EncodedProxy, Stopwatch
    from effllava_optuna.policy import ModelStructure, Policy
    from effllava_optuna.surgery import LoadedModel, WeightState
    from effllava_optuna.tasks import Sample, Scores


@dataclass(frozen=True, slots=True)
class Measurement:
    """The values of one policy on the proxy set; all scores are cross-fitted.

    Attributes:
        quality: Accuracy, as ``quality.accuracy`` defines it, minus ``eta * risk`` and minus the
            user's term.
        accuracy: Share of right answers, or of answers of the dense model (``quality.measure``).
        expected: Mean probability of the right answer; of an agreement, the mean of ``exp(-d)``,
            where ``d`` is the divergence from the dense model.
        log_probability: Mean log-probability of the right answer, in nats, at least -100; of an
            agreement, minus the mean divergence.
        risk: Structural-risk term Omega, in nats.
        latency_ms: Milliseconds of the workload, from the latency table.
        hits: Score of each sample, in [0, 1].
        quality_scores: The scores of the samples whose mean is the accuracy in the quality.
    """

    quality: float
    accuracy: float
    expected: float
    log_probability: float
    risk: float
    latency_ms: float
    hits: tuple[float, ...]
    quality_scores: tuple[float, ...]


@dataclass(frozen=True)
class Evaluator:
    """A model in ranking order, with all that is needed to measure policies.

    Attributes:
        inputs: The model as it was loaded, the task and the encoded proxy set.
        calibration: What the study has published before trial 0.
        loaded: The model, its units permuted into ranking order, so that policies are prefixes.
        stopwatch: Runs and times the workload on ``loaded``.
    """

    inputs: StudyInputs
    calibration: Calibration
    loaded: LoadedModel
    stopwatch: Stopwatch

    @property
    def config(self) -> StudyConfig:
        """Return the study file."""
        return self.inputs.config

    @property
    def structure(self) -> ModelStructure:
        """Return the structure of the model."""
        return self.calibration.structure

    @property
    def proxy(self) -> EncodedProxy:
        """Return the encoded proxy set."""
        return self.inputs.proxy

    def first_space(self) -> Space:
        """Return the search space of epoch 0, which contains those of all others."""
        tied = self.config.pruning.tied
        return Space.of(self.structure, self.calibration.widths, tied=tied)

    def risk(self, policy: Policy) -> float:
        """Return the structural-risk term of ``policy``, in nats."""
        return risk(policy, self.loaded, self.calibration.risk)

    def term(self, policy: Policy) -> float:
        """Return the user's own term of ``policy``, in accuracy; 0 if there is none.

        Raises:
            UserFunctionError: The term failed, or is not a finite number.
        """
        term = self.inputs.functions.term
        return 0.0 if term is None else term(policy, self.loaded)

    def measure(
        self,
        policy: Policy,
        weight_state: WeightState,
        latency_factor: float = 1.0,
        timeout: float | None = None,
    ) -> Measurement:
        """Measure ``policy`` on the proxy set, each sample by the fit that has not seen it.

        Args:
            policy: The policy.
            weight_state: Ranking, compensation tables and projector that it runs with.
            latency_factor: Share of the savings in the latency table that is expected.
            timeout: The most seconds; None: any.

        Raises:
            TimeoutError: It takes longer than ``timeout``; checked after each batch.
        """
        quality = self.config.quality
        omega = self.risk(policy)
        penalty = quality.eta * omega + self.term(policy)
        scores = self.proxy_scores(policy, weight_state, timeout)
        scored = scores.probability if quality.accuracy == "expected" else scores.hit
        return Measurement(
            quality=float(scored.mean()) - penalty,
            accuracy=float(scores.hit.mean()),
            expected=float(scores.probability.mean()),
            log_probability=float(np.maximum(scores.log_probability, -100).mean()),
            risk=omega,
            latency_ms=self.calibration.latency.predict(policy, latency_factor),
            hits=tuple(round(float(hit), 4) for hit in scores.hit),
            quality_scores=tuple(round(float(score), 4) for score in scored),
        )

    def proxy_scores(
        self, policy: Policy, weight_state: WeightState, timeout: float | None = None
    ) -> Scores:
        """Return the cross-fitted scores of ``policy`` on each sample of the proxy set.

        Raises:
            TimeoutError: See `measure`.
        """
        with self.loaded.lock:
            batches = _until(timeout, self.proxy.scored)
            return score_policy(self.loaded, weight_state, policy, batches)

    def score(
        self, policy: Policy, weight_state: WeightState, batches: Iterable[EncodedBatch]
    ) -> Scores:
        """Score ``policy`` on batches of any split."""
        with self.loaded.lock:
            return score_policy(self.loaded, weight_state, policy, batches)

    def time_networks(
        self,
        networks: Sequence[tuple[WeightState, Policy]],
        seconds: float,
        progress: Callable[[float], None],
    ) -> list[float]:
        """Time networks in turn; the first one is the reference.

        Args:
            networks: The weight state and the policy of each network.
            seconds: No round begins that would last longer, except the first one.
            progress: Called with the finished share.

        Returns:
            Milliseconds of the whole workload, for each network.
        """

        def runner(weight_state: WeightState, policy: Policy) -> Callable[[], Mapping[str, float]]:
            def run() -> Mapping[str, float]:
                with policy_network(self.loaded, weight_state, policy) as network:
                    return self.stopwatch.decoder(network)

            return run

        runs = {number: runner(*network) for number, network in enumerate(networks)}
        with self.loaded.lock:
            timings = self.stopwatch.race(runs, 0, seconds=seconds, progress=progress)
        table = self.calibration.latency
        return [whole_ms(table, timings[0], timings[number]) for number in runs]

    def split(self, samples: Sequence[Sample]) -> ScoredSplit:
        """Return samples to be scored by the fit on the whole proxy."""
        return ScoredSplit(self.loaded, samples)

    def size(self, policy: Policy) -> tuple[int, float]:
        """Return the parameters of the network of ``policy``, and the GFLOPs of the workload."""
        ranking = self.calibration.ranking
        with self.loaded.lock, narrowed(self.loaded, policy, ranking) as network:
            return parameters(network), flops(network, self.stopwatch.seen) / 1e9


def _until(seconds: float | None, batches: Iterable[EncodedBatch]) -> Iterator[EncodedBatch]:
    """Yield batches until ``seconds`` have passed."""
    started = time.monotonic()
    for encoded in batches:
        yield encoded
        if seconds is not None and time.monotonic() - started > seconds:
            raise TimeoutError(f"not finished within search.timeout = {seconds:g} s")
