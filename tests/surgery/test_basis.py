"""Order, refit and projector together make a policy a network."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from effllava_optuna.policy import Order, Policy
from effllava_optuna.surgery import (
    Basis,
    Fitted,
    Loaded,
    answer,
    look,
    narrowed,
    projecting,
    projector_state,
    running,
)

if TYPE_CHECKING:
    from effllava_optuna.tasks import Batch


def test_each_fit_runs_with_its_own_refit_and_projector(
    tiny: Loaded, order: Order, batch: Batch
) -> None:
    policy = Policy.uniform(tiny.anatomy, keep=0.5)
    site = tiny.anatomy.sites[1].id
    refits = [None, *({(site, 12): Fitted(torch.full((36, 12), value))} for value in (0.1, 0.2))]
    states = [
        None,
        *({n: w * share for n, w in projector_state(tiny).items()} for share in (0.5, 2.0)),
    ]
    basis = Basis("digest", order, tuple(refits), tuple(states))
    assert basis.folds == 2
    seen = look(tiny, batch.inputs)
    dense = answer(tiny, seen)
    found = []
    for fit, (refit, state) in enumerate(zip(refits, states, strict=True)):
        with running(tiny, basis, policy, fit) as network:
            found.append(answer(network, seen))
        with projecting(tiny, state), narrowed(tiny, policy, order, refit) as small:
            assert torch.equal(found[-1], answer(small, seen))
    assert all((a - b).abs().max() > 0.05 for a, b in pairwise(found))
    assert torch.equal(answer(tiny, seen), dense)
