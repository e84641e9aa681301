"""The embedded model is small, loads with transformers, and has the accuracy of its card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import effllava_optuna
from effllava_optuna.tasks import Digits, Scores, Split, encode_with_answers, score_logits

HOME = Path(effllava_optuna.__file__).parent / "embedded" / "digits-vlm"


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(HOME).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(HOME)


def test_the_model_is_a_small_stock_llava(model: Any) -> None:
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert model.dtype == torch.float32
    assert model.num_parameters() <= 1_500_000
    assert sum(file.stat().st_size for file in HOME.iterdir()) <= 6_000_000
    text = model.config.text_config
    assert text.num_key_value_heads < text.num_attention_heads


@torch.no_grad()
def test_the_model_has_the_accuracy_of_its_card(model: Any, processor: Any) -> None:
    batches = encode_with_answers(processor, Digits(seed=0).samples(Split.TEST), batch_size=250)
    scores = Scores.concatenate(
        [score_logits(model(**batch.inputs, logits_to_keep=1).logits, batch) for batch in batches]
    )
    card = (HOME / "README.md").read_text()
    (accuracy,) = re.findall(r"Accuracy: \*\*([\d.]+)\*\*", card)
    assert len(scores.hit) == 2000
    assert scores.hit.mean() >= 0.97
    # Rounding on another processor may change the answer to one question.
    assert scores.hit.mean() == pytest.approx(float(accuracy), abs=0.0011)


@torch.no_grad()
def test_the_model_generates_one_word_and_stops(model: Any, processor: Any) -> None:
    samples = Digits(seed=0).samples(Split.VALIDATION)[:40]
    (batch,) = encode_with_answers(processor, samples)
    tokens = model.generate(**batch.inputs, max_new_tokens=4, do_sample=False)
    new = tokens[:, batch.inputs["input_ids"].shape[1] :]
    texts = [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    correct = [s.correct_answer == text for s, text in zip(samples, texts, strict=True)]
    assert sum(correct) >= 36
    assert all((row == processor.tokenizer.eos_token_id).any() for row in new)
