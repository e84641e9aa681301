"""Score several questions about each picture from one prefill of the prompt that they share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from effllava_optuna.surgery import encode_images, prefill
from effllava_optuna.tasks import Digits, Scores, Split, encode_with_answers
from effllava_optuna.tasks.data.digits import draw_question as ask_about
from effllava_optuna.tasks.data.digits import load_scans
from effllava_optuna.tasks.scoring.scores import score_on_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from effllava_optuna.surgery import EncodedInputs, LoadedModel
    from effllava_optuna.tasks import Batch, Sample
    from effllava_optuna.tasks.data.digits import DigitScans

_PICTURES = 52  # of a batch


@dataclass(frozen=True)
class PrefixBatch:
    """Pictures with several questions each; the prompt before the question is prefilled once.

    Attributes:
        pictures: The part of the prompt that the questions of a picture share.
        tails: Shape ``(questions, tokens)``: the remaining tokens of each prompt, padded on the
            right.
        ends: Shape ``(questions,)``: number of tokens of each tail.
        shown: Shape ``(questions,)``: index of the picture of each question.
        batch: The questions, for scoring.
    """

    pictures: EncodedInputs
    tails: torch.Tensor
    ends: torch.Tensor
    shown: torch.Tensor
    batch: Batch

    @torch.inference_mode()
    def scores(self, network: LoadedModel) -> Scores:
        """Score a network on the questions."""
        _, cache = prefill(network, self.pictures)
        cache.batch_select_indices(self.shown)
        output = network.model(
            input_ids=self.tails, past_key_values=cache, logits_to_keep=self.tails.shape[1]
        )
        rows = torch.arange(len(self.tails))
        return Scores.from_tensors(
            [score_on_device(output.logits[rows, self.ends - 1][:, None], self.batch)]
        )


def prefix_batches(loaded: LoadedModel, samples: Sequence[Sample], each: int) -> list[PrefixBatch]:
    """Create batches of samples; the ``each`` samples of a picture follow one another."""
    size = _PICTURES * each
    return [
        _prefix_batch(loaded, samples[start : start + size], each)
        for start in range(0, len(samples), size)
    ]


def _prefix_batch(loaded: LoadedModel, samples: Sequence[Sample], each: int) -> PrefixBatch:
    index_of = {sample.id: index for index, sample in enumerate(samples)}
    # The samples of a batch are sorted by length.
    (batch,) = encode_with_answers(loaded.processor, samples, batch_size=len(samples))
    indices = torch.tensor([index_of[sample.id] for sample in batch.samples])
    real = batch.inputs["attention_mask"].bool()
    rows = [row[mask] for row, mask in zip(batch.inputs["input_ids"], real, strict=True)]
    shared = 0
    while all(len(row) > shared + 1 and row[shared] == rows[0][shared] for row in rows):
        shared += 1
    tails = [row[shared:] for row in rows]
    ends = torch.tensor([len(tail) for tail in tails])
    padded = torch.zeros((len(tails), int(ends.max())), dtype=torch.long)
    for line, tail in zip(padded, tails, strict=True):
        line[: len(tail)] = tail
    first = indices.argsort()[::each]  # rows of one question about each picture
    prefix = torch.stack([rows[row][:shared] for row in first.tolist()])
    inputs = {
        "input_ids": prefix,
        "attention_mask": torch.ones_like(prefix),
        "pixel_values": batch.inputs["pixel_values"][first],
    }
    return PrefixBatch(
        pictures=encode_images(loaded, inputs),
        tails=padded,
        ends=ends,
        shown=indices // each,
        batch=batch,
    )


def questions_of(count: int, each: int = 4) -> list[Sample]:
    """Draw ``each`` questions about every picture that is not in the proxy set of seed 0."""
    task = Digits(seed=0, validation=count * 25 // 65 // each, test=count * 40 // 65 // each)
    _, held_out = load_scans()
    rng = np.random.default_rng(20)
    samples = []
    for sample in (*task.samples(Split.VALIDATION), *task.samples(Split.TEST)):
        digits = digits_of(sample, held_out)
        for number in range(each):
            question, answer = ask_about(digits, rng)
            sample_id = f"{sample.id}-{number}"
            samples.append(replace(sample, id=sample_id, question=question, answer=answer))
    return samples


def digits_of(sample: Sample, pool: DigitScans) -> NDArray[np.int64]:
    """Return the four digits that a picture shows, by comparing its tiles with the scans."""
    pixels = np.asarray(sample.load_image())[:, :, 0]
    tiles = pixels.reshape(2, 16, 2, 16).transpose(0, 2, 1, 3).reshape(4, 16, 16)[:, ::2, ::2]
    scanned = (pool.pixels * 255).round().astype(np.uint8)
    return np.array([pool.labels[(scanned == tile).all((1, 2)).argmax()] for tile in tiles])
