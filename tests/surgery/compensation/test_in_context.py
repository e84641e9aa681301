"""Tables that are fitted in the context of a policy, compared with a plain solver."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from effllava_optuna.errors import ModelError, PolicyError
from effllava_optuna.policy import Policy
from effllava_optuna.surgery import (
    CalibrationBatch,
    CompensatedRanking,
    ContextOptions,
    LoadedModel,
    PruningOptions,
    WeightState,
    arranged,
    compensate_in_context,
    rank_and_compensate,
    sliced,
    table_tensors,
    weigh_tokens,
)
from tests.surgery.compensation.test_fitting import least_table_gb, three_widths
from tests.surgery.compensation.test_sequential import inputs_of, weights_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.policy import ComponentId, ModelStructure
    from effllava_optuna.surgery import CompensationTable
    from effllava_optuna.tasks import Batch
    from tests.surgery.twins import ReferenceObservation

OPTIONS = PruningOptions("taylor")


@pytest.fixture(scope="module")
def folds(singles: list[Batch]) -> list[list[CalibrationBatch]]:
    samples = [CalibrationBatch(single.inputs, single.targets) for single in singles]
    return [samples[:4], samples[4:]]


@pytest.fixture(scope="module")
def fitted(tiny: LoadedModel, folds: list[list[CalibrationBatch]]) -> CompensatedRanking:
    return rank_and_compensate(tiny, folds, three_widths(tiny), OPTIONS)


def state_of(fitted: CompensatedRanking) -> WeightState:
    compensations = fitted.compensations
    return WeightState("tests", fitted.ranking, compensations, (None,) * len(compensations))


@pytest.fixture
def fit_again(
    tiny: LoadedModel, fitted: CompensatedRanking, folds: list[list[CalibrationBatch]]
) -> Callable[..., tuple[CompensationTable, ...]]:
    """Return a function that fits the tables of `fitted` in the context of a policy."""

    def fit(policy: Policy, **changes: Any) -> tuple[CompensationTable, ...]:
        return compensate_in_context(
            changes.get("loaded", tiny),
            changes.get("state", state_of(fitted)),
            policy,
            changes.get("folds", folds),
            ContextOptions(
                changes.get("options", OPTIONS), changes.get("damping", fitted.damping)
            ),
            changes.get("progress"),
        )

    return fit


def incumbent(structure: ModelStructure) -> Policy:
    """A policy of widths that have fits; the second component stays dense."""
    return Policy.of(structure, [2, 24, 1, 12, 2, 1])


def assert_equal(one: CompensationTable, other: CompensationTable, tolerance: float = 0) -> None:
    tensors, others = table_tensors([one]), table_tensors([other])
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(
            tensor, others[name], msg=name, rtol=tolerance, atol=tolerance / 10
        )


def test_each_fit_is_least_squares_halfway_between_the_dense_and_the_own_outputs(
    tiny: LoadedModel,
    fitted: CompensatedRanking,
    fit_again: Callable[..., tuple[CompensationTable, ...]],
    batch: Batch,
    twin: dict[ComponentId, ReferenceObservation],
) -> None:
    policy = incumbent(tiny.structure)
    table = fit_again(policy)[0]
    components = [handle.component.id for handle in tiny.handles]
    old = fitted.compensations[0]
    assert old is not None
    assert table.keys() == old.keys()
    with arranged(tiny, fitted.ranking) as ready:
        for number, handle in enumerate(ready.handles):
            component = components[number]
            before = dict(zip(components[:number], policy.widths, strict=False))
            small = sliced(ready, Policy.of(ready.structure, before), fitted.ranking, table)
            weight = handle.linear(handle.output).weight.double()
            x = inputs_of(ready, handle, batch)
            pruned_x = inputs_of(small, small.handles[number], batch)
            w = weights_of(twin[component])
            root = (w / w.sum()).sqrt()[:, None]
            # Damping is equivalent to further tokens with one non-zero column each.
            ridge = fitted.damping[component] * (root * pruned_x).pow(2).sum(0).mean()
            eye = ridge.sqrt() * torch.eye(x.shape[1]).double()
            wanted = torch.cat([root * (x + pruned_x) / 2, eye]) @ weight.T
            for count in {1, handle.component.width // 2}:
                kept = count * handle.columns
                rows = torch.cat([root * pruned_x[:, :kept], eye[:, :kept]])
                expected = torch.linalg.lstsq(rows, wanted).solution.T
                fit = table[component, count].weight
                assert fit is not None
                torch.testing.assert_close(fit.double(), expected, rtol=2e-3, atol=2e-3)


def test_in_the_context_of_the_dense_model_tables_stay_the_same(
    tiny: LoadedModel,
    fitted: CompensatedRanking,
    fit_again: Callable[..., tuple[CompensationTable, ...]],
) -> None:
    tables = fit_again(Policy.dense(tiny.structure))
    assert len(tables) == len(fitted.compensations)
    for table, old in zip(tables, fitted.compensations, strict=True):
        assert old is not None
        assert_equal(table, old, tolerance=1e-3)


def test_only_the_components_after_a_pruned_one_get_other_tables(
    tiny: LoadedModel,
    fitted: CompensatedRanking,
    fit_again: Callable[..., tuple[CompensationTable, ...]],
) -> None:
    table = fit_again(Policy.of(tiny.structure, {tiny.structure.components[2].id: 1}))[0]
    old = fitted.compensations[0]
    assert old is not None
    for (component, count), fit in table.items():
        weight, former = fit.weight, old[component, count].weight
        assert weight is not None
        assert former is not None
        numbers = [one.id for one in tiny.structure.components]
        same = torch.allclose(weight, former, rtol=1e-3, atol=1e-4)
        assert same == (numbers.index(component) <= 2)


def test_no_fit_depends_on_the_fold_that_it_leaves_out(
    tiny: LoadedModel,
    folds: list[list[CalibrationBatch]],
    fit_again: Callable[..., tuple[CompensationTable, ...]],
) -> None:
    policy = incumbent(tiny.structure)
    tables = fit_again(policy)
    others = fit_again(policy, folds=[folds[0], folds[0][:1]])
    assert_equal(others[2], tables[2])  # without the second fold
    with pytest.raises(AssertionError):
        assert_equal(others[1], tables[1])


def test_groups_of_components_and_repetition_change_nothing(
    tiny: LoadedModel,
    fitted: CompensatedRanking,
    folds: list[list[CalibrationBatch]],
    fit_again: Callable[..., tuple[CompensationTable, ...]],
) -> None:
    before = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    policy, progress = incumbent(tiny.structure), list[float]()
    tables = fit_again(policy, progress=progress.append)
    limit = least_table_gb(tiny, folds, three_widths(tiny), importance="taylor")
    for table, again in zip(
        tables, fit_again(policy, options=replace(OPTIONS, table_gb=limit)), strict=True
    ):
        assert_equal(table, again)
    assert progress == [pytest.approx(n / 6) for n in range(1, 7)]
    assert all(torch.equal(w, before[n]) for n, w in tiny.model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in tiny.model.modules())


def test_several_contexts_can_share_the_weights_of_the_tokens(
    tiny: LoadedModel,
    fitted: CompensatedRanking,
    folds: list[list[CalibrationBatch]],
    fit_again: Callable[..., tuple[CompensationTable, ...]],
) -> None:
    policy = incumbent(tiny.structure)
    batches = [batch for fold in folds for batch in fold]
    weights = weigh_tokens(tiny, [tiny.handles], batches, OPTIONS.tokens)
    options = ContextOptions(OPTIONS, fitted.damping, weights)
    tables = compensate_in_context(tiny, state_of(fitted), policy, folds, options)
    for table, again in zip(tables, fit_again(policy), strict=True):
        assert_equal(table, again, tolerance=1e-4)
    # They decide: with others, the fits differ.
    equal = weigh_tokens(tiny, [tiny.handles], batches, "all")
    other = compensate_in_context(
        tiny, state_of(fitted), policy, folds, replace(options, weights=equal)
    )
    with pytest.raises(AssertionError):
        assert_equal(other[0], tables[0], tolerance=1e-4)


def test_the_limit_of_memory_counts_every_set_of_tables(
    tiny: LoadedModel, folds: list[list[CalibrationBatch]]
) -> None:
    widths = three_widths(tiny)
    one, three = (
        least_table_gb(tiny, folds, widths, importance="taylor", table_sets=sets)
        for sets in (1, 3)
    )
    nbytes = rank_and_compensate(tiny, folds, widths, OPTIONS).nbytes
    assert three - one == pytest.approx(2 * nbytes / 1e9, rel=0.05)


def test_components_of_a_removed_block_keep_their_tables(
    tiny: LoadedModel, folds: list[list[CalibrationBatch]]
) -> None:
    loaded = LoadedModel.of(tiny.model, tiny.processor, "tiny", depth=True)
    widths = {handle.component.id: (1, handle.component.width) for handle in loaded.handles}
    fitted = rank_and_compensate(loaded, folds, widths, OPTIONS)
    removed = loaded.blocks[0].component.id
    policy = Policy.of(loaded.structure, {removed: 0})
    options = ContextOptions(OPTIONS, fitted.damping)
    tables = compensate_in_context(loaded, state_of(fitted), policy, folds, options)
    old = fitted.compensations[0]
    assert old is not None
    changed = {key[0] for key, fit in tables[0].items() if fit is not old[key]}
    inside = {f"{removed.rpartition('.')[0]}.{kind}" for kind in ("attn", "mlp")}
    assert changed == {handle.component.id for handle in loaded.handles} - inside


def test_what_cannot_be_fitted_is_refused(
    tiny: LoadedModel,
    fitted: CompensatedRanking,
    fit_again: Callable[..., tuple[CompensationTable, ...]],
) -> None:
    policy = incumbent(tiny.structure)
    bare = replace(state_of(fitted), compensations=(None, None, None))
    with pytest.raises(ModelError, match=r"has no compensation tables\. Fit them first"):
        fit_again(policy, state=bare)
    component = tiny.structure.components[1].id
    with pytest.raises(ModelError, match=r"moments of language\.00\.mlp cannot be factored with"):
        fit_again(policy, damping={component: -1.0})
    with pytest.raises(PolicyError):
        fit_again(policy, loaded=sliced(tiny, policy, fitted.ranking))
