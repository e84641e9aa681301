"""The ranking of units."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effllava_optuna.errors import PolicyError
from effllava_optuna.policy import Component, Kind, ModelStructure, Ranking

ONE = ModelStructure((Component("language", 0, Kind.MLP, 6, 10),))
COMPONENT = ONE.components[0].id


@given(scores=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=6, max_size=6))
def test_units_are_ranked_by_score_and_ties_keep_the_order_of_the_model(
    scores: list[float],
) -> None:
    ranking = Ranking.from_scores(ONE, "taylor", {COMPONENT: np.array(scores)})
    assert ranking.units[COMPONENT].tolist() == sorted(
        range(6), key=lambda unit: (-scores[unit], unit)
    )
    assert ranking.units[COMPONENT].dtype == np.int64


@pytest.mark.parametrize(
    "scores", [[1, 2, 3, 4, 5, np.nan], [1, 2, 3, 4, 5, np.inf], [1, 2, 3], [[1] * 6], None]
)
def test_scores_that_are_missing_or_no_finite_numbers_are_refused(scores: object) -> None:
    given_scores = {} if scores is None else {COMPONENT: np.array(scores, dtype=np.float64)}
    with pytest.raises(PolicyError, match=r"language\.00\.mlp needs 6 finite taylor .* Check"):
        Ranking.from_scores(ONE, "taylor", given_scores)


@pytest.mark.parametrize("units", [[0, 1, 1], [1, 2, 3], [[0, 1]], [0.5, 1]])
def test_an_order_that_does_not_name_each_unit_once_is_refused(units: object) -> None:
    with pytest.raises(
        PolicyError, match=r"taylor ranking of language\.00\.mlp does not contain each"
    ):
        Ranking(ONE.digest, "taylor", {COMPONENT: np.array(units)})


def test_the_digest_follows_the_content_and_not_how_it_was_collected(
    structure: ModelStructure,
) -> None:
    units = {component.id: np.arange(component.width) for component in structure.components}
    ranking = Ranking(structure.digest, "taylor", units)
    backwards = Ranking(structure.digest, "taylor", dict(reversed(units.items())))
    swapped = units | {structure.components[0].id: np.array([1, 0, 2, 3])}
    others = [
        Ranking(structure.digest, "taylor", swapped),
        Ranking(structure.digest, "magnitude", units),
        Ranking("another", "taylor", units),
    ]
    assert ranking.digest == backwards.digest
    assert len({ranking.digest, *(other.digest for other in others)}) == 4
