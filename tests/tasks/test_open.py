"""Open questions, questions without a picture, and answers in letters."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from effllava_optuna.errors import TaskError
from effllava_optuna.objectives import ask, scored
from effllava_optuna.surgery import answer, look, write
from effllava_optuna.tasks import (
    Batch,
    Digits,
    Rule,
    Sample,
    Scores,
    Split,
    answer_divergence,
    answer_loss,
    encode,
    prompts,
    score,
)
from effllava_optuna.tasks.batches import IGNORED, continuation, prompt

if TYPE_CHECKING:
    from effllava_optuna.surgery import Loaded

EQUAL = Rule("equal", lambda sample, text: float(text in sample.targets), new_tokens=4)
REFERENCES = ("7", "top left", "the sum of the digits", "3 5", "odd", "what digit is it")
CLOSED = [
    replace(s, targets=("1", "2", "3", "4", "5")[: 2 + i % 4], answer=i % 2)
    for i, s in enumerate(Digits(proxy=8).samples(Split.PROXY)[:6])
]
OPEN = [
    replace(s, targets=(text,), answer=None, rule=EQUAL)
    for s, text in zip(CLOSED, REFERENCES, strict=True)
]


def blind(samples: list[Sample]) -> list[Sample]:
    return [replace(sample, image=None, id=f"blind-{sample.id}") for sample in samples]


@torch.no_grad()
def scores_of(loaded: Loaded, samples: list[Sample], batch_size: int = 64) -> dict[str, Any]:
    """Score samples as a search does, features cached; by sample."""
    asked = ask(loaded, samples, batch_size=batch_size)
    scores = Scores.joined([scored(loaded, item) for item in asked])
    names = [name for item in asked for name in item.batch.ids]
    return dict(zip(names, zip(scores.hit, scores.log_probability, strict=True), strict=True))


@torch.no_grad()
def plain(loaded: Loaded, sample: Sample, text: str) -> torch.Tensor:
    """Give the log-probabilities behind each token of one row, nothing padded or cached."""
    picture = sample.picture()
    inputs = loaded.processor(
        text=[text], images=None if picture is None else [[picture]], return_tensors="pt"
    )
    logits: torch.Tensor = loaded.model(**inputs).logits[0]
    return logits.log_softmax(-1)


def asked_of(loaded: Loaded, sample: Sample) -> str:
    pictures = 0 if sample.image is None else 1
    return prompt(loaded.processor, sample.question, pictures=pictures)


@pytest.mark.parametrize("sample", [*OPEN, *blind(OPEN)], ids=lambda sample: sample.id)
def test_reading_an_answer_is_scored_token_by_token(tiny: Loaded, sample: Sample) -> None:
    tokenizer = tiny.processor.tokenizer
    text, tokens = continuation(tokenizer, asked_of(tiny, sample), sample.targets[0])
    behind = plain(tiny, sample, text)[-len(tokens) - 1 :]
    wanted = [*tokens, tokenizer.eos_token_id]
    expected = [float(row[token]) for row, token in zip(behind, wanted, strict=True)]
    right = [int(row.argmax()) == token for row, token in zip(behind, wanted, strict=True)]
    hit, log_probability = scores_of(tiny, [sample])[sample.id]
    assert log_probability == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    assert hit == pytest.approx(sum(right) / len(right))


def test_padding_batching_and_cached_features_change_nothing(tiny: Loaded) -> None:
    samples = [*OPEN, *blind(OPEN), *(replace(s, id=f"closed-{s.id}") for s in CLOSED)]
    together, alone = scores_of(tiny, samples), scores_of(tiny, samples, batch_size=1)
    assert len(together) == len(samples)
    for name, (hit, log_probability) in together.items():
        assert alone[name][0] == hit
        assert alone[name][1] == pytest.approx(log_probability, abs=1e-4)


@pytest.mark.parametrize("sample", [*CLOSED, *blind(CLOSED)], ids=lambda sample: sample.id)
def test_options_compared_in_one_forward_are_as_if_each_were_read(
    tiny: Loaded, sample: Sample
) -> None:
    said = []
    for target in sample.targets:
        text, tokens = continuation(tiny.processor.tokenizer, asked_of(tiny, sample), target)
        assert len(tokens) == 1
        said.append(plain(tiny, sample, text)[-2, tokens[0]])
    expected = torch.stack(said).log_softmax(-1)[sample.answer or 0]
    hit, log_probability = scores_of(tiny, [sample])[sample.id]
    assert log_probability == pytest.approx(float(expected), abs=1e-5)
    assert hit == float(torch.stack(said).argmax() == sample.answer)


@torch.no_grad()
def test_the_first_token_written_is_the_likeliest_one(tiny: Loaded) -> None:
    said = set()
    for samples in (CLOSED, blind(CLOSED)):
        (batch,) = encode(tiny.processor, samples)
        seen = look(tiny, batch.inputs)
        first = answer(tiny, seen)[:, -1].argmax(-1)
        words = tiny.processor.tokenizer.batch_decode(first[:, None], skip_special_tokens=True)
        assert write(tiny, seen, 1) == [word.strip() for word in words]
        said |= set(words)
    assert len(said) > 1


def test_what_a_model_writes_is_what_it_reads_best(tiny: Loaded) -> None:
    tokenizer = tiny.processor.tokenizer
    texts = write(tiny, look(tiny, prompts(tiny.processor, OPEN)[0].inputs), 5)
    whole = [place for place, text in enumerate(texts) if len(tokenizer.encode(text)) == 5]
    assert whole  # nothing of these was a special token
    for place in whole:
        hit, _ = scores_of(tiny, [replace(OPEN[place], targets=(texts[place],))])[OPEN[place].id]
        assert hit in (5 / 6, 1.0)  # whether it would have ended there is not known


def test_written_answers_do_not_depend_on_padding_or_the_feature_cache(tiny: Loaded) -> None:
    samples = [*OPEN, *blind(OPEN)]
    together = [
        text
        for batch in prompts(tiny.processor, samples)
        for text in write(tiny, look(tiny, batch.inputs), 8)
    ]
    assert len(set(together)) > 3
    for sample, text in zip(samples, together, strict=True):
        (batch,) = prompts(tiny.processor, [sample])
        assert write(tiny, look(tiny, batch.inputs), 8) == [text]
        plan = {"max_new_tokens": 8, "do_sample": False}
        tokens = tiny.model.generate(**batch.inputs, **plan)
        new = tokens[:, batch.inputs["input_ids"].shape[1] :]
        (said,) = tiny.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        assert said.strip() == text


def test_questions_of_one_kind_share_a_batch(processor: Any) -> None:
    mixed = [CLOSED[0], OPEN[1], *blind([CLOSED[2], OPEN[3]]), CLOSED[4], OPEN[5]]
    batches = encode(processor, mixed)
    assert [[s.id for s in batch.samples] for batch in batches] == [
        [CLOSED[0].id, CLOSED[4].id],
        [OPEN[1].id, OPEN[5].id],
        [f"blind-{CLOSED[2].id}"],
        [f"blind-{OPEN[3].id}"],
    ]
    assert ["pixel_values" in batch.inputs for batch in batches] == [True, True, False, False]
    assert [batch.targets is None for batch in batches] == [False, True, False, True]


def test_what_is_written_is_as_long_as_the_rule_says_whoever_shares_the_batch(
    processor: Any,
) -> None:
    longer = replace(EQUAL, new_tokens=9)
    mixed = [OPEN[0], replace(OPEN[1], rule=longer), OPEN[2]]
    found = [(batch.ids, batch.new_tokens) for batch in prompts(processor, mixed)]
    assert found == [((OPEN[0].id, OPEN[2].id), 4), ((OPEN[1].id,), 9)]


def test_labels_stand_at_the_right_end_and_the_end_is_predicted(processor: Any) -> None:
    (batch,) = encode(processor, OPEN)
    assert batch.answers is not None
    end = processor.tokenizer.eos_token_id
    assert (batch.answers[:, -1] == end).all()
    words = [len(text.split()) for text in REFERENCES]
    assert (batch.answers != IGNORED).sum(1).tolist() == [count + 1 for count in words]
    assert batch.positions == max(words) + 1


def test_an_answer_without_text_cannot_be_read(processor: Any) -> None:
    with pytest.raises(TaskError, match=r"'proxy-0000' has no right answer to be compared with"):
        encode(processor, [replace(OPEN[0], targets=())])
    with pytest.raises(TaskError, match="no right answer"):
        encode(processor, [replace(OPEN[0], targets=("  ",))])


def test_an_open_question_needs_a_rule() -> None:
    with pytest.raises(TaskError, match="'proxy-0000' is an open question without a rule"):
        replace(OPEN[0], rule=None)


def test_loss_and_divergence_count_nothing_but_answers(tiny: Loaded) -> None:
    (batch,) = encode(tiny.processor, OPEN)
    with torch.no_grad():
        logits = answer(tiny, look(tiny, batch.inputs, batch.positions))
    scores = score(logits, batch)
    torch.testing.assert_close(
        answer_loss(logits, batch).double(), -torch.tensor(scores.log_probability)
    )
    other = logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    far = answer_divergence(other, logits.log_softmax(-1), batch)
    assert (far > 0).all()
    shortest = int((batch.answers != IGNORED).sum(1).argmin()) if batch.answers is not None else 0
    other[shortest, 0] += 50  # predicts nothing there: its answer is shorter
    torch.testing.assert_close(answer_divergence(other, logits.log_softmax(-1), batch), far)
    assert answer_divergence(logits, logits.log_softmax(-1), batch).abs().max() < 1e-6


def test_prompts_alone_have_nothing_to_score(processor: Any) -> None:
    (batch,) = prompts(processor, OPEN)
    assert isinstance(batch, Batch)
    assert (batch.answers, batch.positions) == (None, 1)
    with pytest.raises(TaskError, match="no answers to score"):
        score(torch.zeros(6, 1, 9), batch)


def test_a_system_turn_comes_first(processor: Any) -> None:
    text = prompt(processor, "why?", system="be brief.", pictures=0)
    assert text == "system: be brief.\nuser: why?\nassistant:"
