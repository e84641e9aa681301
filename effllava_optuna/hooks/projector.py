"""Train the vision projector for the best policies found, without fooling ourselves.

Vision tower and language model stay frozen. A few dozen samples are memorised in a few dozen
steps, after which they rank nothing any more. So the number of steps is chosen by fitting on part
of the proxy and looking at the rest (cross-fitting); zero steps is a legal answer. Then one
projector is trained on the whole proxy, for use, and one without each scoring fold, for scoring
that fold. Every training starts from the projector of the model as it was loaded.

That the paper trains the projector for its best candidates between rounds of the search is
known; loss, steps and rate are not: those here are inferred.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from effllava_optuna.hooks.steps import trainable, training_steps
from effllava_optuna.surgery import WHOLE, answer, narrowed, projecting, projector, projector_state
from effllava_optuna.tasks import answer_divergence, answer_loss, score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from effllava_optuna.policy import Policy
    from effllava_optuna.surgery import Basis, Loaded, Seen
    from effllava_optuna.tasks import Batch

    State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Training:
    """How the projector is trained.

    Attributes:
        steps: The most steps that may be taken.
        every: Steps between two looks at the samples that are held out; one is after the last.
        learning_rate: Of AdamW, constant.
        kl: Weight of the divergence from the dense model's answers, beside the answer loss.
    """

    steps: int = 16
    every: int = 4
    learning_rate: float = 1e-3
    kl: float = 1.0


@dataclass(frozen=True, slots=True)
class Lesson:
    """Some proxy samples to learn from.

    Attributes:
        batch: Questions and answers.
        seen: Their inputs, up to the projector.
        part: Which part of the proxy they are; parts are held out in turn.
        fit: The scoring fit of a basis that did not see them.
    """

    batch: Batch
    seen: Seen
    part: int
    fit: int


@dataclass(frozen=True, slots=True)
class Look:
    """What held-out samples said after some steps.

    Attributes:
        steps: Steps taken.
        loss: Mean answer loss over held-out samples and elites, in nats.
        accuracy: Share of right answers among them.
    """

    steps: int
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Update:
    """A trained projector.

    Attributes:
        projectors: Weights for use, then those for scoring each fold.
        steps: Steps chosen; 0 leaves the projector as it was.
        held_out: The looks that chose them.
        before: Loss and accuracy on the samples trained on, elites' mean, before the training.
        after: The same after it. The distance to ``held_out`` is what was memorised.
        seconds: Spent.
    """

    projectors: tuple[State, ...]
    steps: int
    held_out: tuple[Look, ...]
    before: Look
    after: Look
    seconds: float


def train_projector(
    loaded: Loaded,
    basis: Basis,
    elites: Sequence[Policy],
    lessons: Sequence[Lesson],
    training: Training,
    progress: Callable[[float], None] | None = None,
) -> Update:
    """Train the projector of ``loaded`` for ``elites``; the model is left as it was.

    Each step takes the next elite in turn and all samples with a picture; nothing is drawn at
    random. Where fewer than two parts have pictures, nothing can be held out: zero steps.

    Args:
        loaded: The model, its projector as it was loaded.
        basis: Order and refit tables under which the elites run.
        elites: Policies whose networks the projector shall serve.
        lessons: The proxy.
        training: How.
        progress: Is told the share that is done.
    """
    started = time.monotonic()
    pictured = [lesson for lesson in lessons if lesson.seen.pictured]
    if len({lesson.part for lesson in pictured}) < 2:
        training = replace(training, steps=0)
    else:
        lessons = pictured
    school = _School(loaded, basis, elites, training)
    parts = sorted({lesson.part for lesson in lessons})
    runs = len(parts) + basis.folds + 1
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done / runs)

    curves = []
    for part in parts:
        inside = [lesson for lesson in lessons if lesson.part != part]
        outside = [lesson for lesson in lessons if lesson.part == part]
        looks = school.looks(outside[0].fit, inside, outside)
        curves.append((_samples(outside), looks))
        tick()
    held_out = _mean(curves)
    steps = min(held_out, key=lambda look: (look.loss, look.steps)).steps
    states: list[State] = []
    with school.enrolled() as dense:
        before = school.look(WHOLE, lessons, 0)
        for fit in range(basis.folds + 1):
            mine = [lesson for lesson in lessons if lesson.fit != fit]
            school.reset(dense)
            for _ in school.train(fit, mine, steps):
                pass
            states.append(projector_state(loaded))
            if fit == WHOLE:
                after = school.look(WHOLE, lessons, steps)
            tick()
    return Update(
        tuple(states), steps, held_out, before, after, round(time.monotonic() - started, 3)
    )


class _School:
    """One projector, its optimizer, and the networks that it serves."""

    def __init__(
        self, loaded: Loaded, basis: Basis, elites: Sequence[Policy], training: Training
    ) -> None:
        self.loaded = loaded
        self.basis = basis
        self.elites = elites
        self.training = training
        self.module = projector(loaded.model)
        self._dense: dict[int, torch.Tensor] = {}

    @contextmanager
    def enrolled(self) -> Iterator[State]:
        """Let the projector learn for a while; afterwards it is as before."""
        original = projector_state(self.loaded)
        deterministic = torch.are_deterministic_algorithms_enabled()
        with self.loaded.lock, projecting(self.loaded, original), torch.enable_grad():
            torch.use_deterministic_algorithms(mode=True, warn_only=True)
            try:
                with trainable(self.module):
                    yield original
            finally:
                torch.use_deterministic_algorithms(mode=deterministic)

    def reset(self, state: State) -> None:
        """Start anew from ``state``."""
        self.module.load_state_dict(dict(state))

    def looks(
        self, fit: int, inside: Sequence[Lesson], outside: Sequence[Lesson]
    ) -> tuple[Look, ...]:
        """Train on ``inside``, and look at ``outside`` now and then, from step 0 on."""
        with self.enrolled():
            found = [self.look(fit, outside, 0)]
            for step in self.train(fit, inside, self.training.steps):
                found.append(self.look(fit, outside, step))
        return tuple(found)

    def train(self, fit: int, lessons: Sequence[Lesson], steps: int) -> Iterator[int]:
        """Take ``steps`` steps, each with the next elite and all lessons; see `training_steps`."""
        samples = _samples(lessons)
        for lesson in lessons:
            self._dense_answer(lesson)

        def backward(step: int) -> None:
            elite = self.elites[(step - 1) % len(self.elites)]
            with narrowed(self.loaded, elite, self.basis.order, self.basis.refits[fit]) as network:
                for lesson in lessons:
                    loss = self._loss(network, lesson) * (len(lesson.batch) / samples)
                    torch.autograd.backward(loss)

        return training_steps(
            self.module.parameters(),
            backward,
            steps=steps,
            every=self.training.every,
            learning_rate=self.training.learning_rate,
        )

    def _loss(self, network: Loaded, lesson: Lesson) -> torch.Tensor:
        logits, dense = answer(network, lesson.seen), self._dense_answer(lesson)
        divergence = answer_divergence(logits, dense, lesson.batch).mean()
        return answer_loss(logits, lesson.batch).mean() + self.training.kl * divergence

    def _dense_answer(self, lesson: Lesson) -> torch.Tensor:
        """Give the dense model's log-probabilities; asked for first before any training step."""
        if id(lesson) not in self._dense:
            with torch.no_grad():
                dense = answer(self.loaded, lesson.seen).float().log_softmax(-1)
            self._dense[id(lesson)] = dense
        return self._dense[id(lesson)]

    @torch.no_grad()
    def look(self, fit: int, lessons: Sequence[Lesson], steps: int) -> Look:
        """Let all elites answer ``lessons`` with the projector as it is now."""
        loss, hits = 0.0, 0.0
        for elite in self.elites:
            with narrowed(self.loaded, elite, self.basis.order, self.basis.refits[fit]) as network:
                for lesson in lessons:
                    logits = answer(network, lesson.seen)
                    loss += float(answer_loss(logits, lesson.batch).sum())
                    hits += float(score(logits, lesson.batch).hit.sum())
        asked = len(self.elites) * _samples(lessons)
        return Look(steps, loss / asked, hits / asked)


def _samples(lessons: Sequence[Lesson]) -> int:
    return sum(len(lesson.batch) for lesson in lessons)


def _mean(curves: Sequence[tuple[int, tuple[Look, ...]]]) -> tuple[Look, ...]:
    """Average curves, weighted by how many samples each looked at."""
    total = sum(weight for weight, _ in curves)
    return tuple(
        Look(
            at[0].steps,
            sum(w * look.loss for (w, _), look in zip(curves, at, strict=True)) / total,
            sum(w * look.accuracy for (w, _), look in zip(curves, at, strict=True)) / total,
        )
        for at in zip(*(looks for _, looks in curves), strict=True)
    )
