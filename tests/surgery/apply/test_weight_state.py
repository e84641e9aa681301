"""Ranking, compensation and projector together turn a policy into a network."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from effllava_optuna.policy import Policy, Ranking
from effllava_optuna.surgery import (
    FittedOutput,
    LoadedModel,
    WeightState,
    answer_logits,
    encode_images,
    narrowed,
    policy_network,
    projector_state,
    use_projector,
)

if TYPE_CHECKING:
    from effllava_optuna.tasks import Batch


def test_each_fit_runs_with_its_own_compensation_and_projector(
    tiny: LoadedModel, ranking: Ranking, batch: Batch
) -> None:
    policy = Policy.uniform(tiny.structure, ratio=0.5)
    component = tiny.structure.components[1].id
    compensations = [
        None,
        *({(component, 12): FittedOutput(torch.full((36, 12), value))} for value in (0.1, 0.2)),
    ]
    states = [
        None,
        *({n: w * factor for n, w in projector_state(tiny).items()} for factor in (0.5, 2.0)),
    ]
    weight_state = WeightState("digest", ranking, tuple(compensations), tuple(states))
    assert weight_state.folds == 2
    encoded = encode_images(tiny, batch.inputs)
    dense = answer_logits(tiny, encoded)
    logits = []
    for fit, (compensation, state) in enumerate(zip(compensations, states, strict=True)):
        with policy_network(tiny, weight_state, policy, fit) as network:
            logits.append(answer_logits(network, encoded))
        with use_projector(tiny, state), narrowed(tiny, policy, ranking, compensation) as small:
            assert torch.equal(logits[-1], answer_logits(small, encoded))
    assert all((a - b).abs().max() > 0.05 for a, b in pairwise(logits))
    assert torch.equal(answer_logits(tiny, encoded), dense)
