from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from effllava_optuna import Policy, rank_units, sliced
from effllava_optuna.errors import LeakError
from effllava_optuna.objectives import (
    EncodedProxy,
    encode_samples,
    encoded_proxy,
    groups_of,
    samples_of,
    score_policy,
    split_folds,
)
from effllava_optuna.surgery import (
    FULL_FIT,
    FittedOutput,
    WeightState,
    answer_logits,
    arranged,
    projector,
    projector_state,
)
from effllava_optuna.tasks import Digits, GradingRule, Split, encode_with_answers, score_logits
from tests.waits import Waits

if TYPE_CHECKING:
    from effllava_optuna.surgery import LoadedModel


def test_folds_keep_groups_whole() -> None:
    samples = Digits().samples(Split.PROXY)
    folds = split_folds(samples, 2)
    assert [len(fold) for fold in folds] == [32, 32]
    assert not {s.group for s in folds[0]} & {s.group for s in folds[1]}


def test_each_sample_is_scored_by_the_fit_that_has_not_seen_it(tiny: LoadedModel) -> None:
    ranking = rank_units(tiny)
    dense = projector_state(tiny)
    states = [dense] + [
        {name: weight * factor for name, weight in dense.items()} for factor in (0.3, 2.0)
    ]
    weight_state = WeightState("b", ranking, (None,) * 3, tuple(states))
    policy = Policy.uniform(tiny.structure, ratio=0.5)
    samples = Digits(proxy=16).samples(Split.PROXY)
    batches = EncodedProxy.of(tiny, samples, 2, generate=False).scored
    assert [encoded.fit for encoded in batches] == [1, 2]
    scores = score_policy(tiny, weight_state, policy, batches)
    for fold, part in enumerate(split_folds(samples, 2)):
        small = sliced(tiny, policy, ranking)
        small.model.model.multi_modal_projector.load_state_dict(states[fold + 1])
        (batch,) = encode_with_answers(tiny.processor, part)
        with torch.no_grad():
            logits = small.model(**batch.inputs, logits_to_keep=1).logits
        expected = score_logits(logits, batch).log_probability
        np.testing.assert_allclose(
            scores.log_probability[fold * 8 : fold * 8 + 8], expected, atol=1e-5
        )
    assert len(groups_of(batches)) == 16
    assert all(torch.equal(dense[name], after) for name, after in projector_state(tiny).items())


def test_other_splits_are_scored_by_the_fit_on_the_whole_proxy(tiny: LoadedModel) -> None:
    samples = Digits(test=8).samples(Split.TEST)
    assert {item.fit for item in encode_samples(tiny, samples)} == {FULL_FIT}


@pytest.mark.parametrize("split", [Split.VALIDATION, Split.TEST])
def test_the_proxy_refuses_samples_of_other_splits(tiny: LoadedModel, split: Split) -> None:
    samples = Digits(validation=8, test=8).samples(split)
    with pytest.raises(LeakError, match=f"Calibration was given {split} sample"):
        EncodedProxy.of(tiny, samples, 2, generate=False)


