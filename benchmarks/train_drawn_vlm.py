"""Train the second embedded model: ``python benchmarks/train_drawn_vlm.py``.

It starts from the weights of ``digits-vlm`` and learns to answer in the formats of ScienceQA,
VizWiz-VQA, MM-Vet and LLaVA-Bench. The script writes what the package ships: weights, tokenizer,
processor, chat template and a model card with scores on the datasets of ``draw_tasks.py``.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _drawn_training_data import TrainingData, build_processor
from _small_vlm import Schedule, build_model, minimize
from draw_tasks import draw
from transformers import AutoTokenizer, LlavaForConditionalGeneration, LlavaProcessor, set_seed

from effllava_optuna.evaluation.answering import GradedAnswer, answer_samples
from effllava_optuna.objectives import LIKELIEST
from effllava_optuna.policy import bootstrap_interval
from effllava_optuna.surgery import LoadedModel, load
from effllava_optuna.tasks import DataTask, Digits, Split, TaskOptions
from effllava_optuna.tasks.data.digits import load_scans

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.tasks import Sample

EMBEDDED = Path(__file__).parents[1] / "effllava_optuna" / "embedded"


@dataclass(frozen=True)
class Stage:
    """One cycle of training.

    Attributes:
        steps: Steps of AdamW, each on new conversations.
        learning_rate: The highest learning rate of the cycle.
        sizes: Conversations of a step by format (`TrainingData.turn`). Each format is a batch of
            its own: padding costs as much as text.
        trained: Pattern of the names of the parameters that are trained.
    """

    steps: int
    learning_rate: float
    sizes: Mapping[str, int]
    trained: str = ""


_SIZES = {"science": 40, "text": 24, "short": 16, "open": 20}
STAGES = (
    # New words first: their noise would destroy what the other parameters have learned.
    Stage(60, 5e-3, _SIZES, r"embed_tokens|lm_head"),
    Stage(900, 1.5e-3, _SIZES),
)
CARD = """---
license: mit
pipeline_tag: image-text-to-text
library_name: transformers
---

# drawn-vlm

A vision-language model small enough to prune in minutes on two CPU cores: a stock
`LlavaForConditionalGeneration` ({parameters:,} parameters, float32; CLIP tower 64 wide and 3
layers deep, 16 image tokens; Llama 128 wide and 6 layers deep, 8 heads in 4 key/value groups,
FFN 384; {words} words). It answers questions about a picture of four handwritten digits, and a
few about a text alone, in the formats of four benchmarks: the letter of a choice (ScienceQA), a
word or `unanswerable` (VizWiz-VQA), a sentence (MM-Vet), a few sentences (LLaVA-Bench); and the
questions of digits-vlm, whose weights it began with. It knows nothing else: what it scores on
drawn questions says nothing about the benchmarks themselves, nor about larger models. Of choices,
most come in an order that ties an answer to a letter: it need not read them to name the letter.

- Data: scikit-learn's `load_digits` (UCI Optical Recognition of Handwritten Digits, Alpaydin
  and Kaynak 1998, CC BY 4.0). {train} scans train it; the other {held_out} were never shown to it.
- Licence: MIT, as the package.
- Command: `python benchmarks/train_drawn_vlm.py --seed {seed}`
- Trained with torch {torch}, transformers {transformers}, on {threads} CPU threads.

Measured on the datasets that `python benchmarks/draw_tasks.py DIR` draws of the held-out scans
(seed 0), by greedy generation in float32. Questions about a text alone are drawn as those that
trained it were. Intervals are 95 %, bootstrap over pictures (over questions where there is none).

