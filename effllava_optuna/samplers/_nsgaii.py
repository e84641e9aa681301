"""NSGA-II over epochs, as an Optuna sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.samplers._breeding import NSGAIIBreeder
from effllava_optuna.samplers._operators import Variation
from effllava_optuna.samplers._sampler import EpochSampler

if TYPE_CHECKING:
    from effllava_optuna.samplers._space import SpaceProvider

_DEFAULT_VARIATION = Variation()


class EpochNSGAIISampler(EpochSampler):
    """NSGA-II (Deb et al. 2002) over epochs; see `EpochSampler` for what it promises.

    It departs from the stock algorithm where noted in `_operators`; failed and pruned trials are
    no parents.

    Args:
        space: Tells the space of the current epoch. None for a plain random sampler.
        population_size: Slots in a generation and parents that survive, at least 2.
        generations: Planned generations in an epoch. Where the space stays the same after them,
            the search goes on in the same epoch.
        seed: Root of all randomness, not negative.
        variation: Parameters of the operators.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        space: SpaceProvider | None,
        *,
        population_size: int = 20,
        generations: int = 4,
        seed: int = 0,
        variation: Variation = _DEFAULT_VARIATION,
    ) -> None:
        breeder = NSGAIIBreeder(seed, population_size, variation)
        super().__init__(space, breeder, generations=generations)
