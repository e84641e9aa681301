"""Whom a policy has to match: chosen before it is asked anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import TrialState

from effllava_optuna.samplers import counted, slot_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from optuna.trial import FrozenTrial


class Rival(NamedTuple):
    """A policy that is no slower.

    Attributes:
        number: Of its trial.
        quality: Of its policy.
    """

    number: int
    quality: float


def rival_of(trials: Iterable[FrozenTrial], trial: FrozenTrial, latency_ms: float) -> Rival | None:
    """Find the best policy of earlier generations that is no slower.

    What they found is the same for any number of workers, and after any kill. The first
    generation of an epoch (anchors, and elites that are measured again) has no rivals, nor has
    what a user enqueued, which is nobody's rival either.

    Args:
        trials: Of the study.
        trial: About to be measured.
        latency_ms: Of its policy.

    Returns:
        Of equals the earliest; None where there is none.
    """
    mine = slot_of(trial)
    if mine is None or mine.generation == 0:
        return None
    epoch = [other for other in trials if other.user_attrs.get("epoch") == mine.epoch]
    rivals = [
        Rival(other.number, other.values[0])
        for slot, other in counted(epoch).items()
        if slot.generation < mine.generation
        and other.state == TrialState.COMPLETE
        and other.user_attrs["basis"] == trial.user_attrs["basis"]
        and other.values[1] <= latency_ms
        and all(violation <= 0 for violation in other.constraints.values())
    ]
    return max(rivals, key=lambda rival: (rival.quality, -rival.number), default=None)
