"""Fixtures that the tests of exports share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.surgery import LoadedModel


@pytest.fixture(scope="session")
def pruned(make_llava: Callable[..., LoadedModel]) -> LoadedModel:
    """A model with another number of heads in each block, and a bias that its class lacks."""
    from tests.surgery.export.pruned_models import prune

    return prune(make_llava(attention_bias=True))
