"""Models for the tests of narrowing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.surgery import LoadedModel


@pytest.fixture(scope="module", params=["plain", "bias", "counts"])
def model(
    request: pytest.FixtureRequest, tiny: LoadedModel, make_llava: Callable[..., LoadedModel]
) -> LoadedModel:
    """Models that differ in what depends on the width: matrices, biases, head counts."""
    from effllava_optuna.surgery import LoadedModel

    if request.param == "plain":
        return tiny
    if request.param == "bias":
        return make_llava(attention_bias=True, mlp_bias=True)
    loaded = make_llava("Qwen2Config", head_dim=6)
    for handle in loaded.handles[::2]:
        module: Any = handle.module
        module.num_heads, module.num_key_value_heads = 6, 3
    return LoadedModel.of(loaded.model, loaded.processor, "with head counts")
