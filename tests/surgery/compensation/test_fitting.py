"""Ranking and fitting all components within a limit of memory."""

from __future__ import annotations

import math
import re
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Policy
from effllava_optuna.surgery import (
    IMPORTANCES,
    CalibrationBatch,
    CompensatedRanking,
    LoadedModel,
    PruningOptions,
    arranged,
    choose_damping,
    collect_statistics,
    least_squares,
    mean_biases,
    narrowed,
    rank_and_compensate,
    rank_units,
)
from effllava_optuna.surgery.structure.component_handle import element_indices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from effllava_optuna.policy import Ranking
    from effllava_optuna.tasks import Batch

COMPENSATIONS = ("none", "bias", "least-squares")


@pytest.fixture(scope="module")
def folds(singles: list[Batch]) -> list[list[CalibrationBatch]]:
    samples = [
        CalibrationBatch(single.inputs, single.targets, single.answers) for single in singles
    ]
    return [samples[:2], samples[2:3], samples[3:]]


def three_widths(loaded: LoadedModel) -> dict[Any, tuple[int, ...]]:
    """One unit, half of the units and all units, of every component."""
    return {
        component.id: tuple(sorted({1, component.width // 2, component.width}))
        for component in loaded.structure.components
    }


def flatten(result: CompensatedRanking) -> list[tuple[Any, ...]]:
    """Return all tensors of the compensation tables, each with its position."""
    return [
        (fit, *key, name, tensor)
        for fit, compensation in enumerate(result.compensations)
        for key, fitted in sorted((compensation or {}).items())
        for name, tensor in (("weight", fitted.weight), ("bias", fitted.bias))
        if tensor is not None
    ]


@pytest.mark.parametrize("tokens", ["gradient", "text"])
@pytest.mark.parametrize("compensation", ["bias", "least-squares"])
def test_each_fit_uses_the_samples_outside_its_fold(
    tiny: LoadedModel, folds: list[list[CalibrationBatch]], compensation: str, tokens: str
) -> None:
    options = PruningOptions("taylor", compensation, tokens)
    result = rank_and_compensate(tiny, folds, three_widths(tiny), options)
    ranking = rank_units(tiny, [sample for fold in folds for sample in fold], "taylor")
    assert result.ranking.digest == ranking.digest
    assert len(result.compensations) == 4
    for number, table in enumerate(result.compensations):
        assert table is not None
        samples = [s for fold, part in enumerate(folds) for s in part if fold + 1 != number]
        statistics = collect_statistics(tiny, tiny.handles, samples, tokens=tokens)
        for handle in tiny.handles:
            component = handle.component
            units = torch.from_numpy(ranking.units[component.id])
            columns = element_indices(units, handle.columns)
            moments = statistics[component.id].moments
            weight = handle.linear(handle.output).weight[:, columns]
            assert {
                count for fitted_component, count in table if fitted_component == component.id
            } == {
                1,
                component.width // 2,
            }
            for count in (1, component.width // 2):
                kept = count * handle.columns
                fitted = table[component.id, count]
                if compensation == "bias":
                    assert fitted.weight is None
                    expected = mean_biases(weight, None, moments.mean[columns], [kept])[kept]
                    torch.testing.assert_close(fitted.bias, expected, rtol=1e-3, atol=1e-4)
                else:
                    assert fitted.bias is None
                    matrix = moments.matrix[columns][:, columns]
                    damping = result.damping[component.id]
                    expected = least_squares(weight, matrix, [kept], damping).weights[kept]
                    torch.testing.assert_close(fitted.weight, expected, rtol=1e-3, atol=1e-3)


def test_damping_and_effective_tokens_are_those_of_all_folds(
    tiny: LoadedModel, folds: list[list[CalibrationBatch]]
) -> None:
    result = rank_and_compensate(tiny, folds, three_widths(tiny), PruningOptions())
    handle = tiny.handles[3]
    component = handle.component.id
    moments = [collect_statistics(tiny, [handle], fold)[component].moments for fold in folds]
    ranking = torch.from_numpy(result.ranking.units[component])
    weight = handle.linear(handle.output).weight[:, ranking]
    assert result.damping[component] == choose_damping(weight, moments, ranking, [1, 12])
    effective_tokens = (moments[0] + moments[1] + moments[2]).effective_tokens
    assert result.effective_tokens[component] == pytest.approx(effective_tokens, abs=0.06)


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("compensation", COMPENSATIONS)
def test_every_importance_can_be_combined_with_every_compensation(
    tiny: LoadedModel, folds: list[list[CalibrationBatch]], importance: str, compensation: str
) -> None:
    options = PruningOptions(importance, compensation, seed=3)
    result = rank_and_compensate(tiny, folds, three_widths(tiny), options)
    assert result.ranking.method == importance
    assert (result.compensations[0] is None) == (compensation == "none")
    assert bool(result.damping) == (compensation == "least-squares")
    assert bool(result.nbytes) == (compensation != "none")
    assert bool(result.residuals) == options.needs_samples
    for component in tiny.structure.components if result.residuals else ():
        curve = result.residuals[component.id]
        assert list(curve) == list(three_widths(tiny)[component.id])
        values = list(curve.values())
        assert values == sorted(values, reverse=True)
        assert values[-1] == 0 < values[0] < math.inf
    if compensation == "none":
        samples = [sample for fold in folds for sample in fold]
        assert result.ranking.digest == rank_units(tiny, samples, importance, seed=3).digest


def count_forward_passes(loaded: LoadedModel, run: Callable[[], object]) -> int:
    passes = []
    hook = loaded.model.register_forward_pre_hook(lambda *_: passes.append(1))
    run()
    hook.remove()
    return len(passes)


def least_table_gb(
    loaded: LoadedModel, folds: Sequence[Sequence[CalibrationBatch]], widths: Any, **options: Any
) -> float:
    """Return the smallest limit in gigabytes that is not refused, plus 1 %."""
    message = r"pruning\.table_gb allows 1e-09\. Use a larger pruning\.table_gb, or fewer"
    with pytest.raises(ModelError, match=message) as refusal:
        rank_and_compensate(loaded, folds, widths, PruningOptions(**options, table_gb=1e-9))
    needed = re.search(r"(\S+) GB while they are computed", str(refusal.value))
    assert needed is not None
    return float(needed[1]) * 1.01


def test_there_is_one_sweep_unless_memory_is_short(
    tiny: LoadedModel, folds: list[list[CalibrationBatch]]
) -> None:
    widths = three_widths(tiny)
    limit = least_table_gb(tiny, folds, widths, importance="obs")
    results = []

    def run(options: PruningOptions) -> Callable[[], None]:
        return lambda: results.append(rank_and_compensate(tiny, folds, widths, options))

    assert count_forward_passes(tiny, run(PruningOptions("obs"))) == 6
    assert count_forward_passes(tiny, run(PruningOptions("obs", table_gb=limit))) > 6
    one_sweep, many_sweeps = results
    assert one_sweep.ranking.digest == many_sweeps.ranking.digest
    assert one_sweep.damping == many_sweeps.damping
    for (*key, tensor), (*other_key, other) in zip(*map(flatten, results), strict=True):
        assert key == other_key
        assert torch.equal(tensor, other)


def peak_bytes(run: Callable[[], object]) -> int:
    """Count the most bytes of tensors that ``run`` creates and that are alive at one time."""
    alive: dict[int, int] = {}
    most = 0

    def dispatch(_: Any, call: Any, __: Any, args: Any = (), kwargs: Any = None) -> Any:
        nonlocal most
        created = call(*args, **(kwargs or {}))
        for leaf in tree_leaves(created):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in alive:
                    alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, alive.pop, storage._cdata, None)
        most = max(most, sum(alive.values()))
        return created

    with type("Peak", (TorchDispatchMode,), {"__torch_dispatch__": dispatch})():
        run()
    return most


@pytest.mark.parametrize("options", [{}, {"importance": "obs", "tokens": "all"}])
def test_fits_and_factors_stay_within_the_limit(
    make_llava: Callable[..., LoadedModel],
    folds: list[list[CalibrationBatch]],
    options: dict[str, Any],
) -> None:
    wide = make_llava(intermediate_size=400)
    two_folds = [[fold[0]] for fold in folds[:2]]
    widths = {
        component.id: (component.width // 2, component.width)
        for component in wide.structure.components
    }
    limit = least_table_gb(wide, two_folds, widths, **options)
    limited = PruningOptions(**options, table_gb=limit)
    # The limit does not include activations and their gradients.
    activations = peak_bytes(
        lambda: collect_statistics(wide, wide.handles, two_folds[0], full=False)
    )
    held = peak_bytes(lambda: rank_and_compensate(wide, two_folds, widths, limited))
    assert 0.5 * limit * 1e9 < held <= limit * 1e9 + activations


def test_an_arranged_model_and_unknown_names_are_refused(
    tiny: LoadedModel, folds: list[list[CalibrationBatch]], ranking: Ranking
) -> None:
    widths = three_widths(tiny)
    with (
        arranged(tiny, ranking),
        pytest.raises(ModelError, match=r"is arranged at present\. Leave"),
    ):
        rank_and_compensate(tiny, folds, widths, PruningOptions())
    message = r"'lasso' is not a compensation\. Use none, bias, least-squares"
    with pytest.raises(ModelError, match=message):
        PruningOptions(compensation="lasso")
    with pytest.raises(ModelError, match="'abc' is not an importance criterion"):
        rank_and_compensate(tiny, folds, widths, PruningOptions("abc"))


@pytest.mark.parametrize("compensation", ["bias", "least-squares"])
def test_a_compensation_brings_the_outputs_of_narrowed_components_closer(
    tiny: LoadedModel, folds: list[list[CalibrationBatch]], batch: Batch, compensation: str
) -> None:
    handle = tiny.handles[1]
    policy = Policy.of(tiny.structure, {handle.component.id: 12})
    options = PruningOptions("flap", compensation, "all")
    result = rank_and_compensate(tiny, folds, three_widths(tiny), options)
    outputs: list[torch.Tensor] = []
    hook = handle.linear("down_proj").register_forward_hook(lambda *a: outputs.append(a[2]))
    real = batch.inputs["attention_mask"].bool()
    with torch.no_grad():
        tiny.model(**batch.inputs)
        for table in (None, result.compensations[0]):
            with narrowed(tiny, policy, result.ranking, table) as small:
                small.model(**batch.inputs)
    hook.remove()
    dense, uncompensated, compensated = (output[real] for output in outputs)
    assert (compensated - dense).norm() < 0.97 * (uncompensated - dense).norm()
