"""The dense model answers questions, and is the reference of a proxy set without labels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from effllava_optuna.errors import LeakError, TaskError
from effllava_optuna.objectives import (
    EncodedProxy,
    answer_questions,
    describe_task,
    graded_samples,
    measure_of,
    score_policy,
)
from effllava_optuna.policy import Policy
from effllava_optuna.surgery import WeightState, encode_images, generate_text, rank_units
from effllava_optuna.tasks import (
    AGREEMENT,
    UNLABELLED,
    DenseAnswer,
    Digits,
    GradingRule,
    Sample,
    Split,
    encode_prompts,
    with_dense_answers,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.surgery import LoadedModel

RULE = GradingRule("none", lambda _sample, _text: 0.0, new_tokens=3)
LABELLED = Digits(proxy=8).samples(Split.PROXY)
CLOSED = tuple(replace(sample, answer=UNLABELLED) for sample in LABELLED)
OPEN = tuple(replace(sample, answer=None, targets=(), rule=RULE) for sample in LABELLED)


def proxy_of(loaded: LoadedModel, samples: Sequence[Sample]) -> EncodedProxy:
    answered = with_dense_answers(samples, answer_questions(loaded, samples))
    return EncodedProxy.of(loaded, answered, 2, generate=False)


def weight_state(loaded: LoadedModel) -> WeightState:
    return WeightState("b", rank_units(loaded), (None,) * 3, (None,) * 3)


def test_an_open_question_is_answered_as_generation_does(tiny: LoadedModel) -> None:
    answers = answer_questions(tiny, OPEN)
    (batch,) = encode_prompts(tiny.processor, OPEN)
    texts = generate_text(tiny, encode_images(tiny, batch.inputs), RULE.new_tokens)
    assert [answers[sample_id].text for sample_id in batch.ids] == texts
    assert {answer.option for answer in answers.values()} == {None}


def test_an_answer_of_the_largest_length_is_truncated_unless_it_ends(tiny: LoadedModel) -> None:
    end = tiny.model.generation_config.eos_token_id
    weight = tiny.model.get_output_embeddings().weight
    before = weight[end].clone()
    try:
        answers = answer_questions(tiny, OPEN)
        assert all(answer.truncated for answer in answers.values())
        (first,) = tiny.processor.tokenizer.encode(answers[OPEN[0].id].text)[:1]
        with torch.no_grad():
            weight[end] = 3 * weight[first]  # the end token is more likely than that word
        answers = answer_questions(tiny, OPEN)
    finally:
        with torch.no_grad():
            weight[end] = before
    assert answers[OPEN[0].id] == DenseAnswer("", truncated=False)


def test_a_closed_question_is_answered_by_its_most_likely_option(tiny: LoadedModel) -> None:
    answers = answer_questions(tiny, CLOSED)
    assert answers == answer_questions(tiny, LABELLED)  # labels are not read
    for sample in CLOSED:
        option = answers[sample.id].option
        assert option is not None
        only = EncodedProxy.of(
            tiny, [replace(sample, answer=option), *LABELLED[1:]], 2, generate=False
        )
        scores = score_policy(
            tiny, weight_state(tiny), Policy.dense(tiny.structure), only.scored[:1]
        )
        if sample is CLOSED[0]:
            assert scores.hit[0] == 1.0
    assert len({answer.option for answer in answers.values()}) > 1


@pytest.mark.parametrize("samples", [CLOSED, OPEN], ids=["closed", "open"])
def test_the_dense_model_has_agreement_one_and_a_pruned_one_less(
    tiny: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    proxy = proxy_of(tiny, samples).with_dense_outputs(tiny)
    state = weight_state(tiny)
    dense = score_policy(tiny, state, Policy.dense(tiny.structure), proxy.scored)
    np.testing.assert_array_equal(dense.hit, 1.0)
    np.testing.assert_allclose(dense.probability, 1.0, atol=1e-5)
    half = score_policy(tiny, state, Policy.uniform(tiny.structure, ratio=0.5), proxy.scored)
    assert half.hit.mean() < 1.0
    assert 0.0 < half.probability.mean() < 0.99


def test_labels_do_not_change_the_agreement(tiny: LoadedModel) -> None:
    half, state = Policy.uniform(tiny.structure, ratio=0.5), weight_state(tiny)
    labelled, unlabelled = (
        score_policy(tiny, state, half, proxy_of(tiny, s).with_dense_outputs(tiny).scored)
        for s in (LABELLED, CLOSED)
    )
    np.testing.assert_array_equal(labelled.log_probability, unlabelled.log_probability)


def test_what_the_report_grades_is_the_same_answer(tiny: LoadedModel) -> None:
    closed, open_ended = proxy_of(tiny, CLOSED), proxy_of(tiny, OPEN)
    with_outputs = closed.with_dense_outputs(tiny)
    assert with_outputs.graded is with_outputs.scored
    assert open_ended.with_dense_outputs(tiny).graded is open_ended.graded
    state, dense = weight_state(tiny), Policy.dense(tiny.structure)
    np.testing.assert_array_equal(score_policy(tiny, state, dense, open_ended.graded).hit, 1.0)


def test_parts_for_training_have_the_answers_and_no_outputs(tiny: LoadedModel) -> None:
    proxy = proxy_of(tiny, OPEN).with_dense_outputs(tiny)
    parts = proxy.parts(tiny, 2)
    assert sum(len(encoded.batch) for _, encoded in parts) == len(OPEN)
    assert all(encoded.dense is None for _, encoded in parts)
    assert all(sample.dense is not None for _, e in parts for sample in e.batch.samples)


def test_outputs_that_need_too_much_memory_are_refused(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = proxy_of(tiny, OPEN)
    monkeypatch.setattr("effllava_optuna.objectives.encoded_proxy._OUTPUT_GB", 1e-9)
    with pytest.raises(TaskError, match=r"on 8 proxy samples take 0\.0 GB, 1e-09 GB at most") as e:
        proxy.with_dense_outputs(tiny)
    assert "Reduce task.new_tokens or task.proxy" in str(e.value)


def test_samples_of_other_splits_are_still_refused(tiny: LoadedModel) -> None:
    test = Digits(proxy=8, test=8).samples(Split.TEST)
    with pytest.raises(LeakError):
        proxy_of(tiny, test)


class PartlyLabelled(Digits):
    """Validation has labels; the proxy set has none, and test one without."""

    def samples(self, split: Split) -> tuple[Sample, ...]:
        samples = super().samples(split)
        if split is Split.VALIDATION:
            return samples
        first = tuple(replace(sample, answer=UNLABELLED) for sample in samples[:1])
        return first + samples[1:]


def test_a_split_reports_accuracy_only_if_all_of_its_samples_have_answers(
    tiny: LoadedModel,
) -> None:
    task = PartlyLabelled(proxy=8, validation=4, test=4)
    described = describe_task(task, "agreement", generate=False)
    assert described["measures"] == {
        "proxy": "agreement", "validation": "accuracy", "test": "agreement",
    }  # fmt: skip
    assert described["metric"]["report"] == "likeliest option"
    whole = describe_task(Digits(proxy=8, validation=4, test=4), "accuracy", generate=False)
    assert set(whole["measures"].values()) == {"accuracy"}
    test = task.samples(Split.TEST)
    assert measure_of(test, "agreement") == "agreement"
    answered = graded_samples(tiny, test, "agreement")
    assert all(sample.dense is not None for sample in answered)  # those with labels, too
    validation = task.samples(Split.VALIDATION)
    assert graded_samples(tiny, validation, "agreement") == validation


def test_a_task_without_any_label_is_reported_as_agreement() -> None:
    class Unlabelled(Digits):
        def samples(self, split: Split) -> tuple[Sample, ...]:
            return tuple(replace(s, answer=UNLABELLED) for s in super().samples(split))

    described = describe_task(
        Unlabelled(proxy=8, validation=4, test=4), "agreement", generate=False
    )
    assert set(described["measures"].values()) == {"agreement"}
    assert described["metric"]["report"] == AGREEMENT