def test_the_host_waits_for_a_batch_only_where_transformers_does(tiny: LoadedModel) -> None:
    ranking = rank_units(tiny)
    half = {
        (component.id, count): FittedOutput(torch.zeros(36, handle.columns * count))
        for component, handle in zip(tiny.structure.components, tiny.handles, strict=True)
        for count in (component.width // 2,)
    }
    weight_state = WeightState("b", ranking, (half,) * 3, (projector_state(tiny),) * 3)
    policy = Policy.uniform(tiny.structure, ratio=0.5)
    samples = Digits(proxy=16).samples(Split.PROXY)
    for size in (16, 1):  # one to a batch, nothing is padded
        asked = [
            item
            for fold, mine in enumerate(split_folds(samples, 2))
            for item in encode_samples(tiny, mine, batch_size=size, fit=fold + 1)
        ]
        with arranged(tiny, ranking) as ready, Waits() as waits:
            score_policy(ready, weight_state, policy, asked)
        assert {library for library, _ in waits.counts} == {"transformers"}
        # It compares the numbers of image tokens and features, for a message, too; and looks
        # whether anything is padded.
        where = {"modeling_llava.py", "import_utils.py", "masking_utils.py"}
        assert {file for _, file in waits.counts} <= where
        assert waits.counts.total() <= 4 * len(asked)


def test_scoring_leaves_no_tensor_that_cannot_be_trained(tiny: LoadedModel) -> None:
    weight_state = WeightState("b", rank_units(tiny), (None,) * 3, (projector_state(tiny),) * 3)
    policy = Policy.uniform(tiny.structure, ratio=0.5)
    proxy = EncodedProxy.of(tiny, Digits(proxy=8).samples(Split.PROXY), 2, generate=False)
    score_policy(tiny, weight_state, policy, proxy.scored)
    weights = [*tiny.model.parameters(), *tiny.model.buffers()]
    assert not any(weight.is_inference() for weight in weights)
    learner = projector(tiny.model).requires_grad_(requires_grad=True)
    try:
        torch.autograd.backward(answer_logits(tiny, proxy.scored[0].seen).float().pow(2).sum())
        assert all(weight.grad is not None for weight in learner.parameters())
    finally:
        learner.requires_grad_(requires_grad=False)
        learner.zero_grad(set_to_none=True)


def test_samples_of_like_length_share_a_batch_and_score_as_they_do_alone(
    tiny: LoadedModel,
) -> None:
    samples = Digits(proxy=16).samples(Split.PROXY)
    weight_state = WeightState("b", rank_units(tiny), (None,), (None,))
    policy = Policy.uniform(tiny.structure, ratio=0.5)
    asked = {size: encode_samples(tiny, samples, batch_size=size) for size in (1, 5, 16)}
    log_probabilities = {
        size: {
            sample.id: value
            for sample, value in zip(
                samples_of(mine),
                score_policy(tiny, weight_state, policy, mine).log_probability,
                strict=True,
            )
        }
        for size, mine in asked.items()
    }
    for size in (5, 16):
        assert log_probabilities[size] == pytest.approx(log_probabilities[1], abs=1e-4)
    padding = {
        size: sum(int((item.batch.inputs["attention_mask"] == 0).sum()) for item in mine)
        for size, mine in asked.items()
    }
    assert padding[1] == 0 < padding[5] < padding[16]


def test_parts_of_the_encoded_proxy_equal_parts_encoded_alone(tiny: LoadedModel) -> None:
    samples = Digits(proxy=16).samples(Split.PROXY)
    proxy = EncodedProxy.of(tiny, samples, 2, generate=False)
    parts = proxy.parts(tiny, 2)
    assert [part for part, _ in parts] == [0, 1, 2, 3]
    assert [encoded.fit for _, encoded in parts] == [1, 1, 2, 2]
    folds = split_folds(samples, 2)
    for part, encoded in parts:
        expected = split_folds(folds[part // 2], 2)[part % 2]
        assert encoded.batch.samples == expected
        (alone,) = encode_samples(tiny, expected)
        torch.testing.assert_close(
            answer_logits(tiny, encoded.seen),
            answer_logits(tiny, alone.seen),
            rtol=1e-4,
            atol=1e-4,
        )


def test_rows_are_not_selected_if_pictures_and_samples_do_not_correspond(
    tiny: LoadedModel,
) -> None:
    samples = Digits(proxy=8).samples(Split.PROXY)
    (encoded,) = encode_samples(tiny, samples)
    vision = encoded.seen.vision
    assert vision is not None
    tiles = replace(vision, features=vision.features.repeat(2, 1, 1))
    seen = replace(encoded.seen, vision=tiles)
    assert replace(encoded, seen=seen).rows(samples[:2]) is None


def test_open_questions_are_graded_by_generation_and_searched_as_the_study_says(
    tiny: LoadedModel,
) -> None:
    closed = Digits(proxy=8).samples(Split.PROXY)
    rule = GradingRule(
        "equal", lambda sample, text: float(text == sample.correct_answer), new_tokens=2
    )
    samples = [replace(sample, answer=None, rule=rule) for sample in closed]
    read = EncodedProxy.of(tiny, samples, 2, generate=False)
    assert all(encoded.batch.answers is not None for encoded in read.scored)
    assert all(encoded.batch.answers is None for encoded in read.graded)
    generated = EncodedProxy.of(tiny, samples, 2, generate=True)
    assert generated.scored is generated.graded
    assert [encoded.fit for encoded in generated.scored] == [1, 2]


def test_parts_are_divided_for_the_memory_of_a_backward_pass(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = EncodedProxy.of(tiny, Digits(proxy=16).samples(Split.PROXY), 2, generate=False)
    whole = proxy.parts(tiny, 2)
    monkeypatch.setattr(encoded_proxy, "samples_per_backward", lambda *_: 3)
    divided = proxy.parts(tiny, 2)
    assert max(len(encoded.batch) for _, encoded in divided) == 3
    assert len(divided) > len(whole)
    for part, encoded in whole:
        some = [each for number, each in divided if number == part]
        assert sum((each.batch.samples for each in some), ()) == encoded.batch.samples
        assert {each.fit for each in some} == {encoded.fit}
