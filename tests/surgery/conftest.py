"""Fixtures that the tests of surgery share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from effllava_optuna.policy import ComponentId
    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Batch
    from tests.surgery.twins import ReferenceObservation


@pytest.fixture(scope="session")
def twin(tiny: LoadedModel, singles: list[Batch]) -> dict[ComponentId, ReferenceObservation]:
    """Reference observations of every component of `tiny` on `singles`."""
    from tests.surgery.twins import observe_each_sample

    return observe_each_sample(tiny, tiny.handles, singles)
