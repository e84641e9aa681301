"""Masking zeroes the units that rank last, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from effllava_optuna.policy import Policy
from effllava_optuna.surgery import LoadedModel, masked
from tests.surgery.apply.networks import unchanged

if TYPE_CHECKING:
    from effllava_optuna.policy import Ranking


def test_the_mask_zeroes_the_units_that_rank_last(tiny: LoadedModel, ranking: Ranking) -> None:
    component = tiny.structure.components[1]
    policy = Policy.of(tiny.structure, {component.id: 20})
    inputs: list[torch.Tensor] = []
    down = tiny.handles[1].linear("down_proj")
    with unchanged(tiny), masked(tiny, policy, ranking):
        hook = down.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
        down(torch.ones(1, 24))
        hook.remove()
    zeros = torch.nonzero(inputs[0][0] == 0)[:, 0].tolist()
    assert zeros == sorted(ranking.units[component.id][20:])
