"""Runs that start at a block, compared with whole runs, in all families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from effllava_optuna.policy import Policy
from effllava_optuna.surgery import CalibrationBatch, arranged, collect_statistics, narrowed
from effllava_optuna.surgery.compensation.resumed_runs import ResumedRuns
from tests.surgery.families import FAMILIES
from tests.surgery.family_models import (
    CLOSE,
    families,
    load_family,
    random_policy,
    text_decoder,
    text_inputs,
    verified_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from effllava_optuna.surgery import ComponentHandle, LoadedModel

    Found = tuple[torch.Tensor | None, torch.Tensor | None]

DEPTH = 6


def twice(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch of two equal samples."""
    return {name: torch.cat([value, value]) for name, value in inputs.items()}


def whole_run(
    loaded: LoadedModel, handle: ComponentHandle, inputs: Mapping[str, Any]
) -> torch.Tensor | None:
    """Return the inputs of an output matrix from a run of the whole model."""
    captured: list[torch.Tensor] = []
    hook = handle.linear(handle.output).register_forward_pre_hook(
        lambda _, read: captured.append(read[0].flatten(0, -2).double())
    )
    with torch.no_grad():
        loaded.model(**inputs)
    hook.remove()
    return captured[0] if captured else None


def both(
    loaded: LoadedModel, samples: Sequence[Mapping[str, Any]], seed: int = 0
) -> Iterator[tuple[Found, Found]]:
    """Yield the inputs of each component, dense and pruned: by resumed and by whole runs."""
    policy, ranking = random_policy(loaded.structure, seed)
    widths = dict(zip((c.id for c in loaded.structure.components), policy.widths, strict=True))
    handles = {handle.component.id for handle in loaded.handles}
    pruned = {name: width for name, width in widths.items() if name not in handles}
    with arranged(loaded, ranking) as ready:
        runs = ResumedRuns(ready, [CalibrationBatch(inputs) for inputs in samples])
        for handle in ready.handles:
            partial = Policy.of(ready.structure, pruned)
            for number, inputs in enumerate(samples):
                dense = runs.dense(handle, number), whole_run(ready, handle, inputs)
                with narrowed(ready, partial, ranking) as network:
                    small = (
                        runs.pruned(network, handle, number),
                        whole_run(network, handle, inputs),
                    )
                yield dense, small
            pruned[handle.component.id] = widths[handle.component.id]


def assert_all_equal(loaded: LoadedModel, samples: Sequence[Mapping[str, Any]]) -> None:
    count = 0
    for pairs in both(loaded, samples):
        for found, expected in pairs:
            count += 1
            if expected is None:
                assert found is None
            else:
                assert found is not None
                assert torch.equal(found, expected)
    assert count == 2 * len(samples) * len(loaded.handles)


def changes_of(loaded: LoadedModel) -> list[tuple[int, int, bool]]:
    """Count the hooks of each module, and find replaced forward passes."""
    return [
        (len(module._forward_pre_hooks), len(module._forward_hooks), "forward" in vars(module))
        for module in loaded.model.modules()
    ]


@pytest.mark.families
@pytest.mark.parametrize("name", FAMILIES)
def test_all_tokens_of_all_samples_are_collected(name: str) -> None:
    loaded, inputs = load_family(name), twice(FAMILIES[name].inputs())
    tokens = inputs["input_ids"].numel()
    statistics = collect_statistics(loaded, loaded.handles, [CalibrationBatch(inputs)])
    for handle in loaded.handles:
        uniform = statistics[handle.component.id].moments.uniform
        assert uniform is not None
        if handle.component.tower == "language":
            assert uniform.weights == tokens
        x = whole_run(loaded, handle, inputs)
        assert x is not None
        torch.testing.assert_close(uniform.first, x.sum(0), **CLOSE)


@pytest.mark.parametrize("name", families())
def test_resumed_runs_compute_what_whole_runs_compute(name: str) -> None:
    loaded, inputs = load_family(name), FAMILIES[name].inputs()
    before = changes_of(loaded)
    assert_all_equal(loaded, [inputs])
    assert changes_of(loaded) == before


def test_batches_without_pictures_do_not_run_the_tower() -> None:
    loaded, pictured = load_family("llava"), FAMILIES["llava"].inputs()
    words = pictured["input_ids"].clamp(min=7)  # without the image token
    text = {"input_ids": words, "attention_mask": pictured["attention_mask"]}
    assert_all_equal(loaded, [text, pictured])
    tower = loaded.handles[0]
    assert tower.component.tower == "vision"
    assert whole_run(loaded, tower, text) is None


def deep_decoder() -> LoadedModel:
    return verified_text(text_decoder("LlamaConfig", num_hidden_layers=DEPTH))


def first_block_runs(loaded: LoadedModel) -> int:
    """Count how often the first block computes something in runs to all components."""
    runs = ResumedRuns(loaded, [CalibrationBatch(text_inputs())])
    count = 0

    def add(*_: object) -> None:
        nonlocal count
        count += 1

    hook = loaded.model.model.layers[0].self_attn.q_proj.register_forward_hook(add)
    for handle in loaded.handles:
        assert runs.dense(handle, 0) is not None
    hook.remove()
    return count


def test_each_block_runs_a_few_times_however_deep_the_model() -> None:
    # A whole run; a test and a run of its own, and of the next block.
    assert first_block_runs(deep_decoder()) == 1 + 2 + 2


@pytest.mark.parametrize("fails", [False, True])
def test_blocks_that_read_what_others_leave_behind_run_from_the_beginning(*, fails: bool) -> None:
    loaded = deep_decoder()
    layers = loaded.model.model.layers
    left: dict[str, torch.Tensor] = {}

    def leave(_: object, read: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        left.clear()
        if not (fails and torch.equal(output, read[0])):
            left["hidden"] = output

    def read_left(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
        return output + left["hidden"]

    layers[0].register_forward_hook(leave)
    layers[3].register_forward_hook(read_left)
    assert_all_equal(loaded, [text_inputs()])
    assert first_block_runs(loaded) >= 1 + DEPTH
