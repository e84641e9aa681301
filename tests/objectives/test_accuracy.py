from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from effllava_optuna import Policy, rank_units, sliced
from effllava_optuna.errors import LeakError
from effllava_optuna.objectives import answers, ask, ask_crossed, folds_of, units_of
from effllava_optuna.surgery import WHOLE, Basis, projector_state
from effllava_optuna.tasks import Digits, Split, encode, score

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
