"""Answers in words."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import effllava_optuna
from effllava_optuna.errors import ModelError, TaskError
from effllava_optuna.objectives.answering import Manner, Question, Respondent
from effllava_optuna.surgery import Loaded, answer, look
from effllava_optuna.tasks import Digits, Split, encode, score
from effllava_optuna.tasks.batches import prompt

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLES = Digits(test=24).samples(Split.TEST)
PICTURES = [p for sample in SAMPLES if (p := sample.picture()) is not None]
SEEN = [Question(s.question, (picture,)) for s, picture in zip(SAMPLES, PICTURES, strict=True)]
MIXED = [
    *SEEN[:5],
    Question("what is the largest digit?"),
    Question("what is the sum of the top row?", (PICTURES[0], PICTURES[1])),
    *SEEN[5:8],
    Question("how many digits are odd?", (PICTURES[2], PICTURES[3])),
    Question("what digit is at the top left?"),
]
SHORT = Manner(new_tokens=6)


class Strict:
    """A processor that, as mllama's, takes as many pictures for each text of a batch."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *, images: list[list[Any]] | None, **others: Any) -> Any:
        assert len({len(mine) for mine in images or [[]]}) == 1
        return self.inner(images=images, **others)


@pytest.fixture(scope="module")
def digits() -> Loaded:
    return effllava_optuna.load("digits-vlm", device="cpu")


@pytest.fixture
def steps(tiny: Loaded) -> Iterator[list[int]]:
    """How many tokens the head of `tiny` sees, forward pass by forward pass."""
    seen: list[int] = []
    hook = tiny.model.lm_head.register_forward_hook(
        lambda _, arguments, __: seen.append(arguments[0].shape[1])
    )
    yield seen
    hook.remove()


def test_written_answers_are_those_that_score_best(digits: Loaded) -> None:
    (batch,) = encode(digits.processor, SAMPLES)
    hit = score(answer(digits, look(digits, batch.inputs)), batch).hit
    written = Respondent(digits, 8).write(SEEN, SHORT)
    right = [text == s.targets[s.answer or 0] for text, s in zip(written, SAMPLES, strict=True)]
    assert right == hit.astype(bool).tolist()


@pytest.mark.parametrize("model", ["digits", "tiny"])
def test_batches_change_no_answer_and_keep_the_order(
    model: str, request: pytest.FixtureRequest
) -> None:
    loaded = request.getfixturevalue(model)
    alone = [Respondent(loaded).write([question], SHORT)[0] for question in MIXED]
    assert len(set(alone)) > 3
    loaded = replace(loaded, processor=Strict(loaded.processor))
    assert Respondent(loaded, 8).write(MIXED, SHORT) == alone
    pairs = [(question, "3 1") for question in MIXED]
    one = [Respondent(loaded).weigh([pair])[0] for pair in pairs]
    eight = Respondent(loaded, 8).weigh(pairs)
    for first, second in zip(one, eight, strict=True):
        assert first.log_probability == pytest.approx(second.log_probability, abs=1e-4)
        assert first.greedy == second.greedy


def test_the_weight_of_an_answer_is_the_sum_over_its_tokens(tiny: Loaded) -> None:
    answers = ["7", "3 18 top left", "digit ?"]
    found = Respondent(tiny, 3).weigh(zip(SEEN, answers, strict=False))
    for question, text, weight in zip(SEEN, answers, found, strict=False):
        assert weight.log_probability == pytest.approx(
            _summed(tiny, question, text), rel=1e-5, abs=1e-4
        )


def _summed(loaded: Loaded, question: Question, text: str) -> float:
    """Ask for one token after the other, nothing padded."""
    tokenizer, total = loaded.processor.tokenizer, 0.0
    asked = prompt(loaded.processor, question.text)
    for token in text.split():
        inputs = loaded.processor(text=[asked], images=[question.pictures[0]], return_tensors="pt")
        with torch.no_grad():
            logs = loaded.model(**inputs).logits[0, -1].double().log_softmax(-1)
        total += float(logs[tokenizer.convert_tokens_to_ids(token)])
        asked = f"{asked} {token}"
    return total


def test_what_a_model_writes_is_greedy_and_the_rest_is_not(digits: Loaded) -> None:
    written = Respondent(digits, 8).write(SEEN[:4], SHORT)
    assert all(w.greedy for w in Respondent(digits, 8).weigh(zip(SEEN, written, strict=False)))
    other = [(question, "17") for question in SEEN[:4]]
    assert not any(weight.greedy for weight in Respondent(digits, 8).weigh(other))


