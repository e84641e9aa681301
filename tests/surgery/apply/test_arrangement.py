"""Permuting units into ranking order changes no function, and is undone exactly: promise 2."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Policy, Ranking
from effllava_optuna.surgery import LoadedModel, arranged, masked, narrowed, sliced
from tests.surgery.apply.networks import (
    CLOSE,
    random_ranking,
    token_logits,
    unchanged,
    uneven_policy,
)

if TYPE_CHECKING:
    from effllava_optuna.policy import ModelStructure
    from effllava_optuna.tasks import Batch


def test_arranging_changes_no_logit_beyond_rounding(model: LoadedModel, batch: Batch) -> None:
    ranking = random_ranking(model.structure, 0)
    before = token_logits(model, batch)
    down = model.handles[1].linear("down_proj").weight
    columns = down.clone()
    with unchanged(model), arranged(model, ranking) as network:
        assert network.ranking is ranking
        units = ranking.units[model.structure.components[1].id].tolist()
        assert torch.equal(down, columns[:, units])
        torch.testing.assert_close(token_logits(network, batch), before, **CLOSE)


def test_inside_an_arrangement_the_dense_policy_changes_nothing_more(
    tiny: LoadedModel, ranking: Ranking, batch: Batch
) -> None:
    dense = Policy.dense(tiny.structure)
    with arranged(tiny, ranking) as network:
        before = token_logits(network, batch)
        with narrowed(network, dense, ranking) as same:
            assert torch.equal(token_logits(same, batch), before)


def test_an_arranged_model_may_be_reached_through_any_loaded_model(
    tiny: LoadedModel, ranking: Ranking, batch: Batch
) -> None:
    policy = uneven_policy(tiny.structure)
    with narrowed(tiny, policy, ranking) as small:
        expected = token_logits(small, batch)
    with unchanged(tiny), arranged(tiny, ranking) as network:
        for loaded in (tiny, network):
            with narrowed(loaded, policy, ranking) as small:
                assert torch.equal(token_logits(small, batch), expected)
            with masked(loaded, policy, ranking) as reference:
                torch.testing.assert_close(token_logits(reference, batch), expected, **CLOSE)
            with arranged(loaded, ranking) as again:
                assert again.ranking is ranking
            assert torch.equal(token_logits(sliced(loaded, policy, ranking), batch), expected)
    # `network` outlives its `with` block; its weights are no longer arranged.
    with narrowed(network, policy, ranking) as small:
        assert torch.equal(token_logits(small, batch), expected)


def test_a_ranking_of_another_model_is_refused(
    tiny: LoadedModel, structure: ModelStructure
) -> None:
    with pytest.raises(ModelError, match="Rank the units of this model"):
        arranged(tiny, random_ranking(structure, 0)).__enter__()


def test_a_ranking_that_lacks_units_is_refused_before_anything_moves(
    tiny: LoadedModel, ranking: Ranking
) -> None:
    last = tiny.structure.components[-1].id
    lacking = [
        {component: units for component, units in ranking.units.items() if component != last},
        dict(ranking.units) | {last: np.arange(20)},
    ]
    for units in lacking:
        damaged = Ranking(ranking.structure, ranking.method, units)
        message = f"does not contain the 24 units of {last}"
        with unchanged(tiny), pytest.raises(ModelError, match=message):
            arranged(tiny, damaged).__enter__()


def test_a_second_ranking_is_refused_while_the_first_is_in_use(
    tiny: LoadedModel, ranking: Ranking
) -> None:
    other = random_ranking(tiny.structure, 7)
    policy = uneven_policy(tiny.structure)
    with unchanged(tiny), arranged(tiny, ranking) as network:
        for loaded in (tiny, network):
            for context in (narrowed(loaded, policy, other), masked(loaded, policy, other)):
                with pytest.raises(ModelError, match=f"arranged by ranking {ranking.digest}, not"):
                    context.__enter__()
            with pytest.raises(ModelError, match="before using another ranking"):
                arranged(loaded, other).__enter__()


def test_an_arrangement_lasts_until_the_last_user_leaves(
    tiny: LoadedModel, ranking: Ranking
) -> None:
    weight = tiny.handles[1].linear("down_proj").weight
    dense = weight.clone()
    first, second = arranged(tiny, ranking), arranged(tiny, ranking)
    with unchanged(tiny):
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert not torch.equal(weight, dense)
        second.__exit__(None, None, None)
        assert torch.equal(weight, dense)


def test_threads_may_narrow_a_model_that_another_thread_has_arranged(
    tiny: LoadedModel, ranking: Ranking, batch: Batch
) -> None:
    policy = uneven_policy(tiny.structure)
    with narrowed(tiny, policy, ranking) as small:
        expected = token_logits(small, batch)
    results: list[torch.Tensor] = []

    def work(network: LoadedModel) -> None:
        with narrowed(network, policy, ranking) as small:
            results.append(token_logits(small, batch))

    with unchanged(tiny), arranged(tiny, ranking) as network:
        threads = [threading.Thread(target=work, args=(network,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 2
    assert all(torch.equal(logits, expected) for logits in results)
