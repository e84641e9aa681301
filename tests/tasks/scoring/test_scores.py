"""Scores from logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from effllava_optuna.tasks import Batch, Scores, score_logits, target_logits


def make_batch(targets: list[list[int]], answers: list[int]) -> Batch:
    return Batch({}, torch.tensor(targets), torch.tensor(answers), samples=())


BATCH = make_batch([[4, 1, 0], [2, 3, -1]], [0, 1])


def test_scores_are_the_softmax_over_the_possible_answers() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 6))
    scores = score_logits(torch.tensor(logits)[:, None], BATCH)
    expected = []
    for row, (targets, answer) in enumerate([((4, 1, 0), 0), ((2, 3), 1)]):
        powers = np.exp(logits[row, list(targets)])
        expected.append(powers[answer] / powers.sum())
        assert scores.hit[row] == (powers.argmax() == answer)
    np.testing.assert_allclose(scores.probability, expected, rtol=1e-6)
    np.testing.assert_allclose(scores.log_probability, np.log(expected), rtol=1e-6)


def test_tokens_of_no_possible_answer_are_ignored() -> None:
    logits = torch.zeros(2, 1, 6)
    logits[0, 0, 4] = logits[1, 0, 3] = 1
    before = score_logits(logits, BATCH)
    logits[0, 0, 5] = logits[1, 0, 0] = 100
    after = score_logits(logits, BATCH)
    assert before.hit.tolist() == [1, 1]
    np.testing.assert_array_equal(before.log_probability, after.log_probability)


def test_a_missing_answer_is_never_the_most_likely_one() -> None:
    assert (
        target_logits(torch.zeros(2, 1, 6), torch.tensor([[4, 1, 0], [2, 3, -1]]))[1, 2]
        == -torch.inf
    )
    assert score_logits(torch.full((2, 1, 6), -50.0), BATCH).probability[1] == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("column", [4, 1])
def test_nan_counts_as_a_wrong_answer(bad: float, column: int) -> None:
    logits = torch.zeros(2, 1, 6)
    logits[0, 0, 4] = logits[1, 0, 3] = 1
    logits[0, 0, column] = bad
    scores = score_logits(logits, BATCH)
    assert scores.hit.tolist() == [0, 1]
    assert scores.probability[0] == 0
    assert np.isfinite(scores.probability).all()


def test_half_precision_is_scored_in_full() -> None:
    logits = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    half, full = score_logits(logits, BATCH), score_logits(logits.float(), BATCH)
    np.testing.assert_array_equal(half.log_probability, full.log_probability)
    assert half.hit.dtype == half.log_probability.dtype == np.float64


def test_concatenated_scores_equal_those_of_one_batch() -> None:
    logits = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(1))
    parts = [
        score_logits(logits[:1], make_batch([[4, 1, 0]], [0])),
        score_logits(logits[1:], make_batch([[2, 3, -1]], [1])),
    ]
    concatenated, whole = Scores.concatenate(parts), score_logits(logits, BATCH)
    np.testing.assert_array_equal(concatenated.hit, whole.hit)
    np.testing.assert_array_equal(concatenated.log_probability, whole.log_probability)
