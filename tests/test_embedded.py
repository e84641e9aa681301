"""The model inside the package: small, loadable by anybody, and as good as its card says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import effllava_optuna
from effllava_optuna.tasks import Digits, Scores, Split, encode, score

HOME = Path(effllava_optuna.__file__).parent / "embedded" / "digits-vlm"


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(HOME).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(HOME)


def test_it_is_a_small_stock_llava(model: Any) -> None:
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert model.dtype == torch.float32
    assert model.num_parameters() <= 1_500_000
    assert sum(file.stat().st_size for file in HOME.iterdir()) <= 6_000_000
    text = model.config.text_config
    assert text.num_key_value_heads < text.num_attention_heads


@torch.no_grad()
def test_it_is_as_good_as_its_card_says(model: Any, processor: Any) -> None:
    batches = encode(processor, Digits(seed=0).samples(Split.TEST), batch_size=250)
    scores = Scores.joined(
        [score(model(**batch.inputs, logits_to_keep=1).logits, batch) for batch in batches]
    )
    card = (HOME / "README.md").read_text()
    (said,) = re.findall(r"Accuracy: \*\*([\d.]+)\*\*", card)
    assert len(scores.hit) == 2000
    assert scores.hit.mean() >= 0.97
    # Another processor may round one close call differently.
    assert scores.hit.mean() == pytest.approx(float(said), abs=0.0011)


@torch.no_grad()
def test_it_answers_in_a_word_and_stops(model: Any, processor: Any) -> None:
    samples = Digits(seed=0).samples(Split.VALIDATION)[:40]
    (batch,) = encode(processor, samples)
    tokens = model.generate(**batch.inputs, max_new_tokens=4, do_sample=False)
    new = tokens[:, batch.inputs["input_ids"].shape[1] :]
    said = [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    right = [s.right == text for s, text in zip(samples, said, strict=True)]
    assert sum(right) >= 36
    assert all((row == processor.tokenizer.eos_token_id).any() for row in new)
