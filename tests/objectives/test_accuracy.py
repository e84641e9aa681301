from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from effllava_optuna import Policy, rank_units, sliced
from effllava_optuna.errors import LeakError
from effllava_optuna.objectives import answers, ask, ask_crossed, folds_of, samples_of, units_of
from effllava_optuna.surgery import (
    WHOLE,
    Basis,
    Fitted,
    answer,
    arranged,
    projector,
    projector_state,
)
from effllava_optuna.tasks import Digits, Split, encode, score
from tests.waits import Waits

if TYPE_CHECKING:
    from effllava_optuna.surgery import Loaded


def test_folds_keep_units_whole() -> None:
    samples = Digits().samples(Split.PROXY)
    folds = folds_of(samples, 2)
    assert [len(fold) for fold in folds] == [32, 32]
    assert not {s.unit for s in folds[0]} & {s.unit for s in folds[1]}


def test_each_sample_is_answered_by_the_fit_that_did_not_see_it(tiny: Loaded) -> None:
    order = rank_units(tiny)
    dense = projector_state(tiny)
    states = [dense] + [
        {name: weight * factor for name, weight in dense.items()} for factor in (0.3, 2.0)
    ]
    basis = Basis("b", order, (None,) * 3, tuple(states))
    policy = Policy.uniform(tiny.anatomy, keep=0.5)
    samples = Digits(proxy=16).samples(Split.PROXY)
    asked = ask_crossed(tiny, samples, 2)
    assert [item.fit for item in asked] == [1, 2]
    found = answers(tiny, basis, policy, asked)
    for fold, mine in enumerate(folds_of(samples, 2)):
        small = sliced(tiny, policy, order)
        small.model.model.multi_modal_projector.load_state_dict(states[fold + 1])
        (batch,) = encode(tiny.processor, mine)
        with torch.no_grad():
            logits = small.model(**batch.inputs, logits_to_keep=1).logits
        expected = score(logits, batch).log_probability
        np.testing.assert_allclose(
            found.log_probability[fold * 8 : fold * 8 + 8], expected, atol=1e-5
        )
    assert len(units_of(asked)) == 16
    assert all(torch.equal(dense[name], now) for name, now in projector_state(tiny).items())


def test_scores_for_use_take_the_fit_for_use(tiny: Loaded) -> None:
    samples = Digits(test=8).samples(Split.TEST)
    assert {item.fit for item in ask(tiny, samples)} == {WHOLE}


@pytest.mark.parametrize("split", [Split.VALIDATION, Split.TEST])
def test_the_search_refuses_samples_that_it_must_not_see(tiny: Loaded, split: Split) -> None:
    samples = Digits(validation=8, test=8).samples(split)
    with pytest.raises(LeakError, match=f"The search was given {split} sample"):
        ask_crossed(tiny, samples, 2)


def test_the_host_waits_for_a_batch_only_where_transformers_does(tiny: Loaded) -> None:
    order = rank_units(tiny)
    half = {
        (site.id, count): Fitted(torch.zeros(36, handle.columns * count))
        for site, handle in zip(tiny.anatomy.sites, tiny.handles, strict=True)
        for count in (site.width // 2,)
    }
    basis = Basis("b", order, (half,) * 3, (projector_state(tiny),) * 3)
    policy = Policy.uniform(tiny.anatomy, keep=0.5)
    samples = Digits(proxy=16).samples(Split.PROXY)
    for size in (16, 1):  # one to a batch, nothing is padded
        asked = [
            item
            for fold, mine in enumerate(folds_of(samples, 2))
            for item in ask(tiny, mine, batch_size=size, fit=fold + 1)
        ]
        with arranged(tiny, order) as ready, Waits() as waits:
            answers(ready, basis, policy, asked)
        assert {library for library, _ in waits.found} == {"transformers"}
        # It compares the numbers of image tokens and features, for a message, too; and looks
        # whether anything is padded.
        where = {"modeling_llava.py", "import_utils.py", "masking_utils.py"}
        assert {file for _, file in waits.found} <= where
        assert waits.found.total() <= 4 * len(asked)


def test_answering_leaves_nothing_that_cannot_be_trained(tiny: Loaded) -> None:
    basis = Basis("b", rank_units(tiny), (None,) * 3, (projector_state(tiny),) * 3)
    policy = Policy.uniform(tiny.anatomy, keep=0.5)
    asked = ask_crossed(tiny, Digits(proxy=8).samples(Split.PROXY), 2)
    answers(tiny, basis, policy, asked)
    weights = [*tiny.model.parameters(), *tiny.model.buffers()]
    assert not any(weight.is_inference() for weight in weights)
    learner = projector(tiny.model).requires_grad_(requires_grad=True)
    try:
        torch.autograd.backward(answer(tiny, asked[0].seen).float().pow(2).sum())
        assert all(weight.grad is not None for weight in learner.parameters())
    finally:
        learner.requires_grad_(requires_grad=False)
        learner.zero_grad(set_to_none=True)


def test_samples_of_like_length_share_a_batch_and_score_as_they_do_alone(tiny: Loaded) -> None:
    samples = Digits(proxy=16).samples(Split.PROXY)
    basis = Basis("b", rank_units(tiny), (None,), (None,))
    policy = Policy.uniform(tiny.anatomy, keep=0.5)
    asked = {size: ask(tiny, samples, batch_size=size) for size in (1, 5, 16)}
    found = {
        size: {
            sample.id: value
            for sample, value in zip(
                samples_of(mine),
                answers(tiny, basis, policy, mine).log_probability,
                strict=True,
            )
        }
        for size, mine in asked.items()
    }
    for size in (5, 16):
        assert found[size] == pytest.approx(found[1], abs=1e-4)
    padding = {
        size: sum(int((item.batch.inputs["attention_mask"] == 0).sum()) for item in mine)
        for size, mine in asked.items()
    }
    assert padding[1] == 0 < padding[5] < padding[16]
