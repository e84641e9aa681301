"""What the tests of surgery share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from effllava_optuna.policy import SiteId
    from effllava_optuna.surgery import Loaded
    from effllava_optuna.tasks import Batch
    from tests.surgery.twins import Told


@pytest.fixture(scope="session")
def twin(tiny: Loaded, singles: list[Batch]) -> dict[SiteId, Told]:
    """What `singles` tell about every site of `tiny`, one sample and one token at a time."""
    from tests.surgery.twins import told

    return told(tiny, tiny.handles, singles)
