from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.testing.pytest_samplers import BasicSamplerTestCase, MultiObjectiveSamplerTestCase

from effllava_optuna.samplers import EpochNSGAIISampler, SpaceView
from tests.samplers.toy import ToySpace

if TYPE_CHECKING:
    _: SpaceView = ToySpace({})


class TestWithoutSpace(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        return lambda: EpochNSGAIISampler(None)
