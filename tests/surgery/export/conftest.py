"""Fixtures that the tests of exports share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from transformers import GenerationConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.surgery import LoadedModel


SETTINGS = {
    "num_return_sequences": 2, "num_beams": 2, "penalty_alpha": 0.6, "top_k": 4,
    "return_dict_in_generate": True, "prompt_lookup_num_tokens": 3, "stop_strings": ["digit"],
    "temperature": 0.9, "eos_token_id": [3, 7], "guided_json": {"type": "object"},
}  # fmt: skip
"""Of a generation_config.json; most of them fail in `generate` or in an ordinary comparison."""


@pytest.fixture(scope="session")
def pruned(make_llava: Callable[..., LoadedModel]) -> LoadedModel:
    """A model with another number of heads in each block, and a bias that its class lacks."""
    from tests.surgery.export.pruned_models import prune

    loaded = prune(make_llava(attention_bias=True))
    loaded.model.generation_config = GenerationConfig.from_dict(SETTINGS)
    return loaded
