"""Right or wrong, and how sure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from effllava_optuna.tasks import Batch, Scores, score, target_logits


def make(targets: list[list[int]], answers: list[int]) -> Batch:
    return Batch({}, torch.tensor(targets), torch.tensor(answers), samples=())


BATCH = make([[4, 1, 0], [2, 3, -1]], [0, 1])


def test_scores_are_the_softmax_over_the_possible_answers() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 6))
    scores = score(torch.tensor(logits)[:, None], BATCH)
    expected = []
    for row, (targets, answer) in enumerate([((4, 1, 0), 0), ((2, 3), 1)]):
        powers = np.exp(logits[row, list(targets)])
        expected.append(powers[answer] / powers.sum())
        assert scores.hit[row] == (powers.argmax() == answer)
    np.testing.assert_allclose(scores.probability, expected, rtol=1e-6)
    np.testing.assert_allclose(scores.log_probability, np.log(expected), rtol=1e-6)


def test_tokens_that_are_no_possible_answer_do_not_count() -> None:
    logits = torch.zeros(2, 1, 6)
    logits[0, 0, 4] = logits[1, 0, 3] = 1
    before = score(logits, BATCH)
    logits[0, 0, 5] = logits[1, 0, 0] = 100
    after = score(logits, BATCH)
    assert before.hit.tolist() == [1, 1]
    np.testing.assert_array_equal(before.log_probability, after.log_probability)


def test_a_sample_with_fewer_answers_never_gives_a_missing_one() -> None:
    assert (
        target_logits(torch.zeros(2, 1, 6), torch.tensor([[4, 1, 0], [2, 3, -1]]))[1, 2]
        == -torch.inf
    )
    assert score(torch.full((2, 1, 6), -50.0), BATCH).probability[1] == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("column", [4, 1])
def test_a_model_that_answers_nan_is_wrong(bad: float, column: int) -> None:
    logits = torch.zeros(2, 1, 6)
    logits[0, 0, 4] = logits[1, 0, 3] = 1
    logits[0, 0, column] = bad
    scores = score(logits, BATCH)
    assert scores.hit.tolist() == [0, 1]
    assert scores.probability[0] == 0
    assert np.isfinite(scores.probability).all()


def test_half_precision_is_scored_in_full() -> None:
    logits = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    half, full = score(logits, BATCH), score(logits.float(), BATCH)
    np.testing.assert_array_equal(half.log_probability, full.log_probability)
    assert half.hit.dtype == half.log_probability.dtype == np.float64


def test_joined_scores_are_those_of_one_batch() -> None:
    logits = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(1))
    parts = [
        score(logits[:1], make([[4, 1, 0]], [0])),
        score(logits[1:], make([[2, 3, -1]], [1])),
    ]
    joined, whole = Scores.joined(parts), score(logits, BATCH)
    np.testing.assert_array_equal(joined.hit, whole.hit)
    np.testing.assert_array_equal(joined.log_probability, whole.log_probability)
