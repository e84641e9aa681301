"""The outcome of a study: its finalists on validation and test, and the choice among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from _fields import KEEP_RATIO, WIDTHS

from effllava_optuna.objectives import samples_of
from effllava_optuna.policy import Policy, finalists, front_of, hypervolume
from effllava_optuna.study.records import trials_of
from effllava_optuna.tasks import Split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _studies import CountingEvaluator

    from effllava_optuna.study.evolution import Epochs
    from effllava_optuna.surgery import Basis


def outcome(epochs: Epochs, evaluator: CountingEvaluator) -> dict[str, Any]:
    """Choose among the finalists by validation, as a study does, and open the test split."""
    front = finalists(front_of(trials_of(epochs.study)), epochs.spec.report.finalists)
    examined_front = [
        examined(evaluator, Policy.of(evaluator.anatomy, trial.keep), epochs.basis(trial.basis))
        | {"epoch": trial.epoch, "quality": trial.quality, "proxy": trial.accuracy}
        for trial in front
    ]
    updates = [attempt.user_attrs for attempt in epochs.ledger.epochs()[1:]]
    return {
        "chosen": best(examined_front),
        "front": examined_front,
        "volume": volume(examined_front, evaluator.bundle.reference),
        "projector_steps": [update["steps"] for update in updates],
        "projector_s": [update["seconds"] for update in updates],
        "eta": epochs.spec.quality.eta,
    }


def examined(evaluator: CountingEvaluator, policy: Policy, basis: Basis) -> dict[str, Any]:
    """Return the costs of a policy, and its accuracy on validation and test."""
    figures: dict[str, Any] = {
        WIDTHS: list(policy.keep),
        KEEP_RATIO: policy.kept_share(evaluator.anatomy),
        "latency_ms": evaluator.latency_ms(policy),
        "risk": evaluator.risk(policy),
    }
    for split in (Split.VALIDATION, Split.TEST):
        asked = evaluator.many(split)
        scores = evaluator.final(policy, basis, asked)
        figures[str(split)] = float(scores.hit.mean())
        if split == Split.TEST:
            figures["expected"] = float(scores.probability.mean())
            kinds = [sample.subsets for sample in samples_of(asked)]
            figures["kinds"] = {
                kind: float(scores.hit[[kind in subsets for subsets in kinds]].mean())
                for kind in sorted({kind for subsets in kinds for kind in subsets})
            }
    return figures


def best(candidates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Choose by accuracy on validation; of equals, the better quality on the proxy."""
    return max(candidates, key=lambda one: (one["validation"], one["quality"]))


def volume(points: Sequence[Mapping[str, Any]], reference: tuple[float, float]) -> float:
    """Return the share of (accuracy, latency) that points dominate, by test accuracy."""
    guessed, slowest = reference
    pairs = [(point["test"], point["latency_ms"]) for point in points]
    return hypervolume(pairs, reference) / ((1 - guessed) * slowest)
