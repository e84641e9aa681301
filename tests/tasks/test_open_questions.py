"""Scores and generated answers of open-ended and closed questions, with and without images."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from effllava_optuna.errors import TaskError
from effllava_optuna.objectives import encode_samples, score_batch
from effllava_optuna.surgery import answer_logits, encode_images, generate_text
from effllava_optuna.tasks import (
    Batch,
    Digits,
    GradingRule,
    Sample,
    Scores,
    Split,
    answer_divergence,
    answer_loss,
    encode_prompts,
    encode_with_answers,
    score_logits,
)
from effllava_optuna.tasks.prompts import IGNORE_INDEX, append_answer, format_prompt

if TYPE_CHECKING:
    from effllava_optuna.surgery import LoadedModel

EQUAL = GradingRule("equal", lambda sample, text: float(text in sample.targets), new_tokens=4)
REFERENCES = ("7", "top left", "the sum of the digits", "3 5", "odd", "what digit is it")
CLOSED = [
    replace(s, targets=("1", "2", "3", "4", "5")[: 2 + i % 4], answer=i % 2)
    for i, s in enumerate(Digits(proxy=8).samples(Split.PROXY)[:6])
]
OPEN = [
    replace(s, targets=(text,), answer=None, rule=EQUAL)
    for s, text in zip(CLOSED, REFERENCES, strict=True)
]


def without_image(samples: list[Sample]) -> list[Sample]:
    return [replace(sample, image=None, id=f"text-{sample.id}") for sample in samples]


@torch.no_grad()
def scores_of(loaded: LoadedModel, samples: list[Sample], batch_size: int = 64) -> dict[str, Any]:
    """Return hit and log-probability by sample, computed with cached features as in a search."""
    batches = encode_samples(loaded, samples, batch_size=batch_size)
    scores = Scores.concatenate([score_batch(loaded, encoded) for encoded in batches])
    ids = [sample_id for encoded in batches for sample_id in encoded.batch.ids]
    return dict(zip(ids, zip(scores.hit, scores.log_probability, strict=True), strict=True))


@torch.no_grad()
def log_probabilities(loaded: LoadedModel, sample: Sample, text: str) -> torch.Tensor:
    """Return the log-probabilities after each token of one text, without padding and cache."""
    image = sample.load_image()
    images = None if image is None else [[image]]
    inputs = loaded.processor(text=[text], images=images, return_tensors="pt")
    logits: torch.Tensor = loaded.model(**inputs).logits[0]
    return logits.log_softmax(-1)


def prompt_of(loaded: LoadedModel, sample: Sample) -> str:
    pictures = 0 if sample.image is None else 1
    return format_prompt(loaded.processor, sample.question, pictures=pictures)


@pytest.mark.parametrize("sample", [*OPEN, *without_image(OPEN)], ids=lambda sample: sample.id)
def test_an_open_ended_answer_is_scored_token_by_token(tiny: LoadedModel, sample: Sample) -> None:
    tokenizer = tiny.processor.tokenizer
    text, tokens = append_answer(tokenizer, prompt_of(tiny, sample), sample.targets[0])
    rows = log_probabilities(tiny, sample, text)[-len(tokens) - 1 :]
    labels = [*tokens, tokenizer.eos_token_id]
    expected = [float(row[label]) for row, label in zip(rows, labels, strict=True)]
    correct = [int(row.argmax()) == label for row, label in zip(rows, labels, strict=True)]
    hit, log_probability = scores_of(tiny, [sample])[sample.id]
    assert log_probability == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    assert hit == pytest.approx(sum(correct) / len(correct))


def test_padding_batching_and_cached_features_change_nothing(tiny: LoadedModel) -> None:
    samples = [*OPEN, *without_image(OPEN), *(replace(s, id=f"closed-{s.id}") for s in CLOSED)]
    together, alone = scores_of(tiny, samples), scores_of(tiny, samples, batch_size=1)
    assert len(together) == len(samples)
    for name, (hit, log_probability) in together.items():
        assert alone[name][0] == hit
        assert alone[name][1] == pytest.approx(log_probability, abs=1e-4)


@pytest.mark.parametrize("sample", [*CLOSED, *without_image(CLOSED)], ids=lambda sample: sample.id)
def test_options_scored_in_one_forward_pass_equal_one_pass_each(
    tiny: LoadedModel, sample: Sample
) -> None:
    by_target = []
    for target in sample.targets:
        text, tokens = append_answer(tiny.processor.tokenizer, prompt_of(tiny, sample), target)
        assert len(tokens) == 1
        by_target.append(log_probabilities(tiny, sample, text)[-2, tokens[0]])
    expected = torch.stack(by_target).log_softmax(-1)[sample.answer or 0]
    hit, log_probability = scores_of(tiny, [sample])[sample.id]
    assert log_probability == pytest.approx(float(expected), abs=1e-5)
    assert hit == float(torch.stack(by_target).argmax() == sample.answer)


@torch.no_grad()
def test_the_first_generated_token_is_the_most_likely_one(tiny: LoadedModel) -> None:
    all_words = set()
    for samples in (CLOSED, without_image(CLOSED)):
        (batch,) = encode_with_answers(tiny.processor, samples)
        encoded = encode_images(tiny, batch.inputs)
        first = answer_logits(tiny, encoded)[:, -1].argmax(-1)
        words = tiny.processor.tokenizer.batch_decode(first[:, None], skip_special_tokens=True)
        assert generate_text(tiny, encoded, 1) == [word.strip() for word in words]
        all_words |= set(words)
    assert len(all_words) > 1


def test_a_generated_answer_scores_as_the_most_likely_one(tiny: LoadedModel) -> None:
    tokenizer = tiny.processor.tokenizer
    (batch,) = encode_prompts(tiny.processor, OPEN)
    texts = generate_text(tiny, encode_images(tiny, batch.inputs), 5)
    # Answers with special tokens lose them in their text, and cannot be compared.
    complete = [i for i, text in enumerate(texts) if len(tokenizer.encode(text)) == 5]
    assert complete
    for i in complete:
        hit, _ = scores_of(tiny, [replace(OPEN[i], targets=(texts[i],))])[OPEN[i].id]
        assert hit in (5 / 6, 1.0)  # the end token may not be the most likely sixth one


def test_generated_answers_do_not_depend_on_padding_or_the_feature_cache(
    tiny: LoadedModel,
) -> None:
    samples = [*OPEN, *without_image(OPEN)]
    together = [
        text
        for batch in encode_prompts(tiny.processor, samples)
        for text in generate_text(tiny, encode_images(tiny, batch.inputs), 8)
    ]
    assert len(set(together)) > 3
    for sample, text in zip(samples, together, strict=True):
        (batch,) = encode_prompts(tiny.processor, [sample])
        assert generate_text(tiny, encode_images(tiny, batch.inputs), 8) == [text]
        options = {"max_new_tokens": 8, "do_sample": False}
        tokens = tiny.model.generate(**batch.inputs, **options)
        generated = tokens[:, batch.inputs["input_ids"].shape[1] :]
        (expected,) = tiny.processor.tokenizer.batch_decode(generated, skip_special_tokens=True)
        assert expected.strip() == text


def test_questions_of_one_kind_share_a_batch(processor: Any) -> None:
    mixed = [CLOSED[0], OPEN[1], *without_image([CLOSED[2], OPEN[3]]), CLOSED[4], OPEN[5]]
    batches = encode_with_answers(processor, mixed)
    assert [[s.id for s in batch.samples] for batch in batches] == [
        [CLOSED[0].id, CLOSED[4].id],
        [OPEN[1].id, OPEN[5].id],
        [f"text-{CLOSED[2].id}"],
        [f"text-{OPEN[3].id}"],
    ]
    assert ["pixel_values" in batch.inputs for batch in batches] == [True, True, False, False]
    assert [batch.targets is None for batch in batches] == [False, True, False, True]


def test_the_rule_limits_the_length_of_generated_answers_in_any_batch(
    processor: Any,
) -> None:
    longer = replace(EQUAL, new_tokens=9)
    mixed = [OPEN[0], replace(OPEN[1], rule=longer), OPEN[2]]
    lengths = [(batch.ids, batch.new_tokens) for batch in encode_prompts(processor, mixed)]
    assert lengths == [((OPEN[0].id, OPEN[2].id), 4), ((OPEN[1].id,), 9)]


def test_labels_are_right_aligned_and_include_the_end_token(processor: Any) -> None:
    (batch,) = encode_with_answers(processor, OPEN)
    assert batch.answers is not None
    end = processor.tokenizer.eos_token_id
    assert (batch.answers[:, -1] == end).all()
    n_words = [len(text.split()) for text in REFERENCES]
    assert (batch.answers != IGNORE_INDEX).sum(1).tolist() == [count + 1 for count in n_words]
    assert batch.positions == max(n_words) + 1


def test_an_empty_answer_cannot_be_encoded(processor: Any) -> None:
    with pytest.raises(TaskError, match=r"'proxy-0000' has no correct answer to be compared with"):
        encode_with_answers(processor, [replace(OPEN[0], targets=())])
    with pytest.raises(TaskError, match="no correct answer"):
        encode_with_answers(processor, [replace(OPEN[0], targets=("  ",))])


def test_an_open_ended_question_needs_a_rule() -> None:
    with pytest.raises(TaskError, match="'proxy-0000' is an open-ended question without a gr"):
        replace(OPEN[0], rule=None)


def test_loss_and_divergence_include_only_answer_tokens(tiny: LoadedModel) -> None:
    (batch,) = encode_with_answers(tiny.processor, OPEN)
    assert batch.answers is not None
    with torch.no_grad():
        logits = answer_logits(tiny, encode_images(tiny, batch.inputs, batch.positions))
    scores = score_logits(logits, batch)
    torch.testing.assert_close(
        answer_loss(logits, batch).double(), -torch.tensor(scores.log_probability)
    )
    other = logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    divergence = answer_divergence(other, logits.log_softmax(-1), batch)
    assert (divergence > 0).all()
    shortest = int((batch.answers != IGNORE_INDEX).sum(1).argmin())
    other[shortest, 0] += 50  # before the first label of the shortest answer
    torch.testing.assert_close(answer_divergence(other, logits.log_softmax(-1), batch), divergence)
    assert answer_divergence(logits, logits.log_softmax(-1), batch).abs().max() < 1e-6


def test_prompts_without_answers_cannot_be_scored(processor: Any) -> None:
    (batch,) = encode_prompts(processor, OPEN)
    assert isinstance(batch, Batch)
    assert (batch.answers, batch.positions) == (None, 1)
    with pytest.raises(TaskError, match="no answers to score"):
        score_logits(torch.zeros(6, 1, 9), batch)
