"""Sequential fits of one policy, compared with least squares on the pruned model's inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from effllava_optuna.errors import ModelError, PolicyError
from effllava_optuna.policy import Policy
from effllava_optuna.surgery import (
    CalibrationBatch,
    FittedOutput,
    LoadedModel,
    PruningOptions,
    SequentialOptions,
    arranged,
    compensate_in_sequence,
    narrowed,
    rank_and_compensate,
    sliced,
)
from effllava_optuna.surgery.structure.component_handle import element_indices

if TYPE_CHECKING:
    from effllava_optuna.policy import ComponentId, Ranking
    from effllava_optuna.surgery import ComponentHandle
    from effllava_optuna.tasks import Batch
    from tests.surgery.twins import ReferenceObservation

DAMPING = 0.05


def inputs_of(loaded: LoadedModel, handle: ComponentHandle, batch: Batch) -> torch.Tensor:
    """Return the inputs of an output matrix without padding, shape ``(tokens, columns)``."""
    captured: list[torch.Tensor] = []
    hook = handle.linear(handle.output).register_forward_pre_hook(
        lambda _, inputs: captured.append(inputs[0])
    )
    with torch.no_grad():
        loaded.model(**batch.inputs)
    hook.remove()
    return captured[0][batch.inputs["attention_mask"].bool()].double()


def weights_of(observation: ReferenceObservation) -> torch.Tensor:
    g2 = torch.from_numpy((observation.margin**2).sum(1))
    return 0.9 * g2 / g2.mean() + 0.1


@pytest.mark.parametrize("tokens", ["all", "gradient"])
def test_each_fit_is_least_squares_on_the_inputs_of_the_pruned_model(
    tiny: LoadedModel,
    ranking: Ranking,
    batch: Batch,
    twin: dict[ComponentId, ReferenceObservation],
    tokens: str,
) -> None:
    policy = Policy.of(tiny.structure, [2, 9, 3, 12, 1, 5])
    components = [handle.component.id for handle in tiny.handles]
    samples = [CalibrationBatch(batch.inputs, batch.targets)]
    table = compensate_in_sequence(
        tiny,
        policy,
        ranking,
        samples,
        options=SequentialOptions(tokens, dict.fromkeys(components, DAMPING)),
    )
    narrow = [
        n for n, handle in enumerate(tiny.handles) if policy.widths[n] < handle.component.width
    ]
    assert [*table] == [(components[n], policy.widths[n]) for n in narrow]
    fitted: dict[tuple[ComponentId, int], FittedOutput] = {}
    for n in narrow:
        handle, count = tiny.handles[n], policy.widths[n]
        partial = Policy.of(
            tiny.structure, dict(zip(components[: n + 1], policy.widths, strict=False))
        )
        small = sliced(tiny, partial, ranking, fitted)
        x, pruned_x = inputs_of(tiny, handle, batch), inputs_of(small, small.handles[n], batch)
        w = torch.ones(len(x)).double() if tokens == "all" else weights_of(twin[components[n]])
        columns = element_indices(torch.from_numpy(ranking.units[components[n]]), handle.columns)
        weight = handle.linear(handle.output).weight.double()[:, columns]
        # Damping is equivalent to further tokens with one non-zero column each.
        ridge = DAMPING * ((w[:, None] * x**2).sum(0) / w.sum()).mean()
        eye = ridge.sqrt() * torch.eye(len(columns)).double()
        root = (w / w.sum()).sqrt()[:, None]
        kept = count * handle.columns
        rows = torch.cat([root * pruned_x, eye[:, :kept]])
        wanted = torch.cat([root * x[:, columns], eye]) @ weight.T
        expected = torch.linalg.lstsq(rows, wanted).solution.T
        fit = table[components[n], count]
        assert fit.weight is not None
        torch.testing.assert_close(fit.weight.double(), expected, rtol=1e-3, atol=1e-3)
        fitted[components[n], count] = fit


def test_the_first_narrowed_component_is_fitted_as_for_every_policy(
    tiny: LoadedModel, singles: list[Batch], batch: Batch
) -> None:
    samples = [CalibrationBatch(single.inputs, single.targets) for single in singles]
    widths = {
        component.id: (component.width // 2, component.width)
        for component in tiny.structure.components
    }
    result = rank_and_compensate(tiny, [samples[:3], samples[3:]], widths, PruningOptions())
    policy = Policy.of(tiny.structure, [3, 12, 3, 12, 3, 24])
    samples = [CalibrationBatch(batch.inputs, batch.targets)]
    table = compensate_in_sequence(
        tiny, policy, result.ranking, samples, options=SequentialOptions(damping=result.damping)
    )
    first, second = ((tiny.structure.components[n].id, 12) for n in (1, 3))
    dense_table = result.compensations[0]
    assert dense_table is not None
    torch.testing.assert_close(
        table[first].weight, dense_table[first].weight, rtol=1e-3, atol=1e-3
    )
    sequential, dense = table[second].weight, dense_table[second].weight
    assert sequential is not None
    assert dense is not None
    assert (sequential - dense).norm() > 0.01 * dense.norm()


def test_fitting_leaves_the_model_unchanged_and_reports_progress(
    tiny: LoadedModel, ranking: Ranking, batch: Batch
) -> None:
    before = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    policy = Policy.uniform(tiny.structure, ratio=0.5)
    progress: list[float] = []
    samples = [CalibrationBatch(batch.inputs, batch.targets)]
    outside = compensate_in_sequence(tiny, policy, ranking, samples, progress=progress.append)
    assert progress == sorted(progress)
    assert progress[-1] == 1
    with arranged(tiny, ranking) as ready:
        inside = compensate_in_sequence(ready, policy, ranking, samples)
        with narrowed(ready, policy, ranking, inside):
            pass
    for key, fitted in outside.items():
        again = inside[key].weight
        assert fitted.weight is not None
        assert again is not None
        assert torch.equal(fitted.weight, again)
    assert all(torch.equal(w, before[n]) for n, w in tiny.model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in tiny.model.modules())
    assert compensate_in_sequence(tiny, Policy.dense(tiny.structure), ranking, samples) == {}


def test_moments_that_cannot_be_factored_and_foreign_policies_are_refused(
    tiny: LoadedModel, ranking: Ranking, batch: Batch
) -> None:
    component = tiny.structure.components[1].id
    policy = Policy.of(tiny.structure, {component: 20})
    samples = [CalibrationBatch(batch.inputs, batch.targets)]
    with pytest.raises(ModelError, match=r"moments of language\.00\.mlp cannot be factored with"):
        compensate_in_sequence(
            tiny, policy, ranking, samples, options=SequentialOptions(damping={component: -1.0})
        )
    other = sliced(tiny, policy, ranking)
    with pytest.raises(PolicyError):
        compensate_in_sequence(other, policy, ranking, samples)
