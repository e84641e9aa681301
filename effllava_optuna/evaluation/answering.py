"""Answer the samples of a benchmark with a model, and grade the answers by its rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from effllava_optuna.objectives import EncodedBatch, options_compared, score_batch
from effllava_optuna.surgery import encode_images, generate_text
from effllava_optuna.tasks import encode_prompts, encode_with_answers, grade_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Sample

_MAX_BATCH_SIZE = 64
_MEMORY_SHARE = 0.4  # of the free memory that a batch may use, by estimate


@dataclass(frozen=True, slots=True)
class GradedAnswer:
    """The answer to one sample, and its grade.

    Attributes:
        id: Id of the sample.
        text: The generated text; empty if the options were compared.
        score: In [0, 1]; None if no right answer is known.
    """

    id: str
    text: str
    score: float | None


def answer_samples(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    save: Callable[[Sequence[GradedAnswer]], None],
    *,
    letters: bool = False,
    batch_size: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Answer ``samples`` greedily, batch by batch.

    Args:
        loaded: The model.
        samples: The questions, in any order.
        save: Called with the answers of each batch, so that a stop loses at most one batch.
        letters: Whether to compare the options of closed questions in one forward pass; otherwise
            the model generates a letter, which the rule of the sample reads.
        batch_size: Samples per batch; None: as many as should fit into memory. It is halved if a
            GPU runs out of memory.
        progress: Called with the number of answered samples after each batch.
    """

    def kind(sample: Sample) -> tuple[bool, bool]:
        return sample.image is None, options_compared(sample, letters=letters)

    # Batches have questions of one kind; similar lengths need little padding.
    waiting = sorted(samples, key=lambda s: (*kind(s), -len(s.question), s.id))
    size = batch_size or (fitting_batch_size(loaded, waiting) if waiting else 1)
    while waiting:
        without_image, compared = kind(waiting[0])
        batch = [s for s in waiting[:size] if kind(s) == (without_image, compared)]
        try:
            answers = _answer_batch(loaded, batch, generate=not compared)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            torch.cuda.empty_cache()
            size = len(batch) // 2
            continue
        save(answers)
        waiting = waiting[len(batch) :]
        progress(len(samples) - len(waiting))


@torch.no_grad()
def _answer_batch(
    loaded: LoadedModel, samples: Sequence[Sample], *, generate: bool
) -> list[GradedAnswer]:
    encode = encode_prompts if generate else encode_with_answers
    answers = []
    for batch in encode(
        loaded.processor, samples, batch_size=len(samples), context=loaded.context
    ):
        encoded = encode_images(loaded, batch.inputs, batch.positions)
        if not generate:
            scores = score_batch(loaded, EncodedBatch(batch.to(loaded.device), encoded))
            answers += [
                GradedAnswer(sample_id, "", float(hit))
                for sample_id, hit in zip(batch.ids, scores.hit, strict=True)
            ]
            continue
        texts = generate_text(loaded, encoded, batch.new_tokens)
        for sample, text in zip(batch.samples, texts, strict=True):
            score = grade_answer(sample, text) if sample.targets else None
            answers.append(GradedAnswer(sample.id, text, score))
    return answers


def fitting_batch_size(loaded: LoadedModel, samples: Sequence[Sample]) -> int:
    """Estimate how many of ``samples`` fit into memory at once, from 1 to 64.

    The estimate counts the key/value cache of the longest prompt with its answer, and the largest
    activations.
    """
    longest = max(samples, key=lambda sample: (sample.image is not None, len(sample.question)))
    (batch,) = encode_prompts(loaded.processor, [longest])
    config = loaded.model.config.get_text_config()
    hidden_size = int(config.hidden_size)
    mlp_width = int(getattr(config, "intermediate_size", None) or 4 * hidden_size)
    tokens = batch.inputs["input_ids"].shape[1] + batch.new_tokens
    numbers_per_token = (
        2 * int(config.num_hidden_layers) * hidden_size + 8 * hidden_size + 3 * mlp_width
    )
    bytes_per_sample = tokens * numbers_per_token * loaded.model.dtype.itemsize
    if loaded.device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(loaded.device)
    else:
        import psutil  # here, so that a GPU machine with torch and transformers alone needs it not

        free_bytes = psutil.virtual_memory().available
    return int(min(_MAX_BATCH_SIZE, max(1, _MEMORY_SHARE * free_bytes // bytes_per_sample)))