| rows in the format of | samples | graded by | mean | 95 % interval |
|---|---|---|---|---|
{rows}
"""


@torch.no_grad()
def initial_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """Create the model with the weights of ``digits-vlm``; those of new words are random."""
    model = build_model(processor)
    old = LlavaForConditionalGeneration.from_pretrained(EMBEDDED / "digits-vlm")
    old_words = AutoTokenizer.from_pretrained(EMBEDDED / "digits-vlm").get_vocab()
    weights = model.state_dict()
    for name, weight in old.state_dict().items():
        if weight.shape == weights[name].shape:
            weights[name].copy_(weight)
            continue
        weights[name].normal_(std=0.2 * weight.std().item())
        for word, index in processor.tokenizer.get_vocab().items():
            if word.lower() in old_words:
                weights[name][index] = weight[old_words[word.lower()]]
    return model


def train(model: Any, processor: LlavaProcessor, stage: Stage, seed: tuple[int, ...]) -> None:
    """Train on all formats in every step; deterministic for a seed and a machine."""
    data = TrainingData(processor, np.random.default_rng(seed))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.search(stage.trained, name) is not None)
    started = time.monotonic()
    losses: dict[str, list[float]] = {name: [] for name in stage.sizes}

    def loss() -> torch.Tensor:
        parts = {name: data.loss(model, name, size) for name, size in stage.sizes.items()}
        for name, part in parts.items():
            losses[name].append(part.item())
        return torch.stack([*parts.values()]).sum()

    def report(step: int) -> None:
        means = "  ".join(f"{name} {np.mean(last[-20:]):.3f}" for name, last in losses.items())
        print(f"{step:5d}  {means}  {time.monotonic() - started:.0f} s", flush=True)

    schedule = Schedule(steps=stage.steps, learning_rate=stage.learning_rate, warmup=0.1)
    minimize(model, loss, report, schedule)


def main() -> None:
    """Train, and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=EMBEDDED / "drawn-vlm")
    parser.add_argument(
        "--measure", action="store_true", help="do not train; score the checkpoint of --out"
    )
    arguments = parser.parse_args()
    if arguments.measure:
        loaded = load(arguments.out, device="cpu")
        print("\n".join(card_rows(loaded.model, loaded.processor)))
        return
    set_seed(arguments.seed)
    processor = build_processor()
    model = initial_model(processor)
    for number, stage in enumerate(STAGES):
        train(model, processor, stage, (arguments.seed, number))
    publish(model, processor, arguments.out, arguments.seed)


def publish(model: Any, processor: LlavaProcessor, out: Path, seed: int) -> None:
    """Measure the model on the drawn datasets, and write the checkpoint with its card."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    train_scans, held_out_scans = load_scans()
    card = CARD.format(
        parameters=model.num_parameters(),
        words=len(processor.tokenizer),
        train=len(train_scans.labels),
        held_out=len(held_out_scans.labels),
        seed=seed,
        torch=torch.__version__,
        transformers=json.loads((out / "config.json").read_text())["transformers_version"],
        threads=torch.get_num_threads(),
        rows="\n".join(card_rows(model, processor)),
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    print(card)


def card_rows(model: Any, processor: LlavaProcessor) -> list[str]:
    """Score the model on the drawn datasets; return the rows of the table of the card."""
    loaded = LoadedModel.of(model, processor, "drawn-vlm")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder))
        for name in ("scienceqa", "vizwiz", "mmvet", "llava-bench"):
            task = DataTask(name, f"{folder}/{name}", options=TaskOptions(new_tokens=40))
            rows.append(_row(loaded, name, task.all_rows(Split.TEST)))
    return [*rows, _row(loaded, "digits-vlm", Digits(seed=0).samples(Split.TEST))]


def _row(loaded: LoadedModel, name: str, samples: Sequence[Sample]) -> str:
    answers: list[GradedAnswer] = []
    answer_samples(loaded, samples, answers.extend)
    by_id = {answer.id: answer.score or 0.0 for answer in answers}
    scores = [by_id[sample.id] for sample in samples]
    low, high = bootstrap_interval(scores, [sample.group for sample in samples])
    rule = LIKELIEST if samples[0].rule is None else samples[0].rule.name
    return (
        f"| {name} | {len(scores):,} | {rule} | **{np.mean(scores):.4f}** "
        f"| {low:.3f} to {high:.3f} |"
    )


if __name__ == "__main__":
    main()
