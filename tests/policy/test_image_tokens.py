"""Image tokens as a component of policies."""

from __future__ import annotations

import numpy as np
import pytest

from effllava_optuna.allocation import uniform_by_kind, uniform_policies
from effllava_optuna.errors import PolicyError
from effllava_optuna.policy import (
    IMAGE_TOKENS,
    Component,
    Kind,
    ModelStructure,
    Policy,
    Ranking,
    Space,
)

ATTENTION = Component("language", 0, Kind.ATTN, 4, 10)
MLP = Component("language", 0, Kind.MLP, 8, 5)
STRUCTURE = ModelStructure((IMAGE_TOKENS, ATTENTION, MLP))
WIDTHS = {IMAGE_TOKENS.id: (25, 50, 100), ATTENTION.id: (1, 2, 4), MLP.id: (2, 4, 8)}


def test_a_policy_says_what_share_of_the_image_tokens_is_read() -> None:
    policy = Policy.of(STRUCTURE, {IMAGE_TOKENS.id: 25})
    assert policy.visual_tokens == 0.25
    assert Policy.dense(STRUCTURE).visual_tokens == 1.0
    assert Policy.dense(ModelStructure((ATTENTION,))).visual_tokens == 1.0
    with pytest.raises(PolicyError, match="cannot keep 0 of 100"):
        Policy.of(STRUCTURE, {IMAGE_TOKENS.id: 0})


def test_image_tokens_are_no_weights() -> None:
    policy = Policy.of(STRUCTURE, {IMAGE_TOKENS.id: 25})
    assert policy.keep_ratio == 1.0
    assert policy.digest != Policy.dense(STRUCTURE).digest
    assert policy.with_all_tokens() == Policy.dense(STRUCTURE)
    alone = Policy.dense(ModelStructure((ATTENTION,)))
    assert alone.with_all_tokens() is alone


def test_uniform_policies_read_all_of_them() -> None:
    assert Policy.uniform(STRUCTURE, ratio=0.5).visual_tokens == 1.0
    assert STRUCTURE.kinds == (Kind.ATTN, Kind.MLP)
    for policies in (uniform_policies(STRUCTURE, WIDTHS), uniform_by_kind(STRUCTURE, WIDTHS)):
        assert {policy.visual_tokens for policy in policies} == {1.0}
        assert len(policies) >= 3


def test_they_need_no_scores() -> None:
    scores = {ATTENTION.id: np.arange(4.0), MLP.id: np.arange(8.0)}
    ranking = Ranking.from_scores(STRUCTURE, "example", scores)
    assert len(ranking.units[IMAGE_TOKENS.id]) == 100


def test_their_number_is_a_gene() -> None:
    space = Space.of(STRUCTURE, WIDTHS)
    params: dict[str, int] = {IMAGE_TOKENS.id: 50, ATTENTION.id: 4, MLP.id: 2}
    decoded = space.decode(params)
    assert decoded.policy.visual_tokens == 0.5
    assert space.encode(decoded.policy) == params
