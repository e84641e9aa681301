from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from effllava_optuna import Policy, rank_units, sliced
from effllava_optuna.errors import ModelError
from effllava_optuna.objectives import risk, risk_table
from effllava_optuna.surgery import FittedOutput

if TYPE_CHECKING:
    from effllava_optuna.policy import ComponentId
    from effllava_optuna.surgery import LoadedModel


def every_width(loaded: LoadedModel) -> dict[ComponentId, range]:
    return {
        component.id: range(1, component.width + 1) for component in loaded.structure.components
    }


def test_omega_is_the_weighted_log_norm_of_the_sliced_model(tiny: LoadedModel) -> None:
    ranking = rank_units(tiny)
    table = risk_table(tiny, ranking, every_width(tiny))
    policy = Policy.uniform(tiny.structure, ratio={"attn": 0.4, "mlp": 0.6})
    small = sliced(tiny, policy, ranking)
    pairs = [
        (before.linear(name).weight, after.linear(name).weight)
        for before, after in zip(tiny.handles, small.handles, strict=True)
        for name in (*before.inputs, before.output)
    ]
    total = sum(dense.numel() for dense, _ in pairs)
    expected = sum(
        dense.numel() / total * math.log(float(kept.double().norm() / dense.double().norm()))
        for dense, kept in pairs
    )
    assert risk(policy, tiny, table) == pytest.approx(expected, rel=1e-9)
    assert expected < -0.1


def test_the_dense_model_has_none_and_every_unit_adds(tiny: LoadedModel) -> None:
    table = risk_table(tiny, rank_units(tiny), every_width(tiny))
    assert risk(Policy.dense(tiny.structure), tiny, table) == pytest.approx(0, abs=1e-12)
    for row in table.values():
        values = [row[width] for width in sorted(row)]
        assert values == sorted(values)
        assert len(set(values)) == len(values)


def test_the_compensation_form_takes_the_norms_that_run(tiny: LoadedModel) -> None:
    ranking = rank_units(tiny)
    component = tiny.structure.components[1]
    handle = tiny.handles[1]
    fitted = torch.full((handle.linear(handle.output).out_features, 2), 3.0)
    plain = risk_table(tiny, ranking, every_width(tiny))
    compensation = {
        (component.id, 2): FittedOutput(fitted),
        (component.id, 1): FittedOutput(bias=torch.ones(len(fitted))),
    }
    table = risk_table(
        tiny, ranking, every_width(tiny), form="compensated", compensation=compensation
    )
    output = handle.linear(handle.output).weight.double()
    kept = output[:, ranking.units[component.id][:2].copy()].norm()
    total = sum(
        h.linear(name).weight.numel() for h in tiny.handles for name in (*h.inputs, h.output)
    )
    change = output.numel() / total * math.log(float(fitted.double().norm() / kept))
    assert table[component.id][2] - plain[component.id][2] == pytest.approx(change)
    assert table[component.id][1] == plain[component.id][1]


def test_an_unknown_form_is_refused(tiny: LoadedModel) -> None:
    with pytest.raises(ModelError, match=r"There is no risk form 'sum'. Use paper or compensated"):
        risk_table(tiny, rank_units(tiny), every_width(tiny), form="sum")


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_compensated_weights_without_a_finite_norm_are_refused(
    tiny: LoadedModel, value: float
) -> None:
    """A risk of -inf would be the quality inf, which no policy beats."""
    component, handle = tiny.structure.components[1], tiny.handles[1]
    fitted = torch.full((handle.linear(handle.output).out_features, 2), value)
    compensation = {(component.id, 2): FittedOutput(fitted)}
    with pytest.raises(ModelError, match=rf"^{component.id}: .* at width 2 has the squared norm"):
        risk_table(
            tiny,
            rank_units(tiny),
            every_width(tiny),
            form="compensated",
            compensation=compensation,
        )
