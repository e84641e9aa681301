"""A loaded model is frozen, in memory, and gives access to its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from effllava_optuna.errors import ModelError
from effllava_optuna.surgery import LoadedModel

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_model_is_frozen_and_in_evaluation_mode(tiny: LoadedModel) -> None:
    assert not tiny.model.training
    assert not any(weight.requires_grad for weight in tiny.model.parameters())


def test_a_child_that_is_not_a_linear_layer_is_named(tiny: LoadedModel) -> None:
    with pytest.raises(ModelError, match=r"language\.00\.mlp: act_fn is a \w+, not a Linear"):
        tiny.handles[1].linear("act_fn")


def test_offloaded_weights_are_refused(make_llava: Callable[..., LoadedModel]) -> None:
    model = make_llava().model
    model.model.language_model.layers[2].to("meta")
    message = (
        r"mine: model\.language_model\.layers\.2\..* is offloaded \(meta device or disk\)\. "
        "Load the whole"
    )
    with pytest.raises(ModelError, match=message):
        LoadedModel.of(model, None, "mine")
