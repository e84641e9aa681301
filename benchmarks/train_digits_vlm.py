"""Train the embedded model from random weights: ``python benchmarks/train_digits_vlm.py``.

A stock ``LlavaForConditionalGeneration`` of 1.3 M parameters learns to answer questions about
pictures of four handwritten digits. The script writes what the package ships: weights, tokenizer,
processor, chat template and a model card with the measured accuracy.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _small_vlm import (
    SPECIAL,
    Schedule,
    build_model,
    collate,
    four_tiles,
    message,
    minimize,
    processor_around,
    prompt_text,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, LlavaProcessor, set_seed

from effllava_optuna.policy import bootstrap_interval
from effllava_optuna.tasks import Batch, Digits, Scores, Split, encode_with_answers, score_logits
from effllava_optuna.tasks.data.digits import (
    CORNERS,
    LINES,
    TARGETS,
    draw_question,
    load_scans,
    render_tiles,
)

OUT = Path("effllava_optuna/embedded/digits-vlm")
_BATCH = 128
WORDS = [
    *SPECIAL,
    "user",
    "assistant",
    ":",
    "?",
    "what",
    "digit",
    "is",
    "at",
    "the",
    "sum",
    "of",
    "how",
    "many",
    "digits",
    "are",
    "even",
    "odd",
    "largest",
    "smallest",
]
CARD = """---
license: mit
pipeline_tag: image-text-to-text
library_name: transformers
---

# {name}

A vision-language model small enough to prune in minutes on two CPU cores: a stock
`LlavaForConditionalGeneration` ({parameters:,} parameters, float32; CLIP tower 64 wide and 3
layers deep, 16 image tokens; Llama 128 wide and 6 layers deep, 8 heads in 4 key/value groups,
FFN 384). It answers four kinds of question about a picture of four handwritten digits: which
digit is where, the sum of a row or column, the largest or smallest, how many are even or odd.
It knows nothing else, and says nothing about larger models.

- Data: scikit-learn's `load_digits` (UCI Optical Recognition of Handwritten Digits, Alpaydin
  and Kaynak 1998, CC BY 4.0). {train} scans train it; the other {held_out} were never shown to it.
- Licence: MIT, as the package.
- Command: `python benchmarks/train_digits_vlm.py --seed {seed}{more}`
- Accuracy: **{accuracy:.4f}** on {questions:,} questions over held-out scans (95 % interval
  {low:.4f} to {high:.4f}, bootstrap over {groups} groups of four scans; split `test` of
  `Digits(seed=0)`).
- Trained with torch {torch}, transformers {transformers}, on {threads} CPU
  threads.
"""


def build_processor() -> LlavaProcessor:
    """Create the tokenizer (one token for each word) and the image processor (32 x 32 pixels)."""
    words = dict.fromkeys([*WORDS, *" ".join([*CORNERS, *LINES]).split(), *TARGETS])
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return processor_around(tokenizer, longest=128)


class TrainingData:
    """Random training batches of questions about training scans.

    Args:
        processor: The tokenizer and the image processor.
        rng: Random generator of pictures and questions.
        probabilities: Probabilities of the kinds of question, see `Stage`.
    """

    def __init__(
        self,
        processor: LlavaProcessor,
        rng: np.random.Generator,
        probabilities: tuple[float, float, float, float] | None,
    ) -> None:
        self.scans, _ = load_scans()
        self.rng = rng
        self.probabilities = probabilities
        self.processor = processor
        self.encoded: dict[str, list[int]] = {}

    def tokens(self, question: str) -> list[int]:
        """Return the tokens of the prompt of a question; each question is encoded once."""
        if question not in self.encoded:
            text = prompt_text(self.processor, [message(question, pictured=True)])
            self.encoded[question] = self.processor.tokenizer.encode(
                text, add_special_tokens=False
            )
        return self.encoded[question]

    def batch(self, size: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Draw a batch: the inputs of the model with the answers, and the two last tokens."""
        tokenizer = self.processor.tokenizer
        pictures, rows = [], []
        for _ in range(size):
            digits, tiles = four_tiles(self.scans, self.rng)
            question, answer = draw_question(digits, self.rng, self.probabilities)
            pictures.append(render_tiles(tiles))
            rows.append([*self.tokens(question), tokenizer.convert_tokens_to_ids(TARGETS[answer])])
        inputs = collate(rows, pictures, tokenizer.pad_token_id)
        ids = inputs["input_ids"]
        last = torch.stack([ids[:, -1], torch.full((size,), tokenizer.eos_token_id)], dim=1)
        return inputs, last


