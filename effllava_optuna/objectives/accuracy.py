"""How well a policy answers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from effllava_optuna.surgery import WHOLE, answer, look, running
from effllava_optuna.tasks import Scores, encode, proxy_only, score

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from effllava_optuna.policy import Policy
    from effllava_optuna.surgery import Basis, Loaded, Seen
    from effllava_optuna.tasks import Batch, Sample


@dataclass(frozen=True, slots=True)
class Asked:
    """A batch of questions, its pictures already seen by the vision tower.

    Attributes:
        batch: The questions and their answers.
        seen: The inputs, pictures encoded up to the projector.
        fit: Which refit and projector of a basis shall answer them.
    """

    batch: Batch
    seen: Seen
    fit: int = WHOLE


def folds_of(samples: Sequence[Sample], folds: int) -> tuple[tuple[Sample, ...], ...]:
    """Deal ``samples`` into folds, whole units at a time, in order of appearance."""
    units = list(dict.fromkeys(sample.unit for sample in samples))
    fold = {unit: index % folds for index, unit in enumerate(units)}
    return tuple(
        tuple(sample for sample in samples if fold[sample.unit] == mine) for mine in range(folds)
    )


def ask(
    loaded: Loaded, samples: Sequence[Sample], *, batch_size: int = 64, fit: int = WHOLE
) -> tuple[Asked, ...]:
    """Encode ``samples`` and run the vision tower over their pictures, once."""
    return tuple(
        Asked(batch.to(loaded.device), look(loaded, batch.inputs), fit)
        for batch in encode(loaded.processor, samples, batch_size=batch_size)
    )


def ask_crossed(loaded: Loaded, samples: Sequence[Sample], folds: int) -> tuple[Asked, ...]:
    """Ask proxy samples so that each is answered by the fit that did not see it.

    Raises:
        LeakError: A sample is not from the proxy.
    """
    dealt = folds_of(proxy_only(samples, "The search"), folds)
    return tuple(
        asked for fold, mine in enumerate(dealt) for asked in ask(loaded, mine, fit=fold + 1)
    )


@torch.no_grad()
def answers(loaded: Loaded, basis: Basis, policy: Policy, asked: Iterable[Asked]) -> Scores:
    """Let the network of ``policy`` answer; scores come in the order of ``asked``."""
    parts = []
    for fit, batches in groupby(asked, key=lambda item: item.fit):
        with running(loaded, basis, policy, fit) as network:
            parts += [score(answer(network, item.seen), item.batch) for item in batches]
    return Scores.joined(parts)


def units_of(asked: Sequence[Asked]) -> list[str]:
    """Give the unit of each sample, in the order of `answers`."""
    return [unit for item in asked for unit in item.batch.units]
