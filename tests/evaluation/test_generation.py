"""Generated answers, and likelihoods of given ones."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import effllava_optuna
from effllava_optuna.errors import ModelError, TaskError
from effllava_optuna.evaluation.generation import AnsweringModel, GenerationOptions, Question
from effllava_optuna.surgery import LoadedModel, answer_logits, encode_images
from effllava_optuna.tasks import Digits, Split, encode_with_answers, score_logits
from effllava_optuna.tasks.prompts import format_prompt

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLES = Digits(test=24).samples(Split.TEST)
PICTURES = [p for sample in SAMPLES if (p := sample.load_image()) is not None]
SEEN = [Question(s.question, (picture,)) for s, picture in zip(SAMPLES, PICTURES, strict=True)]
MIXED = [
    *SEEN[:5],
    Question("what is the largest digit?"),
    Question("what is the sum of the top row?", (PICTURES[0], PICTURES[1])),
    *SEEN[5:8],
    Question("how many digits are odd?", (PICTURES[2], PICTURES[3])),
    Question("what digit is at the top left?"),
]
SHORT = GenerationOptions(new_tokens=6)


class SameNumberOfPictures:
    """A processor that, like mllama's, needs the same number of pictures for each text."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *, images: list[list[Any]] | None, **others: Any) -> Any:
        assert len({len(pictures) for pictures in images or [[]]}) == 1
        return self.inner(images=images, **others)


@pytest.fixture(scope="module")
def digits() -> LoadedModel:
    return effllava_optuna.load("digits-vlm", device="cpu")


@pytest.fixture
def steps(tiny: LoadedModel) -> Iterator[list[int]]:
    """The number of tokens that the head of `tiny` reads in each forward pass."""
    seen: list[int] = []
    hook = tiny.model.lm_head.register_forward_hook(
        lambda _, arguments, __: seen.append(arguments[0].shape[1])
    )
    yield seen
    hook.remove()


def test_generated_answers_are_right_if_the_right_option_scores_best(digits: LoadedModel) -> None:
    (batch,) = encode_with_answers(digits.processor, SAMPLES)
    hit = score_logits(answer_logits(digits, encode_images(digits, batch.inputs)), batch).hit
    written = AnsweringModel(digits, 8).generate(SEEN, SHORT)
    right = [text == s.targets[s.answer or 0] for text, s in zip(written, SAMPLES, strict=True)]
    assert right == hit.astype(bool).tolist()


@pytest.mark.parametrize("model", ["digits", "tiny"])
def test_the_batch_size_changes_neither_answers_nor_likelihoods(
    model: str, request: pytest.FixtureRequest
) -> None:
    loaded = request.getfixturevalue(model)
    alone = [AnsweringModel(loaded).generate([question], SHORT)[0] for question in MIXED]
    assert len(set(alone)) > 3
    loaded = replace(loaded, processor=SameNumberOfPictures(loaded.processor))
    assert AnsweringModel(loaded, 8).generate(MIXED, SHORT) == alone
    pairs = [(question, "3 1") for question in MIXED]
    one = [AnsweringModel(loaded).likelihoods([pair])[0] for pair in pairs]
    eight = AnsweringModel(loaded, 8).likelihoods(pairs)
    for first, second in zip(one, eight, strict=True):
        assert first.log_probability == pytest.approx(second.log_probability, abs=1e-4)
        assert first.greedy == second.greedy


def test_the_likelihood_of_an_answer_is_the_sum_over_its_tokens(tiny: LoadedModel) -> None:
    answers = ["7", "3 18 top left", "digit ?"]
    likelihoods = AnsweringModel(tiny, 3).likelihoods(zip(SEEN, answers, strict=False))
    for question, text, likelihood in zip(SEEN, answers, likelihoods, strict=False):
        assert likelihood.log_probability == pytest.approx(
            summed_log_probability(tiny, question, text), rel=1e-5, abs=1e-4
        )


def summed_log_probability(loaded: LoadedModel, question: Question, text: str) -> float:
    """Sum the log-probabilities of tokens that are read one by one, without padding."""
    tokenizer, total = loaded.processor.tokenizer, 0.0
    prompt = format_prompt(loaded.processor, question.text)
    for token in text.split():
        inputs = loaded.processor(
            text=[prompt], images=[question.pictures[0]], return_tensors="pt"
        )
        with torch.no_grad():
            logs = loaded.model(**inputs).logits[0, -1].double().log_softmax(-1)
        total += float(logs[tokenizer.convert_tokens_to_ids(token)])
        prompt = f"{prompt} {token}"
    return total


def test_only_generated_answers_are_greedy(digits: LoadedModel) -> None:
    written = AnsweringModel(digits, 8).generate(SEEN[:4], SHORT)
    assert all(
        w.greedy for w in AnsweringModel(digits, 8).likelihoods(zip(SEEN, written, strict=False))
    )
    other = [(question, "17") for question in SEEN[:4]]
    assert not any(
        likelihood.greedy for likelihood in AnsweringModel(digits, 8).likelihoods(other)
    )