def test_an_answer_ends_before_a_stop_and_nothing_is_written_after_it(
    tiny: Loaded, steps: list[int]
) -> None:
    long = Respondent(tiny).write(SEEN[:1], Manner(new_tokens=40))[0]
    words, most = long.split(), len(steps)
    stop = next(word for word in words[3:] if words.index(word) > 2)
    steps.clear()
    found = Respondent(tiny).write(SEEN[:1], Manner(new_tokens=40, until=("never", stop)))
    assert found == [long.partition(stop)[0].strip()]
    unprinted = most - len(words)  # special tokens
    assert words.index(stop) < len(steps) <= words.index(stop) + 1 + unprinted < most


def test_greedy_is_greedy_whatever_the_checkpoint_says(tiny: Loaded) -> None:
    expected = Respondent(tiny, 4).write(SEEN[:4], SHORT)
    known = tiny.model.generation_config
    tiny.model.generation_config = copy.deepcopy(known)
    tiny.model.generation_config.update(do_sample=True, temperature=5.0, top_p=0.9, top_k=3)
    try:
        assert Respondent(tiny, 4).write(SEEN[:4], SHORT) == expected
    finally:
        tiny.model.generation_config = known


def test_a_temperature_draws(tiny: Loaded) -> None:
    same = [SEEN[0]] * 16
    assert len(set(Respondent(tiny, 16).write(same, SHORT))) == 1
    assert len(set(Respondent(tiny, 16).write(same, replace(SHORT, temperature=3.0)))) > 4
    frozen = replace(SHORT, temperature=3.0, top_k=1)
    assert len(set(Respondent(tiny, 16).write(same, frozen))) == 1


def test_beams_find_what_is_at_least_as_likely(tiny: Loaded) -> None:
    greedy = Respondent(tiny, 4).write(SEEN[:8], Manner(new_tokens=3))
    wide = Respondent(tiny, 4).write(SEEN[:8], Manner(new_tokens=3, beams=6))
    assert greedy != wide
    weights = [
        sum(w.log_probability for w in Respondent(tiny, 8).weigh(zip(SEEN, texts, strict=False)))
        for texts in (greedy, wide)
    ]
    assert weights[1] > weights[0]


def test_a_repetition_penalty_is_obeyed(tiny: Loaded) -> None:
    (plain,) = Respondent(tiny).write(SEEN[:1], Manner(new_tokens=20))
    (penalised,) = Respondent(tiny).write(SEEN[:1], Manner(new_tokens=20, repetition_penalty=50.0))
    assert len(set(penalised.split())) == len(penalised.split()) > len(set(plain.split()))


def test_the_system_turn_is_read(digits: Loaded) -> None:
    pair = (SEEN[0], "3")
    (plain,) = Respondent(digits).weigh([pair])
    (told,) = Respondent(digits, system="how many digits are even?").weigh([pair])
    assert abs(plain.log_probability - told.log_probability) > 1e-3


def test_without_a_token_to_pad_with_questions_are_asked_one_by_one(digits: Loaded) -> None:
    bare = replace(digits, processor=copy.deepcopy(digits.processor))
    bare.processor.tokenizer.pad_token = None
    expected = Respondent(digits, 4).write(MIXED, SHORT)
    assert Respondent(bare, 4).write(MIXED, SHORT) == expected


def test_a_model_that_answers_nan_is_wrong(make_llava: Any) -> None:
    broken = make_llava()
    torch.nn.init.constant_(broken.model.lm_head.weight, math.nan)
    (weight,) = Respondent(broken).weigh([(SEEN[0], "3")])
    assert weight == (-math.inf, False)


def test_a_text_decoder_is_refused(tiny: Loaded) -> None:
    with pytest.raises(ModelError, match=r"takes no pictures\. Use a vision-language model"):
        Respondent(replace(tiny, processor=tiny.processor.tokenizer))


def test_a_question_with_the_image_token_in_it_is_refused(tiny: Loaded) -> None:
    with pytest.raises(TaskError, match="'what is <image>' has '<image>' in it"):
        Respondent(tiny).write([Question("what is <image>")], SHORT)


def test_an_empty_answer_cannot_be_weighed(tiny: Loaded) -> None:
    with pytest.raises(TaskError, match="The answer '' changes"):
        Respondent(tiny).weigh([(SEEN[0], " ")])
