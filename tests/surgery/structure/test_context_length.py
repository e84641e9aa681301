"""The context of a model is read from its configuration, with scaled rotary embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from effllava_optuna.surgery import LoadedModel
from effllava_optuna.surgery.structure.context_length import context_length
from tests.surgery.families import FAMILIES


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (transformers.LlamaConfig(max_position_embeddings=4096), 4096),
        (transformers.GPT2Config(n_positions=1024), 1024),
        (transformers.OPTConfig(max_position_embeddings=2048), 2048),
        (transformers.BloomConfig(), None),
        (transformers.LlamaConfig(max_position_embeddings=4096, max_sequence_length=16384), 16384),
    ],
)
def test_the_context_is_that_of_the_configuration(config: Any, length: int | None) -> None:
    assert context_length(config) == length


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 100),
        ({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}, 400),
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 200),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100,
          "rope_theta": 1e4}, 400),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 25,
          "rope_theta": 1e4}, 100),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 10,
          "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4}, 100),
    ],
)  # fmt: skip
def test_scaled_rotary_embeddings_extend_the_context(rope: dict[str, Any], length: int) -> None:
    config = transformers.LlamaConfig(max_position_embeddings=100, rope_parameters=rope)
    assert context_length(config) == length


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "mllama", "paligemma"])
def test_the_context_of_a_vision_language_model_is_that_of_its_decoder(family: str) -> None:
    length = context_length(FAMILIES[family].build().config)
    assert length is not None
    assert length >= 256


def test_a_loaded_model_knows_its_context(tiny: LoadedModel) -> None:
    assert tiny.context == 128
