"""A checkpoint's generation_config.json has no influence where the package generates."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from transformers import GenerationConfig

from effllava_optuna.evaluation.generation import AnsweringModel, GenerationOptions, Question
from effllava_optuna.surgery import LoadedModel, encode_images, generate_text
from effllava_optuna.surgery.export.comparison import compute_outputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.tasks import Batch

SETTINGS: dict[str, dict[str, Any]] = {
    "sequences": {"num_return_sequences": 2, "num_beams": 2},
    "beams": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
    "sampled": {"do_sample": True, "temperature": 5.0, "top_k": 3, "top_p": 0.9, "min_p": 0.1},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "dictionary": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    "attentions": {"output_attentions": True, "output_hidden_states": True},
    "lookup": {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2},
    "early exit": {"assistant_early_exit": 1},
    "dola": {"dola_layers": "high"},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "forced words": {"force_words_ids": [[7]], "num_beams": 2},
    "stop strings": {"stop_strings": ["digit"]},
    "penalties": {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1},
    "suppressed": {"suppress_tokens": list(range(7, 40)), "bad_words_ids": [[41]]},
    "forced tokens": {"forced_bos_token_id": 9, "forced_eos_token_id": 4},
    "lengths": {"max_length": 3, "min_new_tokens": 6, "max_new_tokens": 1},
    "time": {"max_time": 0.0},
    "guided": {"guidance_scale": 2.0},
    "watermark": {"watermarking_config": {"greenlist_ratio": 0.25, "bias": 9.0}},
    "static cache": {"cache_implementation": "static"},
    "quantised cache": {"cache_implementation": "quantized"},
    "no cache": {"use_cache": False},
    "healing": {"token_healing": True},
    "other": {"guided_json": {"type": "object"}, "speculation": 3},
}


def shipped(settings: dict[str, Any], model: Any) -> GenerationConfig:
    """A configuration with the special tokens of a model, as from_pretrained reads it."""
    tokens = {
        name: getattr(model.generation_config, name)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    return GenerationConfig.from_dict({**tokens, **settings})


@pytest.fixture
def configured(tiny: LoadedModel) -> Callable[[dict[str, Any]], LoadedModel]:
    """Return a function that gives a copy of `tiny` other generation settings."""

    def configure(settings: dict[str, Any]) -> LoadedModel:
        model = copy.copy(tiny.model)
        model.generation_config = shipped(settings, model)
        return replace(tiny, model=model)

    return configure


@pytest.mark.parametrize("name", SETTINGS)
def test_every_generation_is_that_of_a_plain_configuration(
    tiny: LoadedModel,
    configured: Callable[[dict[str, Any]], LoadedModel],
    batch: Batch,
    name: str,
) -> None:
    def generate(loaded: LoadedModel) -> list[Any]:
        questions = [Question("what digit is odd?"), Question("what is the sum of even digits?")]
        options = GenerationOptions(6, beams=2, repetition_penalty=1.0)
        return [
            compute_outputs(loaded.model, batch.inputs)["tokens"].tolist(),
            generate_text(loaded, encode_images(loaded, batch.inputs), 6),
            AnsweringModel(loaded, 2).generate(questions, options),
        ]

    changed = configured(SETTINGS[name])
    before = changed.model.generation_config.to_dict()
    assert generate(changed) == generate(configured({}))
    assert changed.model.generation_config.to_dict() == before


def test_generations_differ_under_settings_of_their_own(tiny: LoadedModel) -> None:
    """So that their equality is informative."""
    question = [Question("what is the sum of even digits?")]
    options = GenerationOptions(6, beams=2)
    answers = {
        *AnsweringModel(tiny).generate(question, options),
        *AnsweringModel(tiny).generate(question, replace(options, repetition_penalty=9.0)),
    }
    assert len(answers) == 2


def test_options_that_are_not_given_are_those_of_the_checkpoint(
    configured: Callable[[dict[str, Any]], LoadedModel],
) -> None:
    questions = [Question("what digit is odd?"), Question("what is the sum of even digits?")]
    options = GenerationOptions(6)
    assert AnsweringModel(configured({"repetition_penalty": 9.0})).generate(
        questions, options
    ) == AnsweringModel(configured({})).generate(
        questions, replace(options, repetition_penalty=9.0)
    )


def test_a_checkpoint_with_several_end_tokens_and_no_padding_token_is_generated_from(
    configured: Callable[[dict[str, Any]], LoadedModel], batch: Batch, processor: Any
) -> None:
    """As Llama 3."""
    bare = copy.copy(processor)
    bare.tokenizer = copy.deepcopy(processor.tokenizer)
    bare.tokenizer.pad_token = None
    changed = configured({"eos_token_id": [3, 45], "pad_token_id": None})
    texts = generate_text(
        replace(changed, processor=bare), encode_images(changed, batch.inputs), 6
    )
    assert len(texts) == 6
