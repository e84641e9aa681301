"""Agreement with the dense model, against a calculation by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks import Batch, count_outputs, dense_outputs, score_agreement
from effllava_optuna.tasks.prompts.batch import IGNORE_INDEX

VOCABULARY = 7
# The answers of two questions: three tokens, and one token with an end that is not predicted.
OPEN = Batch({}, None, torch.tensor([[2, 3, 6], [IGNORE_INDEX, 4, IGNORE_INDEX]]), ())
CLOSED = Batch({}, torch.tensor([[4, 1, 0], [2, 3, -1]]), torch.tensor([0, 1]), ())
PLACES = {0: [0, 1, 2], 1: [1]}  # predictions of each sample of OPEN


def logits(seed: int, positions: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=(2, positions, VOCABULARY)), dtype=torch.float32)


def divergence(expected: torch.Tensor, actual: torch.Tensor) -> float:
    p, q = (np.exp(x.numpy().astype(np.float64)) for x in (expected, actual))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def test_an_open_question_has_the_mean_divergence_over_the_tokens_of_its_answer() -> None:
    dense, pruned = logits(0, 3), logits(1, 3)
    hit, log_probability = score_agreement(pruned, OPEN, dense_outputs(dense, OPEN))
    for sample, places in PLACES.items():
        expected = np.mean([divergence(dense[sample, p], pruned[sample, p]) for p in places])
        assert float(log_probability[sample]) == pytest.approx(-expected, rel=1e-5)
        same = [bool(dense[sample, p].argmax() == pruned[sample, p].argmax()) for p in places]
        assert float(hit[sample]) == pytest.approx(np.mean(same))


def test_a_closed_question_has_the_divergence_over_its_options() -> None:
    dense, pruned = logits(0, 1), logits(1, 1)
    dense[1, 0, 0] = 50.0  # a token that is no option of the second question
    hit, log_probability = score_agreement(pruned, CLOSED, dense_outputs(dense, CLOSED))
    for sample, options in enumerate(([4, 1, 0], [2, 3])):
        p, q = dense[sample, 0, options], pruned[sample, 0, options]
        assert float(log_probability[sample]) == pytest.approx(-divergence(p, q), rel=1e-5)
        assert float(hit[sample]) == (p.argmax() == q.argmax())


@pytest.mark.parametrize("batch", [OPEN, CLOSED], ids=["open", "closed"])
def test_the_dense_model_agrees_with_itself(batch: Batch) -> None:
    same = logits(0, batch.positions)
    scores = score_agreement(same, batch, dense_outputs(same, batch))
    assert scores.tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_other_tokens_reduce_the_share_and_tokens_outside_the_answer_do_not_count() -> None:
    dense = torch.zeros(2, 3, VOCABULARY)
    dense[:, :, 2] = 3.0
    pruned = dense.clone()
    pruned[0, 1, 5] = 4.0
    pruned[1, 0, 5] = pruned[1, 2, 5] = 9.0
    hit, log_probability = score_agreement(pruned, OPEN, dense_outputs(dense, OPEN))
    assert hit.tolist() == pytest.approx([2 / 3, 1.0])
    assert float(log_probability[0]) < 0.0 == float(log_probability[1])


@pytest.mark.parametrize("batch", [OPEN, CLOSED], ids=["open", "closed"])
def test_nan_is_no_agreement_and_a_token_that_is_impossible_costs_everything(batch: Batch) -> None:
    dense = logits(0, batch.positions)
    pruned = dense.clone()
    pruned[0] = torch.nan
    hit, log_probability = score_agreement(pruned, batch, dense_outputs(dense, batch))
    assert (hit.tolist(), log_probability[0].exp().item()) == ([0.0, 1.0], 0.0)
    impossible = dense.clone()
    impossible[:, :, 3] = -torch.inf
    _, log_probability = score_agreement(impossible, batch, dense_outputs(dense, batch))
    assert log_probability[1].isneginf()
    _, log_probability = score_agreement(dense, batch, dense_outputs(impossible, batch))
    assert log_probability.isfinite().all()


def test_memory_is_that_of_the_answer_tokens_without_padding() -> None:
    for batch in (OPEN, CLOSED):
        kept = dense_outputs(logits(0, batch.positions), batch).log_probabilities
        assert kept.numel() == count_outputs(batch, VOCABULARY)
    assert count_outputs(OPEN, VOCABULARY) == 4 * VOCABULARY


def test_prompts_without_answers_cannot_be_compared() -> None:
    with pytest.raises(TaskError, match="no answers to compare"):
        dense_outputs(logits(0, 1), Batch({}, None, None, ()))
