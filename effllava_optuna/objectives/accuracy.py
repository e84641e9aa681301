"""How well a policy answers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from effllava_optuna.surgery import WHOLE, answer, look, running, write
from effllava_optuna.tasks import Scores, encode, graded, prompts, proxy_only, weighed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from effllava_optuna.policy import Policy
    from effllava_optuna.surgery import Basis, Loaded, Seen
    from effllava_optuna.tasks import Batch, Sample


@dataclass(frozen=True, slots=True)
class Asked:
    """A batch of questions, its pictures already seen by the vision tower.

    Attributes:
        batch: The questions and their answers; without answers, the model writes them.
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
    loaded: Loaded,
    samples: Sequence[Sample],
    *,
    batch_size: int = 64,
    fit: int = WHOLE,
    written: bool = False,
    kept: str | torch.device | None = None,
) -> tuple[Asked, ...]:
    """Encode ``samples`` and run the vision tower over their pictures, once.

    Args:
        loaded: The model.
        samples: Questions.
        batch_size: The most that are asked at once.
        fit: Which refit and projector of a basis shall answer.
        written: Let the model write the answers of open questions, which are graded by their
            rules; if not, it reads a right answer. Closed questions are scored by their options.
        kept: Where tensors wait; None: on the model's device.
    """
    where = loaded.device if kept is None else kept
    shut = [sample for sample in samples if not (written and sample.open)]
    rest = [sample for sample in samples if written and sample.open]
    processor = loaded.processor
    batches = [
        *(encode(processor, shut, batch_size=batch_size) if shut or not rest else ()),
        *(prompts(processor, rest, batch_size=batch_size) if rest else ()),
    ]
    return tuple(
        Asked(batch.to(where), look(loaded, batch.inputs, batch.positions).to(where), fit)
        for batch in batches
    )


def ask_crossed(
    loaded: Loaded,
    samples: Sequence[Sample],
    folds: int,
    *,
    written: bool = False,
) -> tuple[Asked, ...]:
    """Ask proxy samples so that each is answered by the fit that did not see it.

    Args:
        loaded: The model.
        samples: All that are dealt into folds.
        folds: How many.
        written: See `ask`.

    Raises:
        LeakError: A sample is not from the proxy.
    """
    dealt = folds_of(proxy_only(samples, "The search"), folds)
    return tuple(
        asked
        for fold, mine in enumerate(dealt)
        if mine
        for asked in ask(loaded, mine, fit=fold + 1, written=written)
    )


@torch.inference_mode()
def answers(loaded: Loaded, basis: Basis, policy: Policy, asked: Iterable[Asked]) -> Scores:
    """Let the network of ``policy`` answer; scores come in the order of ``asked``.

    The host waits for the device once, at the end, unless answers are written.
    """
    parts: list[torch.Tensor | Scores] = []
    for fit, batches in groupby(asked, key=lambda item: item.fit):
        with running(loaded, basis, policy, fit) as network:
            parts += [_answered(network, item) for item in batches]
    return _joined(parts)


def scored(network: Loaded, asked: Asked) -> Scores:
    """Let a network answer one batch."""
    return _joined([_answered(network, asked)])


def _answered(network: Loaded, asked: Asked) -> torch.Tensor | Scores:
    """Give the `weighed` answers, or the grades of those that are written."""
    batch, seen = asked.batch.to(network.device), asked.seen.to(network.device)
    if batch.answers is not None:
        return weighed(answer(network, seen), batch)
    return graded(write(network, seen, batch.new_tokens), batch.samples)


def _joined(parts: Sequence[torch.Tensor | Scores]) -> Scores:
    on_device = [part for part in parts if isinstance(part, torch.Tensor)]
    if len(on_device) == len(parts):
        return Scores.of(on_device)
    return Scores.joined(
        [Scores.of([part]) if isinstance(part, torch.Tensor) else part for part in parts]
    )


def samples_of(asked: Sequence[Asked]) -> list[Sample]:
    """Give the samples, in the order of `answers`."""
    return [sample for item in asked for sample in item.batch.samples]


def units_of(asked: Sequence[Asked]) -> list[str]:
    """Give the unit of each sample, in the order of `answers`."""
    return [sample.unit for sample in samples_of(asked)]
