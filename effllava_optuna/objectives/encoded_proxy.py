"""The proxy set, encoded once for calibration, search and projector training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from effllava_optuna.errors import TaskError
from effllava_optuna.objectives.accuracy import EncodedBatch, encode_samples, split_folds
from effllava_optuna.surgery import answer_logits, require_finite_logits, samples_per_backward
from effllava_optuna.tasks import count_outputs, dense_outputs, require_proxy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Sample

_OUTPUT_GB = 4.0  # of the dense model's log-probabilities, in float32 on the device of the model


@dataclass(frozen=True)
class EncodedProxy:
    """The samples that calibration, search and projector training may use, encoded once.

    The samples are split into folds, whole groups at a time. What is fitted on the proxy is
    fitted once on all of it, and once without each fold; a batch of fold ``f`` is scored by fit
    ``f + 1``, which has not seen it (cross-fitting).

    Attributes:
        samples: The proxy set.
        folds: For each fold its batches, open questions with a right answer to read.
        scored: What the search scores: the same, perhaps with the outputs of the dense model; or
            open questions to be answered by generation.
        graded: What the report scores: open questions are always answered by generation.
    """

    samples: tuple[Sample, ...]
    folds: tuple[tuple[EncodedBatch, ...], ...]
    scored: tuple[EncodedBatch, ...]
    graded: tuple[EncodedBatch, ...]

    @staticmethod
    def of(
        loaded: LoadedModel, samples: Sequence[Sample], folds: int, *, generate: bool
    ) -> EncodedProxy:
        """Encode the proxy set.

        Args:
            loaded: The model as it was loaded.
            samples: The proxy set.
            folds: Number of folds.
            generate: Whether the search scores open questions by generated answers.

        Raises:
            LeakError: A sample is not from the proxy split.
            TaskError: A sample cannot be encoded.
        """
        proxy = require_proxy(tuple(samples), "Calibration")
        parts = split_folds(proxy, folds)
        read = tuple(encode_samples(loaded, part, fit=fold + 1) for fold, part in enumerate(parts))
        likelihood = tuple(encoded for fold in read for encoded in fold)
        if not any(sample.is_open_ended for sample in proxy):
            return EncodedProxy(proxy, read, likelihood, likelihood)
        generated = tuple(
            encoded
            for fold, part in enumerate(parts)
            for encoded in encode_samples(loaded, part, fit=fold + 1, generate=True)
        )
        return EncodedProxy(proxy, read, generated if generate else likelihood, generated)

    @property
    def likelihood(self) -> tuple[EncodedBatch, ...]:
        """Return the batches of all folds."""
        return tuple(encoded for fold in self.folds for encoded in fold)

    @torch.inference_mode()
    def with_dense_outputs(self, loaded: LoadedModel) -> EncodedProxy:
        """Return the proxy set, scored by agreement with the dense model.

        The log-probabilities of the dense model are computed once, where its answers are
        predicted, and kept in memory: 4 bytes for each token of an answer and each token of the
        vocabulary, 4 GB at most.

        Args:
            loaded: The dense model, whose answers the samples have.

        Raises:
            TaskError: They need more memory.
        """
        vocabulary = loaded.model.get_output_embeddings().weight.shape[0]
        count = sum(count_outputs(encoded.batch, vocabulary) for encoded in self.likelihood)
        if 4 * count > _OUTPUT_GB * 1e9:
            raise TaskError(
                f"The outputs of the dense model on {len(self.samples)} proxy samples take "
                f"{4 * count / 1e9:.1f} GB, {_OUTPUT_GB:g} GB at most.",
                hint="Reduce task.new_tokens or task.proxy.",
            )
        with loaded.lock:
            scored = tuple(
                replace(
                    encoded,
                    dense=dense_outputs(answer_logits(loaded, encoded.seen), encoded.batch),
                )
                for encoded in self.likelihood
            )
        graded = scored if self.graded is self.scored else self.graded
        return replace(self, scored=scored, graded=graded)

    @torch.inference_mode()
    def require_finite_answers(self, loaded: LoadedModel) -> None:
        """Check that the dense model answers every sample with finite logits.

        Raises:
            ModelError: It does not; the message names a sample.
        """
        with loaded.lock:
            for encoded in self.likelihood:
                logits = answer_logits(loaded, encoded.seen)
                places = [f"sample {sample_id!r}" for sample_id in encoded.batch.ids]
                require_finite_logits(loaded, logits, places)

    def parts(self, loaded: LoadedModel, count: int) -> list[tuple[int, EncodedBatch]]:
        """Divide every fold into ``count`` parts, whole groups at a time.

        Args:
            loaded: The model, for batches whose rows cannot be selected.
            count: Parts of each fold.

        Returns:
            Pairs of part and batch, which a backward pass can read; parts are numbered through
            all folds. Batches have the fit that scores them.
        """
        return [
            (fold * count + part, encoded)
            for fold, batches in enumerate(self.folds)
            for part, samples in enumerate(
                split_folds([s for encoded in batches for s in encoded.batch.samples], count)
            )
            for encoded in _select(loaded, batches, samples, fit=fold + 1)
        ]


def _select(
    loaded: LoadedModel, batches: Sequence[EncodedBatch], samples: Sequence[Sample], *, fit: int
) -> list[EncodedBatch]:
    """Select ``samples`` from encoded batches; encode again only where rows cannot be selected."""
    selected: list[EncodedBatch] = []
    for encoded in batches:
        wanted = [sample for sample in samples if sample in encoded.batch.samples]
        most = samples_per_backward(loaded, encoded.batch.inputs["input_ids"].shape[1])
        for first in range(0, len(wanted), most):
            some = wanted[first : first + most]
            rows = encoded.rows(some)
            selected += [rows] if rows is not None else encode_samples(loaded, some, fit=fit)
    return [replace(encoded, fit=fit) for encoded in selected]
