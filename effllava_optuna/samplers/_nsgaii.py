"""NSGA-II over epochs, as an Optuna sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.samplers._proposals._generation_strategy import NSGAIIStrategy
from effllava_optuna.samplers._proposals._operators import Variation
from effllava_optuna.samplers._sampler import EpochSampler

if TYPE_CHECKING:
    from effllava_optuna.samplers._level_grid import SpaceProvider
    from effllava_optuna.samplers._proposals._screening import Screening

_DEFAULT_VARIATION = Variation()


class EpochNSGAIISampler(EpochSampler):
    """NSGA-II (Deb et al. 2002) over epochs; see `EpochSampler` for its guarantees.

    `_operators` notes where it departs from the stock algorithm. Failed and pruned trials are not
    parents.

    Args:
        space: Returns the space of the current epoch. None for a plain random sampler.
        population_size: Slots in a generation and parents that survive, at least 2.
        seed: Root of all randomness, not negative.
        variation: Parameters of the operators.
        screening: How children are chosen from many candidates; None: the first ones are taken.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        space: SpaceProvider | None,
        *,
        population_size: int = 20,
        seed: int = 0,
        variation: Variation = _DEFAULT_VARIATION,
        screening: Screening | None = None,
    ) -> None:
        strategy = NSGAIIStrategy(seed, population_size, variation, screening)
        super().__init__(space, strategy)
