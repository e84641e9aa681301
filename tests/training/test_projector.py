"""Projector training: what it changes, what it chooses, and what it leaves unchanged."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load, save

from effllava_optuna import Policy, rank_units
from effllava_optuna.objectives import encode_samples, split_folds
from effllava_optuna.surgery import WeightState, projector_state
from effllava_optuna.tasks import Digits, GradingRule, Split
from effllava_optuna.training import ProjectorTrainingOptions, TrainingBatch, train_projector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Sample


@pytest.fixture(scope="module")
def batches(tiny: LoadedModel) -> list[TrainingBatch]:
    """Four parts of the proxy set, two in each of two folds."""
    return [
        TrainingBatch(encoded.batch, encoded.seen, part=fold * 2 + half, fit=fold + 1)
        for fold, samples in enumerate(split_folds(Digits(proxy=32).samples(Split.PROXY), 2))
        for half, half_samples in enumerate(split_folds(samples, 2))
        for encoded in encode_samples(tiny, half_samples)
    ]


def in_two_parts(tiny: LoadedModel, samples: Sequence[Sample]) -> list[TrainingBatch]:
    return [
        TrainingBatch(encoded.batch, encoded.seen, part=part, fit=part + 1)
        for part, part_samples in enumerate(split_folds(samples, 2))
        for encoded in encode_samples(tiny, part_samples)
    ]


@pytest.fixture(scope="module")
def weight_state(tiny: LoadedModel) -> WeightState:
    return WeightState("b", rank_units(tiny), (None,) * 3, (None,) * 3)


def elites(tiny: LoadedModel) -> list[Policy]:
    return [Policy.uniform(tiny.structure, ratio=ratio) for ratio in (0.5, 0.7)]


def test_training_leaves_the_model_unchanged(
    tiny: LoadedModel, weight_state: WeightState, batches: list[TrainingBatch]
) -> None:
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    shares: list[float] = []
    update = train_projector(
        tiny,
        weight_state,
        elites(tiny),
        batches,
        ProjectorTrainingOptions(steps=4, every=2),
        shares.append,
    )
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert max(later - earlier for earlier, later in pairwise(shares[:-1])) < 0.1
    assert all(torch.equal(before[name], value) for name, value in tiny.model.state_dict().items())
    assert not any(weight.requires_grad for weight in tiny.model.parameters())
    assert all(weight.grad is None for weight in tiny.model.parameters())
    assert len(update.projectors) == 3
    assert [score.steps for score in update.held_out] == [0, 2, 4]


def test_the_same_batches_give_the_same_projector(
    tiny: LoadedModel, weight_state: WeightState, batches: list[TrainingBatch]
) -> None:
    training = ProjectorTrainingOptions(steps=4, every=2, learning_rate=1e-2)
    first = train_projector(tiny, weight_state, elites(tiny), batches, training)
    second = train_projector(tiny, weight_state, elites(tiny), batches, training)
    assert first.held_out == second.held_out
    for one, other in zip(first.projectors, second.projectors, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_training_fits_its_samples(
    tiny: LoadedModel, weight_state: WeightState, batches: list[TrainingBatch]
) -> None:
    # A random model learns nothing that generalises: train and hold out the same samples.
    duplicates = [replace(batches[0], part=part, fit=part + 1) for part in (0, 1)]
    training = ProjectorTrainingOptions(steps=12, every=6, learning_rate=2e-2, kl=0.0)
    update = train_projector(tiny, weight_state, elites(tiny), duplicates, training)
    assert update.steps == 12
    assert update.after.loss < 0.9 * update.before.loss
    assert update.after.loss == pytest.approx(update.held_out[-1].loss, abs=1e-5)


def test_no_steps_is_a_valid_choice(
    tiny: LoadedModel, weight_state: WeightState, batches: list[TrainingBatch]
) -> None:
    update = train_projector(
        tiny, weight_state, elites(tiny), batches, ProjectorTrainingOptions(steps=0)
    )
    dense = projector_state(tiny)
    assert update.steps == 0
    assert update.before == update.after
    for state in update.projectors:
        assert all(torch.equal(dense[name], state[name]) for name in dense)


def test_without_pictures_the_projector_stays_and_can_be_stored(
    tiny: LoadedModel, weight_state: WeightState
) -> None:
    samples = [replace(s, image=None) for s in Digits(proxy=8).samples(Split.PROXY)]
    batches = in_two_parts(tiny, samples)
    update = train_projector(
        tiny, weight_state, elites(tiny), batches, ProjectorTrainingOptions(steps=4)
    )
    assert update.steps == 0
    content = save({f"{i}/{n}": t for i, s in enumerate(update.projectors) for n, t in s.items()})
    dense = projector_state(tiny)
    assert all(torch.equal(dense[n[2:]], tensor) for n, tensor in load(content).items())


def test_a_step_count_that_hurts_held_out_samples_is_not_chosen(
    tiny: LoadedModel, weight_state: WeightState, batches: list[TrainingBatch]
) -> None:
    training = ProjectorTrainingOptions(steps=6, every=3, learning_rate=5.0)
    update = train_projector(tiny, weight_state, elites(tiny), batches, training)
    losses = {score.steps: score.loss for score in update.held_out}
    assert losses[update.steps] == min(losses.values())


EQUAL = GradingRule("equal", lambda sample, text: float(text in sample.targets))


def open_questions(tiny: LoadedModel, *, with_pictures: bool) -> list[TrainingBatch]:
    samples = [
        replace(sample, targets=("the sum of the digits",), answer=None, rule=EQUAL)
        if with_pictures
        else replace(sample, image=None, id=f"blind-{sample.id}")
        for sample in Digits(proxy=16).samples(Split.PROXY)
    ]
    return in_two_parts(tiny, samples)


def test_open_questions_train_the_projector(tiny: LoadedModel, weight_state: WeightState) -> None:
    first = open_questions(tiny, with_pictures=True)[0]
    duplicates = [replace(first, part=part, fit=part + 1) for part in (0, 1)]
    training = ProjectorTrainingOptions(steps=12, every=6, learning_rate=2e-2, kl=0.0)
    update = train_projector(tiny, weight_state, elites(tiny), duplicates, training)
    assert update.steps > 0
    assert update.after.loss < 0.97 * update.before.loss


def test_samples_without_pictures_do_not_train_the_projector(
    tiny: LoadedModel, weight_state: WeightState, batches: list[TrainingBatch]
) -> None:
    training = ProjectorTrainingOptions(steps=2, every=1)
    blind = open_questions(tiny, with_pictures=False)
    alone = train_projector(tiny, weight_state, elites(tiny), batches, training)
    mixed = train_projector(tiny, weight_state, elites(tiny), [*batches, *blind], training)
    assert mixed.held_out == alone.held_out
    dense = projector_state(tiny)
    none = train_projector(tiny, weight_state, elites(tiny), blind, training)
    assert (none.steps, len(none.projectors)) == (0, 3)
    assert 0 < none.before.loss == none.after.loss  # scored without a step
    assert none.held_out[0].loss > 0
    for state in none.projectors:
        assert all(torch.equal(weight, dense[name]) for name, weight in state.items())
