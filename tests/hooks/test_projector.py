from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load, save

from effllava_optuna import Policy, rank_units
from effllava_optuna.hooks import Lesson, Training, train_projector
from effllava_optuna.objectives import ask, folds_of
from effllava_optuna.surgery import Basis, projector_state
from effllava_optuna.tasks import Digits, Rule, Split

if TYPE_CHECKING:
    from effllava_optuna.surgery import Loaded


@pytest.fixture(scope="module")
def lessons(tiny: Loaded) -> list[Lesson]:
    found = []
    for fold, samples in enumerate(folds_of(Digits(proxy=32).samples(Split.PROXY), 2)):
        for inner, mine in enumerate(folds_of(samples, 2)):
            for asked in ask(tiny, mine):
                found.append(Lesson(asked.batch, asked.seen, fold * 2 + inner, fold + 1))
    return found


@pytest.fixture(scope="module")
def basis(tiny: Loaded) -> Basis:
    return Basis("b", rank_units(tiny), (None,) * 3, (None,) * 3)


def elites(tiny: Loaded) -> list[Policy]:
    return [Policy.uniform(tiny.anatomy, keep=keep) for keep in (0.5, 0.7)]


def test_training_leaves_the_model_as_it_was(
    tiny: Loaded, basis: Basis, lessons: list[Lesson]
) -> None:
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    update = train_projector(tiny, basis, elites(tiny), lessons, Training(steps=4, every=2))
    assert all(torch.equal(before[name], now) for name, now in tiny.model.state_dict().items())
    assert not any(weight.requires_grad for weight in tiny.model.parameters())
    assert all(weight.grad is None for weight in tiny.model.parameters())
    assert len(update.projectors) == 3
    assert [look.steps for look in update.held_out] == [0, 2, 4]


def test_the_same_lessons_teach_the_same(
    tiny: Loaded, basis: Basis, lessons: list[Lesson]
) -> None:
    training = Training(steps=4, every=2, learning_rate=1e-2)
    first = train_projector(tiny, basis, elites(tiny), lessons, training)
    second = train_projector(tiny, basis, elites(tiny), lessons, training)
    assert first.held_out == second.held_out
    for one, other in zip(first.projectors, second.projectors, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_training_fits_what_it_sees(tiny: Loaded, basis: Basis, lessons: list[Lesson]) -> None:
    # A random model learns nothing that generalises: hold out the very samples that are seen.
    twins = [replace(lessons[0], part=part, fit=part + 1) for part in (0, 1)]
    training = Training(steps=12, every=6, learning_rate=2e-2, kl=0.0)
    update = train_projector(tiny, basis, elites(tiny), twins, training)
    assert update.steps == 12
    assert update.after.loss < 0.9 * update.before.loss
    assert update.after.loss == pytest.approx(update.held_out[-1].loss, abs=1e-5)


def test_no_steps_is_a_legal_answer(tiny: Loaded, basis: Basis, lessons: list[Lesson]) -> None:
    update = train_projector(tiny, basis, elites(tiny), lessons, Training(steps=0))
    dense = projector_state(tiny)
    assert update.steps == 0
    assert update.before == update.after
    for state in update.projectors:
        assert all(torch.equal(dense[name], state[name]) for name in dense)


def test_without_pictures_the_projector_stays_and_can_be_stored(
    tiny: Loaded, basis: Basis
) -> None:
    samples = [replace(s, image=None) for s in Digits(proxy=8).samples(Split.PROXY)]
    lessons = [
        Lesson(asked.batch, asked.seen, part, part + 1)
        for part, mine in enumerate(folds_of(samples, 2))
        for asked in ask(tiny, mine)
    ]
    update = train_projector(tiny, basis, elites(tiny), lessons, Training(steps=4))
    assert update.steps == 0
    content = save({f"{i}/{n}": t for i, s in enumerate(update.projectors) for n, t in s.items()})
    dense = projector_state(tiny)
    assert all(torch.equal(dense[n[2:]], tensor) for n, tensor in load(content).items())


def test_a_step_count_that_hurts_held_out_samples_is_not_chosen(
    tiny: Loaded, basis: Basis, lessons: list[Lesson]
) -> None:
    training = Training(steps=6, every=3, learning_rate=5.0)
    update = train_projector(tiny, basis, elites(tiny), lessons, training)
    best = min(look.loss for look in update.held_out)
    assert next(look for look in update.held_out if look.steps == update.steps).loss == best


EQUAL = Rule("equal", lambda sample, text: float(text in sample.targets))


def reading(tiny: Loaded, *, pictured: bool) -> list[Lesson]:
    """Open questions to learn from, in two parts."""
    samples = [
        replace(sample, targets=("the sum of the digits",), answer=None, rule=EQUAL)
        if pictured
        else replace(sample, image=None, id=f"blind-{sample.id}")
        for sample in Digits(proxy=16).samples(Split.PROXY)
    ]
    return [
        Lesson(asked.batch, asked.seen, part, part + 1)
        for part, mine in enumerate(folds_of(samples, 2))
        for asked in ask(tiny, mine)
    ]


def test_answers_can_be_read_to_learn_from(tiny: Loaded, basis: Basis) -> None:
    first = reading(tiny, pictured=True)[0]
    twins = [replace(first, part=part, fit=part + 1) for part in (0, 1)]
    training = Training(steps=12, every=6, learning_rate=2e-2, kl=0.0)
    update = train_projector(tiny, basis, elites(tiny), twins, training)
    assert update.steps > 0
    assert update.after.loss < 0.97 * update.before.loss


def test_samples_without_pictures_do_not_teach_the_projector(
    tiny: Loaded, basis: Basis, lessons: list[Lesson]
) -> None:
    training = Training(steps=2, every=1)
    blind = reading(tiny, pictured=False)
    alone = train_projector(tiny, basis, elites(tiny), lessons, training)
    mixed = train_projector(tiny, basis, elites(tiny), [*lessons, *blind], training)
    assert mixed.held_out == alone.held_out
    dense = projector_state(tiny)
    none = train_projector(tiny, basis, elites(tiny), blind, training)
    assert (none.steps, len(none.projectors)) == (0, 3)
    assert 0 < none.before.loss == none.after.loss  # what the elites answer is told all the same
    assert none.held_out[0].loss > 0
    for state in none.projectors:
        assert all(torch.equal(weight, dense[name]) for name, weight in state.items())
