"""The samples of a split on which several networks are scored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.objectives.accuracy import divide_for_scoring, encode_batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from effllava_optuna.objectives.accuracy import EncodedBatch
    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Sample

# Of main memory, for each split. A picture with its features takes 5 MB (CLIP-L at 336 pixels,
# float32) to 100 MB (13 tiles of 448 pixels), and a split may have thousands.
_KEPT_BYTES = 4e9


class ScoredSplit:
    """Batches of a split in main memory, for networks that are scored one after another.

    A batch is encoded when it is read, and kept as long as there is memory; the others are
    encoded again for each network. Open questions are to be generated.

    Args:
        loaded: The model.
        samples: Samples of any kind.
        kept_bytes: The most bytes that the batches kept may take; 0 if they are read once.

    Raises:
        TaskError: There are no samples.
    """

    def __init__(
        self, loaded: LoadedModel, samples: Sequence[Sample], kept_bytes: float = _KEPT_BYTES
    ) -> None:
        self._loaded, self._left = loaded, kept_bytes
        self._parts = divide_for_scoring(loaded.processor, samples, generate=True)
        self._kept: dict[int, EncodedBatch] = {}

    def __iter__(self) -> Iterator[EncodedBatch]:
        """Yield the batches, in the same order each time.

        Raises:
            TaskError: See `encode_samples`.
        """
        for number, members in enumerate(self._parts):
            encoded = self._kept.get(number)
            if encoded is None:
                encoded = encode_batch(self._loaded, members, generate=True, device="cpu")
                if encoded.nbytes <= self._left:
                    self._left -= encoded.nbytes
                    self._kept[number] = encoded
            yield encoded

    @property
    def samples(self) -> list[Sample]:
        """Return the samples, in the order of the batches."""
        return [sample for members in self._parts for sample in members]

    @property
    def groups(self) -> list[str]:
        """Return the group of each sample, in the order of the batches."""
        return [sample.group for sample in self.samples]
