"""The projector of a model can be replaced and is restored exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from effllava_optuna.surgery import (
    LoadedModel,
    answer_logits,
    encode_images,
    projector,
    projector_state,
    use_projector,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from effllava_optuna.tasks import Batch


def changed_state(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: weight * 0.5 + 0.1 for name, weight in projector_state(loaded).items()}


def has_state(loaded: LoadedModel, state: Mapping[str, torch.Tensor]) -> bool:
    current = projector_state(loaded)
    return all(torch.equal(current[name], weight) for name, weight in state.items())


def test_a_projector_is_used_and_restored_bit_by_bit(tiny: LoadedModel, batch: Batch) -> None:
    encoded = encode_images(tiny, batch.inputs)
    before, state = projector_state(tiny), changed_state(tiny)
    expected = answer_logits(tiny, encoded)
    with use_projector(tiny, state) as changed:
        assert (answer_logits(changed, encoded) - expected).abs().max() > 0.1
        assert has_state(tiny, state)
    assert has_state(tiny, before)
    assert torch.equal(answer_logits(tiny, encoded), expected)


def test_no_state_means_the_weights_of_the_model(tiny: LoadedModel) -> None:
    before = projector_state(tiny)
    with use_projector(tiny, None) as same:
        assert same is tiny
        assert has_state(tiny, before)


def test_a_copied_state_is_independent_of_the_model(tiny: LoadedModel) -> None:
    state = projector_state(tiny)
    addresses = {weight.data_ptr() for weight in projector(tiny.model).parameters()}
    assert not addresses & {weight.data_ptr() for weight in state.values()}
    assert {weight.device.type for weight in state.values()} == {"cpu"}


def test_the_projector_is_restored_after_an_exception(tiny: LoadedModel) -> None:
    before = projector_state(tiny)
    with pytest.raises(KeyError, match="from the body"), use_projector(tiny, changed_state(tiny)):
        raise KeyError("from the body")
    assert has_state(tiny, before)


def test_a_state_that_does_not_fit_changes_nothing(tiny: LoadedModel) -> None:
    before, state = projector_state(tiny), changed_state(tiny)
    last = list(state)[-1]
    incomplete = {name: weight for name, weight in state.items() if name != last}
    for damaged in (state | {last: torch.zeros(3)}, incomplete):
        with pytest.raises(RuntimeError, match=last), use_projector(tiny, damaged):
            pass
        assert has_state(tiny, before)
