"""Let a pruned model learn from the dense one again, before it leaves.

Nothing but the dense model's answers is learned from: the loss is the divergence from them, at
the position that answers, and no label is read. Every fifth unit of the samples is held out; the
weights that stay are those that diverge least there, and those from before count, too. That is
only as good as what is held out: of 64 samples it is a dozen, which on the embedded model let
through recoveries that cost accuracy. Give it a thousand or more.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import nn

from effllava_optuna.errors import ModelError, TaskError
from effllava_optuna.hooks.steps import trainable, training_steps
from effllava_optuna.surgery import answer, look, projector
from effllava_optuna.surgery.discover import language_model
from effllava_optuna.tasks import answer_divergence, encode, proxy_only

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from effllava_optuna.surgery import Loaded, Seen
    from effllava_optuna.tasks import Batch, Sample

_HELD_OUT = 5  # every so many units


@dataclass(frozen=True, slots=True)
class Distillation:
    """How a pruned model learns from the dense one.

    Attributes:
        steps: The most steps that may be taken.
        every: Steps between two looks at the samples that are held out.
        patience: Looks in a row that may find nothing better; then it ends.
        batch_size: Samples a step.
        learning_rate: Of AdamW, constant.
        seed: Shuffles the samples and draws the adapters.
    """

    steps: int = 300
    every: int = 25
    patience: int = 4
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a recovery did.

    Attributes:
        steps: Steps chosen; 0 leaves the model as it was.
        before: Mean divergence from the dense model on held-out samples, in nats.
        after: The same of the model that stays, its adapters merged.
        looks: Steps and divergence of each look, from step 0 on.
        samples: Samples learned from, held-out ones not counted.
        weights: Numbers that learned.
        seconds: Spent.
    """

    steps: int
    before: float
    after: float
    looks: tuple[tuple[int, float], ...]
    samples: int
    weights: int
    seconds: float


class Adaptation(Protocol):
    """Which weights of a pruned model learn."""

    def opened(self, pruned: Loaded, seed: int) -> AbstractContextManager[list[nn.Parameter]]:
        """Let some weights learn for a while.

        What they hold in the end stays in the model; after an exception it is as before.
        """


@dataclass(frozen=True, slots=True)
class Projector:
    """The projector alone."""

    @contextmanager
    def opened(self, pruned: Loaded, seed: int) -> Iterator[list[nn.Parameter]]:
        """Let the projector learn; nothing is drawn."""
        module = projector(pruned.model)
        original = {name: weight.clone() for name, weight in module.state_dict().items()}
        with trainable(module):
            try:
                yield list(module.parameters())
            except BaseException:
                module.load_state_dict(original)
                raise


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adapters on every linear layer of the decoder, merged in the end (Hu et al. 2021).

    Attributes:
        rank: Of each adapter.
        alpha: Its product is multiplied by ``alpha / rank``.
    """

    rank: int = 8
    alpha: int = 16

    @contextmanager
    def opened(self, pruned: Loaded, seed: int) -> Iterator[list[nn.Parameter]]:
        """Put adapters into the decoder, in float32 whatever its own type.

        Raises:
            ModelError: peft is not installed.
        """
        if find_spec("peft") is None:
            raise ModelError(
                "Adapters need peft, which is not installed.",
                hint="Run `pip install 'effllava-optuna[recover]'`, or train the projector.",
            )
        import peft

        inside = {id(module) for module in language_model(pruned.model).modules()}
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=[
                name
                for name, module in pruned.model.named_modules()
                if id(module) in inside and isinstance(module, nn.Linear)
            ],
        )
        adapted = peft.LoraModel(pruned.model, config, "recovery")
        merged = False
        try:
            learning = [weight for weight in pruned.model.parameters() if weight.requires_grad]
            generator = torch.Generator().manual_seed(seed)
            for weight in learning:
                weight.data = weight.data.float()
            for name, weight in pruned.model.named_parameters():
                if "lora_A" in name:
                    drawn = torch.randn(weight.shape, generator=generator)
                    weight.data.copy_(drawn / weight.shape[1] ** 0.5)
            yield learning
            adapted.merge_and_unload(safe_merge=True)
            merged = True
        finally:
            if not merged:
                adapted.unload()
            pruned.model.requires_grad_(requires_grad=False)


@dataclass(frozen=True, slots=True)
class _Lesson:
    """Some samples, and the dense model's log-probabilities of every token that may answer."""

    batch: Batch
    seen: Seen
    dense: torch.Tensor


