"""Let a model write down its answers, for a benchmark's own rules to grade.

What is answered is handed over batch by batch, so that whoever keeps it can go on after a stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from effllava_optuna.objectives.accuracy import Asked, scored
from effllava_optuna.surgery import look, write
from effllava_optuna.tasks import encode, grade, prompts

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from effllava_optuna.surgery import Loaded
    from effllava_optuna.tasks import Sample

LIKELIEST = "likeliest option"  # the name of the rule that compares options in one forward pass
_MOST = 64  # samples a batch
_SHARE = 0.4  # of the free memory that a batch may take, by estimate


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, as it was graded.

    Attributes:
        id: Of the sample.
        text: What was written; nothing where options were compared.
        score: In [0, 1]; None where no right answer is known.
    """

    id: str
    text: str
    score: float | None


def compared(sample: Sample, *, letters: bool = False) -> bool:
    """Tell whether the options of a sample are compared, instead of an answer being written."""
    return not sample.open and (letters or sample.rule is None)


def examine(
    loaded: Loaded,
    samples: Sequence[Sample],
    keep: Callable[[Sequence[Answered]], None],
    *,
    letters: bool = False,
    batch_size: int | None = None,
    done: Collection[str] = (),
    progress: Callable[[float], None] | None = None,
) -> None:
    """Let ``loaded`` answer ``samples``, greedily.

    Args:
        loaded: The model.
        samples: Questions.
        keep: Is given the answers of each batch.
        letters: Compare the options of closed questions in one forward pass; if not, a letter is
            written, and read by the sample's rule.
        batch_size: Samples a batch; None: what should fit into memory. It is halved where a GPU
            runs out of memory.
        done: Ids of samples that are answered already.
        progress: Is told the share that is done.
    """
    known = set(done)
    waiting = [sample for sample in samples if sample.id not in known]
    # Questions of one kind and of similar length: nothing but padding would be computed else.
    waiting.sort(
        key=lambda s: (s.image is None, compared(s, letters=letters), -len(s.question), s.id)
    )
    size = batch_size or (fitting(loaded, waiting) if waiting else 1)
    finished = len(samples) - len(waiting)
    while waiting:
        first = waiting[0]
        kind = (first.image is None, compared(first, letters=letters))
        some = [
            sample
            for sample in waiting[:size]
            if (sample.image is None, compared(sample, letters=letters)) == kind
        ]
        try:
            found = _answer(loaded, some, written=not kind[1])
        except torch.OutOfMemoryError:
            if len(some) == 1:
                raise
            torch.cuda.empty_cache()
            size = len(some) // 2
            continue
        keep(found)
        waiting = waiting[len(some) :]
        finished += len(some)
        if progress is not None:
            progress(finished / len(samples))


@torch.no_grad()
def _answer(loaded: Loaded, samples: Sequence[Sample], *, written: bool) -> list[Answered]:
    make = prompts if written else encode
    found = []
    for batch in make(loaded.processor, samples, batch_size=len(samples)):
        seen = look(loaded, batch.inputs, batch.positions)
        if not written:
            scores = scored(loaded, Asked(batch.to(loaded.device), seen))
            found += [
                Answered(name, "", float(hit))
                for name, hit in zip(batch.ids, scores.hit, strict=True)
            ]
            continue
        texts = write(loaded, seen, batch.new_tokens)
        for sample, text in zip(batch.samples, texts, strict=True):
            score = grade(sample, text) if sample.targets else None
            found.append(Answered(sample.id, text, score))
    return found


def fitting(loaded: Loaded, samples: Sequence[Sample]) -> int:
    """Estimate how many of ``samples`` fit into memory at once, from 1 to 64.

    Counted are a cache of the longest prompt with its answer, and the largest activations.
    """
    longest = max(samples, key=lambda sample: (sample.image is not None, len(sample.question)))
    (batch,) = prompts(loaded.processor, [longest])
    config = loaded.model.config.get_text_config()
    hidden = int(config.hidden_size)
    wide = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    tokens = batch.inputs["input_ids"].shape[1] + batch.new_tokens
    a_token = 2 * int(config.num_hidden_layers) * hidden + 8 * hidden + 3 * wide
    a_sample = tokens * a_token * loaded.model.dtype.itemsize
    if loaded.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(loaded.device)
    else:
        import psutil  # not where nothing but torch and transformers is installed

        free = psutil.virtual_memory().available
    return int(min(_MOST, max(1, _SHARE * free // a_sample)))