def test_generation_ends_at_a_stop_string(tiny: LoadedModel, steps: list[int]) -> None:
    long = AnsweringModel(tiny).generate(SEEN[:1], GenerationOptions(new_tokens=40))[0]
    words, most = long.split(), len(steps)
    stop = next(word for word in words[3:] if words.index(word) > 2)
    steps.clear()
    generated = AnsweringModel(tiny).generate(
        SEEN[:1], GenerationOptions(new_tokens=40, until=("never", stop))
    )
    assert generated == [long.partition(stop)[0].strip()]
    unprinted = most - len(words)  # special tokens
    assert words.index(stop) < len(steps) <= words.index(stop) + 1 + unprinted < most


def test_greedy_decoding_ignores_the_sampling_of_the_checkpoint(tiny: LoadedModel) -> None:
    expected = AnsweringModel(tiny, 4).generate(SEEN[:4], SHORT)
    known = tiny.model.generation_config
    tiny.model.generation_config = copy.deepcopy(known)
    tiny.model.generation_config.update(do_sample=True, temperature=5.0, top_p=0.9, top_k=3)
    try:
        assert AnsweringModel(tiny, 4).generate(SEEN[:4], SHORT) == expected
    finally:
        tiny.model.generation_config = known


def test_a_temperature_samples_different_answers(tiny: LoadedModel) -> None:
    same = [SEEN[0]] * 16
    assert len(set(AnsweringModel(tiny, 16).generate(same, SHORT))) == 1
    assert len(set(AnsweringModel(tiny, 16).generate(same, replace(SHORT, temperature=3.0)))) > 4
    frozen = replace(SHORT, temperature=3.0, top_k=1)
    assert len(set(AnsweringModel(tiny, 16).generate(same, frozen))) == 1


def test_beam_search_finds_likelier_answers(tiny: LoadedModel) -> None:
    greedy = AnsweringModel(tiny, 4).generate(SEEN[:8], GenerationOptions(new_tokens=3))
    wide = AnsweringModel(tiny, 4).generate(SEEN[:8], GenerationOptions(new_tokens=3, beams=6))
    assert greedy != wide
    weights = [
        sum(
            w.log_probability
            for w in AnsweringModel(tiny, 8).likelihoods(zip(SEEN, texts, strict=False))
        )
        for texts in (greedy, wide)
    ]
    assert weights[1] > weights[0]


def test_a_repetition_penalty_prevents_repetitions(tiny: LoadedModel) -> None:
    (plain,) = AnsweringModel(tiny).generate(SEEN[:1], GenerationOptions(new_tokens=20))
    (penalised,) = AnsweringModel(tiny).generate(
        SEEN[:1], GenerationOptions(new_tokens=20, repetition_penalty=50.0)
    )
    assert len(set(penalised.split())) == len(penalised.split()) > len(set(plain.split()))


def test_the_system_prompt_changes_likelihoods(digits: LoadedModel) -> None:
    pair = (SEEN[0], "3")
    (plain,) = AnsweringModel(digits).likelihoods([pair])
    (with_system,) = AnsweringModel(digits, system="how many digits are even?").likelihoods([pair])
    assert abs(plain.log_probability - with_system.log_probability) > 1e-3


def test_without_a_padding_token_questions_are_answered_alike(digits: LoadedModel) -> None:
    bare = replace(digits, processor=copy.deepcopy(digits.processor))
    bare.processor.tokenizer.pad_token = None
    expected = AnsweringModel(digits, 4).generate(MIXED, SHORT)
    assert AnsweringModel(bare, 4).generate(MIXED, SHORT) == expected


def test_a_model_with_nan_logits_is_wrong(make_llava: Any) -> None:
    broken = make_llava()
    torch.nn.init.constant_(broken.model.lm_head.weight, math.nan)
    (likelihood,) = AnsweringModel(broken).likelihoods([(SEEN[0], "3")])
    assert likelihood == (-math.inf, False)


def test_a_text_decoder_is_refused(tiny: LoadedModel) -> None:
    with pytest.raises(ModelError, match=r"takes no pictures\. Use a vision-language model"):
        AnsweringModel(replace(tiny, processor=tiny.processor.tokenizer))


def test_a_question_with_the_image_token_in_it_is_refused(tiny: LoadedModel) -> None:
    with pytest.raises(TaskError, match="'what is <image>' has '<image>' in it"):
        AnsweringModel(tiny).generate([Question("what is <image>")], SHORT)


def test_an_empty_answer_is_refused(tiny: LoadedModel) -> None:
    with pytest.raises(TaskError, match="The answer '' changes"):
        AnsweringModel(tiny).likelihoods([(SEEN[0], " ")])