def recover(
    pruned: Loaded,
    dense: Loaded,
    samples: Sequence[Sample],
    adaptation: Adaptation | None = None,
    distillation: Distillation | None = None,
    progress: Callable[[float], None] | None = None,
) -> Recovered:
    """Distil the answers of ``dense`` into ``pruned``, which is changed in place.

    Args:
        pruned: What `sliced` or `load_pruned` gave.
        dense: The model that it was cut from; not changed.
        samples: What to learn from, all of a proxy split.
        adaptation: Which weights learn; adapters by default.
        distillation: How.
        progress: Is told the share that is done.

    Raises:
        LeakError: A sample belongs to validation or test.
        TaskError: The samples have fewer than two units.
        ModelError: The two models do not answer in the same tokens, or peft is missing.
    """
    started = time.monotonic()
    how = distillation or Distillation()
    inside, outside = _dealt(proxy_only(samples, "Recovery"), how.seed)
    with pruned.lock, dense.lock:
        lessons = _lessons(pruned, dense, inside, how.batch_size)
        exam = _lessons(pruned, dense, outside, how.batch_size)
        looks = [(0, _divergence(pruned, exam))]
        shuffled = _shuffled(lessons, how.seed)
        with (adaptation or Lora()).opened(pruned, how.seed) as weights, torch.enable_grad():
            best = [weight.detach().clone() for weight in weights]
            for step in training_steps(
                weights,
                lambda _: _backward(pruned, next(shuffled)),
                steps=how.steps,
                every=how.every,
                learning_rate=how.learning_rate,
                progress=progress,
            ):
                looks.append((step, _divergence(pruned, exam)))
                if _best(looks) == len(looks) - 1:
                    best = [weight.detach().clone() for weight in weights]
                elif len(looks) - 1 - _best(looks) >= how.patience:
                    break
            for weight, kept in zip(weights, best, strict=True):
                weight.data.copy_(kept)
        after = _divergence(pruned, exam)
    return Recovered(
        looks[_best(looks)][0], looks[0][1], after, tuple(looks), len(inside),
        sum(weight.numel() for weight in best), round(time.monotonic() - started, 3),
    )  # fmt: skip


def _shuffled(lessons: Sequence[_Lesson], seed: int) -> Iterator[_Lesson]:
    """Give the lessons in random order, again and again."""
    rng = np.random.default_rng(seed)
    while True:
        yield from (lessons[place] for place in reversed(rng.permutation(len(lessons))))


def _best(looks: Sequence[tuple[int, float]]) -> int:
    """Give the first of the looks that diverged least; one that is not finite is never it."""
    losses = [loss if np.isfinite(loss) else np.inf for _, loss in looks]
    return losses.index(min(losses))


def _dealt(samples: Sequence[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    """Shuffle the samples, and hold some out, whole units at a time."""
    units = list(dict.fromkeys(sample.unit for sample in samples))
    if len(units) < 2:
        raise TaskError(
            f"Recovery was given {len(samples)} samples of {len(units)} units.",
            hint="Give it two units at least: one is held out.",
        )
    rng = np.random.default_rng([seed, 0])
    held_out = {units[place] for place in rng.permutation(len(units))[::_HELD_OUT]}
    shuffled = [samples[place] for place in rng.permutation(len(samples))]
    return (
        [sample for sample in shuffled if sample.unit not in held_out],
        [sample for sample in shuffled if sample.unit in held_out],
    )


@torch.no_grad()
def _lessons(
    pruned: Loaded, dense: Loaded, samples: Sequence[Sample], batch_size: int
) -> list[_Lesson]:
    found = []
    for batch in encode(pruned.processor, samples, batch_size=batch_size):
        expected = answer(dense, look(dense, batch.inputs, batch.positions)).float()
        found.append(
            _Lesson(
                batch.to(pruned.device),
                look(pruned, batch.inputs, batch.positions),
                expected.log_softmax(-1).to(pruned.device),
            )
        )
    vocabulary = pruned.model.get_output_embeddings().weight.shape[0]
    if found[0].dense.shape[-1] != vocabulary:
        raise ModelError(
            f"{dense.source} answers in {found[0].dense.shape[-1]} tokens, {pruned.source} in "
            f"{vocabulary}.",
            hint="Learn from the model that was pruned.",
        )
    return found


def _loss(pruned: Loaded, lesson: _Lesson) -> torch.Tensor:
    """Give the divergence of each sample."""
    return answer_divergence(answer(pruned, lesson.seen), lesson.dense, lesson.batch)


def _backward(pruned: Loaded, lesson: _Lesson) -> None:
    loss = _loss(pruned, lesson).mean()
    if loss.requires_grad:  # a projector learns nothing where there is no picture
        torch.autograd.backward(loss)


@torch.no_grad()
def _divergence(pruned: Loaded, lessons: Sequence[_Lesson]) -> float:
    """Give the mean Kullback-Leibler divergence from the dense model, in nats."""
    total = sum(float(_loss(pruned, lesson).sum()) for lesson in lessons)
    return total / sum(len(lesson.dense) for lesson in lessons)


if TYPE_CHECKING:
    _: tuple[Adaptation, ...] = (Projector(), Lora())
