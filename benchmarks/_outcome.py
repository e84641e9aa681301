"""The outcome of a study: its finalists on validation and test, and the choice among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from _counting import evaluator_of
from _fields import KEEP_RATIO, WIDTHS

from effllava_optuna.objectives import samples_of
from effllava_optuna.policy import Policy, best_and_spread, front_of, hypervolume
from effllava_optuna.storage.trial_records import effective_records
from effllava_optuna.tasks import Split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _counting import CountingEvaluator

    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import WeightState


def outcome(session: SearchSession) -> dict[str, Any]:
    """Choose among the finalists by validation, as a study does, and open the test split."""
    evaluator = evaluator_of(session)
    front = front_of(effective_records(session.study))
    front = best_and_spread(front, session.config.report.finalists)  # as all records
    measured_front = [
        measure_choice(
            evaluator,
            Policy.of(evaluator.structure, trial.widths),
            session.epochs.weight_state(trial.weight_state),
        )
        | {"epoch": trial.epoch, "quality": trial.quality, "proxy": trial.accuracy}
        for trial in front
    ]
    published = session.epochs.control_study.published_epochs()[1:]
    updates = [attempt.user_attrs for attempt in published]
    return {
        "chosen": best(measured_front),
        "front": measured_front,
        "volume": relative_hypervolume(measured_front, evaluator.calibration.reference),
        "projector_steps": [update["steps"] for update in updates],
        "projector_s": [update.get("seconds", 0.0) for update in updates],
        "eta": session.config.quality.eta,
    }


def measure_choice(
    evaluator: CountingEvaluator, policy: Policy, weight_state: WeightState
) -> dict[str, Any]:
    """Return the costs of a policy, and its accuracy on validation and test."""
    scores = {
        split: evaluator.score(policy, weight_state, evaluator.large_batches(split))
        for split in (Split.VALIDATION, Split.TEST)
    }
    test_hits = scores[Split.TEST].hit
    kinds = [sample.subsets for sample in samples_of(evaluator.large_batches(Split.TEST))]
    return {
        WIDTHS: list(policy.widths),
        KEEP_RATIO: policy.keep_ratio,
        "latency_ms": evaluator.calibration.latency.predict(policy),
        "risk": evaluator.risk(policy),
        "validation": float(scores[Split.VALIDATION].hit.mean()),
        "test": float(test_hits.mean()),
        "expected": float(scores[Split.TEST].probability.mean()),
        "kinds": {
            kind: float(test_hits[[kind in subsets for subsets in kinds]].mean())
            for kind in sorted({kind for subsets in kinds for kind in subsets})
        },
    }


def best(candidates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Choose by accuracy on validation; among equals, by quality on the proxy."""
    return max(candidates, key=lambda candidate: (candidate["validation"], candidate["quality"]))


def relative_hypervolume(
    points: Sequence[Mapping[str, Any]], reference: tuple[float, float]
) -> float:
    """Return the hypervolume of points by test accuracy and latency, as a share of the largest."""
    chance, slowest_ms = reference
    pairs = [(point["test"], point["latency_ms"]) for point in points]
    return hypervolume(pairs, reference) / ((1 - chance) * slowest_ms)
