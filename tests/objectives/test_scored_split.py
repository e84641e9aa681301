"""Splits that are larger than memory give the same scores as those that are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from torch import nn

from effllava_optuna import Policy, rank_units
from effllava_optuna.errors import TaskError
from effllava_optuna.objectives import ScoredSplit, encode_samples, samples_of, score_policy
from effllava_optuna.surgery import WeightState
from effllava_optuna.tasks import Digits, Split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Sample

READINGS = 3


@pytest.fixture(scope="module")
def samples() -> tuple[Sample, ...]:
    return Digits(test=160).samples(Split.TEST)


@pytest.fixture
def encoded_pictures(tiny: LoadedModel) -> Iterator[list[int]]:
    """Collect how many pictures the vision tower reads at once."""
    counts: list[int] = []
    patches = [m for m in tiny.model.model.vision_tower.modules() if isinstance(m, nn.Conv2d)]
    hook = patches[0].register_forward_hook(lambda _, read, __: counts.append(len(read[0])))
    yield counts
    hook.remove()


def test_all_batches_of_a_split_within_the_limit_are_encoded_once(
    tiny: LoadedModel, samples: tuple[Sample, ...], encoded_pictures: list[int]
) -> None:
    split = ScoredSplit(tiny, samples)
    assert not encoded_pictures
    first = [*split]
    assert sum(encoded_pictures) == len(samples)
    for _ in range(READINGS):
        assert all(again is before for again, before in zip(split, first, strict=True))
    assert sum(encoded_pictures) == len(samples)


@pytest.mark.parametrize("kept", [0, 1])
def test_batches_beyond_the_limit_are_encoded_for_each_network(
    tiny: LoadedModel, samples: tuple[Sample, ...], encoded_pictures: list[int], kept: int
) -> None:
    whole = encode_samples(tiny, samples, generate=True, device="cpu")
    sizes = [len(encoded.batch) for encoded in whole]
    assert len(sizes) == 3
    split = ScoredSplit(tiny, samples, kept_bytes=kept * whole[0].nbytes)
    encoded_pictures.clear()
    read = [[*split] for _ in range(READINGS)]
    assert encoded_pictures == sizes + sizes[kept:] * (READINGS - 1)
    for batches in read:
        assert samples_of(batches) == samples_of(whole) == split.samples
    assert split.groups == [sample.group for sample in split.samples]


def test_the_scores_do_not_depend_on_what_is_kept(
    tiny: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    state = WeightState("tests", rank_units(tiny), (None,), (None,))
    policy = Policy.uniform(tiny.structure, ratio=0.5)
    expected = score_policy(
        tiny, state, policy, encode_samples(tiny, samples, generate=True, device="cpu")
    )
    for kept_bytes in (0, 1e9):
        split = ScoredSplit(tiny, samples, kept_bytes)
        for _ in range(2):
            found = score_policy(tiny, state, policy, split)
            np.testing.assert_array_equal(found.hit, expected.hit)
            np.testing.assert_array_equal(found.log_probability, expected.log_probability)


def test_the_size_of_a_batch_counts_what_it_holds_once(
    tiny: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    (encoded,) = encode_samples(tiny, samples[:8], device="cpu")
    vision = encoded.seen.vision
    assert vision is not None
    pictures = encoded.batch.inputs["pixel_values"]
    text = sum(v.nbytes for n, v in encoded.batch.inputs.items() if n != "pixel_values")
    assert encoded.nbytes == pictures.nbytes + vision.features.nbytes + text


def test_an_empty_split_is_refused_at_once(tiny: LoadedModel) -> None:
    with pytest.raises(TaskError, match="There are no samples to encode"):
        ScoredSplit(tiny, [])