@torch.no_grad()
def evaluate(model: torch.nn.Module, batches: tuple[Batch, ...]) -> Scores:
    """Score ``model`` on encoded samples."""
    model.eval()
    scores = [score_logits(model(**b.inputs, logits_to_keep=1).logits, b) for b in batches]
    model.train()
    return Scores.concatenate(scores)


@dataclass(frozen=True)
class Stage:
    """One cycle of training.

    Attributes:
        steps: Steps of AdamW, each on a new batch.
        learning_rate: The highest learning rate of the cycle.
        probabilities: Of questions about one digit, a sum, an extreme, a count; None: uniform.
            Counting is learned last.
    """

    steps: int
    learning_rate: float
    probabilities: tuple[float, float, float, float] | None


STAGES = (
    Stage(3000, 2e-3, None),
    Stage(1200, 1.2e-3, (0.15, 0.2, 0.25, 0.4)),
)


def train(model: Any, processor: LlavaProcessor, stage: Stage, seed: tuple[int, ...]) -> None:
    """Train with AdamW on a one-cycle schedule; deterministic for a seed and a machine."""
    data = TrainingData(processor, np.random.default_rng(seed), stage.probabilities)
    validation = encode_with_answers(processor, Digits(seed=0).samples(Split.VALIDATION))
    started = time.monotonic()
    answer_loss = torch.zeros(())

    def loss() -> torch.Tensor:
        nonlocal answer_loss
        inputs, last = data.batch(_BATCH)
        logits = model(**inputs, logits_to_keep=2).logits
        answer_loss = functional.cross_entropy(logits[:, 0], last[:, 0])
        return answer_loss + 0.1 * functional.cross_entropy(logits[:, 1], last[:, 1])

    def report(step: int) -> None:
        accuracy, seconds = evaluate(model, validation).hit.mean(), time.monotonic() - started
        figures = f"loss {answer_loss:.3f}  validation {accuracy:.3f}  {seconds:.0f} s"
        print(f"{step:5d}  {figures}", flush=True)

    schedule = Schedule(steps=stage.steps, learning_rate=stage.learning_rate)
    minimize(model, loss, report, schedule)


def main() -> None:
    """Train the two stages, and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--after", type=Path, help="start with stage 2, from this checkpoint")
    parser.add_argument(
        "--share", type=float, default=1.0, help="share of the steps that are taken"
    )
    arguments = parser.parse_args()
    set_seed(arguments.seed)
    processor = build_processor()
    first, second = (
        replace(stage, steps=round(arguments.share * stage.steps)) for stage in STAGES
    )
    if arguments.after is None:
        model = build_model(processor)
        train(model, processor, first, (arguments.seed,))
        model.save_pretrained(arguments.out.with_suffix(".stage1"))
    else:
        model = LlavaForConditionalGeneration.from_pretrained(arguments.after)
    train(model, processor, second, (arguments.seed, 1))
    publish(model, processor, arguments.out, arguments.seed, arguments.share)


def publish(model: Any, processor: LlavaProcessor, out: Path, seed: int, share: float) -> None:
    """Measure the model on the test split, and write the checkpoint with its card."""
    task = Digits(seed=0)
    batches = encode_with_answers(processor, task.samples(Split.TEST), batch_size=250)
    scores = evaluate(model, batches)
    groups = [group for batch in batches for group in batch.groups]
    low, high = bootstrap_interval(scores.hit, groups)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    train_scans, held_out_scans = load_scans()
    more = "" if out == OUT else f" --out {out.as_posix()}"
    more += "" if share == 1 else f" --share {share:g}"
    card = CARD.format(
        name=out.name,
        parameters=model.num_parameters(),
        train=len(train_scans.labels),
        held_out=len(held_out_scans.labels),
        seed=seed,
        more=more,
        accuracy=scores.hit.mean(),
        questions=len(scores.hit),
        low=low,
        high=high,
        groups=len(set(groups)),
        torch=torch.__version__,
        transformers=json.loads((out / "config.json").read_text())["transformers_version"],
        threads=torch.get_num_threads(),
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    print(f"test {scores.hit.mean():.4f} [{low:.4f}, {high:.4f}]")


if __name__ == "__main__":
    main()
