"""Searches of ``smollm-vlm`` in memory, and what is measured of their policies."""

from __future__ import annotations

import time
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from _counting import evaluator_of
from _fields import KEEP_RATIO, WIDTHS
from _network_measures import PICTURES, NetworkMeasures
from _pretrained_form import MODEL
from _studies import load_once

from effllava_optuna.objectives import Stopwatch, Workload
from effllava_optuna.policy import Policy, best_and_spread, front_of
from effllava_optuna.search.runner import search
from effllava_optuna.storage.trial_records import effective_records
from effllava_optuna.surgery import policy_network
from effllava_optuna.tasks import Split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from _cases import Case
    from _studies import StudyRunner

    from effllava_optuna.policy import TrialRecord
    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import LoadedModel, WeightState


class PretrainedDraw:
    """Searches and measures with the samples and the test questions of one draw.

    Args:
        runner: Runs studies; it keeps their calibrations.
        seed: Seed of the draw.
    """

    def __init__(self, runner: StudyRunner, seed: int) -> None:
        self.runner, self.seed = runner, seed

    @cached_property
    def measures(self) -> NetworkMeasures:
        """Draw the questions, some of which the dense model answers: no policy may run it now."""
        return NetworkMeasures(self._dense(), self.seed, self.runner.form.pick(PICTURES, 4, 2))

    def dense(self) -> dict[str, Any]:
        """Measure the dense model."""
        return self.measures.figures(self._dense())

    def _dense(self) -> LoadedModel:
        return load_once(self.runner.form.models[MODEL], self.runner.form.device)

    def constant(self) -> dict[str, Any]:
        """Measure what always gives the same answer."""
        return self.measures.constant()

    def policy_figures(
        self, session: SearchSession, policy: Policy, weight_state: WeightState
    ) -> dict[str, Any]:
        """Measure a policy, its costs, and on a CPU its speed-up as a whole.

        Speed-ups are those of a CPU, whose latency table all studies share.
        """
        evaluator = evaluator_of(session)
        latency = evaluator.calibration.latency
        timed = self.runner.form.device == "cpu"
        measured = measured_speedup(session, policy, weight_state) if timed else None
        measures = self.measures
        with policy_network(evaluator.loaded, weight_state, policy) as network:
            figures = measures.figures(network)
        return figures | {
            WIDTHS: list(policy.widths),
            KEEP_RATIO: round(policy.keep_ratio, 4),
            "predicted": round(latency.dense_total_ms / latency.predict(policy), 4),
            "measured": None if measured is None else round(measured, 4),
        }

    def validation(
        self, session: SearchSession, policy: Policy, weight_state: WeightState
    ) -> float:
        """Measure the accuracy of a policy on validation questions."""
        loaded, measures = evaluator_of(session).loaded, self.measures
        with policy_network(loaded, weight_state, policy) as network:
            return measures.accuracy(network, Split.VALIDATION)

    def searched(self, case: Case) -> dict[str, Any]:
        """Search; choose among the finalists by validation, and measure the choice."""
        with self.runner.open(MODEL, self.seed, case) as session:
            started = time.process_time()
            search(session)
            seconds = time.process_time() - started
            trial, validation = self._chosen(session)
            policy = Policy.of(session.evaluator.structure, trial.widths)
            weight_state = session.epochs.weight_state(trial.weight_state)
            updates = session.epochs.control_study.published_epochs()[1:]
            return self.policy_figures(session, policy, weight_state) | {
                "evaluations": evaluator_of(session).evaluations,
                "search_cpu_s": round(seconds, 1),
                "proxy": trial.accuracy,
                "quality": trial.quality,
                "validation": validation,
                "epoch": trial.epoch,
                "projector_steps": [update.user_attrs["steps"] for update in updates],
            }

    def _chosen(self, session: SearchSession) -> tuple[TrialRecord, float]:
        front = front_of(effective_records(session.study))
        measured = [
            (
                self.validation(
                    session,
                    Policy.of(session.evaluator.structure, trial.widths),
                    session.epochs.weight_state(trial.weight_state),
                ),
                trial,
            )
            for trial in best_and_spread(front, session.config.report.finalists)
        ]
        validation, trial = max(measured, key=lambda pair: (pair[0], pair[1].quality))
        return trial, validation


def measured_speedup(session: SearchSession, policy: Policy, weight_state: WeightState) -> float:
    """Time a policy as a whole, in turn with the dense model; return its speed-up."""
    ready = evaluator_of(session).loaded
    return raced_speedup(
        session, ready, lambda which: policy_network(ready, weight_state, which), policy
    )


def raced_speedup(
    session: SearchSession,
    loaded: LoadedModel,
    network_of: Callable[[Policy], AbstractContextManager[LoadedModel]],
    policy: Policy,
) -> float:
    """Time the prefill of a policy in turn with the dense policy; return the speed-up.

    Args:
        session: The study, which has the prompts.
        loaded: The model that is narrowed.
        network_of: Narrows it to a policy.
        policy: The policy.
    """
    table = session.config.latency
    workload = Workload(
        batch=table.batch, new_tokens=1, warmup=1, repeats=5, precision=0.01, seconds=0.0
    )
    stopwatch = Stopwatch(loaded, evaluator_of(session).proxy.samples, workload)

    def timed(which: Policy) -> Mapping[str, float]:
        with network_of(which) as network:
            return stopwatch.decoder(network)

    dense = Policy.dense(loaded.structure)
    runs = {"dense": partial(timed, dense), "small": partial(timed, policy)}
    return 1 / stopwatch.race(runs, "dense")["small"]["prefill"].ratio
